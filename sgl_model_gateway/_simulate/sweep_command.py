"""The flags of a sweep, and its course."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable

from ..sgl_model_gateway_rs import fleet_option_defaults
from .report import Report
from .sweep import Axis, Case, Goal, answer, points, table
from .sweep_plot import write_svg


def add_flags(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """Adds `--sweep`, over the fleet's options of these names, and `--slo-share`."""
    known = frozenset(names)

    def axis(text: str) -> Axis:
        name, _, values = text.partition("=")
        name = name.strip().replace("-", "_")
        if name not in known:
            raise ValueError(name)
        kind = type(fleet_option_defaults()[name])
        return name, sorted({kind(value) for value in values.split(",")})

    axis.__name__ = "NAME=A,B"
    parser.add_argument(
        "--sweep",
        type=axis,
        action="append",
        default=[],
        metavar="NAME=A,B",
        help="every policy with each of these values of a numeric option of the fleet (workers=2,4,8); can be repeated,"
        " for all combinations. Says which is the smallest fleet that meets --ttft-slo-ms and --tpot-slo-ms",
    )
    parser.add_argument(
        "--slo-share",
        type=float,
        default=0.95,
        metavar="SHARE",
        help="share of requests that must be within these times; default %(default)s",
    )


def goal(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Goal:
    """What is to be met; ends with an error where that makes no sense."""
    if not 0 < args.slo_share <= 1:
        parser.error("--slo-share must be above 0 and at most 1")
    if args.sweep and len(args.speed) > 1:
        parser.error("--sweep takes one --speed")
    return Goal(args.slo_share, args.ttft_slo_ms, args.tpot_slo_ms)


def fleets(args: argparse.Namespace) -> int:
    """The number of fleets."""
    return len(points(args.sweep))


def run(args: argparse.Namespace, wanted: Goal, measure: Callable[[dict[str, float]], list[Report]]) -> str:
    """Measures every fleet, draws the picture if one is asked for; the text to print.

    Raises:
        ValueError: a value is out of range.
        OSError: the picture cannot be written.
    """
    axes: list[Axis] = args.sweep
    cases = [Case(tuple(point.values()), report) for point in points(axes) for report in measure(point)]
    if args.plot:
        write_svg(args.plot, axes, cases, wanted)
    said = answer(axes, cases, wanted)
    if not args.json:
        return f"{table(axes, cases, wanted)}\n\n{said}"
    names = [name for name, _ in axes]
    rows = [
        dict(zip(names, case.at, strict=True))
        | {name: value for name, value in case.report.items() if not isinstance(value, list)}
        for case in cases
    ]
    return json.dumps({"goal": str(wanted), "answer": said, "cases": rows}, indent=2)
