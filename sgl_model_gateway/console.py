"""What the launcher shows: lines, and on a terminal a bar below them."""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import TextIO

_WIDTH = 30


class Console:
    """Lines from several threads and one bar, on standard error. Also a stream for `logging`."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._lock = threading.RLock()
        self._bar = ""
        self.is_terminal = self._stream.isatty()

    def line(self, text: str) -> None:
        """A line of its own, above the bar."""
        self.write(f"{text}\n")

    def write(self, text: str) -> None:
        """Whole lines. A reader that went away must not end the launcher."""
        with self._lock, contextlib.suppress(OSError, ValueError):
            erase = f"\r{' ' * len(self._bar)}\r" if self._bar else ""
            self._stream.write(f"{erase}{text}{self._bar}")
            self._stream.flush()

    def flush(self) -> None:
        """For `logging`; every write is flushed."""

    def show(self, done: int, total: int, seconds: float) -> None:
        """The bar, on terminals only: `done` of `total` workers ready after `seconds`."""
        if self.is_terminal:
            filled = _WIDTH * done // total
            bar = f"[{'#' * filled:.<{_WIDTH}}] {done}/{total} workers ready, {seconds:.0f} s"
            with self._lock:
                self.clear()
                self.write(bar)
                self._bar = bar

    def clear(self) -> None:
        """No bar any more."""
        with self._lock:
            if self._bar:
                blank, self._bar = " " * len(self._bar), ""
                self.write(f"\r{blank}\r")
