"""The real `openai` SDK against the gateway: answers, streams, and errors as the SDK's own exception types."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import openai
import pytest
from openai import OpenAI


@pytest.fixture
def sdk(sim_workers, gateway):
    """`sdk(api_key=..., worker={...}, **gateway options)`: a client, the gateway, and the one worker behind it."""

    clients = []

    def start(api_key: str = "none", worker: dict[str, Any] | None = None, workers: int = 1, **options: Any):
        fleet = sim_workers(workers, **(worker or {}))
        door = gateway([w.url for w in fleet], policy="round_robin", **options)
        client = OpenAI(base_url=f"{door.url}/v1", api_key=api_key, max_retries=0, timeout=20)
        clients.append(client)
        return client, door, fleet

    yield start
    for client in clients:
        client.close()


MESSAGES = [{"role": "user", "content": "Say something in a few words."}]


def set_faults(worker, **faults: Any) -> None:
    request = urllib.request.Request(f"{worker.url}/sim/faults", json.dumps(faults).encode(), method="POST")
    request.add_header("content-type", "application/json")
    urllib.request.urlopen(request, timeout=10).close()


def test_a_chat_ends_at_max_tokens(sdk):
    client, _, _ = sdk()
    answer = client.chat.completions.create(model="sim-model", messages=MESSAGES, max_tokens=7)
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens == 7
    assert answer.choices[0].finish_reason == "length"


def test_streamed_chat_gives_the_same_text(sdk):
    client, _, _ = sdk()
    whole = client.chat.completions.create(model="sim-model", messages=MESSAGES, max_tokens=20)
    stream = client.chat.completions.create(
        model="sim-model", messages=MESSAGES, max_tokens=20, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == 20


def test_completions_of_text_and_of_token_ids(sdk):
    client, _, _ = sdk()
    for prompt in ("once upon", [1, 2, 3], ["one", "two"], [[1], [2]]):
        answer = client.completions.create(model="sim-model", prompt=prompt, max_tokens=3)
        assert len(answer.choices) == (2 if prompt in (["one", "two"], [[1], [2]]) else 1)
        assert all(choice.text for choice in answer.choices)


def test_embeddings_come_one_per_input(sdk):
    client, _, _ = sdk()
    answer = client.embeddings.create(model="sim-model", input=["a", "b"])
    assert len(answer.data) == 2
    assert all(isinstance(x, float) for x in answer.data[0].embedding)


def test_models_list_the_workers_model(sdk):
    client, _, _ = sdk(worker={"model": "llama-sim"})
    assert [model.id for model in client.models.list()] == ["llama-sim"]


def test_a_response_has_the_output_of_the_worker(sdk):
    client, _, _ = sdk(workers=2)
    answer = client.responses.create(model="sim-model", input="hello")
    assert answer.output_text
    assert client.responses.retrieve(answer.id).id == answer.id, "whichever worker has it"


def test_errors_map_to_the_sdks_types(sdk):
    client, _, fleet = sdk()
    worker = fleet[0]
    cases = [
        (400, openai.BadRequestError),
        (404, openai.NotFoundError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
    ]
    for status, expected in cases:
        set_faults(worker, status=status)
        with pytest.raises(expected) as caught:
            client.chat.completions.create(model="m", messages=MESSAGES)
        assert caught.value.status_code == status
        assert caught.value.request_id.startswith("chatcmpl-")
    set_faults(worker)


def test_the_gateways_own_errors_map_too(sim_workers, gateway):
    keyed = gateway([w.url for w in sim_workers(1, api_key="right")], api_key="right")
    empty = gateway([])

    def ask(door, key: str):
        with OpenAI(base_url=f"{door.url}/v1", api_key=key, max_retries=0, timeout=20) as client:
            return client.chat.completions.create(model="m", messages=MESSAGES)

    assert ask(keyed, "right").choices
    with pytest.raises(openai.AuthenticationError) as caught:
        ask(keyed, "wrong")
    assert caught.value.code == "invalid_api_key"
    with pytest.raises(openai.InternalServerError) as caught:
        ask(empty, "any")
    assert caught.value.status_code == 503
    assert caught.value.code == "no_available_workers"
    assert caught.value.response.headers["retry-after"]


def test_a_worker_that_is_too_slow_is_a_504(sdk):
    client, _, fleet = sdk(request_timeout_secs=1)
    set_faults(fleet[0], delay_first_byte_ms=60_000)
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="m", messages=MESSAGES)
    assert caught.value.status_code == 504
    assert caught.value.code == "call_upstream_timeout"


def test_a_stream_that_breaks_off_is_seen_as_broken(sdk):
    client, _, fleet = sdk()
    set_faults(fleet[0], close_mid_body=600)
    received = []
    with pytest.raises(openai.APIConnectionError):
        for chunk in client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=500, stream=True):
            received.append(chunk)
    assert received, "what came before the break is delivered"
