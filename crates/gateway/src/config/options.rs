//! Every option: name, type, default, meaning. Order is the positional order of `Router(...)`.

use std::collections::BTreeMap;

use routing::PolicyKind;
use routing::policy::AssignmentMode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::backend::{Backend, HistoryBackend};
use super::{
    ControlPlaneAuth, DiscoveryBy, DiscoveryGroup, LoadPush, OracleConfig, PostgresConfig,
    QueueOrder, RedisConfig, Secret, SharedStateOnFailure,
};

/// Which port serves the page that shows the fleet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FleetPage {
    /// The gateway's own.
    #[default]
    Main,
    /// That of metrics, with the control routes that the page uses.
    Metrics,
    /// None.
    Off,
}

/// Which workers a request whose `model` names none of the served models may go to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ModelMatching {
    /// Any worker, while one model is served; none, once several are.
    #[default]
    Auto,
    /// None: the name must be that of a served model.
    Exact,
    /// Any worker.
    Any,
}

/// Whether clients may control engines through the gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EngineControl {
    /// `SGLang`'s control routes go to the workers.
    #[default]
    On,
    /// There are no such routes.
    Off,
}

/// How the two workers of a pair are given what they share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PdMetadata {
    /// In headers where both are found to obey them, otherwise in the body.
    #[default]
    Auto,
    /// In headers, whatever is found.
    Headers,
    /// In the body.
    Body,
}

/// The least important log lines that are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Everything.
    Debug,
    /// What an operator reads.
    Info,
    /// Trouble. Python spells it `warning`.
    #[serde(alias = "warning")]
    Warn,
    /// Failures.
    Error,
}

macro_rules! options {
    ($($(#[doc = $doc:literal])+ $name:ident: $type:ty = $default:expr;)+) => {
        /// All options, flat, under the names users write.
        #[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
        #[serde(default, deny_unknown_fields)]
        pub struct Options {
            $($(#[doc = $doc])+ pub $name: $type,)+
        }

        impl Default for Options {
            fn default() -> Self {
                Self { $($name: $default,)+ }
            }
        }

        impl Options {
            /// The names, in positional order.
            pub const NAMES: &[&str] = &[$(stringify!($name),)+];

            /// Those that hold a secret: neither shown nor repeated in an error.
            pub const SECRET: &[&str] = &[
                "api_key",
                "oracle_config",
                "postgres_config",
                "redis_config",
                "control_plane_auth",
                "shared_state",
            ];

            /// Whether inference needs a key, so that clients' keys are meant for the gateway.
            pub(crate) fn clients_need_key(&self) -> bool {
                self.api_key.is_some() || self.api_keys_file.is_some()
            }
        }
    };
}

impl From<&Options> for ModelMatching {
    /// Models that come and go by request are matched exactly.
    fn from(options: &Options) -> Self {
        match options.model_matching {
            Self::Auto if options.enable_igw => Self::Exact,
            matching => matching,
        }
    }
}

options! {
    /// Static worker base URLs.
    worker_urls: Vec<String> = Vec::new();
    /// How a worker is chosen; in prefill/decode mode the fallback for both sides.
    policy: PolicyKind = PolicyKind::CacheAware;
    /// Address the gateway listens on.
    host: String = "0.0.0.0".to_owned();
    /// TCP port the gateway listens on; 0 takes a free one.
    port: u16 = 30_000;
    /// How long a worker may take to come up, seconds; afterwards it is retried slowly.
    worker_startup_timeout_secs: u64 = 1800;
    /// Longest pause between start-up probes of a worker, seconds.
    worker_startup_check_interval: u64 = 30;
    /// Share of a prompt (0..1) that must match for `cache_aware` to follow the match.
    cache_threshold: f64 = 0.3;
    /// Load gap, in requests, that counts as imbalance together with the relative one.
    balance_abs_threshold: u64 = 64;
    /// Load ratio (at least 1) that counts as imbalance together with the absolute one.
    balance_rel_threshold: f64 = 1.5;
    /// Pause between sweeps of idle routing state, seconds.
    eviction_interval_secs: u64 = 60;
    /// Prompt text that the prefix index may know, bytes; left alone, only its memory bounds it.
    max_tree_size: u64 = 67_108_864;
    /// Idle time after which `manual` forgets a routing key, seconds.
    max_idle_secs: u64 = 14_400;
    /// How `manual` places a key it has not seen.
    assignment_mode: AssignmentMode = AssignmentMode::Random;
    /// Largest accepted request body, bytes.
    max_payload_size: u64 = 536_870_912;
    /// Schedule per data-parallel rank.
    dp_aware: bool = false;
    /// Key the gateway demands from clients and shows to workers.
    api_key: Option<Secret> = None;
    /// Directory for log files; unset means console only.
    log_dir: Option<String> = None;
    /// Least important log lines written; unset means info.
    log_level: Option<LogLevel> = None;
    /// Watch Kubernetes pods for workers.
    service_discovery: bool = false;
    /// Pod labels of workers.
    selector: BTreeMap<String, String> = BTreeMap::new();
    /// Port of a discovered pod.
    service_discovery_port: u16 = 80;
    /// Namespace to watch; unset means all.
    service_discovery_namespace: Option<String> = None;
    /// Pod labels of prefill workers.
    prefill_selector: BTreeMap<String, String> = BTreeMap::new();
    /// Pod labels of decode workers.
    decode_selector: BTreeMap<String, String> = BTreeMap::new();
    /// Pod annotation that holds the bootstrap port.
    bootstrap_port_annotation: String = "sglang.ai/bootstrap-port".to_owned();
    /// Metrics listener port; unset means 29000 where that is free.
    prometheus_port: Option<u16> = None;
    /// Metrics listener address; unset means 127.0.0.1.
    prometheus_host: Option<String> = None;
    /// Bucket bounds of duration histograms, seconds, ascending.
    prometheus_duration_buckets: Option<Vec<f64>> = None;
    /// Time to a worker's response headers, and longest silence inside a body, seconds.
    request_timeout_secs: u64 = 1800;
    /// How long in-flight requests may finish after a stop signal, seconds.
    shutdown_grace_period_secs: u64 = 180;
    /// Header names searched for an incoming request id.
    request_id_headers: Option<Vec<String>> = None;
    /// Prefill/decode split mode.
    pd_disaggregation: bool = false;
    /// Pause between boundary recalculations of `bucket`, seconds.
    bucket_adjust_interval_secs: u64 = 5;
    /// Prefill servers: URL and bootstrap port.
    prefill_urls: Option<Vec<(String, Option<u16>)>> = None;
    /// Decode servers.
    decode_urls: Option<Vec<String>> = None;
    /// Policy of the prefill pool.
    prefill_policy: Option<PolicyKind> = None;
    /// Policy of the decode pool.
    decode_policy: Option<PolicyKind> = None;
    /// Requests in flight through the gateway, to their last byte; 0 or less means no cap.
    max_concurrent_requests: i32 = -1;
    /// Browser origins allowed; empty means any.
    cors_allowed_origins: Vec<String> = Vec::new();
    /// Attempts per request.
    retry_max_retries: u32 = 5;
    /// First retry delay, milliseconds.
    retry_initial_backoff_ms: u64 = 50;
    /// Longest retry delay, milliseconds.
    retry_max_backoff_ms: u64 = 30_000;
    /// Growth of the retry delay (at least 1).
    retry_backoff_multiplier: f64 = 1.5;
    /// Random share of the retry delay (0..1).
    retry_jitter_factor: f64 = 0.2;
    /// Turn retries off.
    disable_retries: bool = false;
    /// Failures that open a worker's breaker.
    cb_failure_threshold: u32 = 10;
    /// Half-open successes that close it.
    cb_success_threshold: u32 = 3;
    /// How long a breaker stays open, seconds.
    cb_timeout_duration_secs: u64 = 60;
    /// Window in which failures count, seconds.
    cb_window_duration_secs: u64 = 120;
    /// Turn circuit breakers off.
    disable_circuit_breaker: bool = false;
    /// Probe failures in a row that make a worker not ready.
    health_failure_threshold: u32 = 3;
    /// Probe successes in a row that make it ready again.
    health_success_threshold: u32 = 2;
    /// Timeout of one probe, seconds.
    health_check_timeout_secs: u64 = 5;
    /// Pause between probes of a worker, seconds.
    health_check_interval_secs: u64 = 60;
    /// Path probed on a worker.
    health_check_endpoint: String = "/health".to_owned();
    /// Probe no worker once it is up.
    disable_health_check: bool = false;
    /// Multi-model gateway mode: workers come and go by request, models are matched exactly.
    enable_igw: bool = false;
    /// Requests that may wait for a place under a limit, at all gateways of `shared_state` together;
    /// more are refused with 429.
    queue_size: u64 = 100;
    /// Longest wait for a place, seconds; then 408.
    queue_timeout_secs: u64 = 60;
    /// Requests admitted per second; unset, 0 or less means no rate.
    rate_limit_tokens_per_second: Option<i32> = None;
    /// Model id or directory from which a tokenizer is loaded.
    model_path: Option<String> = None;
    /// Tokenizer location; wins over the model path.
    tokenizer_path: Option<String> = None;
    /// Chat template file.
    chat_template: Option<String> = None;
    /// Exact-string tokenizer cache.
    tokenizer_cache_enable_l0: bool = false;
    /// Entries of that cache.
    tokenizer_cache_l0_max_entries: u64 = 10_000;
    /// Prefix tokenizer cache.
    tokenizer_cache_enable_l1: bool = false;
    /// Bytes of that cache.
    tokenizer_cache_l1_max_memory: u64 = 52_428_800;
    /// Reasoning-output parser.
    reasoning_parser: Option<String> = None;
    /// Tool-call parser.
    tool_call_parser: Option<String> = None;
    /// YAML file of MCP servers.
    mcp_config_path: Option<String> = None;
    /// What kind of server stands behind the gateway.
    backend: Backend = Backend::Sglang;
    /// Where responses and conversations are kept.
    history_backend: HistoryBackend = HistoryBackend::Memory;
    /// Oracle store.
    oracle_config: Option<OracleConfig> = None;
    /// PostgreSQL store.
    postgres_config: Option<PostgresConfig> = None;
    /// Redis store.
    redis_config: Option<RedisConfig> = None;
    /// Client certificate shown to workers.
    client_cert_path: Option<String> = None;
    /// Its private key.
    client_key_path: Option<String> = None;
    /// Extra CA files trusted for workers.
    ca_cert_paths: Vec<String> = Vec::new();
    /// Certificate the gateway serves with.
    server_cert_path: Option<String> = None;
    /// Its private key.
    server_key_path: Option<String> = None;
    /// Send OpenTelemetry traces of inference requests.
    enable_trace: bool = false;
    /// Where they go: `[http[s]://]host:port` for OTLP over gRPC; with a path, or port 4318, OTLP
    /// over HTTP.
    otlp_traces_endpoint: String = "localhost:4317".to_owned();
    /// Credentials of the control plane.
    control_plane_auth: Option<ControlPlaneAuth> = None;
    /// Drain rate of a worker's prefill backlog, tokens per second. `cache_aware` counts the backlog
    /// at any value, and assumes no rate.
    cache_aware_prefill_backlog_rate: f64 = 0.0;
    /// Cost of leaving a warm worker (at least 1). `cache_aware` computes it from the load.
    cache_aware_prefill_backlog_hop_factor: f64 = 4.0;
    /// Backlog at which that cost has halved, tokens; computed from the load, too.
    cache_aware_prefill_backlog_hop_scale: f64 = 200_000.0;
    /// Log lines as JSON objects.
    json_log: bool = false;
    /// Longest idle time of a connection to a worker, seconds.
    pool_idle_timeout_secs: u64 = 50;
    /// Longest time to connect to a worker, seconds.
    connect_timeout_secs: u64 = 10;
    /// Idle connections kept per worker.
    pool_max_idle_per_host: usize = 500;
    /// TCP keep-alive of connections to workers, seconds.
    tcp_keepalive_secs: u64 = 30;
    /// WASM middleware.
    enable_wasm: bool = false;
    /// Memory of the prefix index, bytes.
    prefix_index_bytes: u64 = 67_108_864;
    /// Every reply says why it was routed as it was, as if asked with `x-smg-explain`.
    explain_routing: bool = false;
    /// Retries allowed per request, on average: the retry budget.
    retry_budget_ratio: f64 = 0.1;
    /// Retries per second allowed in any case.
    retry_budget_min_per_sec: u32 = 10;
    /// Requests in flight per worker; more wait in the queue. 0 means no cap.
    max_requests_per_worker: u64 = 0;
    /// Rest workers that fail or crawl far more than their peers.
    outlier_ejection: bool = false;
    /// Largest share of the fleet that rests so at a time (0..1); one worker always may.
    outlier_max_ejected_ratio: f64 = 0.2;
    /// Time over which a worker that came back is given its full share again, seconds.
    slow_start_secs: u64 = 10;
    /// How long a worker that is removed may finish what it has, seconds.
    worker_drain_timeout_secs: u64 = 180;
    /// Share the port with another gateway, so that a new process can take over from an old one.
    reuse_port: bool = false;
    /// Pass clients' `x-override-*` headers, which steer SGLang engines, on to workers.
    forward_override_headers: bool = false;
    /// Keep worker URLs and routing details from clients of inference routes, and ignore
    /// `x-smg-target-worker` and `x-smg-explain`.
    hide_routing: bool = false;
    /// Longest time for a request's head, from the connection's start or the head's first byte,
    /// seconds.
    client_header_timeout_secs: u64 = 60;
    /// How long a client's connection may be idle between requests, seconds. Load balancers keep
    /// theirs for up to 600 s and want the other end to keep them for longer.
    client_idle_timeout_secs: u64 = 620;
    /// Longest silence of a client amid a request's body, seconds.
    client_body_timeout_secs: u64 = 60;
    /// How long a client may take nothing of a reply, seconds.
    client_write_timeout_secs: u64 = 60;
    /// Client connections at a time; idle ones are closed for new ones. 0 means half of the
    /// process's file descriptors.
    max_client_connections: u64 = 0;
    /// Memory of all request bodies together, bytes; unset means a quarter of the memory that the
    /// process may have.
    max_buffered_bytes: Option<u64> = None;
    /// Which requests a worker may get whose `model` is none that is served: `auto` is any while
    /// one model is served and none once several are, `exact` none, `any` all.
    model_matching: ModelMatching = ModelMatching::Auto;
    /// SGLang's control routes (weights, memory, pauses, adapters, profiles) for all workers:
    /// `on`, or `off` to have none.
    engine_control: EngineControl = EngineControl::On;
    /// Longest time for a worker to carry out a call of those, seconds.
    engine_control_timeout_secs: u64 = 600;
    /// Tokens that an image in a prompt is taken to have.
    image_tokens: u32 = 1024;
    /// Tokens that a video in a prompt is taken to have.
    video_tokens: u32 = 8192;
    /// Tokens that a recording in a prompt is taken to have.
    audio_tokens: u32 = 1024;
    /// Cut the `x-anthropic-billing-header` line of coding agents, which differs in every request,
    /// out of the system prompts that go to workers.
    strip_billing_header: bool = false;
    /// Silence of a stream of events after which the gateway writes a comment into it, seconds;
    /// before the first event it answers 200 itself. 0 writes none.
    sse_keepalive_secs: u64 = 0;
    /// How both workers of a pair are given room, request id and ranks: in `x-override-*` headers
    /// beside the client's untouched body, or in that body.
    pd_metadata: PdMetadata = PdMetadata::Auto;
    /// CA files: clients must show a certificate of one of them. Needs a server certificate.
    tls_client_ca_paths: Vec<String> = Vec::new();
    /// Name that certificates of `https://` workers must have, also sent to them (SNI); unset
    /// means the host of each worker's URL.
    worker_tls_name: Option<String> = None;
    /// Accept any certificate of `https://` workers: what stands between can then read and change
    /// prompts and answers.
    tls_skip_verify: bool = false;
    /// Speak HTTP/2 to workers that offer it: over TLS by ALPN, without TLS where `/server_info`
    /// says `enable_http2`. What a client does not take is then buffered here, up to 16 MiB.
    upstream_http2: bool = false;
    /// File of the access log, a JSON object per request; `-` is standard output. Unset means none.
    access_log: Option<String> = None;
    /// Daily files that `log_dir` and `access_log` keep each; unset means all.
    log_max_files: Option<u64> = None;
    /// File to which a JSON object is appended for every call that shows or changes the fleet or
    /// its engines, refused ones included.
    audit_log: Option<String> = None;
    /// File of keys for inference: a JSON list of objects with `name`, `key` and limits, read again
    /// when it changes.
    api_keys_file: Option<String> = None;
    /// What names the model of a discovered pod: `namespace`, `label:KEY` or `annotation:KEY`. Unset
    /// means what the worker reports.
    model_id_from: Option<String> = None;
    /// File with a list of workers, YAML or JSON, read again when it changes.
    discovery_file: Option<String> = None;
    /// Share of traces that are recorded (0..1). It decides for requests without a valid
    /// `traceparent`; the others follow the flag in theirs.
    trace_sample_ratio: f64 = 1.0;
    /// Configuration file, YAML or JSON: every option by its name. What is given elsewhere wins.
    config: Option<String> = None;
    /// Read the configuration file again when it changes; otherwise by `POST /reload` and SIGHUP.
    config_watch: bool = false;
    /// Which port serves the page at `/debug/fleet`: `main`, `metrics`, or `off` for none.
    fleet_page: FleetPage = FleetPage::Main;
    /// Pods of several kinds: of other namespaces, selectors, models. What a group leaves out is what
    /// the other options of service discovery say.
    service_discovery_groups: Vec<DiscoveryGroup> = Vec::new();
    /// What the API server is asked for to find workers.
    service_discovery_by: DiscoveryBy = DiscoveryBy::Pods;
    /// Name of the port of a discovered pod, in the pod or the service; unset means
    /// `service_discovery_port`.
    service_discovery_port_name: Option<String> = None;
    /// The gateway's own zone.
    zone: Option<String> = None;
    /// What a request may wait longer in the own zone before it leaves it, in tokens of prefill.
    zone_crossing_cost: u64 = 1024;
    /// Zones of workers that options name, by URL.
    worker_zones: BTreeMap<String, String> = BTreeMap::new();
    /// The order in which requests that wait are served.
    queue_order: QueueOrder = QueueOrder::Fifo;
    /// Share of the tokens that batch requests get while interactive ones wait, too (0..0.5).
    queue_batch_share: f64 = 0.1;
    /// Once a batch request has waited so long, every second turn is one of its class, seconds.
    queue_starvation_secs: u64 = 30;
    /// Pod label that holds a worker's zone.
    service_discovery_zone_label: String = "topology.kubernetes.io/zone".to_owned();
    /// Pause between questions to each worker for its load (`/v1/loads`), seconds; 0 asks none.
    load_poll_interval_secs: u64 = 0;
    /// File of the recording of inference requests, without their text; unset means none.
    record: Option<String> = None;
    /// Size at which the next file of the recording begins, MiB.
    record_max_mb: u64 = 64;
    /// Files of the recording that are kept.
    record_max_files: u64 = 8;
    /// Share of sessions that are recorded (above 0, up to 1).
    record_sample: f64 = 1.0;
    /// Tokens of a block whose hash is recorded: 16, 32, 64, 128, 256 or 512.
    record_block_tokens: u32 = 512;
    /// Whether to listen to workers that publish their load: `auto` where they say so in
    /// `/server_info`, or `off`.
    load_push: LoadPush = LoadPush::Auto;
    /// URL of a Redis or Valkey server, `redis://` or `rediss://`, or of sentinels, `redis+sentinel://`,
    /// where gateways in front of the same workers share placements, loads, limits and routing keys.
    /// Unset: each knows only its own.
    shared_state: Option<Secret> = None;
    /// Gateways in front of the same workers that share nothing, this one included: `cache_aware` takes
    /// the fleet for so many times as busy as it sees it.
    gateway_replicas: u32 = 1;
    /// What of a shared limit a gateway applies while `shared_state` cannot be reached: `local`,
    /// its part by the last known number of gateways; `open`, all of it; `closed`, none.
    shared_state_on_failure: SharedStateOnFailure = SharedStateOnFailure::Local;
}

impl Options {
    /// The names of the options that another set has otherwise.
    pub(super) fn differing(&self, other: &Self) -> Vec<&'static str> {
        let as_json = |options: &Self| serde_json::to_value(options).unwrap_or_default();
        let (one, another) = (as_json(self), as_json(other));
        let names = Self::NAMES.iter().copied();
        names.filter(|name| one[*name] != another[*name]).collect()
    }

    /// A copy in which every secret reads `MASKED`.
    pub(crate) fn masked(&self) -> Self {
        let mut masked = self.clone();
        let mask = |secret: &mut Secret| *secret = Secret::from("MASKED".to_owned());
        masked.api_key.iter_mut().for_each(mask);
        masked.shared_state.iter_mut().for_each(mask);
        let oracle = masked.oracle_config.as_mut();
        let oracle = oracle.and_then(|config| config.password.as_mut());
        let postgres = masked.postgres_config.as_mut();
        let postgres = postgres.and_then(|config| config.db_url.as_mut());
        let redis = masked.redis_config.as_mut().map(|config| &mut config.url);
        oracle
            .into_iter()
            .chain(postgres)
            .chain(redis)
            .for_each(mask);
        let control_plane = masked.control_plane_auth.iter_mut();
        let keys = control_plane.flat_map(|auth| auth.api_keys.iter_mut());
        keys.for_each(|entry| mask(&mut entry.key));
        masked
    }
}
