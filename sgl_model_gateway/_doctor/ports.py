"""The gateway's own ports: whether it can listen on them."""

from __future__ import annotations

import errno
import ipaddress
import socket

from ..router_args import RouterArgs
from .finding import Finding

DEFAULT_METRICS_PORT = 29000
# That of the gateway: an address of a family that the machine lacks is left out.
_LACKING = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def check_ports(args: RouterArgs) -> list[Finding]:
    """Binds the port of the gateway and that of its metrics for a moment."""
    metrics = DEFAULT_METRICS_PORT if args.prometheus_port is None else args.prometheus_port
    if args.port == metrics != 0:
        why = f"{args.port} is the port of the gateway and that of its metrics"
        return [Finding("port", "fail", why, "set --prometheus-port")]
    return [_gateway(args), _metrics(args, metrics)]


def _gateway(args: RouterArgs) -> Finding:
    problem = _why_not(args.host, args.port, args.reuse_port)
    place = f"{args.host}:{args.port}"
    if problem is None:
        return Finding("port", "ok", f"{place} is free" if args.port else "the system chooses a free port")
    return Finding("port", "fail", f"{place}: {problem}", _advice(problem, "--port", args.port))


def _metrics(args: RouterArgs, port: int) -> Finding:
    host = _metrics_host(args)
    problem = _why_not(host, port, args.reuse_port)
    place = f"{host}:{port}"
    if problem is None:
        return Finding("metrics port", "ok", f"{place} is free" if port else "the system chooses a free port")
    advice = _advice(problem, "--prometheus-port", port)
    if args.prometheus_port is None:
        return Finding("metrics port", "warn", f"{place}: {problem}; the gateway starts without metrics", advice)
    return Finding("metrics port", "fail", f"{place}: {problem}", advice)


def _metrics_host(args: RouterArgs) -> str:
    """As the gateway has it: in the address family of its own host."""
    over_v6 = _is_v6(args.host.strip("[]"))
    if args.prometheus_host is None:
        return "::1" if over_v6 else "127.0.0.1"
    return "::" if over_v6 and args.prometheus_host == "0.0.0.0" else args.prometheus_host


def _is_v6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def _why_not(host: str, port: int, shared: bool) -> OSError | None:
    """Why nothing can listen there; `None` when it can."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return error if isinstance(error, OSError) else OSError(str(error))
    lacking, bound = None, False
    for family, address in dict.fromkeys((it[0], it[4]) for it in found):
        try:
            _listen(family, address, shared)
            bound = True
        except OSError as error:
            if error.errno not in _LACKING:
                return error
            lacking = error
    return None if bound else lacking


def _listen(family: int, address: tuple[object, ...], shared: bool) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != "::")
        probe.bind(address)
        if not shared:  # to listen on a shared port would take connections from its owner
            probe.listen(1)


def _advice(problem: OSError, flag: str, port: int) -> str:
    if problem.errno == errno.EADDRINUSE:
        return f"`ss -ltnp 'sport = :{port}'` names the process that has it; stop that, or set {flag}"
    if problem.errno in (errno.EACCES, errno.EPERM):
        return f"set {flag} to a port from 1024 up, or grant CAP_NET_BIND_SERVICE"
    return f"set {'--host' if flag == '--port' else '--prometheus-host'} to an address or name of this machine"
