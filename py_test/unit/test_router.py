"""From `RouterArgs` to the Rust class, and the helpers on the way."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest

from sgl_model_gateway import router
from sgl_model_gateway.router import (
    BackendType,
    HistoryBackendType,
    PolicyType,
    PyRole,
    Router,
    backend_from_str,
    build_control_plane_auth_config,
    history_backend_from_str,
    policy_from_str,
    role_from_str,
)
from sgl_model_gateway.router_args import RouterArgs
from sgl_model_gateway.sgl_model_gateway_rs import option_names


class FakeRouter:
    """Stands in for the Rust class and remembers its keywords."""

    def __init__(self, **keywords: Any) -> None:
        self.keywords = keywords


@pytest.fixture
def keywords_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(router, "_Router", FakeRouter)
    return lambda args: Router.from_args(args)._router.keywords


# --- helpers


def test_a_policy_is_found_by_its_exact_name() -> None:
    assert all(policy_from_str(name) is member for name, member in PolicyType.members().items())
    assert policy_from_str(None) is None
    assert policy_from_str(PolicyType.Random) == PolicyType.Random
    for name in ("fancy", "RANDOM", ""):
        with pytest.raises(KeyError):
            policy_from_str(name)


def test_a_backend_is_found_by_its_name_in_any_case() -> None:
    assert backend_from_str(None) == backend_from_str("SGLang") == BackendType.Sglang
    assert backend_from_str(BackendType.Openai) == backend_from_str("openai") == BackendType.Openai
    with pytest.raises(ValueError, match="^Unknown backend: x.*sglang, openai"):
        backend_from_str("x")


def test_a_history_backend_is_found_by_its_name_in_any_case() -> None:
    assert history_backend_from_str(None) == HistoryBackendType.Memory
    assert history_backend_from_str("NONE") == getattr(HistoryBackendType, "None")
    assert history_backend_from_str(HistoryBackendType.Redis) == HistoryBackendType.Redis
    with pytest.raises(ValueError, match="^Unknown history backend: x.*memory, none, oracle, postgres, redis"):
        history_backend_from_str("x")


def test_only_admin_is_the_role_admin() -> None:
    assert role_from_str("ADMIN") == PyRole.Admin
    assert role_from_str("anything") == PyRole.User
    with pytest.raises(AttributeError):
        role_from_str(None)  # type: ignore[arg-type]


def test_control_plane_auth_from_keys_and_tokens() -> None:
    config = build_control_plane_auth_config(
        {
            "control_plane_api_keys": [("i", "n", "k", "admin")],
            "jwt_issuer": "iss",
            "jwt_audience": "aud",
            "jwt_role_mapping": {"x": "admin"},
            "jwt_role_claim": "groups",
        }
    )
    assert config is not None and config.jwt is not None
    assert (config.api_keys[0].id, config.api_keys[0].key, config.api_keys[0].role) == ("i", "k", PyRole.Admin)
    assert (config.jwt.issuer, config.jwt.role_mapping, config.jwt.role_claim) == ("iss", {"x": "admin"}, "groups")
    assert config.audit_enabled is False


def test_wrong_control_plane_auth_is_refused_under_the_name_that_was_written() -> None:
    twice = [("i", "n", "s3cret", "admin"), ("i", "n", "s3cret2", "user")]
    tokens = {"jwt_issuer": "http://iss.example", "jwt_audience": "aud"}
    for args, name in (
        (RouterArgs(control_plane_api_keys=twice), "control_plane_api_keys"),
        (RouterArgs(**tokens), "jwt_issuer"),  # type: ignore[arg-type]
        (RouterArgs(jwt_issuer="https://iss.example"), "jwt_issuer"),
        (RouterArgs(jwt_audience="aud"), "jwt_audience"),
        (RouterArgs(jwt_role_mapping={"x": "admin"}), "jwt_role_mapping"),
    ):
        with pytest.raises(ValueError, match=f"'{name}'") as error:
            Router.from_args(args)
        assert "s3cret" not in str(error.value)


def test_control_plane_keys_and_an_audit_log_are_accepted() -> None:
    keys = [("i", "n", "s3cret", "admin"), ("j", "n", "s3cret2", "user")]
    Router.from_args(RouterArgs(control_plane_api_keys=keys, control_plane_audit_enabled=True, audit_log="a.jsonl"))


def test_without_keys_and_tokens_there_is_no_control_plane_auth() -> None:
    assert build_control_plane_auth_config({}) is None
    assert build_control_plane_auth_config(vars(RouterArgs())) is None


def test_half_a_jwt_configuration_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert build_control_plane_auth_config({"jwt_issuer": "iss"}) is None
    assert "jwt_issuer/jwt_audience missing" in caplog.text


# --- from_args


def test_the_keywords_are_exactly_those_of_the_rust_class(keywords_of: Any) -> None:
    assert set(keywords_of(RouterArgs())) == set(option_names())


def test_names_of_options_become_members(keywords_of: Any) -> None:
    keywords = keywords_of(RouterArgs(policy="random", prefill_policy="bucket", history_backend="none"))
    assert keywords["policy"] == PolicyType.Random
    assert (keywords["prefill_policy"], keywords["decode_policy"]) == (PolicyType.Bucket, None)
    assert keywords["backend"] == BackendType.Sglang
    assert keywords["history_backend"] == getattr(HistoryBackendType, "None")


def test_the_callers_object_stays_intact(keywords_of: Any) -> None:
    args = RouterArgs(worker_urls=["http://a"], pd_disaggregation=True, policy="random")
    before = copy.deepcopy(args)
    first, second = keywords_of(args), keywords_of(args)
    assert args == before and first.keys() == second.keys()


def test_urls_of_the_mode_in_force_are_passed(keywords_of: Any) -> None:
    urls: dict[str, Any] = {"worker_urls": ["w"], "prefill_urls": [("p", None)], "decode_urls": ["d"]}
    assert {name: keywords_of(RouterArgs(**urls))[name] for name in urls} == {
        "worker_urls": ["w"],
        "prefill_urls": None,
        "decode_urls": None,
    }
    pd = keywords_of(RouterArgs(**urls, pd_disaggregation=True))
    assert {name: pd[name] for name in urls} == {**urls, "worker_urls": []}
    assert keywords_of(RouterArgs(**urls, service_discovery=True))["worker_urls"] == []


def test_none_is_passed_through(keywords_of: Any) -> None:
    names = ("selector", "prefill_selector", "decode_selector", "cors_allowed_origins")
    keywords = keywords_of(RouterArgs(**dict.fromkeys(names)))  # type: ignore[arg-type]
    assert all(keywords[name] is None for name in names)


def test_only_the_selected_store_is_configured(keywords_of: Any) -> None:
    settings: dict[str, Any] = {
        "oracle_tns_alias": "tns",
        "oracle_connect_descriptor": "dsn",
        "postgres_db_url": "postgres://x",
        "redis_url": "redis://x",
        "redis_retention_days": -7,
    }
    stores = ("oracle_config", "postgres_config", "redis_config")
    for history in ("memory", "none", "oracle", "postgres", "redis"):
        keywords = keywords_of(RouterArgs(history_backend=history, **settings))
        assert [name for name in stores if keywords[name]] == [f"{history}_config"] * (f"{history}_config" in stores)
    assert keywords["redis_config"].retention_days is None
    oracle = keywords_of(RouterArgs(history_backend="oracle", **settings))["oracle_config"]
    assert oracle.connect_descriptor == "tns"


def test_a_bad_store_is_refused_by_its_class() -> None:
    with pytest.raises(TypeError):
        Router.from_args(RouterArgs(history_backend="redis"))
    with pytest.raises(ValueError, match="pool_min must be at least 1"):
        Router.from_args(RouterArgs(history_backend="oracle", oracle_pool_min=0))
    with pytest.raises(ValueError, match="pool_max must be >= pool_min"):
        Router.from_args(RouterArgs(history_backend="oracle", oracle_pool_min=5, oracle_pool_max=2))


def test_none_where_a_dict_belongs_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="selector"):
        Router.from_args(RouterArgs(selector=None))  # type: ignore[arg-type]


# --- the wrapper


def test_router_wraps_a_rust_router() -> None:
    inner: Any = FakeRouter()
    assert Router(inner)._router is inner
    with pytest.raises(TypeError, match="not both"):
        Router(inner, port=1)


def test_router_is_built_from_keywords() -> None:
    built = Router(worker_urls=["http://a"], policy="random")
    assert (built.policy, built.port, built.running) == (PolicyType.Random, 3001, False)
    assert Router(["http://a"], PolicyType.Random).policy == PolicyType.Random
    with pytest.raises(TypeError, match="worker_urls"):
        Router()
    with pytest.raises(AttributeError):
        _ = built.nothing
