"""What the sums in two snapshots say of the time between them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from .source import Snapshot

# Seconds over which ratios and rates are taken.
_SPAN = 60


@dataclass(frozen=True)
class Figures:
    """A worker's last minute; ratios and the mean TTFT are those since it joined where there was nothing in it."""

    predicted: float | None
    reported: float | None
    ttft: float | None
    rate: float | None
    errors: int


class History:
    """The snapshots of the last minute."""

    def __init__(self) -> None:
        # Each with its time and its workers by id.
        self._past: deque[tuple[float, dict[str, dict[str, Any]]]] = deque(maxlen=_SPAN + 1)

    def add(self, snapshot: Snapshot) -> None:
        """Takes the next snapshot; those from before a restart of the gateway are forgotten."""
        now = snapshot["uptime_secs"]
        if self._past and now < self._past[-1][0]:
            self._past.clear()
        self._past.append((now, {worker["id"]: worker for worker in snapshot["workers"]}))

    def figures(self, worker: dict[str, Any]) -> Figures:
        """What a worker of the last snapshot did."""
        before, since = worker, 0.0
        for at, workers in self._past:
            if worker["id"] in workers:
                before, since = workers[worker["id"]], self._past[-1][0] - at
                break

        def ratio(part: str, whole: str) -> float | None:
            recent = worker[whole] - before[whole]
            if recent > 0:
                return float((worker[part] - before[part]) / recent)
            return worker[part] / worker[whole] if worker[whole] else None

        errors = worker["failures"] - before["failures"]
        ended = worker["successes"] - before["successes"] + errors
        return Figures(
            predicted=ratio("predicted_tokens", "prompt_tokens"),
            reported=ratio("reported_tokens", "reported_prompt_tokens"),
            ttft=ratio("ttft_secs", "streams"),
            rate=ended / since if since > 0 else None,
            errors=errors,
        )
