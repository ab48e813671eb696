"""The simulator's pictures: a page with inline SVG that needs nothing else, or a PNG by matplotlib."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from .report import Report, Run

_COLOURS = (
    *("#2f6fde", "#d9480f", "#2b8a3e", "#9c36b5", "#c92a2a"),
    *("#0b7285", "#e67700", "#5f3dc4", "#a61e4d", "#495057"),
)
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 760, 340, 60, 40
_BAR, _GAP, _NAMES = 14, 14, 170
# Of each report: a distribution, and what is within its times.
_DISTRIBUTIONS = (
    ("ttft_quantiles_ms", "first token came"),
    ("tpot_quantiles_ms", "further tokens came, each on average,"),
    ("e2e_quantiles_ms", "last token came"),
)
_STYLE = """\
body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #212529 }
svg { display: block; margin: .5rem 0 1.5rem; max-width: 100% }
text { font: 12px system-ui, sans-serif; fill: #495057 }
.grid { stroke: #e9ecef } .curve { fill: none; stroke-width: 2 }
.key { display: inline-block; margin-right: 1rem } .key i { display: inline-block; width: 1rem; height: 3px;
margin-right: .4rem; vertical-align: middle }"""


def write_html(path: Path, runs: list[Run], title: str) -> None:
    """A page: per speed the distributions of the times, bars of TTFT, and goodput over all speeds."""
    title = html.escape(title)
    parts = [f"<h1>{title}</h1>"]
    if len(runs) > 1:
        parts.append("<h2>Goodput by speed</h2>" + _goodput(runs) + f"<p>{_keys(runs[0]['policies'])}</p>")
    for run in runs:
        reports = run["policies"]
        parts.append(f"<h2>Speed {run['speed']:g}</h2>")
        for field, what in _DISTRIBUTIONS:
            if any(report[field][-1] > 0 for report in reports):
                parts.append(f"<p>Share of requests whose {what} within …</p>" + _curves(reports, field))
        parts.append(f"<p>{_keys(reports)}</p><p>TTFT, mean (dark) and 99th percentile (light), and hit ratio</p>")
        parts.append(_bars(reports))
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"{''.join(parts)}</html>\n"
    )
    path.write_text(page, encoding="utf-8")


def colour(place: int) -> str:
    return _COLOURS[place % len(_COLOURS)]


def _keys(reports: list[Report]) -> str:
    key = '<span class="key"><i style="background:{}"></i>{}</span>'
    return "".join(key.format(colour(place), html.escape(report["policy"])) for place, report in enumerate(reports))


def _decades(reports: list[Report], field: str) -> tuple[int, int]:
    """Powers of ten that hold all times, for a logarithmic axis; very small times are cut off."""
    times = [max(time, 0.1) for report in reports for time in report[field]]
    low = math.floor(math.log10(min(times)))
    return low, max(low + 1, math.ceil(math.log10(max(times))))


def time_text(milliseconds: float) -> str:
    return f"{milliseconds / 1000:,.4g} s" if milliseconds >= 1000 else f"{milliseconds:.4g} ms"


def _goodput(runs: list[Run]) -> str:
    """A line per policy: the share of requests that were goodput, by speed."""
    wide, tall = _WIDTH - _LEFT - 20, _HEIGHT - _BOTTOM - 10
    speeds = [run["speed"] for run in runs]
    least, most = min(speeds), max(max(speeds), min(speeds) + 1e-9)

    def point(speed: float, share: float) -> str:
        return f"{_LEFT + wide * (speed - least) / (most - least):.1f},{10 + tall * (1 - share):.1f}"

    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        at = 10 + tall * (1 - share)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_LEFT + wide}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    for speed in speeds:
        x, _, _ = point(speed, 0).partition(",")
        parts.append(f'<text x="{x}" y="{_HEIGHT - 20}" text-anchor="middle">{speed:g}×</text>')
    for place, report in enumerate(runs[0]["policies"]):
        points = " ".join(point(run["speed"], run["policies"][place]["goodput"]) for run in runs)
        name = html.escape(report["policy"])
        line = f'<polyline class="curve" stroke="{colour(place)}" points="{points}">'
        parts.append(f"{line}<title>{name}</title></polyline>")
    return _svg(_HEIGHT, parts)


def _curves(reports: list[Report], field: str) -> str:
    low, high = _decades(reports, field)
    wide, tall = _WIDTH - _LEFT - 20, _HEIGHT - _BOTTOM - 10

    def x(time: float) -> float:
        return _LEFT + wide * (math.log10(max(time, 10.0**low)) - low) / (high - low)

    def y(share: float) -> float:
        return 10 + tall * (1 - share)

    def grid() -> Iterator[str]:
        for decade in range(low, high + 1):
            at = x(10.0**decade)
            yield f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="10" y2="{10 + tall}"/>'
            yield f'<text x="{at:.1f}" y="{_HEIGHT - 20}" text-anchor="middle">{time_text(10.0**decade)}</text>'
        for share in (0, 0.25, 0.5, 0.75, 1):
            yield f'<line class="grid" x1="{_LEFT}" x2="{_LEFT + wide}" y1="{y(share):.1f}" y2="{y(share):.1f}"/>'
            yield f'<text x="{_LEFT - 8}" y="{y(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>'

    def curve(place: int, report: Report) -> str:
        times = report[field]
        points = " ".join(f"{x(time):.1f},{y(at / (len(times) - 1)):.1f}" for at, time in enumerate(times))
        name = html.escape(report["policy"])
        return f'<polyline class="curve" stroke="{colour(place)}" points="{points}"><title>{name}</title></polyline>'

    curves = (curve(place, report) for place, report in enumerate(reports))
    return _svg(_HEIGHT, [*grid(), *curves])


def _bars(reports: list[Report]) -> str:
    longest = max(max(report["ttft_p99_ms"], report["ttft_mean_ms"]) for report in reports) or 1.0
    wide = _WIDTH - _NAMES - 170
    parts = []
    for place, report in enumerate(reports):
        top, mean, p99 = 5 + place * (2 * _BAR + _GAP), report["ttft_mean_ms"], report["ttft_p99_ms"]
        bar = f'<rect x="{_NAMES}" height="{_BAR}" fill="{colour(place)}"'
        parts += [
            f'<text x="{_NAMES - 8}" y="{top + _BAR + 4}" text-anchor="end">{html.escape(report["policy"])}</text>',
            f'{bar} y="{top}" width="{wide * mean / longest:.1f}"/>',
            f'{bar} y="{top + _BAR}" width="{wide * p99 / longest:.1f}" opacity=".4"/>',
            f'<text x="{_NAMES + wide + 8}" y="{top + _BAR + 4}">{time_text(mean)} / {time_text(p99)}'
            f" ({report['hit_ratio']:.1%})</text>",
        ]
    return _svg(len(reports) * (2 * _BAR + _GAP) + 5, parts)


def _svg(height: int, parts: list[str]) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" role="img">{"".join(parts)}</svg>'


def can_draw_png() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def write_png(path: Path, runs: list[Run], title: str) -> None:
    """A row per speed: the distributions of the times, and bars of TTFT's mean and 99th percentile."""
    from matplotlib.figure import Figure  # no display, no global state

    names = ("TTFT", "TPOT", "end to end")
    figure = Figure(figsize=(6 * len(names) + 6, 5 * len(runs)), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(len(runs), len(names) + 1, squeeze=False)
    for (*distributions, bars), run in zip(axes, runs, strict=True):
        reports = run["policies"]
        for curves, name, (field, _) in zip(distributions, names, _DISTRIBUTIONS, strict=True):
            for place, report in enumerate(reports):
                times = [max(time, 0.1) for time in report[field]]
                shares = [at / (len(times) - 1) for at in range(len(times))]
                curves.plot(times, shares, color=colour(place), label=report["policy"])
            curves.set(xscale="log", xlabel=f"{name} (ms)", ylabel="share of requests")
        distributions[0].set_title(f"speed {run['speed']:g}")
        distributions[0].legend()
        for place, report in enumerate(reports):
            bars.barh(place - 0.2, report["ttft_mean_ms"], 0.4, color=colour(place))
            bars.barh(place + 0.2, report["ttft_p99_ms"], 0.4, color=colour(place), alpha=0.4)
        bars.set(xlabel="TTFT (ms): mean dark, 99th percentile light")
        bars.set_yticks(range(len(reports)), [report["policy"] for report in reports])
        bars.invert_yaxis()
    figure.savefig(path, dpi=120)
