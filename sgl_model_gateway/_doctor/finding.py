"""What a check found, and how that is shown."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

Status: TypeAlias = Literal["ok", "warn", "fail"]
_NAME_WIDTH = 14
_TEXT_WIDTH = 120


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        check: the name of the check.
        status: `ok`; `warn` where the gateway serves, but not as well or not as asked; `fail` where it cannot.
        finding: what was found.
        advice: what to do about it; empty for `ok`.
    """

    check: str
    status: Status
    finding: str
    advice: str = ""


def has_failed(findings: Sequence[Finding]) -> bool:
    """Whether any check failed."""
    return any(found.status == "fail" for found in findings)


def as_json(findings: Sequence[Finding], version: str) -> str:
    """The report as one JSON object: `ok`, `version`, `checks`."""
    report = {"ok": not has_failed(findings), "version": version, "checks": [asdict(found) for found in findings]}
    return json.dumps(report, indent=2)


def as_text(findings: Sequence[Finding]) -> str:
    """The report as lines: status, check, finding; the advice below it. The last line counts."""
    lines = [line for found in findings for line in _lines(found)]
    counts = {word: sum(found.status == word for found in findings) for word in ("ok", "warn", "fail")}
    lines.append(", ".join(f"{count} {word}" for word, count in counts.items()))
    return "\n".join(lines)


def _lines(found: Finding) -> list[str]:
    lead = f"{found.status:<5} {found.check:<{_NAME_WIDTH}} "
    margin = " " * len(lead)
    lines = _wrapped(found.finding, lead, margin)
    return lines + _wrapped(found.advice, f"{margin}-> ", f"{margin}   ") if found.advice else lines


def _wrapped(text: str, lead: str, margin: str) -> list[str]:
    return textwrap.wrap(
        text,
        _TEXT_WIDTH,
        initial_indent=lead,
        subsequent_indent=margin,
        break_long_words=False,
        break_on_hyphens=False,
    )
