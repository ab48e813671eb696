"""Real clients against the gateway: Anthropic's SDK, requests, httpx over HTTP/2, and trainers between two steps."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import anthropic
import httpx
import openai
import pytest
import requests
from support.client import call
from support.waiting import wait_for

MESSAGES = [{"role": "user", "content": "Say something in a few words."}]
LONG = {"ignore_eos": True}
CHAT = {"model": "sim-model", "messages": MESSAGES, "max_tokens": 12}


def workers_of(url: str) -> list[dict[str, Any]]:
    return requests.get(f"{url}/workers", timeout=10).json()["workers"]


# --- Anthropic's SDK


@pytest.fixture
def claude(sim_workers, gateway):
    """`claude(api_key=..., **gateway options)`: a client of Anthropic's, the gateway, its worker."""

    with ExitStack() as clients:

        def start(key: str = "none", worker: dict[str, Any] | None = None, **options: Any):
            fleet = sim_workers(1, **(worker or {}))
            door = gateway([fleet[0].url], **options)
            client = anthropic.Anthropic(base_url=door.url, api_key=key, max_retries=0, timeout=20)
            return clients.enter_context(client), door, fleet[0]

        yield start


def test_messages_whole_and_streamed_are_the_same(claude):
    client, _, _ = claude(key="k", worker={"api_key": "k"}, api_key="k")
    whole = client.messages.create(model="sim-model", max_tokens=15, messages=MESSAGES)
    with client.messages.stream(model="sim-model", max_tokens=15, messages=MESSAGES) as stream:
        assert "".join(stream.text_stream) == whole.content[0].text != ""
    assert whole.usage.output_tokens == 15


def test_tokens_are_counted_by_the_worker(claude):
    client, _, _ = claude()
    assert client.messages.count_tokens(model="sim-model", messages=MESSAGES).input_tokens > 0


def test_errors_of_the_gateway_are_errors_of_the_sdk(claude, sim_workers, gateway):
    client, door, _ = claude(key="wrong", worker={"api_key": "k"}, api_key="k")
    with pytest.raises(anthropic.AuthenticationError) as refused:
        client.messages.create(model="sim-model", max_tokens=5, messages=MESSAGES)
    assert refused.value.body["error"]["type"] == "authentication_error"
    fleet = [sim_workers(1, model=name)[0] for name in ("one", "two")]
    door = gateway([worker.url for worker in fleet])
    with (
        anthropic.Anthropic(base_url=door.url, api_key="none", max_retries=0, timeout=20) as two,
        pytest.raises(anthropic.NotFoundError) as unknown,
    ):
        two.messages.create(model="three", max_tokens=5, messages=MESSAGES)
    assert unknown.value.body["error"]["type"] == "not_found_error"
    assert "one, two" in unknown.value.body["error"]["message"]


def test_stream_that_breaks_off_is_an_error_of_the_sdk(claude):
    client, _, worker = claude(worker={"decode_step_base_ms": 20})
    with (
        pytest.raises(anthropic.APIStatusError) as broken,
        client.messages.stream(model="sim-model", max_tokens=2000, messages=MESSAGES, extra_body=LONG) as stream,
    ):
        for _ in stream.text_stream:
            worker.stop()  # its connections end between two events
    assert broken.value.body["type"] == "error"


# --- OpenAI's SDK where it meets several models, and state at one worker


def test_models_and_follow_ups_of_the_openai_sdk(sim_workers, gateway):
    fleet = [worker for name in ("org/one", "org/two") for worker in sim_workers(3, model=name)]
    door = gateway([worker.url for worker in fleet], policy="round_robin")
    with openai.OpenAI(base_url=f"{door.url}/v1", api_key="none", max_retries=0, timeout=20) as client:
        assert client.models.retrieve("org/two").id == "org/two"
        with pytest.raises(openai.NotFoundError) as unknown:
            client.chat.completions.create(model="org/three", messages=MESSAGES)
        assert unknown.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as unnamed:
            client.chat.completions.create(model="", messages=MESSAGES)
        assert unnamed.value.code == "missing_model"
        turn = client.responses.create(model="org/two", input="Say something.", max_output_tokens=8)
        for _ in range(7):
            turn = client.responses.create(
                model="org/two", input="And more.", previous_response_id=turn.id, max_output_tokens=8
            )
            assert client.responses.retrieve(turn.id).id == turn.id
        said = client.audio.transcriptions.create(model="org/one", file=("a.wav", b"RIFF" + bytes(2000)))
        assert said.text


# --- httpx over HTTP/2


def test_many_streams_over_one_http2_connection(sim_workers, gateway):
    fleet = sim_workers(2)
    door = gateway([worker.url for worker in fleet])

    # Not threads: httpcore takes a stream's id without a lock, so two threads may open the same one.
    async def run() -> None:
        slots = asyncio.Semaphore(60)
        async with httpx.AsyncClient(base_url=door.url, http1=False, http2=True, timeout=30) as client:

            async def stream() -> bool:
                body = {**CHAT, "stream": True}
                async with slots, client.stream("POST", "/v1/chat/completions", json=body) as reply:
                    lines = [line async for line in reply.aiter_lines()]
                    return reply.http_version == "HTTP/2" and lines[-2:] == ["data: [DONE]", ""]

            assert all(await asyncio.gather(*(stream() for _ in range(300))))
            large = {"x-large": "v" * 60_000}
            assert (await client.post("/v1/chat/completions", json=CHAT, headers=large)).status_code == 200

    asyncio.run(run())
    wait_for(lambda: all(worker["load"] == 0 for worker in workers_of(door.url)), "nothing is left in flight")


def test_client_that_leaves_amid_a_stream_frees_its_worker(sim_workers, gateway):
    worker = sim_workers(1, decode_step_base_ms=20)[0]
    door = gateway([worker.url])
    body = {**CHAT, **LONG, "max_tokens": 2000, "stream": True}
    with requests.post(f"{door.url}/v1/chat/completions", json=body, stream=True, timeout=20) as reply:
        lines = reply.iter_lines()
        assert next(lines).startswith(b"data: ")
        assert workers_of(door.url)[0]["load"] == 1
    wait_for(lambda: workers_of(door.url)[0]["load"] == 0, "the worker is free")


# --- Trainers


def test_weights_change_while_rollouts_are_in_flight(sim_workers, gateway):
    """slime, miles, verl: pause, update, flush, continue; no rollout fails, and no breaker moves."""
    fleet = sim_workers(3, decode_step_base_ms=2, weight_update_ms=200)
    door = gateway([worker.url for worker in fleet], health_check_interval_secs=1)
    over, versions = threading.Event(), set()

    def roll_out(number: int) -> set[int]:
        statuses = set()
        with requests.Session() as session:
            while not over.is_set():
                body = {"text": f"rollout {number}", "sampling_params": {"max_new_tokens": 20}}
                reply = session.post(f"{door.url}/generate", json=body, timeout=30)
                statuses.add(reply.status_code)
                versions.add(reply.json()["meta_info"]["weight_version"])
        return statuses

    def order(path: str, **body: Any) -> dict[str, Any]:
        reply = requests.post(f"{door.url}{path}", json=body, timeout=60)
        assert reply.status_code == 200, f"{path}: {reply.text}"
        return reply.json()

    with ThreadPoolExecutor(24) as pool:
        rollouts = [pool.submit(roll_out, number) for number in range(24)]
        try:
            for step in range(1, 4):
                order("/pause_generation", mode="in_place")
                wait_for(lambda: all(worker["paused"] for worker in workers_of(door.url)), "all are paused")
                version = f"v{step}"
                update = order(
                    "/update_weights_from_disk", model_path="/new", weight_version=version, flush_cache=False
                )
                assert update["success"] is True and len(update["workers"]) == 3
                order("/continue_generation")
                assert not any(worker["paused"] for worker in workers_of(door.url))
                wait_for(lambda version=version: version in versions, f"replies of {version}")
        finally:
            over.set()
        assert {status for rollout in rollouts for status in rollout.result(60)} == {200}
    assert {worker["circuit_breaker"] for worker in workers_of(door.url)} == {"closed"}
    flushed = requests.post(f"{door.url}/flush_cache", timeout=30)
    assert flushed.status_code == 200


def test_adapter_loaded_through_the_gateway_serves_at_once(sim_workers, gateway):
    fleet = sim_workers(2)
    door = gateway([worker.url for worker in fleet])
    adapter = {"lora_name": "sql", "lora_path": "/adapters/sql"}
    for name in ("sql", "sim-model:sql"):
        assert requests.post(f"{door.url}/load_lora_adapter", json=adapter, timeout=20).status_code == 200
        listed = requests.get(f"{door.url}/v1/models", timeout=10).json()["data"]
        assert {card["id"] for card in listed} == {"sim-model", "sql"}
        for _ in range(4):
            reply = requests.post(f"{door.url}/v1/chat/completions", json={**CHAT, "model": name}, timeout=20)
            assert reply.status_code == 200, reply.text
        assert requests.post(f"{door.url}/unload_lora_adapter", json=adapter, timeout=20).status_code == 200
    # Loaded at one worker only: requests go there.
    one = f"{door.url}/load_lora_adapter?worker={fleet[0].url}"
    other = {"lora_name": "math", "lora_path": "/adapters/math"}
    assert requests.post(one, json=other, timeout=20).status_code == 200
    for _ in range(6):
        body = {"text": "x", "lora_path": "math", "sampling_params": {"max_new_tokens": 2}}
        assert call(door.url, "POST", "/generate", body)[0] == 200
