"""What a second lane is worth: the CPU per request of a gateway with one lane and with two.

`.venv/bin/python bench/lanes.py`. A gateway has a lane for each core that it may use. Workers and load may use both
cores in either case, and a core does as much as its CPU time, so two lanes serve 2 x (CPU per request with one) / (CPU
per request with two) times as much. Locks, shared cache lines and memory that lanes compete
for show as CPU per request.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

from compare import SCENARIOS, TOOLS, Bench, bench_tools, chosen, measure
from processes import finish, two_cores


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", type=lambda text: text.split(","), default=["json_small", "cache_4k"])
    parser.add_argument("--only", type=lambda name: [name], default=["ours"], help="the target; default ours")
    parser.add_argument("--target", action="append", default=[], metavar="NAME=PATH", help="as in compare.py")
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--secs", type=int, default=3, help="seconds of load per run; default 3")
    parser.add_argument("--base-port", type=int, default=9100, help="first of six ports in a row; default 9100")
    parser.add_argument("--tools", type=Path, default=TOOLS, help="folder of bench-load and bench-worker")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.scenarios if name not in SCENARIOS]:
        parser.error(f"no such scenario: {', '.join(unknown)}")
    return args


def _run(args: argparse.Namespace) -> bool:
    tools, (target,) = bench_tools(args), chosen(args)
    first, second = two_cores()
    both = f"{first},{second}"
    one_and_two: list[tuple[int, int | str]] = [(1, first), (2, both)]
    clean = True
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as room:
        bench = Bench(tools, args.base_port, args.secs, (first, both), Path(room))
        for name in args.scenarios:
            costs: dict[int, list[float]] = {1: [], 2: []}
            for _ in range(args.rounds):
                for lanes, cores in one_and_two:
                    report = measure(replace(bench, cores=(cores, both)), target, SCENARIOS[name])
                    costs[lanes].append(report[SCENARIOS[name].key])
                    clean = clean and not report["errors"]
            one, two = median(costs[1]), median(costs[2])
            gain = median(2 * a / b for a, b in zip(costs[1], costs[2], strict=True))
            print(
                f"{name}: one lane {one:.1f} us, two lanes {two:.1f} us, so two serve {gain:.2f} times as much",
                flush=True,
            )
    return clean


def main(argv: list[str] | None = None) -> None:
    """Exit code 1 when a run gave no figure or had errors."""
    args = parse(argv)
    finish(lambda: _run(args))


if __name__ == "__main__":
    main()
