//! A request as a line of a trace: Mooncake's fields first, then those of this gateway.

use std::time::Duration;

use serde::Serialize;

use super::record::Record;
use super::salt::{Kind, Salt};

/// Bytes of a block per token: with the usual text, blocks have the tokens they are named by.
pub(super) const BYTES_PER_TOKEN: u32 = 4;

/// A line. What is unknown is left out.
#[derive(Debug, Serialize)]
pub(super) struct Line<'a> {
    /// Milliseconds from the beginning of the recording to the request's arrival.
    timestamp: u64,
    /// Tokens, as many as fit the number of blocks.
    input_length: u64,
    output_length: u64,
    hash_ids: Vec<u64>,
    endpoint: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a str>,
    stream: bool,
    input_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cached_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<String>,
    status: u16,
    failed_attempts: u32,
    cancelled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttft_ms: Option<f64>,
    total_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<usize>,
    #[serde(skip_serializing_if = "str::is_empty")]
    policy: &'a str,
    /// In the first line of a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    recording: Option<&'a Recording>,
}

/// What holds for all lines of a file.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Recording {
    pub(super) version: u32,
    /// Tokens and bytes of a block.
    pub(super) block_tokens: u32,
    pub(super) block_bytes: u32,
    /// Share of sessions that are recorded.
    pub(super) sample: f64,
    /// When `timestamp` was 0.
    pub(super) began: String,
}

/// What the line of a request needs besides.
#[derive(Debug)]
pub(super) struct LineContext<'a> {
    pub(super) salt: &'a Salt,
    pub(super) block_tokens: u32,
    /// From the beginning of the recording to the request's arrival.
    pub(super) arrived: Duration,
    /// The number of the request's worker.
    pub(super) worker: Option<usize>,
    pub(super) recording: Option<&'a Recording>,
}

impl<'a> Line<'a> {
    pub(super) fn new(record: &'a Record, context: &LineContext<'a>) -> Self {
        let salt = context.salt;
        let prompt = record.prompt.as_deref();
        let model = record.worker.as_ref().map(|(model, _)| &**model);
        let chain = prompt.map(|prompt| prompt.chain.as_slice());
        let hash = |block| salt.hash(Kind::Block, block, model.unwrap_or_default());
        let hash_ids: Vec<_> = chain.into_iter().flatten().copied().map(hash).collect();
        let named = |kind, number: Option<u64>| {
            number.map(|number| format!("{:014x}", salt.hash(kind, number, "")))
        };
        Self {
            timestamp: u64::try_from(context.arrived.as_millis()).unwrap_or(u64::MAX),
            input_length: length_of(record, hash_ids.len(), context.block_tokens),
            output_length: record.output_tokens,
            hash_ids,
            endpoint: record.endpoint,
            model,
            stream: record.streaming,
            input_bytes: prompt.map_or(0, |prompt| prompt.bytes),
            prompt_tokens: record.prompt_tokens,
            cached_tokens: record.cached_tokens,
            max_tokens: prompt.and_then(|prompt| prompt.max_tokens),
            tenant: named(Kind::Key, record.key),
            session: named(Kind::Session, prompt.and_then(|prompt| prompt.session)),
            status: record.status,
            failed_attempts: record.failed_attempts,
            cancelled: record.cancelled,
            ttft_ms: record.first_byte.map(millis),
            total_ms: millis(record.total),
            worker: context.worker,
            policy: record.policy,
            recording: context.recording,
        }
    }
}

/// The tokens of a prompt, moved to where the number of blocks is right: readers of Mooncake's
/// traces refuse others.
fn length_of(record: &Record, blocks: usize, block_tokens: u32) -> u64 {
    let estimate = record.prompt.as_ref().map_or(0, |prompt| prompt.tokens);
    let (blocks, block) = (blocks as u64, u64::from(block_tokens));
    let Some(whole) = blocks.checked_sub(1) else {
        return 0;
    };
    let tokens = record.prompt_tokens.unwrap_or(estimate);
    tokens.clamp(whole * block + 1, blocks * block)
}

/// With three decimals.
fn millis(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::record::RecordedPrompt;
    use super::super::tests::record;
    use super::*;

    fn written(record: &Record, salt: &Salt) -> Value {
        let context = LineContext {
            salt,
            block_tokens: 512,
            arrived: Duration::from_micros(1_234_567),
            worker: record.worker.as_ref().map(|_| 3),
            recording: None,
        };
        serde_json::to_value(Line::new(record, &context)).unwrap()
    }

    fn served(model: &str, prompt_tokens: u64) -> Record {
        Record {
            worker: Some((model.into(), "http://secret-host".into())),
            prompt: Some(Box::new(RecordedPrompt {
                bytes: 4200,
                tokens: 1050,
                max_tokens: Some(64),
                session: Some(1),
                chain: vec![1, 2, 3],
            })),
            key: Some(1),
            prompt_tokens: Some(prompt_tokens),
            ..record()
        }
    }

    #[test]
    fn line_has_the_fields_of_mooncake_and_its_own() {
        let salt = Salt::random().unwrap();
        let line = written(&served("m", 1400), &salt);
        assert_eq!(line["timestamp"], 1234);
        assert_eq!(line["input_length"], 1400);
        assert_eq!(line["output_length"], 5);
        assert_eq!(line["hash_ids"].as_array().unwrap().len(), 3);
        assert_eq!(line["input_bytes"], 4200);
        assert_eq!(line["ttft_ms"], json!(1.5));
        assert_eq!(line["worker"], 3);
        assert_ne!(line["tenant"], line["session"]);
        assert!(!line.to_string().contains("secret"), "{line}");
    }

    #[test]
    fn length_fits_the_blocks_whatever_the_worker_counts() {
        let salt = Salt::random().unwrap();
        for (counted, length) in [(10, 1025), (1300, 1300), (9000, 1536)] {
            let line = written(&served("m", counted), &salt);
            assert_eq!(line["input_length"], length);
            assert_eq!(line["prompt_tokens"], counted);
        }
        assert_eq!(written(&record(), &salt)["input_length"], 0);
    }

    #[test]
    fn blocks_of_two_models_or_of_two_files_have_nothing_in_common() {
        let (one, other) = (Salt::random().unwrap(), Salt::random().unwrap());
        let line = written(&served("m", 1), &one);
        assert_eq!(line["hash_ids"], written(&served("m", 1), &one)["hash_ids"]);
        for different in [
            written(&served("m", 1), &other),
            written(&served("n", 1), &one),
        ] {
            let ids = different["hash_ids"].as_array().unwrap();
            let known = line["hash_ids"].as_array().unwrap();
            assert!(ids.iter().all(|id| !known.contains(id)));
        }
    }

    #[test]
    fn name_that_a_client_sent_is_in_no_line() {
        let unrouted = Record {
            worker: None,
            ..served("m", 1)
        };
        let line = written(&unrouted, &Salt::random().unwrap());
        assert_eq!(line.get("model"), None);
    }
}
