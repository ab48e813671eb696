//! Sampling parameters, ranks and request ids.

use serde::Deserialize;

/// A value, or a list with one value per prompt.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    pub(crate) fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// The sampling parameters that the simulator honours.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Sampling {
    pub(crate) max_new_tokens: Option<u32>,
    pub(crate) n: Option<u32>,
    pub(crate) ignore_eos: Option<bool>,
    pub(crate) stop: Option<OneOrMany<String>>,
}

/// Request ids and routing fields that all inference endpoints share.
#[derive(Clone, Debug, Default)]
pub(crate) struct Routing {
    pub(crate) rids: Option<OneOrMany<String>>,
    pub(crate) rank: Option<u32>,
}

impl Routing {
    pub(crate) fn new(rids: Option<OneOrMany<String>>, rank: Option<u32>) -> Self {
        Self { rids, rank }
    }
}
