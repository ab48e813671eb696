//! Rules that options must keep, checked before anything starts.

use std::path::Path;

use super::auth::check_auth;
use super::configured_worker::configured_workers;
#[cfg(feature = "kubernetes")]
use super::discovery::check_discovery;
use super::error::ConfigError;
use super::fairness::check_fairness;
use super::mapped::check_backlog;
use super::options::Options;
use super::origin::AllowedOrigin;
use super::record::check_record;
use super::shared_state_url::SharedStateUrl;
use super::tls::check_tls;
use super::traces::check_traces;
use super::unbuilt;
use super::worker_name::WorkerName;
use super::worker_url::WorkerUrl;
use super::zone::check_zones;

/// Largest prefix index, bytes: it is reserved (not filled) at once.
const MOST_INDEX: u64 = 16 << 30;
/// The most gateways that are known, or reckoned with.
const MOST_GATEWAYS: u64 = 256;
/// Linux takes no longer TCP keep-alive, seconds.
const MOST_KEEPALIVE: u64 = 32_767;

/// Checks every rule.
///
/// # Errors
/// The first rule that is broken.
pub fn check(options: &Options) -> Result<(), ConfigError> {
    check_workers(options)?;
    check_ranges(options)?;
    check_most(options)?;
    check_positive(options)?;
    check_headers(options)?;
    check_auth(options)?;
    check_backlog(options)?;
    check_buckets(options)?;
    check_tls(options)?;
    #[cfg(feature = "kubernetes")]
    check_discovery(options)?;
    check_traces(options)?;
    check_zones(options)?;
    check_fairness(options)?;
    check_record(options)?;
    check_shared_state(options)?;
    unbuilt::refuse(options)
}

fn check_shared_state(options: &Options) -> Result<(), ConfigError> {
    let Some(url) = &options.shared_state else {
        return Ok(());
    };
    let read = SharedStateUrl::parse(url.expose());
    let refused = |why| ConfigError::invalid("shared_state", "(masked)", why);
    read.map(drop).map_err(refused)
}

fn check_ranges(options: &Options) -> Result<(), ConfigError> {
    let rules = [
        ("cache_threshold", options.cache_threshold, 0.0, 1.0),
        (
            "balance_rel_threshold",
            options.balance_rel_threshold,
            1.0,
            f64::INFINITY,
        ),
        (
            "retry_backoff_multiplier",
            options.retry_backoff_multiplier,
            1.0,
            f64::INFINITY,
        ),
        ("retry_jitter_factor", options.retry_jitter_factor, 0.0, 1.0),
        (
            "retry_budget_ratio",
            options.retry_budget_ratio,
            0.0,
            f64::INFINITY,
        ),
        (
            "outlier_max_ejected_ratio",
            options.outlier_max_ejected_ratio,
            0.0,
            1.0,
        ),
        ("trace_sample_ratio", options.trace_sample_ratio, 0.0, 1.0),
    ];
    for (field, value, low, high) in rules {
        // Written so that NaN is refused, too.
        if !(low..=high).contains(&value) {
            let why = if high.is_infinite() {
                format!("must be at least {low}")
            } else {
                format!("must be between {low} and {high}")
            };
            return Err(ConfigError::invalid(field, value, why));
        }
    }
    Ok(())
}

fn check_workers(options: &Options) -> Result<(), ConfigError> {
    for worker in configured_workers(options) {
        let url = worker.text;
        if worker.bootstrap_port == Some(0) {
            let why = "must be a port from 1 up, or none";
            return Err(ConfigError::invalid("prefill_urls", url, why));
        }
        let checked = WorkerName::parse(url).map_or_else(
            || WorkerUrl::parse(url).map(|_| ()),
            |named| named.map(|_| ()),
        );
        checked.map_err(|why| ConfigError::worker_url(url, why))?;
    }
    Ok(())
}

fn check_positive(options: &Options) -> Result<(), ConfigError> {
    let at_least_one = [
        ("max_payload_size", options.max_payload_size),
        ("request_timeout_secs", options.request_timeout_secs),
        (
            "worker_startup_timeout_secs",
            options.worker_startup_timeout_secs,
        ),
        (
            "worker_startup_check_interval",
            options.worker_startup_check_interval,
        ),
        (
            "health_failure_threshold",
            options.health_failure_threshold.into(),
        ),
        (
            "health_success_threshold",
            options.health_success_threshold.into(),
        ),
        (
            "health_check_timeout_secs",
            options.health_check_timeout_secs,
        ),
        (
            "health_check_interval_secs",
            options.health_check_interval_secs,
        ),
        ("connect_timeout_secs", options.connect_timeout_secs),
        ("tcp_keepalive_secs", options.tcp_keepalive_secs),
        ("eviction_interval_secs", options.eviction_interval_secs),
        ("max_tree_size", options.max_tree_size),
        ("prefix_index_bytes", options.prefix_index_bytes),
        (
            "bucket_adjust_interval_secs",
            options.bucket_adjust_interval_secs,
        ),
        ("gateway_replicas", options.gateway_replicas.into()),
        ("cb_failure_threshold", options.cb_failure_threshold.into()),
        ("cb_success_threshold", options.cb_success_threshold.into()),
        ("cb_timeout_duration_secs", options.cb_timeout_duration_secs),
        ("cb_window_duration_secs", options.cb_window_duration_secs),
        ("retry_max_retries", options.retry_max_retries.into()),
        (
            "client_header_timeout_secs",
            options.client_header_timeout_secs,
        ),
        ("client_idle_timeout_secs", options.client_idle_timeout_secs),
        ("client_body_timeout_secs", options.client_body_timeout_secs),
        (
            "client_write_timeout_secs",
            options.client_write_timeout_secs,
        ),
    ];
    let at_least_one = at_least_one
        .into_iter()
        .chain(options.log_max_files.map(|most| ("log_max_files", most)));
    match at_least_one.into_iter().find(|&(_, value)| value == 0) {
        Some((field, value)) => Err(ConfigError::invalid(field, value, "must be at least 1")),
        None => Ok(()),
    }
}

fn check_most(options: &Options) -> Result<(), ConfigError> {
    let at_most = [
        ("prefix_index_bytes", options.prefix_index_bytes, MOST_INDEX),
        (
            "gateway_replicas",
            options.gateway_replicas.into(),
            MOST_GATEWAYS,
        ),
        (
            "tcp_keepalive_secs",
            options.tcp_keepalive_secs,
            MOST_KEEPALIVE,
        ),
    ];
    match at_most.into_iter().find(|(_, value, most)| value > most) {
        Some((field, value, most)) => {
            let why = format!("must be at most {most}");
            Err(ConfigError::invalid(field, value, why))
        }
        None => Ok(()),
    }
}

fn check_headers(options: &Options) -> Result<(), ConfigError> {
    let path: Result<http::uri::PathAndQuery, _> = options.health_check_endpoint.parse();
    if path.is_err() || !options.health_check_endpoint.starts_with('/') {
        let value = format!("{:?}", options.health_check_endpoint);
        let why = "must be a path that starts with /";
        return Err(ConfigError::invalid("health_check_endpoint", value, why));
    }
    if let Some(path) = &options.access_log
        && Path::new(path).file_name().is_none()
    {
        let why = "must name a file, or be - for standard output";
        return Err(ConfigError::invalid("access_log", format!("{path:?}"), why));
    }
    for name in options.request_id_headers.iter().flatten() {
        if http::HeaderName::try_from(name.as_str()).is_err() {
            return Err(ConfigError::invalid(
                "request_id_headers",
                name,
                "is no header name",
            ));
        }
    }
    for origin in &options.cors_allowed_origins {
        AllowedOrigin::parse(origin)
            .map_err(|why| ConfigError::invalid("cors_allowed_origins", origin, why))?;
    }
    Ok(())
}

fn check_buckets(options: &Options) -> Result<(), ConfigError> {
    let Some(buckets) = &options.prometheus_duration_buckets else {
        return Ok(());
    };
    let ascending = buckets.is_sorted_by(|a, b| a < b);
    let usable = buckets
        .iter()
        .all(|bound| bound.is_finite() && *bound > 0.0);
    if buckets.is_empty() || !ascending || !usable {
        let why = "must be a non-empty ascending list of positive numbers";
        return Err(ConfigError::invalid(
            "prometheus_duration_buckets",
            format_args!("{buckets:?}"),
            why,
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use routing::PolicyKind;

    use super::*;

    fn error(options: &Options) -> String {
        check(options).unwrap_err().to_string()
    }

    #[test]
    fn the_defaults_are_valid() {
        check(&Options::default()).unwrap();
    }

    #[test]
    fn a_bad_worker_url_is_named() {
        let options = Options {
            worker_urls: vec!["ftp://x".into()],
            ..Options::default()
        };
        let error = error(&options);
        assert!(error.starts_with("Configuration error: Invalid value for field 'worker_url'"));
        assert!(error.contains("ftp://x"));
    }

    #[test]
    fn a_password_in_a_worker_url_is_not_repeated() {
        for url in ["http://me:s3cret@gpu:1", "https://me:s3cret@gpu:1"] {
            let options = Options {
                worker_urls: vec![url.into()],
                ..Options::default()
            };
            let error = error(&options);
            assert!(error.contains("worker_url") && !error.contains("s3cret"));
        }
    }

    #[test]
    fn every_policy_is_accepted() {
        for policy in PolicyKind::ALL {
            let options = Options {
                policy,
                ..Options::default()
            };
            check(&options).unwrap();
        }
    }

    #[test]
    fn thresholds_out_of_range_are_named() {
        for cache_threshold in [-1.0, 1.5, f64::NAN] {
            let options = Options {
                cache_threshold,
                ..Options::default()
            };
            assert!(error(&options).contains("cache_threshold"));
        }
    }

    #[test]
    fn zero_is_refused_where_it_means_nothing() {
        let options = Options {
            request_timeout_secs: 0,
            ..Options::default()
        };
        assert!(error(&options).contains("request_timeout_secs"));
    }

    #[test]
    fn values_the_system_would_refuse_are_refused_at_start() {
        let options = Options {
            tcp_keepalive_secs: 40_000,
            ..Options::default()
        };
        assert!(error(&options).contains("tcp_keepalive_secs"));
        for endpoint in ["health", "/a b", "/a\r\nx: y", ""] {
            let options = Options {
                health_check_endpoint: endpoint.into(),
                ..Options::default()
            };
            assert!(
                error(&options).contains("health_check_endpoint"),
                "{endpoint:?}"
            );
        }
    }

    #[test]
    fn buckets_must_ascend() {
        for buckets in [vec![], vec![2.0, 1.0], vec![-1.0], vec![f64::NAN]] {
            let options = Options {
                prometheus_duration_buckets: Some(buckets),
                ..Options::default()
            };
            assert!(error(&options).contains("prometheus_duration_buckets"));
        }
    }

    #[test]
    fn a_key_never_shows_in_an_error() {
        let options = Options {
            api_key: Some("\n".to_owned().into()),
            ..Options::default()
        };
        assert!(error(&options).contains("masked"));
    }
}
