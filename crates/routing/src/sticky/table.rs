//! The routing keys of one policy, for lanes and for what shares them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::claim::{Assignment, Claim, SharedKey};
use super::keys::{MAX_KEYS, StickyKeys};

/// Keys that are taken over without letting go of the table.
const LEARNT_AT_ONCE: usize = 64;

/// The keys of one policy.
#[derive(Debug)]
pub struct KeyTable(Mutex<StickyKeys>);

impl KeyTable {
    pub(crate) fn new(max_idle: Duration) -> Arc<Self> {
        Arc::new(Self(Mutex::new(StickyKeys::new(MAX_KEYS, max_idle))))
    }

    /// For one decision, or a few small steps: lanes wait for it.
    pub(crate) fn lock(&self) -> MutexGuard<'_, StickyKeys> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keys that are remembered.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// Whether a further key would replace one.
    pub fn is_full(&self) -> bool {
        self.lock().is_full()
    }

    /// From now on keys are shared with other gateways. All that are known are claimed again:
    /// called whenever the server may have missed some.
    pub fn share(&self) {
        self.lock().share();
    }

    /// Keys that wait to be claimed.
    pub fn pending(&self) -> usize {
        self.lock().pending()
    }

    /// Takes claims until there are so many in `into`.
    pub fn take_claims(&self, most: usize, now: Duration, into: &mut Vec<Claim>) {
        self.lock().take_claims(most, now, into);
    }

    /// Takes note of what the server has after these claims.
    pub fn settle<'a>(&self, claims: impl Iterator<Item = (&'a Claim, Assignment)>) {
        let mut keys = self.lock();
        for (claim, assignment) in claims {
            keys.settle(claim, assignment);
        }
    }

    /// Takes over what other gateways have assigned.
    pub fn learn(&self, shared: &[SharedKey], now: Duration) {
        for some in shared.chunks(LEARNT_AT_ONCE) {
            let mut keys = self.lock();
            for one in some {
                keys.learn(one.key, one.assignment, one.left, now);
            }
        }
    }
}
