//! The classes of requests, and how they share the workers.

use std::num::NonZeroU32;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a request is: one that a user waits for, or one that can wait.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
    Default,
)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// It can wait: it is served when no interactive request waits, and by its share.
    Batch,
    /// It goes first.
    #[default]
    Interactive,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 2] = [Self::Batch, Self::Interactive];

    /// The name in options, headers and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Batch => "batch",
            Self::Interactive => "interactive",
        }
    }

    /// The class that a client means; `None` for a word that means none.
    pub fn named(word: &str) -> Option<Self> {
        let is = |known: &str| word.eq_ignore_ascii_case(known);
        if ["batch", "bulk"].into_iter().any(is) {
            Some(Self::Batch)
        } else if ["interactive", "system", "default"].into_iter().any(is) {
            Some(Self::Interactive)
        } else {
            None
        }
    }
}

/// What the owner of requests may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FairShare {
    /// The same for all requests of one owner.
    pub flow: u64,
    /// The weight of the owner beside others.
    pub weight: NonZeroU32,
    /// The highest class of its requests.
    pub max_class: Class,
}

impl Default for FairShare {
    fn default() -> Self {
        Self {
            flow: 0,
            weight: NonZeroU32::MIN,
            max_class: Class::Interactive,
        }
    }
}

/// How classes share what becomes free.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FairRules {
    /// Share of the tokens that batch requests get while both classes wait, in thousandths.
    pub batch_permille: u32,
    /// Once a batch request has waited for so long, every second turn is one of its class.
    pub starvation: Duration,
}

/// Whose turn it is: what batch requests have saved up while others went first.
#[derive(Clone, Debug, Default)]
pub(super) struct Turns {
    /// Thousandths of tokens.
    credit: u128,
    last_was_batch: bool,
}

/// What one turn has changed.
#[derive(Debug)]
pub(super) struct Turn {
    given: u128,
    taken: u128,
    last_was_batch: bool,
}

impl Turns {
    /// Whether batch is next, where both classes wait: its next request costs `cost`, and its oldest
    /// has waited for `oldest`.
    pub(super) fn is_batch_next(&self, cost: u64, oldest: Duration, rules: &FairRules) -> bool {
        let is_overdue = oldest >= rules.starvation && !self.last_was_batch;
        is_overdue || self.credit >= price(cost, rules)
    }

    /// A request of this class is served, while both classes wait; returns what that changes.
    pub(super) fn served(&mut self, class: Class, cost: u64, rules: &FairRules) -> Turn {
        let before = self.clone();
        self.last_was_batch = class == Class::Batch;
        match class {
            Class::Batch => self.credit = self.credit.saturating_sub(price(cost, rules)),
            Class::Interactive => {
                let earned = u128::from(cost) * u128::from(rules.batch_permille);
                self.credit = self.credit.saturating_add(earned);
            }
        }
        Turn {
            given: self.credit.saturating_sub(before.credit),
            taken: before.credit.saturating_sub(self.credit),
            last_was_batch: before.last_was_batch,
        }
    }

    /// The request of this turn waits on.
    pub(super) fn undo(&mut self, turn: &Turn) {
        self.credit = self.credit.saturating_sub(turn.given) + turn.taken;
        self.last_was_batch = turn.last_was_batch;
    }

    /// Nothing is saved up for batch requests that are not there.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

/// What a batch request costs of the credit: so that for each `permille` of its tokens the others
/// have had the rest of the thousand.
fn price(cost: u64, rules: &FairRules) -> u128 {
    let rest = 1000_u32.saturating_sub(rules.batch_permille);
    if rules.batch_permille == 0 {
        return u128::MAX;
    }
    u128::from(cost) * u128::from(rest)
}
