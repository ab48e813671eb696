"""Options: whether a gateway takes them, and which of them have no effect beside the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

from .._options.flags import default_of, flag_of
from ..router_args import RouterArgs, keyword_fields
from .finding import Finding
from .workers import urls_of

# A secret cannot be read, and no check asks what stands behind the gateway.
_NOT_READ = ("api_key", "backend", "history_backend")


def check_options(args: RouterArgs) -> list[Finding]:
    """Makes a gateway of the options, without starting it."""
    if args.mini_lb:
        return [Finding("options", "ok", "the balancer for debugging (--mini-lb) checks its options itself")]
    try:
        from ..router import Router
    except ImportError as error:
        why = f"the Rust extension cannot be loaded: {error}"
        return [Finding("options", "fail", why, "install a wheel for this platform, or build one")]
    try:
        Router.from_args(args)
    except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        why = f"no policy is named {error}" if isinstance(error, KeyError) else str(error)
        return [Finding("options", "fail", why, "change the option; docs/options.md lists all of them")]
    return [Finding("options", "ok", "a gateway can be made of them")]


def with_file(args: RouterArgs) -> RouterArgs:
    """The options with those of the configuration file among them; `args` itself without one that can be used."""
    if args.config is None or args.mini_lb:
        return args
    try:
        from ..router import PolicyType, Router

        router = Router.from_args(args)
    except (ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError):
        return args  # said already
    words = {member: word for word, member in PolicyType.members().items()}
    merged = replace(args)
    for name in keyword_fields():
        if name not in _NOT_READ:
            value = getattr(router, name)
            setattr(merged, name, words[value] if isinstance(value, PolicyType) else value)
    return merged


@dataclass(frozen=True)
class _Rule:
    """Options that do nothing while a condition holds."""

    names: tuple[str, ...]
    idle: Callable[[RouterArgs], bool]
    why: str


def _policies(args: RouterArgs) -> set[str]:
    pools = (args.prefill_policy, args.decode_policy) if args.pd_disaggregation else ()
    return {str(name or args.policy) for name in (pools or (args.policy,))}


def _without(*policies: str) -> Callable[[RouterArgs], bool]:
    return lambda args: not _policies(args) & set(policies)


def _has_no_limit(args: RouterArgs) -> bool:
    limits = (args.max_concurrent_requests, args.rate_limit_tokens_per_second or 0, args.max_requests_per_worker)
    return all(limit <= 0 for limit in limits)


def _has_no_tls_peer(args: RouterArgs) -> bool:
    urls = urls_of(args)
    return bool(urls) and not args.jwt_issuer and not any("https://" in url for url in urls)


def _fields(prefix: str) -> tuple[str, ...]:
    return tuple(owner.name for owner in fields(RouterArgs) if owner.name.startswith(prefix))


def _history_is_not(backend: str) -> Callable[[RouterArgs], bool]:
    return lambda args: str(args.history_backend).lower() != backend


_RULES = (
    _Rule(
        ("worker_urls",),
        lambda args: args.pd_disaggregation,
        "--pd-disaggregation takes its workers from --prefill and --decode",
    ),
    _Rule(
        ("worker_urls",), lambda args: args.service_discovery, "--service-discovery takes its workers from Kubernetes"
    ),
    _Rule(
        ("prefill_urls", "decode_urls"),
        lambda args: not args.pd_disaggregation,
        "it is read with --pd-disaggregation only",
    ),
    _Rule(
        ("policy",),
        lambda args: bool(args.pd_disaggregation and args.prefill_policy and args.decode_policy),
        "--prefill-policy and --decode-policy are both set",
    ),
    _Rule(
        ("cache_threshold", "max_tree_size", "prefix_index_bytes", "gateway_replicas"),
        _without("cache_aware"),
        "it is for the policy cache_aware",
    ),
    _Rule(
        ("cache_aware_prefill_backlog_rate",),
        lambda args: True,
        "cache_aware counts the backlog at any value, and assumes no rate",
    ),
    _Rule(
        ("cache_aware_prefill_backlog_hop_factor", "cache_aware_prefill_backlog_hop_scale"),
        lambda args: True,
        "cache_aware computes the cost of leaving a warm worker from the load",
    ),
    _Rule(
        ("balance_abs_threshold", "balance_rel_threshold"),
        _without("cache_aware", "bucket"),
        "it is for the policies cache_aware and bucket",
    ),
    _Rule(("bucket_adjust_interval_secs",), _without("bucket"), "it is for the policy bucket"),
    _Rule(("assignment_mode", "max_idle_secs"), _without("manual"), "it is for the policy manual"),
    _Rule(
        ("retry_max_retries", "retry_initial_backoff_ms", "retry_max_backoff_ms")
        + ("retry_backoff_multiplier", "retry_jitter_factor"),
        lambda args: args.disable_retries,
        "--disable-retries is set",
    ),
    _Rule(
        ("cb_failure_threshold", "cb_success_threshold", "cb_timeout_duration_secs", "cb_window_duration_secs"),
        lambda args: args.disable_circuit_breaker,
        "--disable-circuit-breaker is set",
    ),
    _Rule(
        ("outlier_max_ejected_ratio",),
        lambda args: not args.outlier_ejection,
        "it is read with --outlier-ejection only",
    ),
    _Rule(
        ("queue_order",),
        lambda args: args.max_concurrent_requests <= 0 and args.max_requests_per_worker <= 0,
        "the fair order is for requests that wait at --max-concurrent-requests and --max-requests-per-worker",
    ),
    _Rule(
        ("queue_batch_share", "queue_starvation_secs"),
        lambda args: args.queue_order != "fair",
        "it is read with --queue-order fair only",
    ),
    _Rule(
        ("queue_size", "queue_timeout_secs"),
        _has_no_limit,
        "requests queue only at a limit, and none is set (--max-concurrent-requests, --max-requests-per-worker, "
        "--rate-limit-tokens-per-second)",
    ),
    _Rule(
        ("shared_state_on_failure",),
        lambda args: not args.shared_state,
        "limits are shared only with --shared-state",
    ),
    _Rule(
        ("engine_control_timeout_secs",),
        lambda args: args.engine_control == "off",
        "--engine-control is off",
    ),
    _Rule(("explain_routing",), lambda args: args.hide_routing, "--hide-routing keeps the reasons from clients"),
    _Rule(
        ("log_max_files",),
        lambda args: not args.log_dir and args.access_log in (None, "-"),
        "no daily files are written without --log-dir or a file for --access-log",
    ),
    _Rule(
        ("record_max_mb", "record_max_files", "record_sample", "record_block_tokens"),
        lambda args: not args.record,
        "nothing is recorded without --record",
    ),
    _Rule(
        ("ca_cert_paths", "client_cert_path", "client_key_path", "worker_tls_name", "tls_skip_verify"),
        _has_no_tls_peer,
        "no worker's URL begins with https://",
    ),
    _Rule(
        ("control_plane_audit_enabled",),
        lambda args: not args.control_plane_api_keys and not args.jwt_issuer,
        "the control plane has neither keys nor an issuer; --audit-log works without",
    ),
    _Rule(("jwt_role_claim",), lambda args: not args.jwt_issuer, "it is read with --jwt-issuer only"),
    *(
        _Rule(_fields(f"{backend}_"), _history_is_not(backend), f"--history-backend is not {backend}")
        for backend in ("oracle", "postgres", "redis")
    ),
)


def check_idle_options(args: RouterArgs) -> list[Finding]:
    """Options that are set and have no effect beside the others."""
    if args.mini_lb:
        return []
    advice = "leave it out, or set what it belongs to"
    found = [Finding("no effect", "warn", text, advice) for text in _idle(args)]
    return found or [Finding("no effect", "ok", "every option that is set has an effect")]


def _idle(args: RouterArgs) -> Iterator[str]:
    owners = {owner.name: owner for owner in fields(RouterArgs)}
    for rule in _RULES:
        for name in rule.names:
            owner = owners[name]
            if getattr(args, name) != default_of(owner) and rule.idle(args):
                flag = flag_of(owner)
                source = f" (or ${flag.env})" if flag.env else ""
                yield f"--{flag.spelling(owner).replace('_', '-')}{source} has no effect: {rule.why}"
