"""Command lines as deployments have them, and `Router.from_args`, in front of simulated pairs: they start and serve."""

from __future__ import annotations

import json
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from support.client import call, get_json
from support.gateway import healthy_workers
from support.process import Process
from support.waiting import wait_for

from sgl_model_gateway.launch_router import parse_router_args
from sgl_model_gateway.router import Router
from sgl_model_gateway.router_args import RouterArgs
from sgl_model_gateway.sgl_model_gateway_rs import SimWorker

SAY = {"text": "Once upon a time", "sampling_params": {"max_new_tokens": 8, "temperature": 0, "ignore_eos": True}}
HERE = "--host 0.0.0.0 --port 0 --prometheus-port 0 --shutdown-grace-period-secs 1"
LISTENING = r"(?:gateway listening.*addr=|Uvicorn running on http://)0\.0\.0\.0:(\d+)"
# P1, P2, D1 and D2 stand for workers, B1 and B2 for the bootstrap ports of the prefill workers.
LINES = [
    "--pd-disaggregation --prefill P1 B1 --decode D1",
    "--pd-disaggregation --prefill P1 none --decode D1 --policy round_robin --disable-health-check",
    "--pd-disaggregation --prefill P1 --decode D1 --policy random --log-level info --disable-circuit-breaker",
    "--pd-disaggregation --prefill=P1 --decode=D1",
    "--pd-disaggregation --prefill P1 B1 --prefill P2 B2 --decode D1 --decode D2 --policy random "
    "--prefill-policy cache_aware --decode-policy round_robin",
    "--policy consistent_hashing --prefill-policy consistent_hashing --decode-policy consistent_hashing "
    "--pd-disaggregation --prefill P1 B1 --prefill P2 B2 --decode D1 --decode D2",
    "--pd-disaggregation --policy cache_aware --dp-aware --prefill P1 B1 --decode D1 --request-timeout-secs 7200",
    "--mini-lb --pd-disaggregation --prefill P1 B1 --decode D1 --policy random --request-timeout-secs 7200",
]


@pytest.fixture(scope="module")
def workers() -> Iterator[dict[str, SimWorker]]:
    """Two pairs, and a regular worker under the name `alone`."""
    roles = {"P1": "prefill", "P2": "prefill", "D1": "decode", "D2": "decode", "alone": "null"}
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(
                SimWorker(disaggregation_mode=role, disaggregation_bootstrap_port=0, record_requests=1000)
            )
            for name, role in roles.items()
        }


@pytest.fixture
def put(workers: dict[str, SimWorker]) -> Callable[[str], list[str]]:
    """The words of a line, with the workers' addresses in it."""
    places = {name: worker.url for name, worker in workers.items()}
    places |= {f"B{number}": str(workers[f"P{number}"].bootstrap_port) for number in (1, 2)}

    def words(line: str) -> list[str]:
        for name, address in places.items():
            line = line.replace(name, address)
        return line.split()

    return words


def text_of(url: str, *, stream: bool) -> str:
    """What `SAY` is answered with."""
    body = json.dumps(SAY | {"stream": stream}).encode()
    request = urllib.request.Request(f"{url}/generate", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as response:
        if not stream:
            return str(json.load(response)["text"])
        events = [line.decode().removeprefix("data: ").strip() for line in response if line.strip()]
    assert events[-1] == "[DONE]"
    return str(json.loads(events[-2])["text"])


def is_ready(url: str) -> bool:
    try:
        return bool(get_json(f"{url}/readiness"))
    except urllib.error.HTTPError:
        return False


def asked(worker: SimWorker) -> int:
    """How often the worker was asked `SAY`; the gateway's own questions are not counted."""
    recorded = get_json(f"{worker.url}/sim/requests")
    return sum(str(SAY["text"]) in str(request["body"]) for request in recorded)


def serves(url: str, workers: dict[str, SimWorker]) -> None:
    """Fails unless a whole answer and a stream are those of a regular worker, and a pair gave them."""
    before = {name: asked(worker) for name, worker in workers.items()}
    alone = workers["alone"].url
    for stream in (False, True):
        assert text_of(url, stream=stream) == text_of(alone, stream=stream)
    after = {name: asked(worker) for name, worker in workers.items()}
    new = {name: after[name] - before[name] for name in before}
    assert (new["P1"] + new["P2"], new["D1"] + new["D2"], new["alone"]) == (2, 2, 2)


@pytest.mark.parametrize("line", LINES)
def test_a_published_command_line_starts_and_serves(run: Any, workers: Any, put: Any, line: str) -> None:
    mini = "--mini-lb" in line
    child = run("-m", "sgl_model_gateway.launch_router", *put(line), *HERE.split())
    url = f"http://127.0.0.1:{child.wait_for_line(LISTENING).group(1)}"
    if not mini:
        wait_for(lambda: is_ready(url), f"a worker of each role is ready\n{child.text()}")
    serves(url, workers)
    assert child.end() == (-signal.SIGTERM if mini else 0)


@pytest.mark.parametrize("line", LINES)
def test_a_published_command_line_means_its_pools(workers: Any, put: Any, line: str) -> None:
    args = parse_router_args(put(line))
    known = {worker.url: worker.bootstrap_port for worker in workers.values()}
    assert args.pd_disaggregation and args.worker_urls == []
    assert [url for url, _ in args.prefill_urls] == [workers[name].url for name in ("P1", "P2") if name in line]
    assert args.decode_urls == [workers[name].url for name in ("D1", "D2") if name in line]
    assert [port for _, port in args.prefill_urls] == [
        known[url] if "B1" in line else None for url, _ in args.prefill_urls
    ]


def add(url: str, worker: SimWorker, role: str) -> None:
    body = {"url": worker.url, "worker_type": role, "bootstrap_port": worker.bootstrap_port}
    assert call(url, "POST", "/workers", body)[0] == 202


def test_pools_that_are_empty_at_start_are_filled_later(run: Any, workers: Any) -> None:
    words = f"--pd-disaggregation {HERE} --worker-startup-check-interval 1"
    child: Process = run("-m", "sgl_model_gateway.launch_router", *words.split())
    url = f"http://127.0.0.1:{child.wait_for_line(LISTENING).group(1)}"
    assert not is_ready(url)
    assert call(url, "POST", "/generate", SAY)[0] == 503
    add(url, workers["P1"], "prefill")
    wait_for(lambda: get_json(f"{url}/workers")["workers"][0]["is_healthy"], "the prefill worker is ready")
    assert call(url, "GET", "/readiness")[1]["missing_role"] == "decode"
    add(url, workers["D1"], "decode")
    wait_for(lambda: is_ready(url), "a worker of each role is ready")
    serves(url, workers)
    assert child.end() == 0


def test_router_from_args_serves_pairs(workers: Any) -> None:
    args = RouterArgs(
        host="127.0.0.1",
        port=0,
        prometheus_port=0,
        pd_disaggregation=True,
        prefill_urls=[(workers["P1"].url, workers["P1"].bootstrap_port), (workers["P2"].url, None)],
        decode_urls=[workers["D1"].url, workers["D2"].url],
        prefill_policy="round_robin",
        decode_policy="round_robin",
        log_level="error",
    )
    with Router.from_args(args) as router:
        wait_for(lambda: healthy_workers(router.url) == 4, "all workers ready")
        # Both pairs in turn.
        serves(router.url, workers)
        serves(router.url, workers)


def test_a_port_of_another_worker_is_an_error_and_no_silence(workers: Any) -> None:
    """Nothing listens at the bootstrap port: the client has an answer when the engine gives up."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        free = unused.getsockname()[1]
    with SimWorker(disaggregation_mode="decode", handshake_timeout_s=0.5) as decode:
        args = RouterArgs(
            host="127.0.0.1",
            port=0,
            prometheus_port=0,
            pd_disaggregation=True,
            prefill_urls=[(workers["P1"].url, free)],
            decode_urls=[decode.url],
            disable_retries=True,
            log_level="error",
        )
        with Router.from_args(args) as router:
            wait_for(lambda: is_ready(router.url), "a worker of each role is ready")
            status, answer = call(router.url, "POST", "/generate", SAY)
    assert status == 500 and "Decode handshake failed" in json.dumps(answer)
