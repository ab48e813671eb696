"""Processes of a measurement: started on one core, ended by their id, and never left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

HOST = "127.0.0.1"
SECOND_SIGNAL_AFTER = 0.3
STOP_TIMEOUT = 5.0
POLL_INTERVAL = 0.05
LOG_TAIL = 600
LAUNCH_TIMEOUT = 20.0


class BenchError(Exception):
    """Why a measurement cannot be made."""


def finish(run: Callable[[], bool]) -> NoReturn:
    """Runs a tool and ends with code 0, or 1 when it failed; Ctrl-C and SIGTERM end what it started."""
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    try:
        clean = run()
    except (BenchError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0 if clean else 1)


def _exit_on_sigterm(*_: object) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


def require_tools(names: Iterable[str]) -> None:
    """Raises `BenchError` when a command is missing."""
    if missing := [name for name in names if not shutil.which(name)]:
        raise BenchError(f"not on PATH: {', '.join(missing)} (Linux, package util-linux)")


def two_cores() -> tuple[int, int]:
    """The core of the gateway and the core of everything else."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise BenchError("needs two cores: one for the gateway, one for the load")
    return cores[0], cores[1]


def require_free(ports: Iterable[int]) -> None:
    """Raises `BenchError` when another process listens on a port."""
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError as error:
                raise BenchError(f"port {port} is taken ({error.strerror}); choose others with --base-port") from error


def pinned(command: Sequence[str], core: int | str) -> list[str]:
    """A command on one core (or on several, "0,1"), which the kernel ends with SIGTERM when this process dies first."""
    return ["setpriv", "--pdeathsig", "TERM", "taskset", "-c", str(core), *command]


@contextmanager
def running(command: Sequence[str], core: int | str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process on one core, in its own session; SIGTERM ends it, or SIGKILL.

    The working directory is that of the log, so `python -m` finds installed packages only.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            pinned(command, core),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env=environment,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        stop(process)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextmanager
def launched(urls: Sequence[str], flags: Sequence[str]) -> Iterator[tuple[int, int]]:
    """The port and the process of a gateway of this version in front of these workers, all of them ready."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "sgl_model_gateway", "launch", "--host", HOST, "--port", str(port)),
        *("--prometheus-port", str(free_port()), "--log-level", "error", "--worker-urls", *urls, *flags),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + LAUNCH_TIMEOUT
        while not _has_healthy(port, len(urls)):
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"no gateway with {len(urls)} healthy workers: {' '.join(command)}")
            time.sleep(POLL_INTERVAL)
        yield port, process.pid
    finally:
        stop(process)


def _has_healthy(port: int, count: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/readiness", timeout=5) as reply:
            return bool(json.load(reply)["healthy_workers"] == count)
    except OSError:
        return False


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and waits for its end. The second SIGTERM cuts the drain of a gateway."""
    for patience in (SECOND_SIGNAL_AFTER, STOP_TIMEOUT):
        process.terminate()
        try:
            process.wait(patience)
            return
        except subprocess.TimeoutExpired:
            continue
    process.kill()
    process.wait()


def wait_until_answered(
    process: subprocess.Popen[bytes],
    log: Path,
    url: str,
    body: bytes | None,
    timeout: float,
    trust: ssl.SSLContext | None = None,
) -> None:
    """Returns once the process answers the request with 200; raises `BenchError` when it ends or takes too long."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BenchError(f"ended with code {process.returncode}: {tail(log)}")
        if _is_answered(url, body, trust):
            return
        time.sleep(POLL_INTERVAL)
    raise BenchError(f"no 200 from {url} within {timeout:.0f} s: {tail(log)}")


def _is_answered(url: str, body: bytes | None, trust: ssl.SSLContext | None) -> bool:
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=2, context=trust) as response:
            return bool(response.status == 200)
    except OSError:  # refused, reset, timed out, or a status that is an error
        return False


def tail(log: Path) -> str:
    """The end of a log."""
    return log.read_text(errors="replace")[-LOG_TAIL:].strip()


def process_tree(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    return found
