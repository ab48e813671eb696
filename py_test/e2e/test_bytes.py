"""What leaves a client arrives at the worker, and what the worker answers arrives at the client."""

from __future__ import annotations

import json
import socket
from urllib.parse import urlsplit

import requests
from support.client import get_json


def recorded(worker) -> list[dict]:
    answer = get_json(f"{worker.url}/sim/requests")
    requests_seen = answer["requests"] if isinstance(answer, dict) else answer
    return [seen for seen in requests_seen if seen["method"] == "POST"]


def exchange(url: str, request: bytes) -> bytes:
    """Sends raw bytes, reads to the end of a `connection: close` reply."""
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port), timeout=20) as stream:
        stream.sendall(request)
        reply = b""
        while piece := stream.recv(65536):
            reply += piece
    return reply


def test_a_body_and_its_headers_arrive_untouched(sim_workers, gateway):
    (worker,) = sim_workers(1, record_requests=10)
    door = gateway([worker.url], policy="round_robin")
    body = (
        b'{ "text" : "hi",  "sampling_params":{"max_new_tokens": 2, "temperature":1.0e-1, "odd":1E5},\r\n'
        b'"unknown":[-0, 1.50, 123456789012345678901234567890], "unknown":"\\u00e9\\/" }'
    )
    head = (
        b"POST /generate?x=1 HTTP/1.1\r\nHost: public.example\r\nContent-Type: application/json\r\n"
        b"X-Twice: one\r\nX-Twice: two\r\nCookie: a=b\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    )
    reply = exchange(door.url, head + body)
    assert reply.startswith(b"HTTP/1.1 200 OK\r\n")
    (seen,) = recorded(worker)
    assert seen["path"] == "/generate?x=1"
    headers = [(name.lower(), value) for name, value in seen["headers"]]
    assert [value for name, value in headers if name == "x-twice"] == ["one", "two"]
    assert ("cookie", "a=b") in headers
    assert not [name for name, _ in headers if name in ("connection", "keep-alive", "transfer-encoding")]
    assert seen["body"].encode() == body


def test_a_reply_is_the_same_with_and_without_the_gateway(sim_workers, gateway):
    (worker,) = sim_workers(1)
    door = gateway([worker.url], policy="round_robin")
    body = {"input": ["a", "b"], "model": "sim-model"}
    with requests.Session() as session:
        direct = session.post(f"{worker.url}/v1/embeddings", json=body, timeout=20)
        through = session.post(f"{door.url}/v1/embeddings", json=body, timeout=20)
        assert through.content == direct.content
        added = set(through.headers) - set(direct.headers)
        assert {name.lower() for name in added} <= {"x-request-id", "x-smg-routed-worker-id", "date"}


def test_repeated_response_headers_survive(sim_workers, gateway):
    (worker,) = sim_workers(1, faults={"duplicate_set_cookie": True})
    door = gateway([worker.url], policy="round_robin")
    body = json.dumps({"text": "hi"}).encode()
    reply = exchange(
        door.url,
        b"POST /generate HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\nconnection: close\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(body), body),
    )
    head = reply.split(b"\r\n\r\n")[0].lower()
    assert head.count(b"\r\nset-cookie:") == 2


def test_generate_streams_cumulative_text(sim_workers, gateway):
    (worker,) = sim_workers(1)
    door = gateway([worker.url], policy="round_robin")
    body = {"text": "hi", "stream": True, "sampling_params": {"max_new_tokens": 5}}
    with requests.post(f"{door.url}/generate", json=body, stream=True, timeout=20) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        events = [line[6:] for line in reply.iter_lines() if line.startswith(b"data: ")]
    assert events[-1] == b"[DONE]"
    texts = [json.loads(event)["text"] for event in events[:-1]]
    assert all(later.startswith(earlier) for earlier, later in zip(texts, texts[1:], strict=False))
    assert json.loads(events[-2])["meta_info"]["finish_reason"]["type"] == "length"


def test_a_repeated_prompt_is_cached_at_the_worker(sim_workers, gateway):
    (worker,) = sim_workers(1)
    door = gateway([worker.url], policy="round_robin")
    body = {"text": "the same prompt " * 50, "sampling_params": {"max_new_tokens": 1}}
    with requests.Session() as session:
        first, second = (session.post(f"{door.url}/generate", json=body, timeout=20).json() for _ in range(2))
    assert first["meta_info"]["cached_tokens"] == 0
    assert second["meta_info"]["cached_tokens"] > 100
