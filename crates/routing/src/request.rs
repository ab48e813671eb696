//! A request as policies see it.

use std::fmt;
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use crate::Prompt;

/// Identifies the client of a request.
pub trait ClientKey: fmt::Debug + Sync {
    /// Bytes that are the same for all requests of a client; `None` for an anonymous client.
    fn bytes(&self) -> Option<&[u8]>;
}

/// The parts of one request that matter for routing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request<'a> {
    /// The `model` field of the body.
    pub model: Option<&'a str>,
    /// The `LoRA` adapter that the body names beside its model.
    pub adapter: Option<&'a str>,
    /// The prompt; empty for endpoints without one.
    pub prompt: Prompt<'a>,
    /// The `X-SMG-Routing-Key` header. Requests with equal keys belong together.
    pub routing_key: Option<&'a str>,
    /// Output tokens that are expected, as far as anything is known.
    pub output_tokens: u64,
    /// The client, for policies that keep its requests together without a routing key.
    pub client_key: Option<&'a dyn ClientKey>,
    /// Time since some fixed moment, by which state of policies ages.
    pub now: Duration,
    /// 64 random bits from the caller, so that decisions can be replayed.
    pub seed: u64,
}

impl Request<'_> {
    /// The routing key, unless it is empty.
    pub(crate) fn key(&self) -> Option<&str> {
        self.routing_key.filter(|key| !key.is_empty())
    }

    /// A hash of that by which replies are expected to be alike: the routing key, or else the client.
    pub fn output_key(&self) -> Option<u64> {
        let client = || self.client_key.and_then(ClientKey::bytes);
        let key = self.key().map(str::as_bytes).or_else(client);
        key.map(xxh3_64)
    }

    /// The random numbers that follow from `seed`.
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
    /// The random numbers that follow from `seed`: 64 random bits.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// A number in `0..below`; 0 when `below` is 0.
    pub fn index(&mut self, below: usize) -> usize {
        let wide = u128::from(self.next()) * below as u128;
        (wide >> 64) as usize
    }

    /// A number from 0 up to 1, which is excluded.
    pub fn fraction(&mut self) -> f64 {
        // The 53 bits of a double's mantissa.
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
    fn random_indices_stay_in_range_and_replay() {
        let request = Request {
            seed: 7,
            ..Request::default()
        };
        let indices = |mut rng: SeededRng| (0..100).map(|_| rng.index(5)).collect::<Vec<_>>();
        let first = indices(request.rng());
        assert_eq!(first, indices(request.rng()));
        assert!(first.iter().all(|&i| i < 5));
        assert!((0..5).all(|i| first.contains(&i)));
    }

    #[test]
    fn empty_range_gives_index_zero() {
        assert_eq!(Request::default().rng().index(0), 0);
    }
}
