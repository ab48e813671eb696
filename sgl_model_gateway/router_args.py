"""`RouterArgs`: every option of the gateway, one line each. Flags and keywords follow from it.

The Rust side owns names, types and defaults (`crates/gateway/src/config/options.rs`); a test holds this
table to it.
"""

# ruff: noqa: E501 -- one line per option

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from ._options import values
from ._options.flags import add_flags, differs, given_fields, option, read_namespace
from ._options.names import (
    get_available_tool_call_parsers as get_available_tool_call_parsers,  # programs import it from here
)
from ._options.names import option_choices

logger = logging.getLogger(__name__)

WORKER = "Worker Configuration"
POLICY = "Routing Policy"
PD = "PD Disaggregation"
LOGGING = "Logging"
DISCOVERY = "Service Discovery (Kubernetes)"
METRICS = "Prometheus Metrics"
REQUEST = "Request Handling"
LIMIT = "Rate Limiting"
RETRY = "Retry Configuration"
BREAKER = "Circuit Breaker"
HEALTH = "Health Checks"
TOKENIZER = "Tokenizer"
PARSER = "Parsers"
BACKEND = "Backend"
ORACLE = "Oracle Database"
POSTGRES = "PostgreSQL Database"
REDIS = "Redis Database"
TLS = "TLS/mTLS Security"
TRACE = "Tracing (OpenTelemetry)"
AUTH = "Control Plane Authentication"


class _FlagsGiven:
    """Remembers which flags were typed, in a slot: `vars` and comparisons know fields only."""

    __slots__ = ("_flags_given",)
    _flags_given: frozenset[str]


@dataclass
class RouterArgs(_FlagsGiven):
    """The options, flat. Nothing is checked here; `Router` does that.

    Usage:

        args = RouterArgs(worker_urls=["http://gpu-1:30000"], policy="round_robin", request_timeout_secs=600)
        launch_router(args)

    Flags of another program, `--router-...` there:

        RouterArgs.add_cli_args(parser, use_router_prefix=True, exclude_host_port=True)
        args = RouterArgs.from_cli_args(parser.parse_args(), use_router_prefix=True)

    Fields hold what their help says, in the unit of their name: seconds (`_secs`), milliseconds (`_ms`), bytes.
    `prefill_urls` are pairs of a base URL and a bootstrap port or `None`; `control_plane_api_keys` are
    `(id, name, key, role)`.

    The order of fields is the positional order. `keyword=False` marks what the Rust `Router` does not take as
    it is: those fields become configuration objects, or are for Python alone.
    """

    # In the order of `--help`: what most gateways need comes first.
    GROUPS: ClassVar[tuple[str, ...]] = (
        *(WORKER, POLICY, PD, DISCOVERY, HEALTH, BREAKER, RETRY, LIMIT, REQUEST, METRICS),
        *(LOGGING, TRACE, TLS, AUTH, BACKEND, TOKENIZER, PARSER, ORACLE, POSTGRES, REDIS),
    )

    # fmt: off
    worker_urls: list[str] = option([], WORKER, "base URLs of workers known from the start, http://host:port", nargs="*", prefixed=False)
    host: str = option("0.0.0.0", WORKER, "address the gateway listens on; IPv6 in brackets")
    port: int = option(30000, WORKER, "TCP port the gateway listens on; 0 takes a free one")
    mini_lb: bool = option(False, PD, "run the pure-Python balancer for debugging instead of the gateway", keyword=False)
    pd_disaggregation: bool = option(False, PD, "route prefill and decode to separate pools of workers")
    prefill_urls: list[tuple[str, int | None]] = option([], PD, "a prefill worker: its URL, then its bootstrap port or the word none; repeatable", name="prefill", cli_default=None, nargs="+", append=True, metavar=("URL", "PORT|none"), parse=values.prefill_urls)
    decode_urls: list[str] = option([], PD, "a decode worker; repeatable", name="decode", cli_default=None, nargs=1, append=True, metavar="URL", parse=values.decode_urls)
    policy: str = option("cache_aware", POLICY, "how a worker is chosen; the fallback of both pools in prefill/decode mode")
    prefill_policy: str | None = option(None, POLICY, "how a prefill worker is chosen; unset means --policy")
    decode_policy: str | None = option(None, POLICY, "how a decode worker is chosen; unset means --policy")
    worker_startup_timeout_secs: int = option(1800, PD, "seconds a worker may take to come up; it is retried slowly afterwards")
    worker_startup_check_interval: int = option(30, PD, "longest pause between start-up probes of a worker, seconds")
    cache_threshold: float = option(0.3, POLICY, "cache_aware: other than 0.3, a match of a smaller share of the prompt (0..1) is no affinity", metavar="RATIO")
    balance_abs_threshold: int = option(64, POLICY, "cache_aware: unless both are at their default, a worker with more than least x relative + this many requests is passed over; bucket: gap in prompt bytes")
    balance_rel_threshold: float = option(1.5, POLICY, "the factor (at least 1) of that rule; bucket: ratio of prompt bytes", metavar="RATIO")
    eviction_interval_secs: int = option(60, POLICY, "seconds between clean-ups of routing state (manual: idle keys; cache_aware: stale prefixes)")
    max_tree_size: int = option(67108864, POLICY, "cache_aware: prompt text the prefix index may know, bytes; left alone, only --prefix-index-bytes bounds it", metavar="BYTES")
    max_idle_secs: int = option(14400, POLICY, "manual: seconds after which an idle routing key is forgotten")
    assignment_mode: str = option("random", POLICY, "manual: how a key not seen before is placed")
    max_payload_size: int = option(536870912, POLICY, "largest accepted request body, bytes", metavar="BYTES")
    bucket_adjust_interval_secs: int = option(5, POLICY, "bucket: seconds between recalculations of the boundaries")
    dp_aware: bool = option(False, POLICY, "schedule on every data-parallel rank of a worker instead of the worker")
    enable_igw: bool = option(False, POLICY, "serve several models whose workers come and go by request: as --model-matching exact")
    api_key: str | None = option(None, AUTH, "key demanded from clients, and sent to the workers of --worker-urls and to discovered ones", secret=True)
    log_dir: str | None = option(None, LOGGING, "directory for log files; unset means the console only")
    log_level: str | None = option(None, LOGGING, "least important log lines that are written", cli_default="info")
    service_discovery: bool = option(False, DISCOVERY, "find workers by watching Kubernetes pods, which needs --selector, or --prefill-selector and --decode-selector; --worker-urls are not used then")
    selector: dict[str, str] = option({}, DISCOVERY, "labels of worker pods, key=value each", nargs="+", parse=values.selector, metavar="KEY=VALUE")
    service_discovery_port: int = option(80, DISCOVERY, "port on which a discovered pod serves, unless its annotation smg.ai/worker-ports names others")
    service_discovery_namespace: str | None = option(None, DISCOVERY, "namespace to watch; unset means all, which needs a ClusterRole", metavar="NAME")
    prefill_selector: dict[str, str] = option({}, DISCOVERY, "labels of prefill pods, key=value each", nargs="+", parse=values.selector, metavar="KEY=VALUE")
    decode_selector: dict[str, str] = option({}, DISCOVERY, "labels of decode pods, key=value each", nargs="+", parse=values.selector, metavar="KEY=VALUE")
    bootstrap_port_annotation: str = option("sglang.ai/bootstrap-port", DISCOVERY, "pod annotation that holds a prefill worker's bootstrap port")
    prometheus_port: int | None = option(None, METRICS, "port of the metrics listener; unset means 29000, or none with a warning where that is taken")
    prometheus_host: str | None = option(None, METRICS, "address of the metrics listener", cli_default="0.0.0.0")
    prometheus_duration_buckets: list[float] | None = option(None, METRICS, "bounds of the duration histograms, seconds, ascending", nargs="+")
    request_id_headers: list[str] | None = option(None, REQUEST, "headers searched for the request id a client sends", nargs="*", metavar="HEADER")
    request_timeout_secs: int = option(1800, REQUEST, "seconds a worker may take to start an answer, or stay silent within one")
    shutdown_grace_period_secs: int = option(180, REQUEST, "seconds that requests in flight may take after a stop signal")
    max_concurrent_requests: int = option(-1, LIMIT, "requests in flight, to the last byte of their replies; 0 or less means no limit")
    queue_size: int = option(100, LIMIT, "requests that may wait once a limit is reached, with --shared-state at all gateways together; more get 429, 0 turns all away at once")
    queue_timeout_secs: int = option(60, LIMIT, "longest wait in that queue, seconds; then 408")
    rate_limit_tokens_per_second: int | None = option(None, LIMIT, "requests admitted per second; unset, 0 or less means no rate")
    cors_allowed_origins: list[str] = option([], REQUEST, "browser origins that may call; none given means any, but for routes that show or change the fleet", nargs="*", metavar="ORIGIN")
    retry_max_retries: int = option(5, RETRY, "attempts per request (at least 1)")
    retry_initial_backoff_ms: int = option(50, RETRY, "pause before the first retry, milliseconds")
    retry_max_backoff_ms: int = option(30000, RETRY, "longest pause before a retry, milliseconds")
    retry_backoff_multiplier: float = option(1.5, RETRY, "growth of that pause from retry to retry (at least 1)", metavar="FACTOR")
    retry_jitter_factor: float = option(0.2, RETRY, "random share of that pause (0..1)", metavar="RATIO")
    disable_retries: bool = option(False, RETRY, "never retry")
    health_failure_threshold: int = option(3, HEALTH, "probe failures in a row that take a worker out")
    health_success_threshold: int = option(2, HEALTH, "probe successes in a row that bring it back")
    health_check_timeout_secs: int = option(5, HEALTH, "seconds a probe may take")
    health_check_interval_secs: int = option(60, HEALTH, "seconds between probes of a worker")
    health_check_endpoint: str = option("/health", HEALTH, "path that is probed", metavar="PATH")
    disable_health_check: bool = option(False, HEALTH, "never probe a worker once it is up")
    cb_failure_threshold: int = option(10, BREAKER, "failures in a row that open a worker's breaker")
    cb_success_threshold: int = option(3, BREAKER, "successes on trial that close it")
    cb_timeout_duration_secs: int = option(60, BREAKER, "seconds it stays open before a trial")
    cb_window_duration_secs: int = option(120, BREAKER, "seconds after which a failure no longer counts")
    disable_circuit_breaker: bool = option(False, BREAKER, "never take a worker out for its failures")
    model_path: str | None = option(None, TOKENIZER, "model id or directory to load a tokenizer from", metavar="MODEL")
    tokenizer_path: str | None = option(None, TOKENIZER, "tokenizer to load; wins over --model-path")
    chat_template: str | None = option(None, TOKENIZER, "chat template file", metavar="PATH")
    tokenizer_cache_enable_l0: bool = option(False, TOKENIZER, "cache tokens of whole texts")
    tokenizer_cache_l0_max_entries: int = option(10000, TOKENIZER, "entries of that cache")
    tokenizer_cache_enable_l1: bool = option(False, TOKENIZER, "cache tokens of prefixes")
    tokenizer_cache_l1_max_memory: int = option(52428800, TOKENIZER, "size of that cache, bytes", metavar="BYTES")
    reasoning_parser: str | None = option(None, PARSER, "parser that separates reasoning from the answer")
    tool_call_parser: str | None = option(None, PARSER, "parser that finds tool calls in the answer")
    mcp_config_path: str | None = option(None, PARSER, "YAML file that lists MCP servers")
    backend: str = option("sglang", BACKEND, "what stands behind the gateway: SGLang workers, or a vendor with an OpenAI API")
    history_backend: str = option("memory", BACKEND, "where responses and conversations are kept")
    oracle_wallet_path: str | None = option(None, ORACLE, "directory of the wallet", env="ATP_WALLET_PATH", keyword=False)
    oracle_tns_alias: str | None = option(None, ORACLE, "TNS alias; wins over the descriptor", env="ATP_TNS_ALIAS", keyword=False, metavar="NAME")
    oracle_connect_descriptor: str | None = option(None, ORACLE, "connect descriptor (DSN)", env="ATP_DSN", keyword=False, metavar="DSN")
    oracle_username: str | None = option(None, ORACLE, "database user", env="ATP_USER", keyword=False, metavar="NAME")
    oracle_password: str | None = option(None, ORACLE, "database password", env="ATP_PASSWORD", secret=True, keyword=False)
    oracle_pool_min: int = option(1, ORACLE, "connections kept open", env="ATP_POOL_MIN", keyword=False)
    oracle_pool_max: int = option(16, ORACLE, "connections at most", env="ATP_POOL_MAX", keyword=False)
    oracle_pool_timeout_secs: int = option(30, ORACLE, "longest wait for a connection, seconds", env="ATP_POOL_TIMEOUT_SECS", keyword=False)
    postgres_db_url: str | None = option(None, POSTGRES, "connection URL", env="POSTGRES_DB_URL", secret=True, keyword=False)
    postgres_pool_max: int = option(16, POSTGRES, "connections at most", env="POSTGRES_POOL_MAX", keyword=False)
    redis_url: str | None = option(None, REDIS, "connection URL", env="REDIS_URL", secret=True, keyword=False)
    redis_pool_max: int = option(16, REDIS, "connections at most", env="REDIS_POOL_MAX", keyword=False)
    redis_retention_days: int = option(30, REDIS, "days a record is kept; less than 0 means for ever", env="REDIS_RETENTION_DAYS", keyword=False)
    client_cert_path: str | None = option(None, TLS, "certificate shown to workers (mTLS)")
    client_key_path: str | None = option(None, TLS, "its private key")
    ca_cert_paths: list[str] = option([], TLS, "further CA files that workers' certificates may come from", nargs="*")
    server_cert_path: str | None = option(None, TLS, "certificate the gateway serves with", name="tls_cert_path")
    server_key_path: str | None = option(None, TLS, "its private key", name="tls_key_path")
    enable_trace: bool = option(False, TRACE, "send OpenTelemetry traces of inference requests")
    otlp_traces_endpoint: str = option("localhost:4317", TRACE, "collector: [http[s]://]HOST:PORT for OTLP over gRPC; with a path, or port 4318, OTLP over HTTP", metavar="ENDPOINT")
    control_plane_api_keys: list[tuple[str, str, str, str]] = option([], AUTH, "keys of the admin API, id:name:role:key each, role admin or user", nargs="*", secret=True, parse=values.control_plane_api_keys, keyword=False, metavar="ID:NAME:ROLE:KEY")
    control_plane_audit_enabled: bool = option(False, AUTH, "log every call of the admin API as a JSON object to the standard error; --audit-log names a file instead", keyword=False)
    jwt_issuer: str | None = option(None, AUTH, "OIDC issuer whose tokens the admin API accepts; needs --jwt-audience", keyword=False, metavar="URL")
    jwt_audience: str | None = option(None, AUTH, "audience such a token must have; needs --jwt-issuer", keyword=False)
    jwt_jwks_uri: str | None = option(None, AUTH, "where the issuer's keys are; unset means OIDC discovery", keyword=False)
    jwt_role_mapping: dict[str, str] = option({}, AUTH, "roles of the issuer, theirs=ours each, ours admin or user", cli_default=[], nargs="*", parse=values.jwt_role_mapping, keyword=False, metavar="THEIRS=OURS")
    # Options younger than the 0.3.2 interface, appended so that positions stay.
    cache_aware_prefill_backlog_rate: float = option(0.0, POLICY, "drain rate of a worker's prefill backlog, tokens per second; accepted: cache_aware counts the backlog at any value and assumes no rate", metavar="TOKENS")
    cache_aware_prefill_backlog_hop_factor: float = option(4.0, POLICY, "cost of leaving a warm worker (at least 1); accepted: cache_aware computes it from the load", metavar="FACTOR")
    cache_aware_prefill_backlog_hop_scale: float = option(200000.0, POLICY, "backlog, in tokens, at which that cost has halved; accepted: cache_aware computes the cost from the load", metavar="TOKENS")
    test_external_dp_routing: bool = option(False, PD, "choose data-parallel ranks at random and check them (--mini-lb only)", keyword=False)
    json_log: bool = option(False, LOGGING, "write log lines as JSON objects")
    pool_idle_timeout_secs: int = option(50, REQUEST, "seconds an idle connection to a worker is kept")
    connect_timeout_secs: int = option(10, REQUEST, "longest time to connect to a worker, seconds")
    pool_max_idle_per_host: int = option(500, REQUEST, "idle connections kept per worker", metavar="N")
    tcp_keepalive_secs: int = option(30, REQUEST, "TCP keep-alive of connections to workers, seconds")
    enable_wasm: bool = option(False, REQUEST, "run WASM middleware")
    jwt_role_claim: str = option("roles", AUTH, "claim that holds the role", keyword=False)
    prefix_index_bytes: int = option(67108864, POLICY, "memory of the cache_aware prefix index, bytes")
    explain_routing: bool = option(False, POLICY, "say on every reply why it was routed as it was (otherwise only for requests with x-smg-explain: 1)")
    retry_budget_ratio: float = option(0.1, RETRY, "retries allowed per request, on average; a retry after a refused connection is free")
    retry_budget_min_per_sec: int = option(10, RETRY, "retries per second allowed in any case")
    max_requests_per_worker: int = option(0, LIMIT, "requests in flight per worker, more wait in the queue; 0 means no limit")
    outlier_ejection: bool = option(False, HEALTH, "eject workers for a while that fail or slow down far more than their peers")
    outlier_max_ejected_ratio: float = option(0.2, HEALTH, "largest share of the fleet ejected at a time (0..1); one worker always may be")
    slow_start_secs: int = option(10, HEALTH, "seconds over which a worker that came back is given its full share again; 0 gives it at once")
    worker_drain_timeout_secs: int = option(180, HEALTH, "seconds a worker that is removed may finish what it has")
    reuse_port: bool = option(False, WORKER, "share the port (SO_REUSEPORT), so that a new process can take over from an old one")
    forward_override_headers: bool = option(False, REQUEST, "pass clients' x-override-* headers, which steer SGLang engines, on to workers")
    hide_routing: bool = option(False, POLICY, "keep worker URLs and routing details from clients of inference routes; X-SMG-Target-Worker and x-smg-explain are ignored")
    client_header_timeout_secs: int = option(60, REQUEST, "longest time for a request's head, from the connection's start or the head's first byte")
    client_idle_timeout_secs: int = option(620, REQUEST, "how long a client's connection may be idle between requests; more than the 600 of load balancers")
    client_body_timeout_secs: int = option(60, REQUEST, "longest silence of a client amid a request's body")
    client_write_timeout_secs: int = option(60, REQUEST, "how long a client may take nothing of a reply before its request is ended")
    max_client_connections: int = option(0, LIMIT, "client connections at a time, idle ones are closed for new ones; 0 means half of the file descriptors")
    max_buffered_bytes: int | None = option(None, LIMIT, "memory of all request bodies together; unset means a quarter of the memory that the process may have")
    model_matching: str = option("auto", POLICY, "requests for a model that is not served: auto lets them pass while one is served, exact never, any always")
    engine_control: str = option("on", WORKER, "SGLang's control routes (weights, memory, pauses, adapters, profiles) for all workers: on, or off to have none")
    engine_control_timeout_secs: int = option(600, WORKER, "longest time for a worker to carry out a call of --engine-control")
    image_tokens: int = option(1024, POLICY, "tokens that an image in a prompt is taken to have")
    video_tokens: int = option(8192, POLICY, "tokens that a video in a prompt is taken to have")
    audio_tokens: int = option(1024, POLICY, "tokens that a recording in a prompt is taken to have")
    strip_billing_header: bool = option(False, REQUEST, "cut Claude Code's x-anthropic-billing-header line, which differs in every request, out of system prompts; nothing else in a body ever changes")
    sse_keepalive_secs: int = option(0, REQUEST, "silence of a stream of events after which the gateway writes a comment into it, before the first event behind a 200 of its own; 0 writes none")
    pd_metadata: str = option("auto", PD, "how both workers of a pair get room, request id and ranks: headers (x-override-*, the body stays untouched), body, or auto for headers where both are found to obey them")
    tls_client_ca_paths: list[str] = option([], TLS, "CA files: clients must show a certificate of one of them", nargs="*")
    worker_tls_name: str | None = option(None, TLS, "name in the certificates of https:// workers, also sent to them (SNI); unset means the host of each worker's URL", metavar="NAME")
    tls_skip_verify: bool = option(False, TLS, "accept any certificate of https:// workers: prompts and answers can then be read and changed on their way")
    upstream_http2: bool = option(False, REQUEST, "speak HTTP/2 to workers that offer it, by ALPN or by enable_http2 in /server_info")
    access_log: str | None = option(None, LOGGING, "file of the access log, a JSON object per request; a new file each day, named with the date; - is standard output", metavar="FILE")
    log_max_files: int | None = option(None, LOGGING, "daily files that --log-dir and --access-log keep each; unset means all")
    audit_log: str | None = option(None, AUTH, "file to which a JSON object is appended for every call that shows or changes the fleet or its engines", metavar="PATH")
    api_keys_file: str | None = option(None, AUTH, "file of keys for inference, a JSON list of objects with name, key and limits; read again when it changes, so that a key can be withdrawn", metavar="PATH")
    model_id_from: str | None = option(None, DISCOVERY, "what names the model of a discovered pod: namespace, label:KEY or annotation:KEY; unset means what the worker reports", metavar="SOURCE")
    discovery_file: str | None = option(None, DISCOVERY, "file with a list of workers, YAML or JSON, each its URL or the fields of POST /workers; read again when it changes", metavar="PATH")
    trace_sample_ratio: float = option(1.0, TRACE, "share of traces that are recorded (0..1), of requests without a valid traceparent; others follow the flag in theirs", metavar="RATIO")
    config: str | None = option(None, WORKER, "configuration file, YAML or JSON: every option by its name; flags win over it", metavar="PATH")
    config_watch: bool = option(False, WORKER, "read the configuration file again when it changes, not only by POST /reload and SIGHUP")
    fleet_page: str = option("main", WORKER, "port that serves the page at /debug/fleet: main, metrics (with the control routes that the page uses), or off for none")
    service_discovery_groups: list[dict[str, Any]] = option([], DISCOVERY, "pods of several kinds, a JSON list of objects with name, namespace, selector, prefill_selector, decode_selector, port, port_name, bootstrap_port_annotation, model_id, model_id_from; what one leaves out is what the other options say", cli_default=None, parse=values.discovery_groups, metavar="JSON")
    service_discovery_by: str = option("pods", DISCOVERY, "what the API server is asked for to find workers: pods, or the endpoints of services whose labels match (needs rights on endpointslices)")
    service_discovery_port_name: str | None = option(None, DISCOVERY, "name of a discovered worker's port, in the pod or the service, instead of --service-discovery-port", metavar="NAME")
    zone: str | None = option(None, POLICY, "the gateway's own zone; its workers come first, those without a zone count as near", metavar="ZONE")
    zone_crossing_cost: int = option(1024, POLICY, "how much longer a request may wait in its zone before it leaves it, in tokens of prefill; workers of a pair are wanted in one zone at the same price", metavar="TOKENS")
    worker_zones: dict[str, str] = option({}, WORKER, "zones of workers, URL=ZONE each, URLs as the other flags have them", cli_default=[], nargs="*", parse=values.worker_zones, metavar="URL=ZONE")
    queue_order: str = option("fifo", LIMIT, "order of the requests that wait at --max-concurrent-requests and --max-requests-per-worker: fifo, or fair: interactive before batch (x-smg-priority), keys of --api-keys-file by their weights")
    queue_batch_share: float = option(0.1, LIMIT, "fair order: share of the tokens that batch requests get while interactive ones wait, too (0..0.5)", metavar="SHARE")
    queue_starvation_secs: int = option(30, LIMIT, "fair order: once a batch request has waited so long, every second turn is one of its class")
    service_discovery_zone_label: str = option("topology.kubernetes.io/zone", DISCOVERY, "label of a discovered pod that holds its zone", metavar="KEY")
    load_poll_interval_secs: int = option(0, POLICY, "seconds between questions to each worker for its load, so that traffic of other gateways counts; 0 asks none")
    record: str | None = option(None, LOGGING, "file to which inference requests are recorded, a JSON object each, with times, lengths and hashes, never text; simulate and replay read it", metavar="FILE")
    record_max_mb: int = option(64, LOGGING, "size in MiB at which --record begins the next file")
    record_max_files: int = option(8, LOGGING, "files that --record keeps; older ones are FILE.1, FILE.2 and so on")
    record_sample: float = option(1.0, LOGGING, "share of sessions that --record records (above 0, up to 1); requests with a common prefix stay together", metavar="SHARE")
    record_block_tokens: int = option(512, LOGGING, "tokens of the blocks whose hashes --record records: 16, 32, 64, 128, 256 or 512; 512 is Mooncake's", metavar="TOKENS")
    load_push: str = option("auto", POLICY, "listen to workers that publish their load: auto where they announce it (--load-publish-endpoint of SGLang), or off")
    shared_state: str | None = option(None, WORKER, "URL of a Redis or Valkey server, redis:// or rediss://, or of sentinels, redis+sentinel://, where gateways in front of the same workers share placements, loads, limits and routing keys; unset: each knows only what it did itself", env="SMG_SHARED_STATE", secret=True, metavar="URL")
    gateway_replicas: int = option(1, POLICY, "gateways in front of the same workers that share nothing, this one included; cache_aware takes the fleet for so many times as busy as it sees it, and agrees with the others rather than with its own view of queues", metavar="N")
    shared_state_on_failure: str = option("local", LIMIT, "what of a shared limit a gateway applies while --shared-state cannot be reached: local, its part by the last known number of gateways; open, all of it; closed, none")
    # fmt: on

    @staticmethod
    def add_cli_args(
        parser: argparse.ArgumentParser, use_router_prefix: bool = False, exclude_host_port: bool = False
    ) -> None:
        """Adds a flag for every option, grouped.

        Args:
            parser: the parser to add to.
            use_router_prefix: write flags as `--router-...`, for a program with flags of its own.
            exclude_host_port: leave `--host` and `--port` to that program.
        """
        exclude = frozenset({"host", "port"} if exclude_host_port else ())
        add_flags(parser, RouterArgs, prefix=use_router_prefix, exclude=exclude, choices=option_choices())

    @classmethod
    def from_cli_args(cls, args: object, use_router_prefix: bool = False) -> RouterArgs:
        """Reads parsed flags.

        Args:
            args: argparse's namespace, or another object whose `__dict__` holds values by the flags' names. Missing
                ones keep their defaults, unknown ones are ignored.
            use_router_prefix: read `router_x` before `x`.

        Raises:
            ValueError: a structured value is malformed.
        """
        read = cls(**read_namespace(vars(args), cls, prefix=use_router_prefix))
        read._flags_given = given_fields(vars(args), cls, prefix=use_router_prefix)
        return read

    def given(self) -> set[str]:
        """The fields that win over a configuration file: their flags were on the command line, or they differ from
        their defaults."""
        changed = {owner.name for owner in fields(self) if differs(owner, getattr(self, owner.name))}
        return changed | getattr(self, "_flags_given", frozenset())

    _parse_selector = staticmethod(values.selector)
    _parse_prefill_urls = staticmethod(values.prefill_urls)
    _parse_decode_urls = staticmethod(values.decode_urls)
    _parse_control_plane_api_keys = staticmethod(values.control_plane_api_keys)
    _parse_jwt_role_mapping = staticmethod(values.jwt_role_mapping)

    def _validate_router_args(self) -> None:
        """Logs which of the three policies are in force in prefill/decode mode."""
        if not (self.pd_disaggregation and self.policy):
            return
        if self.prefill_policy and self.decode_policy:
            logger.warning(
                f"Both --prefill-policy and --decode-policy are specified; --policy '{self.policy}' is unused"
            )
        elif self.prefill_policy:
            logger.info(f"Using --prefill-policy '{self.prefill_policy}' and --policy '{self.policy}' for decode")
        elif self.decode_policy:
            logger.info(f"Using --policy '{self.policy}' for prefill and --decode-policy '{self.decode_policy}'")


def keyword_fields() -> tuple[str, ...]:
    """The fields that the Rust `Router` takes as they are."""
    return tuple(owner.name for owner in fields(RouterArgs) if owner.metadata["flag"].keyword)
