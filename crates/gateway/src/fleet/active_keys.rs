//! The routing keys of the requests in flight at a worker.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How many requests of each key are in flight. Only requests with a key touch it.
#[derive(Debug, Default)]
pub(crate) struct ActiveKeys {
    hasher: RandomState,
    /// By the hash of the key; `None` until a request has one.
    requests: Mutex<Option<HashMap<u64, usize>>>,
}

impl ActiveKeys {
    /// A request with this key has begun; gives what [`leave`](Self::leave) needs.
    pub(crate) fn enter(&self, key: &str) -> u64 {
        let key = self.hasher.hash_one(key);
        let mut requests = self.requests();
        *requests.get_or_insert_default().entry(key).or_default() += 1;
        key
    }

    /// It has ended.
    pub(crate) fn leave(&self, key: u64) {
        let mut requests = self.requests();
        let Some(requests) = requests.as_mut() else {
            return;
        };
        if let Some(left) = requests.get_mut(&key) {
            *left -= 1;
            if *left == 0 {
                requests.remove(&key);
            }
        }
    }

    /// Different keys in flight; `None` if there has never been one.
    pub(super) fn count(&self) -> Option<usize> {
        self.requests().as_ref().map(HashMap::len)
    }

    fn requests(&self) -> MutexGuard<'_, Option<HashMap<u64, usize>>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_one_key_count_as_one_key_until_all_have_ended() {
        let keys = ActiveKeys::default();
        assert_eq!(keys.count(), None);
        let (first, second, other) = (keys.enter("a"), keys.enter("a"), keys.enter("b"));
        assert_eq!(keys.count(), Some(2));
        keys.leave(first);
        assert_eq!(keys.count(), Some(2));
        keys.leave(second);
        keys.leave(other);
        assert_eq!(keys.count(), Some(0));
    }
}
