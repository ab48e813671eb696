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
_CLIENTS = 8
_TIMEOUT = 60.0
_SYSTEM = "You are a helpful assistant that answers in short, complete sentences. " * 8
_QUESTIONS = ("What is a gateway?", "Why is the sky blue?", "How do trains stay on rails?", "Where is Weimar?")


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
    return Result(KINDS[0], request_id, usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0), first)


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in response:
        data = line.decode().strip().removeprefix("data: ")
        if data and data != "[DONE]":
            yield json.loads(data)


def _generate(base: str, request_id: str, question: str) -> Result:
    body = {"text": _SYSTEM + question, "sampling_params": {"max_new_tokens": 24}}
    meta = json.load(call(base, "POST", "/generate", body, request_id))["meta_info"]
    return Result(KINDS[1], request_id, meta["prompt_tokens"], meta["completion_tokens"], None)


def _embeddings(base: str, request_id: str, question: str) -> Result:
    body = {"model": MODEL, "input": [question, _SYSTEM]}
    usage = json.load(call(base, "POST", "/v1/embeddings", body, request_id))["usage"]
    return Result(KINDS[2], request_id, usage["prompt_tokens"], 0, None)


def send(base: str, count: int, progress: Callable[[int], None]) -> list[Result]:
    """Sends `count` requests of mixed kinds; `progress` is called with the number done."""
    senders = (_chat_stream, _generate, _embeddings)

    def one(number: int) -> Result:
        return senders[number % len(senders)](base, f"demo-{number}", f"{_QUESTIONS[number % 4]} ({number})")

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


def served_by(workers: list[str]) -> dict[str, str]:
    """Which worker got which request, from the workers' own records."""
    homes = {}
    for worker in workers:
        for record in json.load(call(worker, "GET", "/sim/requests")):
            for name, value in record["headers"]:
                if name == "x-request-id":
                    homes[value] = worker
    return homes


def table(results: list[Result], homes: dict[str, str], workers: list[str]) -> str:
    """What went where: a row per worker and one for all."""
    rows: list[tuple[str, ...]] = [("worker", *KINDS, "tokens in", "tokens out", "first token p50")]
    for worker in workers:
        rows.append((worker, *_row([result for result in results if homes.get(result.request_id) == worker])))
    rows.append(("all", *_row(results)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _row(results: list[Result]) -> tuple[str, ...]:
    counts = (str(sum(result.kind == kind for result in results)) for kind in KINDS)
    tokens = (f"{sum(values):,}" for values in ([r.tokens_in for r in results], [r.tokens_out for r in results]))
    first = [result.first_token for result in results if result.first_token is not None]
    return (*counts, *tokens, f"{statistics.median(first) * 1000:.0f} ms" if first else "-")
