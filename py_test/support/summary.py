"""The table at the end of a test run: a row per folder of tests."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest import TerminalReporter, TestReport

_HEAD = ("folder", "files", "tests", "failed", "skipped", "seconds")


def table(reports: Iterable[TestReport]) -> list[str]:
    """Aligned lines: files, tests, failures, skips and seconds per folder, and a line for all.

    Args:
        reports: those of set-up, call and tear-down of every test.
    """
    groups: dict[str, list[TestReport]] = defaultdict(list)
    for report in reports:
        groups[str(PurePosixPath(_file(report)).parent)].append(report)
    if not groups:
        return []
    rows = [_HEAD, *(_row(name, groups[name]) for name in sorted(groups))]
    if len(groups) > 1:
        rows.append(_row("all", [report for group in groups.values() for report in group]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def _row(name: str, reports: list[TestReport]) -> tuple[str, ...]:
    tests = {report.nodeid for report in reports}
    failed = {report.nodeid for report in reports if report.failed}
    skipped = {report.nodeid for report in reports if report.skipped}
    files = {_file(report) for report in reports}
    counts = (len(files), len(tests), len(failed), len(skipped))
    return (name, *map(str, counts), f"{sum(report.duration for report in reports):.1f}")


def _file(report: TestReport) -> str:
    return report.nodeid.partition("::")[0]


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Writes the table below everything else that pytest has to say."""
    reports = (report for group in terminalreporter.stats.values() for report in group)
    lines = table(report for report in reports if hasattr(report, "when") and hasattr(report, "duration"))
    if lines:
        terminalreporter.section("what ran")
        for line in lines:
            terminalreporter.line(line)
