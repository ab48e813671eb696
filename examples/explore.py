"""Cells (`# %%`) for Jupyter, VS Code or Spyder: where requests go, and why. Simulated workers, no GPU."""

# %% A fleet of three simulated workers, and a gateway in front of it
from __future__ import annotations

import json
import time
import urllib.request
from typing import Any

from sgl_model_gateway import Router
from sgl_model_gateway.sgl_model_gateway_rs import SimWorker

workers = [SimWorker(prefill_tokens_per_sec=20_000.0).start_background() for _ in range(3)]
gateway = Router(
    worker_urls=[worker.url for worker in workers],
    policy="cache_aware",
    host="127.0.0.1",
    port=0,
    prometheus_port=0,
    worker_startup_check_interval=1,
    log_level="warn",
).start_background()


def call(path: str, body: dict[str, Any] | None = None, **headers: str) -> tuple[Any, dict[str, str]]:
    """A reply's JSON and headers; POST with a body, else GET."""
    data = None if body is None else json.dumps(body).encode()
    named = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    with urllib.request.urlopen(urllib.request.Request(gateway.url + path, data, named), timeout=30) as response:
        return json.load(response), dict(response.headers)


def chat(content: str) -> dict[str, Any]:
    return {"model": "sim-model", "max_tokens": 8, "messages": [{"role": "user", "content": content}]}


while call("/workers")[0]["total"] < 3 or not all(it["is_healthy"] for it in call("/workers")[0]["workers"]):
    time.sleep(0.05)

# %% The same long prompt twice: the second request follows the first to the worker that has the prefix
document = "The quick brown fox jumps over the lazy dog. " * 200
for question in ("Summarise.", "Translate."):
    _, headers = call("/v1/chat/completions", chat(f"{document} {question}"), x_smg_explain="1")
    print({name: value for name, value in headers.items() if name.startswith("x-smg-")})

# %% What the gateway would do with a request: every worker with its cost; nothing is sent
explanation, _ = call("/route/explain", chat(f"{document} Criticise."))
for candidate in explanation["candidates"]:
    print(candidate["worker"], "matched", candidate["matched_tokens"], "new", candidate["new_tokens"])

# %% The last decisions
decisions, _ = call("/debug/decisions")
for decision in decisions["decisions"]:
    print(decision["worker"], decision["policy"], decision["matched_tokens"], "of", decision["prompt_tokens"])

# %% Metrics, as Prometheus reads them
with urllib.request.urlopen(str(gateway.metrics_url), timeout=10) as response:
    lines = response.read().decode().splitlines()
print("\n".join(line for line in lines if line.startswith("smg_router_requests_total")))

# %% The end
gateway.stop()
for worker in workers:
    worker.stop()
