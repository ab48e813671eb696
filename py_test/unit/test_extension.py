"""The extension module: enums, configuration classes, construction errors, functions."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest

from sgl_model_gateway import sgl_model_gateway_rs as extension
from sgl_model_gateway._options.flags import flag_of
from sgl_model_gateway.router_args import RouterArgs
from sgl_model_gateway.sgl_model_gateway_rs import (
    BackendType,
    HistoryBackendType,
    OptionRangeError,
    PolicyType,
    PyApiKeyEntry,
    PyControlPlaneAuthConfig,
    PyJwtConfig,
    PyOracleConfig,
    PyPostgresConfig,
    PyRedisConfig,
    PyRole,
    Router,
)

WORKERS = ["http://127.0.0.1:1"]
# These members keep their names and numbers; later ones are appended.
ENUMS = {
    PolicyType: "Random RoundRobin CacheAware PowerOfTwo Bucket Manual ConsistentHashing PrefixHash LeastLoad",
    BackendType: "Sglang Openai",
    HistoryBackendType: "Memory None Oracle Postgres Redis",
    PyRole: "Admin User",
}
MEMBERS = [(kind, name) for kind, names in ENUMS.items() for name in names.split()]


# --- enums


@pytest.mark.parametrize(("kind", "name"), MEMBERS, ids=lambda value: getattr(value, "__name__", value))
def test_a_member_has_a_number_a_name_and_a_hash(kind: Any, name: str) -> None:
    member = getattr(kind, name)
    assert int(member) == ENUMS[kind].split().index(name)
    assert repr(member) == f"{kind.__name__}.{name}"
    assert member != int(member)
    assert {member: 1}[getattr(kind, name)] == 1
    for twin in (pickle.loads(pickle.dumps(member)), copy.copy(member), copy.deepcopy(member)):
        assert twin == member and hash(twin) == hash(member)


@pytest.mark.parametrize("kind", ENUMS, ids=lambda kind: kind.__name__)
def test_members_by_the_names_that_options_take(kind: Any) -> None:
    members = kind.members()
    assert list(map(int, members.values())) == list(range(len(members)))
    assert all(name.title().replace("_", "") == repr(member).split(".")[1] for name, member in members.items())
    assert all(getattr(kind, repr(member).split(".")[1]) is member for member in members.values())
    members.clear()
    assert len(kind.members()) >= len(ENUMS[kind].split())


def test_members_of_different_enums_differ() -> None:
    assert PolicyType.Random != BackendType.Sglang
    assert PolicyType.Random != PolicyType.RoundRobin


# --- configuration classes


@pytest.mark.parametrize(
    "name",
    ["Role", "ApiKeyEntry", "JwtConfig", "ControlPlaneAuthConfig", "OracleConfig", "PostgresConfig", "RedisConfig"],
)
def test_a_class_under_two_names_is_one_class(name: str) -> None:
    assert getattr(extension, name) is getattr(extension, f"Py{name}")
    assert getattr(extension, name).__module__ == "sgl_model_gateway.sgl_model_gateway_rs"


def test_positional_orders_and_defaults() -> None:
    entry = PyApiKeyEntry("i", "n", "k")
    assert (entry.id, entry.name, entry.key, entry.role) == ("i", "n", "k", PyRole.User)
    jwt = PyJwtConfig("iss", "aud")
    assert (jwt.jwks_uri, jwt.role_mapping, jwt.role_claim) == (None, {}, "roles")
    auth = PyControlPlaneAuthConfig()
    assert (auth.jwt, auth.api_keys, auth.audit_enabled) == (None, [], True)
    oracle = PyOracleConfig("p", "u", "d", "w")
    assert (oracle.password, oracle.username, oracle.connect_descriptor, oracle.wallet_path) == ("p", "u", "d", "w")
    assert (oracle.pool_min, oracle.pool_max, oracle.pool_timeout_secs) == (1, 16, 30)
    assert (PyPostgresConfig().db_url, PyPostgresConfig(pool_max=0).pool_max) == (None, 0)
    assert (PyRedisConfig("u").pool_max, PyRedisConfig("u").retention_days) == (16, 30)
    assert PyRedisConfig("u", retention_days=None).retention_days is None


def test_attributes_can_be_written() -> None:
    redis = PyRedisConfig("u")
    redis.url, redis.retention_days = "v", None
    assert (redis.url, redis.retention_days) == ("v", None)


def test_configuration_objects_check_their_values() -> None:
    with pytest.raises(ValueError, match="pool_min must be at least 1"):
        PyOracleConfig(pool_min=0)
    with pytest.raises(ValueError, match="pool_max must be >= pool_min"):
        PyOracleConfig(pool_min=3, pool_max=2)
    for build in (lambda: PyOracleConfig(pool_min=-1), lambda: PyRedisConfig("u", retention_days=-1)):
        with pytest.raises(OverflowError):
            build()
    for wrong in (lambda: PyRedisConfig(None), lambda: PyApiKeyEntry("i", "n", "k", "admin")):  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            wrong()


def test_no_repr_shows_a_secret() -> None:
    secret = [
        PyApiKeyEntry("i", "n", "s3cret"),
        PyOracleConfig(password="s3cret"),
        PyPostgresConfig("postgres://u:s3cret@h"),
        PyRedisConfig("redis://:s3cret@h"),
        Router(WORKERS, api_key="s3cret"),
    ]
    assert "s3cret" not in repr(secret)


# --- construction


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": "80"},
        {"port": None},
        {"port": 80.0},
        {"worker_urls": "http://a"},
        {"worker_urls": [1]},
        {"dp_aware": "no"},
        {"dp_aware": 1},
        {"policy": BackendType.Sglang},
        {"policy": 1},
        {"selector": None},
        {"selector": {"a": 1}},
        {"cache_threshold": "0.5"},
        {"api_key": 5},
        {"redis_config": "redis://x"},
        {"host": b"bytes"},
        {"request_id_headers": "x-id"},
        {"polcy": "random"},
    ],
    ids=repr,
)
def test_a_wrong_type_names_its_keyword(wrong: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(wrong))):
        Router(**({"worker_urls": WORKERS} | wrong))


def test_wrong_arguments_raise_as_a_python_function_does() -> None:
    with pytest.raises(TypeError, match="worker_urls"):
        Router(port=1)
    with pytest.raises(TypeError, match="multiple values for argument 'worker_urls'"):
        Router(WORKERS, worker_urls=WORKERS)
    with pytest.raises(TypeError, match="Did you mean 'policy'"):
        Router(WORKERS, polcy="random")
    with pytest.raises(TypeError, match="positional arguments"):
        Router(*range(200))


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 70000},
        {"port": -1},
        {"retry_max_retries": -1},
        {"retry_max_retries": 2**32},
        {"request_timeout_secs": 2**64},
        {"max_concurrent_requests": 2**31},
        {"prometheus_port": 65536},
    ],
    ids=repr,
)
def test_a_number_out_of_range_is_both_errors(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionRangeError, match=next(iter(wrong))) as error:
        Router(WORKERS, **wrong)
    assert isinstance(error.value, ValueError) and isinstance(error.value, OverflowError)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"worker_urls": ["ftp://x"]}, "worker_url"),
        ({"cache_threshold": 2.0}, "cache_threshold"),
        ({"cache_threshold": float("nan")}, "cache_threshold"),
        ({"policy": "fancy"}, "policy"),
        ({"assignment_mode": "best"}, "assignment_mode"),
        ({"request_timeout_secs": 0}, "request_timeout_secs"),
        ({"prometheus_duration_buckets": [2.0, 1.0]}, "prometheus_duration_buckets"),
        ({"health_check_endpoint": "health"}, "health_check_endpoint"),
        ({"cache_aware_prefill_backlog_rate": -1.0}, "cache_aware_prefill_backlog_rate"),
        ({"cache_aware_prefill_backlog_hop_factor": 0.5}, "cache_aware_prefill_backlog_hop_factor"),
        ({"cache_aware_prefill_backlog_hop_scale": float("nan")}, "cache_aware_prefill_backlog_hop_scale"),
    ],
    ids=repr,
)
def test_a_broken_rule_is_a_value_error_at_construction(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        Router(**({"worker_urls": WORKERS} | wrong))


def test_backlog_options_of_other_gateways_are_accepted() -> None:
    router = Router(
        WORKERS,
        cache_aware_prefill_backlog_rate=8000.0,
        cache_aware_prefill_backlog_hop_factor=1.0,
        cache_aware_prefill_backlog_hop_scale=0.0,
    )
    assert router.cache_aware_prefill_backlog_rate == 8000.0


def test_an_option_that_is_not_built_is_refused_by_name() -> None:
    missing = "^Configuration error: option 'enable_wasm' needs WASM middleware, which this build does not have$"
    with pytest.raises(ValueError, match=missing):
        Router(WORKERS, enable_wasm=True)


def test_half_a_pair_names_the_other_flag_where_that_is_called_differently() -> None:
    tried = {"server_cert_path": "server_key_path", "server_key_path": "server_cert_path"}
    flags = {owner.name: flag_of(owner).spelling(owner).replace("_", "-") for owner in fields(RouterArgs)}
    for given, missing in tried.items():
        with pytest.raises(ValueError, match=rf"'{given}': x - needs {missing} \(--{flags[missing]}\): "):
            Router(worker_urls=[], **{given: "x"})


def test_no_history_is_what_there_is() -> None:
    assert Router(WORKERS, history_backend="none").history_backend == getattr(HistoryBackendType, "None")


def test_strings_and_members_both_do() -> None:
    assert Router(WORKERS, policy="random").policy == Router(WORKERS, policy=PolicyType.Random).policy
    assert Router(WORKERS, "random", "::1", 5).port == 5


def test_prefill_urls_may_be_tuples_or_lists() -> None:
    for pair in (("http://a", 1), ["http://a", None]):
        assert Router(WORKERS, prefill_urls=[pair]).prefill_urls == [list(pair)]
    with pytest.raises(ValueError, match="'prefill_urls': http://a - must be a port from 1 up, or none"):
        Router(WORKERS, prefill_urls=[("http://a", 0)])


def test_every_option_reads_as_an_attribute() -> None:
    router = Router(WORKERS, api_key="s3cret")
    for name in extension.option_names():
        getattr(router, name)
    assert (router.worker_urls, router.port, router.policy) == (WORKERS, 3001, PolicyType.RoundRobin)
    assert router.api_key == "MASKED"
    assert Router(WORKERS).api_key is None
    assert "retry_max_retries" in dir(router)
    with pytest.raises(AttributeError, match="prot"):
        _ = router.prot


# --- functions


def test_the_version_is_that_of_the_package() -> None:
    line = extension.get_version_string()
    assert line == f"sgl-model-gateway {extension.__version__}"
    verbose = extension.get_verbose_version_string()
    assert verbose.splitlines()[0] == line
    for word in ("Build:", "Mode:", "Target:", "Version control:", "Commit:", "Compiler:", "rustc", "cargo"):
        assert word in verbose


def test_tool_call_parsers_are_sorted() -> None:
    parsers = extension.get_available_tool_call_parsers()
    assert len(parsers) == 13 and parsers == sorted(parsers)


# --- imports


def modules_after(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_importing_the_package_loads_nothing_else() -> None:
    loaded = modules_after("import sgl_model_gateway")
    assert "sgl_model_gateway.sgl_model_gateway_rs" not in loaded
    assert not {"argparse", "asyncio", "dataclasses"} & loaded - modules_after("pass")


def test_nothing_heavy_is_loaded_to_launch() -> None:
    loaded = modules_after("import sgl_model_gateway.launch_router, sgl_model_gateway.cli")
    heavy = {"aiohttp", "asyncio", "fastapi", "orjson", "requests", "setproctitle", "sglang", "torch", "uvicorn"}
    assert not heavy & loaded - modules_after("pass")


def test_importing_takes_no_time() -> None:
    code = "import time; t = time.perf_counter(); import sgl_model_gateway; print(time.perf_counter() - t)"
    runs = [subprocess.run([sys.executable, "-c", code], check=True, capture_output=True) for _ in range(3)]
    assert min(float(run.stdout) for run in runs) < 0.15


def test_names_of_the_package_resolve_at_first_use() -> None:
    import sgl_model_gateway
    from sgl_model_gateway import router, router_args

    assert sgl_model_gateway.Router is router.Router
    assert sgl_model_gateway.RouterArgs is router_args.RouterArgs
    assert sgl_model_gateway.__version__ == extension.__version__
    assert {"Router", "RouterArgs", "__version__"} <= set(dir(sgl_model_gateway))
    with pytest.raises(AttributeError):
        _ = sgl_model_gateway.nothing


def test_flags_work_without_the_extension() -> None:
    code = """
import sys
sys.modules["sgl_model_gateway.sgl_model_gateway_rs"] = None
from sgl_model_gateway.launch_router import launch_router, parse_router_args
args = parse_router_args(["--port", "5"])
try:
    launch_router(args)
except RuntimeError as error:
    print(args.port, error)
"""
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.startswith("5 the Rust extension") and "extension is missing" in run.stderr
