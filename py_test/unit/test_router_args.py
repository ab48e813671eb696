"""Flags in, `RouterArgs` out: arity, prefixes, environment, structured values, complaints."""

from __future__ import annotations

import argparse
import copy
import json
import pickle
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from sgl_model_gateway import router_args
from sgl_model_gateway.launch_router import CustomHelpFormatter, parse_router_args
from sgl_model_gateway.router import Router
from sgl_model_gateway.router_args import RouterArgs

ENVIRONMENT = {
    "ATP_WALLET_PATH": ("oracle_wallet_path", "/w", "/w"),
    "ATP_TNS_ALIAS": ("oracle_tns_alias", "tns", "tns"),
    "ATP_DSN": ("oracle_connect_descriptor", "dsn", "dsn"),
    "ATP_USER": ("oracle_username", "u", "u"),
    "ATP_PASSWORD": ("oracle_password", "hunter2", "hunter2"),
    "ATP_POOL_MIN": ("oracle_pool_min", "2", 2),
    "ATP_POOL_MAX": ("oracle_pool_max", "20", 20),
    "ATP_POOL_TIMEOUT_SECS": ("oracle_pool_timeout_secs", "40", 40),
    "POSTGRES_DB_URL": ("postgres_db_url", "postgres://x", "postgres://x"),
    "POSTGRES_POOL_MAX": ("postgres_pool_max", "5", 5),
    "REDIS_URL": ("redis_url", "redis://x", "redis://x"),
    "REDIS_POOL_MAX": ("redis_pool_max", "6", 6),
    "REDIS_RETENTION_DAYS": ("redis_retention_days", "-1", -1),
}


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ENVIRONMENT:
        monkeypatch.delenv(variable, raising=False)


def foreign(argv: list[str], **switches: bool) -> RouterArgs:
    """As `launch_server` and others do: our flags inside another program's parser."""
    parser = argparse.ArgumentParser()
    for name in ("--host", "--api-key", "--model-path", "--log-level"):
        parser.add_argument(name)
    parser.add_argument("--port", type=int)
    RouterArgs.add_cli_args(parser, use_router_prefix=True, exclude_host_port=True, **switches)
    return RouterArgs.from_cli_args(parser.parse_args(argv), use_router_prefix=True)


# --- defaults


def test_command_line_and_dataclass_differ_in_two_defaults() -> None:
    parsed, built = vars(parse_router_args([])), vars(RouterArgs())
    assert {name: (parsed[name], built[name]) for name in parsed if parsed[name] != built[name]} == {
        "log_level": ("info", None),
        "prometheus_host": ("0.0.0.0", None),
    }


def test_lists_and_dicts_are_fresh() -> None:
    first, second = RouterArgs(), RouterArgs()
    first.worker_urls.append("http://a")
    first.selector["a"] = "b"
    assert second.worker_urls == [] and second.selector == {}
    parser = argparse.ArgumentParser()
    RouterArgs.add_cli_args(parser)
    RouterArgs.from_cli_args(parser.parse_args([])).worker_urls.append("http://a")
    assert RouterArgs.from_cli_args(parser.parse_args([])).worker_urls == []


def test_nothing_is_checked_at_construction() -> None:
    args = RouterArgs(["not a url"], "nowhere", -5, cache_threshold=99.0)
    assert (args.worker_urls, args.host, args.port) == (["not a url"], "nowhere", -5)


def test_router_args_copy_and_pickle() -> None:
    args = parse_router_args(["--prefill", "http://a", "1", "--selector", "a=b"])
    assert copy.deepcopy(args) == args == pickle.loads(pickle.dumps(args))


def test_the_repr_of_router_args_shows_no_secret() -> None:
    secrets = {"api_key": "s3cret", "oracle_password": "s3cret", "postgres_db_url": "s3cret", "redis_url": "s3cret"}
    args = RouterArgs(**secrets, control_plane_api_keys=[("i", "n", "s3cret", "admin")])  # type: ignore[arg-type]
    assert "s3cret" not in repr(args)


# --- how flags are written


def test_a_unique_beginning_of_a_flag_is_accepted() -> None:
    assert parse_router_args(["--worker-url", "http://a"]).worker_urls == ["http://a"]
    assert parse_router_args(["--eviction-interval", "7"]).eviction_interval_secs == 7
    assert foreign(["--router-eviction-interval", "7"]).eviction_interval_secs == 7


def test_a_list_given_twice_keeps_the_last() -> None:
    assert parse_router_args(["--worker-urls", "a", "b", "--worker-urls", "c"]).worker_urls == ["c"]


def test_a_flag_takes_its_value_after_an_equals_sign() -> None:
    args = parse_router_args(["--port=1", "--prefill=http://a", "--prefill=http://b"])
    assert args.port == 1 and args.prefill_urls == [("http://a", None), ("http://b", None)]


def test_switches_have_no_negative() -> None:
    assert parse_router_args(["--dp-aware"]).dp_aware is True
    with pytest.raises(SystemExit):
        parse_router_args(["--no-dp-aware"])


@pytest.mark.parametrize(
    "argv",
    [
        ["--unknown"],
        ["--port", "x"],
        ["--port"],
        ["--policy", "invalid_policy"],
        ["--log-level", "loud"],
        ["--tool-call-parser", "nope"],
        ["--decode", "a", "b"],
        ["--assignment-mode", "best"],
    ],
)
def test_a_wrong_flag_is_a_usage_error(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse_router_args(argv)
    assert exit_.value.code == 2 and "usage:" in capsys.readouterr().err


def test_numbers_are_not_checked_for_range() -> None:
    args = parse_router_args(["--port", "70000", "--request-timeout-secs", str(2**64 - 1)])
    assert (args.port, args.request_timeout_secs) == (70000, 2**64 - 1)


def test_help_shows_groups_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse_router_args(["--help"])
    text = capsys.readouterr().out
    assert exit_.value.code == 0
    assert all(f"{title}:" in text for title in RouterArgs.GROUPS)
    assert "(default: 30000)" in text


# --- the prefix


def test_a_foreign_parser_shares_host_port_and_worker_urls() -> None:
    args = foreign(["--host", "h", "--port", "5", "--worker-urls", "http://a", "--router-policy", "random"])
    assert (args.host, args.port, args.worker_urls, args.policy) == ("h", 5, ["http://a"], "random")


def test_a_foreign_parser_keeps_its_own_options() -> None:
    args = foreign(["--api-key", "theirs", "--model-path", "theirs", "--log-level", "theirs"])
    assert (args.api_key, args.model_path, args.log_level) == (None, None, "info")


def test_everything_else_takes_the_prefix() -> None:
    args = foreign(["--router-tls-cert-path", "c", "--router-prefill", "http://a", "none", "--router-selector", "a=b"])
    assert (args.server_cert_path, args.prefill_urls, args.selector) == ("c", [("http://a", None)], {"a": "b"})
    for argv in (["--router-host", "h"], ["--router-port", "1"], ["--router-worker-urls", "a"]):
        with pytest.raises(SystemExit):
            foreign(argv)


def test_prefix_and_exclusion_are_independent() -> None:
    parser = argparse.ArgumentParser()
    RouterArgs.add_cli_args(parser, use_router_prefix=True)
    args = RouterArgs.from_cli_args(parser.parse_args(["--router-host", "h"]), use_router_prefix=True)
    assert args.host == "h"
    parser = argparse.ArgumentParser()
    RouterArgs.add_cli_args(parser, exclude_host_port=True)
    with pytest.raises(SystemExit):
        parser.parse_args(["--host", "h"])


# --- namespaces made by hand


def test_a_namespace_with_few_or_foreign_names_is_read() -> None:
    args = RouterArgs.from_cli_args(SimpleNamespace(port=1, stranger="x", tls_cert_path="c"))
    assert (args.port, args.server_cert_path, args.policy) == (1, "c", "cache_aware")
    assert RouterArgs.from_cli_args(SimpleNamespace()) == RouterArgs()


def test_a_prefixed_value_wins_over_a_plain_one() -> None:
    namespace = SimpleNamespace(router_policy="random", policy="manual", host="h", port=2, worker_urls=["u"])
    args = RouterArgs.from_cli_args(namespace, use_router_prefix=True)
    assert (args.policy, args.host, args.port, args.worker_urls) == ("random", "h", 2, ["u"])


def test_structured_values_come_from_the_prefixed_name_only() -> None:
    namespace = SimpleNamespace(prefill=[["http://a"]], selector=["a=b"], control_plane_api_keys=["broken"])
    args = RouterArgs.from_cli_args(namespace, use_router_prefix=True)
    assert (args.prefill_urls, args.selector, args.control_plane_api_keys) == ([], {}, [])


def test_the_bootstrap_annotation_is_honoured() -> None:
    assert parse_router_args(["--bootstrap-port-annotation", "x/y"]).bootstrap_port_annotation == "x/y"


# --- environment


@pytest.mark.parametrize("variable", ENVIRONMENT)
def test_the_environment_stands_in_for_a_flag(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    field, text, value = ENVIRONMENT[variable]
    monkeypatch.setenv(variable, text)
    assert getattr(parse_router_args([]), field) == value
    assert getattr(foreign([]), field) == value
    assert getattr(RouterArgs(), field) != value, "only the command line reads the environment"
    flag = f"--{field.replace('_', '-')}"
    assert getattr(parse_router_args([f"{flag}=9"]), field) in ("9", 9), "a flag wins"
    monkeypatch.setenv(variable, "")
    assert getattr(parse_router_args([]), field) == getattr(RouterArgs(), field), "empty is unset"


def test_a_bad_variable_is_a_usage_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ATP_POOL_MIN", "many")
    with pytest.raises(SystemExit) as exit_:
        parse_router_args([])
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and "ATP_POOL_MIN" in error and "'many'" in error
    assert parse_router_args(["--oracle-pool-min", "3"]).oracle_pool_min == 3


def test_help_survives_a_bad_variable_and_shows_no_value(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ATP_POOL_MIN", "many")
    monkeypatch.setenv("ATP_PASSWORD", "hunter2")
    with pytest.raises(SystemExit) as exit_:
        parse_router_args(["--help"])
    text = capsys.readouterr().out
    assert exit_.value.code == 0 and "hunter2" not in text and "$ATP_PASSWORD" in text


# --- structured values


@pytest.mark.parametrize(
    ("items", "labels"),
    [
        (None, {}),
        ([], {}),
        ({}, {}),
        (["a=b"], {"a": "b"}),
        (["a=b", "a=c"], {"a": "c"}),
        (["a=b=c"], {"a": "b=c"}),
        (["=v", "k="], {"": "v", "k": ""}),
        (["a=b c=d  e=f"], {"a": "b", "c": "d", "e": "f"}),
        (["a=b c=d", "e=f"], {"a": "b", "c": "d", "e": "f"}),
        (["a=b\tc=d"], {"a": "b", "c": "d"}),
        (["a=b,c=d"], {"a": "b", "c": "d"}),  # as RoleBasedGroup's examples write it
        ("a=b c=d", {"a": "b", "c": "d"}),
    ],
)
def test_selector_tokens_become_a_dict(items: object, labels: dict[str, str]) -> None:
    assert RouterArgs._parse_selector(items) == labels  # type: ignore[arg-type]


def test_groups_of_pods_are_json() -> None:
    groups = [{"name": "chat", "selector": {"app": "chat"}}, {"selector": {"app": "code"}, "port": 30001}]
    args = parse_router_args(["--service-discovery", "--service-discovery-groups", json.dumps(groups)])
    assert args.service_discovery_groups == groups
    assert Router.from_args(args).service_discovery_groups[1]["port"] == 30001


@pytest.mark.parametrize("wrong", ["{", '{"selector": {}}', "[1]", '"x"'])
def test_groups_of_pods_that_are_no_list_of_objects_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="groups of service discovery"):
        parse_router_args(["--service-discovery", "--service-discovery-groups", wrong])


@pytest.mark.parametrize(
    ("group", "place"),
    [
        ({"port": "x"}, r"'service_discovery_groups\[1\].port'.*an integer"),
        ({"selektor": {"a": "b"}}, r"service_discovery_groups\[1\].*selektor"),
        ({"selector": {"a": 1}}, r"'service_discovery_groups\[1\].selector.a'"),
        ({"selector": {"a": "b"}, "port": 0}, r"group 2, port"),
    ],
)
def test_mistake_in_a_group_of_pods_is_named_by_group_and_field(group: dict[str, Any], place: str) -> None:
    good = {"selector": {"a": "b"}}
    with pytest.raises((TypeError, ValueError), match=place):
        Router([], service_discovery=True, service_discovery_groups=[good, group])


def test_a_selector_token_without_equals_is_dropped_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert RouterArgs._parse_selector(["nonsense"]) == {}
    assert "nonsense" in caplog.text


@pytest.mark.parametrize(
    ("values", "parsed"),
    [
        (["http://a"], ("http://a", None)),
        (["http://a", "9000"], ("http://a", 9000)),
        (["http://a", "none"], ("http://a", None)),
        (["http://a", "None"], ("http://a", None)),
        (["http://a", "-1"], ("http://a", -1)),
        (["http://a", "70000"], ("http://a", 70000)),
    ],
)
def test_a_prefill_url_has_a_port_or_none(values: list[str], parsed: tuple[str, int | None]) -> None:
    assert RouterArgs._parse_prefill_urls([values]) == [parsed]


def test_prefill_urls_when_there_are_none() -> None:
    assert RouterArgs._parse_prefill_urls(None) == RouterArgs._parse_prefill_urls([]) == []
    assert RouterArgs._parse_decode_urls(None) == []


def test_a_bad_bootstrap_port_names_the_value_and_what_is_accepted() -> None:
    for argv in (["--prefill", "http://a", "x1"], ["--prefill", "http://a", "http://b"]):
        with pytest.raises(ValueError, match="^Invalid bootstrap port: .*number.*none") as error:
            parse_router_args(argv)
        assert argv[-1] in str(error.value)


def test_a_third_prefill_value_is_refused() -> None:
    with pytest.raises(ValueError, match="^Too many values"):
        parse_router_args(["--prefill", "http://a", "1", "2"])


def test_prefill_and_decode_repeat() -> None:
    args = parse_router_args(["--prefill", "p1", "1", "--prefill", "p2", "--decode", "d1", "--decode", "d2"])
    assert args.prefill_urls == [("p1", 1), ("p2", None)] and args.decode_urls == ["d1", "d2"]


def test_api_keys_become_id_name_key_role() -> None:
    entries = ["i:n:ADMIN:k:with:colons", ":::", "i:n:user:"]
    assert RouterArgs._parse_control_plane_api_keys([entries[0], entries[2]]) == [
        ("i", "n", "k:with:colons", "admin"),
        ("i", "n", "", "user"),
    ]
    assert RouterArgs._parse_control_plane_api_keys(None) == []


@pytest.mark.parametrize(
    ("entry", "message"), [("a:b:s3cret", "^Invalid API key format"), ("a:b:s3cret:admin", "^Invalid role")]
)
def test_a_bad_api_key_is_not_repeated(entry: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        RouterArgs._parse_control_plane_api_keys([entry])
    assert "s3cret" not in str(error.value)


def test_jwt_roles_become_a_dict_of_known_roles() -> None:
    parse = RouterArgs._parse_jwt_role_mapping
    assert parse(["a=ADMIN", "b=user", "a=user"]) == {"a": "user", "b": "user"}
    assert parse(None) == parse([]) == {}
    with pytest.raises(ValueError, match="^Invalid role mapping format"):
        parse(["admin"])
    with pytest.raises(ValueError, match="^Invalid gateway role"):
        parse(["a=root"])


# --- which policy counts


@pytest.mark.parametrize(
    ("prefill", "decode", "level", "parts"),
    [
        ("random", "manual", "warning", ["Both --prefill-policy and --decode-policy are specified"]),
        ("random", None, "info", ["Using --prefill-policy 'random'", "and --policy 'cache_aware'"]),
        (None, "manual", "info", ["Using --policy 'cache_aware'", "and --decode-policy 'manual'"]),
        (None, None, None, []),
    ],
)
def test_policies_in_pd_mode_are_explained(
    prefill: str | None, decode: str | None, level: str | None, parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = Mock()
    monkeypatch.setattr(router_args, "logger", logger)
    RouterArgs(prefill_policy=prefill, decode_policy=decode)._validate_router_args()
    logger.warning.assert_not_called()
    RouterArgs(pd_disaggregation=True, prefill_policy=prefill, decode_policy=decode)._validate_router_args()
    calls = [(call[0], call[1][0]) for call in logger.method_calls]
    assert [name for name, _ in calls] == ([level] if level else [])
    assert all(part in calls[0][1] for part in parts)


def test_the_help_formatter_keeps_lines_and_shows_defaults() -> None:
    assert issubclass(CustomHelpFormatter, argparse.RawDescriptionHelpFormatter)
    assert issubclass(CustomHelpFormatter, argparse.ArgumentDefaultsHelpFormatter)
