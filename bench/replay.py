"""A trace replayed live through gateways, in front of simulated workers with prefix caches: time to first token.

`python bench/replay.py conversation_trace.jsonl --only ours,smg --speed 30`. The trace has a JSON object per line with
`timestamp` (milliseconds), `output_length` and `hash_ids`. A hash id becomes one page of text, so a page of a worker's
cache is a block of the trace. Ports of 127.0.0.1 only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from compare import CHAT, MODEL, START_TIMEOUT, chosen
from processes import HOST, BenchError, require_free, require_tools, running, two_cores, wait_until_answered
from targets import Setting, Target

from sgl_model_gateway._replay.client import Client
from sgl_model_gateway._replay.send import Outcome, Pace, send
from sgl_model_gateway._replay.trace import Trace, read, shortened

# The simulated worker counts four bytes as one token.
PAGE_TOKENS = 16
PAGE_BYTES = 4 * PAGE_TOKENS
DRAIN_S = 120.0
# Until the gateway has seen every worker.
SETTLE_S = 2.0


@dataclass(frozen=True)
class WorkerStats:
    """What a simulated worker counted."""

    prompt_tokens: float
    # Share of these tokens that its cache held.
    hit_ratio: float


def arrivals(path: Path, limit: int, output_divisor: int) -> Trace:
    """The first requests of a trace, each of their blocks a page."""
    whole = read(path, limit)
    short = shortened(whole, block_divisor=whole.block_bytes // PAGE_BYTES, output_divisor=output_divisor)
    rows = [replace(one, input_bytes=len(one.blocks) * PAGE_BYTES, streams=True) for one in short.arrivals]
    return replace(short, arrivals=rows)


async def replay(port: int, trace: Trace, speed: float) -> Outcome:
    """Sends every request at its time, then waits for the replies; those that do not come are errors."""
    client = Client(f"http://{HOST}:{port}")
    pace = Pace(speed=speed, max_in_flight=100_000, timeout_s=DRAIN_S, model=MODEL)
    try:
        return await send(client, trace, pace)
    finally:
        client.close()


def worker_command(python: str, port: int, args: argparse.Namespace) -> list[str]:
    """A simulated worker with a cache of so many blocks, and so many milliseconds of prefill per block."""
    flags = {
        "--port": port,
        "--model": MODEL,
        "--page-size": PAGE_TOKENS,
        "--kv-cache-tokens": args.kv_blocks * PAGE_TOKENS,
        "--prefill-tokens-per-sec": PAGE_TOKENS * 1000 / args.block_ms,
        "--decode-step-base-ms": args.token_ms,
        "--max-running-requests": 100_000,
    }
    words = [str(word) for flag in flags.items() for word in flag]
    return [python, "-m", "sgl_model_gateway.sim_worker", *words]


def measure(target: Target, policy: str, trace: Trace, args: argparse.Namespace) -> dict[str, Any]:
    """One replay through one gateway. Raises `BenchError` when it does not start."""
    workers = tuple(range(args.base_port, args.base_port + args.workers))
    port = args.base_port + args.workers
    cores = two_cores()
    with tempfile.TemporaryDirectory(prefix="gateway-replay-") as name, ExitStack() as stack:
        room = Path(name)
        setting = Setting(port, port + 1, workers, policy, room)
        require_free([*workers, port, port + 1])
        for worker in workers:
            log = room / f"worker-{worker}.log"
            process = stack.enter_context(running(worker_command(args.python, worker, args), cores[1], log))
            wait_until_answered(process, log, f"http://{HOST}:{worker}/health", None, START_TIMEOUT)
        log = room / f"{target.name}.log"
        gateway = stack.enter_context(running(target.command(setting), cores[0], log))
        wait_until_answered(gateway, log, f"http://{HOST}:{port}/v1/chat/completions", CHAT, START_TIMEOUT)
        time.sleep(SETTLE_S)
        outcome = asyncio.run(replay(port, trace, args.speed))
        stats = [worker_stats(url) for url in setting.worker_urls]
    return figures(outcome, stats)


def worker_stats(url: str) -> WorkerStats:
    """A worker's counters, from its metrics."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
        text = response.read().decode()
    values = {line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line[:1] != "#"}
    return WorkerStats(values["sglang:prompt_tokens_total"], values["sglang:cache_hit_rate"])


def figures(outcome: Outcome, stats: list[WorkerStats]) -> dict[str, Any]:
    """The row of a gateway."""
    if not outcome.replies:
        raise BenchError("no request was answered")
    times = sorted(reply.first_s for reply in outcome.replies.values())
    prompt_tokens = sum(worker.prompt_tokens for worker in stats)
    return {
        "hit_ratio": sum(worker.prompt_tokens * worker.hit_ratio for worker in stats) / max(1, prompt_tokens),
        "ttft_mean_ms": mean(times) * 1000,
        "ttft_p50_ms": times[len(times) // 2] * 1000,
        "ttft_p99_ms": times[len(times) * 99 // 100] * 1000,
        "answered": len(times),
        "errors": outcome.errors.total(),
    }


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--only", type=lambda text: text.split(","), help="names of targets, as of compare.py")
    parser.add_argument("--target", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--policies", type=lambda text: text.split(","), default=["cache_aware"])
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--speed", type=float, default=30.0, help="as a multiple of the recorded rate")
    parser.add_argument("--limit", type=int, default=3000, help="requests")
    parser.add_argument("--kv-blocks", type=int, default=4000, help="blocks in a worker's cache")
    parser.add_argument("--block-ms", type=float, default=3.2, help="prefill of an uncached block")
    parser.add_argument("--token-ms", type=float, default=0.4, help="a decode step")
    parser.add_argument("--output-divisor", type=int, default=16, help="output lengths are divided by it")
    parser.add_argument("--base-port", type=int, default=9100, help="first of --workers + 2 ports in a row")
    parser.add_argument("--python", default=sys.executable, help="the Python that runs the simulated workers")
    parser.add_argument("--json", type=Path, help="file for all results")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Exit code 1 when a gateway gave no figures or had errors."""
    args = parse(argv)
    rows: list[dict[str, Any]] = []
    clean = True
    try:
        require_tools(["taskset", "setpriv"])
        trace = arrivals(args.trace, args.limit, args.output_divisor)
        targets = chosen(args)
        for policy in args.policies:
            for target in targets:
                if not target.has(policy):
                    continue
                row = measure(target, policy, trace, args)
                rows.append({"policy": policy, "target": target.name, **row})
                print("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()))
                clean = clean and not row["errors"]
    except (BenchError, OSError) as error:
        sys.exit(f"error: {error}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    sys.exit(0 if clean else 1)


if __name__ == "__main__":
    main()
