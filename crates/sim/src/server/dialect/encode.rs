//! Endpoints that read prompts and generate nothing: embeddings, classify, rerank, score.

use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::base64;
use super::dialect::{Dialect, Understood};
use super::events::document;
use super::openai::usage_object;
use crate::engine::{Prompt, mix};
use crate::server::http::error_response::{Refusal, Shape};
use crate::server::parse::{Prompts, Routing, Sampling, Text};
use crate::server::runtime::sequence::{Ask, Sequence};
use crate::server::runtime::vocabulary;
use crate::server::runtime::worker::{Worker, unix_seconds};

/// Dimensions of an embedding unless the request says otherwise.
const DIMENSIONS: u32 = 8;
const MOST_DIMENSIONS: u32 = 16_384;

#[derive(Deserialize)]
struct EncodeRequest<'a> {
    #[serde(borrow, default)]
    input: Option<Prompts<'a>>, // embeddings, classify
    #[serde(borrow, default)]
    query: Option<Text<'a>>, // rerank, score
    #[serde(borrow, default)]
    documents: Option<Vec<Text<'a>>>, // rerank
    #[serde(borrow, default)]
    items: Option<Prompts<'a>>, // score
    #[serde(default)]
    label_token_ids: Option<Vec<u32>>, // score
    #[serde(default)]
    return_documents: Option<bool>,
    #[serde(default)]
    top_n: Option<usize>,
    #[serde(borrow, default)]
    encoding_format: Option<Text<'a>>,
    #[serde(default)]
    dimensions: Option<u32>,
    #[serde(borrow, default)]
    model: Option<Text<'a>>,
    #[serde(default)]
    bootstrap_room: Option<IgnoredAny>,
    #[serde(default)]
    data_parallel_rank: Option<u32>,
    #[serde(default)]
    routed_dp_rank: Option<u32>,
}

/// Which endpoint, with what it needs to remember.
#[derive(Clone, Debug)]
enum Kind {
    Embeddings {
        base64: bool,
        dimensions: u32,
    },
    Classify,
    Rerank {
        documents: Option<Vec<String>>,
        top_n: usize,
    },
    Score {
        labels: usize,
    },
}

struct Encode {
    model: String,
    kind: Kind,
}

fn required<T>(field: Option<T>, name: &str) -> Result<T, Refusal> {
    field.ok_or_else(|| Refusal::bad(Shape::Flat, format!("{name}: field required")))
}

fn parsed(body: &[u8]) -> Result<EncodeRequest<'_>, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::bad(Shape::Flat, error))
}

fn understood(
    worker: &Worker,
    request: EncodeRequest<'_>,
    prompts: Vec<Prompt>,
    kind: Kind,
) -> Understood {
    let ranks = [request.routed_dp_rank, request.data_parallel_rank];
    let ask = Ask {
        prompts,
        sampling: vec![Sampling {
            most: Some(0),
            ..Sampling::default()
        }],
        routing: Routing::new(None, ranks, request.bootstrap_room),
        stream: false,
    };
    let model = request.model.map(|model| model.0.into_owned());
    let model = model.unwrap_or_else(|| worker.options.model.clone());
    (ask, Box::new(Encode { model, kind }))
}

/// Reads a request for `/v1/embeddings`.
pub(crate) fn read_embeddings(worker: &Worker, body: &[u8]) -> Result<Understood, Refusal> {
    let mut request = parsed(body)?;
    let prompts = required(request.input.take(), "input")?.to_engine(worker.options.page_size);
    let dimensions = request.dimensions.unwrap_or(DIMENSIONS);
    if !(1..=MOST_DIMENSIONS).contains(&dimensions) {
        return Err(Refusal::bad(
            Shape::Flat,
            format!("dimensions: 1 to {MOST_DIMENSIONS}"),
        ));
    }
    let base64 = request
        .encoding_format
        .as_ref()
        .is_some_and(|format| format.as_str() == "base64");
    Ok(understood(
        worker,
        request,
        prompts,
        Kind::Embeddings { base64, dimensions },
    ))
}

/// Reads a request for `/v1/classify`.
pub(crate) fn read_classify(worker: &Worker, body: &[u8]) -> Result<Understood, Refusal> {
    let mut request = parsed(body)?;
    let prompts = required(request.input.take(), "input")?.to_engine(worker.options.page_size);
    Ok(understood(worker, request, prompts, Kind::Classify))
}

/// Reads a request for `/v1/rerank`.
pub(crate) fn read_rerank(worker: &Worker, body: &[u8]) -> Result<Understood, Refusal> {
    let mut request = parsed(body)?;
    let query = required(request.query.take(), "query")?;
    let documents = required(request.documents.take(), "documents")?;
    if query.as_str().trim().is_empty() || documents.is_empty() {
        return Err(Refusal::bad(
            Shape::Flat,
            "query and documents must not be empty",
        ));
    }
    let pair = |document: &Text<'_>| {
        let text = format!("{}\n{}", query.as_str(), document.as_str());
        Prompt::from_text(&text, worker.options.page_size)
    };
    let prompts: Vec<Prompt> = documents.iter().map(pair).collect();
    let kept = request.return_documents != Some(false);
    let kind = Kind::Rerank {
        top_n: request.top_n.unwrap_or(documents.len()),
        documents: kept.then(|| {
            documents
                .into_iter()
                .map(|text| text.0.into_owned())
                .collect()
        }),
    };
    Ok(understood(worker, request, prompts, kind))
}

/// Reads a request for `/v1/score`.
pub(crate) fn read_score(worker: &Worker, body: &[u8]) -> Result<Understood, Refusal> {
    let mut request = parsed(body)?;
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
    Ok(understood(worker, request, prompts, Kind::Score { labels }))
}

/// A unit vector that the prompt decides.
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

fn embedding_entry(sequence: &Sequence, base64: bool, dimensions: u32) -> Value {
    let vector = embedding(sequence.seed, dimensions);
    let value = if base64 {
        let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
        base64::encode(&bytes).into()
    } else {
        json!(vector)
    };
    json!({"object": "embedding", "index": sequence.index, "embedding": value})
}

fn class_entry(sequence: &Sequence) -> Value {
    let yes = vocabulary::score(sequence.seed);
    let label = if yes < 0.5 { "LABEL_0" } else { "LABEL_1" };
    json!({
        "index": sequence.index, "label": label, "probs": [1.0 - yes, yes], "num_classes": 2,
    })
}

fn ranking(reply: &[Sequence], documents: Option<&Vec<String>>, top_n: usize) -> Vec<Value> {
    let mut scored: Vec<(f64, &Sequence)> = reply
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
    fn document(&mut self, reply: &[Sequence]) -> Bytes {
        let (model, usage) = (&self.model, usage_object(reply));
        match &self.kind {
            Kind::Embeddings { base64, dimensions } => {
                let entry = |sequence| embedding_entry(sequence, *base64, *dimensions);
                let entries: Vec<Value> = reply.iter().map(entry).collect();
                document(&json!({
                    "object": "list", "data": entries, "model": model, "usage": usage,
                }))
            }
            Kind::Classify => {
                let entries: Vec<Value> = reply.iter().map(class_entry).collect();
                let id = reply.first().map_or("", |sequence| &sequence.rid);
                document(&json!({
                    "id": format!("classify-{id}"), "object": "list", "created": unix_seconds(),
                    "model": model, "data": entries, "usage": usage,
                }))
            }
            Kind::Rerank { documents, top_n } => {
                document(&ranking(reply, documents.as_ref(), *top_n))
            }
            Kind::Score { labels } => {
                let scores: Vec<Vec<f64>> = reply
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
