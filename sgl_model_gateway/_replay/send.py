"""A trace sent at its own times: open loop, as clients are, with a bound on what is in flight."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from .client import Client, Reply, ReplyError
from .prompts import body, endpoint_of, prompt_text
from .trace import Arrival, Trace

# Later than this after its time a request is late: the load was not the recorded one.
_LATE_S = 0.05


@dataclass(frozen=True)
class Pace:
    """How a trace is sent."""

    speed: float = 1.0
    max_in_flight: int = 1024
    # Longest wait for a reply.
    timeout_s: float = 600.0
    # Mixed into the text: other texts share nothing with those of another salt.
    salt: str = ""
    # In place of the recorded model.
    model: str | None = None


@dataclass
class Outcome:
    """What came back, by the place of a request in the trace."""

    replies: dict[int, Reply] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    late: int = 0
    took_s: float = 0.0


async def send(client: Client, trace: Trace, pace: Pace, progress: Callable[[int], None] | None = None) -> Outcome:
    """Sends every request at its time, and waits for all replies."""
    outcome = Outcome()
    places = asyncio.Semaphore(pace.max_in_flight)
    started, first = time.monotonic(), trace.arrivals[0].at_ms
    tasks: set[asyncio.Task[None]] = set()

    async def one(place: int, arrival: Arrival, request: bytes) -> None:
        headers = {"x-smg-routing-key": arrival.session} if arrival.session else None
        try:
            reply = client.post(endpoint_of(arrival), request, headers)
            outcome.replies[place] = await asyncio.wait_for(reply, pace.timeout_s)
        except ReplyError as error:
            outcome.errors[str(error)] += 1
        except (asyncio.TimeoutError, TimeoutError):
            outcome.errors["timeout"] += 1
        finally:
            places.release()

    for place, arrival in enumerate(trace.arrivals):
        # Before its time, so that it goes at its time.
        request = body(arrival, prompt_text(arrival, trace.block_bytes, pace.salt), pace.model)
        due = started + (arrival.at_ms - first) / 1000 / pace.speed
        await asyncio.sleep(due - time.monotonic())
        await places.acquire()
        outcome.late += time.monotonic() - due > _LATE_S
        task = asyncio.create_task(one(place, arrival, request))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        if progress:
            progress(place + 1)
    if tasks:
        await asyncio.wait(tasks)
    outcome.took_s = time.monotonic() - started
    return outcome
