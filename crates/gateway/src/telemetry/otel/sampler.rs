//! Which traces are recorded.

/// Decides by the trace's id, as the SDK's `TraceIdRatioBased`: services with the same ratio agree.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sampler {
    /// Ids whose random part is below are recorded.
    bound: u64,
}

impl Sampler {
    /// For a share (0..1) of all traces.
    pub(super) fn new(ratio: f64) -> Self {
        #[expect(
            clippy::cast_sign_loss,
            reason = "the ratio is 0 at least; casts of floats saturate"
        )]
        let bound = (ratio * (1_u64 << 63) as f64) as u64;
        Self { bound }
    }

    pub(super) fn samples(self, trace_id: u128) -> bool {
        // 63 of the id's low bits, which are random in every version of the rules.
        (trace_id as u64) >> 1 < self.bound
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{SpanKind, TraceId};
    use opentelemetry_sdk::trace::{Sampler as SdkSampler, SamplingDecision, ShouldSample};

    use super::*;

    #[test]
    fn decision_is_that_of_the_sdk() {
        let mut ids = fastrand::Rng::with_seed(7);
        for ratio in [0.0, 0.01, 0.5, 0.999, 1.0] {
            let (ours, sdk) = (Sampler::new(ratio), SdkSampler::TraceIdRatioBased(ratio));
            for id in (0..1000).map(|_| ids.u128(1..)).chain([1, u128::MAX]) {
                let trace = TraceId::from_bytes(id.to_be_bytes());
                let decided = sdk.should_sample(None, trace, "", &SpanKind::Server, &[], &[]);
                let sampled = decided.decision == SamplingDecision::RecordAndSample;
                assert_eq!(ours.samples(id), sampled, "{id:x} at {ratio}");
            }
        }
    }

    #[test]
    fn share_of_traces_is_the_ratio() {
        let mut ids = fastrand::Rng::with_seed(7);
        let sampler = Sampler::new(0.1);
        let recorded = (0..100_000).filter(|_| sampler.samples(ids.u128(..)));
        let share = recorded.count();
        assert!((9_500..10_500).contains(&share), "{share}");
    }
}
