//! A model as a worker's `GET /v1/models` lists it: a base model, or a `LoRA` adapter of one.

use serde_json::{Map, Value};

/// Fields of a card that clients may see (`OpenAI`'s, and SGLang's and vLLM's additions).
const SHOWN: [&str; 7] = [
    "id",
    "object",
    "created",
    "owned_by",
    "root",
    "parent",
    "max_model_len",
];
/// Most cards that are read of one worker: adapters are many, but not without bound.
const MAX_CARDS: usize = 4096;
/// A name longer than this names no model.
const MAX_NAME: usize = 512;

/// One entry of a worker's list.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ModelCard {
    pub(crate) id: String,
    /// The model that an adapter belongs to; `None` for a base model.
    pub(crate) parent: Option<String>,
    /// What clients may see of it.
    pub(crate) fields: Map<String, Value>,
}

impl ModelCard {
    /// The cards in the answer to `GET /v1/models`; what is none is left out.
    pub(super) fn list(answer: &Map<String, Value>) -> Vec<Self> {
        let data = answer.get("data").and_then(Value::as_array);
        let cards = data.into_iter().flatten().filter_map(Self::read);
        cards.take(MAX_CARDS).collect()
    }

    fn read(card: &Value) -> Option<Self> {
        let card = card.as_object()?;
        let name = |field| {
            let name = card.get(field)?.as_str()?;
            (!name.is_empty() && name.len() <= MAX_NAME).then(|| name.to_owned())
        };
        let shown = |field: &&str| {
            let value = card.get(*field)?;
            let simple = !value.is_object() && !value.is_array();
            simple.then(|| ((*field).to_owned(), value.clone()))
        };
        Some(Self {
            id: name("id")?,
            parent: name("parent"),
            fields: SHOWN.iter().filter_map(shown).collect(),
        })
    }

    /// Whether it is an adapter.
    pub(crate) fn is_adapter(&self) -> bool {
        self.parent.is_some()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn list(answer: &Value) -> Vec<ModelCard> {
        ModelCard::list(answer.as_object().unwrap())
    }

    #[test]
    fn cards_keep_what_clients_may_see() {
        let cards = list(&json!({"data": [
            {"id": "m", "object": "model", "max_model_len": 4096, "root": "/m", "parent": null, "api_key": "k",
             "owned_by": {"api_key": "k"}},
            {"id": "a", "parent": "m"},
        ]}));
        let [base, adapter] = &cards[..] else {
            unreachable!("{cards:?}")
        };
        assert_eq!(
            Value::from(base.fields.clone()),
            json!({"id": "m", "object": "model", "max_model_len": 4096, "root": "/m", "parent": null})
        );
        assert!(!base.is_adapter() && adapter.is_adapter());
    }

    #[test]
    fn what_is_no_card_is_left_out() {
        let long = "x".repeat(MAX_NAME + 1);
        let answers = [
            json!({}),
            json!({"data": 7}),
            json!({"data": [1, "m", {}, {"id": 7}, {"id": ""}, {"id": long}]}),
        ];
        for answer in answers {
            assert_eq!(list(&answer), [], "{answer}");
        }
    }
}
