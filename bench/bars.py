"""Bars as SVG, which a Markdown page can show."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, NAMES, FIGURES = 720, 130, 110
BAR, GAP, HEAD = 18, 8, 34
OURS, OTHERS = "#2f6fde", "#adb5bd"


@dataclass(frozen=True)
class Bar:
    """A row: whose it is, its length, and the figure as text."""

    name: str
    value: float
    text: str


def bars(title: str, rows: Sequence[Bar]) -> str:
    """Horizontal bars from 0, the longest over the whole width; ours has a colour."""
    longest = max((row.value for row in rows), default=0) or 1.0
    height = HEAD + len(rows) * (BAR + GAP)
    parts = [f'<text x="0" y="16" font-weight="600">{html.escape(title)}</text>']
    for place, row in enumerate(rows):
        top, wide = HEAD + place * (BAR + GAP), (WIDTH - NAMES - FIGURES) * row.value / longest
        colour = OURS if row.name == "ours" else OTHERS
        parts += [
            f'<text x="{NAMES - 8}" y="{top + 13}" text-anchor="end">{html.escape(row.name)}</text>',
            f'<rect x="{NAMES}" y="{top}" width="{wide:.1f}" height="{BAR}" fill="{colour}"/>',
            f'<text x="{NAMES + wide + 8:.1f}" y="{top + 13}">{html.escape(row.text)}</text>',
        ]
    label = html.escape(f"{title}. " + "; ".join(f"{row.name}: {row.text}" for row in rows), quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{label}" font-family="system-ui, sans-serif" font-size="13" fill="#495057">'
        f"{''.join(parts)}</svg>\n"
    )
