"""Ports, URLs, replicas and refusals of the launcher, for server arguments of any release."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from support.launcher import forget_sglang
from support.ports import free_base

from sgl_model_gateway._launcher import plan
from sgl_model_gateway._launcher.plan import (
    SPACING,
    adapt_router_args,
    control_key,
    find_available_ports,
    gpus_per_replica,
    is_port_available,
    port_spacing,
    refuse,
    replica,
    taken_ports,
    worker_url,
)
from sgl_model_gateway.router_args import RouterArgs


@pytest.fixture(autouse=True)
def _without_sglang() -> Iterator[None]:
    forget_sglang()
    yield
    forget_sglang()


# --- ports


def test_ports_are_blocks_apart_and_start_at_the_base() -> None:
    base = free_base()
    assert find_available_ports(base, 3) == [base, base + SPACING, base + 2 * SPACING]


def test_a_busy_port_and_those_to_avoid_are_passed_over() -> None:
    base = free_base()
    with socket.create_server(("127.0.0.1", base)):
        assert not is_port_available(base, "127.0.0.1")
        assert find_available_ports(base, 1, host="127.0.0.1") == [base + 1]
    assert find_available_ports(base, 1, avoid=frozenset({base, base + 1})) == [base + 2]
    # The block's own second port counts as well.
    assert find_available_ports(base, 1, avoid=frozenset({base + plan.NCCL_OFFSET})) == [base + 1]


def test_replicas_whose_nccl_port_cannot_be_set_keep_within_a_hundred() -> None:
    old = SimpleNamespace(tp_size=1, dp_size=8)
    spacing = port_spacing(old, 8)
    ports = find_available_ports(free_base(), 8, spacing=spacing)
    assert ports[-1] - ports[0] < 100 and len(set(ports)) == 8
    assert port_spacing(old, 500) == 1
    assert port_spacing(SimpleNamespace(tp_size=1, nccl_port=None), 8) == SPACING


@pytest.mark.parametrize(("base", "count"), [(65500, 2), (65535, 2), (65536, 1), (0, 1), (-5, 1)])
def test_the_search_ends_with_the_ports(base: int, count: int) -> None:
    with pytest.raises(RuntimeError, match=f"from {base} to 65535; choose another --router-dp-worker-base-port"):
        find_available_ports(base, count)


def test_a_search_among_busy_ports_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "is_port_available", lambda *_: False)
    with pytest.raises(RuntimeError, match="only 0"):
        find_available_ports(1, 1)


@pytest.mark.parametrize("home", ["sglang.srt.utils", "sglang.srt.utils.network"])
def test_sglangs_own_check_counts_in_both_of_its_homes(monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    asked: list[int] = []
    names = ["sglang", "sglang.srt", "sglang.srt.utils"] + ["sglang.srt.utils.network"] * home.endswith("network")
    modules = {name: ModuleType(name) for name in names}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
    modules[home].is_port_available = lambda port: bool(asked.append(port))  # type: ignore[attr-defined]
    port = free_base()
    assert not is_port_available(port) and asked == [port]


def test_no_worker_gets_a_port_that_is_spoken_for() -> None:
    servers = SimpleNamespace(nccl_port=5, disaggregation_bootstrap_port=8998, dist_init_addr="host:7", grpc_port=None)
    assert taken_ports(servers, RouterArgs(port=1, prometheus_port=2), 1) == {1, 2, 5, 7, 8998}
    # An unset metrics port means 29000.
    assert taken_ports(SimpleNamespace(), RouterArgs(port=0), 1) == {29000}
    assert taken_ports(SimpleNamespace(), RouterArgs(port=0, prometheus_port=0), 1) == frozenset()
    # Every replica's, not only the first one's.
    servers = SimpleNamespace(nccl_port=5, grpc_port=50, dist_init_addr="host:900")
    assert taken_ports(servers, RouterArgs(port=1, prometheus_port=0), 2) == {1, 5, 6, 50, 51, 900, 1000}


# --- URLs


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:5"),
        ("", "http://127.0.0.1:5"),
        (None, "http://127.0.0.1:5"),
        ("::", "http://[::1]:5"),
        ("[::]", "http://[::1]:5"),
        ("fe80::1", "http://[fe80::1]:5"),
        ("[fe80::1]", "http://[fe80::1]:5"),
        ("10.0.0.1", "http://10.0.0.1:5"),
        ("gpu-1", "http://gpu-1:5"),
    ],
)
def test_a_worker_url_is_one_that_the_gateway_can_reach(host: str | None, url: str) -> None:
    assert worker_url(host, 5) == url


def test_the_gateway_takes_over_urls_and_key() -> None:
    args, servers = RouterArgs(), SimpleNamespace(host="::", api_key="k")
    adapt_router_args(servers, args, regular=["http://a"], prefill=[], decode=[])
    assert (args.worker_urls, args.pd_disaggregation, args.api_key) == (["http://a"], False, "k")
    adapt_router_args(
        servers, args := RouterArgs(api_key="k"), regular=[], prefill=[("http://p", 7)], decode=["http://d"]
    )
    assert (args.worker_urls, args.pd_disaggregation, args.api_key) == ([], True, "k")
    assert (args.prefill_urls, args.decode_urls) == ([("http://p", 7)], ["http://d"])


# --- replicas


class Sealed:
    """Refuses assignment, as a resolved record of late releases does."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update({"port": 1, "base_gpu_id": 0, "dp_size": 4, "tp_size": 2} | fields)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{name} assigned after resolution")

    def replace_resolved(self, source: str, **changes: Any) -> Sealed:
        assert source == "sgl_model_gateway.launch_server_process"
        return Sealed(**(vars(self) | changes))


def test_a_sealed_record_is_replaced_not_changed() -> None:
    given = Sealed()
    own = replica(given, 31002, 3)
    assert vars(own) == {"port": 31002, "base_gpu_id": 6, "dp_size": 1, "tp_size": 2}
    assert vars(given) == vars(Sealed())


def test_only_fields_that_exist_are_set() -> None:
    own = replica(SimpleNamespace(port=1, tp_size=2), 7, 1)
    assert vars(own) == {"port": 7, "tp_size": 2}


def test_servers_get_an_ipv6_host_without_brackets() -> None:
    given = SimpleNamespace(port=1, host="[::1]")
    assert replica(given, 5, 0).host == "::1" and given.host == "[::1]"
    assert replica(SimpleNamespace(port=1, host="localhost"), 5, 0).host == "localhost"


def test_side_ports_are_one_apart_and_nccl_follows_the_worker() -> None:
    given = SimpleNamespace(port=1, nccl_port=None, grpc_port=50, dist_init_addr="[::1]:900")
    own = replica(given, 31100, 1)
    assert (own.nccl_port, own.grpc_port, own.dist_init_addr) == (31110, 51, "[::1]:1000")
    assert replica(SimpleNamespace(port=1, nccl_port=40), 31100, 2).nccl_port == 42
    assert replica(SimpleNamespace(port=1, nccl_port=None), 65530, 0).nccl_port is None


@pytest.mark.parametrize(
    ("fields", "gpus"),
    [
        ({}, 1),
        ({"tp_size": 4}, 4),
        ({"tp_size": 2, "pp_size": 2}, 4),
        ({"tp_size": 2, "gpu_id_step": 2}, 4),
        ({"tp_size": 16, "nnodes": 2}, 8),
    ],
)
def test_a_replica_spans_its_share_of_gpus_on_a_node(fields: dict[str, int], gpus: int) -> None:
    servers = SimpleNamespace(port=1, base_gpu_id=3, **fields)
    assert gpus_per_replica(servers) == gpus
    assert [replica(servers, 5, rank).base_gpu_id for rank in (0, 1)] == [3, 3 + gpus]


def test_on_cpus_replicas_share_the_numa_nodes_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_numa_nodes", lambda: 2)
    servers = SimpleNamespace(port=1, base_gpu_id=0, device="cpu")
    assert [replica(servers, 5, rank).base_gpu_id for rank in range(3)] == [0, 1, 0]
    monkeypatch.undo()
    assert plan._numa_nodes() >= 1


# --- refusals


@pytest.mark.parametrize(
    ("flag", "servers", "router"),
    [
        ("--router-mini-lb", {}, {"mini_lb": True}),
        ("--router-pd-disaggregation", {}, {"pd_disaggregation": True}),
        ("--router-prefill", {}, {"prefill_urls": [("http://a", None)]}),
        ("--router-decode", {}, {"decode_urls": ["http://a"]}),
        ("--router-service-discovery", {}, {"service_discovery": True}),
        ("--worker-urls", {}, {"worker_urls": ["http://a"]}),
        ("--router-tls-client-ca-paths", {}, {"tls_client_ca_paths": ["ca.pem"]}),
        ("--router-api-key", {"api_key": "a"}, {"api_key": "b"}),
        ("--router-jwt-issuer", {"api_key": "a"}, {"jwt_issuer": "https://a", "jwt_audience": "b"}),
        ("--router-api-keys-file", {}, {"api_keys_file": "f"}),
        ("--dp-size", {"dp_size": 0}, {}),
        ("--grpc-mode", {"grpc_mode": True}, {}),
        ("--smg-grpc-mode", {"smg_grpc_mode": True}, {}),
        ("--ssl-certfile", {"ssl_certfile": "f"}, {}),
        ("--ssl-keyfile", {"ssl_keyfile": "f"}, {}),
        ("--disaggregation-mode", {"disaggregation_mode": "prefill"}, {}),
        ("--encoder-only", {"encoder_only": True}, {}),
        ("--node-rank", {"node_rank": 1}, {}),
        ("--dist-init-addr", {"dist_init_addr": "host"}, {}),
        ("--dist-init-addr", {"dist_init_addr": "29500"}, {}),
        ("--dist-init-addr", {"dist_init_addr": "a:65500", "dp_size": 2}, {}),
        ("--host", {"host": "203.0.113.1"}, {}),
        ("--host", {"host": "no such host"}, {}),
    ],
)
def test_a_flag_that_cannot_work_is_refused_by_name(flag: str, servers: dict[str, Any], router: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{flag}: "):
        refuse(SimpleNamespace(**servers), RouterArgs(**router))


@pytest.mark.parametrize(
    ("flag", "servers", "router"),
    [
        ("--dp-size", {"dp_size": 2}, {}),
        ("--dp-size", {"dp_size": 0}, {}),
        ("--router-mini-lb", {}, {"mini_lb": True}),
        ("--router-prefill", {}, {"prefill_urls": [("http://a", None)]}),
        ("--encoder-only", {"encoder_only": True}, {}),
        ("--dist-init-addr", {"dist_init_addr": "a:65400"}, {}),
    ],
)
def test_a_flag_that_cannot_work_with_pairs_is_refused(flag: str, servers: Any, router: Any) -> None:
    with pytest.raises(ValueError, match=f"^{flag}: "):
        refuse(SimpleNamespace(**servers), RouterArgs(**router), 3)


def test_pairs_are_refused_without_their_numbers_only() -> None:
    refuse(SimpleNamespace(dp_size=1, disaggregation_mode="decode"), RouterArgs(pd_disaggregation=True), 2)
    with pytest.raises(ValueError, match="give --router-prefill-workers and --router-decode-workers$"):
        refuse(SimpleNamespace(), RouterArgs(pd_disaggregation=True))


def test_options_that_work_are_not_refused() -> None:
    servers = SimpleNamespace(dp_size=2, disaggregation_mode="null", dist_init_addr="a:1", api_key="k", grpc_mode=False)
    refuse(servers, RouterArgs(api_key="k", policy="random"))
    refuse(SimpleNamespace(), RouterArgs(api_key="for clients only"))
    refuse(SimpleNamespace(api_key="k"), RouterArgs(api_keys_file="f"))
    keys = [("i", "n", "boss", "admin"), ("j", "n", "guest", "user")]
    tokens = RouterArgs(control_plane_api_keys=keys, jwt_issuer="https://a", jwt_audience="b", api_keys_file="f")
    refuse(SimpleNamespace(), tokens)


def test_launcher_asks_the_gateway_with_a_key_of_the_control_plane_where_there_are_some() -> None:
    keys = [("i", "n", "boss", "admin"), ("j", "n", "guest", "user")]
    assert control_key(RouterArgs(api_key="k", control_plane_api_keys=keys)) == "boss"
    assert control_key(RouterArgs(api_key="k")) == "k"
    assert control_key(RouterArgs()) is None
