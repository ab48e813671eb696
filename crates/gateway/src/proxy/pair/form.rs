//! In which form both workers of a pair are given what they share.

use bytes::Bytes;

use super::pair_workers::PairWorkers;
use super::prefill::Keep;
use crate::config::PdMetadata;
use crate::endpoint::Inference;
use crate::fleet::Overrides;
use crate::proxy::body_fields::OpenBody;

/// The form of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// In headers, beside this body, which is the client's.
    Headers(Bytes),
    /// In the body.
    Body,
}

impl Form {
    /// Headers where they are wanted, the endpoint reads them, and nothing of the body must change.
    pub(super) fn choose(
        wanted: PdMetadata,
        row: &Inference,
        source: &OpenBody,
        workers: &PairWorkers,
        keep: Keep,
    ) -> Self {
        let obeys = [&workers.prefill, &workers.decode]
            .map(|worker| worker.endpoint.header_overrides.get() == Overrides::Obeyed);
        let usable = match wanted {
            PdMetadata::Body => false,
            PdMetadata::Headers => true,
            PdMetadata::Auto => obeys == [true; 2],
        };
        // What is kept of the prefill worker's answer must come whole, which its body asks for.
        let possible = row.reads_overrides && keep == Keep::Nothing;
        match &source.whole {
            Some(whole) if usable && possible => Self::Headers(whole.clone()),
            _ => Self::Body,
        }
    }
}
