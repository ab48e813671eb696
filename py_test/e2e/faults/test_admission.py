"""Limits on requests in flight, in the whole and per worker, and the queue in front of them."""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack

import pytest
from support.client import Client, Reply, ask_all, connect, generate, head
from support.waiting import until, wait_for

# Which flag limits, and where the waiters of that limit are shown.
LIMITS = [("--max-concurrent-requests", "queued"), ("--max-requests-per-worker", "queued_for_a_worker")]


@pytest.mark.parametrize("most", [1, 7])
def test_never_more_in_flight_than_allowed(scripted, gateway, most):
    fleet = scripted(2, gap_ms=10)
    door = gateway(fleet.urls, "--max-concurrent-requests", str(most), "--queue-size", "200")

    async def run() -> list[Reply]:
        async with Client(door.url) as client:
            bodies = [generate(3, stream=number % 2 == 0) for number in range(20 * most)]
            return await ask_all(client, bodies, at_once=6 * most)

    replies = asyncio.run(run())
    assert [reply for reply in replies if not reply.ok] == []
    # One count over both workers, in one thread: exact.
    assert fleet.stats()["peak"] == most
    door.assert_nothing_left()


def test_never_more_in_flight_at_a_worker_than_allowed(scripted, gateway):
    fleet = scripted(3, gap_ms=10)
    door = gateway(fleet.urls, "--max-requests-per-worker", "4", "--queue-size", "200")

    async def run() -> list[Reply]:
        async with Client(door.url) as client:
            return await ask_all(client, [generate(3, text=f"{n}" * 40) for n in range(300)], at_once=60)

    replies = asyncio.run(run())
    assert [reply for reply in replies if not reply.ok] == []
    assert [counts["peak"] for counts in fleet.stats()["ports"].values()] == [4, 4, 4]
    door.assert_nothing_left()


async def fill(client: Client, door, limit: str, running: int, waiting: int) -> list[asyncio.Task[Reply]]:
    """So many requests in flight that end only when cancelled, then so many in the queue."""
    tasks = [asyncio.create_task(client.ask(generate(100_000, stream=True))) for _ in range(running)]
    await until(lambda: door.load() == running, "the running ones run")
    tasks += [asyncio.create_task(client.ask(generate(1))) for _ in range(waiting)]
    await until(lambda: door.limits()[limit] == waiting, "the others wait")
    return tasks


@pytest.mark.parametrize(("flag", "limit"), LIMITS)
def test_the_queue_holds_as_many_as_it_is_said_to_and_serves_them_all(scripted, gateway, flag, limit):
    worker = scripted(1, gap_ms=10)
    door = gateway(worker.urls, flag, "2", "--queue-size", "3")

    async def run() -> tuple[list[Reply], list[Reply]]:
        async with Client(door.url) as client:
            *running, first, second, third = await fill(client, door, limit, running=2, waiting=3)
            refused = await ask_all(client, [generate(1)] * 20, at_once=10)
            assert door.limits()[limit] == 3
            running[0].cancel()
            return refused, await asyncio.wait_for(asyncio.gather(first, second, third), 5)

    refused, served = asyncio.run(run())
    for reply in refused:
        error = reply.json()["error"]
        assert (reply.status, error["code"], error["type"]) == (429, "queue_full", "rate_limit_error")
        assert int(reply.headers["retry-after"]) >= 1
        assert reply.headers["content-type"] == "application/json"
        assert reply.took < 2, "a refusal is no wait"
    assert all(reply.ok for reply in served), served
    stats = worker.stats()
    assert (stats["requests"], stats["peak"]) == (5, 2)
    door.assert_nothing_left()


@pytest.mark.parametrize(("flag", "limit"), LIMITS)
def test_a_wait_ends_with_408_when_its_time_is_over(scripted, gateway, flag, limit):
    worker = scripted(1, gap_ms=20)
    door = gateway(worker.urls, flag, "1", "--queue-timeout-secs", "1")

    async def run() -> list[Reply]:
        async with Client(door.url) as client:
            running, *waiting = await fill(client, door, limit, running=1, waiting=4)
            late = await asyncio.gather(*waiting)
            assert not running.done() and door.limits()[limit] == 0
            return late

    late = asyncio.run(run())
    for reply in late:
        assert (reply.status, reply.json()["error"]["code"]) == (408, "queue_timeout")
        assert 0.99 <= reply.took < 1.9, reply
    assert worker.stats()["requests"] == 1
    door.assert_nothing_left()


@pytest.mark.parametrize(("flag", "limit"), LIMITS)
@pytest.mark.parametrize("size", [100, 1_000_000], ids=["short-prompt", "long-prompt"])
def test_a_client_that_leaves_the_queue_frees_its_place(scripted, gateway, flag, limit, size):
    worker = scripted(1, gap_ms=20)
    door = gateway(worker.urls, flag, "1", "--queue-size", "2")

    async def run() -> None:
        async with Client(door.url) as client:
            (running,) = await fill(client, door, limit, running=1, waiting=0)
            leaver = asyncio.create_task(client.ask(generate(1, text="x" * size)))
            await until(lambda: door.limits()[limit] == 1, "the leaver waits")
            leaver.cancel()
            await until(lambda: door.limits()[limit] == 0, "its place is free", 2)
            two = [asyncio.create_task(client.ask(generate(1))) for _ in range(2)]
            await until(lambda: door.limits()[limit] == 2, "both places are taken anew")
            assert (await client.ask(generate(1))).status == 429
            running.cancel()
            assert all(reply.ok for reply in await asyncio.wait_for(asyncio.gather(*two), 5))

    asyncio.run(run())
    assert worker.stats()["requests"] == 3
    door.assert_nothing_left()


def test_a_client_that_leaves_while_served_makes_room_for_a_waiting_one(scripted, gateway):
    worker = scripted(1, gap_ms=20)
    door = gateway(worker.urls, "--max-concurrent-requests", "1")

    async def run() -> Reply:
        async with Client(door.url) as client:
            running, waiting = await fill(client, door, "queued", running=1, waiting=1)
            running.cancel()
            return await asyncio.wait_for(waiting, 2)

    assert asyncio.run(run()).ok
    assert worker.stats()["peak"] == 1
    door.assert_nothing_left()


def test_a_request_that_waits_for_one_worker_does_not_hold_up_the_others(scripted, gateway):
    fleet = scripted(2, gap_ms=5)
    door = gateway(fleet.urls, "--policy", "round_robin", "--max-requests-per-worker", "1")
    aimed = {"x-smg-target-worker": "0"}

    async def run() -> list[Reply]:
        async with Client(door.url) as client:
            running = asyncio.create_task(client.ask(generate(100_000, stream=True), headers=aimed))
            await until(lambda: door.load() == 1, "worker 0 is full")
            waiting = asyncio.create_task(client.ask(generate(1), headers=aimed))
            await until(lambda: door.limits()["queued_for_a_worker"] == 1, "one waits for it")
            others = [await client.ask(generate(1)) for _ in range(8)]
            running.cancel()
            return [await asyncio.wait_for(waiting, 5), *others]

    replies = asyncio.run(run())
    assert all(reply.ok for reply in replies)
    # Not one after the other's patience: a quarter of a second each.
    assert min(reply.took for reply in replies[1:]) < 0.15, [reply.took for reply in replies]
    door.assert_nothing_left()


def test_limits_in_force_are_listed(scripted, gateway):
    fleet = scripted(1)
    flags = ["--max-concurrent-requests", "5", "--queue-size", "7", "--queue-timeout-secs", "9"]
    door = gateway(fleet.urls, *flags, "--rate-limit-tokens-per-second", "1000", "--max-requests-per-worker", "3")
    assert door.limits() == {
        "max_concurrent_requests": 5,
        "concurrent_requests": 0,
        "rate_limit_tokens_per_second": 1000,
        "queue_size": 7,
        "queue_size_here": 7,
        "queue_order": "fifo",
        "queue_timeout_secs": 9,
        "queued": 0,
        "max_requests_per_worker": 3,
        "queued_for_a_worker": 0,
    }


def test_clients_that_dribble_their_bodies_do_not_use_up_the_limit(scripted, gateway):
    worker = scripted(1)
    door = gateway(worker.urls, "--max-concurrent-requests", "2", "--queue-size", "5")
    body = json.dumps(generate(1)).encode()
    with ExitStack() as stack:
        for _ in range(2):
            slow = stack.enter_context(connect(door.url))
            slow.sendall(head("/generate", len(body)) + body[:5])
        wait_for(lambda: door.metrics("smg_http_connections_active") == {"": 2.0}, "both requests under way")

        async def run() -> Reply:
            async with Client(door.url) as client:
                return await client.ask(generate(1), patience=3)

        assert asyncio.run(run()).ok, door.limits()
