"""What a replay shows: times, errors, cached tokens; and what two of them show of each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from .send import Outcome
from .trace import Trace

PERCENTILES = (50, 90, 95, 99)
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def percentile(ascending: Sequence[float], percent: float) -> float:
    """The value that so many percent do not exceed."""
    return ascending[min(len(ascending) - 1, int(len(ascending) * percent / 100))]


def times(seconds: Sequence[float]) -> dict[str, float]:
    """Mean and percentiles of some times, in milliseconds."""
    ascending = sorted(seconds)
    if not ascending:
        return {}
    found = {f"p{percent}_ms": percentile(ascending, percent) * 1000 for percent in PERCENTILES}
    return {"mean_ms": fmean(ascending) * 1000, **found}


def report(trace: Trace, outcome: Outcome) -> dict[str, Any]:
    """The figures of a replay."""
    replies = outcome.replies
    streamed = [reply.first_s for place, reply in replies.items() if trace.arrivals[place].streams]
    counts = [reply.counts for reply in replies.values() if "cached_tokens" in reply.counts]
    prompt = sum(one.get("prompt_tokens", 0) for one in counts)
    return {
        "requests": len(trace.arrivals),
        "answered": len(replies),
        "errors": dict(outcome.errors),
        "late": outcome.late,
        "took_s": outcome.took_s,
        "ttft": times(streamed),
        "total": times([reply.total_s for reply in replies.values()]),
        "output_tokens": sum(reply.counts.get("output_tokens", 0) for reply in replies.values()),
        "prompt_tokens": prompt,
        "cached_tokens": sum(one["cached_tokens"] for one in counts),
        "hit_ratio": sum(one["cached_tokens"] for one in counts) / prompt if prompt else None,
    }


def recorded(trace: Trace) -> dict[str, Any]:
    """The same as it was when the trace was recorded, as far as that is known."""
    streamed = [one.ttft_ms / 1000 for one in trace.arrivals if one.streams and one.ttft_ms is not None]
    counts = [one for one in trace.arrivals if one.cached_tokens is not None and one.prompt_tokens]
    prompt = sum(one.prompt_tokens or 0 for one in counts)
    cached = sum(one.cached_tokens or 0 for one in counts)
    return {"ttft": times(streamed), "hit_ratio": cached / prompt if prompt else None}


@dataclass(frozen=True)
class Difference:
    """A figure at two servers, in milliseconds, and by how much the second's is more, round by round."""

    figure: str
    first: float
    second: float
    by_round: tuple[float, ...]

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where the difference lies with a confidence of 95 %; `None` after one round.

        It is Student's, over rounds: requests of one round share its queues, so that thousands of them are no thousands
        of samples.
        """
        count = len(self.by_round)
        if count < 2:
            return None
        reach = _student(count - 1) * stdev(self.by_round) / math.sqrt(count)
        return fmean(self.by_round) - reach, fmean(self.by_round) + reach

    @property
    def sentence(self) -> str:
        """What can be said of it."""
        gap = fmean(self.by_round)
        by = f"{abs(gap):.1f} ms ({abs(gap) / self.first:.1%}) {'longer' if gap > 0 else 'shorter'}"
        if self.interval is None:
            return f"{self.figure}: the second's is {by} in one round, which says nothing of chance"
        low, high = self.interval
        where = f"95 % confidence: {low:+.1f} to {high:+.1f} ms, {len(self.by_round)} rounds"
        if low <= 0 <= high:
            return f"{self.figure}: no difference can be shown ({where})"
        return f"{self.figure}: the second's is {by} ({where})"


def compare(trace: Trace, rounds: Sequence[tuple[Outcome, Outcome]]) -> list[Difference]:
    """What rounds of the same trace at two servers show: by requests that both have answered."""
    found: dict[str, list[tuple[float, float]]] = {}
    for pair in rounds:
        both = pair[0].replies.keys() & pair[1].replies.keys()
        streamed = [place for place in both if trace.arrivals[place].streams]
        first = [times([outcome.replies[place].first_s for place in streamed]) for outcome in pair]
        total = [times([outcome.replies[place].total_s for place in both]) for outcome in pair]
        for name, (one, other) in (("TTFT", first), ("total time", total)):
            for figure in ("mean", "p95") if one else ():
                at = f"{figure}_ms"
                found.setdefault(f"{name} {figure}", []).append((one[at], other[at]))
    return [
        Difference(
            figure,
            fmean(one for one, _ in values),
            fmean(other for _, other in values),
            tuple(other - one for one, other in values),
        )
        for figure, values in found.items()
    ]


def _student(freedom: int) -> float:
    """The 97.5 % quantile of Student's distribution."""
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    return 1.96 + 2.37 / freedom + 2.8 / freedom**2
