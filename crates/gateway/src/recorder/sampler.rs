//! Which sessions are recorded, where not all are.
//!
//! Requests that share a prefix are recorded together or not at all: a trace of every n-th request
//! would have hardly a prefix twice. A session is known by its routing key, or by the first block
//! of its prompt that is not common. The blocks of a system prompt that many sessions begin with
//! are common: the first block alone would let all of them in, or none.

use std::collections::HashMap;
use std::io;

use super::record::Record;
use super::salt::{Kind, Salt};

/// A block is common if more than one of so many requests have it.
const COMMON: u32 = 64;
/// Requests that must have it, too: a session may be ahead of all others for a while.
const FEWEST: u32 = 32;
/// Blocks whose requests are counted; no further one is, until counts are halved.
const MOST_COUNTS: usize = 16 * 1024;
/// Requests after which counts are halved, so that they follow the traffic.
const WINDOW: u32 = 16 * 1024;

/// Decides by session.
#[derive(Debug)]
pub(super) struct Sampler {
    share: f64,
    salt: Salt,
    /// Requests by block, those of the last requests.
    counts: HashMap<u64, u32>,
    requests: u32,
}

impl Sampler {
    /// Lets this share of sessions pass.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub(super) fn new(share: f64) -> io::Result<Self> {
        Ok(Self {
            share,
            salt: Salt::random()?,
            counts: HashMap::new(),
            requests: 0,
        })
    }

    /// Whether a request is recorded.
    pub(super) fn takes(&mut self, record: &Record) -> bool {
        if self.share >= 1.0 {
            return true;
        }
        let prompt = record.prompt.as_deref();
        let session = prompt.and_then(|prompt| {
            let first_rare = || self.first_rare(&prompt.chain);
            prompt.session.or_else(first_rare)
        });
        // Without a prompt it shares nothing with any other.
        let session = session.unwrap_or_else(|| fastrand::u64(..));
        self.salt.share(Kind::Sample, session) < self.share
    }

    /// The first block that is not common, or else the last.
    fn first_rare(&mut self, chain: &[u64]) -> Option<u64> {
        self.requests += 1;
        if self.requests >= WINDOW {
            self.requests /= 2;
            self.counts.retain(|_, count| {
                *count /= 2;
                *count > 0
            });
        }
        let Self {
            counts, requests, ..
        } = self;
        let mut is_rare = |block: &&u64| {
            if counts.len() >= MOST_COUNTS && !counts.contains_key(*block) {
                return true;
            }
            let count = counts.entry(**block).or_default();
            *count += 1;
            *count < FEWEST || *count < *requests / COMMON
        };
        let rare = chain.iter().find(&mut is_rare);
        rare.or(chain.last()).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::RecordedPrompt;
    use super::super::tests::record;
    use super::*;

    fn with_chain(chain: &[u64], session: Option<u64>) -> Record {
        Record {
            prompt: Some(Box::new(RecordedPrompt {
                bytes: 1,
                tokens: 1,
                max_tokens: None,
                session,
                chain: chain.to_vec(),
            })),
            ..record()
        }
    }

    /// Sessions of which all turns behind the first few requests were taken, some, and none.
    fn sessions(sampler: &mut Sampler, prompt: impl Fn(u64, u64) -> Record) -> [usize; 3] {
        let turn = |sampler: &mut Sampler, turn: u64| -> Vec<bool> {
            let of_turn = |session| prompt(session, turn);
            (0..2000).map(|it| sampler.takes(&of_turn(it))).collect()
        };
        // The system prompt is found to be common.
        turn(sampler, 0);
        let turns = [1, 2, 3].map(|number| turn(sampler, number));
        let mut found = [0; 3];
        for session in 0..2000 {
            let taken = turns.iter().filter(|turn| turn[session]).count();
            found[match taken {
                3 => 0,
                0 => 2,
                _ => 1,
            }] += 1;
        }
        found
    }

    #[test]
    fn turns_of_a_session_are_taken_together_though_all_begin_alike() {
        let mut sampler = Sampler::new(0.25).unwrap();
        let [all, some, none] = sessions(&mut sampler, |session, turn| {
            let own = (0..=turn).map(|at| 1000 + session * 10 + at);
            let chain: Vec<_> = [1, 2, 3].into_iter().chain(own).collect();
            with_chain(&chain, None)
        });
        assert_eq!(some, 0);
        assert!((400..600).contains(&all), "{all} of {}", all + none);
    }

    #[test]
    fn session_with_a_routing_key_is_known_by_it() {
        let mut sampler = Sampler::new(0.5).unwrap();
        let [all, some, _] = sessions(&mut sampler, |session, turn| {
            with_chain(&[turn], Some(session))
        });
        assert_eq!(some, 0);
        assert!((900..1100).contains(&all), "{all}");
    }

    #[test]
    fn counts_are_bounded() {
        let mut sampler = Sampler::new(0.5).unwrap();
        for block in 0..(3 * WINDOW).into() {
            sampler.takes(&with_chain(&[block], None));
        }
        assert!(sampler.counts.len() <= MOST_COUNTS);
        assert!(sampler.requests < WINDOW);
    }

    #[test]
    fn share_of_requests_without_a_prompt_is_taken() {
        let mut sampler = Sampler::new(0.5).unwrap();
        let taken = (0..1000).filter(|_| sampler.takes(&record())).count();
        assert!((400..600).contains(&taken), "{taken}");
    }
}
