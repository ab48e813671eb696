"""A noisy neighbour, with and without the fair order: `python bench/fairness.py` (a minute).

Two simulated workers with four requests each stand behind a gateway. One key sends as many long prompts as it can, and
another one a short prompt ten times a second. Every row has its own processes, on 127.0.0.1 only.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from processes import HOST, finish, launched

from sgl_model_gateway.sgl_model_gateway_rs import SimWorker

WORKERS = 2
PER_WORKER = 4
NOISY_CLIENTS = 48
NOISY_TOKENS = 2000
QUIET_TOKENS = 200
QUIET_PAUSE = 0.1
ENGINE = {"prefill_tokens_per_sec": 20_000.0, "decode_step_base_ms": 8.0, "decode_step_per_seq_ms": 0.2}
FAIR = ("--queue-order", "fair")


@dataclass(frozen=True)
class Row:
    """How the gateway is started, and what the noisy key sends."""

    name: str
    flags: Sequence[str] = ()
    noise: bool = True
    headers: dict[str, str] = field(default_factory=dict)


ROWS = (
    Row("quiet key alone", noise=False),
    Row("first come, first served"),
    Row("fair", FAIR),
    Row("fair, noisy key sends batch", FAIR, headers={"x-smg-priority": "batch"}),
)


@dataclass
class Load:
    """What the clients of one row measure."""

    port: int
    until: float
    quiet: list[float] = field(default_factory=list)
    noisy: int = 0
    failed: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, connection: http.client.HTTPConnection, key: str, tokens: int, headers: dict[str, str]) -> bool:
        # Prompts share nothing, so that no cache makes one of them cheap.
        text = "".join(random.choices("abcdefghijklmnopqrstuvwxyz ", k=4 * tokens))
        body = json.dumps({"text": text, "sampling_params": {"max_new_tokens": 8}})
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"} | headers
        connection.request("POST", "/generate", body, headers)
        reply = connection.getresponse()
        reply.read()
        return reply.status == 200

    def noise(self, headers: dict[str, str]) -> None:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=60)
        while time.monotonic() < self.until:
            served = self.ask(connection, "sk-noisy", NOISY_TOKENS, headers)
            with self.lock:
                self.noisy += served
                self.failed += not served
        connection.close()

    def one_quiet(self) -> None:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=60)
        begun = time.monotonic()
        served = self.ask(connection, "sk-quiet", QUIET_TOKENS, {})
        with self.lock:
            self.quiet.append(time.monotonic() - begun)
            self.failed += not served
        connection.close()


@contextmanager
def gateway(urls: Sequence[str], flags: Sequence[str], folder: Path) -> Iterator[int]:
    """The port of a gateway whose keys are those of the two clients."""
    keys = folder / "keys.json"
    keys.write_text(json.dumps([{"name": name, "key": f"sk-{name}"} for name in ("noisy", "quiet")]))
    own = ["--api-keys-file", str(keys), "--max-requests-per-worker", str(PER_WORKER)]
    with launched(urls, [*own, *flags]) as (port, _):
        yield port


def measure(row: Row, seconds: float) -> Load:
    """The load of one row, after a second in which the queue fills."""
    workers = [SimWorker(port=0, host=HOST, model="sim", **ENGINE).start_background() for _ in range(WORKERS)]
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            gateway([worker.url for worker in workers], row.flags, Path(folder)) as port,
        ):
            load = Load(port, time.monotonic() + seconds + 1)
            count = NOISY_CLIENTS if row.noise else 0
            threads = [threading.Thread(target=load.noise, args=(row.headers,)) for _ in range(count)]
            for thread in threads:
                thread.start()
            time.sleep(1)
            while time.monotonic() < load.until:
                thread = threading.Thread(target=load.one_quiet)
                thread.start()
                threads.append(thread)
                time.sleep(QUIET_PAUSE)
            for thread in threads:
                thread.join()
            return load
    finally:
        for worker in workers:
            worker.stop(1.0)


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> bool:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each row")
    seconds = parser.parse_args().seconds
    alone = 0.0
    print(f"{'':30}{'wait p50':>12}{'wait p99':>12}{'noisy/s':>10}{'failed':>8}")
    for row in ROWS:
        load = measure(row, seconds)
        alone = alone or quantile(load.quiet, 0.5)
        waits = [max(0.0, latency - alone) * 1000 for latency in load.quiet]
        p50, p99 = (f"{quantile(waits, share):.0f} ms" for share in (0.5, 0.99))
        print(f"{row.name:30}{p50:>12}{p99:>12}{load.noisy / (seconds + 1):>10.1f}{load.failed:>8}", flush=True)
    return True


if __name__ == "__main__":
    finish(main)
