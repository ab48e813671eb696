"""A gateway in a child of `multiprocessing` does not outlive its parent."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable


def stop_with_parent(stop: Callable[[], object]) -> None:
    """Calls `stop` once the parent process has ended; does nothing outside of children of `multiprocessing`.

    Trainers start the gateway so. One whose trainer is killed would keep its port and its workers.

    Args:
        stop: called from a thread of its own.
    """
    process = sys.modules.get("multiprocessing.process")
    parent = process.parent_process() if process is not None else None
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        stop()

    threading.Thread(target=watch, name="smg-parent", daemon=True).start()
