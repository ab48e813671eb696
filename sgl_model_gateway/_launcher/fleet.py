"""The workers to start: how many of which role, and the ports of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..router_args import RouterArgs
from .plan import (
    BOOTSTRAP_FLAG,
    adapt_router_args,
    find_available_ports,
    port_spacing,
    reserved_ports,
    taken_ports,
    with_bootstrap_port,
    worker_url,
)

if TYPE_CHECKING:
    from .engines import ServerArguments

REGULAR, PREFILL, DECODE = "regular", "prefill", "decode"


@dataclass(frozen=True)
class Group:
    """Workers of one role (`regular`, `prefill` or `decode`), started with the same server arguments."""

    role: str
    count: int
    server_args: ServerArguments


@dataclass(frozen=True)
class Member:
    """One worker to start: its rank among all of them, from 0, its TCP ports, and its own server arguments."""

    rank: int
    role: str
    url: str
    port: int
    bootstrap_port: int | None
    server_args: ServerArguments


def members(groups: list[Group], router_args: RouterArgs, base_port: int) -> list[Member]:
    """Every worker with ports of its own, in the order of the groups.

    Workers of pairs get a bootstrap port each, decode workers as well: they may take the other role later.

    Args:
        groups: what to start; all of one host.
        router_args: the gateway's options, whose ports no worker may get.
        base_port: first TCP port tried for a worker.

    Raises:
        RuntimeError: there are not enough free ports.
    """
    first = groups[0].server_args
    roles = [group for group in groups for _ in range(group.count)]
    host = getattr(first, "host", None)
    bootstrap = _bootstrap_ports(groups, router_args)
    ports = find_available_ports(
        base_port,
        len(roles),
        avoid=taken_ports(first, router_args, len(roles)) | set(bootstrap),
        host=host or "",
        spacing=port_spacing(first, len(roles)),
    )
    found = []
    for rank, (group, port) in enumerate(zip(roles, ports, strict=True)):
        own, servers = (bootstrap[rank] if bootstrap else None), group.server_args
        if own is not None:
            servers = with_bootstrap_port(servers, own)
        found.append(Member(rank, group.role, worker_url(host, port), port, own, servers))
    return found


def _bootstrap_ports(groups: list[Group], router_args: RouterArgs) -> list[int]:
    """Free ports, one per worker, from `--disaggregation-bootstrap-port` on; none for regular workers."""
    count, first = sum(group.count for group in groups), groups[0].server_args
    if groups[0].role == REGULAR:
        return []
    return find_available_ports(
        first.disaggregation_bootstrap_port,
        count,
        avoid=reserved_ports(first, router_args, count),
        host=getattr(first, "host", None) or "",
        spacing=1,
        flag=BOOTSTRAP_FLAG,
    )


def point_gateway(router_args: RouterArgs, fleet: list[Member]) -> None:
    """Sets the gateway's workers, their roles, and the servers' API key where the gateway has none of its own."""
    adapt_router_args(
        fleet[0].server_args,
        router_args,
        regular=[member.url for member in fleet if member.role == REGULAR],
        prefill=[(member.url, member.bootstrap_port) for member in fleet if member.role == PREFILL],
        decode=[member.url for member in fleet if member.role == DECODE],
    )
