"""A worker dies: how soon the gateway notices, and how its streams end."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from support.client import Client, Load, Reply, generate
from support.waiting import until

PER_SECOND = 200.0


def short_request(number: int) -> dict:
    """Every second one streams; no two prompts are the same."""
    return generate(4, stream=number % 2 == 1, text=f"prompt {number} " * 8)


def is_served_by(gateway, url: str) -> bool:
    return bool([at for at, worker in gateway.decisions() if worker == url and time.monotonic() - at < 1])


def tries_after_death(door, url: str, killed: float) -> list[float]:
    return [at - killed for at, worker in door.decisions() if worker == url and at > killed]


# The dead worker looks idle: a policy that goes by load would send it everything.
@pytest.mark.parametrize("policy", ["round_robin", "least_load"])
def test_a_worker_killed_under_load_costs_no_request_that_had_no_byte(workers, gateway, policy):
    fleet = workers(4, decode_step_base_ms=5)
    door = gateway([w.url for w in fleet], "--policy", policy, "--health-check-interval-secs", "1")
    victim = fleet[1]

    async def run() -> tuple[list[Reply], list[float]]:
        async with Client(door.url) as client, Load(client, PER_SECOND, short_request) as load:
            await until(lambda: len(load.tasks) > PER_SECOND / 2 and is_served_by(door, victim.url), "work for all")
            victim.kill()
            killed = time.monotonic()
            begun = len(load.tasks)
            await until(lambda: len(load.tasks) > begun + 1.5 * PER_SECOND, "many requests after its death")
            late = tries_after_death(door, victim.url, killed)
            victim.restart()
            await until(lambda: door.worker(victim.url)["is_healthy"], "the victim is ready again")
            await until(lambda: is_served_by(door, victim.url), "the victim is served again")
        return load.replies, late

    replies, late = asyncio.run(run())
    failed = [reply for reply in replies if not reply.ok]
    last = max(late, default=0.0)
    # Only what had begun could not be saved.
    assert [reply for reply in failed if reply.status != 200 or b"[DONE]" in reply.body] == []
    assert len(failed) < 10 and len(replies) > PER_SECOND
    assert last < 0.1, f"still tried {last:.3f} s after its death"
    door.assert_nothing_left()
    print(f"{policy}: {len(replies)} requests, {len(failed)} cut, {len(late)} tries within {last:.4f} s")


def test_a_stream_cut_between_events_ends_with_an_error_event_and_abnormally(workers, gateway):
    (victim,) = workers(1, decode_step_base_ms=20)
    door = gateway([victim.url])

    async def kill_at_third_event(reply) -> None:
        if len(reply.events()) == 3:
            await asyncio.to_thread(victim.kill)

    async def run():
        async with Client(door.url) as client:
            return await client.ask(generate(500, stream=True), on_piece=kill_at_third_event)

    reply = asyncio.run(run())
    assert reply.status == 200 and not reply.whole, reply
    error = json.loads(reply.events()[-1])["error"]
    assert error["code"] == "stream_error" and error["message"]
    assert "[DONE]" not in reply.events()
    assert all("text" in json.loads(event) for event in reply.events()[:-1])
    door.assert_nothing_left()


def test_a_stream_cut_amid_an_event_ends_abnormally_without_further_events(workers, gateway):
    (worker,) = workers(1)
    door = gateway([worker.url])

    async def run() -> list:
        async with Client(door.url) as client:
            whole = await client.ask(generate(5, stream=True))
            cut = whole.body.index(b"data: ", 10) + 9  # inside the second event
            worker.set_faults(close_mid_body=cut)
            return [await client.ask(generate(5, stream=True)) for _ in range(3)] + [whole, cut]

    *broken, whole, cut = asyncio.run(run())
    assert whole.finished_stream()
    for reply in broken:
        if reply.status == 200:
            assert not reply.whole and len(reply.body) == cut, reply
    assert [reply.status for reply in broken].count(200) >= 1
    door.assert_nothing_left()
