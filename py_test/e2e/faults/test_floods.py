"""Clients that hold connections and give nothing: what they cost, and whether others notice."""

from __future__ import annotations

import json
import os
import resource
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from support.client import call, connect, generate, head, many_files
from support.process import Process
from support.waiting import wait_for

PROBE = Path(__file__).with_name("latency_probe.py")
IDLE = 10_000
SLOW = 300
GROUPS, GROUP = 4, 500
SAMPLES = 1_000
DRIBBLE_TURNS = 100
KIB = 1024
REQUEST = json.dumps(generate(1, text="x" * 4000)).encode()
HEAD = head("/generate", len(REQUEST), {"x-filler": "y" * 8000})

# What one connection may add to the gateway's resident memory.
IDLE_COSTS = 12 * KIB
ASKED_COSTS = 8 * KIB
SLOW_COSTS = 64 * KIB


def leave(sockets: list[socket.socket]) -> None:
    """All at once, with a reset: thousands of ports would else stay taken for a minute."""
    for one in sockets:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        one.close()


@contextmanager
def held(url: str, count: int, begin: bytes = b"") -> Iterator[list[socket.socket]]:
    """So many connections on which no more than `begin` is said."""
    sockets: list[socket.socket] = []
    try:
        for _ in range(count):
            sockets.append(connect(url))
            if begin:
                sockets[-1].sendall(begin)
        yield sockets
    finally:
        leave(sockets)


@contextmanager
def dribbled(sockets: list[socket.socket], rest: bytes) -> Iterator[None]:
    """Another byte of `rest` on every connection twice a second, each in its own turn as separate clients would:
    a burst of them all would time this process, which shares the processors, and not the gateway."""
    over = threading.Event()
    turns = [sockets[first::DRIBBLE_TURNS] for first in range(DRIBBLE_TURNS)]

    def dribble() -> None:
        for at in range(len(rest)):
            for turn in turns:
                for one in turn:
                    with suppress(OSError):
                        one.send(rest[at : at + 1])
                if over.wait(0.5 / DRIBBLE_TURNS):
                    return

    thread = threading.Thread(target=dribble)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def flood(url: str, idle: int) -> Iterator[None]:
    """Idle connections, dribbled heads and dribbled bodies."""
    with ExitStack() as stack:
        stack.enter_context(held(url, idle))
        heads = stack.enter_context(held(url, SLOW, HEAD[:20]))
        bodies = stack.enter_context(held(url, SLOW, HEAD + REQUEST[:10]))
        stack.enter_context(dribbled(heads, HEAD[20:]))
        stack.enter_context(dribbled(bodies, REQUEST[10:]))
        yield


def p99(start, url: str) -> float:
    """Of normal requests."""
    probe = start(Process, str(PROBE), url, str(SAMPLES), "0.002")
    took = json.loads(probe.wait_for_line(r"took (.*)").group(1))
    assert len(took) == SAMPLES
    return statistics.quantiles(took, n=100)[98]


@pytest.fixture
def room_for_idle() -> Iterator[int]:
    """How many idle connections this process may hold: fewer than wanted where the system grants no more files."""
    with many_files(IDLE + 2 * SLOW + 500) as granted:
        yield min(IDLE, granted - 2 * SLOW - 500)


@pytest.mark.timeout(120)
def test_clients_that_hold_connections_do_not_slow_down_others(workers, gateway, start, room_for_idle):
    fleet = workers(2)
    door = gateway([w.url for w in fleet], "--policy", "round_robin")
    ratios: list[tuple[float, float, float]] = []
    for _ in range(5):
        calm = p99(start, door.url)
        with flood(door.url, room_for_idle):
            stormy = p99(start, door.url)
        ratios.append((stormy / calm, calm, stormy))
        if stormy <= 1.5 * calm:
            break
    door.assert_nothing_left()
    best, calm, stormy = min(ratios)
    print(f"{room_for_idle} idle, {SLOW} slow heads, {SLOW} slow bodies: p99 {calm * 1e3:.2f} -> {stormy * 1e3:.2f} ms")
    assert best <= 1.5, ratios


@pytest.mark.parametrize(
    ("begin", "count", "bound"),
    [
        (b"", IDLE, IDLE_COSTS),
        (HEAD[:-4], 1_000, SLOW_COSTS),
        (HEAD + REQUEST[:-1], 1_000, SLOW_COSTS),
        (head("/generate", 500_000_000) + REQUEST[:-1], 1_000, SLOW_COSTS),
    ],
    ids=["idle", "unfinished-heads", "unfinished-bodies", "hardly-begun-huge-bodies"],
)
def test_a_held_connection_costs_a_bounded_amount_of_memory(workers, gateway, room_for_idle, begin, count, bound):
    door = gateway([workers()[0].url], "--max-client-connections", "1000000")
    count = min(count, room_for_idle)
    assert call(door.url, "POST", "/generate", generate(1))[0] == 200
    before, after = door.rss(), []
    for _ in range(2):
        with held(door.url, count, begin):
            wait_for(lambda: has_read_all(door, count), "the gateway has read what came")
            assert call(door.url, "POST", "/generate", generate(1))[0] == 200
            after.append(door.rss())
    each = (max(after) - before) / count
    print(f"{count} connections: {each / KIB:.1f} KiB each, {before >> 20} -> {[one >> 20 for one in after]} MiB")
    assert each < bound
    door.assert_nothing_left()


@pytest.mark.timeout(120)
def test_clients_that_have_asked_and_wait_cost_a_bounded_amount_of_memory(workers, gateway):
    """In groups: what the connections of one had while they were served is there for the next one."""
    flags = ["--max-client-connections", "1000000", "--client-header-timeout-secs", "3"]
    door, grown = gateway([workers()[0].url], *flags), []
    with many_files(GROUPS * GROUP + 500), ExitStack() as stack:
        for _ in range(GROUPS):
            clients = stack.enter_context(held(door.url, GROUP))
            assert {asks(client) for client in clients} == {b"200"}
            with connect(door.url) as silent:
                # Looked at as often as they are until they rest, and once more.
                assert silent.recv(1) == b""
            grown.append(door.rss())
        assert {asks(client) for client in clients} == {b"200"}
    each = (grown[-1] - grown[0]) / ((GROUPS - 1) * GROUP)
    print(f"{each / KIB:.1f} KiB each, {[one >> 20 for one in grown]} MiB")
    assert each < ASKED_COSTS
    door.assert_nothing_left()


def has_read_all(door, connections: int) -> bool:
    """It has accepted so many and its processor time stands still."""
    if len(os.listdir(f"/proc/{door.process.pid}/fd")) < connections:
        return False
    before = processor_time(door)
    time.sleep(0.1)
    return processor_time(door) == before


def processor_time(door) -> list[str]:
    stat = Path(f"/proc/{door.process.pid}/stat").read_text()
    return stat.rsplit(")", 1)[1].split()[11:13]


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (head("/health", 0, {"x-huge": "y" * 300_000}, "GET"), 431),
        (head("/health", 0, {f"x-{n}": "y" for n in range(200)}, "GET"), 431),
        (head("/" + "a" * 100_000, 0, method="GET"), 414),
    ],
    ids=["huge-header", "many-headers", "huge-path"],
)
def test_huge_heads_are_refused_with_a_clear_status(gateway, request_head, status):
    door = gateway([])
    for _ in range(20):
        with connect(door.url) as client:
            with suppress(OSError):
                client.sendall(request_head)
            assert client.recv(4096).split()[1] == str(status).encode()
    assert call(door.url, "GET", "/health")[0] == 200


@pytest.mark.skipif("LONG_FAULTS" not in os.environ, reason="takes 75 s; LONG_FAULTS=1 runs it")
@pytest.mark.timeout(120)
def test_a_head_that_dribbles_in_is_waited_for_no_longer_than_75_seconds(gateway):
    door = gateway([])
    started = time.monotonic()
    with held(door.url, 10, HEAD[:20]) as slow, dribbled(slow, HEAD[20:]):
        for one in slow:
            one.settimeout(100)
            with suppress(ConnectionError):
                while one.recv(4096):
                    pass
    assert 70 < time.monotonic() - started < 85


def test_a_gateway_without_free_files_serves_again_once_there_are_some(workers, gateway):
    door = gateway([workers()[0].url])
    with connect(door.url) as early:
        assert asks(early) == b"200"
        resource.prlimit(door.process.pid, resource.RLIMIT_NOFILE, (100, 100))
        with held(door.url, 200):
            wait_for(lambda: [line for line in door.lines if "cannot accept" in line], "no files are left")
            # Connected clients are served over connections that are open already.
            assert asks(early) == b"200"
        wait_for(lambda: call(door.url, "POST", "/generate", generate(1))[0] == 200, "served again")
    door.assert_nothing_left()


def test_a_shortage_of_files_towards_workers_is_counted_and_held_against_none_of_them(workers, gateway):
    fleet = workers(2, fault_delay_first_byte_ms=300)
    door = gateway([worker.url for worker in fleet], "--health-check-interval-secs", "60")
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(door.url)) for _ in range(8)]
        for client in clients:
            # Known to be accepted, without a connection to a worker.
            client.sendall(b"GET /liveness HTTP/1.1\r\nHost: gateway\r\n\r\n")
            assert client.recv(65536).split()[1] == b"200"
        soft, hard = resource.prlimit(door.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(door.process.pid, resource.RLIMIT_NOFILE, (1, hard))
        for client in clients:
            # At most two connections to workers are there: those of the probes.
            client.sendall(head("/generate", len(REQUEST)) + REQUEST)
        statuses = [client.recv(65536).split()[1] for client in clients]
        resource.prlimit(door.process.pid, resource.RLIMIT_NOFILE, (soft, hard))
    assert b"503" in statuses and {*statuses} <= {b"200", b"503"}, statuses
    assert door.metrics("smg_local_faults_total")
    assert {(worker["status"], worker["circuit_breaker"]) for worker in door.workers()} == {("ready", "closed")}
    assert call(door.url, "POST", "/generate", generate(1))[0] == 200


def asks(client: socket.socket) -> bytes:
    client.sendall(head("/generate", len(REQUEST)) + REQUEST)
    return client.recv(65536).split()[1]
