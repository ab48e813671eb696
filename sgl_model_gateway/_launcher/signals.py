"""The signals that end the launcher, in the order they come."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeAlias

_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)


_Handler: TypeAlias = "Callable[[int, FrameType | None], Any] | int | None"  # as `signal.signal` returns it


class StopSignals:
    """SIGINT, SIGTERM, SIGQUIT, and SIGHUP unless it is ignored (`nohup`).

    Until `defer` a signal ends the program at once (`SystemExit` with 128 + signal). From then on it is noted and
    ends a `wait`, as does the end of a child. SIGHUP is no stop where `on_hang_up` does something else.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self.on_third: Callable[[], None] = lambda: None
        self.on_hang_up: Callable[[], bool] = lambda: False
        self._deferred = False
        self._saved: dict[int, _Handler] = {}
        self._wake_read, self._wake_write = os.pipe()
        for end in (self._wake_read, self._wake_write):
            os.set_blocking(end, False)
        self._poll = select.poll()
        self._poll.register(self._wake_read, select.POLLIN)

    def install(self) -> None:
        """Installs the handlers; only in the main thread."""
        self._saved_wakeup = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in _STOP:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._saved[number] = signal.signal(number, self._note)
        self._saved[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)

    def restore(self) -> None:
        """Restores the earlier handlers. After a stop signal the signals are ignored, so that the exit code stays."""
        for number, handler in self._saved.items():
            signal.signal(number, signal.SIG_IGN if self.received and number != signal.SIGCHLD else handler)
        signal.set_wakeup_fd(self._saved_wakeup)
        os.close(self._wake_read)
        os.close(self._wake_write)

    def defer(self) -> None:
        """From now on signals are recorded, not raised: there is something to clean up."""
        self._deferred = True
        if self.received:  # raised where it was swallowed, such as in a destructor
            raise SystemExit(self.exit_code)

    @property
    def exit_code(self) -> int:
        """Exit code: 128 + the first signal."""
        return 128 + self.received[0]

    def wait(self, timeout: float) -> None:
        """Waits for a stop signal or the end of a child, at most `timeout` seconds.

        A signal that came before the call ends it at once.
        """
        if self._poll.poll(timeout * 1000):
            try:
                while os.read(self._wake_read, 4096):
                    pass
            except BlockingIOError:
                pass

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP and self.on_hang_up():
            return
        self.received.append(number)
        if not self._deferred:
            raise SystemExit(self.exit_code)
        if len(self.received) == 3:
            self.on_third()
