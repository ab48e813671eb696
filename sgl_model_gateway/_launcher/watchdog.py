"""Ends the workers' process groups when the launcher is killed: a process that waits for the end of a pipe.

The kernel kills each worker when the launcher dies, but not what a worker has started itself. Of that the watchdog
knows the group, and a mark in the environment for whatever left the group. This file runs as a script of its own,
without the package, to be small and quick.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

MARK = "SGL_MODEL_GATEWAY_LAUNCHER"
_SWEEP_SECS = 2.0


def mark() -> str:
    """The launcher's mark in its workers' environment (`MARK`): its process id and start time."""
    try:
        with open("/proc/self/stat") as stat:
            began = stat.read().rpartition(")")[2].split()[19]
    except OSError:
        began = ""
    return f"{os.getpid()}-{began}"


class Watchdog:
    """The launcher's end of the pipe."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, mark()],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Process id of the watchdog."""
        return self._process.pid

    def watch(self, group: int) -> None:
        """Adds a process group to those that end with the launcher."""
        self._send(f"+{group}\n")

    def forget(self, group: int) -> None:
        """Removes a group that has ended: its id may be used again."""
        self._send(f"-{group}\n")

    def close(self) -> None:
        """Ends the watchdog, and every group that is still watched."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        # Without the watchdog (killed by hand) the workers themselves still die with the launcher.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()


def main() -> None:
    """Keeps the set of groups until the pipe ends, then kills those left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    deadline = time.monotonic() + _SWEEP_SECS
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    if groups:
        _kill_marked(f"{MARK}={sys.argv[1]}".encode(), deadline)


def _kill_marked(wanted: bytes, deadline: float) -> None:
    """Kills marked processes until none is found: one may start another in the meantime."""
    while (found := list(_marked(wanted))) and time.monotonic() < deadline:
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _marked(wanted: bytes) -> Iterator[int]:
    """Process ids with the mark in their environment; none without /proc (macOS)."""
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        with contextlib.suppress(OSError, ValueError), open(f"/proc/{int(name)}/environ", "rb") as environment:
            if wanted in environment.read().split(b"\0"):
                yield int(name)


if __name__ == "__main__":
    main()
