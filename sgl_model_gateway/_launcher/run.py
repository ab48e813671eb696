"""The launcher's course: ports, the gateway, the workers, and the supervisor over all of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ..router_args import RouterArgs
from .console import Console
from .engines import ServerArguments
from .fleet import REGULAR, Group, members, point_gateway
from .plan import control_key, refuse
from .process import Process
from .signals import StopSignals
from .supervisor import Limits, Supervisor, Worker

if TYPE_CHECKING:
    from ..router import Router


def run(
    args: argparse.Namespace,
    groups: list[Group],
    stop: StopSignals,
    console: Console,
    start: Callable[[ServerArguments, int, int], Process],
) -> int:
    """Runs workers and gateway until a signal, or until no worker is left.

    Args:
        args: the parsed flags.
        groups: the workers that they ask for.
        stop: the stop signals, installed.
        console: where lines go.
        start: starts one worker, given the server arguments, its port and its rank.

    Returns:
        The exit code.

    Raises:
        ValueError: options that cannot work together.
        RuntimeError: no free ports, or the gateway cannot listen.
    """
    router_args = RouterArgs.from_cli_args(args, use_router_prefix=True)
    pairs = sum(group.count for group in groups) if groups[0].role != REGULAR else None
    for group in groups:
        refuse(group.server_args, router_args, pairs)
    stop.defer()
    fleet = members(groups, router_args, args.router_dp_worker_base_port)
    point_gateway(router_args, fleet)
    gateway = _gateway(router_args)
    workers = [
        Worker(
            member.rank,
            member.url,
            partial(start, member.server_args, member.port, member.rank),
            "" if member.role == REGULAR else member.role,
        )
        for member in fleet
    ]
    limits = Limits(
        startup=router_args.worker_startup_timeout_secs,
        drain=router_args.shutdown_grace_period_secs,
        stop=args.router_worker_stop_timeout_secs,
        restart=not args.router_disable_worker_restart,
    )
    supervisor = Supervisor(gateway, workers, limits, stop, console)
    supervisor.api_key = control_key(router_args)
    # What is wrong with the gateway shows before the first worker starts.
    gateway.start_background()
    # Its configuration file, if it has one, is read again.
    stop.on_hang_up = lambda: gateway.running and gateway.reload()
    return supervisor.run()


def _gateway(router_args: RouterArgs) -> Router:
    from ..launch_router import _set_title
    from ..router import Router

    _set_title("sglang::router")
    return Router.from_args(router_args)
