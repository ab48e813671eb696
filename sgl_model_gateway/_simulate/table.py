"""The simulator's table: a row per policy, the best of each column marked."""

from __future__ import annotations

from collections.abc import Callable

from .report import Report

_Column = tuple[str, str, Callable[[float], str], Callable[..., float] | None]


def _plain(digits: int) -> Callable[[float], str]:
    return lambda value: f"{value:,.{digits}f}"


def _share(value: float) -> str:
    return f"{value:.3f}"


# Title, field, how it is written, and which is best.
_COLUMNS: tuple[_Column, ...] = (
    ("hit", "hit_ratio", _share, max),
    ("mean", "ttft_mean_ms", _plain(1), min),
    ("p50", "ttft_p50_ms", _plain(1), min),
    ("p90", "ttft_p90_ms", _plain(1), min),
    ("p99", "ttft_p99_ms", _plain(1), min),
    ("max", "ttft_max_ms", _plain(1), min),
    ("goodput", "goodput", _share, max),
    ("imbalance", "imbalance", _plain(2), min),
    ("rejected", "rejected", _plain(0), min),
    ("us/decision", "decision_mean_us", _plain(2), None),
)
# Shown for pairs, where the last token is another worker's than the first.
_ENDS: tuple[_Column, ...] = (
    ("e2e mean", "e2e_mean_ms", _plain(0), min),
    ("e2e p99", "e2e_p99_ms", _plain(0), min),
    ("tokens/s", "output_tps", _plain(0), max),
)
# Shown only when something happened to workers.
_CHURN: tuple[_Column, ...] = (
    ("rerouted", "rerouted", _plain(0), None),
    ("cut", "cut", _plain(0), None),
    ("failed", "failed", _plain(0), None),
    ("ejected", "ejected", _plain(0), None),
)


def table(reports: list[Report], *, pairs: bool = False) -> str:
    """The reports as aligned text."""
    churned = any(report[field] for report in reports for _, field, _, _ in _CHURN)
    columns = _COLUMNS + (_ENDS if pairs else ()) + (_CHURN if churned else ())
    cells = [["policy", *(report["policy"] for report in reports)]]
    for title, field, write, best in columns:
        cells.append([f"{title} ", *_marked([report[field] for report in reports], write, best)])
    widths = [max(map(len, column)) for column in cells]
    rows = list(zip(*cells, strict=True))
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _marked(values: list[float], write: Callable[[float], str], best: Callable[..., float] | None) -> list[str]:
    """A star behind the best, unless all are the same."""
    shown = [write(value) for value in values]
    if best is None or len(set(shown)) < 2:
        return [f"{text} " for text in shown]
    winner = write(best(values))
    return [f"{text}{'*' if text == winner else ' '}" for text in shown]
