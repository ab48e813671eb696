"""Signals to a gateway started from the command line: what is still served, what is cut, how it exits."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest
from support.client import Client, Reply, call, connect, generate, head
from support.waiting import until, wait_for


def refuses(url: str) -> bool:
    try:
        connect(url).close()
    except ConnectionRefusedError:
        return True
    return False


def seconds_to_exit(door) -> float:
    started = time.monotonic()
    assert door.process.wait(30) == 0
    return time.monotonic() - started


def test_sigint_ends_an_idle_gateway_within_a_second(workers, gateway):
    door = gateway([workers()[0].url])
    with connect(door.url) as idle, connect(door.url) as served:
        served.sendall(head("/health", 0, method="GET"))
        assert served.recv(4096).startswith(b"HTTP/1.1 200")
        door.send(signal.SIGINT)
        assert seconds_to_exit(door) < 1
        assert idle.recv(1) == b""
    assert refuses(door.url)


def test_sigterm_goes_from_draining_over_closed_to_gone_while_a_stream_finishes(workers, gateway):
    (worker,) = workers(1, decode_step_base_ms=20)
    # Where only this machine can connect, nothing settles.
    door = gateway([worker.url], "--shutdown-grace-period-secs", "4", "--host", "0.0.0.0")

    async def run() -> Reply:
        async with Client(door.url) as client, Client(door.url, fresh=True) as fresh:
            assert (await client.ask(generate(1))).headers.get("connection") is None
            stream = asyncio.create_task(client.ask(generate(150, stream=True)))
            await until(lambda: door.load() == 1, "the stream runs")
            door.send(signal.SIGTERM)
            signalled = time.monotonic()
            readiness = await until(lambda: draining(door.url), "readiness reports the drain", 1)
            assert readiness == (503, {"status": "not ready", "reason": "draining"})
            for kind in (client, fresh):
                reply = await kind.ask(generate(1))
                assert reply.ok and reply.headers["connection"] == "close", reply
            await until(lambda: refuses(door.url), "the port is closed", 4)
            assert 1.9 < time.monotonic() - signalled < 3.5
            assert not stream.done(), "the stream was too short to show anything"
            return await stream

    assert asyncio.run(run()).finished_stream()
    assert seconds_to_exit(door) < 2


def draining(url: str) -> tuple | None:
    answer = call(url, "GET", "/readiness")
    return answer if answer[0] == 503 else None


def stream_through_signals(door, first: signal.Signals, *more: signal.Signals) -> tuple[Reply, float]:
    """A stream without end, and how long the gateway lived on after the last signal."""

    async def run() -> tuple[Reply, float]:
        async with Client(door.url) as client:
            stream = asyncio.create_task(client.ask(generate(100_000, stream=True)))
            await until(lambda: door.load() == 1, "the stream runs")
            door.send(first)
            await until(lambda: [line for line in door.lines if '"draining"' in line], "the first signal was heard")
            assert not stream.done()
            for number in more:
                door.send(number)
            lived = await asyncio.to_thread(seconds_to_exit, door)
            return await stream, lived

    return asyncio.run(run())


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_cuts_streams_short(workers, gateway, first, second):
    (worker,) = workers(1, decode_step_base_ms=20)
    door = gateway([worker.url], "--shutdown-grace-period-secs", "60")
    reply, lived = stream_through_signals(door, first, second)
    assert lived < 2
    assert reply.status == 200 and not reply.whole and "[DONE]" not in reply.events()
    wait_for(lambda: worker.stats()["in_flight"] == 0, "the worker has noticed")


def test_the_grace_period_bounds_the_wait_for_streams(workers, gateway):
    (worker,) = workers(1, decode_step_base_ms=20)
    door = gateway([worker.url], "--shutdown-grace-period-secs", "2")
    reply, lived = stream_through_signals(door, signal.SIGTERM)
    assert 1.5 < lived < 4
    assert reply.status == 200 and not reply.whole and "[DONE]" not in reply.events()
