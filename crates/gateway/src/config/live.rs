//! The options in force, behind one swap.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use routing::RetryRules;

use super::configuration::Loaded;
use super::error::ConfigError;
use super::options::Options;
use super::sections::{HealthSection, retry_rules, seconds};

/// Options that can change while the gateway runs. `app::reload` puts them in force.
const LIVE: [&str; 66] = [
    "api_key",
    "api_keys_file",
    "assignment_mode",
    "balance_abs_threshold",
    "balance_rel_threshold",
    "bootstrap_port_annotation",
    "bucket_adjust_interval_secs",
    "cache_threshold",
    "cb_failure_threshold",
    "cb_success_threshold",
    "cb_timeout_duration_secs",
    "cb_window_duration_secs",
    "config_watch",
    "control_plane_auth",
    "cors_allowed_origins",
    "decode_policy",
    "decode_selector",
    "decode_urls",
    "disable_circuit_breaker",
    "disable_health_check",
    "disable_retries",
    "discovery_file",
    "eviction_interval_secs",
    "explain_routing",
    "gateway_replicas",
    "health_check_endpoint",
    "health_check_interval_secs",
    "health_check_timeout_secs",
    "health_failure_threshold",
    "health_success_threshold",
    "log_level",
    "max_concurrent_requests",
    "max_idle_secs",
    "max_requests_per_worker",
    "model_id_from",
    "policy",
    "prefill_policy",
    "prefill_selector",
    "prefill_urls",
    "queue_batch_share",
    "queue_order",
    "queue_size",
    "queue_starvation_secs",
    "queue_timeout_secs",
    "rate_limit_tokens_per_second",
    "request_timeout_secs",
    "retry_backoff_multiplier",
    "retry_initial_backoff_ms",
    "retry_jitter_factor",
    "retry_max_backoff_ms",
    "retry_max_retries",
    "selector",
    "service_discovery",
    "service_discovery_by",
    "service_discovery_groups",
    "service_discovery_namespace",
    "service_discovery_port",
    "service_discovery_port_name",
    "service_discovery_zone_label",
    "slow_start_secs",
    "sse_keepalive_secs",
    "worker_drain_timeout_secs",
    "worker_startup_check_interval",
    "worker_startup_timeout_secs",
    "worker_urls",
    "worker_zones",
];

/// The options that are read for every request and every probe.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LiveSection {
    /// Time to response headers, over all attempts; also the longest silence inside a body.
    pub(crate) request_timeout: Duration,
    /// Longest wait for a probe's answer; also the silence of a worker after which it is probed.
    pub(crate) probe_after: Duration,
    pub(crate) retry: RetryRules,
    /// Every reply says why it was routed as it was.
    pub(crate) explain_all: bool,
    /// The silence of a stream of events that is broken by a comment.
    pub(crate) keep_alive: Option<Duration>,
    /// Clients show the gateway's key, so that `authorization` distinguishes none of them.
    pub(crate) clients_need_key: bool,
}

/// The options in force. Requests in progress keep those that they came with.
#[derive(Clone, Debug)]
pub(crate) struct Live(Arc<ArcSwap<InForce>>);

/// Options, and what is made of them.
#[derive(Debug)]
pub(crate) struct InForce {
    pub(crate) loaded: Loaded,
    section: LiveSection,
    pub(crate) health: Arc<HealthSection>,
    /// Pause between sweeps of routing state.
    pub(crate) eviction_interval: Duration,
}

impl From<Loaded> for InForce {
    fn from(loaded: Loaded) -> Self {
        let options = loaded.options();
        Self {
            section: options.into(),
            health: Arc::new(options.into()),
            eviction_interval: Duration::from_secs(options.eviction_interval_secs),
            loaded,
        }
    }
}

impl From<&Options> for LiveSection {
    fn from(options: &Options) -> Self {
        Self {
            request_timeout: seconds(options.request_timeout_secs),
            probe_after: seconds(options.health_check_timeout_secs),
            retry: retry_rules(options),
            explain_all: options.explain_routing,
            keep_alive: Some(seconds(options.sse_keepalive_secs))
                .filter(|silence| !silence.is_zero()),
            clients_need_key: options.clients_need_key(),
        }
    }
}

#[cfg(test)]
impl From<&Options> for Live {
    fn from(options: &Options) -> Self {
        Self::new(super::Configuration::from(options).load().unwrap())
    }
}

impl Live {
    pub(crate) fn new(loaded: Loaded) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(loaded.into())))
    }

    /// What is read for every request: a copy, for nothing may hold the swap while it waits.
    pub(crate) fn get(&self) -> LiveSection {
        self.0.load().section
    }

    /// Everything; for a moment.
    pub(crate) fn in_force(&self) -> Guard<Arc<InForce>> {
        self.0.load()
    }

    /// How workers are probed.
    pub(crate) fn health(&self) -> Arc<HealthSection> {
        Arc::clone(&self.0.load().health)
    }

    /// The names of the options that differ in `loaded`.
    ///
    /// # Errors
    /// One of them cannot change at run time.
    pub(crate) fn changes(&self, loaded: &Loaded) -> Result<Vec<&'static str>, ConfigError> {
        let changed = loaded.options().differing(self.in_force().loaded.options());
        let fixed = changed.iter().filter(|name| !LIVE.contains(name));
        let fixed: Vec<_> = fixed.copied().collect();
        if fixed.is_empty() {
            Ok(changed)
        } else {
            Err(ConfigError::Fixed(fixed))
        }
    }

    /// Puts other options in force.
    pub(crate) fn store(&self, loaded: Loaded) {
        self.0.store(Arc::new(loaded.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::super::Configuration;
    use super::*;

    fn loaded(change: impl FnOnce(&mut Options)) -> Loaded {
        let mut options = Options::default();
        change(&mut options);
        Configuration::from(&options).load().unwrap()
    }

    #[test]
    fn live_options_are_options_and_change_at_once() {
        assert!(LIVE.iter().all(|name| Options::NAMES.contains(name)));
        assert!(LIVE.is_sorted());
        let live = Live::new(loaded(|_| {}));
        let other = loaded(|options| {
            options.request_timeout_secs = 7;
            options.retry_max_retries = 2;
        });
        let changed = live.changes(&other).unwrap();
        assert_eq!(changed, ["request_timeout_secs", "retry_max_retries"]);
        live.store(other);
        let section = live.get();
        assert_eq!(section.request_timeout, Duration::from_secs(7));
        assert_eq!(section.retry.attempts, 2);
    }

    #[test]
    fn every_option_that_cannot_change_is_named() {
        let live = Live::new(loaded(|_| {}));
        let other = loaded(|options| {
            options.port = 1;
            options.host = "::1".to_owned();
            options.queue_size = 3;
        });
        let error = live.changes(&other).unwrap_err().to_string();
        assert_eq!(
            error,
            "Configuration error: options 'host', 'port' cannot change while the gateway runs; restart it"
        );
    }
}
