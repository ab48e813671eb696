"""The policy tables of pairs.md: `python bench/pairs.py > tables.md` (a minute)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from traces import lines

from sgl_model_gateway._simulate.report import Report
from sgl_model_gateway.sgl_model_gateway_rs import FleetTrace
from sgl_model_gateway.simulate import compare

POLICIES = [
    "cache_aware+least_load",
    "cache_aware+round_robin",
    "round_robin+least_load",
    "round_robin+round_robin",
    "power_of_two+power_of_two",
]
SEEDS = [1, 2, 3, 4, 5]
DECODE = {"decode_ms": 10.0, "decode_per_seq_ms": 0.2, "max_running": 64, "transfer_ms_per_1k_tokens": 2.0}
# Prefill workers, decode workers, speeds.
FLEETS = [(2, 3, [6.0, 9.0]), (4, 4, [8.0, 12.0])]
COLUMNS = ("ttft_mean_ms", "ttft_p99_ms", "e2e_mean_ms", "e2e_p99_ms", "output_tps")


def row(policy: str, report: Report) -> str:
    figures = " | ".join(f"{report[column]:.0f}" for column in COLUMNS)
    return f"| {policy} | {report['hit_ratio']:.3f} | {figures} |"


def main() -> None:
    with tempfile.TemporaryDirectory() as room:
        for kind in ("agents", "documents"):
            made = Path(room, f"{kind}.jsonl")
            made.write_text("\n".join(lines(kind)))
            trace = FleetTrace(made)
            for prefill, decode, speeds in FLEETS:
                options: dict[str, Any] = {"prefill": prefill, "decode": decode, **DECODE}
                for run in compare(trace, POLICIES, speeds=speeds, seeds=SEEDS, **options):
                    print(f"### {prefill} prefill, {decode} decode workers, {kind}, {run['speed']:g}×\n")
                    print("| prefill+decode | hits | TTFT mean | p99 | e2e mean | p99 | tokens/s |")
                    print("|" + " --- |" * 7)
                    print("\n".join(row(report["policy"], report) for report in run["policies"]) + "\n", flush=True)


if __name__ == "__main__":
    main()
