"""`python -m sgl_model_gateway.launch_server`: SGLang servers and the gateway in front of them, in one command.

One server process per data-parallel replica, supervised: see `supervisor.py`.
"""

from __future__ import annotations

if __name__ == "__main__":
    import importlib
    import signal

    # First of all: an interrupt amid the imports below is to end this, not to become some import's error. Then under
    # the module's own name, so that what is pickled for a worker is found there.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    importlib.import_module("sgl_model_gateway.launch_server").main()

import argparse
import logging
import os
import random  # noqa: F401 -- patched through this module, like `mp`, `os`, `requests` and `time`
import sys
import time
from collections.abc import Iterable
from functools import partial
from typing import Any

from . import worker_process as mp
from .console import Console
from .launch_router import CustomHelpFormatter
from .router_args import RouterArgs
from .server_engines import ENGINES, Engine, SimServerArgs
from .server_plan import (
    HIGHEST_PORT,
    adapt_router_args,
    find_available_ports,
    port_spacing,
    refuse,
    replica,
    taken_ports,
    worker_url,
)
from .stop_signals import StopSignals
from .supervisor import Limits, Supervisor, Worker, end_groups

__all__ = [
    "cleanup_processes",
    "find_available_ports",
    "launch_server_process",
    "main",
    "run_server",
    "setup_logger",
    "wait_for_server_health",
]

logger = logging.getLogger("router")

_BASE_PORT = 31000
_STOP_TIMEOUT = 30
_DESCRIPTION = """\
Starts one SGLang server per data-parallel replica and a gateway in front of them.

All flags are SGLang's own; those of the gateway have --router- in front.

examples:
  %(prog)s --model-path Qwen/Qwen3-8B --dp-size 2
  %(prog)s --engine sim --dp-size 4          (simulated workers: no GPU, no SGLang)
"""


def __getattr__(name: str) -> Any:
    if name == "requests":  # only `wait_for_server_health` needs it
        import requests

        return requests
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def setup_logger(stream: Any = None) -> logging.Logger:
    """The logger `router` at level INFO, with one handler however often this is called."""
    logger.setLevel(logging.INFO)
    for handler in list(logger.handlers):
        if getattr(handler, "of_launch_server", False):
            logger.removeHandler(handler)
    handler = logging.StreamHandler(stream)
    handler.of_launch_server = True  # type: ignore[attr-defined]
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s launcher: %(message)s"))
    logger.addHandler(handler)
    logger.propagate = False
    return logger


def run_server(server_args: Any, dp_rank: int) -> None:
    """Serves replica `dp_rank` in this process, which becomes the leader of a process group."""
    if os.getpgrp() != os.getpid():
        os.setpgrp()
    _set_title("sglang::server")
    os.environ["SGLANG_DP_RANK"] = str(dp_rank)
    if isinstance(server_args, SimServerArgs):
        server_args.serve()
        return
    from sglang.srt.entrypoints.http_server import launch_server

    launch_server(server_args)


def _set_title(title: str) -> None:
    try:
        from setproctitle import setproctitle
    except ImportError:
        return
    setproctitle(title)


def launch_server_process(server_args: Any, worker_port: int, dp_id: int) -> mp.Process:
    """Starts replica `dp_id` on `worker_port`; `server_args` stays as it is."""
    process = mp.Process(target=run_server, args=(replica(server_args, worker_port, dp_id), dp_id))
    process.start()
    return process


def wait_for_server_health(host: str, port: int, timeout: float = 300) -> bool:
    """Asks `/health` every second until it answers 200; `False` after `timeout` seconds.

    For scripts. The launcher itself goes by what the gateway sees. Needs `requests`.
    """
    requests = sys.modules[__name__].requests
    started = time.perf_counter()
    while time.perf_counter() - started < timeout:
        try:
            if requests.get(f"{worker_url(host, port)}/health", timeout=5).status_code == 200:
                return True
        except requests.exceptions.RequestException:
            pass
        time.sleep(1)
    return False


def cleanup_processes(processes: Iterable[Any], timeout: float = 5.0) -> None:
    """Ends process groups: SIGTERM to all, after `timeout` seconds together SIGKILL to those left."""
    end_groups(processes, timeout)


def main(argv: list[str] | None = None) -> None:
    """Runs a command line, `None` being this process's own. Ends with 128 + signal after a stop signal."""
    stop = StopSignals()
    stop.install()
    try:
        sys.exit(_launch(sys.argv[1:] if argv is None else argv, stop))
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    finally:
        stop.restore()


def _launch(argv: list[str], stop: StopSignals) -> int:
    console = Console()
    setup_logger(console)
    args, server_args = _parse(argv)
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
    return _supervise(args, server_args, router_args, ports, stop, console)


def _supervise(
    args: argparse.Namespace,
    server_args: Any,
    router_args: RouterArgs,
    ports: list[int],
    stop: StopSignals,
    console: Console,
) -> int:
    """From ports to an exit code. What is wrong with the gateway shows before the first worker starts."""
    from .router import Router

    _set_title("sglang::router")
    gateway = Router.from_args(router_args)
    workers = [
        Worker(rank, url, partial(launch_server_process, server_args, port, rank))
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
    gateway.start_background()
    return supervisor.run()


# --- flags


def _parse(argv: list[str]) -> tuple[argparse.Namespace, Any]:
    """All flags, and the server arguments among them."""
    help_wanted = any(word in ("-h", "--help") for word in argv)
    parser = argparse.ArgumentParser(description=_DESCRIPTION, formatter_class=CustomHelpFormatter)
    engine = _engine(argv, parser, help_wanted)
    if engine:
        engine.add_cli_args(parser)
    _add_cli_args(parser)
    args = parser.parse_args(engine.read_config(parser, argv) if engine else ["--help"])
    assert engine is not None
    if not 0 < args.router_dp_worker_base_port <= HIGHEST_PORT:
        parser.error(f"argument --router-dp-worker-base-port: expected 1..{HIGHEST_PORT}")
    if args.router_worker_stop_timeout_secs < 0:
        parser.error("argument --router-worker-stop-timeout-secs: expected 0 or more")
    return args, engine.from_cli_args(args)


def _engine(argv: list[str], parser: argparse.ArgumentParser, help_wanted: bool) -> Engine | None:
    """The engine that the command line names. Without SGLang there is help, but nothing to run."""
    # Its flags are not known before, so nothing may be abbreviated and the rest is left alone.
    early = argparse.ArgumentParser(prog=parser.prog, add_help=False, allow_abbrev=False)
    _add_engine(early)
    name = early.parse_known_args(argv)[0].engine
    try:
        return ENGINES[name]()
    except ImportError as error:
        problem = f"SGLang cannot be imported ({error})"
        if isinstance(error, ModuleNotFoundError) and error.name == "sglang":
            problem += ". Install it with: pip install sglang"
        if not help_wanted:
            raise RuntimeError(f"{problem}; or run simulated workers with: --engine sim") from error
        parser.epilog = f"{problem}; its own flags are not listed here."
        return None


def _add_engine(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--engine",
        choices=sorted(ENGINES),
        default="sglang",
        help="what the workers run; sim is for machines without GPUs",
    )


def _add_cli_args(parser: argparse.ArgumentParser) -> None:
    RouterArgs.add_cli_args(parser, use_router_prefix=True, exclude_host_port=True)
    # Workers on this machine are asked often, so that a start or restart shows soon.
    parser.set_defaults(router_worker_startup_check_interval=1, router_health_check_interval_secs=5)
    group = parser.add_argument_group("Launcher")
    _add_engine(group)
    group.add_argument(
        "--router-dp-worker-base-port", type=int, default=_BASE_PORT, help="first port tried for a worker"
    )
    group.add_argument(
        "--router-disable-worker-restart", action="store_true", help="leave a crashed worker out for good"
    )
    group.add_argument(
        "--router-worker-stop-timeout-secs",
        type=int,
        default=_STOP_TIMEOUT,
        help="seconds all workers together may take to end before they are killed",
    )
