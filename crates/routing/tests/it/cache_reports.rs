//! Beliefs about caches against what engines report, on a model of an engine's cache.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;
use routing::prefix::{BLOCK, CacheReport, ReportKind};
use routing::{Candidate, Candidates, Params, Policy, PolicyKind, Prompt, Request};

use crate::support::fleet;

/// Tokens per block, by the usual estimate.
const TOKENS: u64 = BLOCK as u64 / 4;

/// A cache that evicts the least recently used block, the end of a prompt before its beginning.
struct Cache {
    capacity: usize,
    /// When each prefix was last used, and the same the other way round.
    used: HashMap<(u64, usize), u64>,
    by_age: BTreeMap<u64, (u64, usize)>,
    now: u64,
}

/// An engine, the policy that believes things of it, and conversations that grow.
struct Bench {
    policy: Box<dyn Policy>,
    worker: Vec<Candidate>,
    cache: Cache,
    lengths: Vec<usize>,
    decisions: u64,
}

/// Tokens that were predicted and that were cached, of one request.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    predicted: u64,
    cached: u64,
}

impl Outcome {
    /// Clearly more was predicted.
    fn is_wrong(self) -> bool {
        self.predicted >= 256 && self.cached + 128 <= self.predicted / 2
    }

    /// Clearly more was cached.
    fn is_too_low(self) -> bool {
        self.cached >= 256 && self.predicted + 128 <= self.cached / 2
    }
}

/// What the engine says of a prompt of which so many tokens were cached.
type Says = fn(cached: u64) -> Option<u64>;

impl Cache {
    /// Uses the blocks of a conversation; returns how many were cached.
    fn enter(&mut self, conversation: u64, blocks: usize) -> usize {
        let held = (0..blocks).take_while(|at| self.used.contains_key(&(conversation, *at)));
        let held = held.count();
        self.now += blocks as u64;
        for at in 0..blocks {
            let (block, used) = ((conversation, at), self.now - at as u64);
            if let Some(before) = self.used.insert(block, used) {
                self.by_age.remove(&before);
            }
            self.by_age.insert(used, block);
        }
        while self.used.len() > self.capacity {
            let (_, oldest) = self.by_age.pop_first().unwrap();
            self.used.remove(&oldest);
        }
        held
    }

    fn flush(&mut self) {
        self.used.clear();
        self.by_age.clear();
    }
}

impl Bench {
    fn new(conversations: usize, capacity: usize) -> Self {
        Self {
            policy: PolicyKind::CacheAware.build(&Params::default()),
            worker: fleet(1),
            cache: Cache {
                capacity,
                used: HashMap::new(),
                by_age: BTreeMap::new(),
                now: 0,
            },
            lengths: vec![0; conversations],
            decisions: 0,
        }
    }

    /// The next turn of a conversation, `longer` blocks longer than the last one.
    fn ask(&mut self, conversation: usize, longer: usize, says: Says) -> Outcome {
        self.lengths[conversation] += longer;
        let blocks = self.lengths[conversation];
        let word = |at: usize| (conversation * 100_000 + at) as u64;
        let text: Vec<u8> = (0..blocks)
            .flat_map(|at| word(at).to_le_bytes().repeat(BLOCK / 8))
            .collect();
        self.decisions += 1;
        let request = Request {
            prompt: Prompt::text([&text, b"", b""]),
            seed: self.decisions,
            ..Request::default()
        };
        let from = Candidates::new(&self.worker).unwrap();
        let pick = self.policy.pick(from, &request);
        let cached = self.cache.enter(conversation as u64, blocks) as u64 * TOKENS;
        let prediction = pick.prediction.unwrap();
        prediction.first_byte();
        if let Some(reported) = says(cached) {
            let comparison = prediction.compare(CacheReport {
                kind: ReportKind::Compatible,
                prompt: Some(request.prompt.tokens()),
                cached: reported,
            });
            if let Some(correction) = comparison.correction {
                self.policy.correct(&correction);
            }
        }
        Outcome {
            predicted: pick.matched_tokens,
            cached,
        }
    }
}

const TRUTH: Says = Some;

/// Turns of conversations, each with the blocks that it adds.
fn turns(conversations: usize, count: usize) -> impl Strategy<Value = Vec<(usize, usize)>> {
    prop::collection::vec((0..conversations, 4..40_usize), count)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn true_reports_of_true_beliefs_change_nothing(turns in turns(12, 200)) {
        let mut bench = Bench::new(12, usize::MAX);
        for (conversation, longer) in turns {
            let outcome = bench.ask(conversation, longer, TRUTH);
            prop_assert_eq!(outcome.predicted, outcome.cached);
        }
    }

    #[test]
    fn flushed_cache_is_noticed_within_few_requests(
        before in turns(40, 200),
        after in turns(40, 200),
    ) {
        let mut bench = Bench::new(40, usize::MAX);
        for (conversation, longer) in before {
            bench.ask(conversation, longer, TRUTH);
        }
        bench.cache.flush();
        let outcomes: Vec<_> = after.into_iter().map(|(at, longer)| bench.ask(at, longer, TRUTH)).collect();
        let wrong = outcomes.iter().filter(|outcome| outcome.is_wrong()).count();
        prop_assert!(wrong <= 9, "{} wrong", wrong);
        let late = outcomes[20..].iter().filter(|outcome| outcome.is_wrong()).count();
        prop_assert_eq!(late, 0);
        // And what was entered since is believed.
        let too_low = outcomes.iter().filter(|outcome| outcome.is_too_low()).count();
        prop_assert!(too_low <= 4, "{} too low", too_low);
    }

    #[test]
    fn cache_of_unknown_size_is_followed(turns in turns(60, 600)) {
        let count = |says: Says| {
            let mut bench = Bench::new(60, 1500);
            let ask = |(at, longer): &(usize, usize)| bench.ask(*at, (*longer).min(8), says);
            let outcomes: Vec<_> = turns.iter().map(ask).collect();
            let of = |is: fn(Outcome) -> bool| outcomes[200..].iter().filter(|it| is(**it)).count();
            (of(Outcome::is_wrong), of(Outcome::is_too_low))
        };
        let (believing, _) = count(|_| None);
        let (corrected, too_low) = count(TRUTH);
        prop_assert!(corrected * 2 <= believing, "{} of {} wrong", corrected, believing);
        prop_assert!(too_low <= 20, "{} too low", too_low);
    }

    #[test]
    fn engine_that_names_no_cached_tokens_changes_nothing(turns in turns(12, 200)) {
        let mut benches = [Bench::new(12, usize::MAX), Bench::new(12, usize::MAX)];
        for (at, longer) in turns {
            let silent = benches[0].ask(at, longer, |_| None);
            let zero = benches[1].ask(at, longer, |_| Some(0));
            prop_assert_eq!(silent.predicted, zero.predicted);
        }
    }
}

#[test]
fn engine_that_reports_no_more_after_a_restart_costs_one_correction() {
    let mut bench = Bench::new(12, usize::MAX);
    for at in 0..60 {
        bench.ask(at % 12, 20, TRUTH);
    }
    // Restarted without the option that makes it report.
    bench.cache.flush();
    let outcomes: Vec<_> = (0..60)
        .map(|at| bench.ask(at % 12, 4, |_| Some(0)))
        .collect();
    let wrong = outcomes.iter().filter(|outcome| outcome.is_wrong()).count();
    let too_low = outcomes.iter().filter(|it| it.is_too_low()).count();
    assert!(
        wrong <= 9 && too_low <= 9,
        "{wrong} wrong, {too_low} too low"
    );
}
