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
# Shown where decode has a cost.
_ENDS: tuple[_Column, ...] = (
    ("tpot", "tpot_mean_ms", _plain(2), min),
    ("tpot p99", "tpot_p99_ms", _plain(1), min),
    ("e2e mean", "e2e_mean_ms", _plain(0), min),
    ("e2e p99", "e2e_p99_ms", _plain(0), min),
    ("tokens/s", "output_tps", _plain(0), max),
)
# Shown only when the trace names tenants.
_TENANTS: tuple[_Column, ...] = (("fairness", "fairness", _share, max),)
# Shown only when memory was short.
_MEMORY: tuple[_Column, ...] = (("retracted", "retracted", _plain(0), min),)
# Shown only when something happened to workers.
_CHURN: tuple[_Column, ...] = (
    ("rerouted", "rerouted", _plain(0), None),
    ("cut", "cut", _plain(0), None),
    ("failed", "failed", _plain(0), None),
    ("ejected", "ejected", _plain(0), None),
)


def table(reports: list[Report], *, to_last_token: bool = False) -> str:
    """The reports as aligned text, with the times to the last token if asked."""

    def happened(columns: tuple[_Column, ...]) -> bool:
        return any(report[field] for report in reports for _, field, _, _ in columns)

    columns = _COLUMNS + (_ENDS if to_last_token else ())
    columns += _TENANTS if any(report["tenant_service"] for report in reports) else ()
    columns += (_MEMORY if happened(_MEMORY) else ()) + (_CHURN if happened(_CHURN) else ())
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
