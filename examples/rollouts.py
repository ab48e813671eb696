"""RL rollouts through a gateway that lives in a Ray actor.

The trainer's engines come and go, so the gateway starts empty and workers are registered at run time. A rollout's turns
carry one routing key and stay on one worker, where the prefix is cached. After an update of weights the caches hold
results of the old weights: they are flushed through the gateway, which then forgets the prefixes, too.

`python rollouts.py http://gpu-1:30000 ...` runs the gateway in a Ray actor (`pip install ray`). `Gateway` itself does
not need Ray.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from typing import Any

from sgl_model_gateway import Router


class Gateway:
    """A gateway for rollouts. `ray.remote(Gateway).remote()` makes an actor of it."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        # `manual` assigns each routing key to a worker; a new key goes to the worker with the fewest requests.
        options = {"policy": "manual", "assignment_mode": "min_load", "worker_startup_check_interval": 1}
        self._router = Router(worker_urls=[], host=host, port=port, log_level="warn", **options)
        self._router.start_background()

    def url(self) -> str:
        """Where rollout processes send requests."""
        return str(self._router.url)

    def add_workers(self, urls: list[str], timeout: float = 600.0) -> None:
        """Registers engines and waits until they are ready."""
        for url in urls:
            self._call("POST", "/workers", {"url": url})
        deadline = time.monotonic() + timeout
        while missing := set(urls) - {it["url"] for it in self._workers() if it["is_healthy"]}:
            if time.monotonic() > deadline:
                raise TimeoutError(f"not ready within {timeout:.0f} s: {sorted(missing)}")
            time.sleep(0.1)

    def remove_workers(self, urls: list[str]) -> None:
        """Takes engines out; what they have in flight may finish (`worker_drain_timeout_secs`)."""
        for worker in self._workers():
            if worker["url"] in urls:
                self._call("DELETE", f"/workers/{worker['id']}")

    def weights_updated(self) -> int:
        """Flushes the prefix caches of all engines; how many did."""
        return int(self._call("POST", "/flush_cache")["workers_flushed"])

    def stop(self) -> None:
        self._router.stop()

    def _workers(self) -> list[dict[str, Any]]:
        workers: list[dict[str, Any]] = self._call("GET", "/workers")["workers"]
        return workers

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{self._router.url}{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)


def rollout(gateway_url: str, name: str, turns: int) -> list[str]:
    """A conversation of some turns; the worker of each turn."""
    text, workers = f"Task {name}. ", []
    for turn in range(turns):
        body = {"text": text, "sampling_params": {"max_new_tokens": 16, "temperature": 1.0}}
        headers = {"content-type": "application/json", "x-smg-routing-key": name}
        request = urllib.request.Request(f"{gateway_url}/generate", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=600) as response:
            text += json.load(response)["text"] + f" Observation {turn}. "
            workers.append(response.headers["x-smg-routed-worker-id"])
    return workers


def main(worker_urls: list[str]) -> None:
    import ray

    ray.init()
    gateway = ray.remote(Gateway).remote()
    ray.get(gateway.add_workers.remote(worker_urls))
    url = ray.get(gateway.url.remote())
    rollouts = [ray.remote(rollout).remote(url, f"rollout-{number}", 4) for number in range(8)]
    for number, workers in enumerate(ray.get(rollouts)):
        print(f"rollout-{number}: {len(set(workers))} worker")
    print("flushed", ray.get(gateway.weights_updated.remote()))
    ray.get(gateway.stop.remote())


if __name__ == "__main__":
    main(sys.argv[1:])
