"""Many fleets in one go: which of them serves a trace within its times, and how few workers that takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias

from .report import Report

Axis: TypeAlias = tuple[str, list[float]]
"""An option of the fleet, and its values."""
_SHORT = {"kv_tokens": "cache tokens", "prefill_tps": "tokens/s"}


@dataclass(frozen=True)
class Goal:
    """What is to be met: times in milliseconds, and by which share of requests."""

    share: float
    ttft_ms: float
    # 0: any.
    tpot_ms: float = 0.0

    def __str__(self) -> str:
        text = f"TTFT p{100 * self.share:g} <= {self.ttft_ms:g} ms"
        if self.tpot_ms:
            text = f"{self.share:.0%} within TTFT {self.ttft_ms:g} ms and TPOT {self.tpot_ms:g} ms"
        return text

    def is_met(self, report: Report) -> bool:
        """Whether so many requests were within the times; rejected ones are not."""
        return bool(report["goodput"] >= self.share)

    def ttft_of(self, report: Report) -> float:
        """The time to first token that this share of requests does not exceed."""
        curve: Sequence[float] = report["ttft_quantiles_ms"]
        return curve[min(len(curve) - 1, round(self.share * (len(curve) - 1)))]


@dataclass(frozen=True)
class Case:
    """One fleet under one policy."""

    at: tuple[float, ...]
    report: Report

    @property
    def policy(self) -> str:
        """Its name."""
        return str(self.report["policy"])


def number(value: float) -> str:
    """A value of an axis."""
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


def points(axes: Sequence[Axis]) -> list[dict[str, float]]:
    """All combinations of the axes' values."""
    names = [name for name, _ in axes]
    return [dict(zip(names, values, strict=True)) for values in product(*(values for _, values in axes))]


def table(axes: Sequence[Axis], cases: Sequence[Case], goal: Goal) -> str:
    """A row per case."""
    names = [_SHORT.get(name, name.replace("_", " ")) for name, _ in axes]
    rows = [[*names, "policy", "hit", "mean", f"p{100 * goal.share:g}", "goodput", "rejected", "meets"]]
    for case in cases:
        report = case.report
        times = [f"{report['ttft_mean_ms']:,.1f}", f"{goal.ttft_of(report):,.1f}"]
        shares = [f"{report['goodput']:.3f}", f"{report['rejected']:,.0f}", "yes" if goal.is_met(report) else "no"]
        rows.append([*map(number, case.at), case.policy, f"{report['hit_ratio']:.3f}", *times, *shares])
    place = len(names)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) if at == place else cell.rjust(width) for at, (cell, width) in enumerate(cells))
        for cells in ([*zip(row, widths, strict=True)] for row in rows)
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def answer(axes: Sequence[Axis], cases: Sequence[Case], goal: Goal) -> str:
    """The smallest fleet that meets the goal, and the next smaller one that does not, in one sentence.

    The first axis counts first: of two fleets with as many workers, the one with the smaller cache is smaller.
    """
    good = [case for case in cases if goal.is_met(case.report)]
    if not good:
        best = max(cases, key=lambda case: (case.report["goodput"], -goal.ttft_of(case.report)))
        nearest = f"{_fleet(axes, best)} with {best.policy}"
        return f"No fleet of these meets {goal}; the nearest, {nearest}, serves {best.report['goodput']:.1%}."
    smallest = min(good, key=lambda case: (*case.at, goal.ttft_of(case.report)))
    same = sorted((case for case in good if case.at == smallest.at), key=lambda case: goal.ttft_of(case.report))
    policies = " or ".join(case.policy for case in same)
    text = f"{_fleet(axes, smallest)} with {policies} meet {goal}"
    name, values = axes[0]
    smaller = [value for value in values if value < smallest.at[0]]
    return f"{text}; {_quantity(name, max(smaller))} do not, with any policy." if smaller else f"{text}."


def _quantity(name: str, value: float) -> str:
    return f"{number(value)} {_SHORT.get(name, name.replace('_', ' '))}"


def _fleet(axes: Sequence[Axis], case: Case) -> str:
    first, *others = (_quantity(name, value) for (name, _), value in zip(axes, case.at, strict=True))
    return first + (f" ({', '.join(others)})" if others else "")
