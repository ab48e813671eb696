"""A snapshot as lines of a terminal.

Names come from workers and clients, so nothing of them reaches the terminal but printable characters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .figures import Figures, History
from .source import Snapshot

_NONE = "-"
_RESET = "\x1b[0m"
_BOLD = "\x1b[1m"
_COLORS = {"good": "\x1b[32m", "warn": "\x1b[33m", "bad": "\x1b[31m"}
_BREAKERS = {"closed": "good", "half_open": "warn", "open": "bad"}
_NARROWEST = 8
_GAP = 2

_Row = tuple[dict[str, Any], Figures]


def clean(text: object) -> str:
    """Text without what would steer a terminal or hide other text."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text))


def _percent(ratio: float | None) -> str:
    return _NONE if ratio is None else f"{100 * ratio:.1f}%"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return _NONE
    return f"{1000 * seconds:.0f}ms" if seconds < 1 else f"{seconds:.2f}s"


def _rate(rate: float | None) -> str:
    return _NONE if rate is None else f"{rate:.1f}"


def _state(row: _Row) -> str:
    worker, _ = row
    words = [str(worker["status"])]
    if worker["paused"]:
        words.append("paused")
    elif worker["status"] == "ready" and not worker["selectable"]:
        words.append("held back")
    return ", ".join(words)


def _state_color(row: _Row) -> str:
    worker, _ = row
    if worker["status"] == "ready":
        return "good" if worker["selectable"] else "warn"
    return "bad" if worker["status"] in ("not_ready", "failed") else "warn"


def _errors(row: _Row) -> str:
    worker, last = row
    return f"{worker['failures']}" + (f" (+{last.errors})" if last.errors else "")


@dataclass(frozen=True)
class _Column:
    name: str
    text: Callable[[_Row], object]
    # What is sorted by; texts are from A on, numbers from the largest.
    key: Callable[[_Row], Any] | None = None
    color: Callable[[_Row], str] | None = None

    @property
    def is_number(self) -> bool:
        return self.key is not None


def _or_none(value: float | None) -> float:
    return -1.0 if value is None else value


# From left to right; where there is no room, the last ones are left out.
_COLUMNS = (
    _Column("worker", lambda row: row[0]["name"]),
    _Column("state", _state, color=_state_color),
    _Column("requests", lambda row: row[0]["requests"], lambda row: row[0]["requests"]),
    _Column("queued", lambda row: row[0]["queued_tokens"], lambda row: row[0]["queued_tokens"]),
    _Column("hits", lambda row: _percent(row[1].predicted), lambda row: _or_none(row[1].predicted)),
    _Column("reported", lambda row: _percent(row[1].reported), lambda row: _or_none(row[1].reported)),
    _Column("ttft", lambda row: _time(row[1].ttft), lambda row: _or_none(row[1].ttft)),
    _Column("req/s", lambda row: _rate(row[1].rate), lambda row: _or_none(row[1].rate)),
    _Column("errors", _errors, lambda row: row[0]["failures"]),
    _Column(
        "breaker",
        lambda row: row[0]["circuit_breaker"],
        color=lambda row: _BREAKERS.get(row[0]["circuit_breaker"], "warn"),
    ),
    _Column("role", lambda row: row[0]["role"]),
    _Column("rank", lambda row: _NONE if row[0]["rank"] is None else row[0]["rank"], lambda row: row[0]["rank"] or 0),
    _Column("model", lambda row: row[0]["model"]),
)
COLUMNS = tuple(column.name for column in _COLUMNS)


@dataclass(frozen=True)
class View:
    """What is shown of a snapshot, and how.

    Attributes:
        sort: the column to sort by; `None` keeps the order of registration.
        filter: only workers whose name, model, role or state has this text.
        color: whether colors are used.
    """

    sort: str | None = None
    filter: str = ""
    color: bool = False

    def lines(self, snapshot: Snapshot, history: History, width: int, height: int | None = None) -> list[str]:
        """The lines of a snapshot, the last one of `history`.

        Args:
            snapshot: what is shown.
            history: it and those before it.
            width: columns of the terminal.
            height: its lines; `None` shows everything.
        """
        rows = [(worker, history.figures(worker)) for worker in snapshot["workers"]]
        chosen = self._sorted([row for row in rows if self._shows(row)])
        head = [*_summary(snapshot), *_pools(snapshot), ""]
        room = len(chosen) if height is None else max(height - len(head) - 2, 0)
        body = self._table(chosen[:room], width)
        left_out = len(rows) - min(room, len(chosen))
        tail = [f"{left_out} of {len(rows)} workers are not shown"] if left_out else []
        lines = [_cut(clean(line), width) for line in head] + body + [_cut(line, width) for line in tail]
        return lines if height is None else lines[:height]

    def _shows(self, row: _Row) -> bool:
        worker, _ = row
        text = f"{worker['name']} {worker['model']} {worker['role']} {_state(row)}"
        return self.filter.lower() in text.lower()

    def _sorted(self, rows: list[_Row]) -> list[_Row]:
        column = next((column for column in _COLUMNS if column.name == self.sort), None)
        if column is None:
            return rows
        return sorted(rows, key=column.key or (lambda row: str(column.text(row)).lower()), reverse=column.is_number)

    def _table(self, rows: list[_Row], width: int) -> list[str]:
        texts = [[clean(column.text(row)) for column in _COLUMNS] for row in rows]
        widths = [max(map(len, [column.name, *(text[at] for text in texts)])) for at, column in enumerate(_COLUMNS)]
        widths = _fit(widths, width)
        lines = [self._painted(_line([column.name for column in _COLUMNS], widths), _BOLD)]
        for row, text in zip(rows, texts, strict=True):
            cells = _cells(text, widths)
            for at, column in enumerate(_COLUMNS[: len(cells)]):
                if column.color:
                    cells[at] = self._painted(cells[at], _COLORS[column.color(row)])
            lines.append((" " * _GAP).join(cells).rstrip())
        return lines

    def _painted(self, text: str, code: str) -> str:
        return f"{code}{text}{_RESET}" if self.color else text


def _summary(snapshot: Snapshot) -> list[str]:
    workers, limits = snapshot["workers"], snapshot["limits"]
    ready = sum(worker["selectable"] for worker in workers)
    waiting = (limits.get("queued") or 0) + (limits.get("queued_for_a_worker") or 0)
    most = limits.get("max_concurrent_requests")
    in_flight = sum(worker["requests"] for worker in workers)
    state = "stopping" if snapshot["draining"] else f"up {_age(snapshot['uptime_secs'])}"
    return [
        f"gateway {snapshot['version']}, {snapshot['policy']}, {state}",
        f"{ready} of {len(workers)} workers get requests, {in_flight} requests in flight"
        + (f" (limit {most})" if most else "")
        + f", {waiting} wait, {sum(worker['queued_tokens'] for worker in workers)} tokens queued",
    ]


def _pools(snapshot: Snapshot) -> list[str]:
    return [
        f"{pool['model'] or 'any model'}, {pool['role']}: {pool['policy']}, {pool['selectable']} workers"
        + (f" and {pool['fallback']} as a last resort" if pool["fallback"] else "")
        + (f", {pool['queued']} requests wait" if pool["queued"] else "")
        for pool in snapshot["pools"]
    ]


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _fit(widths: list[int], width: int) -> list[int]:
    """The columns that there is room for; the worker's name gives way first."""
    fixed = sum(widths[1:]) + _GAP * (len(widths) - 1)
    name = min(widths[0], max(width - fixed, min(widths[0], 24)))
    kept = [max(min(name, width), min(_NARROWEST, width))]
    for column in widths[1:]:
        if sum(kept) + _GAP * len(kept) + column > width:
            break
        kept.append(column)
    return kept


def _cells(texts: list[str], widths: list[int]) -> list[str]:
    cells = []
    for column, text, width in zip(_COLUMNS, texts, widths, strict=False):
        text = _cut(text, width)
        cells.append(text.rjust(width) if column.is_number else text.ljust(width))
    return cells


def _line(texts: list[str], widths: list[int]) -> str:
    return (" " * _GAP).join(_cells(texts, widths)).rstrip()


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(width - 1, 0)] + "~"[:width]
