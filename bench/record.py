"""A recording against what it was made of: does its replay hit as much, and does its simulation rank policies as live?

`.venv/bin/python bench/record.py conversation_trace.jsonl`. The trace is replayed live through a gateway that records,
under each policy, in front of simulated workers (as `replay.py` does it). The first recording is then replayed, and
simulated under all policies. Ports of 127.0.0.1 only.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import replay
from processes import BenchError, require_tools
from targets import ROOT, find_targets

from sgl_model_gateway import simulate
from sgl_model_gateway.sgl_model_gateway_rs import FleetTrace

SEEDS = 8
POLICIES = ["cache_aware", "prefix_hash", "least_load", "round_robin"]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line: that of `replay.py`, and where the package is installed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="or a Python, with this package")
    parser.add_argument("--policies", default=",".join(POLICIES))
    own, rest = parser.parse_known_args(argv)
    args = replay.parse([own.trace, "--policies", own.policies, *rest])
    args.venv = own.venv
    return args


def simulated(recording: Path, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The reports of a recording's simulation, by policy, with workers as `replay.py` starts them."""
    page = replay.PAGE_TOKENS
    options = {
        "workers": args.workers,
        "kv_tokens": args.kv_blocks * page,
        "block_tokens": page,
        "prefill_tps": page * 1000 / args.block_ms,
        "decode_ms": args.token_ms,
        "decode_per_seq_ms": 0.0,
        "decode_interference": 0.0,
        "max_running": 100_000,
    }
    # Recorded at the speed of the replay. The seed names the workers, and so makes the rings of hashes.
    runs = simulate.compare(FleetTrace(recording), args.policies, speeds=[1.0], seeds=list(range(SEEDS)), **options)
    return {report["policy"]: report for report in runs[0]["policies"]}


def main(argv: list[str] | None = None) -> None:
    """Exit code 1 when hit ratios differ by more than 2 %, or the ranks differ."""
    args = parse(argv)
    live: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="gateway-record-") as name:
        files = {policy: Path(name) / f"{policy}.jsonl" for policy in args.policies}
        try:
            require_tools(["taskset", "setpriv"])
            trace = replay.arrivals(args.trace, args.limit, args.output_divisor)
            for policy, file in files.items():
                flags = f"--record {file} --record-block-tokens {replay.PAGE_TOKENS}"
                (target,) = (one for one in find_targets([f"recording={args.venv} {flags}"]) if one.name == "recording")
                live[policy] = replay.measure(target, policy, trace, args)
            first = args.policies[0]
            args.speed = 1.0
            again = replay.measure(target, first, replay.arrivals(files[first], args.limit, 1), args)
        except (BenchError, OSError) as error:
            sys.exit(f"error: {error}")
        found = simulated(files[first], args)
    for policy, row in live.items():
        sizes = f"hits live {row['hit_ratio']:.4f} simulated {found[policy]['hit_ratio']:.4f}"
        times = f"TTFT mean live {row['ttft_mean_ms']:.1f} ms simulated {found[policy]['ttft_mean_ms']:.1f} ms"
        print(f"{policy}: {sizes}; {times}; errors {row['errors']}")
    off = abs(again["hit_ratio"] / live[first]["hit_ratio"] - 1)
    print(f"{first} replayed from its recording: hits {again['hit_ratio']:.4f}, off by {off:.2%}")
    ranks = [sorted(rows, key=lambda policy: rows[policy]["ttft_mean_ms"]) for rows in (live, found)]
    print(f"ranks by TTFT live: {', '.join(ranks[0])}; simulated: {', '.join(ranks[1])}")
    if args.json:
        args.json.write_text(json.dumps({"live": live, "again": again}, indent=1) + "\n")
    sys.exit(0 if off <= 0.02 and ranks[0] == ranks[1] else 1)


if __name__ == "__main__":
    main()
