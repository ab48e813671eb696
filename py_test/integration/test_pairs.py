"""The gateway and `--mini-lb` in front of the same simulated pair: clients get the same from both.

Where the two differ by design a test says so: `--mini-lb` tries nothing again, keeps no state of servers, refuses
nothing that an engine may refuse, and names the leg that failed in `x-mini-lb-leg`.
"""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import IncompleteRead
from typing import Any

import pytest
from support.answers import outcome
from support.gateway import Gateway
from support.process import Process
from support.waiting import DEADLINE, wait_for
from support.workers import Worker

from sgl_model_gateway.sgl_model_gateway_rs import SimWorker

GENERATE, CHAT, COMPLETIONS = "/generate", "/v1/chat/completions", "/v1/completions"
SAMPLING = {"max_new_tokens": 6, "temperature": 0, "ignore_eos": True}
SAY = {"text": "once", "sampling_params": SAMPLING}
LONG = "x " * 300
LONGEST = 100  # tokens
LEG = "x-mini-lb-leg"


def asks(text: str) -> list[tuple[str, Any]]:
    """One request per route that both serve."""
    return [
        (GENERATE, {"text": text, "sampling_params": SAMPLING}),
        (CHAT, {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 6}),
        (COMPLETIONS, {"model": "m", "prompt": text, "max_tokens": 6}),
    ]


SERVED = [
    *asks("once"),
    (GENERATE, {"text": ["once", "upon a time"], "sampling_params": SAMPLING}),
    (GENERATE, {"text": ["once"], "sampling_params": SAMPLING}),
    (GENERATE, {"input_ids": [1, 5, 7, 9], "sampling_params": SAMPLING}),
    (GENERATE, {"input_ids": [[1, 5], [7]], "rid": ["x", "y"], "sampling_params": SAMPLING}),
    (CHAT, {"model": "m", "messages": [{"role": "user", "content": "é"}], "max_tokens": 6, "logprobs": True}),
    (COMPLETIONS, {"model": "m", "prompt": ["once", "upon a time"], "max_tokens": 6}),
]
REFUSED = [
    (GENERATE, {"text": "x", "sampling_params": {"max_new_tokens": -8}}),
    (GENERATE, {}),
    (CHAT, {"model": "m", "messages": []}),
]


@dataclass
class Answer:
    """A whole answer."""

    status: int
    headers: dict[str, str]
    text: str


def ask(url: str, path: str, body: Any) -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE) as response:
            return Answer(response.status, dict(response.headers), response.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, dict(error.headers), error.read().decode())


def whole(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.text


def said(answer: Answer, path: str) -> Any:
    """Status, type and content of an answer, without what differs between two equal requests."""
    kind = answer.headers["content-type"].partition(";")[0]
    return kind, outcome(whole(answer), cumulative=path == GENERATE)


class Fleet:
    """Simulated workers, and both doors to them."""

    def __init__(self, stack: ExitStack, prefill: list[SimWorker], decode: list[Any], *flags: str) -> None:
        pools = [word for one in prefill for word in ("--prefill", one.url, str(one.bootstrap_port))]
        pools += [word for one in decode for word in ("--decode", one.url)]
        pools += ["--pd-disaggregation", "--policy", "random", *flags]
        mini = ("--mini-lb", "--host", "127.0.0.1", "--port", "0", *pools)
        balancer = Process("-m", "sgl_model_gateway.launch_router", *mini)
        stack.callback(balancer.destroy)
        self.mini = balancer.wait_for_start(r"Uvicorn running on (http://\S+)").group(1)
        self.gateway = Gateway([], *pools)
        stack.callback(self.gateway.destroy)
        self.gateway.wait_ready(len(prefill) + len(decode))
        self.doors = {"mini-lb": self.mini, "gateway": self.gateway.url}

    def ask(self, path: str, body: Any) -> tuple[Answer, Answer]:
        """The answers of the balancer and of the gateway."""
        first, second = (ask(url, path, body) for url in self.doors.values())
        return first, second


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., SimWorker]]:
    """`start("prefill", context_length=9)`: a simulated worker in that role, or a regular one for `null`."""
    with ExitStack() as stack:

        def one(role: str = "null", **options: Any) -> SimWorker:
            worker = SimWorker(model="m", disaggregation_mode=role, disaggregation_bootstrap_port=0, **options)
            return stack.enter_context(worker)

        yield one


@pytest.fixture(scope="module")
def alone(start: Any) -> SimWorker:
    """A worker that does both parts itself."""
    return start()


@pytest.fixture(scope="module")
def pair(start: Any) -> Iterator[Fleet]:
    with ExitStack() as stack:
        yield Fleet(stack, [start("prefill")], [start("decode")])


@pytest.fixture(scope="module", params=["prefill", "decode"])
def short(request: Any, start: Any) -> Iterator[tuple[str, Fleet, SimWorker]]:
    """A pair in which one side alone has a short context, and a worker with the same."""
    limit = {"context_length": LONGEST}
    prefill, decode = (start(role, **limit if role == request.param else {}) for role in ("prefill", "decode"))
    with ExitStack() as stack:
        yield request.param, Fleet(stack, [prefill], [decode]), start(**limit)


# --- the same from both


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("path", "body"), SERVED)
def test_both_say_what_one_worker_says(pair: Fleet, alone: SimWorker, path: str, body: Any, stream: bool) -> None:
    body = body | {"stream": stream}
    expected = said(ask(alone.url, path, body), path)
    assert expected[1][0] == 200
    assert [said(answer, path) for answer in pair.ask(path, body)] == [expected] * 2


LOGPROBS = {"return_logprob": True, "logprob_start_len": 0, "sampling_params": SAMPLING}


@pytest.mark.parametrize("text", ["once", ["once", "upon"]])
@pytest.mark.parametrize(
    ("door", "more"),
    [
        ("mini-lb", {}),
        ("mini-lb", {"stream": True}),
        ("gateway", {}),
        ("gateway", {"stream": True}),
    ],
)
def test_log_probabilities_of_the_prompt_are_the_prefill_workers(
    pair: Fleet, alone: SimWorker, door: str, more: dict[str, bool], text: Any
) -> None:
    def logprobs(url: str) -> list[Any]:
        answer = ask(url, GENERATE, {"text": text, **LOGPROBS, **more})
        assert answer.status == 200, answer.text
        lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
        found = [json.loads(line) for line in lines if line != "[DONE]"]
        metas = [one["meta_info"] for value in found for one in (value if isinstance(value, list) else [value])]
        return sorted({str(meta["input_token_logprobs"]) for meta in metas})

    expected = logprobs(alone.url)
    assert expected and "[]" not in expected
    assert logprobs(pair.doors[door]) == expected


# --- refusals


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("path", "body"), REFUSED)
def test_both_relay_what_both_workers_refuse(pair: Fleet, alone: SimWorker, path: str, body: Any, stream: bool) -> None:
    body = body | {"stream": stream}
    expected = said(ask(alone.url, path, body), path)
    assert expected[1][0] == 400
    mini, gateway = pair.ask(path, body)
    assert [said(mini, path), said(gateway, path)] == [expected] * 2
    assert LEG in mini.headers and LEG not in gateway.headers


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("path", "body"), asks(LONG))
def test_both_relay_what_one_side_alone_refuses(short: Any, path: str, body: Any, stream: bool) -> None:
    role, fleet, alone = short
    body = body | {"stream": stream}
    expected = said(ask(alone.url, path, body), path)
    assert "longer than the model's context length" in str(expected)
    mini, gateway = fleet.ask(path, body)
    assert [said(mini, path), said(gateway, path)] == [expected] * 2
    # A stream of `/generate` begins with 200 and holds the refusal.
    in_stream = stream and path == GENERATE
    assert mini.status == (200 if in_stream else 400)
    assert mini.headers.get(LEG) == (None if in_stream else role)
    # Neither side is left with a request.
    assert said(fleet.ask(*asks("once")[0])[1], GENERATE)[1][0] == 200


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff"])
def test_a_body_that_is_no_json_object_is_400_in_the_words_of_each(pair: Fleet, body: bytes) -> None:
    mini, gateway = pair.ask(GENERATE, body)
    assert [mini.status, gateway.status] == [400, 400]
    assert json.loads(mini.text)["error"]["type"] == "mini_lb_error"
    assert json.loads(gateway.text)["error"]["code"] == "json_parse_error"


def test_several_answers_to_a_prompt_are_given_by_the_gateway_alone(stack: ExitStack, start: Any) -> None:
    fleet = Fleet(stack, [start("prefill")], [start("decode")], "--request-timeout-secs", "1")
    mini, gateway = fleet.ask(GENERATE, {"text": "x", "sampling_params": SAMPLING | {"n": 2}})
    one = json.loads(ask(fleet.gateway.url, GENERATE, {"text": "x", "sampling_params": SAMPLING}).text)
    assert [answer["text"] for answer in json.loads(gateway.text)] == [one["text"]] * 2
    # The balancer hands it on, and engines in pairs do not answer it.
    assert mini.status == 504


@pytest.mark.parametrize(("path", "body"), asks("once"))
def test_the_stream_of_several_answers_has_each_of_them(pair: Fleet, path: str, body: Any) -> None:
    gateway = pair.gateway.url
    expected = outcome(whole(ask(gateway, path, body | {"stream": True})), cumulative=path == GENERATE)
    counted = {"sampling_params": SAMPLING | {"n": 3}} if path == GENERATE else {"n": 3}
    several = outcome(whole(ask(gateway, path, body | counted | {"stream": True})), cumulative=path == GENERATE)
    text = expected[1][0]
    assert several == (200, {at: text for at in range(3)}, [], True)


# --- dead workers


@pytest.fixture(params=["prefill", "decode"])
def half_dead(request: Any, stack: ExitStack, start: Any) -> tuple[str, Fleet]:
    """A pair of which one worker has died."""
    workers = {role: start(role) for role in ("prefill", "decode")}
    fleet = Fleet(stack, [workers["prefill"]], [workers["decode"]], "--retry-max-retries", "1")
    workers[request.param].stop()
    assert workers[request.param].wait(DEADLINE)
    return request.param, fleet


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_dead_worker_is_an_error_at_once(half_dead: tuple[str, Fleet], stream: bool) -> None:
    role, fleet = half_dead
    for path, body in asks("once"):
        mini, gateway = fleet.ask(path, body | {"stream": stream})
        assert (mini.status, mini.headers[LEG]) == (502, role)
        assert f"the {role} server" in json.loads(mini.text)["error"]["message"]
        # The gateway knows it after the first request, or from a probe, and asks no worker then.
        codes = {502: "call_upstream_connection_failed", 503: "no_available_workers"}
        assert json.loads(gateway.text)["error"]["code"] == codes[gateway.status]
    assert gateway.status == 503


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_the_gateway_tries_another_pair_and_the_balancer_tries_nothing_again(
    stack: ExitStack, start: Any, role: str
) -> None:
    workers = {one: [start(one), start(one)] for one in ("prefill", "decode")}
    fleet = Fleet(stack, workers["prefill"], workers["decode"], "--disable-health-check")
    doomed = workers[role][0]
    doomed.stop()
    assert doomed.wait(DEADLINE)
    for _ in range(20):
        assert ask(fleet.gateway.url, GENERATE, SAY).status == 200
    # Half of the pairs that it draws have the dead worker.
    wait_for(lambda: ask(fleet.mini, GENERATE, SAY).status == 502, "a draw with the dead worker")
    wait_for(lambda: ask(fleet.mini, GENERATE, SAY).status == 200, "a draw without the dead worker")


def read_to_the_end(response: Any) -> tuple[str, bool]:
    """The rest of an answer, and whether it ends without its last chunk."""
    try:
        return response.read().decode(), False
    except IncompleteRead as error:
        return error.partial.decode(), True


@pytest.mark.parametrize("door", ["mini-lb", "gateway"])
def test_a_decode_worker_that_dies_amid_a_stream_is_an_error_event(stack: ExitStack, start: Any, door: str) -> None:
    decode = Worker(model="m", disaggregation_mode="decode", decode_step_base_ms=20)
    stack.callback(decode.destroy)
    fleet = Fleet(stack, [start("prefill")], [decode])
    body = {"text": "x", "sampling_params": SAMPLING | {"max_new_tokens": 2000}, "stream": True}
    request = urllib.request.Request(
        fleet.doors[door] + GENERATE, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with contextlib.closing(urllib.request.urlopen(request, timeout=DEADLINE)) as response:
        assert json.loads(response.readline().removeprefix(b"data: "))["text"]
        decode.kill()
        rest, cut = read_to_the_end(response)
    events = [line.removeprefix("data: ") for line in rest.splitlines() if line.startswith("data: ")]
    assert "[DONE]" not in events
    assert json.loads(events[-1])["error"]["message"]
    # Behind the event the gateway cuts the connection, so that clients that read no events notice, too.
    assert cut == (door == "gateway")
