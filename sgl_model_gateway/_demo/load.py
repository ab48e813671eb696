"""The demo's load: a few kinds of requests, sent by a few clients, and a table of what went where."""

from __future__ import annotations

import http.client
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

MODEL = "sim-model"
KINDS = ("chat stream", "generate", "embeddings")
PAIR_KINDS = ("chat stream", "generate", "completions")  # pairs serve no embeddings
_CLIENTS = 8
_TIMEOUT = 60.0
_SYSTEM = "You are a helpful assistant that answers in short, complete sentences. " * 8
_QUESTIONS = ("What is a gateway?", "Why is the sky blue?", "How do trains stay on rails?", "Where is Weimar?")


@dataclass(frozen=True)
class Server:
    """A worker of the demo: its role is empty, or prefill or decode; prefill ones have a bootstrap port."""

    url: str
    role: str = ""
    bootstrap_port: int | None = None


@dataclass
class Result:
    """One answered request."""

    kind: str
    request_id: str
    tokens_in: int
    tokens_out: int
    first_token: float | None  # seconds; streams only


def call(base: str, method: str, path: str, body: object = None, request_id: str = "") -> http.client.HTTPResponse:
    """One HTTP exchange up to the response's headers."""
    connection = http.client.HTTPConnection(urlsplit(base).netloc, timeout=_TIMEOUT)
    headers = {"content-type": "application/json", "connection": "close"}
    if request_id:
        headers["x-request-id"] = request_id
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(f"{method} {path}: {response.status} {response.read().decode(errors='replace')}")
    return response


def _chat_stream(base: str, request_id: str, question: str) -> Result:
    messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": question}]
    body = {"model": MODEL, "messages": messages, "max_tokens": 48, "stream": True}
    body["stream_options"] = {"include_usage": True}
    started, first = time.monotonic(), None
    usage: dict[str, int] = {}
    for event in _events(call(base, "POST", "/v1/chat/completions", body, request_id)):
        if first is None and any(choice["delta"].get("content") for choice in event["choices"]):
            first = time.monotonic() - started
        usage = event.get("usage") or usage
    return Result("chat stream", request_id, usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0), first)


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in response:
        data = line.decode().strip().removeprefix("data: ")
        if data and data != "[DONE]":
            yield json.loads(data)


def _generate(base: str, request_id: str, question: str) -> Result:
    body = {"text": _SYSTEM + question, "sampling_params": {"max_new_tokens": 24}}
    meta = json.load(call(base, "POST", "/generate", body, request_id))["meta_info"]
    return Result("generate", request_id, meta["prompt_tokens"], meta["completion_tokens"], None)


def _embeddings(base: str, request_id: str, question: str) -> Result:
    body = {"model": MODEL, "input": [question, _SYSTEM]}
    usage = json.load(call(base, "POST", "/v1/embeddings", body, request_id))["usage"]
    return Result("embeddings", request_id, usage["prompt_tokens"], 0, None)


def _completion(base: str, request_id: str, question: str) -> Result:
    body = {"model": MODEL, "prompt": _SYSTEM + question, "max_tokens": 32}
    usage = json.load(call(base, "POST", "/v1/completions", body, request_id))["usage"]
    return Result("completions", request_id, usage["prompt_tokens"], usage["completion_tokens"], None)


_SENDERS = {
    "chat stream": _chat_stream,
    "generate": _generate,
    "embeddings": _embeddings,
    "completions": _completion,
}


def send(base: str, count: int, progress: Callable[[int], None], kinds: tuple[str, ...] = KINDS) -> list[Result]:
    """Sends `count` requests of `kinds` in turn; `progress` is called with the number done."""

    def one(number: int) -> Result:
        sender = _SENDERS[kinds[number % len(kinds)]]
        return sender(base, f"demo-{number}", f"{_QUESTIONS[number % 4]} ({number})")

    results: list[Result] = []
    with ThreadPoolExecutor(_CLIENTS) as clients:
        for result in clients.map(one, range(count)):
            results.append(result)
            progress(len(results))
    return results


class Progress:
    """A bar on a terminal, a few plain lines elsewhere."""

    def __init__(self, total: int, width: int = 40) -> None:
        self._total, self._width = total, width
        self._live = sys.stdout.isatty()
        self._printed = 0

    def __call__(self, done: int) -> None:
        if self._live:
            filled = self._width * done // self._total
            end = "\n" if done == self._total else ""
            print(f"\r[{'#' * filled:.<{self._width}}] {done}/{self._total}", end=end, flush=True)
        elif done * 4 // self._total > self._printed:
            self._printed = done * 4 // self._total
            print(f"{done}/{self._total} requests answered", flush=True)


def served_by(workers: list[Server]) -> dict[Server, set[str]]:
    """The ids of the requests that each worker got, from the workers' own records."""
    found: dict[Server, set[str]] = {worker: set() for worker in workers}
    for worker in workers:
        for record in json.load(call(worker.url, "GET", "/sim/requests")):
            found[worker] |= {value for name, value in record["headers"] if name == "x-request-id"}
    return found


def table(results: list[Result], served: dict[Server, set[str]], kinds: tuple[str, ...] = KINDS) -> str:
    """What went where: a row per worker and one for all.

    In pairs two workers have a request: the one has its prompt, the other its output.
    """
    rows: list[tuple[str, ...]] = [("worker", *kinds, "tokens in", "tokens out", "first token p50")]
    for worker, ids in served.items():
        row = _row([result for result in results if result.request_id in ids], kinds)
        hidden = {"prefill": (-2, -1), "decode": (-3,)}.get(worker.role, ())
        cells = ["-" if at - len(row) in hidden else cell for at, cell in enumerate(row)]
        rows.append((f"{worker.url} {worker.role}".rstrip(), *cells))
    rows.append(("all", *_row(results, kinds)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _row(results: list[Result], kinds: tuple[str, ...]) -> tuple[str, ...]:
    counts = (str(sum(result.kind == kind for result in results)) for kind in kinds)
    tokens = (f"{sum(values):,}" for values in ([r.tokens_in for r in results], [r.tokens_out for r in results]))
    first = [result.first_token for result in results if result.first_token is not None]
    return (*counts, *tokens, f"{statistics.median(first) * 1000:.0f} ms" if first else "-")
