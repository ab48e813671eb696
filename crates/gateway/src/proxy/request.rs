//! A request on its way: what the server knows of it, its bytes, and how it is routed.

use http::header::HeaderValue;
use http::request;
use routing::{Request as RoutingRequest, TextRatio};

use super::body_fields::{BodyFields, OpenBody};
use super::header_text::header_text;
use super::request_body::WholeBody;
use crate::admission::{Asker, PRIORITY};
use crate::auth::Principal;
use crate::balancer::{Grant, NamedAdapters};
use crate::config::LiveSection;
use crate::endpoint::{Inference, Servers};
use crate::lane::Lane;
use crate::telemetry::{Metrics, RequestLog};
use crate::upstream::CallBody;

/// What the server knows of a request besides its bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestContext<'a> {
    /// The lane whose thread carries the request.
    pub(crate) lane: Lane,
    pub(crate) request_id: &'a HeaderValue,
    /// Where it comes from.
    pub(crate) principal: &'a Principal,
    pub(crate) log: &'a RequestLog,
}

impl<'a> RequestContext<'a> {
    /// Notes what is recorded of its prompt, where requests are recorded.
    pub(super) fn record(
        self,
        metrics: &Metrics,
        routing: &RoutingRequest<'_>,
        fields: &BodyFields<'_>,
    ) {
        if let Some(recorder) = metrics.lines.recorder() {
            let prompt = recorder.prompt(routing, fields.longest_output());
            self.log.set_prompt(prompt);
        }
    }

    /// What the client may use, where its key has not everything.
    pub(super) fn grant(self, adapters: impl FnOnce() -> NamedAdapters<'a>) -> Option<Grant<'a>> {
        self.principal.models().map(|names| Grant {
            names,
            adapters: adapters(),
        })
    }
}

/// An inference request that has come in whole.
#[derive(Debug)]
pub(crate) struct BufferedRequest {
    pub(super) parts: request::Parts,
    pub(super) body: WholeBody,
}

impl BufferedRequest {
    /// The request as the fair order knows it before its body is looked at.
    pub(crate) fn asker(&self, principal: &Principal) -> Asker {
        let tokens = TextRatio::USUAL.to_tokens(self.body.bytes.len() as u64);
        asker(&self.parts, principal, tokens)
    }
}

/// A request of this client that is expected to take so many tokens.
pub(super) fn asker(parts: &request::Parts, principal: &Principal, tokens: u64) -> Asker {
    let wanted = header_text(&parts.headers, &PRIORITY);
    Asker::new(principal.fair_share(), wanted, tokens)
}

/// An inference request, as it goes to a worker.
pub(super) struct ProxyRequest<'a> {
    pub(super) row: &'static Inference,
    pub(super) context: RequestContext<'a>,
    pub(super) parts: &'a request::Parts,
    /// The client's body, or what the worker is to get of it.
    pub(super) body: CallBody<'a>,
    /// The same, open for fields of the gateway's, where some workers need them.
    pub(super) open_body: Option<&'a OpenBody>,
    pub(super) routing: &'a RoutingRequest<'a>,
    /// The client's `X-SMG-Target-Worker`.
    pub(super) target: Option<&'a str>,
    /// What its client may use, where that is not everything.
    pub(super) grant: Option<&'a Grant<'a>>,
    pub(super) streaming: bool,
    /// The options in force when it came.
    pub(super) live: &'a LiveSection,
}

impl ProxyRequest<'_> {
    /// Answers to each prompt that it asks for, where that matters.
    pub(super) fn samples(&self) -> u64 {
        self.open_body.map_or(1, |body| body.samples(self.row))
    }

    /// Which workers may answer it: a pair gives one answer to a prompt.
    pub(super) fn servers(&self) -> Servers {
        if self.samples() > 1 {
            Servers::Regular
        } else {
            self.row.servers
        }
    }
}
