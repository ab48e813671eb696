"""The balancer for debugging, between real sockets: what both legs get, what the client gets, who ends whom."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from http.client import HTTPConnection, HTTPResponse
from typing import Any

import pytest
import uvicorn
from conftest import DEADLINE, wait_for
from scripted import Backend, Exchange

from sgl_model_gateway import mini_lb
from sgl_model_gateway.mini_lb import MiniLoadBalancer
from sgl_model_gateway.router_args import RouterArgs

GENERATE = "/generate"
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


class Pair:
    """A prefill and a decode backend behind a balancer, and a client."""

    def __init__(self, stack: ExitStack, port: int, **options: Any) -> None:
        self.prefill, self.decode = Backend(), Backend()
        for backend in (self.prefill, self.decode):
            stack.callback(backend.close)
        args = {"prefill_urls": [(self.prefill.url, 8998)], "decode_urls": [self.decode.url]} | options
        self.balancer = MiniLoadBalancer(RouterArgs(pd_disaggregation=True, policy="random", **args))
        mini_lb.lb = self.balancer
        stack.callback(retire, self.balancer)
        self.port, self._stack = port, stack

    @property
    def backends(self) -> tuple[Backend, Backend]:
        return self.prefill, self.decode

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> HTTPResponse:
        """The response; its head has arrived."""
        connection = self._stack.enter_context(closing(HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)))
        text = body if isinstance(body, bytes) or body is None else json.dumps(body)
        sent = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, text, sent)
        self.connection = connection
        return connection.getresponse()

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        response = self.call("POST", path, body, **headers)
        return response.status, json.loads(response.read())


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Where `app` is served, for whichever balancer a test makes the current one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(mini_lb.app, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        wait_for(lambda: server.started, "balancer up")
        yield int(listener.getsockname()[1])
        server.should_exit = True
        thread.join(DEADLINE)


def retire(balancer: MiniLoadBalancer) -> None:
    """Closes its session, in the event loop that it belongs to."""
    mini_lb.lb = None
    if balancer._session_and_loop:
        asyncio.run_coroutine_threadsafe(balancer.close(), balancer._session_and_loop[1]).result(DEADLINE)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def make_pair(stack: ExitStack, port: int) -> Callable[..., Pair]:
    """`make_pair(request_timeout_secs=1)`: a pair behind a balancer with these options."""
    return partial(Pair, stack, port)


@pytest.fixture
def pair(make_pair: Callable[..., Pair]) -> Pair:
    return make_pair()


def says(value: Any, status: int = 200) -> Callable[[Exchange], None]:
    return lambda exchange: exchange.answer(status, value)


def streams(*events: Any) -> Callable[[Exchange], None]:
    def script(exchange: Exchange) -> None:
        exchange.start_stream()
        for event in events:
            exchange.event(event)
        exchange.end_stream()

    return script


def hangs(exchange: Exchange) -> None:
    exchange.wait_until_hung_up()


def streams_then_hangs(*events: Any) -> Callable[[Exchange], None]:
    def script(exchange: Exchange) -> None:
        exchange.start_stream()
        for event in events:
            exchange.event(event)
        exchange.wait_until_hung_up()

    return script


def breaks_off(exchange: Exchange) -> None:
    exchange.break_off()


# --- what the legs get


@pytest.mark.parametrize("path", [GENERATE, CHAT, COMPLETIONS])
@pytest.mark.parametrize("stream", [False, True])
def test_both_legs_get_the_request_with_the_same_bootstrap_fields(pair: Pair, path: str, stream: bool) -> None:
    for backend in pair.backends:
        backend.on(path, streams({"x": 1}, b"[DONE]") if stream else says({"x": 1}))
    body = {"text": "é", "prompt": "p", "stream": stream, "unknown": [1, None]}
    response = pair.call("POST", path, body, authorization="Bearer k", x_request_id="r", user_agent="u")
    answer = response.read()
    assert response.status == 200
    assert answer == (b'data: {"x": 1}\n\ndata: [DONE]\n\n' if stream else b'{"x": 1}')
    assert response.headers["content-type"].startswith("text/event-stream" if stream else "application/json")
    first, second = (backend.seen[0] for backend in pair.backends)
    assert first.body == second.body
    assert first.body.items() >= (body | {"bootstrap_host": "127.0.0.1", "bootstrap_port": 8998}).items()
    assert 0 <= first.body["bootstrap_room"] < 2**63
    for leg in (first, second):
        names = ("authorization", "x-request-id", "user-agent")
        assert [leg.headers[name] for name in names] == ["Bearer k", "r", "u"]
        assert leg.headers["host"].endswith(str(leg.server.server_address[1]))


@pytest.mark.parametrize(
    ("path", "batch"),
    [
        (GENERATE, {"text": ["a", "b", "c"]}),
        (GENERATE, {"input_ids": [[1], [2], [3, 4]]}),
        (COMPLETIONS, {"prompt": ["a", "b", "c"]}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_batch_gets_a_room_each(pair: Pair, path: str, batch: dict[str, Any], stream: bool) -> None:
    for backend in pair.backends:
        backend.on(path, streams({}) if stream else says([]))
    assert pair.call("POST", path, batch | {"stream": stream}).status == 200
    first, second = (backend.seen[0].body for backend in pair.backends)
    assert first == second
    assert first["bootstrap_host"] == ["127.0.0.1"] * 3 and first["bootstrap_port"] == [8998] * 3
    assert len(set(first["bootstrap_room"])) == 3


@pytest.mark.parametrize("body", [{"input_ids": []}, {"input_ids": [1, 2]}, {}, {"text": "a"}])
def test_what_is_no_batch_gets_one_room(pair: Pair, body: dict[str, Any]) -> None:
    for backend in pair.backends:
        backend.on(GENERATE, says({}))
    assert pair.post(GENERATE, body)[0] == 200
    assert isinstance(pair.prefill.seen[0].body["bootstrap_room"], int)


def test_a_missing_bootstrap_port_is_null(make_pair: Callable[..., Pair]) -> None:
    with Backend_closing() as prefill:
        pair = make_pair(prefill_urls=[(prefill.url, None)])
        prefill.on(GENERATE, says({}))
        pair.decode.on(GENERATE, says({}))
        assert pair.post(GENERATE, {"text": "a"})[0] == 200
        assert prefill.seen[0].body["bootstrap_port"] is None


class Backend_closing(closing):  # type: ignore[type-arg]
    def __init__(self) -> None:
        super().__init__(Backend())


def test_one_client_session_serves_all_requests(pair: Pair) -> None:
    for backend in pair.backends:
        backend.on(GENERATE, says({}))
    sessions = set()
    for _ in range(3):
        pair.post(GENERATE, {"text": "a"})
        assert pair.balancer._session_and_loop
        sessions.add(id(pair.balancer._session_and_loop[0]))
    assert len(sessions) == 1
    # And its connections are used again.
    assert len({exchange.client_address for exchange in pair.decode.seen}) == 1


# --- logprobs


def meta(*logprobs: float, **more: Any) -> dict[str, Any]:
    return {"text": "é", "meta_info": {"input_token_logprobs": [[p, 1, None] for p in logprobs], "id": "i"}} | more


def test_prompt_logprobs_come_before_decodes(pair: Pair) -> None:
    pair.prefill.on(GENERATE, says(meta(-1.0, -2.0)))
    pair.decode.on(GENERATE, says(meta(-3.0)))
    assert pair.post(GENERATE, {"text": "a", "return_logprob": True}) == (200, meta(-1.0, -2.0, -3.0))
    assert pair.post(GENERATE, {"text": "a", "return_logprob": False}) == (200, meta(-3.0))


def test_prompt_logprobs_of_a_batch(pair: Pair) -> None:
    pair.prefill.on(GENERATE, says([meta(-1.0), meta(-2.0)]))
    pair.decode.on(GENERATE, says([meta(-3.0), meta()]))
    expected = [meta(-1.0, -3.0), meta(-2.0)]
    assert pair.post(GENERATE, {"text": ["a", "b"], "return_logprob": True}) == (200, expected)


def test_prompt_logprobs_in_a_stream_however_it_is_cut(pair: Pair) -> None:
    pair.prefill.on(GENERATE, streams(meta(-1.0, index=1), meta(-9.0, index=0), b"[DONE]"))

    def decode(exchange: Exchange) -> None:
        exchange.start_stream()
        whole = b"".join(
            b"data: " + text + b"\n\n"
            for text in (
                json.dumps(meta(-2.0, index=0)).encode(),
                json.dumps(meta(-3.0, index=1)).encode(),
                json.dumps(meta(-4.0, index=2)).encode(),
                b"[DONE]",
            )
        )
        for start in range(0, len(whole), 7):
            exchange.send(whole[start : start + 7])
        exchange.end_stream()

    pair.decode.on(GENERATE, decode)
    response = pair.call("POST", GENERATE, {"text": ["a"] * 3, "return_logprob": True, "stream": True})
    events = [event.removeprefix("data: ") for event in response.read().decode().split("\n\n")]
    assert events[3:] == ["[DONE]", ""]
    expected = [meta(-9.0, -2.0, index=0), meta(-1.0, -3.0, index=1), meta(-4.0, index=2)]
    assert [json.loads(event) for event in events[:3]] == expected


def test_routed_experts_of_the_prompt_are_prefills(pair: Pair) -> None:
    pair.prefill.on(GENERATE, says({"meta_info": {"routed_experts": "AQI="}}))  # 1 2
    pair.decode.on(GENERATE, says({"meta_info": {"routed_experts": "AAADBA=="}}))  # 0 0 3 4
    status, answer = pair.post(GENERATE, {"text": "a", "return_routed_experts": True})
    assert (status, answer["meta_info"]["routed_experts"]) == (200, "AQIDBA==")  # 1 2 3 4


def test_answers_that_cannot_be_merged_are_an_error(pair: Pair) -> None:
    pair.prefill.on(GENERATE, says(b"not JSON"))
    pair.decode.on(GENERATE, says({}))
    status, answer = pair.post(GENERATE, {"text": "a", "return_logprob": True})
    assert status == 502 and "cannot be merged" in answer["error"]["message"]


# --- failures


def fail(pair: Pair, leg: str, script: Callable[[Exchange], None], other: Callable[[Exchange], None]) -> Backend:
    """Sets the scripts and returns the backend that does not fail, which is reached before the other fails."""
    failing, healthy = pair.backends if leg == "prefill" else reversed(pair.backends)

    def later(exchange: Exchange) -> None:
        wait_for(lambda: healthy.seen, "other leg reached")
        script(exchange)

    failing.on(GENERATE, later)
    healthy.on(GENERATE, other)
    return healthy


@pytest.mark.parametrize("leg", ["prefill", "decode"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [400, 422, 429, 500, 503])
def test_the_status_of_either_leg_is_the_clients_and_the_other_is_ended(
    pair: Pair, leg: str, stream: bool, status: int
) -> None:
    other = fail(pair, leg, says({"error": {"message": "no"}}, status), hangs)
    response = pair.call("POST", GENERATE, {"text": "a", "stream": stream})
    assert (response.status, json.loads(response.read())) == (status, {"error": {"message": "no"}})
    assert response.headers["x-mini-lb-leg"] == leg
    assert other.hung_up.wait(1.0)


@pytest.mark.parametrize("leg", ["prefill", "decode"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_leg_that_breaks_off_before_its_answer(pair: Pair, leg: str, stream: bool) -> None:
    other = fail(pair, leg, breaks_off, streams_then_hangs({"x": 1}) if stream and leg == "decode" else hangs)
    status, answer = pair.post(GENERATE, {"text": "a", "stream": stream})
    assert status == 502 and f"the {leg} server" in answer["error"]["message"]
    assert other.hung_up.wait(1.0)


@pytest.mark.parametrize("leg", ["prefill", "decode"])
def test_a_leg_that_breaks_off_amid_its_answer(pair: Pair, leg: str) -> None:
    def half(exchange: Exchange) -> None:
        exchange.send_response(200)
        exchange.send_header("content-length", "100")
        exchange.end_headers()
        exchange.wfile.write(b"{")
        exchange.break_off()

    other = fail(pair, leg, half, hangs)
    status, answer = pair.post(GENERATE, {"text": "a"})
    assert status == 502 and f"the {leg} server" in answer["error"]["message"]
    assert other.hung_up.wait(1.0)


@pytest.mark.parametrize("merge", [False, True])
def test_a_prefill_stream_that_breaks_off_before_decodes_first_piece(pair: Pair, merge: bool) -> None:
    def broken(exchange: Exchange) -> None:
        exchange.start_stream()
        exchange.break_off()

    other = fail(pair, "prefill", broken, streams_then_hangs())
    status, answer = pair.post(GENERATE, {"text": "a", "stream": True, "return_logprob": merge})
    assert status == 502 and "the prefill server" in answer["error"]["message"]
    assert other.hung_up.wait(1.0)


@pytest.mark.parametrize("leg", ["prefill", "decode"])
def test_a_stream_that_breaks_off_amid_the_answer_ends_with_an_error_event(pair: Pair, leg: str) -> None:
    go = threading.Event()

    def breaks(exchange: Exchange) -> None:
        exchange.start_stream()
        exchange.event({"x": 1})
        go.wait(DEADLINE)
        exchange.break_off()

    other = fail(pair, leg, breaks, streams_then_hangs({"x": 1}))
    response = pair.call("POST", GENERATE, {"text": "a", "stream": True})
    assert response.status == 200
    assert response.readline() == b'data: {"x": 1}\n'
    go.set()
    error = json.loads(response.read().strip().removeprefix(b"data: "))
    assert f"the {leg} server" in error["error"]["message"]
    assert other.hung_up.wait(1.0)


@pytest.mark.parametrize("leg", ["prefill", "decode"])
def test_a_leg_that_cannot_be_reached(make_pair: Callable[..., Pair], leg: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        nobody = f"http://127.0.0.1:{gone.getsockname()[1]}"
    options = {"prefill_urls": [(nobody, None)]} if leg == "prefill" else {"decode_urls": [nobody]}
    pair = make_pair(**options)
    other = pair.decode if leg == "prefill" else pair.prefill
    other.on(GENERATE, hangs)
    status, answer = pair.post(GENERATE, {"text": "a"})
    assert status == 502 and f"the {leg} server {nobody}" in answer["error"]["message"]


def test_a_leg_that_takes_too_long(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(request_timeout_secs=1)
    for backend in pair.backends:
        backend.on(GENERATE, hangs)
    status, answer = pair.post(GENERATE, {"text": "a"})
    assert status == 504 and "did not answer in time" in answer["error"]["message"]
    assert all(backend.hung_up.wait(1.0) for backend in pair.backends)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_both_legs(pair: Pair, stream: bool) -> None:
    for backend in pair.backends:
        backend.on(GENERATE, streams_then_hangs({"x": 1}) if stream else hangs)
    with closing(socket.create_connection(("127.0.0.1", pair.port), DEADLINE)) as client:
        body = json.dumps({"text": "a", "stream": stream}).encode()
        head = f"POST {GENERATE} HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        client.sendall(head + body)
        wait_for(lambda: all(backend.seen for backend in pair.backends), "both legs reached")
        if stream:
            assert client.recv(5) == b"HTTP/"
    assert all(backend.hung_up.wait(1.0) for backend in pair.backends)


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff"])
def test_a_body_that_is_no_json_object(pair: Pair, body: bytes) -> None:
    response = pair.call("POST", GENERATE, body)
    assert response.status == 400 and b"the body is not" in response.read()
    assert pair.prefill.seen == []


# --- the other routes


def test_health_is_the_balancers_own(pair: Pair) -> None:
    response = pair.call("GET", "/health")
    assert (response.status, response.read()) == (200, b"")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/health_generate", None),
        ("POST", "/flush_cache?timeout=3", None),
        ("POST", "/abort_request", {"rid": "r", "abort_all": False}),
    ],
)
def test_broadcasts_reach_all_and_tell_of_failures(pair: Pair, method: str, path: str, body: Any) -> None:
    plain = path.partition("?")[0]
    for backend in pair.backends:
        backend.on(plain, says(b"fine"))
    assert pair.call(method, path, body, authorization="Bearer k").status == 200
    for backend in pair.backends:
        (seen,) = backend.seen
        assert (seen.command, seen.path, seen.body) == (method, path, body)
        assert seen.headers["authorization"] == "Bearer k"
    pair.decode.on(plain, says(b"busy", 400))
    response = pair.call(method, path, body)
    assert response.status == 400 and f"{pair.decode.url}{path}: busy" in response.read().decode()


def test_broadcasts_to_a_server_that_is_gone(make_pair: Callable[..., Pair]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        nobody = f"http://127.0.0.1:{gone.getsockname()[1]}"
    pair = make_pair(decode_urls=[nobody])
    pair.prefill.on("/health_generate", says(b""))
    response = pair.call("GET", "/health_generate")
    assert response.status == 502 and nobody in response.read().decode()


@pytest.mark.parametrize("path", ["/server_info", "/get_server_info"])
@pytest.mark.parametrize("theirs", ["/server_info", "/get_server_info"])
def test_server_info_of_all(pair: Pair, path: str, theirs: str) -> None:
    pair.prefill.on(theirs, says({"a": 1, "internal_states": [{"p": 1}]}))
    pair.decode.on(theirs, says({"b": 1}))
    answer = json.loads(pair.call("GET", path).read())
    assert answer["prefill"] == [{"a": 1, "internal_states": [{"p": 1}]}] and answer["decode"] == [{"b": 1}]
    assert answer["internal_states"] == [{"last_gen_throughput": 0.0, "avg_spec_accept_length": None}]
    pair.decode.on(theirs, says({"internal_states": [{"d": 1}]}))
    assert json.loads(pair.call("GET", path).read())["internal_states"] == [{"d": 1}]


@pytest.mark.parametrize("path", ["/model_info", "/get_model_info"])
def test_model_info_of_the_first_prefill_server(pair: Pair, path: str) -> None:
    pair.prefill.on("/model_info", says({"model_path": "m"}))
    assert json.loads(pair.call("GET", path).read()) == {"model_path": "m"}
    pair.prefill.on("/model_info", says(b"broken", 500))
    response = pair.call("GET", path)
    assert response.status == 502 and b"500 broken" in response.read()
    pair.prefill.on("/model_info", breaks_off)
    assert pair.call("GET", path).status == 503
    pair.prefill.on("/model_info", says(b"?"))
    assert pair.call("GET", path).status == 502
    pair.balancer.prefill_urls.clear()
    assert pair.call("GET", path).status == 503 == pair.call("GET", "/v1/models").status


def test_models_of_the_first_prefill_server(pair: Pair) -> None:
    pair.prefill.on("/v1/models", says({"data": []}))
    assert json.loads(pair.call("GET", "/v1/models").read()) == {"data": []}
    pair.prefill.on("/v1/models", says({"error": "key"}, 401))
    response = pair.call("GET", "/v1/models")
    assert (response.status, json.loads(response.read())) == (401, {"error": "key"})


def test_everything_else_is_404_and_no_balancer_is_503(pair: Pair) -> None:
    assert pair.call("POST", "/v1/embeddings", {}).status == 404
    mini_lb.lb = None
    assert pair.call("POST", GENERATE, {}).status == 503


# --- data-parallel ranks


def test_ranks_are_chosen_and_checked(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(test_external_dp_routing=True)
    for backend, size in zip(pair.backends, (2, 3), strict=True):
        backend.on("/server_info", says({"internal_states": [{}] * size}))
        backend.on(
            GENERATE, lambda exchange: exchange.answer(200, {"meta_info": {"dp_rank": exchange.body["routed_dp_rank"]}})
        )
    random.seed(1)
    ranks = set()
    for _ in range(30):
        assert pair.post(GENERATE, {"text": "a"})[0] == 200
        first, second = (backend.seen[-1].body for backend in pair.backends)
        assert second["disagg_prefill_dp_rank"] == first["routed_dp_rank"] and "disagg_prefill_dp_rank" not in first
        assert first["bootstrap_room"] == second["bootstrap_room"]
        ranks.add((first["routed_dp_rank"], second["routed_dp_rank"]))
    assert ranks == {(one, other) for one in range(2) for other in range(3)}
    pair.decode.on(GENERATE, says({"meta_info": {"dp_rank": 7}}))
    status, answer = pair.post(GENERATE, {"text": "a"})
    assert status == 500 and "DP rank mismatch" in answer["error"]["message"]


# --- as a command


def test_the_command_serves_pairs_until_it_is_told_to_stop(run: Any, stack: ExitStack) -> None:
    prefill, decode = (stack.enter_context(Backend_closing()) for _ in range(2))
    for backend in (prefill, decode):
        backend.on(GENERATE, says({"x": 1}))
    flags = f"launch --mini-lb --pd-disaggregation --prefill {prefill.url} 5 --decode {decode.url} --port 0"
    child = run("-m", "sgl_model_gateway", *flags.split(), "--host", "127.0.0.1", "--shutdown-grace-period-secs", "1")
    line = ""
    while "running on http://127.0.0.1:" not in line:
        line = child.line()
    port = int(line.split("http://127.0.0.1:")[1].split()[0])
    with closing(HTTPConnection("127.0.0.1", port, timeout=DEADLINE)) as client:
        client.request("POST", GENERATE, b"{}")
        assert client.getresponse().status == 200
    began = time.monotonic()
    child.process.send_signal(signal.SIGTERM)
    _, code = child.lines_until_end()
    assert code in (0, -signal.SIGTERM) and time.monotonic() - began < 5
