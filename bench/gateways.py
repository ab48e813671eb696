"""The tables of policies.md about several gateways: `python bench/gateways.py TRACE.jsonl` (two minutes)."""

from __future__ import annotations

import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from traces import lines

from sgl_model_gateway._simulate.report import Report
from sgl_model_gateway.sgl_model_gateway_rs import FleetTrace
from sgl_model_gateway.simulate import compare

SPEEDS = [10.0, 20.0, 30.0, 40.0]
SEEDS = list(range(1, 11))
GATEWAYS = 8
# Title, options.
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("nothing", {"share": "none"}),
    ("rendezvous", {"share": "rendezvous"}),
    ("redis", {"share": "redis"}),
    ("redis, 20 ms, 5 % lost", {"share": "redis", "share_delay_ms": 20.0, "share_loss": 0.05}),
]


def main(path: str) -> None:
    with tempfile.TemporaryDirectory() as room:
        conversation, agents = Path(room, "conversation.jsonl"), Path(room, "agents.jsonl")
        conversation.write_text("\n".join(spread(path)))
        agents.write_text("\n".join(lines("agents")))
        for title, trace, limit in [
            ("conversation trace, spread", str(conversation), 3000),
            ("conversation trace as recorded", path, 3000),
            ("agents", str(agents), 12_000),
        ]:
            print(f"### {title}\n\n" + "\n".join(table(FleetTrace(trace, limit))) + "\n", flush=True)


def spread(path: str) -> Iterator[str]:
    """The trace with the requests of a moment spread evenly up to the next moment: its times are rounded to 3 s."""
    moments: dict[float, list[dict[str, Any]]] = defaultdict(list)
    for line in Path(path).read_text().splitlines():
        request = json.loads(line)
        moments[request["timestamp"]].append(request)
    times = sorted(moments)
    for begin, end in zip(times, [*times[1:], times[-1] + 3000], strict=True):
        requests = moments[begin]
        for place, request in enumerate(requests):
            request["timestamp"] = begin + (end - begin) * (place + 0.5) / len(requests)
            yield json.dumps(request)


def table(trace: FleetTrace) -> Iterator[str]:
    one = reports(trace, {})
    yield f"| {GATEWAYS} gateways share | " + " | ".join(f"{speed:g}×" for speed in SPEEDS) + " |"
    yield "|" + " --- |" * (len(SPEEDS) + 1)
    yield "| (one gateway) | " + " | ".join(cell(report, report) for report in one) + " |"
    chance = reports(trace, {"share": "none"})
    yield "| (one gateway, ties by chance) | " + " | ".join(map(cell, chance, one)) + " |"
    for title, options in SETTINGS:
        several = reports(trace, {"gateways": GATEWAYS} | options)
        yield f"| {title} | " + " | ".join(map(cell, several, one)) + " |"


def reports(trace: FleetTrace, options: dict[str, Any]) -> list[Report]:
    runs = compare(trace, ["cache_aware"], speeds=SPEEDS, seeds=SEEDS, **options)
    return [run["policies"][0] for run in runs]


def cell(report: Report, one: Report) -> str:
    share = report["hit_ratio"] / one["hit_ratio"]
    sent = report["share_bytes_per_sec"]
    words = f"{report['hit_ratio']:.3f} ({share:.0%}), {report['ttft_mean_ms']:.0f}, {report['ttft_p99_ms']:.0f}"
    return words + (f", {sent / 1000:.1f} kB/s" if sent else "")


if __name__ == "__main__":
    main(sys.argv[1])
