//! What a client asks, drawn from a seed, and the texts in what it gets.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};

use crate::support::Reply;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Text,
    Texts,
    Chat,
    Completion,
    Completions,
}

const FORMS: [Form; 5] = [
    Form::Text,
    Form::Texts,
    Form::Chat,
    Form::Completion,
    Form::Completions,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    Stays,
    LeavesAfter(Duration),
    LeavesAtTheFirstByte,
}

/// One request of a client.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) form: Form,
    pub(super) stream: bool,
    pub(super) patience: Patience,
    body: Value,
}

/// A text of its own for each prompt, behind one of a few beginnings.
fn prompt(rng: &mut Rng, name: &str) -> String {
    let shared = format!("conversation {} ", rng.usize(..8)).repeat(rng.usize(1..20));
    format!("{shared}{name} {}", "word ".repeat(rng.usize(..20)))
}

impl Ask {
    pub(super) fn drawn(seed: u64, id: usize) -> Self {
        let mut rng = Rng::with_seed(seed ^ (id as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let form = FORMS[rng.usize(..FORMS.len())];
        let stream = rng.bool();
        let patience = match rng.u8(..20) {
            0 => Patience::LeavesAfter(Duration::from_millis(rng.u64(..40))),
            1 => Patience::LeavesAtTheFirstByte,
            _ => Patience::Stays,
        };
        let tokens = rng.usize(2..9);
        let one = prompt(&mut rng, &format!("request {id}"));
        let list: Vec<String> = (0..rng.usize(1..4))
            .map(|at| prompt(&mut rng, &format!("request {id} part {at}")))
            .collect();
        let sampling = json!({"max_new_tokens": tokens});
        let mut body = match form {
            Form::Text => json!({"text": one, "sampling_params": sampling}),
            Form::Texts => json!({"text": list, "sampling_params": sampling}),
            Form::Chat => json!({"messages": [{"role": "user", "content": one}]}),
            Form::Completion => json!({"prompt": one}),
            Form::Completions => json!({"prompt": list}),
        };
        if form.is_openai() {
            body["model"] = "sim-model".into();
            body["max_tokens"] = tokens.into();
        }
        if rng.u8(..4) == 0 {
            body["rid"] = format!("own-{id}").into();
        }
        body["stream"] = stream.into();
        Self {
            form,
            stream,
            patience,
            body,
        }
    }

    pub(super) fn path(&self) -> &'static str {
        match self.form {
            Form::Text | Form::Texts => "/generate",
            Form::Chat => "/v1/chat/completions",
            Form::Completion | Form::Completions => "/v1/completions",
        }
    }

    pub(super) fn body(&self) -> String {
        self.body.to_string()
    }

    /// The same request without a stream.
    pub(super) fn whole(&self) -> String {
        let mut body = self.body.clone();
        body["stream"] = false.into();
        body.to_string()
    }

    /// The texts of a reply that has come to its end, by index.
    pub(super) fn texts(&self, reply: &Reply) -> BTreeMap<u64, String> {
        let mut texts = BTreeMap::new();
        if reply.header("content-type").starts_with("application/json") {
            self.form.add(&reply.json(), &mut texts);
            return texts;
        }
        let text = reply.text();
        let events = text
            .split("\n\n")
            .filter_map(|it| it.strip_prefix("data: "));
        for event in events.filter(|event| *event != "[DONE]") {
            self.form
                .add(&serde_json::from_str(event).unwrap(), &mut texts);
        }
        texts
    }
}

impl Form {
    fn is_openai(self) -> bool {
        !matches!(self, Self::Text | Self::Texts)
    }

    /// Adds what a document or an event has.
    fn add(self, value: &Value, texts: &mut BTreeMap<u64, String>) {
        if self.is_openai() {
            for choice in value["choices"].as_array().into_iter().flatten() {
                let parts = [
                    &choice["text"],
                    &choice["message"]["content"],
                    &choice["delta"]["content"],
                ];
                let text = texts.entry(choice["index"].as_u64().unwrap()).or_default();
                text.extend(parts.iter().filter_map(|part| part.as_str()));
            }
            return;
        }
        let one = std::slice::from_ref(value);
        let list = value.as_array().map_or(one, Vec::as_slice);
        for (at, object) in list.iter().enumerate() {
            // Each event has the whole text so far.
            let index = object["index"].as_u64().unwrap_or(at as u64);
            if let Some(text) = object["text"].as_str() {
                texts.insert(index, text.to_owned());
            }
        }
    }
}
