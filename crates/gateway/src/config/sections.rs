//! The options of each module, in the types it works with.

use std::time::Duration;

use routing::policy::Balance;
use routing::{BreakerRules, FairRules, MediaTokens, Params, RetryRules, Thresholds};

use super::fairness::fair_rules;
use super::{AllowedOrigin, EngineControl, FleetPage, LoadPush, Options, PdMetadata};

/// No time is longer: "never" is spelt with large numbers, and sums of times must not overflow.
const LONGEST: Duration = Duration::from_hours(24 * 365);

/// File descriptors for all but clients and their requests.
const RESERVED_DESCRIPTORS: u64 = 64;

/// How long the gateway's own calls keep a connection that the next probe would not find any more.
const BETWEEN_CALLS: Duration = Duration::from_secs(10);

/// How connections to workers are kept.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionSection {
    pub(crate) idle_timeout: Duration,
    /// The same of the gateway's own calls: no longer than it is of use, for with hundreds of
    /// workers these connections take most of the gateway's memory.
    pub(crate) control_idle_timeout: Duration,
    pub(crate) max_idle_per_host: usize,
    pub(crate) connect_timeout: Duration,
    pub(crate) tcp_keepalive: Duration,
    /// Workers that offer HTTP/2 are spoken to in it.
    pub(crate) http2: bool,
}

/// How workers are probed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HealthSection {
    /// Path of a probe.
    pub(crate) path: String,
    pub(crate) interval: Duration,
    pub(crate) startup_timeout: Duration,
    pub(crate) startup_interval: Duration,
    pub(crate) thresholds: Thresholds,
    /// Workers are probed once they are up, too, unless their own settings differ.
    pub(crate) enabled: bool,
    /// What makes it worth asking workers of pairs whether they obey headers.
    pub(crate) pd_metadata: PdMetadata,
}

/// How the fleet treats its workers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FleetSection {
    /// Time over which a worker that came back gets its full share again.
    pub(crate) slow_start: Duration,
    /// Workers are probed unless their own settings differ: after a failed connection a
    /// worker gets requests only if no other can take them, until a probe has passed.
    pub(crate) health_checks: bool,
    /// How long a draining worker may finish what it has.
    pub(crate) drain_timeout: Duration,
    /// Largest share of workers ejected at a time; `None` where workers are not compared.
    pub(crate) max_ejected: Option<f64>,
    /// `None` when circuit breakers are off.
    pub(crate) breaker: Option<BreakerRules>,
    /// Clients need a key, so workers usually do, too.
    pub(crate) clients_need_key: bool,
    /// Every data-parallel rank of a worker is a worker of its own.
    pub(crate) ranks_apart: bool,
}

/// What is asked of workers about their loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LoadSection {
    /// `None` where nothing is asked.
    pub(crate) poll_interval: Option<Duration>,
    /// Whether workers that publish their loads are listened to.
    pub(crate) push: LoadPush,
}

/// Limits on what clients may have in progress, and the queue in front of them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AdmissionSection {
    pub(crate) max_concurrent_requests: Option<usize>,
    /// Requests per second.
    pub(crate) rate: Option<usize>,
    /// Requests in flight per worker.
    pub(crate) max_requests_per_worker: Option<usize>,
    /// Requests that may wait.
    pub(crate) queue_size: usize,
    /// Longest wait.
    pub(crate) queue_timeout: Duration,
    /// How the order is fair; `None` where it is that of arrival.
    pub(crate) fair: Option<FairRules>,
}

/// How requests are carried.
#[derive(Clone, Debug)]
pub(crate) struct ProxySection {
    /// Largest request body, bytes.
    pub(crate) max_payload: u64,
    /// Longest silence of a client amid its body.
    pub(crate) body_timeout: Duration,
    /// Memory of all bodies, bytes.
    pub(crate) max_buffered: u64,
    pub(crate) lanes: usize,
    /// Retries that are granted per request decided, over the last seconds.
    pub(crate) retry_budget_ratio: f64,
    /// Retries per second that are always granted.
    pub(crate) retry_budget_floor: u32,
    /// Clients may send engines `x-override-*`.
    pub(crate) forward_overrides: bool,
    /// Clients neither see nor choose workers.
    pub(crate) hide_routing: bool,
    /// What media in prompts weigh.
    pub(crate) media_tokens: MediaTokens,
    /// Workers get no billing headers of coding agents.
    pub(crate) strip_billing_header: bool,
    /// How the workers of a pair get what the gateway adds.
    pub(crate) pd_metadata: PdMetadata,
}

/// What the connections of clients may take.
#[derive(Clone, Debug)]
pub(crate) struct ClientSection {
    pub(crate) header_timeout: Duration,
    pub(crate) idle_timeout: Duration,
    pub(crate) write_timeout: Duration,
    /// The same while the gateway drains: a client that reads nothing is not waited for to the
    /// end of the grace period.
    pub(crate) write_timeout_in_drain: Duration,
    /// Connections at a time.
    pub(crate) max_connections: usize,
}

impl ClientSection {
    /// Limits in a process that may have so many file descriptors.
    pub(crate) fn new(options: &Options, descriptors: u64) -> Self {
        let asked = options.max_client_connections;
        // A request needs two: one for the client, one for the worker; the process some more.
        let share = (descriptors / 2).saturating_sub(RESERVED_DESCRIPTORS);
        let share = share.max(descriptors / 4).max(1);
        let most = if asked == 0 { share } else { asked };
        let write_timeout = seconds(options.client_write_timeout_secs);
        let half_grace = seconds(options.shutdown_grace_period_secs) / 2;
        Self {
            header_timeout: seconds(options.client_header_timeout_secs),
            idle_timeout: seconds(options.client_idle_timeout_secs),
            write_timeout,
            write_timeout_in_drain: write_timeout.min(half_grace),
            max_connections: usize::try_from(most).unwrap_or(usize::MAX),
        }
    }
}

/// Whether clients learn which worker an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkerNames {
    Shown,
    Hidden,
}

/// What clients see of the gateway itself.
#[derive(Clone, Debug)]
pub(crate) struct ServerSection {
    /// Empty means any.
    pub(crate) cors_allowed_origins: Vec<AllowedOrigin>,
    pub(crate) request_id_headers: Option<Vec<String>>,
    /// Whether errors name workers.
    pub(crate) worker_names: WorkerNames,
    pub(crate) engine_control: EngineControl,
    pub(crate) fleet_page: FleetPage,
}

/// An option in seconds as a time that can be counted with.
pub(crate) fn seconds(option: u64) -> Duration {
    Duration::from_secs(option).min(LONGEST)
}

/// How often a request is sent, and after which pauses.
pub(super) fn retry_rules(options: &Options) -> RetryRules {
    RetryRules {
        attempts: if options.disable_retries {
            1
        } else {
            options.retry_max_retries.max(1)
        },
        initial_backoff: Duration::from_millis(options.retry_initial_backoff_ms),
        max_backoff: Duration::from_millis(options.retry_max_backoff_ms),
        multiplier: options.retry_backoff_multiplier,
        jitter: options.retry_jitter_factor,
    }
}

impl From<&Options> for ConnectionSection {
    fn from(options: &Options) -> Self {
        let idle_timeout = Duration::from_secs(options.pool_idle_timeout_secs);
        let probed_again = !options.disable_health_check
            && options.health_check_interval_secs < options.pool_idle_timeout_secs;
        Self {
            control_idle_timeout: if probed_again {
                idle_timeout
            } else {
                idle_timeout.min(BETWEEN_CALLS)
            },
            idle_timeout,
            max_idle_per_host: options.pool_max_idle_per_host,
            connect_timeout: Duration::from_secs(options.connect_timeout_secs),
            tcp_keepalive: Duration::from_secs(options.tcp_keepalive_secs),
            http2: options.upstream_http2,
        }
    }
}

impl From<&Options> for HealthSection {
    fn from(options: &Options) -> Self {
        Self {
            path: options.health_check_endpoint.clone(),
            interval: seconds(options.health_check_interval_secs),
            startup_timeout: seconds(options.worker_startup_timeout_secs),
            startup_interval: seconds(options.worker_startup_check_interval),
            thresholds: Thresholds {
                failure: options.health_failure_threshold,
                success: options.health_success_threshold,
            },
            enabled: !options.disable_health_check,
            pd_metadata: options.pd_metadata,
        }
    }
}

impl From<&Options> for FleetSection {
    fn from(options: &Options) -> Self {
        let breaker = || BreakerRules {
            failures: options.cb_failure_threshold,
            successes: options.cb_success_threshold,
            open_for: Duration::from_secs(options.cb_timeout_duration_secs),
            window: Duration::from_secs(options.cb_window_duration_secs),
        };
        let ejection = options.outlier_ejection;
        Self {
            slow_start: seconds(options.slow_start_secs),
            health_checks: !options.disable_health_check,
            drain_timeout: seconds(options.worker_drain_timeout_secs),
            max_ejected: ejection.then_some(options.outlier_max_ejected_ratio),
            breaker: (!options.disable_circuit_breaker).then(breaker),
            clients_need_key: options.clients_need_key(),
            ranks_apart: options.dp_aware,
        }
    }
}

impl From<&Options> for LoadSection {
    fn from(options: &Options) -> Self {
        let interval = options.load_poll_interval_secs;
        Self {
            poll_interval: (interval > 0).then(|| seconds(interval)),
            push: options.load_push,
        }
    }
}

impl From<&Options> for AdmissionSection {
    fn from(options: &Options) -> Self {
        let positive = |number: i32| usize::try_from(number).ok().filter(|number| *number > 0);
        let per_worker = options.max_requests_per_worker;
        let per_worker = usize::try_from(per_worker).unwrap_or(usize::MAX);
        Self {
            max_concurrent_requests: positive(options.max_concurrent_requests),
            rate: options.rate_limit_tokens_per_second.and_then(positive),
            max_requests_per_worker: Some(per_worker).filter(|most| *most > 0),
            queue_size: usize::try_from(options.queue_size).unwrap_or(usize::MAX),
            queue_timeout: seconds(options.queue_timeout_secs),
            fair: fair_rules(options),
        }
    }
}

impl ProxySection {
    /// How requests are carried by a process that may have so many bytes of memory.
    pub(crate) fn new(options: &Options, memory: u64, lanes: usize) -> Self {
        Self {
            lanes,
            max_payload: options.max_payload_size,
            body_timeout: seconds(options.client_body_timeout_secs),
            max_buffered: options.max_buffered_bytes.unwrap_or(memory / 4),
            retry_budget_ratio: options.retry_budget_ratio,
            retry_budget_floor: options.retry_budget_min_per_sec,
            forward_overrides: options.forward_override_headers,
            hide_routing: options.hide_routing,
            media_tokens: MediaTokens {
                image: options.image_tokens,
                video: options.video_tokens,
                audio: options.audio_tokens,
            },
            strip_billing_header: options.strip_billing_header,
            pd_metadata: options.pd_metadata,
        }
    }
}

impl From<&Options> for ServerSection {
    fn from(options: &Options) -> Self {
        let origins = &options.cors_allowed_origins;
        let origins = origins.iter().map(|origin| AllowedOrigin::parse(origin));
        Self {
            cors_allowed_origins: origins.filter_map(Result::ok).collect(),
            request_id_headers: options.request_id_headers.clone(),
            engine_control: options.engine_control,
            fleet_page: options.fleet_page,
            worker_names: if options.hide_routing {
                WorkerNames::Hidden
            } else {
                WorkerNames::Shown
            },
        }
    }
}

/// The tunables of all policies.
///
/// The guards of `cache_aware` are on only when an option sets them: left at their defaults
/// they would cost latency and gain nothing, because its costs already weigh both.
impl From<&Options> for Params {
    fn from(options: &Options) -> Self {
        let unset = Options::default();
        #[expect(
            clippy::float_cmp,
            reason = "asks whether the value was touched, not how near it is"
        )]
        let threshold_set = options.cache_threshold != unset.cache_threshold;
        #[expect(
            clippy::float_cmp,
            reason = "asks whether the value was touched, not how near it is"
        )]
        let balance_set = options.balance_rel_threshold != unset.balance_rel_threshold
            || options.balance_abs_threshold != unset.balance_abs_threshold;
        let tree_set = options.max_tree_size != unset.max_tree_size;
        Self {
            index_bytes: usize::try_from(options.prefix_index_bytes).unwrap_or(usize::MAX),
            index_text: tree_set.then_some(options.max_tree_size),
            cache_threshold: threshold_set.then_some(options.cache_threshold),
            balance: balance_set.then_some(Balance {
                relative: options.balance_rel_threshold,
                absolute: options.balance_abs_threshold,
            }),
            bucket_adjust_interval: Duration::from_secs(options.bucket_adjust_interval_secs),
            assignment: options.assignment_mode,
            max_idle: Duration::from_secs(options.max_idle_secs),
            gateways: options.gateway_replicas,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probe_connections_are_kept_only_where_the_next_probe_finds_them() {
        let kept = |interval, disable_health_check| {
            let options = Options {
                health_check_interval_secs: interval,
                disable_health_check,
                ..Options::default()
            };
            let section = ConnectionSection::from(&options);
            section.control_idle_timeout.as_secs()
        };
        assert_eq!([kept(60, false), kept(20, true)], [10, 10]);
        assert_eq!(kept(20, false), 50);
    }

    #[test]
    fn guards_are_off_until_they_are_set() {
        let params = Params::from(&Options::default());
        assert_eq!((params.cache_threshold, params.balance), (None, None));
        let options = Options {
            cache_threshold: 0.5,
            balance_abs_threshold: 8,
            ..Options::default()
        };
        let params = Params::from(&options);
        assert_eq!(params.cache_threshold, Some(0.5));
        assert_eq!(
            params.balance,
            Some(Balance {
                relative: 1.5,
                absolute: 8
            })
        );
    }
}
