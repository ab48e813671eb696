"""A process of its own whose output is kept line by line."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from .waiting import DEADLINE, wait_for


class Process:
    """A Python process, started at once. Its lines can be waited for; `destroy` ends it whatever it is doing.

    Args:
        command: the words after the interpreter.
        python: the interpreter.
        environment: variables besides those of this process.
        deadline: longest wait for a line, seconds.
    """

    def __init__(
        self,
        *command: str,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
        deadline: float = DEADLINE,
    ) -> None:
        self.command = [python, *command]
        self.deadline = deadline
        self.lines: list[str] = []
        self._environment = os.environ | {"PYTHONUNBUFFERED": "1"} | dict(environment or {})
        self._taken = 0
        self._spawn()

    def _spawn(self) -> None:
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self._environment
        )
        self._reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        self._reader.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as output:
            for line in output:
                self.lines.append(line.rstrip())

    def text(self) -> str:
        """All lines so far."""
        return "\n".join(self.lines)

    def line(self) -> str:
        """The next line that has not been taken yet."""
        wait_for(lambda: len(self.lines) > self._taken, f"another line after {self.lines[-5:]}", self.deadline)
        self._taken += 1
        return self.lines[self._taken - 1]

    def lines_until_end(self) -> tuple[list[str], int]:
        """The lines that have not been taken yet, and the exit code, once it has ended."""
        code = self.wait()
        rest, self._taken = self.lines[self._taken :], len(self.lines)
        return rest, code

    def wait_for_line(self, pattern: str, occurrence: int = 1, after: int = 0) -> re.Match[str]:
        """The match in the `occurrence`-th line that has one, of the lines from number `after` on."""

        def find() -> re.Match[str] | None:
            matches = (re.search(pattern, line) for line in self.lines[after:])
            found = [match for match in matches if match]
            assert len(found) >= occurrence or self.process.poll() is None, (
                f"ended without a line with {pattern!r}:\n{self.text()}"
            )
            return found[occurrence - 1] if len(found) >= occurrence else None

        found: re.Match[str] = wait_for(find, f"a line with {pattern!r}", self.deadline)
        return found

    def wait_for_start(self, pattern: str) -> re.Match[str]:
        """`wait_for_line` for constructors: without that line the process is destroyed."""
        try:
            return self.wait_for_line(pattern)
        except BaseException:
            self.destroy()
            raise

    def send(self, number: int) -> None:
        """Sends a signal."""
        self.process.send_signal(number)

    def wait(self, deadline: float = DEADLINE) -> int:
        """The exit code, with all output read."""
        code = self.process.wait(deadline)
        self._reader.join(deadline)
        return code

    def end(self, number: int = signal.SIGTERM, deadline: float = DEADLINE) -> int:
        """Sends a signal and returns the exit code."""
        self.send(number)
        return self.wait(deadline)

    def rss(self) -> int:
        """Resident memory, bytes."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def destroy(self) -> None:
        """For the end of a test, however it ended. Also of a process that was stopped with SIGSTOP."""
        self.process.kill()
        self.process.wait()
        self._reader.join(1.0)  # children of the process may keep its output open


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
