"""`python -m sgl_model_gateway replay`: send a recorded trace to a live gateway, or to two of them, and compare."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from ._options.help import Parser
from ._replay.client import Client
from ._replay.figures import Difference, compare, recorded, report
from ._replay.send import Outcome, Pace, send
from ._replay.table import table
from ._replay.trace import Trace, TraceError, read, shortened

__all__ = ["create_parser", "main"]

_DESCRIPTION = """\
Sends a trace to a gateway, or to any server with its API: every request at its recorded time, with text of the same
length that shares with other requests what the recorded prompts shared. The trace is a recording (--record), or
another one in Mooncake's format.
"""
_EXAMPLES = """\
  %(prog)s --trace trace.jsonl --target http://127.0.0.1:30000
  %(prog)s --trace trace.jsonl --target http://127.0.0.1:30000 --speed 4 --limit 2000
  %(prog)s --trace trace.jsonl --target http://old:30000 --compare http://new:30000 --rounds 3
"""
_KEY = "SMG_API_KEY"
# For a statement with confidence.
_ROUNDS = 5


def create_parser(prog: str | None = None) -> Parser:
    """The flags.

    Args:
        prog: the command as users type it; `None` is argparse's guess.
    """
    parser = Parser(prog, description=_DESCRIPTION, examples=_EXAMPLES)
    parser.add_argument("--trace", required=True, type=Path, metavar="FILE", help="the trace")
    parser.add_argument("--target", required=True, metavar="URL", help="where it is sent")
    parser.add_argument("--compare", metavar="URL", help="where it is sent as well, by turns")
    parser.add_argument("--speed", type=float, default=1.0, metavar="X", help="how many times faster than recorded")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N requests")
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="how often it is sent to each; unset means once, or 5 times to compare"
    )
    parser.add_argument("--model", metavar="NAME", help="model to name, in place of the recorded one")
    parser.add_argument("--max-in-flight", type=int, default=1024, metavar="N", help="requests at a time, at most")
    parser.add_argument("--timeout-secs", type=float, default=600.0, metavar="SECS", help="longest wait for a reply")
    parser.add_argument(
        "--block-divisor", type=int, default=1, metavar="N", help="send blocks of a N-th of their length"
    )
    parser.add_argument(
        "--output-divisor", type=int, default=1, metavar="N", help="ask for a N-th of the recorded output"
    )
    parser.add_argument(
        "--salt",
        metavar="TEXT",
        help="texts of another salt share nothing; unset means one by chance, so that caches know nothing of the trace",
    )
    parser.add_argument(
        "--api-key", metavar="KEY", help=f"key to show; better in ${_KEY}, for a command line is seen by others"
    )
    parser.add_argument("--ca-cert-path", metavar="PATH", help="CA file for https://; unset means the system's")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


class _Progress:
    """How many requests are sent; on terminals only."""

    def __init__(self, total: int) -> None:
        self._total, self._live = total, sys.stderr.isatty()
        self._label = ""

    def begin(self, label: str) -> None:
        self._label = label

    def __call__(self, sent: int) -> None:
        if self._live and (sent % 16 == 0 or sent == self._total):
            print(f"\r{self._label}: {sent}/{self._total}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _check(parser: Parser, args: argparse.Namespace) -> None:
    for name in ("speed", "rounds", "max_in_flight", "timeout_secs", "block_divisor", "output_divisor", "limit"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0")


def _read(parser: Parser, args: argparse.Namespace) -> Trace:
    try:
        trace = read(args.trace, args.limit)
    except OSError as error:
        parser.error(f"cannot read {args.trace}: {error.strerror or error}")
    except TraceError as error:
        parser.error(f"{args.trace}: {error}")
    return shortened(trace, block_divisor=args.block_divisor, output_divisor=args.output_divisor)


def _clients(parser: Parser, args: argparse.Namespace) -> list[tuple[str, Client]]:
    key = args.api_key or os.environ.get(_KEY)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        urls = [args.target, args.compare] if args.compare else [args.target]
        return [(url, Client(url, headers, args.ca_cert_path)) for url in urls]
    except (ValueError, OSError) as error:
        parser.error(str(error))


async def _run(trace: Trace, targets: list[tuple[str, Client]], pace: Pace, rounds: int) -> list[list[Outcome]]:
    """Outcomes by round and target. Whose turn comes first changes from round to round."""
    progress = _Progress(len(trace.arrivals))
    outcomes: list[list[Outcome]] = []
    for number in range(rounds):
        of_round: dict[int, Outcome] = {}
        order = list(enumerate(targets))
        for place, (url, client) in order if number % 2 == 0 else reversed(order):
            progress.begin(f"round {number + 1} at {url}")
            # Workers that both have know nothing of the other's turn.
            salted = replace(pace, salt=f"{pace.salt}/{place}/{number}")
            of_round[place] = await send(client, trace, salted, progress)
            client.close()
        outcomes.append([of_round[place] for place in range(len(targets))])
    progress.clear()
    return outcomes


def main(argv: list[str] | None = None, prog: str | None = None) -> None:
    """Sends the trace and prints what came back.

    Args:
        argv: the flags; `None` means this process's own.
        prog: the command as users type it.

    Raises:
        SystemExit: 1 when a request failed or none was answered, 2 on a mistake in the flags, 130 after Ctrl-C.
    """
    parser = create_parser(prog)
    args = parser.parse_args(argv)
    _check(parser, args)
    rounds = args.rounds or (_ROUNDS if args.compare else 1)
    targets = _clients(parser, args)
    trace = _read(parser, args)
    salt = secrets.token_hex(4) if args.salt is None else args.salt
    pace = Pace(args.speed, args.max_in_flight, args.timeout_secs, salt, args.model)
    try:
        outcomes = asyncio.run(_run(trace, targets, pace, rounds))
    except KeyboardInterrupt:
        sys.exit(130)
    reports = [
        {"url": url, "round": number + 1, **report(trace, of_round[place])}
        for number, of_round in enumerate(outcomes)
        for place, (url, _) in enumerate(targets)
    ]
    differences = compare(trace, [(pair[0], pair[1]) for pair in outcomes]) if args.compare else []
    print(_as_json(trace, reports, differences) if args.json else _as_text(args, trace, reports, differences))
    sys.exit(0 if all(one["answered"] and not one["errors"] for one in reports) else 1)


def _as_json(trace: Trace, reports: list[dict[str, Any]], differences: list[Difference]) -> str:
    found = {"recorded": recorded(trace), "runs": reports, "left_out": trace.left_out}
    if differences:
        found["comparison"] = [
            vars(one) | {"interval_ms": one.interval, "sentence": one.sentence} for one in differences
        ]
    return json.dumps(found, indent=2)


def _as_text(
    args: argparse.Namespace, trace: Trace, reports: list[dict[str, Any]], differences: list[Difference]
) -> str:
    head = f"{args.trace.name}: {len(trace.arrivals)} requests over {trace.span_s:.0f} s, at {args.speed:g} times that"
    if trace.left_out:
        head += f"; {trace.left_out} that reached no worker are left out"
    sentences = [one.sentence for one in differences]
    return "\n".join([head, "", table(recorded(trace), reports), "", *sentences]).rstrip()


if __name__ == "__main__":
    main()
