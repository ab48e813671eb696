"""The launcher as a process, and everything it started, found by a mark in the environment."""

from __future__ import annotations

import os
import re
import signal
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

from .ports import free_base, is_free
from .process import Process, marked
from .waiting import DEADLINE, wait_for

STUB = Path(__file__).parents[1] / "stub_sglang"
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


class Launcher(Process):
    """`python -m sgl_model_gateway.launch_server` with quick settings; flags given later win."""

    def __init__(self, *flags: str, engine: str = "sim", environment: dict[str, str] | None = None) -> None:
        self.mark = uuid.uuid4().hex
        self.base_port = free_base()
        self.bootstrap_port = self.base_port + 50
        kind = KINDS[engine]
        common = [*kind.flags.split(), "--host", "127.0.0.1", "--port", "0"]
        common += ["--router-prometheus-port", "0", "--router-dp-worker-base-port", str(self.base_port)]
        common += ["--disaggregation-bootstrap-port", str(self.bootstrap_port)]
        common += ["--router-shutdown-grace-period-secs", "5", "--router-worker-stop-timeout-secs", "5"]
        # Titles are not to be written over the environment, where the mark is.
        variables = {_MARK: self.mark, "SPT_NOENV": "1"} | dict(kind.environment) | (environment or {})
        super().__init__(
            *("-m", "sgl_model_gateway.launch_server", *common, *flags),
            python=kind.python,
            environment=variables,
            deadline=kind.deadline,
        )

    def url(self) -> str:
        """Where it serves, once all workers are ready."""
        return self.wait_for_line(_SERVING.pattern).group(1)

    def worker_pid(self, rank: int, occurrence: int = 1) -> int:
        return int(self.wait_for_line(rf"worker {rank} started at \S+, pid (\d+)", occurrence).group(1))

    def left(self) -> list[str]:
        """Processes below it, at any depth, that still run."""
        return marked(self.mark)

    def destroy(self) -> None:
        """For the end of a test, however it ended."""
        super().destroy()
        for line in self.left():
            try:
                os.kill(int(line.split()[0]), signal.SIGKILL)
            except ProcessLookupError:
                pass


def forget_sglang() -> None:
    """Lets another `sglang`, or none, be imported into this process."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "sglang"]:
        del sys.modules[name]


def nothing_is_left(launcher: Launcher, ports: list[int], deadline: float = 5.0) -> None:
    """Fails unless every process is gone and every port is free within the deadline."""
    wait_for(lambda: not launcher.left(), f"nothing left of {launcher.left()}\n{launcher.text()}", deadline)
    # A large process gives its memory back, and with it its environment, before its sockets.
    wait_for(lambda: all(map(is_free, ports)), f"free ports: {ports}\n{launcher.text()}", deadline)
