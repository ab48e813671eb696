"""The tables of policies.md: `python bench/policies.py TRACE.jsonl > tables.md` (ten minutes)."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from traces import KINDS, lines

from sgl_model_gateway._simulate.report import Report, Run
from sgl_model_gateway.sgl_model_gateway_rs import FleetTrace, fleet_policies
from sgl_model_gateway.simulate import compare

SPEEDS = [10.0, 20.0, 30.0, 40.0, 50.0]
SEEDS = list(range(1, 21))
CHARGES = [f"charge_{k}" for k in (1, 2, 3, 5, 8, 12, 20, 40)]
SIZED = [f"sized_{k}" for k in (3, 5, 8, 12, 20, 40, "auto")]
BLOCK = 512
DECODE_HEAVY = {
    "output_scale": 4.0,
    "decode_ms": 0.7,
    "decode_per_seq_ms": 0.01,
    "decode_interference": 0.5,
    "max_running": 32,
}
# Title, requests, speeds, options.
SETTINGS: list[tuple[str, int, list[float], dict[str, Any]]] = [
    ("4 000 blocks per worker", 3000, SPEEDS, {}),
    ("1 000 blocks per worker", 3000, SPEEDS, {"kv_tokens": 1000 * BLOCK}),
    ("16 000 blocks per worker", 3000, SPEEDS, {"kv_tokens": 16000 * BLOCK}),
    ("decode-heavy, 4 000 blocks", 3000, SPEEDS, DECODE_HEAVY),
    ("the whole trace, 1 000 blocks", 20000, SPEEDS, {"kv_tokens": 1000 * BLOCK}),
    ("the whole trace, 4 000 blocks", 20000, SPEEDS, {}),
    ("32 workers, 4 times the speed", 12000, [4 * speed for speed in SPEEDS], {"workers": 32}),
]
# The same for every made trace.
MADE: list[tuple[str, list[float], dict[str, Any]]] = [
    ("4 000 blocks per worker", SPEEDS, {}),
    ("32 workers", [4 * speed for speed in SPEEDS], {"workers": 32}),
]


def main(path: str) -> None:
    policies = [*fleet_policies(), *CHARGES, *SIZED]
    summary = [
        "| setting | speed | mean, best other | cache_aware | p99, best other | cache_aware |",
        "|" + " --- |" * 6,
    ]
    with tempfile.TemporaryDirectory() as room:
        settings = [(path, *setting) for setting in SETTINGS]
        for kind in KINDS:
            made = Path(room, f"{kind}.jsonl")
            made.write_text("\n".join(lines(kind)))
            settings += [(str(made), f"{kind}, {title}", 20000, speeds, options) for title, speeds, options in MADE]
        for trace, title, limit, speeds, options in settings:
            runs = compare(FleetTrace(trace, limit), policies, speeds=speeds, seeds=SEEDS, **options)
            print(f"### {title}\n\n" + "\n".join(table(runs, policies)) + "\n", flush=True)
            summary += [verdict(title, run) for run in runs]
    print("### How far cache_aware is from the best\n\n" + "\n".join(summary))


def table(runs: list[Run], policies: list[str]) -> list[str]:
    lines = ["| policy | " + " | ".join(f"{run['speed']:g}×" for run in runs) + " |", "|" + " --- |" * (len(runs) + 1)]
    for place, policy in enumerate(policies):
        cells = [cell(run["policies"][place]) for run in runs]
        lines.append(f"| {policy} | " + " | ".join(cells) + " |")
    return lines


def cell(report: Report) -> str:
    return f"{report['hit_ratio']:.3f}, {report['ttft_mean_ms']:.0f}, {report['ttft_p99_ms']:.0f}"


def verdict(title: str, run: Run) -> str:
    words = []
    for field in ("ttft_mean_ms", "ttft_p99_ms"):
        ours = next(report for report in run["policies"] if report["policy"] == "cache_aware")
        best = min((report for report in run["policies"] if report is not ours), key=lambda report: report[field])
        ratio = ours[field] / best[field] - 1
        mark = "**" if ratio > 0.05 else ""
        words += [f"{best[field]:.0f} ({best['policy']})", f"{mark}{ours[field]:.0f} ({ratio:+.1%}){mark}"]
    return f"| {title} | {run['speed']:g}× | " + " | ".join(words) + " |"


if __name__ == "__main__":
    main(sys.argv[1])
