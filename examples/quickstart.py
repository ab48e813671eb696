"""A gateway in a script: `python quickstart.py http://gpu-1:30000 http://gpu-2:30000`.

Without arguments it starts two simulated workers, which need no GPU.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack

from sgl_model_gateway import Router
from sgl_model_gateway.sgl_model_gateway_rs import SimWorker


def ask(base_url: str, question: str) -> tuple[str, str]:
    """The answer to a question, and the id of the worker that gave it."""
    body = {"model": "default", "max_tokens": 16, "messages": [{"role": "user", "content": question}]}
    request = urllib.request.Request(
        f"{base_url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        answer = json.load(response)
        return answer["choices"][0]["message"]["content"], response.headers["x-smg-routed-worker-id"]


def wait_until_ready(base_url: str, timeout: float = 600.0) -> None:
    """Returns once a worker is ready; until then requests get 503."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            urllib.request.urlopen(f"{base_url}/readiness", timeout=5).close()
            return
        except urllib.error.HTTPError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def main(worker_urls: list[str]) -> None:
    with ExitStack() as stack:
        if not worker_urls:
            worker_urls = [stack.enter_context(SimWorker()).url for _ in range(2)]
        # Port 0 takes a free port. start_background(), which `with` calls, returns when the gateway listens.
        options = {"policy": "cache_aware", "host": "127.0.0.1", "port": 0, "log_level": "warn"}
        gateway = stack.enter_context(Router(worker_urls=worker_urls, worker_startup_check_interval=1, **options))
        wait_until_ready(gateway.url)
        for number in range(4):
            text, worker = ask(gateway.url, f"Question {number}: what does a gateway do?")
            print(f"{worker}: {text}")


if __name__ == "__main__":
    main(sys.argv[1:])
