//! What a policy may know about a request.

use std::fmt;
use std::time::Duration;

use crate::Prompt;

/// Who sends a request, as far as that can be told.
pub trait ClientKey: fmt::Debug + Sync {
    /// What tells this client from others, when anything does.
    fn bytes(&self) -> Option<&[u8]>;
}

/// One request, as far as routing is concerned.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request<'a> {
    /// The `model` field of the body, when there is one.
    pub model: Option<&'a str>,
    /// The prompt; empty for endpoints without one.
    pub prompt: Prompt<'a>,
    /// `X-SMG-Routing-Key`, when the client sent one: requests with equal keys belong together.
    pub routing_key: Option<&'a str>,
    /// The client, for policies that keep its requests together without a key, too.
    pub client_key: Option<&'a dyn ClientKey>,
    /// Time since some fixed moment, for what ages.
    pub now: Duration,
    /// The caller's share of chance: 64 random bits, so that decisions replay.
    pub seed: u64,
}

impl Request<'_> {
    /// The routing key, when it says something.
    pub(crate) fn key(&self) -> Option<&str> {
        self.routing_key.filter(|key| !key.is_empty())
    }

    /// A stream of random numbers that follows from `chance`.
    pub fn rng(&self) -> SeededRng {
        SeededRng::new(self.seed)
    }
}

/// Random numbers for one decision (`SplitMix64`; Steele, Lea & Flood, OOPSLA 2014).
#[derive(Clone, Debug)]
pub struct SeededRng {
    state: u64,
}

impl SeededRng {
    /// The numbers that follow from `chance`: 64 random bits.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// A number in `0..below`; 0 when `below` is 0.
    pub fn index(&mut self, below: usize) -> usize {
        let wide = u128::from(self.next()) * below as u128;
        (wide >> 64) as usize
    }

    /// A number in `0..1`.
    pub fn fraction(&mut self) -> f64 {
        // The 53 bits a double holds.
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_stay_in_range_and_replay() {
        let request = Request {
            seed: 7,
            ..Request::default()
        };
        let draws = |mut rng: SeededRng| (0..100).map(|_| rng.index(5)).collect::<Vec<_>>();
        let first = draws(request.rng());
        assert_eq!(first, draws(request.rng()));
        assert!(first.iter().all(|&i| i < 5));
        assert!((0..5).all(|i| first.contains(&i)));
    }

    #[test]
    fn nothing_to_draw_from_is_index_zero() {
        assert_eq!(Request::default().rng().index(0), 0);
    }
}
