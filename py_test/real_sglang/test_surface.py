"""Each route of the real SGLang, asked directly and through the gateway: equal bodies, volatile fields aside."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.ports import free_port
from support.sglang import ENVIRONMENT, FLAGS, LOADING, ONLY_WITH_SGLANG, VENV
from support.waiting import wait_for

from sgl_model_gateway.router import Router

pytestmark = ONLY_WITH_SGLANG
GREEDY = {"temperature": 0}
MESSAGES = [{"role": "user", "content": "What is 6 times 7?"}]
CHAT = {"model": "tiny", "messages": MESSAGES, "max_tokens": 6, **GREEDY}
TEXT = {"text": "The capital of France is", "sampling_params": {"max_new_tokens": 6, **GREEDY}}

# Those that change state come last; records of experts end an engine of a model without any, so they are not asked.
# Bodies that SGLang refuses count, too: the refusal is the answer.
ROUTES: list[tuple[str, str, Any]] = [
    ("GET", "/health", None),
    ("GET", "/health_generate", None),
    ("GET", "/ready", None),
    ("GET", "/ping", None),
    ("GET", "/", None),
    ("GET", "/v1/models/tiny", None),
    ("GET", "/v1/models", None),
    ("POST", "/generate", TEXT),
    ("PUT", "/generate", TEXT),
    ("POST", "/generate", {**TEXT, "return_logprob": True}),
    ("POST", "/generate", {**TEXT, "stream": True}),
    ("POST", "/generate", {"input_ids": [[1, 2, 3], [4, 5]], "sampling_params": {"max_new_tokens": 4, **GREEDY}}),
    ("POST", "/generate", {"text": 7}),
    ("POST", "/v1/chat/completions", CHAT),
    ("POST", "/v1/chat/completions", {**CHAT, "stream": True}),
    ("POST", "/v1/chat/completions", {"model": "tiny"}),
    ("POST", "/v1/completions", {"model": "tiny", "prompt": "One, two,", "max_tokens": 5, **GREEDY}),
    ("POST", "/v1/responses", {"model": "tiny", "input": "Say it.", "max_output_tokens": 6, **GREEDY}),
    ("GET", "/v1/responses/resp_none", None),
    ("POST", "/v1/responses/resp_none/cancel", {}),
    ("POST", "/v1/messages", CHAT),
    ("POST", "/v1/messages/count_tokens", {"model": "tiny", "messages": MESSAGES}),
    # One item: two are batched together or not, and the batch shows in the last digits.
    ("POST", "/v1/score", {"model": "tiny", "query": "a", "items": ["b"], "label_token_ids": [5, 6]}),
    ("POST", "/v1/decisions", {"model": "tiny"}),
    ("POST", "/v1/systemone", {"model": "tiny"}),
    ("POST", "/v1/tokenize", {"model": "tiny", "prompt": "one two"}),
    ("POST", "/tokenize", {"model": "tiny", "prompt": "one two"}),
    ("POST", "/v1/detokenize", {"model": "tiny", "tokens": [5, 6, 7]}),
    ("POST", "/detokenize", {"model": "tiny", "tokens": [5, 6, 7]}),
    ("POST", "/v1/embeddings", {"model": "tiny", "input": "x"}),
    ("POST", "/v1/classify", {"model": "tiny", "input": "x"}),
    ("POST", "/encode", {"text": "x"}),
    ("PUT", "/classify", {"text": "x"}),
    ("POST", "/invocations", CHAT),
    (
        "POST",
        "/vertex_generate",
        {"instances": [{"text": "x"}], "parameters": {"sampling_params": {"max_new_tokens": 3, **GREEDY}}},
    ),
    (
        "POST",
        "/api/chat",
        {"model": "tiny", "messages": MESSAGES, "stream": False, "options": {"num_predict": 4, **GREEDY}},
    ),
    (
        "POST",
        "/api/generate",
        {"model": "tiny", "prompt": "x", "stream": False, "options": {"num_predict": 4, **GREEDY}},
    ),
    ("POST", "/api/show", {"model": "tiny"}),
    ("GET", "/api/tags", None),
    ("POST", "/parse_function_call", {"text": "x", "tools": [], "tool_call_parser": "qwen25"}),
    ("GET", "/model_info", None),
    ("GET", "/get_model_info", None),
    ("POST", "/classify", {"text": "x"}),
    ("PUT", "/encode", {"text": "x"}),
    ("POST", "/v1/rerank", {"query": "q", "documents": ["d"]}),
    ("POST", "/open_session", {"capacity_of_str_len": 100}),
    ("POST", "/close_session", {"session_id": "none"}),
    ("GET", "/get_weights_by_name", {"name": "model.norm.weight", "truncate_size": 2}),
    ("GET", "/get_remote_instance_transfer_engine_info?rank=0", None),
    ("GET", "/is_scaling_elastic_ep", None),
    ("POST", "/set_trace_level", {"level": 0}),
    ("POST", "/freeze_gc", None),
    ("POST", "/add_external_corpus", {}),
    ("POST", "/remove_external_corpus", {}),
    ("POST", "/hicache/storage-backend/clear", None),
    ("PUT", "/hicache/storage-backend", {}),
    ("DELETE", "/hicache/storage-backend", None),
    ("POST", "/load_lora_adapter_from_tensors", {}),
    ("POST", "/init_weights_update_group", {}),
    ("POST", "/update_weights_from_tensor", {}),
    ("POST", "/update_weights_from_distributed", {}),
    ("POST", "/update_weights_from_ipc", {}),
    ("POST", "/init_weights_send_group_for_remote_instance", {}),
    ("POST", "/send_weights_to_remote_instance", {}),
    ("GET", "/stop_profile", None),
    ("POST", "/separate_reasoning", {"text": "<think>a</think>b", "reasoning_parser": "deepseek-r1"}),
    ("POST", "/get_weights_by_name", {"name": "model.norm.weight", "truncate_size": 4}),
    ("POST", "/weights_checker", {"action": "none"}),
    ("POST", "/set_internal_state", {"server_args": {}}),
    ("POST", "/configure_logging", {"log_requests": False}),
    ("GET", "/freeze_gc", None),
    ("GET", "/hicache/storage-backend", None),
    ("GET", "/get_hicache_l3_cache_layout", None),
    ("GET", "/list_external_corpora", None),
    ("GET", "/remote_instance_transfer_engine_info?rank=0", None),
    ("POST", "/load_lora_adapter", {"lora_name": "a", "lora_path": "/none"}),
    ("POST", "/unload_lora_adapter", {"lora_name": "a"}),
    ("POST", "/slow_down", {"forward_sleep_time": None}),
    ("POST", "/update_weight_version", {"new_version": "v0", "abort_all_requests": False}),
    ("POST", "/abort_request", {"rid": "none"}),
    ("POST", "/update_weights_from_disk", {"model_path": "/none"}),
    ("POST", "/destroy_weights_update_group", {"group_name": "none"}),
    ("POST", "/pause_generation", {"mode": "in_place"}),
    ("POST", "/continue_generation", {}),
]

# The gateway's own answer in place of the engine's: the status counts.
OWN = {"/health", "/health_generate", "/", "/abort_request", "/v1/models", "/v1/models/tiny", "/model_info"}
OWN |= {"/get_model_info", "/open_session"}  # sessions get names of their own
# Values that differ between two equal questions, anywhere in an answer.
VOLATILE = {
    "id", "created", "created_at", "e2e_latency", "cached_tokens", "cached_tokens_details", "completed_at",
    "modified_at",
    "request_received_ts", "response_sent_to_client_ts", "total_duration", "load_duration", "prompt_eval_duration",
    "eval_duration", "dp_rank", "timestamp", "request_id", "first_token_ts", "queue_time", "decode_throughput",
}  # fmt: skip


def ask(url: str, method: str, path: str, body: Any) -> tuple[int, Any]:
    """Status, and the body without what is volatile."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"content-type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            status, text = response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            status, text = error.code, error.read().decode()
    lines = [settled(line.removeprefix("data: ")) for line in text.splitlines()]
    return status, lines


def settled(text: str) -> Any:
    try:
        return steady(json.loads(text))
    except ValueError:
        return text


def steady(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {name: steady(inner) for name, inner in value.items() if not is_volatile(name)}
        # The gateway masks what is named like a secret.
        return {name: "MASKED" if name.endswith(("api_key", "_token")) else inner for name, inner in kept.items()}
    return [steady(inner) for inner in value] if isinstance(value, list) else value


def is_volatile(name: str) -> bool:
    return name in VOLATILE or name.endswith(("_time", "_ts", "_latency", "_duration"))


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    """An SGLang server, or the one at `SGLANG_URL`."""
    if running := os.environ.get("SGLANG_URL"):
        yield running
        return
    port = free_port()
    command = [f"{VENV}/bin/python", "-m", "sglang.launch_server", "--model-path", f"{VENV}/model", "--port", str(port)]
    command += ["--host", "127.0.0.1", *FLAGS.split()]
    process = subprocess.Popen(command, env={**os.environ, **ENVIRONMENT})
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: is_up(url), "SGLang serves", LOADING)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def is_up(url: str) -> bool:
    try:
        return ask(url, "GET", "/health", None)[0] == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def door(engine: str) -> Iterator[str]:
    with Router(worker_urls=[engine], host="127.0.0.1", port=0, prometheus_port=0, log_level="error") as router:
        wait_for(lambda: ask(router.url, "GET", "/v1/models/tiny", None)[0] == 200, "the model is known", 60)
        yield router.url


@pytest.mark.parametrize(("method", "path", "body"), ROUTES, ids=lambda value: value if isinstance(value, str) else "")
def test_route_answers_through_the_gateway_as_directly(
    engine: str, door: str, method: str, path: str, body: Any
) -> None:
    direct, through = ask(engine, method, path, body), ask(door, method, path, body)
    print(f"{method} {path}: directly {direct[0]}, through the gateway {through[0]}")
    if path in OWN:
        assert through[0] == direct[0]
    elif direct[0] >= 500:
        # The gateway tries again, and says so in its own way if that does not help.
        assert through[0] >= 400
        pytest.skip(f"the engine itself answers {direct[0]}")
    else:
        assert through == direct


def test_weight_update_begun_and_ended_through_the_gateway_answers_as_directly(engine: str, door: str) -> None:
    # SGLang refuses to begin twice, so each way runs a whole update.
    steps = ["/begin_weight_update", "/end_weight_update"]
    direct = [ask(engine, "POST", step, {}) for step in steps]
    through = [ask(door, "POST", step, {}) for step in steps]
    assert [status for status, _ in direct] == [200, 200]
    assert through == direct


def test_weights_change_from_disk_under_traffic(engine: str, door: str) -> None:
    over, statuses, versions = threading.Event(), set(), set()

    def roll_out(number: int) -> None:
        while not over.is_set():
            status, answer = ask(door, "POST", "/generate", {**TEXT, "text": f"Question {number}"})
            statuses.add(status)
            versions.add(answer[0]["meta_info"]["weight_version"])

    with ThreadPoolExecutor(4) as pool:
        rollouts = [pool.submit(roll_out, number) for number in range(4)]
        try:
            wait_for(lambda: statuses, "a first reply", 60)
            body = {"model_path": f"{VENV}/model", "weight_version": "v7"}
            assert ask(door, "POST", "/update_weights_from_disk", body)[0] == 200
            wait_for(lambda: "v7" in versions, "replies of the new weights", 60)
        finally:
            over.set()
        for rollout in rollouts:
            rollout.result(120)
    assert statuses == {200}
    assert ask(door, "GET", "/workers", None)[1][0]["workers"][0]["circuit_breaker"] == "closed"
