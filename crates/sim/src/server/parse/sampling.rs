//! How much is generated, where it goes, and what it is called.

use serde::Deserialize;
use serde::de::IgnoredAny;

/// A value, or a list with one for each prompt.
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

/// The part of sampling that a simulator honours.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Sampling {
    #[serde(rename = "max_new_tokens", default)]
    pub(crate) most: Option<u32>,
    #[serde(default)]
    pub(crate) n: Option<u32>,
    #[serde(default)]
    pub(crate) ignore_eos: Option<bool>,
    #[serde(default)]
    pub(crate) stop: Option<OneOrMany<String>>,
}

/// Fields about placement that all generating endpoints share.
#[derive(Clone, Debug, Default)]
pub(crate) struct Routing {
    pub(crate) rids: Option<OneOrMany<String>>,
    pub(crate) rank: Option<u32>,
    pub(crate) has_room: bool,
}

impl Routing {
    pub(crate) fn new(
        rids: Option<OneOrMany<String>>,
        ranks: [Option<u32>; 2],
        room: Option<IgnoredAny>,
    ) -> Self {
        let [newer, older] = ranks;
        Self {
            rids,
            rank: newer.or(older),
            has_room: room.is_some(),
        }
    }
}
