//! The models behind the gateway: the workers' own cards, merged.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::{Extension, Json};
use serde_json::{Map, Value, json};

use super::routes::Routes;
use super::state::Caller;
use crate::auth::Access;
use crate::balancer::Balancer;
use crate::error::Error;
use crate::fleet::Worker;

/// What is listed of a model or an adapter, under its id.
type Cards = BTreeMap<String, Map<String, Value>>;

pub(super) fn routes() -> Routes {
    Routes::default().get("/v1/models", Access::Info, list).get(
        "/v1/models/{*model}",
        Access::Info,
        show,
    )
}

/// The models and adapters of the ready workers, in the shape of `OpenAI`'s list.
async fn list(
    State(balancer): State<Arc<Balancer>>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Value>, Error> {
    let cards: Vec<_> = cards(&balancer, &caller)?.into_values().collect();
    Ok(Json(json!({"object": "list", "data": cards})))
}

/// One of them; a slash in its name may be written as `%2F`.
async fn show(
    State(balancer): State<Arc<Balancer>>,
    Extension(caller): Extension<Caller>,
    Path(model): Path<String>,
) -> Result<Json<Value>, Error> {
    let mut cards = cards(&balancer, &caller)?;
    let card = cards.remove(&model);
    let card = card.ok_or_else(|| Error::ModelNotFound {
        served: cards.into_keys().collect::<Vec<_>>().join(", "),
        model,
    })?;
    Ok(Json(card.into()))
}

/// All cards; for a client whose key has not all models, those that it may use.
fn cards(balancer: &Balancer, caller: &Caller) -> Result<Cards, Error> {
    let workers = balancer.fleet.servers();
    let mut cards = Cards::new();
    for worker in workers.iter().filter(|worker| worker.is_ready()) {
        add_cards_of(worker, &mut cards);
    }
    if cards.is_empty() {
        return Err(Error::NoWorkers);
    }
    if let Some(allowed) = caller.principal.models() {
        cards.retain(|id, card| {
            let parent = card.get("parent").and_then(Value::as_str);
            balancer.allows(allowed, id, parent)
        });
    }
    Ok(cards)
}

fn add_cards_of(worker: &Worker, cards: &mut Cards) {
    let info = worker.endpoint.model_info.load();
    let of_worker = &info.report.cards;
    let mut bases = of_worker.iter().filter(|card| !card.is_adapter());
    let own = bases.clone().find(|card| card.id == info.model);
    // The one that it was registered under another name for.
    let base = own.or_else(|| bases.next());
    let mut fields = Map::from_iter([
        ("id".to_owned(), json!(info.model)),
        ("object".to_owned(), json!("model")),
        ("created".to_owned(), json!(0)),
        ("owned_by".to_owned(), json!("local")),
    ]);
    for (name, value) in base.into_iter().flat_map(|card| &card.fields) {
        if name != "id" {
            fields.insert(name.clone(), value.clone());
        }
    }
    merge(cards, &info.model, fields);
    for card in of_worker.iter().filter(|card| card.is_adapter()) {
        let mut fields = card.fields.clone();
        let renamed = base.is_some_and(|base| card.parent.as_ref() == Some(&base.id));
        if renamed {
            fields.insert("parent".to_owned(), json!(info.model));
        }
        merge(cards, &card.id, fields);
    }
}

/// Of several workers' cards of one model the first counts, but for the length that all take.
fn merge(cards: &mut Cards, id: &str, fields: Map<String, Value>) {
    const LENGTH: &str = "max_model_len";
    let Some(card) = cards.get_mut(id) else {
        cards.insert(id.to_owned(), fields);
        return;
    };
    for (name, value) in fields {
        let known = card.entry(name.clone()).or_insert(Value::Null);
        let shorter = name == LENGTH && value.as_u64() < known.as_u64() && value.is_u64();
        if known.is_null() || shorter {
            *known = value;
        }
    }
}
