"""`python -m sgl_model_gateway.launch_server`: SGLang servers and the gateway in front of them, in one command.

One server process per data-parallel replica, or per prefill and decode worker, supervised. The parts are in
`_launcher/`.
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
import random as random  # upstream's tests of this module patch `mp`, `os`, `random`, `requests` and `time` here
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO

from ._launcher import process as mp
from ._launcher.command_line import parse
from ._launcher.console import Console
from ._launcher.engines import ServerArguments, SimServerArgs
from ._launcher.fleet import Group
from ._launcher.plan import find_available_ports, replica, worker_url
from ._launcher.run import run
from ._launcher.signals import StopSignals
from ._launcher.supervisor import end_groups
from ._options.help import program
from ._options.logs import formatter, wants_json
from .launch_router import CustomHelpFormatter, _set_title
from .launch_router import launch_router as launch_router  # verl imports it and `RouterArgs` from here
from .router_args import RouterArgs

if TYPE_CHECKING:
    from ._launcher.supervisor import GroupLeader

__all__ = [
    "RouterArgs",
    "cleanup_processes",
    "find_available_ports",
    "launch_router",
    "launch_server_process",
    "main",
    "run_server",
    "setup_logger",
    "wait_for_server_health",
]

logger = logging.getLogger("router")


def __getattr__(name: str) -> Any:
    # `requests` is patched by upstream's tests, `ServerArgs` and `launch_server` are imported from here by scripts
    # written for upstream. None is needed by the launcher itself. One that is not installed is a missing attribute, so
    # that `hasattr` answers.
    try:
        if name == "requests":
            import requests

            return requests
        if name == "ServerArgs":
            from sglang.srt.server_args import ServerArgs

            return ServerArgs
        if name == "launch_server":
            from sglang.srt.entrypoints.http_server import launch_server

            return launch_server
    except ImportError as error:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}: {error}") from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def setup_logger(stream: TextIO | Console | None = None, *, as_json: bool = False) -> logging.Logger:
    """Gives the logger `router` level INFO and one handler, however often this is called.

    Args:
        stream: where lines go; `None` means standard error.
        as_json: write lines as JSON objects.

    Returns:
        The logger.
    """
    logger.setLevel(logging.INFO)
    for old in list(logger.handlers):
        if getattr(old, "of_launch_server", False):
            logger.removeHandler(old)
    handler: logging.Handler = logging.StreamHandler(stream)
    handler.of_launch_server = True  # type: ignore[attr-defined]
    handler.setFormatter(formatter("%(asctime)s %(levelname)s launcher: %(message)s", as_json=as_json))
    logger.addHandler(handler)
    logger.propagate = False
    return logger


def run_server(server_args: ServerArguments, dp_rank: int) -> None:
    """Serves one replica in this process, which becomes the leader of a process group.

    Args:
        server_args: SGLang's `ServerArgs`, or `SimServerArgs` for a simulated worker.
        dp_rank: the replica's rank, from 0; exported as `SGLANG_DP_RANK`, but not in pairs, where each server is alone.
    """
    if os.getpgrp() != os.getpid():
        os.setpgrp()
    _set_title("sglang::server")
    if getattr(server_args, "disaggregation_mode", None) in (None, "null"):
        os.environ["SGLANG_DP_RANK"] = str(dp_rank)
    if isinstance(server_args, SimServerArgs):
        server_args.serve()
        return
    from sglang.srt.entrypoints.http_server import launch_server

    launch_server(server_args)


def launch_server_process(server_args: ServerArguments, worker_port: int, dp_id: int) -> mp.Process:
    """Starts one replica in a process of its own.

    Args:
        server_args: arguments of all replicas; a copy is adapted to this one.
        worker_port: TCP port the replica listens on.
        dp_id: the replica's rank, from 0.

    Returns:
        The running process.
    """
    process = mp.Process(target=run_server, args=(replica(server_args, worker_port, dp_id), dp_id))
    process.start()
    return process


def wait_for_server_health(host: str, port: int, timeout: float = 300) -> bool:
    """Polls `/health` every second until it returns 200. For scripts: the launcher relies on the gateway's probes.

    Args:
        host: address the server listens on.
        port: its TCP port.
        timeout: longest wait, seconds.

    Returns:
        Whether the server is healthy.

    Raises:
        AttributeError: the package `requests` is not installed.
    """
    requests = sys.modules[__name__].requests  # through the module: upstream's tests replace it there
    started = time.perf_counter()
    while time.perf_counter() - started < timeout:
        try:
            if requests.get(f"{worker_url(host, port)}/health", timeout=5).status_code == 200:
                return True
        except requests.exceptions.RequestException:
            pass
        time.sleep(1)
    return False


def cleanup_processes(processes: Iterable[GroupLeader], timeout: float = 5.0) -> None:
    """Ends process groups: SIGTERM to all of them, then SIGKILL to those left.

    Args:
        processes: leaders of the groups, as `launch_server_process` returns them.
        timeout: longest wait between the two signals, for all together, seconds.
    """
    end_groups(processes, timeout)


def main(argv: list[str] | None = None) -> None:
    """Runs a command line; `None` means this process's own.

    Raises:
        SystemExit: 128 + signal after a stop signal, 2 for wrong options, 1 when the start fails, otherwise the exit
            code of the worker that did not come up.
    """
    words = sys.argv[1:] if argv is None else argv
    console = Console(as_json=wants_json(words, "--router-json-log"))
    stop = StopSignals()
    stop.install()
    try:
        setup_logger(console, as_json=console.as_json)
        args, groups = _parse(words)
        sys.exit(run(args, groups, stop, console, launch_server_process))
    except ValueError as error:
        console.fail(str(error))
        sys.exit(2)
    except (RuntimeError, OSError, ImportError) as error:
        sys.exit(console.last_line(str(error)))
    finally:
        stop.restore()


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[Group]]:
    return parse(argv, program(__name__), CustomHelpFormatter)
