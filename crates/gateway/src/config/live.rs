//! Options that can change while the gateway runs, behind one swap.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use routing::RetryRules;
use serde_json::Value;

use super::check::check;
use super::error::ConfigError;
use super::options::Options;
use super::sections::{retry_rules, seconds};

/// Names of the options in [`LiveSection`].
const LIVE: [&str; 10] = [
    "disable_retries",
    "explain_routing",
    "health_check_timeout_secs",
    "request_timeout_secs",
    "retry_backoff_multiplier",
    "retry_initial_backoff_ms",
    "retry_jitter_factor",
    "retry_max_backoff_ms",
    "retry_max_retries",
    "sse_keepalive_secs",
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
}

/// The options in force. Requests in progress keep those that they came with.
#[derive(Clone, Debug)]
pub(crate) struct Live(Arc<ArcSwap<InForce>>);

#[derive(Debug)]
struct InForce {
    options: Options,
    section: LiveSection,
}

impl From<&Options> for InForce {
    fn from(options: &Options) -> Self {
        Self {
            options: options.clone(),
            section: options.into(),
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
        }
    }
}

impl Live {
    pub(crate) fn new(options: &Options) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(options.into())))
    }

    /// The options in force: a copy, for nothing may hold the swap while it waits.
    pub(crate) fn get(&self) -> LiveSection {
        self.0.load().section
    }

    /// Puts other options in force, all or none.
    ///
    /// # Errors
    /// A rule that is broken, or an option that differs and cannot change at run time.
    pub(crate) fn reload(&self, options: &Options) -> Result<(), ConfigError> {
        check(options)?;
        let as_json = |options: &Options| serde_json::to_value(options).unwrap_or_default();
        let (now, then) = (as_json(&self.0.load().options), as_json(options));
        let differs = |name: &&&str| now[**name] != then[**name] && !LIVE.contains(*name);
        if let Some(name) = Options::NAMES.iter().find(|name| differs(name)) {
            let value = match &then[*name] {
                // A secret must not be printed.
                Value::String(_) => "(another value)".to_owned(),
                value => value.to_string(),
            };
            let why = "cannot change while the gateway runs; restart it";
            return Err(ConfigError::invalid(name, value, why));
        }
        self.0.store(Arc::new(options.into()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_options_are_options_and_change_at_once() {
        assert!(LIVE.iter().all(|name| Options::NAMES.contains(name)));
        let live = Live::new(&Options::default());
        let options = Options {
            request_timeout_secs: 7,
            retry_max_retries: 2,
            ..Options::default()
        };
        live.reload(&options).unwrap();
        let section = live.get();
        assert_eq!(section.request_timeout, Duration::from_secs(7));
        assert_eq!(section.retry.attempts, 2);
    }

    #[test]
    fn reload_with_a_fixed_or_wrong_option_changes_nothing() {
        let live = Live::new(&Options::default());
        let changed = Options {
            request_timeout_secs: 7,
            ..Options::default()
        };
        let fixed = Options {
            port: 1,
            ..changed.clone()
        };
        let wrong = Options {
            cache_threshold: 2.0,
            ..changed
        };
        for (options, name) in [(fixed, "'port'"), (wrong, "'cache_threshold'")] {
            let error = live.reload(&options).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
        let timeout = live.get().request_timeout;
        assert_eq!(timeout, Duration::from_mins(30));
    }
}
