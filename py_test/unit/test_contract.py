"""Flags, `RouterArgs`, `Router` keywords and the Rust options are one surface; and it is the published one."""

from __future__ import annotations

import argparse
import ast
import csv
import inspect
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import pytest

from sgl_model_gateway import sgl_model_gateway_rs as extension
from sgl_model_gateway._options.flags import default_of, flag_of
from sgl_model_gateway.router_args import RouterArgs, keyword_fields

PUBLISHED = list(csv.DictReader((Path(__file__).parent / "published_flags.csv").read_text().splitlines()))
FIELDS = {owner.name: owner for owner in fields(RouterArgs)}
# Keywords of the Rust class that are built from several fields.
OBJECTS = {"oracle_config", "postgres_config", "redis_config", "control_plane_auth"}
# Unset means port 29000 here, too, but a taken one is then no reason not to start.
NEW_DEFAULTS = {"--prometheus-port": None}
# `RouterArgs` says "nothing" with an empty list where Rust says it with None.
EMPTY_IS_NONE = {"prefill_urls", "decode_urls"}


def _flag(owner: Field[Any]) -> str:
    return f"--{flag_of(owner).spelling(owner).replace('_', '-')}"


@pytest.fixture
def flags(monkeypatch: pytest.MonkeyPatch) -> dict[str, argparse.Action]:
    parser = argparse.ArgumentParser(add_help=False)
    RouterArgs.add_cli_args(parser)
    return {action.option_strings[0]: action for action in parser._actions}


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for row in PUBLISHED:
        if row["env"]:
            monkeypatch.delenv(row["env"], raising=False)


def test_every_keyword_is_a_field_or_an_object() -> None:
    assert set(extension.option_names()) == set(keyword_fields()) | OBJECTS


def test_the_first_83_keywords_keep_their_positions() -> None:
    names = extension.option_names()
    assert names[0] == "worker_urls" and names[3] == "port" and names[32] == "bucket_adjust_interval_secs"
    assert names[82] == "control_plane_auth"
    assert len(names) == len(set(names)) >= 92


@pytest.mark.parametrize("name", keyword_fields())
def test_a_default_is_the_same_in_python_and_rust(name: str) -> None:
    ours, theirs = default_of(FIELDS[name]), extension.option_defaults()[name]
    if name in EMPTY_IS_NONE:
        assert (ours, theirs) == ([], None)
    else:
        assert ours == theirs and type(ours) is type(theirs)


def test_objects_are_off_by_default() -> None:
    assert all(extension.option_defaults()[name] is None for name in OBJECTS)


def test_constructor_defaults_differ_where_they_always_have() -> None:
    expected = {"policy": "round_robin", "port": 3001, "worker_startup_timeout_secs": 600}
    assert extension.constructor_defaults() == expected


def test_the_signature_lists_every_keyword_with_its_default() -> None:
    parameters = inspect.signature(extension.Router).parameters
    assert list(parameters) == extension.option_names()
    assert parameters["worker_urls"].default is inspect.Parameter.empty
    assert parameters["policy"].default == extension.PolicyType.RoundRobin
    assert parameters["port"].default == 3001
    assert parameters["backend"].default == extension.BackendType.Sglang
    assert parameters["retry_max_retries"].default == extension.option_defaults()["retry_max_retries"]


def test_every_field_has_a_flag(flags: dict[str, argparse.Action]) -> None:
    assert set(flags) == set(map(_flag, FIELDS.values()))


def test_the_published_surface_is_whole() -> None:
    assert len(PUBLISHED) == 98 + 12


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row["flag"])
def test_a_published_flag_keeps_group_default_type_and_choices(
    row: dict[str, str], flags: dict[str, argparse.Action]
) -> None:
    action, owner = flags[row["flag"]], FIELDS[row["field"]]
    assert flag_of(owner).group == row["group"] == action.container.title  # type: ignore[attr-defined]
    assert default_of(owner) == ast.literal_eval(row["default"])
    assert flag_of(owner).env == (row["env"] or None)
    if not row["env"]:
        assert action.default == NEW_DEFAULTS.get(row["flag"], ast.literal_eval(row["cli_default"]))
    if row["choices"].startswith("13 names"):
        assert list(action.choices or ()) == extension.get_available_tool_call_parsers()
    else:
        assert set(row["choices"].split()) <= set(action.choices or ())
    kind, *arity = row["type"].split(", ")
    if kind.startswith("switch"):
        assert action.nargs == 0
    else:
        assert action.type.__name__ == kind  # type: ignore[union-attr]
        assert [str(action.nargs)] == ([part.removeprefix("nargs=") for part in arity if "nargs" in part] or ["None"])
    assert ("append" in arity) == (type(action).__name__ == "_Append")


def test_the_99_published_fields_keep_their_positions() -> None:
    names = list(FIELDS)
    assert names[:8] == [
        *("worker_urls", "host", "port", "mini_lb", "pd_disaggregation", "prefill_urls", "decode_urls", "policy"),
    ]
    assert names[98] == "jwt_role_mapping" and names[32] == "bootstrap_port_annotation"
    assert names[99:] == [
        "cache_aware_prefill_backlog_rate",
        "cache_aware_prefill_backlog_hop_factor",
        "cache_aware_prefill_backlog_hop_scale",
        "test_external_dp_routing",
        "json_log",
        "pool_idle_timeout_secs",
        "connect_timeout_secs",
        "pool_max_idle_per_host",
        "tcp_keepalive_secs",
        "enable_wasm",
        "jwt_role_claim",
        "prefix_index_bytes",
        "explain_routing",
        "retry_budget_ratio",
        "retry_budget_min_per_sec",
        "max_requests_per_worker",
        "outlier_ejection",
        "outlier_max_ejected_ratio",
        "slow_start_secs",
        "worker_drain_timeout_secs",
        "reuse_port",
        "forward_override_headers",
        "hide_routing",
        "client_header_timeout_secs",
        "client_idle_timeout_secs",
        "client_body_timeout_secs",
        "client_write_timeout_secs",
        "max_client_connections",
        "max_buffered_bytes",
        "model_matching",
        "engine_control",
        "engine_control_timeout_secs",
        "image_tokens",
        "video_tokens",
        "audio_tokens",
        "strip_billing_header",
        "sse_keepalive_secs",
        "pd_metadata",
        "tls_client_ca_paths",
        "worker_tls_name",
        "tls_skip_verify",
        "upstream_http2",
        "access_log",
        "log_max_files",
        "audit_log",
        "api_keys_file",
        "model_id_from",
        "discovery_file",
        "trace_sample_ratio",
        "config",
        "config_watch",
        "fleet_page",
        "service_discovery_groups",
        "service_discovery_by",
        "service_discovery_port_name",
        "zone",
        "zone_crossing_cost",
        "worker_zones",
        "queue_order",
        "queue_batch_share",
        "queue_starvation_secs",
        "service_discovery_zone_label",
        "load_poll_interval_secs",
        "record",
        "record_max_mb",
        "record_max_files",
        "record_sample",
        "record_block_tokens",
        "load_push",
        "shared_state",
        "gateway_replicas",
        "shared_state_on_failure",
    ]


def test_the_three_policy_flags_know_every_policy(flags: dict[str, argparse.Action]) -> None:
    for flag in ("--policy", "--prefill-policy", "--decode-policy"):
        assert list(flags[flag].choices or ()) == list(extension.PolicyType.members())


def test_a_flag_takes_the_words_that_its_rust_type_has(flags: dict[str, argparse.Action]) -> None:
    choices = extension.option_choices()
    assert {name for name, owner in FIELDS.items() if flags[_flag(owner)].choices} == set(choices)
    assert choices["log_level"] == ["debug", "info", "warn", "error"]
    assert choices["assignment_mode"] == ["random", "min_load", "min_group"]
    for name, enum in (("backend", extension.BackendType), ("history_backend", extension.HistoryBackendType)):
        assert choices[name] == list(enum.members())


def test_help_has_the_20_published_groups_in_the_order_of_the_table() -> None:
    parser = argparse.ArgumentParser()
    RouterArgs.add_cli_args(parser)
    titles = [group.title for group in parser._action_groups if group.title in RouterArgs.GROUPS]
    assert titles == list(RouterArgs.GROUPS) and len(titles) == 20
    assert set(titles) == {row["group"] for row in PUBLISHED}


def test_every_flag_says_what_it_does(flags: dict[str, argparse.Action]) -> None:
    assert all(action.help and len(action.help) > 10 for action in flags.values())
