"""The launcher's output: lines, and on a terminal a bar below them."""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import TextIO

from .._options.logs import error_line

_WIDTH = 30


class Console:
    """Lines from several threads and one bar. Also a stream for `logging`.

    Args:
        stream: where it all goes; `None` means standard error.
        as_json: write the last line of a failed start as a JSON object.
    """

    def __init__(self, stream: TextIO | None = None, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self._stream = sys.stderr if stream is None else stream
        self._lock = threading.RLock()
        self._bar = ""
        self.is_terminal = self._stream.isatty()

    def line(self, text: str) -> None:
        """Writes one line above the bar."""
        self.write(f"{text}\n")

    def last_line(self, message: str) -> str:
        """The last line of a failed start, as text or JSON."""
        return error_line(message, as_json=self.as_json)

    def fail(self, message: str) -> None:
        """Writes the last line of a failed start."""
        self.line(self.last_line(message))

    def write(self, text: str) -> None:
        """Writes whole lines above the bar. A closed stream does not end the launcher."""
        with self._lock, contextlib.suppress(OSError, ValueError):
            erase = f"\r{' ' * len(self._bar)}\r" if self._bar else ""
            self._stream.write(f"{erase}{text}{self._bar}")
            self._stream.flush()

    def flush(self) -> None:
        """Does nothing: every write is flushed. `logging` calls it."""

    def show(self, done: int, total: int, seconds: float) -> None:
        """Draws the bar, on terminals only: `done` of `total` workers are ready after `seconds`."""
        if self.is_terminal:
            filled = _WIDTH * done // total
            bar = f"[{'#' * filled:.<{_WIDTH}}] {done}/{total} workers ready, {seconds:.0f} s"
            with self._lock:
                self.clear()
                self.write(bar)
                self._bar = bar

    def clear(self) -> None:
        """Removes the bar."""
        with self._lock:
            if self._bar:
                blank, self._bar = " " * len(self._bar), ""
                self.write(f"\r{blank}\r")
