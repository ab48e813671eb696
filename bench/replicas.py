"""Several gateways that share a Redis, live: `python bench/replicas.py conversation_trace.jsonl` (six minutes).

A trace is dealt at random to four gateways in front of eight simulated workers. Rows differ in what the gateways share,
and in what happens to the server meanwhile: it is frozen, slow, or killed and started again. Every row has its own
processes, on 127.0.0.1 only. Needs redis-server or valkey-server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from fairness import quantile
from fleet_page import cpu_seconds
from gateways import spread
from processes import HOST, BenchError, finish, free_port, launched

from sgl_model_gateway._replay.client import Client, Reply
from sgl_model_gateway._replay.figures import report
from sgl_model_gateway._replay.send import Outcome, Pace, send
from sgl_model_gateway._replay.trace import Trace, read, shortened
from sgl_model_gateway.sgl_model_gateway_rs import SimWorker

WORKERS, GATEWAYS = 8, 4
# A block of the trace is a page of 64 bytes, and takes 3.2 ms: 512 tokens on a worker of 160 000 per second.
PAGE_TOKENS, PAGE_BYTES = 16, 64
ENGINE = {"prefill_tokens_per_sec": 5000.0, "page_size": PAGE_TOKENS, "kv_cache_tokens": 4000 * PAGE_TOKENS}
SETTLE_S = 2.5


class Redis:
    """A server without files, and what happens to it."""

    def __init__(self) -> None:
        found = shutil.which("redis-server") or shutil.which("valkey-server")
        if not found:
            raise BenchError("needs redis-server or valkey-server (Debian: redis-server)")
        self.port = free_port()
        flags = ("--port", str(self.port), "--bind", HOST, "--save", "", "--appendonly", "no")
        self._command = [found, *flags]
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, stdout=subprocess.DEVNULL)

    def leave_alone(self, seconds: float) -> None:
        """Nothing happens."""

    def freeze(self, seconds: float) -> None:
        self._process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self._process.send_signal(signal.SIGCONT)

    def slow_down(self, seconds: float) -> None:
        """Nine tenths of the time it answers nothing."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.freeze(0.45)
            time.sleep(0.05)

    def kill(self, seconds: float) -> None:
        self.stop()
        time.sleep(seconds)
        self._process = self._start()

    def stop(self) -> None:
        self._process.send_signal(signal.SIGCONT)
        self._process.kill()
        self._process.wait()


@dataclass(frozen=True)
class Row:
    """How the gateways are started, and what happens to their server."""

    name: str
    gateways: int = GATEWAYS
    flags: Sequence[str] = ()
    shares: bool = False
    fault: Callable[[Redis, float], None] = Redis.leave_alone


ROWS = (
    Row("one gateway", gateways=1),
    Row("four, sharing nothing"),
    Row("four, --gateway-replicas 4", flags=("--gateway-replicas", str(GATEWAYS))),
    Row("four, --shared-state", shares=True),
    Row("the same, server frozen", shares=True, fault=Redis.freeze),
    Row("the same, server slow", shares=True, fault=Redis.slow_down),
    Row("the same, server killed", shares=True, fault=Redis.kill),
)


class Dealer(Client):
    """Sends each request to one of several gateways, the same one in every row."""

    def __init__(self, ports: Sequence[int]) -> None:
        super().__init__(f"http://{HOST}:{ports[0]}")
        self._clients = [Client(f"http://{HOST}:{port}") for port in ports]
        self._chance = random.Random(7)

    async def post(self, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> Reply:
        return await self._chance.choice(self._clients).post(path, body, headers)

    def close(self) -> None:
        for client in self._clients:
            client.close()


def gateway(urls: Sequence[str], flags: Sequence[str]) -> AbstractContextManager[tuple[int, int]]:
    """The port and the process of a gateway, ready."""
    return launched(urls, ["--policy", "cache_aware", "--slow-start-secs", "0", *flags])


def sent_bytes(port: int) -> int:
    """What a gateway has sent to the others."""
    with urllib.request.urlopen(f"http://{HOST}:{port}/debug/replicas", timeout=5) as reply:
        return int(json.load(reply).get("sent", {}).get("bytes", 0))


def arrivals(path: Path, limit: int) -> Trace:
    """The first requests of a trace, each of their blocks a page."""
    whole = read(path, limit)
    short = shortened(whole, block_divisor=whole.block_bytes // PAGE_BYTES, output_divisor=10**6)
    rows = [replace(one, input_bytes=len(one.blocks) * PAGE_BYTES, streams=True) for one in short.arrivals]
    return replace(short, arrivals=rows)


async def replay(ports: Sequence[int], trace: Trace, speed: float) -> Outcome:
    client = Dealer(ports)
    try:
        return await send(client, trace, Pace(speed=speed, max_in_flight=100_000, timeout_s=60.0, model="sim"))
    finally:
        client.close()


def measure(row: Row, trace: Trace, speed: float) -> list[str]:
    """The cells of one row."""
    with ExitStack() as started:
        urls = []
        for _ in range(WORKERS):
            worker = SimWorker(port=0, host=HOST, model="sim", **ENGINE).start_background()
            started.callback(worker.stop, 1.0)
            urls.append(worker.url)
        redis = Redis()
        started.callback(redis.stop)
        flags = [*row.flags]
        if row.shares:
            flags += ["--shared-state", f"redis://{HOST}:{redis.port}/0"]
        gateways = [started.enter_context(gateway(urls, flags)) for _ in range(row.gateways)]
        # They hear each other, and have asked for what the eldest knows.
        time.sleep(SETTLE_S)
        ports, pids = [port for port, _ in gateways], [pid for _, pid in gateways]
        before = sum(map(cpu_seconds, pids))
        third = trace.span_s / speed / 3
        fault = threading.Timer(third, row.fault, (redis, third))
        fault.start()
        outcome = asyncio.run(replay(ports, trace, speed))
        fault.join()
        used = sum(map(cpu_seconds, pids)) - before
        figures = report(trace, outcome)
        waits = sorted(reply.first_s for reply in outcome.replies.values())
        sent = sum(map(sent_bytes, ports)) / len(ports) / outcome.took_s
        failed = len(trace.arrivals) - len(outcome.replies)
        return [
            f"{figures['hit_ratio']:.3f}",
            f"{figures['ttft']['mean_ms']:.0f} ms",
            f"{quantile(waits, 0.99) * 1000:.0f} ms",
            str(failed),
            f"{used / outcome.took_s:.1%}",
            f"{sent / 1000:.1f} kB/s" if row.shares else "",
        ]


def main() -> bool:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path, help="Mooncake's conversation trace, or one like it")
    parser.add_argument("--limit", type=int, default=3000, help="requests; default %(default)s")
    parser.add_argument("--speed", type=float, default=20.0, help="times the recorded rate; default %(default)s")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose names contain this")
    parser.add_argument("--flags", type=shlex.split, default=[], help="further flags of gateways that share a state")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "spread.jsonl")
        path.write_text("\n".join(spread(str(args.trace))))
        trace = arrivals(path, args.limit)
    print(f"{'':30}{'hits':>8}{'TTFT':>10}{'p99':>10}{'failed':>8}{'CPU':>8}{'sent':>12}")
    for row in ROWS:
        if args.only not in row.name:
            continue
        if row.shares:
            row = replace(row, flags=args.flags)
        hits, mean, p99, failed, cpu, sent = measure(row, trace, args.speed)
        print(f"{row.name:30}{hits:>8}{mean:>10}{p99:>10}{failed:>8}{cpu:>8}{sent:>12}", flush=True)
    return True


if __name__ == "__main__":
    finish(main)
