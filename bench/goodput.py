"""The tables of goodput.md: `python bench/goodput.py TRACE.jsonl > tables.md` (three minutes).

The first compares the shared engine model with a published serving table. The others compare policies on it, at loads
around the knee: the speed at which `sized_auto`, the rule of cache_aware without the costs of decode, serves nine of
ten requests in time.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from traces import KINDS, lines

from sgl_model_gateway.sgl_model_gateway_rs import FleetTrace, simulate_fleet

# TensorRT-LLM 0.21, performance overview: Llama 3.1 8B in FP8 on one H100 under full load. Prompt and output tokens,
# requests here, output tokens per second there.
PUBLISHED = (
    (128, 128, 8000, 26401.48),
    (128, 2048, 3000, 21413.21),
    (128, 4096, 1500, 13541.54),
    (500, 2000, 3000, 17571.01),
    (1000, 1000, 3000, 14991.62),
    (1000, 2000, 2000, 13505.23),
    (1024, 2048, 2000, 13165.91),
    (2048, 128, 3000, 3275.55),
    (2048, 2048, 1500, 9462.43),
    (5000, 500, 1000, 3276.47),
    (20000, 2000, 200, 1340.69),
)
MEMORY = 950_000
# Divides every length above.
BLOCK = 4
RULE, RIVAL, OURS = "sized_auto", "smg_1.13", "cache_aware"
KNEE = 0.9
LOADS = (0.9, 1.0, 1.07, 1.15, 1.3)
SEEDS = (1, 2, 3)
REQUESTS = 6000
# Title, trace, bottleneck, memory in tokens, factor on outputs, limits on TTFT and TPOT in ms.
MIXES = (
    ("conversation, outputs as recorded", "", "prefill", 900_000, 1, 8000, 25),
    ("conversation, outputs × 4", "", "decode", 900_000, 4, 8000, 25),
    ("conversation, outputs × 8", "", "decode", 900_000, 8, 8000, 25),
    ("conversation, outputs × 2", "", "memory", 200_000, 2, 8000, 40),
    ("conversation, outputs × 4", "", "memory", 200_000, 4, 8000, 40),
    ("agents, outputs × 4", "agents", "decode", 900_000, 4, 3000, 25),
    ("agents, outputs × 2", "agents", "memory", 300_000, 2, 3000, 25),
    ("documents, outputs × 4", "documents", "memory", 300_000, 4, 3000, 25),
    ("tools, outputs × 4", "tools", "memory", 150_000, 4, 2000, 25),
    ("tools, outputs × 10", "tools", "decode", 150_000, 10, 2000, 25),
)


def main(path: str) -> None:
    with tempfile.TemporaryDirectory() as room:
        print("### The model against a published table\n\n" + "\n".join(published(Path(room))) + "\n", flush=True)
        traces = {"": FleetTrace(path, REQUESTS)}
        for kind in KINDS:
            made = Path(room, f"{kind}.jsonl")
            made.write_text("\n".join(lines(kind)))
            traces[kind] = FleetTrace(made, REQUESTS)
        print("### Goodput around the knee\n\n" + "\n".join(header()), flush=True)
        for title, kind, bottleneck, memory, scale, ttft, tpot in MIXES:
            options = {"engine_model": "shared", "max_running": 1024, "kv_tokens": memory, "output_scale": float(scale)}
            limits = {"ttft_slo_ms": float(ttft), "tpot_slo_ms": float(tpot)}
            mix = f"{title}; {bottleneck}, {memory // 1000} k tokens"
            print("\n".join(rows(traces[kind], mix, options | limits)), flush=True)


def published(room: Path) -> Iterator[str]:
    yield "| prompt, output | published, tokens/s | model | with mixed chunks |"
    yield "|" + " --- |" * 4
    for prompt, output, requests, known in PUBLISHED:
        blocks = prompt // BLOCK
        made = Path(room, "full.jsonl")
        with made.open("w") as file:
            for number in range(requests):
                ids = list(range(number * blocks, (number + 1) * blocks))
                row = {"timestamp": 0, "input_length": prompt, "output_length": output, "max_tokens": output}
                file.write(json.dumps(row | {"hash_ids": ids}) + "\n")
        trace = FleetTrace(made)
        cells = []
        for mixed in (False, True):
            options: dict[str, Any] = {"workers": 1, "block_tokens": BLOCK, "kv_tokens": MEMORY, "max_running": 2048}
            options |= {"engine_model": "shared", "engine": {"mixed_chunks": mixed}}
            ours = simulate_fleet(trace, "round_robin", **options)["output_tps"]
            cells.append(f"{ours:,.0f} ({ours / known - 1:+.1%})")
        yield f"| {prompt}, {output} | {known:,.0f} | " + " | ".join(cells) + " |"


def header() -> Iterator[str]:
    yield "| mix; bottleneck | policy | " + " | ".join(f"{load:g} ×" for load in LOADS) + " |"
    yield "|" + " --- |" * (2 + len(LOADS))


def rows(trace: FleetTrace, mix: str, options: dict[str, Any]) -> Iterator[str]:
    knee = speed_of(trace, options)
    of = {policy: [goodput(trace, policy, knee * load, options) for load in LOADS] for policy in (RULE, RIVAL, OURS)}
    for policy, shares in of.items():
        title = f"{mix}; knee at {knee:.2f} ×" if policy == RULE else ""
        yield f"| {title} | {policy} | " + " | ".join(f"{share:.3f}" for share in shares) + " |"
    for policy in (RULE, RIVAL):
        ratios = [ours / max(other, 1e-9) for ours, other in zip(of[OURS], of[policy], strict=True)]
        yield f"| | ours / {policy} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |"


def speed_of(trace: FleetTrace, options: dict[str, Any]) -> float:
    """The speed at which the rule without the costs of decode is at its knee."""
    low, high = 0.05, 100.0
    for _ in range(9):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if goodput(trace, RULE, middle, options) >= KNEE else (low, middle)
    return math.sqrt(low * high)


def goodput(trace: FleetTrace, policy: str, speed: float, options: dict[str, Any]) -> float:
    runs = (simulate_fleet(trace, policy, speed=speed, seed=seed, **options) for seed in SEEDS)
    return statistics.fmean(float(run["goodput"]) for run in runs)


if __name__ == "__main__":
    main(sys.argv[1])
