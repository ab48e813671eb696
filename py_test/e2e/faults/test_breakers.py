"""What must not open a breaker: the clients' own mistakes, and a worker that says it has enough to do."""

from __future__ import annotations

import asyncio
from collections import Counter

from support.client import Client, Load, ask_all, generate

BAD_REQUESTS = 10_000
BAD = [
    ({"text": 5}, "/generate"),
    ({"sampling_params": {}}, "/generate"),
    ({"model": "m"}, "/v1/chat/completions"),
    ({"model": "m", "messages": "none"}, "/v1/chat/completions"),
]


def assert_no_breaker_moved(door) -> None:
    states = door.metrics("smg_worker_cb_state")
    assert len(states) == len(door.workers()) and set(states.values()) == {0.0}
    assert sum(door.metrics("smg_worker_cb_transitions_total").values()) == 0


def test_ten_thousand_bad_requests_move_no_breaker(workers, gateway):
    fleet = workers(2)
    door = gateway([w.url for w in fleet], "--policy", "round_robin")

    async def run() -> Counter[int]:
        async with Client(door.url) as client:
            each = BAD_REQUESTS // len(BAD)
            groups = [ask_all(client, [body] * each, at_once=16, path=path) for body, path in BAD]
            return Counter(reply.status for group in await asyncio.gather(*groups) for reply in group)

    assert asyncio.run(run()) == {400: BAD_REQUESTS}
    # The workers' 400s, not the gateway's, and each asked for once.
    assert sum(worker.stats()["requests"] for worker in fleet) == BAD_REQUESTS
    assert_no_breaker_moved(door)
    assert sum(door.metrics("smg_worker_cb_consecutive_failures").values()) == 0
    assert all(worker["is_healthy"] for worker in door.workers())
    door.assert_nothing_left()


def test_a_worker_with_a_full_queue_gets_less_but_no_breaker_opens(workers, scripted, gateway):
    fleet = workers(3)
    full = scripted(1, refuse=0.5, seed=1)
    door = gateway([*(w.url for w in fleet), full.urls[0]])

    async def run() -> list:
        async with Client(door.url) as client:
            async with Load(client, 300, lambda number: generate(1, text=f"{number} " * 10)) as load:
                while len(load.tasks) < 900:
                    await asyncio.sleep(0.05)
            return load.replies

    replies = asyncio.run(run())
    assert [reply for reply in replies if not reply.ok] == []
    assert_no_breaker_moved(door)
    refused = full.stats()["refused"]
    assert refused > 5, "the worker refused too little to show anything"
    assert full.stats()["requests"] < len(replies) / 5, "a full worker is asked as much as the others"
    urls = {worker["id"]: worker["url"] for worker in door.workers()}
    served = Counter(urls[reply.worker] for reply in replies)
    assert served[full.urls[0]] < min(served[worker.url] for worker in fleet), served
    assert sum(door.metrics("smg_worker_retries_total").values()) >= refused
    door.assert_nothing_left()
    print(f"{refused} of {full.stats()['requests']} refused; served {[served[url] for url in urls.values()]}")


def test_requests_that_every_worker_hangs_up_on_do_not_shut_out_the_others(scripted, gateway):
    fleet = scripted(4)
    door = gateway(fleet.urls, "--policy", "round_robin")

    async def run() -> tuple[list, list]:
        async with Client(door.url) as client:
            async with Load(client, 50, lambda number: generate(1)) as load:
                poison = await ask_all(client, [generate(1, poison=True)] * 80, at_once=80)
                begun = len(load.tasks)
                while len(load.tasks) < begun + 50:
                    await asyncio.sleep(0.02)
            return poison, load.replies

    poison, others = asyncio.run(run())
    assert all(reply.status in (502, 503) for reply in poison)
    assert Counter(reply.status for reply in others) == {200: len(others)}
