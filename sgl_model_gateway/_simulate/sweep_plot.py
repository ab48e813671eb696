"""The picture of a sweep: SVG that needs nothing else."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from .plot import colour, time_text
from .sweep import Axis, Case, Goal, number

_WIDTH, _PANEL, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 320, 70, 170, 46, 44
_STYLE = """\
text { font: 12px system-ui, sans-serif; fill: #495057 } .title { font-size: 14px; fill: #212529 }
.grid { stroke: #e9ecef } .curve { fill: none; stroke-width: 2 } .goal { stroke: #212529; stroke-dasharray: 5 4 }
@media (prefers-color-scheme: dark) { svg { background: #16181b } text, .title { fill: #ced4da }
.grid { stroke: #343a40 } .goal { stroke: #f8f9fa } }"""


def write_svg(path: Path, axes: Sequence[Axis], cases: Sequence[Case], goal: Goal) -> None:
    """A panel per combination of all axes but the first; in it a line per policy over the first axis."""
    panels = list(product(*(values for _, values in axes[1:])))
    parts: list[str] = []
    for place, rest in enumerate(panels):
        of_panel = [case for case in cases if case.at[1:] == rest]
        named = ", ".join(f"{name} {number(value)}" for (name, _), value in zip(axes[1:], rest, strict=True))
        title = html.escape(f"{goal}" + (f"; {named}" if named else ""))
        inside = "".join(_panel(axes[0], of_panel, goal))
        head = f'<text class="title" x="{_LEFT}" y="24">{title}</text>'
        parts.append(f'<g transform="translate(0 {place * _PANEL})">{head}{inside}</g>')
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_PANEL * len(panels)}" role="img" '
        f'aria-label="{html.escape(str(goal))}"><style>{_STYLE}</style>{"".join(parts)}</svg>\n',
        encoding="utf-8",
    )


def _panel(axis: Axis, cases: Sequence[Case], goal: Goal) -> Iterator[str]:
    name, values = axis
    wide, tall = _WIDTH - _LEFT - _RIGHT, _PANEL - _TOP - _BOTTOM
    times = [max(goal.ttft_of(case.report), 0.1) for case in cases]
    low, high = math.floor(math.log10(min(*times, goal.ttft_ms))), math.ceil(math.log10(max(*times, goal.ttft_ms)))
    high = max(high, low + 1)

    def x(value: float) -> float:
        return _LEFT + wide * (values.index(value) + 0.5) / len(values)

    def y(time: float) -> float:
        return _TOP + tall * (high - math.log10(max(time, 0.1))) / (high - low)

    for decade in range(low, high + 1):
        at = y(10.0**decade)
        yield f'<line class="grid" x1="{_LEFT}" x2="{_LEFT + wide}" y1="{at:.1f}" y2="{at:.1f}"/>'
        yield f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{time_text(10.0**decade)}</text>'
    for value in values:
        yield f'<text x="{x(value):.1f}" y="{_PANEL - 24}" text-anchor="middle">{number(value)}</text>'
    middle = _LEFT + wide / 2
    yield f'<text x="{middle:.1f}" y="{_PANEL - 6}" text-anchor="middle">{html.escape(name.replace("_", " "))}</text>'
    at = y(goal.ttft_ms)
    yield f'<line class="goal" x1="{_LEFT}" x2="{_LEFT + wide}" y1="{at:.1f}" y2="{at:.1f}"/>'
    for place, policy in enumerate(dict.fromkeys(case.policy for case in cases)):
        points = " ".join(
            f"{x(case.at[0]):.1f},{y(goal.ttft_of(case.report)):.1f}" for case in cases if case.policy == policy
        )
        key = _TOP + 18 * place
        label = html.escape(policy)
        yield f'<polyline class="curve" stroke="{colour(place)}" points="{points}"><title>{label}</title></polyline>'
        start = _LEFT + wide + 12
        yield f'<rect x="{start}" y="{key}" width="14" height="3" fill="{colour(place)}"/>'
        yield f'<text x="{start + 20}" y="{key + 5}">{label}</text>'
