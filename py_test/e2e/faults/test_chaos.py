"""Faults drawn from a seed, one after the other and several at a time, under load: `make chaos SEED=7 FAULTS=10000`.

Whatever happens, two workers are left alone until the others are back, but for black-outs, in which all die, and for
faults that say nothing about a worker: requests that end workers, and a gateway that is short of something itself.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import resource
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from support.client import Client, Reply, generate, head
from support.gateway import Gateway
from support.hosts import NAME, PrivateHosts
from support.waiting import until, wait_for
from support.workers import Worker

SEED = int(os.environ.get("SEED", "1"))
FAULTS = int(os.environ.get("FAULTS", "300"))

FLEET = 5
LEFT_ALONE = 2
CLIENTS = 12
PROMPTS = 200
LONGEST_FAULT_MS = 500
RSS_SLACK = 12 << 20
LARGER_THAN_BUFFERS = 8 << 20
REFUSALS = {401, 403, 429, 500, 502, 503, 504}
"""What the gateway and the faults answer."""
FLAGS = [
    *["--health-check-interval-secs", "1", "--health-check-timeout-secs", "2", "--health-success-threshold", "1"],
    # A frozen worker is given up within seconds, and a client that reads nothing, too.
    *["--health-failure-threshold", "1", "--client-write-timeout-secs", "2"],
    *["--cb-timeout-duration-secs", "1", "--cb-success-threshold", "1", "--slow-start-secs", "1"],
    # The budget is for storms; here every request is to find the workers that are well.
    *["--retry-budget-min-per-sec", "1000", "--prefix-index-bytes", "1048576", "--request-timeout-secs", "30"],
]


@dataclass
class Fault:
    kind: str
    slot: int
    size: float
    """0 to 1: how bad."""


def schedule(seed: int, count: int) -> list[Fault]:
    """What is to happen; the same for the same seed."""
    draw = random.Random(seed)
    weights = {"vanish": 60, "server_errors": 9, "too_busy": 7, "hang_ups": 5, "slow": 6, "freeze": 6, "kill": 7}
    weights |= {"refuse_in_stream": 4, "refuse_credentials": 3, "stall": 1, "long_freeze": 1}
    kinds = draw.choices([*weights], [*weights.values()], k=count)
    for kind, first, every in (
        ("black_out", 100, 400),
        ("poison", 50, 200),
        ("shortage", 30, 150),
        ("no_names", 70, 150),
    ):
        kinds[first::every] = [kind] * len(kinds[first::every])
    return [Fault(kind, draw.randrange(FLEET), draw.random()) for kind in kinds]


@dataclass
class Span:
    """The time in which workers lost their connections."""

    begin: float
    end: float = math.inf


@dataclass
class Asked:
    """A request and the time it took."""

    reply: Reply
    began: float
    ended: float

    def was_begun(self) -> bool:
        """Bytes had been given to the client: it sees an abnormal end, which is all that can be done."""
        return self.reply.status == 200 and not self.reply.whole

    def overlaps(self, span: Span) -> bool:
        return self.began <= span.end and self.ended >= span.begin

    def took_for_deadly(self) -> bool:
        """Two workers lost their connection while they had it, so that it is not handed to a third one."""
        return self.reply.status == 502 and self.reply.headers.get("x-smg-error-code") == "request_ends_workers"


@dataclass
class Chaos:
    poisoned: ClassVar[range] = range(2, 3)
    """How many workers get a request on which every worker hangs up."""
    door: Gateway
    fleet: list[Worker]
    seed: int
    hosts: PrivateHosts | None = None
    """Workers are known by a name in there."""
    ill: set[int] = field(default_factory=set)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    black_outs: list[Span] = field(default_factory=list)
    cuts: list[Span] = field(default_factory=list)
    """Of one worker each."""
    shortages: list[Span] = field(default_factory=list)
    disputed: asyncio.Lock = field(default_factory=asyncio.Lock)
    stalled: list[socket.socket] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    asking: set[object] = field(default_factory=set)
    odd: list[Asked] = field(default_factory=list)
    over: bool = False
    rss_midway: int = 0

    async def run(self, faults: list[Fault]) -> None:
        clients = [asyncio.create_task(self.keep_asking(number)) for number in range(CLIENTS)]
        for at, fault in enumerate(faults):
            if at == len(faults) // 2:
                self.rss_midway = self.door.rss()
            await self.begin(fault)
        await asyncio.gather(*self.tasks)
        self.over = True
        await asyncio.gather(*clients)

    def close(self) -> None:
        for client in self.stalled:
            client.close()

    # --- load ---

    async def keep_asking(self, number: int) -> None:
        draw = random.Random(self.seed * 1000 + number)
        async with Client(self.door.url, fresh=number % 4 == 0) as client:
            while not self.over:
                body = a_request(draw)
                began, request = time.monotonic(), object()
                self.asking.add(request)
                reply = await client.ask(body)
                self.asking.discard(request)
                self.asked += 1
                if reply.ok:
                    self.answered(body, reply)
                else:
                    self.odd.append(Asked(reply, began, time.monotonic()))
                await asyncio.sleep(0.01)

    def answered(self, body: dict[str, Any], reply: Reply) -> None:
        """A request was answered with a whole 200."""

    async def earlier_ones_end(self) -> None:
        """Until no request is under way that was so before: what a worker did is held against it at a request's end."""
        earlier = set(self.asking)
        await until(lambda: not earlier & self.asking, "the end of earlier requests", 60)

    # --- faults ---

    async def begin(self, fault: Fault) -> None:
        """Starts a fault as soon as that is fair."""
        self.tasks = [task for task in self.tasks if not task.done() or task.result()]
        if fault.kind == "vanish":
            await self.vanish(fault)
        elif fault.kind in ("black_out", "poison", "shortage", "no_names"):
            await asyncio.gather(*self.tasks)
            await self.earlier_ones_end()
            await self.back(self.fleet)
            await getattr(self, fault.kind)()
        else:
            await until(lambda: self.to_spare(), "a worker to spare", 60)
            spare = self.to_spare()
            slot = next(slot % FLEET for slot in range(fault.slot, 2 * FLEET) if slot % FLEET in spare)
            self.ill.add(slot)
            self.tasks.append(asyncio.create_task(self.fall_ill(slot, fault)))
        self.done[fault.kind] += 1

    def to_spare(self) -> set[int]:
        """The slots of workers that may fall ill now."""
        return {*range(FLEET)} - self.ill if len(self.ill) < FLEET - LEFT_ALONE else set()

    async def fall_ill(self, slot: int, fault: Fault) -> None:
        what: Callable[[Worker, float], Awaitable[None]] = getattr(self, fault.kind)
        await what(self.fleet[slot], fault.size)
        await self.earlier_ones_end()
        await self.back([self.fleet[slot]])
        self.ill.discard(slot)

    async def back(self, workers: list[Worker]) -> None:
        """Until the gateway sends them requests again."""
        await asyncio.to_thread(wait_for, lambda: all(self.is_open(worker) for worker in workers), "all back", 60)

    def is_open(self, worker: Worker) -> bool:
        seen = self.door.worker(self.listed(worker))
        return seen["is_healthy"] and seen["circuit_breaker"] == "closed"

    async def server_errors(self, worker: Worker, size: float) -> None:
        await give(worker, status=random.Random(size).choice([500, 502, 503, 504]), count=1 + int(20 * size))

    async def too_busy(self, worker: Worker, size: float) -> None:
        await give(worker, status=429, retry_after=1, count=1 + int(30 * size))

    async def refuse_in_stream(self, worker: Worker, size: float) -> None:
        await give(worker, stream_status=503, count=1 + int(30 * size))

    async def refuse_credentials(self, worker: Worker, size: float) -> None:
        """One worker at a time: what two say is the client's answer."""
        async with self.disputed:
            await give(worker, status=random.Random(size).choice([401, 403]), count=1 + int(20 * size))
            await self.back([worker])

    async def stall(self, worker: Worker, size: float) -> None:
        """A client asks for more than all buffers hold, and reads nothing to the end of the run."""
        await asyncio.to_thread(lambda: worker.set_faults(for_ms=LONGEST_FAULT_MS, huge_body_bytes=LARGER_THAN_BUFFERS))
        client = socket.create_connection(self.client_address())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = json.dumps(generate()).encode()
        client.sendall(head("/generate", len(body), {"x-smg-target-worker": self.listed(worker)}) + body)
        self.stalled.append(client)
        await asyncio.sleep(LONGEST_FAULT_MS / 1000)

    async def hang_ups(self, worker: Worker, size: float) -> None:
        with self.cut():
            await give(worker, close_before_headers=True, count=1 + int(5 * size))

    async def slow(self, worker: Worker, size: float) -> None:
        await give(worker, delay_first_byte_ms=int(300 * size), chunk_delay_ms=int(50 * size))

    async def freeze(self, worker: Worker, size: float) -> None:
        worker.freeze()
        try:
            await asyncio.sleep(0.1 + size)
        finally:
            worker.thaw()

    async def long_freeze(self, worker: Worker, size: float) -> None:
        """Longer than the gateway waits for a probe: what the worker had is given up."""
        await self.freeze(worker, 3 + size)

    async def kill(self, worker: Worker, size: float) -> None:
        with self.cut():
            worker.kill()
            await asyncio.sleep(0.5 * size)
            await asyncio.to_thread(worker.restart)

    @contextmanager
    def cut(self) -> Iterator[None]:
        span = Span(time.monotonic())
        self.cuts.append(span)
        yield
        span.end = time.monotonic()

    async def black_out(self) -> None:
        span = Span(time.monotonic())
        for worker in self.fleet:
            worker.kill()
        await asyncio.gather(*(asyncio.to_thread(worker.restart) for worker in self.fleet))
        await self.back(self.fleet)
        span.end = time.monotonic()
        self.black_outs.append(span)

    async def poison(self) -> None:
        """A request on which every worker hangs up: two of them are enough to know."""
        before = [worker.stats()["faulted"] for worker in self.fleet]
        for worker in self.fleet:
            worker.set_faults(only_text="poison", close_before_headers=True)
        async with Client(self.door.url) as client:
            reply = await client.ask(generate(text="poison"))
        hit = [worker.stats()["faulted"] > count for worker, count in zip(self.fleet, before, strict=True)]
        for worker in self.fleet:
            worker.set_faults()
        assert Asked(reply, 0, 0).took_for_deadly(), reply
        assert sum(hit) in self.poisoned, hit
        await self.back(self.fleet)

    async def shortage(self) -> None:
        """The gateway is out of file descriptors for a moment. No worker is at fault."""
        pid, span = self.door.process.pid, Span(time.monotonic())
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        self.shortages.append(span)
        try:
            # Connections are closed meanwhile, and no new ones can be opened.
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")) // 2, hard))
            await asyncio.sleep(0.5)
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        span.end = time.monotonic()
        self.assert_none_blamed()

    async def no_names(self) -> None:
        """Names cannot be looked up for a while: the addresses that were known serve on."""
        if self.hosts:
            self.hosts.goes_away()
            await asyncio.sleep(1.5)
            self.assert_none_blamed()
            self.hosts.comes_back()

    def assert_none_blamed(self) -> None:
        workers = {worker["url"]: (worker["status"], worker["circuit_breaker"]) for worker in self.door.workers()}
        said = "\n".join(self.door.lines[-60:])
        assert {*workers.values()} == {("ready", "closed")}, f"{workers}\n{said}"

    def listed(self, worker: Worker) -> str:
        """A worker's URL as the gateway knows it."""
        return worker.url.replace("127.0.0.1", NAME) if self.hosts else worker.url

    async def vanish(self, fault: Fault) -> None:
        """A client goes amid its head, amid its body, while waiting, or amid its stream."""
        stage = int(4 * fault.size)
        body = str(generate(20, stream=True)).replace("'", '"').replace("True", "true").encode()
        request = head("/generate", len(body)) + body
        reader, writer = await asyncio.open_connection(*self.client_address())
        writer.write([request[:30], request[:-10], request, request][stage])
        if stage == 3:
            await asyncio.wait_for(reader.read(1), 60)
        elif fault.slot % 2:
            await asyncio.sleep(0.02)
        writer.transport.abort()

    def client_address(self) -> tuple[Any, ...]:
        return Client(self.door.url).address


def a_request(draw: random.Random) -> dict[str, Any]:
    text = f"conversation {draw.randrange(PROMPTS)} " * 20
    return generate(draw.randrange(1, 12), stream=draw.random() < 0.5, text=text)


async def give(worker: Worker, **faults: Any) -> None:
    """Faults that end by themselves; returns when they have."""
    await asyncio.to_thread(worker.set_faults)
    none = await asyncio.to_thread(worker.faults)
    await asyncio.to_thread(lambda: worker.set_faults(for_ms=LONGEST_FAULT_MS, **faults))
    await until(lambda: worker.faults() == none, "the faults are over")


def excused(asked: Asked, chaos: Chaos) -> bool:
    dark = any(asked.overlaps(span) for span in chaos.black_outs)
    cuts = sum(asked.overlaps(span) for span in chaos.cuts)
    short = any(asked.overlaps(span) for span in chaos.shortages)
    lacking = asked.reply.headers.get("x-smg-error-code") == "gateway_resources_exhausted"
    return (
        asked.was_begun()
        or (short and lacking and asked.reply.status == 503)
        # It has used up attempts in the dark; the last one may have met the next fault.
        or (dark and asked.reply.status in REFUSALS and asked.reply.whole)
        or (cuts >= 2 and asked.took_for_deadly())
    )


def numbers(chaos: Chaos) -> Iterator[str]:
    yield f"seed {chaos.seed}: {sum(chaos.done.values())} faults {dict(chaos.done)}"
    yield f"{chaos.asked} requests, {sum(odd.was_begun() for odd in chaos.odd)} replies cut"
    yield f"{sum(not odd.was_begun() for odd in chaos.odd)} refused in {len(chaos.black_outs)} black-outs"
    yield f"RSS {chaos.rss_midway >> 20} MiB midway, {chaos.door.rss() >> 20} MiB at the end"


@pytest.mark.timeout(90 + FAULTS)
def test_no_request_is_lost_while_a_worker_is_well(workers, gateway, tmp_path: Path):
    fleet = workers(FLEET, decode_step_base_ms=3)
    hosts = PrivateHosts(tmp_path) if PrivateHosts.are_possible() else None
    urls = [worker.url.replace("127.0.0.1", NAME) if hosts else worker.url for worker in fleet]
    door = gateway(urls, *FLAGS, **({"python": hosts.python} if hosts else {}))
    chaos = Chaos(door, fleet, SEED, hosts)
    with ExitStack() as stack:
        stack.callback(chaos.close)
        asyncio.run(chaos.run(schedule(SEED, FAULTS)))
        check(chaos)


def check(chaos: Chaos) -> None:
    """Nothing was lost, and nothing is left."""
    door, fleet = chaos.door, chaos.fleet
    print("; ".join(numbers(chaos)))
    assert [odd for odd in chaos.odd if not excused(odd, chaos)] == []
    assert chaos.asked > FAULTS
    assert door.process.poll() is None
    door.assert_nothing_left()
    wait_for(lambda: all(worker.stats()["in_flight"] == 0 for worker in fleet), "nothing left at the workers")
    assert door.rss() - chaos.rss_midway < RSS_SLACK


def test_the_same_seed_draws_the_same_faults():
    assert schedule(7, 500) == schedule(7, 500) != schedule(8, 500)
