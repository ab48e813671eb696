"""Prefill and decode workers of the launcher: server arguments by role, ports, and what the gateway gets."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from support.launcher import STUB, forget_sglang
from support.ports import free_base

from sgl_model_gateway import launch_server
from sgl_model_gateway._launcher import engines
from sgl_model_gateway._launcher.engines import SimServerArgs
from sgl_model_gateway._launcher.fleet import Group, Member, members, point_gateway
from sgl_model_gateway._launcher.plan import SPACING
from sgl_model_gateway._launcher.supervisor import Worker
from sgl_model_gateway.router_args import RouterArgs

COUNTS = "--router-prefill-workers 2 --router-decode-workers 1"


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A `sglang` that can be imported."""
    monkeypatch.syspath_prepend(str(STUB))
    forget_sglang()
    yield
    forget_sglang()


def parse(argv: str) -> tuple[argparse.Namespace, list[Group]]:
    return launch_server._parse(argv.split())


def groups(prefill: Any, decode: Any) -> list[Group]:
    """Two prefill workers and a decode worker."""
    return [Group("prefill", 2, prefill), Group("decode", 1, decode)]


def test_server_arguments_are_those_of_the_role(stub: None) -> None:
    _, (prefill, decode) = parse(f"--model-path m {COUNTS}")
    assert [(group.role, group.count) for group in (prefill, decode)] == [("prefill", 2), ("decode", 1)]
    assert [group.server_args.disaggregation_mode for group in (prefill, decode)] == ["prefill", "decode"]
    # What an engine derives from its role.
    assert [group.server_args.disable_radix_cache for group in (prefill, decode)] == [False, True]


def test_a_role_besides_the_numbers_is_refused(stub: None) -> None:
    with pytest.raises(ValueError, match="^--disaggregation-mode: .* give the roles; leave it out"):
        parse(f"--model-path m --disaggregation-mode prefill {COUNTS}")


def test_simulated_servers_get_role_port_and_options() -> None:
    _, (prefill, decode) = parse(
        f"--engine sim {COUNTS} --disaggregation-bootstrap-port 7 --kv-transfer-ms-per-1k-tokens 2 --context-length 9"
    )
    for group in (prefill, decode):
        servers = group.server_args
        assert (servers.disaggregation_mode, servers.disaggregation_bootstrap_port) == (group.role, 7)
        assert (servers.options["kv_transfer_ms_per_1k_tokens"], servers.options["context_length"]) == (2.0, 9)


def test_a_simulated_server_plays_its_role_and_ends_with_code_1_when_a_request_killed_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engines.signal, "signal", Mock())
    monkeypatch.setattr(engines, "SimWorker", worker := Mock())
    worker.return_value.failure = "a bad room"
    with pytest.raises(SystemExit) as exit_:
        SimServerArgs(disaggregation_mode="prefill", disaggregation_bootstrap_port=5).serve()
    assert exit_.value.code == "error: a bad room"
    settings = worker.call_args.kwargs
    assert (settings["disaggregation_mode"], settings["disaggregation_bootstrap_port"]) == ("prefill", 5)


def test_a_worker_of_a_pair_is_no_data_parallel_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_server, "_set_title", Mock())
    monkeypatch.setattr(launch_server.os, "setpgrp", Mock())
    monkeypatch.setattr(SimServerArgs, "serve", Mock())
    monkeypatch.setenv("SGLANG_DP_RANK", "unset")
    launch_server.run_server(SimServerArgs(disaggregation_mode="decode"), 3)
    assert launch_server.os.environ["SGLANG_DP_RANK"] == "unset"
    launch_server.run_server(SimServerArgs(), 3)
    assert launch_server.os.environ["SGLANG_DP_RANK"] == "3"


def test_every_worker_of_a_pair_has_ports_of_its_own() -> None:
    base = free_base()
    servers = SimServerArgs(disaggregation_bootstrap_port=base + 50)
    fleet = members(groups(servers, servers), RouterArgs(port=0, prometheus_port=base + 51), base)
    assert [member.role for member in fleet] == ["prefill", "prefill", "decode"]
    assert [member.rank for member in fleet] == [0, 1, 2]
    assert [member.port for member in fleet] == [base, base + SPACING, base + 2 * SPACING]
    # The second is the metrics'.
    assert [member.bootstrap_port for member in fleet] == [base + 50, base + 52, base + 53]
    for member in fleet:
        assert member.server_args.disaggregation_bootstrap_port == member.bootstrap_port
    assert servers.disaggregation_bootstrap_port == base + 50


def test_busy_bootstrap_ports_are_passed_over_and_workers_get_none_of_them() -> None:
    base = free_base()
    servers = SimServerArgs(disaggregation_bootstrap_port=base)
    with socket.create_server(("127.0.0.1", base)):
        fleet = members(groups(servers, servers), RouterArgs(port=0, prometheus_port=0), base)
    assert [member.bootstrap_port for member in fleet] == [base + 1, base + 2, base + 3]
    # Neither a worker's port nor the NCCL port behind it.
    assert fleet[0].port == base + 4


def test_too_few_bootstrap_ports_name_their_flag() -> None:
    servers = SimServerArgs(disaggregation_bootstrap_port=65534)
    with pytest.raises(RuntimeError, match="choose another --disaggregation-bootstrap-port"):
        members(groups(servers, servers), RouterArgs(port=0, prometheus_port=0), free_base())


def test_a_sealed_record_gets_its_bootstrap_port_too() -> None:
    class Sealed(SimpleNamespace):
        def replace_resolved(self, source: str, **changes: Any) -> Sealed:
            return Sealed(**(vars(self) | changes))

    base = free_base()
    sealed = Sealed(host="127.0.0.1", disaggregation_bootstrap_port=base + 50)
    fleet = members(groups(sealed, sealed), RouterArgs(port=0, prometheus_port=0), base)
    assert fleet[1].server_args == Sealed(host="127.0.0.1", disaggregation_bootstrap_port=base + 51)


def test_replicas_have_no_bootstrap_port() -> None:
    base = free_base()
    servers = SimServerArgs(dp_size=2)
    fleet = members([Group("regular", 2, servers)], RouterArgs(port=0, prometheus_port=0), base)
    assert [(member.bootstrap_port, member.server_args is servers) for member in fleet] == [(None, True)] * 2


def test_the_gateway_gets_the_workers_by_their_roles() -> None:
    servers = SimServerArgs(api_key="k")
    fleet = [
        Member(0, "prefill", "http://a", 1, 7, servers),
        Member(1, "prefill", "http://b", 2, 8, servers),
        Member(2, "decode", "http://c", 3, 9, servers),
    ]
    point_gateway(args := RouterArgs(policy="random"), fleet)
    assert args == RouterArgs(
        policy="random",
        pd_disaggregation=True,
        prefill_urls=[("http://a", 7), ("http://b", 8)],
        decode_urls=["http://c"],
        api_key="k",
    )


def test_a_worker_of_a_pair_is_called_by_its_role() -> None:
    assert [Worker(1, "http://a", Mock(), role).name for role in ("", "decode")] == ["worker 1", "decode worker 1"]
