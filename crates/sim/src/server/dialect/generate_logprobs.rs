//! Log probabilities in the `meta_info` of `/generate`.

use serde_json::{Value, json};

use crate::engine::mix;
use crate::server::runtime::sequence::Sequence;
use crate::server::runtime::vocabulary;

/// The log probabilities that a request asks for.
#[derive(Debug, Default)]
pub(super) struct Logprobs {
    /// Token ids of each prompt.
    pub(super) prompts: Vec<Vec<u32>>,
    /// The first prompt token to report (`logprob_start_len`); negative = the last.
    pub(super) from: i64,
    /// Likely tokens to report at each place.
    pub(super) top: u32,
    /// Tokens to report at each place, for all prompts or each.
    pub(super) token_ids: Vec<Vec<u32>>,
}

/// A place in a text.
#[derive(Clone, Copy)]
struct Place {
    seed: u64,
    at: u32,
    id: u32,
}

impl Place {
    fn entry(self, id: u32) -> Value {
        let seed = mix(self.seed, u64::from(id));
        json!([vocabulary::logprob(seed, self.at), id, null])
    }

    /// The token itself, then others.
    fn top(self, count: u32) -> Value {
        let other = |number| vocabulary::token_id(mix(self.seed, u64::from(number)), self.at);
        let id = |number| if number == 0 { self.id } else { other(number) };
        (0..count).map(|number| self.entry(id(number))).collect()
    }

    fn of(self, ids: &[u32]) -> Value {
        ids.iter().map(|id| self.entry(*id)).collect()
    }
}

impl Logprobs {
    /// The prompt token from which on a cache has no log probabilities; none = the last.
    pub(super) fn fresh_from(&self) -> Option<u32> {
        u32::try_from(self.from).ok()
    }

    /// Adds those of a sequence's prompt and of its first `tokens` tokens.
    pub(super) fn add(&self, sequence: &Sequence, tokens: u32, meta: &mut Value) {
        let ids = self.token_ids.get(sequence.prompt_index);
        let ids = ids
            .or(self.token_ids.first())
            .map_or(&[][..], Vec::as_slice);
        let input = self.input_places(sequence);
        meta["input_token_logprobs"] = input
            .iter()
            .map(|(place, known)| json!([known.then(|| logprob(*place)), place.id, null]))
            .collect();
        let output = || {
            (0..tokens).map(|at| Place {
                seed: sequence.seed,
                at,
                id: vocabulary::token_id(sequence.seed, at),
            })
        };
        let own = |place: Place| {
            let value = vocabulary::logprob(place.seed, place.at);
            json!([value, place.id, null])
        };
        meta["output_token_logprobs"] = output().map(own).collect();
        let each = |of: &dyn Fn(Place) -> Value| -> Value {
            let input = input.iter();
            input
                .map(|(place, known)| known.then(|| of(*place)))
                .collect()
        };
        if self.top > 0 {
            let top = |place: Place| place.top(self.top);
            meta["input_top_logprobs"] = each(&top);
            meta["output_top_logprobs"] = output().map(top).collect();
        }
        if !ids.is_empty() {
            let chosen = |place: Place| place.of(ids);
            meta["input_token_ids_logprobs"] = each(&chosen);
            // A decode worker does not compute the first token, so it knows no other's probability.
            let known = |place: &Place| place.at > 0 || !sequence.is_computed_elsewhere();
            meta["output_token_ids_logprobs"] = output()
                .map(|place| known(&place).then(|| chosen(place)))
                .collect();
        }
    }

    /// The prompt's places to report, and whether their probability is known: not that of the
    /// first. A prompt computed by another worker has none.
    fn input_places(&self, sequence: &Sequence) -> Vec<(Place, bool)> {
        if sequence.is_computed_elsewhere() {
            return Vec::new();
        }
        let prompt = self.prompts.get(sequence.prompt_index);
        let prompt = prompt.map_or(&[][..], Vec::as_slice);
        let last = prompt.len().saturating_sub(1);
        let first = usize::try_from(self.from).map_or(last, |from| from.min(last));
        let place = |(at, id): (usize, &u32)| {
            let place = Place {
                seed: sequence.seed,
                at: at as u32,
                id: *id,
            };
            (place, at > first)
        };
        prompt.iter().enumerate().skip(first).map(place).collect()
    }
}

/// The log probability of a prompt's token.
fn logprob(place: Place) -> f64 {
    vocabulary::logprob(mix(place.seed, u64::from(place.id)), place.at)
}
