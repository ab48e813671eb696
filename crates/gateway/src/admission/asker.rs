//! A request, as far as the fair order asks.

use std::num::NonZeroU32;

use http::HeaderName;
use routing::{Class, FairShare};

/// The header that names a request's class.
pub(crate) static PRIORITY: HeaderName = HeaderName::from_static("x-smg-priority");

/// A request that may have to wait in the fair order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker {
    pub(crate) flow: u64,
    pub(crate) weight: NonZeroU32,
    pub(crate) class: Class,
    /// Tokens that it is expected to take.
    pub(crate) cost: u64,
    /// The worker that has most of its prompt, if one has much of it.
    pub(crate) prefers: Option<usize>,
}

impl Asker {
    /// A request of this owner, in the class that it wants as far as it may.
    pub(crate) fn new(share: FairShare, wanted: Option<&str>, cost: u64) -> Self {
        let wanted = wanted.and_then(Class::named).unwrap_or_default();
        Self {
            flow: share.flow,
            weight: share.weight,
            class: wanted.min(share.max_class),
            cost,
            prefers: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_may_lower_its_class_and_raise_it_as_far_as_its_key_allows() {
        let class = |max_class, wanted| {
            let share = FairShare {
                max_class,
                ..FairShare::default()
            };
            Asker::new(share, wanted, 1).class
        };
        for word in [None, Some("interactive"), Some("SYSTEM"), Some("default")] {
            assert_eq!(class(Class::Interactive, word), Class::Interactive);
            assert_eq!(class(Class::Batch, word), Class::Batch);
        }
        for word in ["batch", "Bulk"] {
            assert_eq!(class(Class::Interactive, Some(word)), Class::Batch);
        }
        assert_eq!(
            class(Class::Interactive, Some("urgent")),
            Class::Interactive
        );
    }
}
