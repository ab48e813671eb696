//! Gateways that assign keys through a simulated server, which loses messages and forgets.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::{Assignment, Claim, KeyTable, SharedKey};
use crate::candidate::tests::fleet;
use crate::{Candidate, Candidates, Params, Policy, PolicyKind, Request, TieBreak};

const WORKERS: usize = 5;
const KEYS: [&str; 4] = ["a", "b", "c", "d"];
const HOUR: Duration = Duration::from_hours(1);

/// The assignments, as the script of the server keeps them.
#[derive(Default)]
struct Server {
    keys: HashMap<u64, Assignment>,
    clock: u64,
}

impl Server {
    fn claim(&mut self, claim: &Claim) -> Assignment {
        self.clock += 1;
        let (asked, stored) = (claim.assignment, self.keys.get(&claim.key).copied());
        let version = stored.map_or(0, |stored| stored.version);
        if version > asked.version || version == asked.version && !claim.changed && version > 0 {
            return stored.unwrap();
        }
        let version = if claim.changed {
            self.clock.max(asked.version + 1)
        } else {
            asked.version
        };
        let agreed = Assignment { version, ..asked };
        self.keys.insert(claim.key, agreed);
        agreed
    }

    fn all(&self) -> Vec<SharedKey> {
        let keys = self.keys.iter();
        keys.map(|(key, assignment)| SharedKey {
            key: *key,
            assignment: *assignment,
            left: HOUR,
        })
        .collect()
    }
}

struct Gateway {
    policy: Box<dyn Policy>,
    connected: bool,
    /// Claims on their way to the server, and answers on their way back.
    asked: Option<Vec<Claim>>,
    answered: Option<Vec<(Claim, Assignment)>>,
    news: VecDeque<Vec<SharedKey>>,
    /// Workers that it may use, by bit.
    view: u8,
}

impl Gateway {
    fn new() -> Self {
        let params = Params {
            tie_break: TieBreak::Random,
            ..Params::default()
        };
        Self {
            policy: PolicyKind::Manual.build(&params),
            connected: false,
            asked: None,
            answered: None,
            news: VecDeque::new(),
            view: u8::MAX,
        }
    }

    fn table(&self) -> &Arc<KeyTable> {
        self.policy.key_table().unwrap()
    }

    fn serve(&self, key: &str, seed: u64) -> usize {
        let all = fleet(WORKERS);
        let visible = |it: &Candidate| self.view >> it.slot & 1 == 1;
        let workers: Vec<_> = all.into_iter().filter(visible).collect();
        let request = Request {
            routing_key: Some(key),
            seed,
            ..Request::default()
        };
        let from = Candidates::new(&workers).unwrap();
        self.policy.pick(from, &request).candidate.slot
    }

    fn lose(&mut self) {
        self.connected = false;
        (self.asked, self.answered) = (None, None);
        self.news.clear();
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Serve(usize, usize),
    /// Sends claims.
    Ask(usize),
    /// The server gets them.
    Arrive(usize),
    /// Its answer comes.
    Answer(usize),
    /// News of others come; those that came last, or first.
    News(usize, bool),
    Lose(usize),
    Connect(usize),
    Restart(usize),
    /// Workers are available, as one gateway sees it.
    See(usize, u8),
    /// The server loses its data.
    Wipe,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let at = 0..8_usize;
    let step = prop_oneof![
        8 => (at.clone(), 0..KEYS.len()).prop_map(|(at, key)| Step::Serve(at, key)),
        6 => at.clone().prop_map(Step::Ask),
        6 => at.clone().prop_map(Step::Arrive),
        6 => at.clone().prop_map(Step::Answer),
        6 => (at.clone(), any::<bool>()).prop_map(|(at, last)| Step::News(at, last)),
        1 => at.clone().prop_map(Step::Lose),
        2 => at.clone().prop_map(Step::Connect),
        1 => at.clone().prop_map(Step::Restart),
        2 => (at, 1..1_u8 << WORKERS).prop_map(|(at, view)| Step::See(at, view)),
        1 => Just(Step::Wipe),
    ];
    prop::collection::vec(step, 0..300)
}

struct Stage {
    server: Server,
    gateways: Vec<Gateway>,
    seed: u64,
}

impl Stage {
    fn new(count: usize) -> Self {
        let mut stage = Self {
            server: Server::default(),
            gateways: (0..count).map(|_| Gateway::new()).collect(),
            seed: 0,
        };
        (0..count).for_each(|at| stage.step(Step::Connect(at)));
        stage
    }

    fn step(&mut self, step: Step) {
        let count = self.gateways.len();
        match step {
            Step::Serve(at, key) => {
                self.seed += 7;
                self.gateways[at % count].serve(KEYS[key], self.seed);
            }
            Step::Ask(at) => {
                let gateway = &mut self.gateways[at % count];
                if gateway.connected && gateway.asked.is_none() && gateway.answered.is_none() {
                    let mut claims = Vec::new();
                    gateway.table().take_claims(3, Duration::ZERO, &mut claims);
                    gateway.asked = Some(claims);
                }
            }
            Step::Arrive(at) => self.arrive(at % count),
            Step::Answer(at) => {
                let gateway = &mut self.gateways[at % count];
                let answered = gateway.answered.take().unwrap_or_default();
                let answered = answered.iter().map(|(claim, after)| (claim, *after));
                gateway.table().settle(answered);
            }
            Step::News(at, last) => {
                let gateway = &mut self.gateways[at % count];
                let news = if last {
                    gateway.news.pop_back()
                } else {
                    gateway.news.pop_front()
                };
                let news = news.unwrap_or_default();
                gateway.table().learn(&news, Duration::ZERO);
            }
            Step::Lose(at) => self.gateways[at % count].lose(),
            Step::Connect(at) => {
                let gateway = &mut self.gateways[at % count];
                gateway.lose();
                gateway.connected = true;
                gateway.table().share();
                gateway.news.push_back(self.server.all());
            }
            Step::Restart(at) => self.gateways[at % count] = Gateway::new(),
            Step::See(at, view) => self.gateways[at % count].view = view,
            Step::Wipe => self.server.keys.clear(),
        }
    }

    fn arrive(&mut self, at: usize) {
        let Some(claims) = self.gateways[at].asked.take() else {
            return;
        };
        let answer = |claim: Claim| (claim, self.server.claim(&claim));
        let answered: Vec<_> = claims.into_iter().map(answer).collect();
        let news = answered.iter().map(|(claim, after)| SharedKey {
            key: claim.key,
            assignment: *after,
            left: HOUR,
        });
        let news: Vec<_> = news.collect();
        let listening = self.gateways.iter_mut().filter(|it| it.connected);
        listening.for_each(|it| it.news.push_back(news.clone()));
        self.gateways[at].answered = Some(answered);
    }

    /// All that is on its way comes, and all that is pending is claimed.
    fn settle(&mut self) {
        for _ in 0..40 {
            for at in 0..self.gateways.len() {
                self.step(Step::Answer(at));
                self.step(Step::Ask(at));
                self.step(Step::Arrive(at));
                self.step(Step::Answer(at));
                while !self.gateways[at].news.is_empty() {
                    self.step(Step::News(at, false));
                }
            }
        }
    }

    fn known(&self, at: usize, key: &str) -> Option<(Assignment, bool)> {
        let keys = self.gateways[at].table().lock();
        keys.assignment(xxh3_64(key.as_bytes()))
    }
}

proptest! {
    #[test]
    fn gateways_end_with_one_assignment_whatever_is_late_lost_or_restarted(
        count in 1..9_usize,
        steps in steps(),
    ) {
        let mut stage = Stage::new(count);
        for step in steps {
            stage.step(step);
        }
        for at in 0..count {
            stage.step(Step::See(at, u8::MAX));
            stage.step(Step::Connect(at));
        }
        stage.settle();
        // Those that were in use before count, and every key is used everywhere.
        let before = stage.server.keys.clone();
        for key in KEYS {
            for at in 0..count {
                let known = stage.known(at, key);
                let shared = stage.server.keys.get(&xxh3_64(key.as_bytes()));
                prop_assert_eq!(known, shared.map(|shared| (*shared, true)));
            }
            let workers = |at: usize| stage.gateways[at].serve(key, at as u64);
            let workers: Vec<_> = (0..count).map(workers).collect();
            let known = before.contains_key(&xxh3_64(key.as_bytes()));
            prop_assert!(!known || workers.iter().all(|it| *it == workers[0]), "{:?}", workers);
        }
        stage.settle();
        for key in KEYS {
            let workers: Vec<_> = (0..count).map(|at| stage.gateways[at].serve(key, 9)).collect();
            prop_assert!(workers.iter().all(|it| *it == workers[0]), "{:?}", workers);
        }
    }

    #[test]
    fn news_in_any_order_and_as_often_as_they_come_end_with_the_last_assignment(
        count in 2..9_usize,
        steps in steps(),
    ) {
        let mut stage = Stage::new(count);
        for step in steps {
            // Nothing is lost, so nothing is read anew.
            let is_lossless = matches!(
                step,
                Step::Serve(..) | Step::Ask(_) | Step::Arrive(_) | Step::Answer(_) | Step::News(..) | Step::See(..)
            );
            if is_lossless {
                stage.step(step);
            }
        }
        stage.settle();
        for key in KEYS {
            let shared = stage.server.keys.get(&xxh3_64(key.as_bytes()));
            for at in 0..count {
                prop_assert_eq!(stage.known(at, key), shared.map(|shared| (*shared, true)));
            }
        }
    }

    #[test]
    fn first_assignment_stays_while_its_worker_is_there(
        count in 1..9_usize,
        steps in steps(),
    ) {
        let mut stage = Stage::new(count);
        let mut first = HashMap::new();
        for step in steps {
            if !matches!(step, Step::Wipe | Step::See(..)) {
                stage.step(step);
            }
            for (key, assignment) in &stage.server.keys {
                let first = first.entry(*key).or_insert(*assignment);
                prop_assert_eq!(first, assignment);
            }
        }
    }
}

fn claims(gateway: &Gateway, now: Duration) -> Vec<Claim> {
    let mut claims = Vec::new();
    gateway.table().take_claims(100, now, &mut claims);
    claims
}

#[test]
fn key_whose_worker_is_gone_moves_for_all_gateways() {
    let mut stage = Stage::new(2);
    stage.step(Step::Serve(0, 0));
    stage.settle();
    let first = stage.gateways[1].serve("a", 1);
    let without = !(1 << first);
    for at in 0..2 {
        stage.gateways[at].view = without;
    }
    let second = stage.gateways[0].serve("a", 3);
    stage.settle();
    assert_ne!(first, second);
    assert_eq!(stage.gateways[1].serve("a", 4), second);
    // It is back, and so are its keys.
    stage.gateways[1].view = u8::MAX;
    assert_eq!(stage.gateways[1].serve("a", 5), first);
}

#[test]
fn key_in_use_is_claimed_again_after_an_eighth_of_its_time_only() {
    let gateway = Gateway::new();
    let at = |now: Duration| {
        let request = Request {
            routing_key: Some("k"),
            now,
            ..Request::default()
        };
        let all = fleet(2);
        gateway
            .policy
            .pick(Candidates::new(&all).unwrap(), &request);
        claims(&gateway, now)
    };
    assert!(at(Duration::ZERO).is_empty(), "not shared yet");
    gateway.table().share();
    let first = at(Duration::ZERO);
    assert_eq!((first.len(), first[0].changed), (1, true));
    // Four hours, and an eighth for what others do not know of.
    assert_eq!(first[0].kept, Duration::from_mins(4 * 60 + 30));
    let after = Assignment {
        version: 7,
        ..first[0].assignment
    };
    gateway.table().settle([(&first[0], after)].into_iter());
    assert!(at(Duration::from_mins(29)).is_empty());
    let again = at(Duration::from_mins(31));
    assert_eq!((again.len(), again[0].changed), (1, false));
    assert_eq!(again[0].assignment, after);
    // Another gateway has used it: this one need not say so.
    let shared = SharedKey {
        key: first[0].key,
        assignment: after,
        left: again[0].kept,
    };
    gateway.table().learn(&[shared], Duration::from_hours(1));
    assert!(at(Duration::from_mins(80)).is_empty());
    assert_eq!(at(Duration::from_mins(91)).len(), 1);
}

#[test]
fn more_keys_than_may_wait_are_all_claimed_in_the_end() {
    let gateway = Gateway::new();
    gateway.table().share();
    for number in 0..40_000 {
        gateway.serve(&format!("key {number}"), number);
    }
    let mut seen = std::collections::HashSet::new();
    for _ in 0..1000 {
        seen.extend(claims(&gateway, Duration::ZERO).iter().map(|it| it.key));
    }
    assert_eq!((seen.len(), gateway.table().pending()), (40_000, 0));
}

#[test]
fn key_of_a_worker_that_is_not_here_stays_there_for_the_others() {
    let gateway = Gateway::new();
    let elsewhere = Assignment {
        workers: [77, 0],
        version: 5,
    };
    let shared = SharedKey {
        key: xxh3_64(b"k"),
        assignment: elsewhere,
        left: HOUR * 4,
    };
    gateway.table().share();
    gateway.table().learn(&[shared], HOUR);
    let slot = gateway.serve("k", 1);
    let claim = claims(&gateway, HOUR).remove(0);
    let here = fleet(WORKERS)[slot].url_hash;
    assert_eq!(claim.assignment.workers, [77, here]);
    assert_eq!((claim.assignment.version, claim.changed), (5, true));
}
