"""What the launcher decides before anything runs: ports, URLs, one set of server arguments per replica, refusals.

Server arguments are SGLang's `ServerArgs` of any release, or `SimServerArgs`. Releases differ in what they have, so
every field is read with a default and only fields that exist are set.
"""

from __future__ import annotations

import contextlib
import copy
import socket
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..router_args import RouterArgs

if TYPE_CHECKING:
    from .engines import ServerArguments

HIGHEST_PORT = 65535
DEFAULT_METRICS_PORT = 29000
# Ports of one replica: HTTP at 0 and NCCL at 10. SGLang takes ZMQ ports from 233 on, which fall between those of a
# later replica.
SPACING = 100
NCCL_OFFSET = 10
_EVERYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
# Ports a server binds besides its own, when they are set: one apart per replica.
_SIDE_PORTS = ("grpc_port", "engine_info_bootstrap_port")
BASE_PORT_FLAG = "--router-dp-worker-base-port"
BOOTSTRAP_FLAG = "--disaggregation-bootstrap-port"
COUNT_FLAGS = ("--router-prefill-workers", "--router-decode-workers")


def is_port_available(port: int, host: str = "") -> bool:
    """Whether a server could listen on this TCP port of `host`; empty means all addresses.

    When SGLang is loaded its own check has to agree.
    """
    try:
        _listen(port, host)
    except (OSError, OverflowError):
        return False
    return _sglang_agrees(port)


def _listen(port: int, host: str) -> None:
    """Listens for a moment; raises `OSError` where that is impossible."""
    found = socket.getaddrinfo(_bare(host) or "0.0.0.0", port, type=socket.SOCK_STREAM)
    family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        probe.listen(1)


def _bare(host: str | None) -> str:
    return (host or "").strip("[]")


def _sglang_agrees(port: int) -> bool:
    if "sglang" not in sys.modules:
        return True
    for home in ("sglang.srt.utils.network", "sglang.srt.utils"):  # of later and of earlier releases
        with contextlib.suppress(ImportError, AttributeError):
            return bool(import_module(home).is_port_available(port))
    return True


def find_available_ports(
    base_port: int,
    count: int,
    *,
    avoid: frozenset[int] = frozenset(),
    host: str = "",
    spacing: int = SPACING,
    flag: str = BASE_PORT_FLAG,
) -> list[int]:
    """`count` free ports from `base_port` on, at least `spacing` apart, none of them in `avoid`.

    Raises `RuntimeError`, which names `flag`, when there are not that many below 65536.
    """
    ports: list[int] = []
    port = base_port
    while len(ports) < count and 0 < port <= HIGHEST_PORT:
        used = {port, port + NCCL_OFFSET} if spacing > NCCL_OFFSET else {port}
        if used & avoid or not all(is_port_available(one, host) for one in used if one <= HIGHEST_PORT):
            port += 1
            continue
        ports.append(port)
        port += spacing
    if len(ports) < count:
        raise RuntimeError(
            f"{count} free ports are needed for the workers, {spacing} apart, and there are only {len(ports)} from "
            f"{base_port} to {HIGHEST_PORT}; choose another {flag}"
        )
    return ports


def port_spacing(server_args: ServerArguments, count: int) -> int:
    """The distance between the ports of two of `count` replicas.

    Releases whose NCCL port cannot be set (0.4.6) take any from 100 to 1000 above their own: there all replicas keep
    within a hundred.
    """
    chosen_by_server = hasattr(server_args, "tp_size") and not hasattr(server_args, "nccl_port")
    return max(1, (SPACING - 1) // count) if chosen_by_server else SPACING


def taken_ports(server_args: ServerArguments, router_args: RouterArgs, count: int) -> frozenset[int]:
    """Ports that none of `count` workers may get: the gateway's, its metrics', and those set for the servers."""
    bootstrap = getattr(server_args, "disaggregation_bootstrap_port", None)
    return reserved_ports(server_args, router_args, count) | ({bootstrap} if bootstrap else set())


def reserved_ports(server_args: ServerArguments, router_args: RouterArgs, count: int) -> frozenset[int]:
    """`taken_ports` without the bootstrap port."""
    metrics = DEFAULT_METRICS_PORT if router_args.prometheus_port is None else router_args.prometheus_port
    ports = [router_args.port, metrics]
    for name in ("nccl_port", *_SIDE_PORTS):
        if first := getattr(server_args, name, None):
            ports += range(first, first + count)
    if address := getattr(server_args, "dist_init_addr", None):
        ports += (_rendezvous(address, rank) for rank in range(count))
    return frozenset(port for port in ports if port)


def _rendezvous(address: str, rank: int) -> int:
    """The rendezvous port of replica `rank`; `address` holds that of the first one."""
    return int(address.rpartition(":")[2]) + rank * SPACING


def worker_url(host: str | None, port: int) -> str:
    """The URL at which the gateway reaches a worker that listens on `host`.

    The addresses that mean "all" become loopback; IPv6 addresses get brackets.
    """
    bare = _EVERYWHERE.get(_bare(host), _bare(host)).lower()
    return f"http://[{bare}]:{port}" if ":" in bare else f"http://{bare}:{port}"


def gpus_per_replica(server_args: ServerArguments) -> int:
    """Number of GPU ids that one replica spans on this node."""
    ranks: int = getattr(server_args, "tp_size", 1) * getattr(server_args, "pp_size", 1)
    per_node = -(-ranks // getattr(server_args, "nnodes", 1))
    return per_node * int(getattr(server_args, "gpu_id_step", 1))


def replica(server_args: ServerArguments, port: int, rank: int) -> ServerArguments:
    """A copy of the server arguments for replica `rank` on `port`."""
    changes: dict[str, Any] = {"port": port, "base_gpu_id": _base_gpu_id(server_args, rank), "dp_size": 1}
    if str(getattr(server_args, "host", "")).startswith("["):  # servers want it bare
        changes["host"] = _bare(server_args.host)
    return _changed(server_args, changes | _side_ports(server_args, port, rank))


def with_bootstrap_port(server_args: ServerArguments, port: int) -> ServerArguments:
    """A copy of the server arguments of a worker of a pair."""
    return _changed(server_args, {"disaggregation_bootstrap_port": port})


def _changed(server_args: ServerArguments, changes: dict[str, Any]) -> ServerArguments:
    """A copy with other values of those fields that it has."""
    changes = {name: value for name, value in changes.items() if hasattr(server_args, name)}
    if hasattr(server_args, "replace_resolved"):  # a sealed record: assignment is refused
        return server_args.replace_resolved("sgl_model_gateway.launch_server_process", **changes)
    own = copy.deepcopy(server_args)
    for name, value in changes.items():
        setattr(own, name, value)
    return own


def _base_gpu_id(server_args: ServerArguments, rank: int) -> int:
    first: int = (getattr(server_args, "base_gpu_id", 0) or 0) + rank * gpus_per_replica(server_args)
    # On CPUs SGLang takes it for the NUMA node to bind to, of which there may be fewer than replicas.
    return first % _numa_nodes() if getattr(server_args, "device", None) == "cpu" else first


def _numa_nodes() -> int:
    return len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or 1


def _side_ports(server_args: ServerArguments, port: int, rank: int) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    given = getattr(server_args, "nccl_port", None)
    if given or port + NCCL_OFFSET <= HIGHEST_PORT:
        changes["nccl_port"] = given + rank if given else port + NCCL_OFFSET
    for name in _SIDE_PORTS:
        if value := getattr(server_args, name, None):
            changes[name] = value + rank
    if address := getattr(server_args, "dist_init_addr", None):
        changes["dist_init_addr"] = f"{address.rpartition(':')[0]}:{_rendezvous(address, rank)}"
    return changes


def adapt_router_args(
    server_args: ServerArguments,
    router_args: RouterArgs,
    *,
    regular: list[str],
    prefill: list[tuple[str, int | None]],
    decode: list[str],
) -> None:
    """Points the gateway at the workers: URLs, roles, and the servers' API key when it has none of its own.

    Args:
        server_args: those of any worker.
        router_args: the gateway's options, changed in place.
        regular: URLs of workers that serve whole requests.
        prefill: URL and bootstrap port of every prefill worker.
        decode: URLs of decode workers.
    """
    router_args.worker_urls, router_args.prefill_urls, router_args.decode_urls = regular, prefill, decode
    router_args.pd_disaggregation = bool(prefill or decode)
    router_args.api_key = router_args.api_key or getattr(server_args, "api_key", None)


def control_key(router_args: RouterArgs) -> str | None:
    """The key with which the launcher asks the gateway about its workers, when one is needed."""
    keys = router_args.control_plane_api_keys
    return keys[0][2] if keys else router_args.api_key


def refuse(server_args: ServerArguments, router_args: RouterArgs, count: int | None = None) -> None:
    """Checks that the options can work together.

    Args:
        server_args: the servers' options, of any role.
        router_args: the gateway's options.
        count: number of workers in pairs, both roles together; `None` means that the workers are no pairs.

    Raises:
        ValueError: they cannot; the message names the flag, the reason, and what to do instead.
    """
    refusals = (*_router_refusals(router_args, count), *_server_refusals(server_args, count))
    for flag, asked, why in refusals:
        if asked:
            raise ValueError(f"{flag}: {why}")
    ours, theirs = router_args.api_key, getattr(server_args, "api_key", None)
    _refuse_without_control_key(router_args, ours or theirs)
    if ours and theirs and ours != theirs:
        raise ValueError(
            "--router-api-key: differs from the servers' --api-key, but the gateway shows its workers the key that it "
            "demands from clients; give --api-key alone, the gateway takes it over"
        )


def _refuse_without_control_key(args: RouterArgs, api_key: str | None) -> None:
    own = "give --router-control-plane-api-keys, too: the launcher asks the gateway which workers are ready"
    if args.jwt_issuer and not args.control_plane_api_keys:
        raise ValueError(f"--router-jwt-issuer: {own}")
    if args.api_keys_file and not (args.control_plane_api_keys or api_key):
        raise ValueError(f"--router-api-keys-file: {own}")


def _router_refusals(args: RouterArgs, count: int | None) -> list[tuple[str, object, str]]:
    launch = "start the servers yourself and put `sgl-model-gateway launch` in front of them"
    mini = "the launcher runs the gateway and not the balancer for debugging"
    pairs = f"how many workers of each role to start is not known; give {' and '.join(COUNT_FLAGS)}"
    found = f"the workers started here would not be used; {launch}"
    certificate = f"the launcher asks the gateway for its workers and has no certificate to show; {launch}"
    ours = f"the gateway gets the workers started here; {launch}"
    return [
        ("--router-mini-lb", args.mini_lb, f"{mini}; {launch}"),
        ("--router-pd-disaggregation", args.pd_disaggregation and count is None, pairs),
        ("--router-prefill", args.prefill_urls, f"{ours}, or give {COUNT_FLAGS[0]}"),
        ("--router-decode", args.decode_urls, f"{ours}, or give {COUNT_FLAGS[1]}"),
        ("--router-test-external-dp-routing", args.test_external_dp_routing, f"{mini}; {launch}"),
        ("--router-service-discovery", args.service_discovery, found),
        ("--worker-urls", args.worker_urls, ours),
        ("--router-tls-client-ca-paths", args.tls_client_ca_paths, certificate),
    ]


def _server_refusals(args: ServerArguments, pairs: int | None) -> list[tuple[str, object, str]]:
    def get(name: str, default: Any = None) -> Any:
        return getattr(args, name, default)

    grpc = "the gateway does not speak gRPC to its workers yet; leave it out, they serve HTTP"
    tls = "workers are started behind the gateway on this machine and serve http; --router-tls-cert-path is for clients"
    counts = " and ".join(COUNT_FLAGS)
    whole = "this launcher starts whole workers; start encoders yourself"
    dp_size = get("dp_size", 1)
    number = f"{dp_size} is not a number of workers; at least 1"
    if pairs:
        number = f"replicas are no pairs; {counts} say how many workers there are, leave --dp-size out"
    count, role = pairs or dp_size, f"the launcher gives the roles; give {counts} instead"
    deaf = _why_deaf(get("host"))
    far = f"expected host:port, the port at most {HIGHEST_PORT} for the last of {count} workers, {SPACING} apart"
    return [
        ("--dp-size", dp_size != 1 if pairs else dp_size < 1, number),
        ("--grpc-mode", get("grpc_mode"), grpc),
        ("--smg-grpc-mode", get("smg_grpc_mode"), grpc),
        ("--ssl-certfile", get("ssl_certfile"), tls),
        ("--ssl-keyfile", get("ssl_keyfile"), tls),
        ("--disaggregation-mode", not pairs and get("disaggregation_mode") not in (None, "null"), role),
        ("--encoder-only", get("encoder_only"), whole),
        ("--node-rank", get("node_rank", 0), "only node 0 serves requests; run sglang.launch_server on this one"),
        ("--dist-init-addr", not _is_rendezvous(get("dist_init_addr"), count), far),
        ("--host", deaf, deaf),
    ]


def _is_rendezvous(address: str | None, count: int) -> bool:
    if address is None:
        return True
    host, _, port = address.rpartition(":")
    return bool(host) and port.isdecimal() and 0 < int(port) and _rendezvous(address, count - 1) <= HIGHEST_PORT


def _why_deaf(host: str | None) -> str:
    """The reason why no server can listen on `host`, empty if one can.

    Checked first: otherwise every port would be tried in vain.
    """
    try:
        _listen(0, host or "")
    except OSError as error:
        return f"nothing on this machine can listen on {host!r} ({error}); expected one of its addresses or names"
    return ""
