"""The launcher's course: ports, the gateway, one worker per replica, and the supervisor over all of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ..router_args import RouterArgs
from .console import Console
from .engines import ServerArguments
from .plan import adapt_router_args, find_available_ports, port_spacing, refuse, taken_ports
from .process import Process
from .signals import StopSignals
from .supervisor import Limits, Supervisor, Worker

if TYPE_CHECKING:
    from ..router import Router


def run(
    args: argparse.Namespace,
    server_args: ServerArguments,
    stop: StopSignals,
    console: Console,
    start: Callable[[ServerArguments, int, int], Process],
) -> int:
    """Runs workers and gateway until a signal, or until no worker is left.

    Args:
        args: the parsed flags.
        server_args: the server arguments among them.
        stop: the stop signals, installed.
        console: where lines go.
        start: starts one replica, given the server arguments, its port and its rank.

    Returns:
        The exit code.

    Raises:
        ValueError: options that cannot work together.
        RuntimeError: no free ports, or the gateway cannot listen.
    """
    router_args = RouterArgs.from_cli_args(args, use_router_prefix=True)
    refuse(server_args, router_args)
    stop.defer()
    ports = find_available_ports(
        args.router_dp_worker_base_port,
        server_args.dp_size,
        avoid=taken_ports(server_args, router_args),
        host=server_args.host or "",
        spacing=port_spacing(server_args),
    )
    adapt_router_args(server_args, router_args, ports)
    gateway = _gateway(router_args)
    workers = [
        Worker(rank, url, partial(start, server_args, port, rank))
        for rank, (url, port) in enumerate(zip(router_args.worker_urls, ports, strict=True))
    ]
    limits = Limits(
        startup=router_args.worker_startup_timeout_secs,
        drain=router_args.shutdown_grace_period_secs,
        stop=args.router_worker_stop_timeout_secs,
        restart=not args.router_disable_worker_restart,
    )
    supervisor = Supervisor(gateway, workers, limits, stop, console)
    supervisor.api_key = router_args.api_key
    # What is wrong with the gateway shows before the first worker starts.
    gateway.start_background()
    return supervisor.run()


def _gateway(router_args: RouterArgs) -> Router:
    from ..launch_router import _set_title
    from ..router import Router

    _set_title("sglang::router")
    return Router.from_args(router_args)
