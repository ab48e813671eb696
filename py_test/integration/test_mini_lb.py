"""The balancer for debugging, between real sockets: what both legs and the client get, and which end ends which."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from support.backend import Backend, Exchange, breaks_off, hangs, says, streams, streams_then_hangs
from support.pairs import GENERATE, Backend_closing, Pair
from support.waiting import DEADLINE, wait_for

pytest_plugins = ["support.pairs"]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


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
def test_a_single_request_gets_one_room(pair: Pair, body: dict[str, Any]) -> None:
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


def test_cookies_and_hop_headers_go_no_further(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair()
    # Cookies are kept for names, not for addresses.
    pair.balancer.decode_urls[0] = pair.decode.url.replace("127.0.0.1", "localhost")

    def with_cookie(exchange: Exchange) -> None:
        exchange.send_response(200)
        exchange.send_header("set-cookie", "session=1")
        exchange.send_header("content-length", "2")
        exchange.end_headers()
        exchange.wfile.write(b"{}")

    pair.prefill.on(GENERATE, says({}))
    pair.decode.on(GENERATE, with_cookie)
    for _ in range(2):
        pair.post(GENERATE, {"text": "a"}, connection="X-Hop, keep-alive", x_hop="1", x_end="2")
    for exchange in pair.decode.seen:
        assert [exchange.headers[name] for name in ("cookie", "x-hop", "x-end")] == [None, None, "2"]


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


def test_a_stream_that_cannot_be_merged_ends_with_an_error_event(pair: Pair) -> None:
    for backend in pair.backends:
        backend.on(GENERATE, streams({"meta_info": {"routed_experts": "?"}}))
    response = pair.call("POST", GENERATE, {"text": "a", "return_routed_experts": True, "stream": True})
    error = json.loads(response.read().strip().removeprefix(b"data: "))
    assert "cannot be merged" in error["error"]["message"]


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


@pytest.mark.parametrize("merge", [False, True])
def test_a_refusal_in_prefills_stream_is_the_clients_event_at_once(pair: Pair, merge: bool) -> None:
    refusal = {"error": {"message": "too long: é", "code": 400}}
    other = fail(pair, "prefill", streams(refusal, b"[DONE]"), streams_then_hangs())
    response = pair.call("POST", GENERATE, {"text": "a", "stream": True, "return_logprob": merge})
    events = [event.removeprefix("data: ") for event in response.read().decode().split("\n\n")]
    assert (response.status, json.loads(events[0]), events[1:]) == (200, refusal, ["[DONE]", ""])
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
def test_a_leg_that_cannot_be_reached_is_502(make_pair: Callable[..., Pair], leg: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        unused = f"http://127.0.0.1:{gone.getsockname()[1]}"
    options = {"prefill_urls": [(unused, None)]} if leg == "prefill" else {"decode_urls": [unused]}
    pair = make_pair(**options)
    other = pair.decode if leg == "prefill" else pair.prefill
    other.on(GENERATE, hangs)
    status, answer = pair.post(GENERATE, {"text": "a"})
    assert status == 502 and f"the {leg} server {unused}" in answer["error"]["message"]


def test_a_leg_that_takes_too_long_is_504(make_pair: Callable[..., Pair]) -> None:
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
def test_a_body_that_is_no_json_object_is_400(pair: Pair, body: bytes) -> None:
    response = pair.call("POST", GENERATE, body)
    assert response.status == 400 and b"the body is not" in response.read()
    assert pair.prefill.seen == []
