//! The bytes of the replies, made once.

use std::time::Duration;

use serde_json::{Value, json};

use super::options::WorkerOptions;

const STREAM_HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

/// Every reply of a mock worker.
#[derive(Debug)]
pub(crate) struct Replies {
    /// To inference that is no stream.
    pub(crate) whole: Vec<u8>,
    /// The writes of a stream, in order; the first has the head.
    pub(crate) stream: Vec<Vec<u8>>,
    /// Time before each write.
    pub(crate) interval: Duration,
    models: Vec<u8>,
    model_info: Vec<u8>,
    server_info: Vec<u8>,
    load: Vec<u8>,
    ok: Vec<u8>,
}

impl Replies {
    pub(crate) fn new(options: &WorkerOptions) -> Self {
        let model = &options.model;
        let info = json!({
            "model_path": model, "served_model_name": model, "tokenizer_path": model, "is_generation": true,
        });
        let server = json!({
            "model_path": model, "served_model_name": model, "tp_size": 1, "dp_size": 1, "version": "0.5.23",
            "internal_states": [{}],
        });
        let models = json!({"object": "list", "data": [{"id": model, "object": "model", "owned_by": "sglang"}]});
        let load = json!([{"dp_rank": 0, "num_reqs": 0, "num_waiting_reqs": 0, "num_tokens": 0}]);
        Self {
            whole: reply(&completion(options)),
            stream: writes(options),
            interval: Duration::from_micros(options.interval_us),
            models: reply(&models),
            model_info: reply(&info),
            server_info: reply(&server),
            load: reply(&load),
            ok: reply(&json!({"status": "ok"})),
        }
    }

    /// The reply to a GET. Health checks and whatever a gateway asks besides get a 200, so that all gateways start.
    pub(crate) fn get(&self, path: &str) -> &[u8] {
        match path {
            "/v1/models" => &self.models,
            "/model_info" | "/get_model_info" => &self.model_info,
            "/server_info" | "/get_server_info" => &self.server_info,
            "/get_load" => &self.load,
            _ => &self.ok,
        }
    }
}

fn completion(options: &WorkerOptions) -> Value {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": options.model,
        "choices": [{
            "index": 0, "finish_reason": "stop",
            "message": {"role": "assistant", "content": "x".repeat(options.reply_bytes as usize)},
        }],
        "usage": {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10},
    })
}

fn reply(body: &Value) -> Vec<u8> {
    let body = body.to_string();
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}").into_bytes()
}

/// The writes of a stream: one for each chunk, or a single one without an interval.
fn writes(options: &WorkerOptions) -> Vec<Vec<u8>> {
    let mut writes: Vec<Vec<u8>> = (1..=options.chunks)
        .map(|number| event(options, number))
        .collect();
    if let Some(first) = writes.first_mut() {
        first.splice(..0, STREAM_HEAD.bytes());
    }
    if let Some(last) = writes.last_mut() {
        last.extend(chunk("data: [DONE]\n\n"));
        last.extend(chunk(""));
    }
    if options.interval_us == 0 {
        writes = vec![writes.concat()];
    }
    writes
}

fn event(options: &WorkerOptions, number: u32) -> Vec<u8> {
    let last = number == options.chunks;
    let data = json!({
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": options.model,
        "choices": [{
            "index": 0, "delta": {"content": format!("token {number} ")},
            "finish_reason": last.then_some("stop"),
        }],
    });
    chunk(&format!("data: {data}\n\n"))
}

fn chunk(content: &str) -> Vec<u8> {
    format!("{:x}\r\n{content}\r\n", content.len()).into_bytes()
}
