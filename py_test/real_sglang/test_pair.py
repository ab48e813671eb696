"""A real prefill engine and a real decode engine behind the gateway, beside one engine that does both."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.answers import outcome
from support.ports import free_port
from support.sglang import ENVIRONMENT, FLAGS, LOADING, ONLY_WITH_SGLANG, VENV
from support.waiting import wait_for

from sgl_model_gateway.router import Router
from sgl_model_gateway.router_args import RouterArgs

pytestmark = ONLY_WITH_SGLANG
GREEDY = {"temperature": 0}
MESSAGES = [{"role": "user", "content": "What is 6 times 7?"}]
CHAT = {"model": "tiny", "messages": MESSAGES, "max_tokens": 6, **GREEDY}
SAMPLING = {"max_new_tokens": 6, **GREEDY}
LONG = "x " * 9000
# `headers` has no other form to fall back to.
FORMS = ["body", "headers"]
LOGPROBS = {"return_logprob": True, "logprob_start_len": 0, "sampling_params": SAMPLING}

# Each is asked whole and as a stream.
REQUESTS: list[tuple[str, Any]] = [
    ("/generate", {"text": "The capital of France is", "sampling_params": SAMPLING}),
    ("/generate", {"text": ["The capital", "of France is"], "sampling_params": SAMPLING}),
    ("/generate", {"input_ids": [1, 5, 7, 9], "sampling_params": SAMPLING}),
    ("/generate", {"text": "Logs", "return_logprob": True, "sampling_params": SAMPLING}),
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 2}),
    ("/v1/completions", {"model": "tiny", "prompt": "Once upon", "max_tokens": 6, **GREEDY}),
    ("/v1/completions", {"model": "tiny", "prompt": ["Once upon", "a time"], "max_tokens": 6, **GREEDY}),
    ("/v1/completions", {"model": "tiny", "prompt": "Once upon", "max_tokens": 6, "logprobs": 2, **GREEDY}),
    ("/v1/messages", {"model": "tiny", "messages": MESSAGES, "max_tokens": 6, **GREEDY}),
    # A pair is asked for each of them.
    ("/generate", {"text": "Twice", "sampling_params": {**SAMPLING, "n": 2}}),
    ("/generate", {"text": ["Two", "prompts"], "sampling_params": {**SAMPLING, "n": 2}}),
    ("/v1/chat/completions", {**CHAT, "n": 3}),
    ("/v1/completions", {"model": "tiny", "prompt": ["Once", "a time"], "n": 2, "max_tokens": 6, **GREEDY}),
    # Only the prefill worker has these of the prompt.
    ("/generate", {"text": "Of the prompt", **LOGPROBS}),
    ("/generate", {"text": ["Of the", "prompts"], **LOGPROBS, "top_logprobs_num": 2}),
    ("/generate", {"text": "Some tokens", **LOGPROBS, "token_ids_logprob": [1, 5]}),
    (
        "/v1/completions",
        {"model": "tiny", "prompt": "Once upon", "echo": True, "logprobs": 2, "max_tokens": 4, **GREEDY},
    ),
    ("/generate", {"text": LONG, "sampling_params": SAMPLING}),
    ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": LONG}]}),
    ("/generate", {"text": "x", "sampling_params": {"max_new_tokens": -8}}),
    # A wrong room would end a real engine.
    ("/generate", {"text": "Steered", "bootstrap_room": [1, 2], "bootstrap_host": [""], "sampling_params": SAMPLING}),
]


class Engine:
    """A real engine on a port of its own; started at once."""

    def __init__(self, *flags: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.command = [f"{VENV}/bin/python", "-m", "sglang.launch_server", "--model-path", f"{VENV}/model"]
        self.command += ["--port", str(self.port), "--host", "127.0.0.1", *FLAGS.split(), *flags]
        self.start()

    def start(self) -> None:
        environment = {**os.environ, **ENVIRONMENT, "SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT": "30"}
        environment["SGLANG_ENABLE_REQUEST_HEADER_OVERRIDES"] = "1"
        self.process = subprocess.Popen(self.command, env=environment, start_new_session=True)

    def wait(self) -> None:
        wait_for(lambda: status(self.url, "/ready") == 200, f"{self.url} serves", LOADING)

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def running(self) -> int:
        """Requests that run or wait."""
        _, answer = ask(self.url, "/v1/loads?include=core", None)
        return sum(load["num_running_reqs"] + load["num_waiting_reqs"] for load in json.loads(answer)["loads"])


class Gateway:
    """A gateway in this process."""

    def __init__(self, workers: list[str], pd_metadata: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        args = RouterArgs(
            worker_urls=workers,
            host="127.0.0.1",
            port=port,
            prometheus_port=free_port(),
            pd_metadata=pd_metadata,
        )
        self.router = Router.from_args(args)
        self.thread = threading.Thread(target=self.router.start, daemon=True)

    def start(self) -> None:
        self.thread.start()
        wait_for(lambda: self.healthy() == 2, "the pair is ready", LOADING)

    def healthy(self) -> int:
        try:
            return int(json.loads(ask(self.url, "/readiness", None)[1]).get("healthy_workers", 0))
        except OSError:
            return 0


class Pair:
    """A prefill engine, a decode engine, and gateways in front of them."""

    def __init__(self) -> None:
        transfer = ["--disaggregation-transfer-backend", "mooncake_tcp"]
        ports = ["--disaggregation-bootstrap-port", str(free_port())]
        memory = ["--disaggregation-decode-retraction-backup", "cpu_tensor"]
        self.prefill = Engine("--disaggregation-mode", "prefill", *transfer, *ports)
        self.decode = Engine("--disaggregation-mode", "decode", *transfer, *memory)
        self.one = Engine()
        # Roles and the bootstrap port are what the engines report.
        workers = [self.prefill.url, self.decode.url]
        self.gateways = {form: Gateway(workers, form) for form in FORMS}
        self.url = self.gateways["body"].url

    def start(self) -> None:
        for engine in (self.prefill, self.decode, self.one):
            engine.wait()
        for gateway in self.gateways.values():
            gateway.start()

    def end(self) -> None:
        for engine in (self.prefill, self.decode, self.one):
            engine.kill()


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    running = Pair()
    try:
        running.start()
        yield running
    finally:
        running.end()


def ask(url: str, path: str, body: Any, limit: float = 60.0) -> tuple[int, str]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=limit) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def status(url: str, path: str) -> int:
    try:
        return ask(url, path, None, 5.0)[0]
    except OSError:
        return 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("path", "body"), REQUESTS)
def test_pair_answers_as_one_engine_does(pair: Pair, path: str, body: Any, stream: bool, form: str) -> None:
    body = {**body, "stream": stream}
    own = {key: value for key, value in body.items() if not key.startswith("bootstrap_")}
    cumulative = path == "/generate"
    url = pair.gateways[form].url
    assert outcome(ask(url, path, body), cumulative) == outcome(ask(pair.one.url, path, own), cumulative)


def test_many_requests_at_once_are_answered_as_one_engine_answers_them(pair: Pair) -> None:
    def both(number: int) -> tuple[Any, Any]:
        body = {"text": f"Question {number}", "sampling_params": SAMPLING, "stream": number % 2 == 0}
        answers = [outcome(ask(url, "/generate", body), True) for url in (pair.url, pair.one.url)]
        return answers[0], answers[1]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(both, range(100)))
    assert all(one == other for one, other in answers)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("text", ["Long", ["Long", "Longer"]], ids=["one", "list"])
def test_client_that_leaves_ends_both_legs(pair: Pair, form: str, text: Any) -> None:
    body = {"text": text, "sampling_params": {"max_new_tokens": 1900, "ignore_eos": True}}
    with pytest.raises(TimeoutError):
        ask(pair.gateways[form].url, "/generate", body, 0.6)
    left = time.monotonic()
    wait_for(lambda: pair.decode.running() + pair.prefill.running() == 0, "both engines are free", 3.0)
    assert time.monotonic() - left < 2


def asked_while_killing(pair: Pair, victim: Engine, path: str, body: Any) -> None:
    """A worker of the pair is killed while decode has the request; the client reads of it within two seconds."""
    killed = 0.0

    def kill() -> None:
        nonlocal killed
        wait_for(lambda: pair.decode.running() > 0, "decode has the request", 10.0)
        killed = time.monotonic()
        victim.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    code, _ = ask(pair.url, path, body)
    ended = time.monotonic()
    thread.join()
    assert code in (502, 503)
    assert ended - killed < 2
    other = pair.decode if victim is pair.prefill else pair.prefill
    wait_for(lambda: other.running() == 0, "the other engine is free", 2.0)
    victim.start()
    victim.wait()
    wait_for(lambda: ask(pair.url, *REQUESTS[0])[0] == 200, "the pair serves again", 60.0)


def test_killed_decode_worker_is_an_error_at_once_and_frees_prefill(pair: Pair) -> None:
    body = {"text": "Long", "sampling_params": {"max_new_tokens": 1900, "ignore_eos": True}}
    asked_while_killing(pair, pair.decode, "/generate", body)


def test_killed_prefill_worker_is_an_error_at_once_and_frees_decode(pair: Pair) -> None:
    # A paused engine holds what it is sent.
    ask(pair.prefill.url, "/pause_generation", {"mode": "in_place"})
    asked_while_killing(pair, pair.prefill, *REQUESTS[0])
