"""Deadlines instead of sleeps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

DEADLINE = 20.0


def wait_for(condition: Callable[[], Any], what: str, deadline: float = DEADLINE) -> Any:
    """Waits until `condition()` is true and returns its value; fails after `deadline` seconds."""
    end = time.monotonic() + deadline
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {deadline} s: {what}"
        time.sleep(0.01)
    return value


async def until(condition: Callable[[], Any], what: str, deadline: float = DEADLINE) -> Any:
    """`wait_for`, while the event loop goes on."""
    return await asyncio.to_thread(wait_for, condition, what, deadline)
