//! Metrics of one model at one endpoint: each made at its first use.

use std::sync::{Arc, OnceLock};

use prometheus::{Histogram, IntCounter};

use super::labels::{Backend, HTTP, RUNTIME};
use super::model_families::ModelFamilies;

/// The handles of one model at one endpoint.
#[derive(Debug)]
pub(crate) struct EndpointMetrics {
    families: Arc<ModelFamilies>,
    model: Arc<str>,
    endpoint: &'static str,
    backend: Backend,
    requests: [OnceLock<IntCounter>; 2],
    /// Routing decision to the end of the reply.
    pub(crate) duration: Histogram,
    stream: OnceLock<StreamMetrics>,
    tokens: OnceLock<TokenMetrics>,
    cached: [OnceLock<IntCounter>; 2],
}

/// The times of streamed replies, in seconds.
#[derive(Debug)]
pub(crate) struct StreamMetrics {
    ttft: Histogram,
    /// The same of a pair.
    pair_ttft: Option<Histogram>,
    /// From one token to the next, on the average of a reply.
    pub(crate) tpot: Histogram,
    /// Routing decision to the end of the stream.
    pub(crate) generation: Histogram,
}

/// The tokens that replies report.
#[derive(Debug)]
pub(crate) struct TokenMetrics {
    pub(crate) input: IntCounter,
    pub(crate) output: IntCounter,
}

/// Where a number of cached tokens comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CachedTokens {
    /// The routing decision.
    Predicted,
    /// The worker's reply.
    Reported,
}

impl EndpointMetrics {
    pub(super) fn new(
        families: &Arc<ModelFamilies>,
        model: &Arc<str>,
        endpoint: &'static str,
        backend: Backend,
    ) -> Self {
        let labels = [HTTP, backend.as_str(), HTTP, model, endpoint];
        Self {
            duration: families.duration.with_label_values(&labels),
            families: Arc::clone(families),
            model: Arc::clone(model),
            endpoint,
            backend,
            requests: Default::default(),
            stream: OnceLock::new(),
            tokens: OnceLock::new(),
            cached: Default::default(),
        }
    }

    /// Requests sent to a worker.
    pub(crate) fn requests(&self, streaming: bool) -> &IntCounter {
        let [whole, streamed] = &self.requests;
        let counter = if streaming { streamed } else { whole };
        counter.get_or_init(|| {
            let [router, backend, model, endpoint] = self.labels();
            let streaming = if streaming { "true" } else { "false" };
            let labels = [router, backend, HTTP, model, endpoint, streaming];
            self.families.requests.with_label_values(&labels)
        })
    }

    /// Of streamed replies.
    pub(crate) fn stream(&self) -> &StreamMetrics {
        self.stream.get_or_init(|| {
            let (families, labels) = (&self.families, self.labels());
            let pair = [self.backend.as_str(), &self.model, RUNTIME];
            let is_pair = self.backend == Backend::Pair;
            StreamMetrics {
                ttft: families.ttft.with_label_values(&labels),
                pair_ttft: is_pair.then(|| families.pair_ttft.with_label_values(&pair)),
                tpot: families.tpot.with_label_values(&labels),
                generation: families.generation.with_label_values(&labels),
            }
        })
    }

    /// Of replies that report tokens.
    pub(crate) fn tokens(&self) -> &TokenMetrics {
        self.tokens.get_or_init(|| {
            let of = |token_type| {
                let [router, backend, model, endpoint] = self.labels();
                let labels = [router, backend, model, endpoint, token_type];
                self.families.tokens.with_label_values(&labels)
            };
            TokenMetrics {
                input: of("input"),
                output: of("output"),
            }
        })
    }

    /// Prompt tokens that were cached, of replies that report it.
    pub(crate) fn cached(&self, source: CachedTokens) -> &IntCounter {
        let [predicted, reported] = &self.cached;
        let (counter, name) = match source {
            CachedTokens::Predicted => (predicted, "predicted"),
            CachedTokens::Reported => (reported, "reported"),
        };
        counter.get_or_init(|| {
            let [router, backend, model, endpoint] = self.labels();
            let labels = [router, backend, model, endpoint, name];
            self.families.cached.with_label_values(&labels)
        })
    }

    fn labels(&self) -> [&str; 4] {
        [HTTP, self.backend.as_str(), &self.model, self.endpoint]
    }
}

impl StreamMetrics {
    /// The first event of a stream has come, so many seconds after the routing decision.
    pub(crate) fn first_event(&self, seconds: f64) {
        self.ttft.observe(seconds);
        if let Some(ttft) = &self.pair_ttft {
            ttft.observe(seconds);
        }
    }
}
