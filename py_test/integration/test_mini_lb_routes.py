"""The balancer for debugging: its routes besides the three that generate, data-parallel ranks, the command."""

from __future__ import annotations

import json
import random
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from typing import Any

import pytest
from support.backend import breaks_off, says
from support.pairs import GENERATE, Backend_closing, Pair
from support.waiting import DEADLINE

from sgl_model_gateway import mini_lb

pytest_plugins = ["support.pairs"]

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
def test_broadcasts_reach_all_and_report_failures(pair: Pair, method: str, path: str, body: Any) -> None:
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


def test_a_broadcast_to_a_server_that_is_gone_is_502(make_pair: Callable[..., Pair]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        unused = f"http://127.0.0.1:{gone.getsockname()[1]}"
    pair = make_pair(decode_urls=[unused])
    pair.prefill.on("/health_generate", says(b""))
    response = pair.call("GET", "/health_generate")
    assert response.status == 502 and unused in response.read().decode()


@pytest.mark.parametrize("path", ["/server_info", "/get_server_info"])
@pytest.mark.parametrize("theirs", ["/server_info", "/get_server_info"])
def test_server_info_lists_every_server(pair: Pair, path: str, theirs: str) -> None:
    pair.prefill.on(theirs, says({"a": 1, "internal_states": [{"p": 1}]}))
    pair.decode.on(theirs, says({"b": 1}))
    answer = json.loads(pair.call("GET", path).read())
    assert answer["prefill"] == [{"a": 1, "internal_states": [{"p": 1}]}] and answer["decode"] == [{"b": 1}]
    assert answer["internal_states"] == [{"last_gen_throughput": 0.0, "avg_spec_accept_length": None}]
    pair.decode.on(theirs, says({"internal_states": [{"d": 1}]}))
    assert json.loads(pair.call("GET", path).read())["internal_states"] == [{"d": 1}]


@pytest.mark.parametrize("path", ["/model_info", "/get_model_info"])
def test_model_info_is_the_first_prefill_servers(pair: Pair, path: str) -> None:
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


def test_models_are_the_first_prefill_servers(pair: Pair) -> None:
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


def test_the_command_serves_pairs_until_a_stop_signal(run: Any, stack: ExitStack) -> None:
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
