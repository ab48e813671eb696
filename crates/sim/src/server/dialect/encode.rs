//! Endpoints that prefill prompts and generate no tokens: embeddings, classify, rerank, score.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::base64;
use super::dialect::{Dialect, ParsedRequest};
use super::events::document;
use super::openai::usage_object;
use crate::engine::{Prompt, mix};
use crate::server::http::error_response::{ErrorResponse, Shape};
use crate::server::parse::{Prompts, Routing, Sampling, Text, from_json};
use crate::server::runtime::sequence::{InferenceRequest, Sequence};
use crate::server::runtime::vocabulary;
use crate::server::runtime::worker::{Worker, unix_seconds};

/// Dimensions of an embedding if the request sets none.
const DIMENSIONS: u32 = 8;
const MAX_DIMENSIONS: u32 = 16_384;

#[derive(Default, Deserialize)]
#[serde(default)]
struct EncodeRequest<'a> {
    #[serde(borrow)]
    input: Option<Prompts<'a>>, // embeddings, classify
    #[serde(borrow)]
    text: Option<Prompts<'a>>, // encode
    #[serde(borrow)]
    input_ids: Option<Prompts<'a>>, // encode
    #[serde(borrow)]
    query: Option<Text<'a>>, // rerank, score
    #[serde(borrow)]
    documents: Option<Vec<Text<'a>>>, // rerank
    #[serde(borrow)]
    items: Option<Prompts<'a>>, // score
    label_token_ids: Option<Vec<u32>>, // score
    return_documents: Option<bool>,
    top_n: Option<usize>,
    #[serde(borrow)]
    encoding_format: Option<Text<'a>>,
    dimensions: Option<u32>,
    #[serde(borrow)]
    model: Option<Text<'a>>,
    data_parallel_rank: Option<u32>,
    routed_dp_rank: Option<u32>,
}

/// The endpoint, with the fields that its response needs.
#[derive(Clone, Debug)]
enum Kind {
    Embeddings {
        format: Format,
        dimensions: u32,
    },
    Classify,
    Native {
        is_list: bool,
    },
    Rerank {
        documents: Option<Vec<String>>,
        top_n: usize,
    },
    Score {
        labels: usize,
    },
}

/// Encoding of embeddings (`encoding_format`).
#[derive(Clone, Copy, Debug)]
enum Format {
    Float,
    Base64,
}

struct Encode {
    model: String,
    kind: Kind,
}

fn required<T>(field: Option<T>, name: &str) -> Result<T, ErrorResponse> {
    field.ok_or_else(|| ErrorResponse::bad_request(Shape::Flat, format!("{name}: field required")))
}

fn parse(body: &[u8]) -> Result<EncodeRequest<'_>, ErrorResponse> {
    from_json(body, Shape::Flat)
}

fn parsed_request(
    worker: &Worker,
    request: EncodeRequest<'_>,
    prompts: Vec<Prompt>,
    kind: Kind,
) -> ParsedRequest {
    let rank = request.routed_dp_rank.or(request.data_parallel_rank);
    let inference = InferenceRequest {
        is_list: prompts.len() > 1,
        prompts,
        sampling: vec![Sampling {
            max_new_tokens: Some(0),
            ..Sampling::default()
        }],
        routing: Routing::new(None, rank),
        stream: false,
    };
    let model = worker.model_or_own(request.model);
    ParsedRequest {
        inference,
        dialect: Box::new(Encode { model, kind }),
    }
}

/// Parses a request for `/v1/embeddings`.
pub(crate) fn parse_embeddings(
    worker: &Worker,
    body: &[u8],
) -> Result<ParsedRequest, ErrorResponse> {
    let mut request = parse(body)?;
    let prompts = required(request.input.take(), "input")?.to_prompts(worker.options.page_size);
    let dimensions = request.dimensions.unwrap_or(DIMENSIONS);
    if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
        return Err(ErrorResponse::bad_request(
            Shape::Flat,
            format!("dimensions: 1 to {MAX_DIMENSIONS}"),
        ));
    }
    let format = match request.encoding_format.as_ref().map(Text::as_str) {
        Some("base64") => Format::Base64,
        _ => Format::Float,
    };
    Ok(parsed_request(
        worker,
        request,
        prompts,
        Kind::Embeddings { format, dimensions },
    ))
}

/// Parses a request for `/v1/classify`.
pub(crate) fn parse_classify(worker: &Worker, body: &[u8]) -> Result<ParsedRequest, ErrorResponse> {
    let mut request = parse(body)?;
    let prompts = required(request.input.take(), "input")?.to_prompts(worker.options.page_size);
    Ok(parsed_request(worker, request, prompts, Kind::Classify))
}

/// Parses a request for `/encode`.
pub(crate) fn parse_native(worker: &Worker, body: &[u8]) -> Result<ParsedRequest, ErrorResponse> {
    let mut request = parse(body)?;
    let given = (request.text.take(), request.input_ids.take());
    let ((Some(prompts), None) | (None, Some(prompts))) = given else {
        let why = "Either text, input_ids or input_embeds should be provided.";
        return Err(ErrorResponse::bad_request(Shape::Nested, why));
    };
    let is_list = prompts.is_batch();
    let prompts = prompts.to_prompts(worker.options.page_size);
    Ok(parsed_request(
        worker,
        request,
        prompts,
        Kind::Native { is_list },
    ))
}

/// Parses a request for `/v1/rerank`.
pub(crate) fn parse_rerank(worker: &Worker, body: &[u8]) -> Result<ParsedRequest, ErrorResponse> {
    let mut request = parse(body)?;
    let query = required(request.query.take(), "query")?;
    let documents = required(request.documents.take(), "documents")?;
    if query.as_str().trim().is_empty() || documents.is_empty() {
        return Err(ErrorResponse::bad_request(
            Shape::Flat,
            "query and documents must not be empty",
        ));
    }
    let pair = |document: &Text<'_>| {
        let text = format!("{}\n{}", query.as_str(), document.as_str());
        Prompt::from_text(&text, worker.options.page_size)
    };
    let prompts: Vec<Prompt> = documents.iter().map(pair).collect();
    let return_documents = request.return_documents != Some(false);
    let kind = Kind::Rerank {
        top_n: request.top_n.unwrap_or(documents.len()),
        documents: return_documents.then(|| {
            documents
                .into_iter()
                .map(|text| text.0.into_owned())
                .collect()
        }),
    };
    Ok(parsed_request(worker, request, prompts, kind))
}

/// Parses a request for `/v1/score`.
pub(crate) fn parse_score(worker: &Worker, body: &[u8]) -> Result<ParsedRequest, ErrorResponse> {
    let mut request = parse(body)?;
    let query = required(request.query.take(), "query")?;
    let items = required(request.items.take(), "items")?;
    let labels = request
        .label_token_ids
        .take()
        .map_or(1, |labels| labels.len());
    let pair = |item: String| {
        Prompt::from_text(
            &format!("{}{item}", query.as_str()),
            worker.options.page_size,
        )
    };
    let prompts = items.texts().into_iter().map(pair).collect();
    Ok(parsed_request(
        worker,
        request,
        prompts,
        Kind::Score { labels },
    ))
}

/// A unit vector, determined by the prompt.
fn embedding(seed: u64, dimensions: u32) -> Vec<f32> {
    let raw = (0..dimensions).map(|at| vocabulary::score(mix(seed, u64::from(at))) as f32 - 0.5);
    let raw: Vec<f32> = raw.collect();
    let norm = raw
        .iter()
        .map(|x| x * x)
        .sum::<f32>()
        .sqrt()
        .max(f32::MIN_POSITIVE);
    raw.into_iter().map(|x| x / norm).collect()
}

fn embedding_entry(sequence: &Sequence, format: Format, dimensions: u32) -> Value {
    let vector = embedding(sequence.seed, dimensions);
    let value = match format {
        Format::Float => json!(vector),
        Format::Base64 => {
            let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
            base64::encode(&bytes).into()
        }
    };
    json!({"object": "embedding", "index": sequence.index, "embedding": value})
}

/// SGLang's own form of an embedding.
fn native_entry(sequence: &Sequence) -> Value {
    let meta = json!({
        "id": *sequence.rid, "finish_reason": sequence.finish_object(),
        "prompt_tokens": sequence.prompt_tokens, "cached_tokens": sequence.cached_tokens(),
    });
    json!({"embedding": embedding(sequence.seed, DIMENSIONS), "meta_info": meta})
}

fn class_entry(sequence: &Sequence) -> Value {
    let positive = vocabulary::score(sequence.seed);
    let label = if positive < 0.5 { "LABEL_0" } else { "LABEL_1" };
    json!({
        "index": sequence.index, "label": label, "probs": [1.0 - positive, positive], "num_classes": 2,
    })
}

fn ranking(sequences: &[Sequence], documents: Option<&Vec<String>>, top_n: usize) -> Vec<Value> {
    let mut scored: Vec<(f64, &Sequence)> = sequences
        .iter()
        .map(|sequence| (vocabulary::score(sequence.seed), sequence))
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    let entry = |(score, sequence): (f64, &Sequence)| {
        let meta = json!({
            "id": *sequence.rid, "prompt_tokens": sequence.prompt_tokens,
            "cached_tokens": sequence.cached_tokens(), "finish_reason": null,
        });
        let mut entry = json!({"score": score, "index": sequence.index, "meta_info": meta});
        if let Some(document) = documents.and_then(|documents| documents.get(sequence.index)) {
            entry["document"] = document.as_str().into();
        }
        entry
    };
    scored.into_iter().take(top_n).map(entry).collect()
}

fn label_scores(sequence: &Sequence, labels: usize) -> Vec<f64> {
    let raw: Vec<f64> = (0..labels as u64)
        .map(|at| vocabulary::score(mix(sequence.seed, at)) + 1e-3)
        .collect();
    let sum: f64 = raw.iter().sum();
    raw.into_iter().map(|score| score / sum).collect()
}

impl Dialect for Encode {
    fn document(&mut self, sequences: &[Sequence]) -> Bytes {
        let (model, usage) = (&self.model, usage_object(sequences));
        match &self.kind {
            Kind::Embeddings { format, dimensions } => {
                let entry = |sequence| embedding_entry(sequence, *format, *dimensions);
                let entries: Vec<Value> = sequences.iter().map(entry).collect();
                document(&json!({
                    "object": "list", "data": entries, "model": model, "usage": usage,
                }))
            }
            Kind::Classify => {
                let entries: Vec<Value> = sequences.iter().map(class_entry).collect();
                let id = sequences.first().map_or("", |sequence| &sequence.rid);
                document(&json!({
                    "id": format!("classify-{id}"), "object": "list", "created": unix_seconds(),
                    "model": model, "data": entries, "usage": usage,
                }))
            }
            Kind::Native { is_list: true } => {
                document(&sequences.iter().map(native_entry).collect::<Vec<_>>())
            }
            Kind::Native { is_list: false } => document(&sequences.first().map(native_entry)),
            Kind::Rerank { documents, top_n } => {
                document(&ranking(sequences, documents.as_ref(), *top_n))
            }
            Kind::Score { labels } => {
                let scores: Vec<Vec<f64>> = sequences
                    .iter()
                    .map(|sequence| label_scores(sequence, *labels))
                    .collect();
                document(&json!({
                    "object": "scoring", "scores": scores, "model": model, "usage": usage,
                }))
            }
        }
    }
}
