"""What a gateway adds to the latency of a request, at half the load that it can take.

`.venv/bin/python bench/latency.py`. Requests are sent when they are due, whatever came of those before. The rate is
half of what the slowest of the gateways serves at most, so that it is the same for all. What a gateway adds is the
percentile through it less that of the same load on a worker without a gateway, in the same round.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from compare import SCENARIOS, TOOLS, Bench, Report, Scenario, bench_tools, chosen, in_turn, measure, measure_direct
from processes import finish, two_cores
from targets import Target

PERCENTILES = ["p50", "p99"]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def names(text: str) -> list[str]:
        return text.split(",")

    parser.add_argument(
        "--scenario", choices=[name for name, it in SCENARIOS.items() if not it.tls], default="json_small"
    )
    parser.add_argument("--only", type=names, default=["nginx", "haproxy", "ours"], help="default nginx,haproxy,ours")
    parser.add_argument("--target", action="append", default=[], metavar="NAME=PATH", help="as in compare.py")
    parser.add_argument("--rate", type=int, help="requests per second; default half of what the slowest gateway serves")
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--secs", type=int, default=3, help="seconds of load per run; default 3")
    parser.add_argument("--base", default="nginx", help="target that ratios are to; default nginx")
    parser.add_argument("--base-port", type=int, default=9100, help="first of six ports in a row; default 9100")
    parser.add_argument("--tools", type=Path, default=TOOLS, help="folder of bench-load and bench-worker")
    parser.add_argument("--json", type=Path, help="file for all results")
    args = parser.parse_args(argv)
    if args.rounds < 1 or not 1 <= args.secs <= 600:
        parser.error("--rounds must be at least 1, --secs between 1 and 600")
    return args


def half_load(bench: Bench, targets: list[Target], scenario: Scenario) -> int:
    """Half of the requests per second that the slowest gateway serves when its clients never wait."""
    return int(min(measure(bench, target, scenario)["rps"] for target in targets) / 2)


def added(round_: dict[str, Report], direct: Report) -> dict[str, dict[str, float]]:
    """Milliseconds that each gateway adds, by percentile."""
    return {
        name: {at: report["latency_ms"][at] - direct["latency_ms"][at] for at in PERCENTILES}
        for name, report in round_.items()
    }


def summary(rounds: list[dict[str, dict[str, float]]], base: str) -> dict[str, dict[str, Any]]:
    """Medians over the rounds of what each gateway adds, and of the ratios to the base within a round."""
    figures: dict[str, dict[str, Any]] = {}
    for name in rounds[0]:
        row: dict[str, Any] = {}
        for at in PERCENTILES:
            row[at] = median(each[name][at] for each in rounds)
            ratios = [each[name][at] / each[base][at] for each in rounds if base in each and each[base][at] > 0]
            row[f"{at}_ratio"] = median(ratios) if ratios else None
        figures[name] = row
    return figures


def table(figures: dict[str, dict[str, Any]], base: str) -> list[str]:
    """The summary as lines of text."""
    lines = [f"  {'adds':14s}" + "".join(f"{at + ' ms':>10s}{'/' + base:>10s}" for at in PERCENTILES)]
    for name, row in figures.items():
        cells = ""
        for at in PERCENTILES:
            ratio = row[f"{at}_ratio"]
            cells += f"{row[at]:10.3f}" + (f"{ratio:10.2f}" if ratio else f"{'-':>10s}")
        lines.append(f"  {name:14s}{cells}")
    return lines


def _run(args: argparse.Namespace) -> bool:
    tools, targets = bench_tools(args), chosen(args)
    scenario = SCENARIOS[args.scenario]
    clean = True
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as room:
        bench = Bench(tools, args.base_port, args.secs, two_cores(), Path(room))
        rate = args.rate or half_load(bench, targets, scenario)
        paced = replace(scenario, load={**scenario.load, "rate": rate})
        print(f"{args.scenario}, {rate} requests/s, {args.rounds} rounds of {args.secs} s", flush=True)
        rounds, reports = [], []
        for number in range(args.rounds):
            direct = measure_direct(bench, paced)
            measured = {target.name: measure(bench, target, paced) for target in in_turn(targets, number)}
            clean = clean and not any(report["errors"] for report in [direct, *measured.values()])
            rounds.append(added(measured, direct))
            reports.append({"direct": direct, **measured})
    figures = summary(rounds, args.base)
    without = {at: median(each["direct"]["latency_ms"][at] for each in reports) for at in PERCENTILES}
    print("  without a gateway: " + ", ".join(f"{at} {without[at]:.3f} ms" for at in PERCENTILES))
    print("\n".join(table(figures, args.base)), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"rate": rate, "added_ms": figures, "rounds": reports}, indent=1) + "\n")
    return clean


def main(argv: list[str] | None = None) -> None:
    """Exit code 1 when a run gave no figure or had errors."""
    args = parse(argv)
    finish(lambda: _run(args))


if __name__ == "__main__":
    main()
