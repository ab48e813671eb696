"""The table of a replay: a row per run, and one of what was recorded."""

from __future__ import annotations

from typing import Any

_TITLES = ("run", "answered", "errors", "late", "hits", "TTFT mean", "p50", "p95", "p99", "total mean", "p95")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _times(found: dict[str, float], names: tuple[str, ...]) -> list[str]:
    return [f"{found[name]:,.1f}" if name in found else "-" for name in names]


def _row(name: str, run: dict[str, Any]) -> list[str]:
    errors = run.get("errors", {})
    counts = [str(run.get("answered", "-")), str(sum(errors.values())), str(run.get("late", "-"))]
    ttft = _times(run["ttft"], ("mean_ms", "p50_ms", "p95_ms", "p99_ms"))
    return [name, *counts, _share(run["hit_ratio"]), *ttft, *_times(run.get("total", {}), ("mean_ms", "p95_ms"))]


def table(recorded: dict[str, Any], runs: list[dict[str, Any]]) -> str:
    """Times are in milliseconds."""
    rows: list[list[str]] = [list(_TITLES)]
    if recorded["ttft"] or recorded["hit_ratio"] is not None:
        rows.append(_row("recorded", recorded))
    rows += [_row(f"{run['url']} #{run['round']}", run) for run in runs]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    failed = [
        f"{run['url']} #{run['round']}: " + ", ".join(f"{count} × {what}" for what, count in run["errors"].items())
        for run in runs
        if run["errors"]
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], *failed])
