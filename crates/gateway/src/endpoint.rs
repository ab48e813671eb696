//! The inference endpoints, one row each.

use http::Method;

/// An inference endpoint.
#[derive(Debug)]
pub(crate) struct Inference {
    /// Where it stands in [`INFERENCE`].
    pub(crate) index: usize,
    /// Path at the gateway.
    pub(crate) path: &'static str,
    /// Path at the worker.
    pub(crate) worker_path: &'static str,
    /// The `endpoint` label of metrics.
    pub(crate) label: &'static str,
    /// What a body that is not declared as JSON gets.
    pub(crate) undeclared: Undeclared,
    /// Whose API the endpoint belongs to.
    pub(crate) vendor: Vendor,
    /// What becomes of the worker's reply.
    pub(crate) reply: ReplyFormat,
    /// The protocol that its connections are switched to (RFC 9110 §7.8); then a GET opens it.
    pub(crate) upgrade: Option<&'static str>,
    /// The fields its prompt is made of, in the order a chat template puts them.
    pub(crate) prompt: [PromptField; 3],
}

impl Inference {
    /// The method of its requests.
    pub(crate) fn method(&self) -> Method {
        match self.upgrade {
            Option::None => Method::POST,
            Some(_) => Method::GET,
        }
    }
}

/// A field of a request's body that prompts are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PromptField {
    Messages,
    Text,
    InputIds,
    Prompt,
    Input,
    Query,
    Instructions,
    System,
    Tools,
    /// No field.
    None,
}

impl PromptField {
    /// How many there are, [`Self::None`] aside.
    pub(crate) const COUNT: usize = Self::None as usize;
}

/// What a body without `content-type: application/json` gets, as upstream answers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Undeclared {
    /// SGLang takes a body without a content type here; any other type is 415.
    OnlyIfAbsent,
    /// 415.
    Unsupported,
    /// 400 `json_parse_error`.
    BadRequest,
}

/// The vendor whose API an endpoint follows: where keys are sent, how errors read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Vendor {
    /// OpenAI, and what others have in its style.
    #[default]
    OpenAi,
    /// SGLang's own endpoints.
    Sglang,
    /// Anthropic: keys may come in `x-api-key`.
    Anthropic,
}

impl Vendor {
    /// Whose API a path belongs to that is no route, but may stand below one.
    pub(crate) fn of_path(path: &str) -> Self {
        let below = |row: &&Inference| {
            let rest = path.strip_prefix(row.path);
            rest.is_some_and(|rest| rest.starts_with('/'))
        };
        let row = INFERENCE.iter().find(below);
        row.map_or_else(Self::default, |row| row.vendor)
    }
}

/// What becomes of the worker's reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReplyFormat {
    /// Relayed byte for byte.
    Verbatim,
    /// The worker's bare array is wrapped into the rerank object.
    Rerank,
}

use PromptField::{
    Input, InputIds, Instructions, Messages, None, Prompt, Query, System, Text, Tools,
};
use ReplyFormat::{Rerank, Verbatim};
use Undeclared::{BadRequest, OnlyIfAbsent, Unsupported};
use Vendor::{Anthropic, OpenAi, Sglang};

/// Every inference endpoint that is forwarded to one worker.
#[rustfmt::skip]
pub(crate) const INFERENCE: [Inference; 10] = [
    Inference { vendor: Sglang, ..row(0, "/generate", "generate", OnlyIfAbsent, [Text, InputIds, None]) },
    row(1, "/v1/chat/completions", "chat", BadRequest, [Tools, Messages, None]),
    row(2, "/v1/completions", "completions", Unsupported, [Prompt, None, None]),
    row(3, "/v1/embeddings", "embeddings", Unsupported, [Input, None, None]),
    row(4, "/v1/classify", "classify", Unsupported, [Input, None, None]),
    Inference { reply: Rerank, ..row(5, "/v1/rerank", "rerank", Unsupported, [Query, None, None]) },
    Inference { path: "/rerank", reply: Rerank, ..row(6, "/v1/rerank", "rerank", BadRequest, [Query, None, None]) },
    row(7, "/v1/responses", "responses", BadRequest, [Tools, Instructions, Input]),
    Inference { vendor: Anthropic, ..row(8, "/v1/messages", "messages", BadRequest, [Tools, System, Messages]) },
    Inference { upgrade: Some("websocket"), ..row(9, "/v1/realtime", "realtime", Unsupported, [None, None, None]) },
];

const fn row(
    index: usize,
    path: &'static str,
    label: &'static str,
    undeclared: Undeclared,
    prompt: [PromptField; 3],
) -> Inference {
    Inference {
        index,
        path,
        worker_path: path,
        label,
        undeclared,
        vendor: OpenAi,
        reply: Verbatim,
        upgrade: Option::None,
        prompt,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_below_an_endpoint_belongs_to_its_vendor() {
        for (path, vendor) in [
            ("/v1/messages/batches", Anthropic),
            ("/v1/messages2", OpenAi),
            ("/generate/x", Sglang),
            ("/nowhere", OpenAi),
        ] {
            assert_eq!(Vendor::of_path(path), vendor, "{path}");
        }
    }

    #[test]
    fn rows_stand_where_their_index_says() {
        assert!(
            INFERENCE
                .iter()
                .enumerate()
                .all(|(at, row)| row.index == at)
        );
    }
}
