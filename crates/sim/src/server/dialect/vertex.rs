//! `/vertex_generate`: the requests and replies of `/generate` in Vertex AI's envelope.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::dialect::{Dialect, ParsedRequest};
use super::events::document;
use super::generate;
use crate::server::http::error_response::{ErrorResponse, Shape};
use crate::server::parse::{Routing, from_json};
use crate::server::runtime::sequence::{InferenceRequest, Sequence};
use crate::server::runtime::worker::Worker;

#[derive(Deserialize)]
struct VertexRequest {
    instances: Vec<Map<String, Value>>,
    #[serde(default)]
    parameters: Option<Map<String, Value>>,
}

/// Puts a reply into the envelope.
struct Predictions(Box<dyn Dialect>);

/// A request without instances: its reply is an empty list, without the envelope.
struct Nothing;

/// Parses a request.
pub(crate) fn parse(worker: &Worker, body: &[u8]) -> Result<ParsedRequest, ErrorResponse> {
    let request: VertexRequest = from_json(body, Shape::Flat)?;
    let Some(first) = request.instances.first() else {
        let inference = InferenceRequest {
            is_list: false,
            prompts: Vec::new(),
            sampling: Vec::new(),
            routing: Routing::default(),
            stream: false,
        };
        let dialect = Box::new(Nothing);
        return Ok(ParsedRequest { inference, dialect });
    };
    let mut body = request.parameters.unwrap_or_default();
    let given = ["text", "input_ids"].into_iter();
    let given = given.filter(|key| first.contains_key(*key)).take(1);
    for key in given {
        let prompts = request.instances.iter().map(|one| one.get(key).cloned());
        body.insert(
            key.to_owned(),
            prompts.map(Option::unwrap_or_default).collect(),
        );
    }
    let parsed = generate::parse(worker, json!(body).to_string().as_bytes())?;
    Ok(ParsedRequest {
        inference: parsed.inference,
        dialect: Box::new(Predictions(parsed.dialect)),
    })
}

impl Dialect for Predictions {
    fn document(&mut self, sequences: &[Sequence]) -> Bytes {
        let reply = self.0.document(sequences);
        let reply: Cow<'_, str> = String::from_utf8_lossy(&reply);
        format!("{{\"predictions\":{reply}}}").into()
    }

    fn token(&mut self, sequence: &Sequence, at: u32, out: &mut BytesMut) {
        self.0.token(sequence, at, out);
    }

    fn ending(&mut self, sequence: &Sequence, sent: u32, out: &mut BytesMut) {
        self.0.ending(sequence, sent, out);
    }

    fn closing(&mut self, sequences: &[Sequence], out: &mut BytesMut) {
        self.0.closing(sequences, out);
    }
}

impl Dialect for Nothing {
    fn document(&mut self, _sequences: &[Sequence]) -> Bytes {
        document(&json!([]))
    }
}
