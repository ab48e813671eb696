"""`python -m sgl_model_gateway simulate`: replay a trace under several policies, in virtual time, and compare them."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ._options.help import Parser, did_you_mean, program
from ._replay.trace import TraceError, read
from ._simulate import sweep_command
from ._simulate.report import Report, Run
from ._simulate.sweep import Goal
from ._simulate.table import table
from .sgl_model_gateway_rs import FleetTrace, fleet_option_defaults, fleet_policies, simulate_fleet

# The numeric options of the simulated fleet. `speed`, `seed` and `changes` have flags of their own.
_OPTIONS = {
    "workers": "workers",
    "prefill": "prefill workers of a fleet of pairs, in place of --workers; 0: no pairs",
    "decode": "decode workers of a fleet of pairs",
    "gateways": "gateways in front of the workers; each request comes to one of them at random",
    "share_delay_ms": "milliseconds that a message between gateways takes, with --share redis",
    "share_loss": "share of those messages (0..1) that a gateway does not get",
    "transfer_ms_per_1k_tokens": "milliseconds that the KV cache of 1000 prompt tokens takes to its decode worker",
    "prefill_tps": "prompt tokens a worker computes per second",
    "kv_tokens": "prompt tokens a worker's prefix cache holds",
    "block_tokens": "tokens per block of the trace",
    "decode_ms": "milliseconds per output token of a sequence that decodes alone",
    "decode_per_seq_ms": "milliseconds every further sequence adds to that",
    "decode_interference": "share of prefill speed (0..1) that a full decode batch takes away",
    "output_scale": "factor on the trace's output lengths",
    "max_running": "sequences in prefill and decode per worker",
    "max_queued": "requests that may wait per worker; one more is rejected",
    "ttft_slo_ms": "first tokens within so many milliseconds are goodput",
    "tpot_slo_ms": "and further ones within so many each, on average; 0: any",
    "index_bytes": "bytes of memory for the policy's prefix index",
    "index_tokens": "prompt tokens the index may know, at all workers together; 0: what fits",
}
_DESCRIPTION = """\
Replays a trace under several policies, in virtual time, and compares them.

The trace is a recording of a gateway (--record), or in Mooncake's format, a JSON object per line: timestamp (ms),
input_length, output_length (tokens) and hash_ids, one per block of 512 prompt tokens. The policies are the gateway's
own; each knows only what it routed and which requests have shown their first byte. Every worker is one prefill server
with an LRU prefix cache, or, with --engine-model shared, one device that computes prompts and decodes in turns out of
one memory. With --prefill and --decode the fleet is one of prefill/decode pairs; policies are then named
prefill+decode.
"""
_EXAMPLES = """\
  %(prog)s --trace trace.jsonl --workers 8
  %(prog)s --trace trace.jsonl --policy cache_aware,round_robin --speed 1,2 --plot plot.html
  %(prog)s --trace trace.jsonl --prefill 2 --decode 3 --policy cache_aware+least_load,round_robin
  %(prog)s --trace trace.jsonl --fault 10000:60000:3:slow=20 --knowledge rules
  %(prog)s --trace trace.jsonl --policy cache_aware --gateways 8 --share redis --share-delay-ms 2
  %(prog)s --trace trace.jsonl --engine-model shared --kv-tokens 900000 --tpot-slo-ms 25
  %(prog)s --trace trace.jsonl --sweep workers=2,3,4,6 --sweep kv_tokens=200000,800000 --ttft-slo-ms 500 --plot plot.svg
"""
_Item = TypeVar("_Item")
# The gateway's own for pairs, and what they are compared with.
_PAIRS = ("cache_aware+least_load", "round_robin+round_robin", "power_of_two+power_of_two")
_REFERENCES = ("charge_", "sized_", "smg_")
_CHOICES = "charge_K, sized_K, smg_1.13"
_MODELS = ("split", "shared")
_SHARES = ("none", "rendezvous", "redis")
_EVENTS = ("leave", "join", "flush")
_FAULTS = ("dead", "fast-failing")
_SIZED_FAULTS = ("slow", "gray", "flapping")
_KNOWLEDGE = ("rules", "oracle", "none")


def _list_of(kind: Callable[[str], _Item]) -> Callable[[str], list[_Item]]:
    def parse(text: str) -> list[_Item]:
        return [kind(part.strip()) for part in text.split(",") if part.strip()]

    parse.__name__ = f"list of {kind.__name__}s"
    return parse


def _event(text: str) -> dict[str, float | int | str]:
    at, worker, kind = text.split(":")
    if kind not in _EVENTS:
        raise ValueError(kind)
    return {"at_ms": float(at), "worker": int(worker), "kind": kind}


_event.__name__ = "MS:WORKER:leave|join|flush"


def _fault(text: str) -> dict[str, Any]:
    begin, end, worker, kind = text.split(":")
    name, _, size = kind.partition("=")
    if size and name in _SIZED_FAULTS:
        what: str | dict[str, float] = {name: float(size)}
    elif not size and name in _FAULTS:
        what = name.replace("-", "_")
    else:
        raise ValueError(kind)
    return {"from_ms": float(begin), "to_ms": float(end), "worker": int(worker), "kind": what}


_fault.__name__ = f"FROM:TO:WORKER:{'|'.join([*_FAULTS, *(f'{name}=N' for name in _SIZED_FAULTS)])}"


def _setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    return name.strip(), json.loads(value)


_setting.__name__ = "NAME=VALUE"


class _Parser(Parser):
    """Mistakes in one line, without the usage."""

    usage_in_errors = False


def create_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """All flags; those of the fleet have the fleet's own defaults.

    Args:
        prog: the command as users type it; `None` is a guess.
    """
    parser = _Parser(
        prog or program("sgl_model_gateway.simulate"),
        description=_DESCRIPTION,
        formatter=argparse.RawDescriptionHelpFormatter,
    )
    parser.epilog = (
        f"examples:\n{_EXAMPLES}\npolicies: {', '.join(fleet_policies())}\n"
        "for reference: charge_K takes the lowest queued + K x own uncached tokens, whatever the load, and believes\n"
        "that caches keep everything; sized_K knows exactly what they hold; K may be auto: cache_aware's, by load;\n"
        "smg_1.13 is that gateway's rule with its thresholds.\n"
        "Best values are marked with *."
    )
    parser.add_argument("--trace", required=True, type=Path, metavar="FILE", help="the trace")
    parser.add_argument("--policy", type=_list_of(str), default=["all"], metavar="A,B", help="policies; default all")
    parser.add_argument(
        "--speed",
        type=_list_of(float),
        default=[1.0],
        metavar="X,Y",
        help="how many times faster than recorded requests arrive; a table for each; default 1",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N requests")
    parser.add_argument(
        "--seed", type=_list_of(int), default=[0], metavar="N,M", help="seeds; results are averaged; default 0"
    )
    parser.add_argument(
        "--event",
        type=_event,
        action="append",
        default=[],
        metavar="MS:WORKER:KIND",
        help="a worker dies (leave), comes (back) with an empty cache (join), or loses its cache (flush), in the"
        " trace's own time; can be repeated",
    )
    parser.add_argument(
        "--fault",
        type=_fault,
        action="append",
        default=[],
        metavar="FROM:TO:WORKER:KIND",
        help="a worker is at fault between these milliseconds of the trace's own time: dead (refuses connections),"
        " slow=FACTOR, gray=SHARE (answers that share with 500), fast-failing (answers all with 500 at once),"
        " flapping=MS (dead for half of each such period); can be repeated",
    )
    parser.add_argument(
        "--knowledge",
        choices=_KNOWLEDGE,
        default=_KNOWLEDGE[0],
        help="what requests are routed with where there are faults: the gateway's rules (breakers, probes, outlier"
        " ejection, retries), an oracle that knows which workers are well, or none; default %(default)s",
    )
    defaults = fleet_option_defaults()
    for name, text in _OPTIONS.items():
        kind, flag = type(defaults[name]), f"--{name.replace('_', '-')}"
        default, said = defaults[name], "%(default)s"
        if name == "block_tokens":
            default, said = None, f"what a recording says, otherwise {defaults[name]}"
        parser.add_argument(
            flag, type=kind, default=default, metavar=kind.__name__.upper(), help=f"{text}; default {said}"
        )
    parser.add_argument(
        "--share",
        choices=_SHARES,
        default=defaults["share"],
        help="what gateways share: none; rendezvous: how they choose between equal workers, without a message; redis:"
        " that, and placements and loads, as by the gateway's --shared-state; default %(default)s",
    )
    parser.add_argument(
        "--engine-model",
        choices=_MODELS,
        default=defaults["engine_model"],
        help="split: prefill and decode are two stages; shared: one device, and one memory of --kv-tokens for prefixes"
        " and running requests; default %(default)s",
    )
    parser.add_argument(
        "--engine",
        type=_setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="what the shared model's device costs, in place of --prefill-tps and --decode-ms: "
        + ", ".join(f"{name}={json.dumps(value)}" for name, value in defaults["engine"].items())
        + "; can be repeated",
    )
    sweep_command.add_flags(parser, _OPTIONS)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="write a picture: .html, or .png (needs sgl-model-gateway[plot]); of a sweep .svg",
    )
    return parser


class _Bar:
    """How far all runs together are; on terminals only."""

    _WIDTH = 30

    def __init__(self, runs: int, requests: int) -> None:
        self._total, self._requests = max(1, runs * requests), requests
        self._before, self._live = 0, sys.stderr.isatty()
        self._label = ""

    def begin(self, label: str) -> None:
        self._label = label

    def __call__(self, arrived: int) -> None:
        if self._live:
            done = self._before + arrived
            bar = "#" * (self._WIDTH * done // self._total)
            print(f"\r[{bar:.<{self._WIDTH}}] {self._label:<32.32}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        self._before += self._requests

    def clear(self) -> None:
        if self._live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def compare(
    trace: FleetTrace,
    policies: list[str],
    *,
    speeds: list[float],
    seeds: list[int],
    progress: _Bar | None = None,
    **options: Any,
) -> list[Run]:
    """Replays a trace under every policy at every speed.

    Usage:

        runs = compare(FleetTrace("trace.jsonl"), ["cache_aware", "random"], speeds=[1.0], seeds=[0], workers=8)

    Args:
        trace: the trace.
        policies: names of policies, references included.
        speeds: how many times faster than recorded requests arrive.
        seeds: seeds; reports are means over them.
        progress: a bar to move.
        options: options of the fleet, see `fleet_option_defaults()`.

    Returns:
        A run per speed: `{"speed": 1.0, "policies": [report, ...]}`.

    Raises:
        ValueError: an unknown policy or an option out of range.
    """
    progress = progress or _Bar(len(policies) * len(speeds) * len(seeds), len(trace))
    runs: list[Run] = []
    for speed in speeds:
        reports = []
        for policy in policies:
            progress.begin(f"{policy} at {speed:g}x")
            seeded = []
            for seed in seeds:
                seeded.append(simulate_fleet(trace, policy, progress, speed=speed, seed=seed, **options))
                progress.end()
            reports.append(_mean(seeded))
        runs.append({"speed": speed, "policies": reports})
    return runs


def _mean(reports: list[Report]) -> Report:
    if len(reports) == 1:
        return reports[0]
    mean: Report = {}
    for name, value in reports[0].items():
        values = [report[name] for report in reports]
        if isinstance(value, list):
            mean[name] = [math.fsum(column) / len(values) for column in zip(*values, strict=True)]
        elif isinstance(value, dict):
            mean[name] = {key: math.fsum(each[key] for each in values) / len(values) for key in value}
        else:
            mean[name] = value if isinstance(value, str) else math.fsum(values) / len(values)
    return mean


def _plotter(
    parser: argparse.ArgumentParser, path: Path | None, *, is_sweep: bool
) -> Callable[[Path, list[Run], str], None] | None:
    """Found before the work begins, so that nothing is computed in vain."""
    if path is None:
        return None
    from ._simulate import plot

    if not path.parent.is_dir():
        parser.error(f"--plot {path}: there is no directory {path.parent}")
    if is_sweep:
        if path.suffix != ".svg":
            parser.error(f"--plot {path}: the name of a sweep's picture must end in .svg")
        return None
    if path.suffix not in (".html", ".png"):
        parser.error(f"--plot {path}: the name must end in .html or .png")
    if path.suffix == ".png" and not plot.can_draw_png():
        parser.error(
            f"--plot {path}: PNG needs matplotlib: pip install 'sgl-model-gateway[plot]', or use a name ending in .html"
        )
    return plot.write_png if path.suffix == ".png" else plot.write_html


def _read(parser: argparse.ArgumentParser, args: argparse.Namespace) -> FleetTrace:
    if args.limit is not None and args.limit < 1:
        parser.error("--limit must be at least 1")
    try:
        return FleetTrace(args.trace, args.limit)
    except OSError as error:
        parser.error(f"cannot read {args.trace}: {error.strerror or error}")
    except ValueError as error:
        parser.error(f"{args.trace}: {error}")


def _block_tokens(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Tokens of a block: a recording counts its blocks in bytes, and says how many tokens engines saw in them."""
    try:
        return read(args.trace, args.limit).tokens_per_block()
    except TraceError as error:
        parser.error(f"{args.trace}: {error}")


def _chosen(parser: argparse.ArgumentParser, given: list[str], *, pairs: bool) -> list[str]:
    known = fleet_policies()
    everything = _PAIRS if pairs else known
    names = dict.fromkeys(name for word in given for name in (everything if word == "all" else [word]))
    if not names:
        parser.error(f"--policy: choose from {', '.join(known)}, {_CHOICES}, or all")
    parts = [part for name in names for part in (name.split("+", 1) if pairs else [name])]
    for name in parts:
        if name not in known and not name.startswith(_REFERENCES):
            hint = did_you_mean(name, known)
            parser.error(f"unknown policy '{name}' (choose from {', '.join(known)}, {_CHOICES}, or all){hint}")
    return list(names)


def main(argv: list[str] | None = None, prog: str | None = None) -> None:
    """Runs the comparison and prints it.

    Args:
        argv: the command line without the program; `None` means this process's own.
        prog: the command as users type it.

    Raises:
        SystemExit: 2 for wrong options or a trace that cannot be read, 130 after an interrupt.
    """
    parser = create_parser(prog)
    args = parser.parse_args(argv)
    policies = _chosen(parser, args.policy, pairs=args.prefill > 0)
    if not args.speed or not args.seed:
        parser.error("--speed and --seed need a value each")
    goal = sweep_command.goal(parser, args)
    write = _plotter(parser, args.plot, is_sweep=bool(args.sweep))
    trace = _read(parser, args)
    if args.block_tokens is None:
        args.block_tokens = _block_tokens(parser, args)
    options = {name: getattr(args, name) for name in _OPTIONS} | {"changes": args.event}
    options |= {"faults": args.fault, "knowledge": args.knowledge}
    options |= {"share": args.share}
    options |= {"engine_model": args.engine_model, "engine": dict(args.engine)}
    bar = _Bar(len(policies) * len(args.speed) * len(args.seed) * sweep_command.fleets(args), len(trace))
    try:
        if args.sweep:

            def measure(point: dict[str, float]) -> list[Report]:
                more = {"seeds": args.seed, "progress": bar, **options, **point}
                return compare(trace, policies, speeds=args.speed, **more)[0]["policies"]

            said = sweep_command.run(args, goal, measure)
            bar.clear()
            print(said)
            return
        runs = compare(trace, policies, speeds=args.speed, seeds=args.seed, progress=bar, **options)
    except (ValueError, OSError) as error:
        bar.clear()
        parser.error(str(error))
    except KeyboardInterrupt:
        bar.clear()
        sys.exit(130)
    bar.clear()
    if write:
        try:
            write(args.plot, runs, args.trace.name)
        except OSError as error:
            parser.error(f"cannot write {args.plot}: {error.strerror or error}")
    print(_as_json(args, trace, runs, options) if args.json else _as_text(args, goal, trace, runs))


def _plain(report: Report) -> Report:
    return {name: value for name, value in report.items() if not isinstance(value, list)}


def _as_json(args: argparse.Namespace, trace: FleetTrace, runs: list[Run], options: dict[str, Any]) -> str:
    about = {
        "file": str(args.trace),
        "requests": len(trace),
        "span_secs": trace.span_secs,
        "was_sorted": trace.was_sorted,
    }
    plain = [
        {
            "speed": run["speed"],
            "policies": [_plain(report) for report in run["policies"]],
        }
        for run in runs
    ]
    return json.dumps({"trace": about, "options": options | {"seeds": args.seed}, "runs": plain}, indent=2)


def _as_text(args: argparse.Namespace, goal: Goal, trace: FleetTrace, runs: list[Run]) -> str:
    order = "" if trace.was_sorted else ", sorted by time"
    fleet = f"{args.prefill} prefill and {args.decode} decode workers" if args.prefill else f"{args.workers} workers"
    if args.gateways > 1:
        fleet += f" behind {args.gateways} gateways, share {args.share}"
    head = f"{args.trace.name}: {len(trace)} requests over {trace.span_secs:.0f} s{order}; {fleet}"
    parts = [head]
    for run in runs:
        busiest = max(report["busy"] for report in run["policies"])
        shared = args.engine_model == "shared"
        shown = table(run["policies"], to_last_token=shared or args.prefill > 0)
        what = "devices" if shared else "prefill"
        parts.append(f"\nspeed {run['speed']:g} ({what} up to {busiest:.0%} busy; times in ms)\n{shown}")
        met = [report["policy"] for report in run["policies"] if goal.is_met(report)]
        parts.append(f"\n{goal}: met by {', '.join(met) or 'none'}")
    return "\n".join(parts)


if __name__ == "__main__":
    main()
