"""One worker process: a session of its own, its output kept, killed when its launcher dies.

`Process` offers what `launch_server` needs of `multiprocessing.Process`, under the same names. What differs: the
child leads a session and process group of its own from its first instruction, the kernel kills it when the launcher
dies, and its output passes through the launcher, which remembers the last lines.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import watchdog

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_TAIL_LINES = 40
_LONGEST_LINE = 8192  # bytes; longer ones are cut into pieces
_SWEEP_SECS = 2.0
# Last words must not stay in a buffer; titles must not be written over the environment, where the watchdog's mark is.
_SETTINGS = {"PYTHONUNBUFFERED": "1", "SPT_NOENV": "1"}

# The child imports from where the launcher did, and not from whatever lies in the current directory.
_CHILD = """\
import os, sys
sys.path[:] = sys.argv[1].split(os.pathsep)
from sgl_model_gateway._launcher.process import child_main
child_main(int(sys.argv[2]))
"""


class Process:
    """Runs `target(*args)` in a Python process of its own; both are pickled.

    `sink` gets every line the process and its children print, without the line end, from another thread.
    """

    def __init__(
        self, target: Callable[..., Any], args: tuple[Any, ...] = (), sink: Callable[[str], None] | None = None
    ) -> None:
        self._payload = pickle.dumps((target, args))
        self.sink = sink
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._popen: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None

    def start(self) -> None:
        """Starts the process.

        The calling thread has to live on: the kernel kills the process when that thread ends.
        """
        self._popen = subprocess.Popen(
            [sys.executable, "-c", _CHILD, os.pathsep.join(_import_path()), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | _SETTINGS | {watchdog.MARK: watchdog.mark()},
        )
        assert self._popen.stdin is not None
        self._reader = threading.Thread(target=self._read, name=f"output of {self.pid}", daemon=True)
        try:
            self._reader.start()
        except RuntimeError:  # no thread left: the process would run unnoticed
            self._popen.kill()
            self._popen.wait()
            self._popen.stdin.close()
            raise
        # A child that is gone already shows in its exit code.
        with contextlib.suppress(BrokenPipeError):
            self._popen.stdin.write(self._payload)
        with contextlib.suppress(BrokenPipeError):
            self._popen.stdin.close()

    @property
    def pid(self) -> int | None:
        """Process id, which is the id of its group as well; `None` before `start`."""
        return self._popen.pid if self._popen else None

    @property
    def exitcode(self) -> int | None:
        """Exit code, `-signal` when a signal ended it, `None` while it runs."""
        return self._popen.poll() if self._popen else None

    def is_alive(self) -> bool:
        """Whether it was started and runs."""
        return self._popen is not None and self._popen.poll() is None

    def join(self, timeout: float | None = None) -> None:
        """Waits until it has ended, at most `timeout` seconds."""
        assert self._popen is not None, "not started"
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(timeout)

    def tail(self) -> list[str]:
        """The last lines it printed; complete once its whole group has ended."""
        if self._reader and not self.is_alive():
            self._reader.join(_SWEEP_SECS)
        return list(self._tail)

    def sweep(self) -> None:
        """Ends and reaps what is left of its group. Only after the process itself has ended."""
        assert self.pid is not None and not self.is_alive(), "still running"
        deadline = time.monotonic() + _SWEEP_SECS
        while signal_group(self.pid, signal.SIGKILL) and time.monotonic() < deadline:
            _reap_group(self.pid)
            time.sleep(0.005)

    def _read(self) -> None:
        assert self._popen is not None and self._popen.stdout is not None
        rest = b""
        with self._popen.stdout as output:
            while chunk := os.read(output.fileno(), 65536):
                *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
                if len(rest) > _LONGEST_LINE:
                    lines, rest = [*lines, rest], b""
                self._pass_on(lines)
        self._pass_on([rest])

    def _pass_on(self, lines: list[bytes]) -> None:
        for line in filter(None, lines):
            text = line.decode(errors="replace")
            self._tail.append(text)
            if self.sink:
                self.sink(text)


def _import_path() -> list[str]:
    """Where this process finds modules; the package's own home first if it is not among them."""
    places = [os.path.abspath(place) for place in sys.path if isinstance(place, str)]
    home = str(Path(__file__).parents[2])
    return places if home in places else [home, *places]


def signal_group(pid: int, number: int) -> bool:
    """Sends a signal to a process group and returns whether there was one."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # macOS, for a group of zombies
        return False
    return True


def _reap_group(pid: int) -> None:
    """Reaps ended processes of a group. Orphans are children of the launcher, see `adopt_orphans`."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-pid, os.WNOHANG)[0]:
            pass


def _prctl(option: int, value: int) -> None:
    """Sets a process option. Without `prctl` (macOS) only the watchdog ends workers."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def adopt_orphans(adopt: bool) -> None:
    """Turns adoption on or off: descendants whose parent died become children of this process, which reaps them."""
    _prctl(_PR_SET_CHILD_SUBREAPER, int(adopt))


def adopted(known: set[int]) -> list[int]:
    """This process's children that are not `known`; empty where the kernel does not list children."""
    children: set[int] = set()
    for listing in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            children.update(map(int, listing.read_text().split()))
    return sorted(children - known)


def reap_adopted(known: set[int]) -> None:
    """Reaps adopted orphans that have ended. One system call when no child has."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(ChildProcessError):
        if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            for pid in adopted(known):
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)


def end_adopted(known: set[int]) -> None:
    """Ends and reaps orphans that left their group."""
    deadline = time.monotonic() + _SWEEP_SECS
    while (orphans := adopted(known)) and time.monotonic() < deadline:
        for pid in orphans:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.005)


def child_main(launcher: int) -> None:
    """Runs in the child. `launcher` is the process id of the launcher; without it the child ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:  # it died before the kernel knew
        os._exit(1)
    with sys.stdin.buffer as payload:
        target, args = pickle.load(payload)
    # Engines start processes of their own, which must not find a closed descriptor 0.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    target(*args)
