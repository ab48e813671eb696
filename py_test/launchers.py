"""A launcher in a process of its own, and everything it started, found by a mark in the environment."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path

from conftest import DEADLINE, wait_for

STUB = Path(__file__).parent / "stub_sglang"
_MARK = "LAUNCHER_TEST_MARK"
_SERVING = re.compile(r"gateway at (\S+), all (\d+) workers ready")


@dataclass(frozen=True)
class Kind:
    """What the launcher starts, and with what."""

    flags: str
    python: str = sys.executable
    environment: tuple[tuple[str, str], ...] = ()
    deadline: float = DEADLINE  # seconds until workers of this kind are surely up


KINDS = {
    "sim": Kind("--engine sim --model-path m"),
    "sglang": Kind("--model-path m", environment=(("PYTHONPATH", str(STUB)),)),
}


class Launcher:
    """`python -m sgl_model_gateway.launch_server` with quick settings; flags given later win."""

    def __init__(self, *flags: str, engine: str = "sim", environment: dict[str, str] | None = None) -> None:
        self.mark = uuid.uuid4().hex
        self.base_port = free_base()
        kind = KINDS[engine]
        self.deadline = kind.deadline
        common = [*kind.flags.split(), "--host", "127.0.0.1", "--port", "0"]
        common += ["--router-prometheus-port", "0", "--router-dp-worker-base-port", str(self.base_port)]
        common += ["--router-shutdown-grace-period-secs", "5", "--router-worker-stop-timeout-secs", "5"]
        # Titles are not to be written over the environment, where the mark is.
        variables = os.environ | {_MARK: self.mark, "PYTHONUNBUFFERED": "1", "SPT_NOENV": "1"}
        self.process = subprocess.Popen(
            [kind.python, "-m", "sgl_model_gateway.launch_server", *common, *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=variables | dict(kind.environment) | (environment or {}),
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                self.lines.append(line.rstrip())

    def text(self) -> str:
        return "\n".join(self.lines)

    def wait_for_line(self, pattern: str, occurrence: int = 1) -> re.Match[str]:
        """The match in the `occurrence`-th line that has one."""

        def find() -> re.Match[str] | None:
            found = [match for line in list(self.lines) if (match := re.search(pattern, line))]
            assert len(found) >= occurrence or self.process.poll() is None, self.text()
            return found[occurrence - 1] if len(found) >= occurrence else None

        found: re.Match[str] = wait_for(find, f"a line with {pattern!r}", self.deadline)
        return found

    def url(self) -> str:
        """Where it serves, once all workers are ready."""
        return self.wait_for_line(_SERVING.pattern).group(1)

    def worker_pid(self, rank: int, occurrence: int = 1) -> int:
        return int(self.wait_for_line(rf"worker {rank} started at \S+, pid (\d+)", occurrence).group(1))

    def end(self, number: int = signal.SIGTERM, deadline: float = DEADLINE) -> int:
        """Sends a signal and returns the exit code."""
        self.process.send_signal(number)
        return self.wait(deadline)

    def wait(self, deadline: float = DEADLINE) -> int:
        code = self.process.wait(deadline)
        self._reader.join(deadline)
        return code

    def left(self) -> list[str]:
        """Processes it has started, at any remove, that still run."""
        return marked(self.mark)

    def destroy(self) -> None:
        """For the end of a test, however it ended."""
        self.process.kill()
        self.process.wait()
        for line in self.left():
            try:
                os.kill(int(line.split()[0]), signal.SIGKILL)
            except ProcessLookupError:
                pass


def marked(mark: str) -> list[str]:
    """Process id and command line of every running process that has the mark in its environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            if mark.encode() in (entry / "environ").read_bytes():
                found.append(f"{entry.name} {(entry / 'cmdline').read_bytes().replace(bytes(1), b' ').decode()}")
        except OSError:
            continue
    return found


def forget_sglang() -> None:
    """Lets another `sglang`, or none, be imported into this process."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "sglang"]:
        del sys.modules[name]


_numbers = random.Random(os.getpid())
_given = threading.Lock()


def free_base(count: int = 3) -> int:
    """A port from which `count` blocks of a hundred are free, below the range that clients' sockets use."""
    with _given:
        for _ in range(200):
            base = _numbers.randrange(10000, 28000)
            if all(is_free(base + 100 * block + offset) for block in range(count) for offset in (0, 10)):
                return base
    raise AssertionError("no free ports")


def is_free(port: int) -> bool:
    """Whether it can be bound, leftovers of closed connections aside."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except OSError:
            return False
    return True


def children(pid: int) -> list[tuple[int, str]]:
    """Process id and state (`Z` is a zombie) of every child."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = entry.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid:
            found.append((int(entry.parent.name), state))
    return found


def nothing_is_left(launcher: Launcher, ports: list[int], deadline: float = 5.0) -> None:
    """Fails unless every process is gone and every port is free within the deadline."""
    wait_for(lambda: not launcher.left(), f"nothing left of {launcher.left()}\n{launcher.text()}", deadline)
    # A large process gives its memory back, and with it its environment, before its sockets.
    wait_for(lambda: all(map(is_free, ports)), f"free ports: {ports}\n{launcher.text()}", deadline)
