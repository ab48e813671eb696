"""The gateway learns from streams that prompts hold up decode, and reckons with it; where they do not, it does not."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import random
from urllib.parse import urlsplit

import pytest
from support.client import call

SHARED = {
    "engine_model": "shared",
    "engine": {"prefill_base_ms": 2.0, "prefill_token_us": 100.0, "decode_base_ms": 3.0},
    "kv_cache_tokens": 200_000,
}
SPLIT = {"prefill_tokens_per_sec": 10_000.0, "decode_step_base_ms": 3.0, "kv_cache_tokens": 200_000}


def begin(url: str, tokens: int, chance: random.Random) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    """A prompt that no cache has, as a stream of which the first event has come."""
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)
    text = "".join(chance.choices("abcdefghij", k=4 * chance.randrange(50, 1500)))
    body = {"text": text, "stream": True, "sampling_params": {"max_new_tokens": tokens}}
    connection.request("POST", "/generate", json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200
    response.readline()
    return connection, response


def finish(url: str, tokens: int, chance: random.Random) -> None:
    """The same, read to its end."""
    connection, response = begin(url, tokens, chance)
    response.read()
    connection.close()


def costs(url: str) -> list[float]:
    """The predicted costs of a new prompt of 1000 tokens at each worker, lowest first."""
    prompt = "".join(random.Random(5).choices("klmnopqrst", k=4000))
    body = {"text": prompt, "sampling_params": {"max_new_tokens": 20}}
    status, reply = call(url, "POST", "/route/explain", body)
    assert status == 200
    return sorted(worker["cost"] for worker in reply["candidates"])


@pytest.mark.parametrize(("engine", "counts"), [(SHARED, True), (SPLIT, False)], ids=["shared", "split"])
def test_requests_that_decode_count_where_prompts_hold_them_up(sim_workers, gateway, engine, counts):
    workers = sim_workers(2, **engine)
    door = gateway([worker.url for worker in workers], policy="cache_aware")
    chance = random.Random(3)
    seeds = [random.Random(chance.random()) for _ in range(240)]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda seed: finish(door.url, seed.randrange(10, 60), seed), seeds))
    idle = costs(door.url)
    held = [begin(door.url, 2000, seed) for seed in seeds[:3]]
    # Two decode at one worker, one at the other.
    busy = costs(door.url)
    if counts:
        assert busy[1] - busy[0] > 300 and busy[0] - idle[0] > 300, (idle, busy)
    else:
        assert busy[1] - busy[0] < 300, (idle, busy)
    for connection, response in held:
        response.close()
        connection.close()
