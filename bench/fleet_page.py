#!/usr/bin/env python3
"""What the fleet page costs a gateway: its CPU share with and without viewers, and the bytes that each viewer gets.

The gateway has one core, workers and viewers another. Workers are URLs that nothing answers (`--workers-are dead`), or
simulated ones that a little load keeps changing (`live`).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from processes import HOST, BenchError, pinned, process_tree, require_free, require_tools, running, stop, two_cores
from processes import wait_until_answered as wait

# Runs simulated workers in one process, on as many ports, until its standard input ends.
WORKERS = """
import sys
from sgl_model_gateway.sgl_model_gateway_rs import SimWorker
workers = [SimWorker(host="127.0.0.1", port=int(port), decode_step_base_ms=1) for port in sys.argv[1:]]
for worker in workers: worker.start_background()
print("ready", flush=True)
sys.stdin.read()
"""
BODY = b'{"model": "sim-model", "max_tokens": 4, "stream": true, "messages": [{"role": "user", "content": "%d"}]}'


class Viewer(threading.Thread):
    """Reads the stream and counts what comes."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self.bytes = self.events = 0

    def run(self) -> None:
        with urllib.request.urlopen(f"{self._url}/debug/fleet/stream", timeout=30) as reply:
            while line := reply.readline():
                self.bytes += len(line)
                self.events += line.startswith(b'data: {"snapshot')


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its descendants so far."""
    ticks = 0
    for each in process_tree(pid):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def share(pid: int, secs: float) -> float:
    """The share of a core that a process uses, over so many seconds."""
    before, begun = cpu_seconds(pid), time.monotonic()
    time.sleep(secs)
    return (cpu_seconds(pid) - before) / (time.monotonic() - begun)


@contextmanager
def live_workers(ports: list[int], core: int, python: str) -> Iterator[None]:
    command = pinned([python, "-c", WORKERS, *map(str, ports)], core)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise BenchError("the simulated workers did not start")
        try:
            yield
        finally:
            stop(process)


def keep_busy(url: str, per_second: float, ended: threading.Event) -> None:
    """Sends a request now and then."""
    number = 0
    while not ended.wait(1 / per_second):
        number += 1
        request = urllib.request.Request(
            f"{url}/v1/chat/completions", BODY % number, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as reply:
            reply.read()


def measure(args: argparse.Namespace, room: Path) -> None:
    require_tools(["setpriv", "taskset"])
    ports = [args.base_port + 2 + number for number in range(args.workers)]
    require_free([args.base_port, args.base_port + 1])
    ours, theirs = two_cores()
    os.sched_setaffinity(0, {theirs})
    url, log, ended = f"http://{HOST}:{args.base_port}", room / "gateway.log", threading.Event()
    command = [args.python, "-m", "sgl_model_gateway.launch_router", "--host", HOST, "--port", str(args.base_port)]
    command += ["--prometheus-port", str(args.base_port + 1), "--policy", "cache_aware", "--log-level", "warn"]
    command += ["--worker-urls", *(f"http://{HOST}:{port}" for port in ports)]
    if args.workers_are == "dead":
        command.append("--disable-health-check")
    with ExitStack() as stack:
        if args.workers_are == "live":
            stack.enter_context(live_workers(ports, theirs, args.python))
        gateway = stack.enter_context(running(command, ours, log))
        wait(gateway, log, f"{url}/liveness", None, 60)
        stack.callback(ended.set)
        if args.workers_are == "live":
            wait(gateway, log, f"{url}/readiness", None, 60)
            threading.Thread(target=keep_busy, args=(url, args.rate, ended), daemon=True).start()
        time.sleep(5)
        alone = share(gateway.pid, args.secs)
        viewers = [Viewer(url) for _ in range(args.viewers)]
        for viewer in viewers:
            viewer.start()
        time.sleep(2)
        first = viewers[0]
        size, events = first.bytes, first.events
        watched = share(gateway.pid, args.secs)
        size, events = first.bytes - size, first.events - events
    print(f"{args.workers} {args.workers_are} workers, {args.viewers} viewers, {args.secs:g} s")
    print(f"gateway: {100 * alone:.2f} % of a core without viewers, {100 * watched:.2f} % with them")
    print(f"each viewer: {events / args.secs:.2f} snapshots and {size / args.secs / 1000:.0f} kB per second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=500)
    parser.add_argument("--workers-are", choices=("dead", "live"), default="dead")
    parser.add_argument("--viewers", type=int, default=8)
    parser.add_argument("--secs", type=float, default=20)
    parser.add_argument("--rate", type=float, default=50, help="requests per second to live workers")
    parser.add_argument("--base-port", type=int, default=21_000)
    parser.add_argument("--python", default=sys.executable, help="of the installation that is measured")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as room:
        try:
            measure(args, Path(room))
        except BenchError as error:
            sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
