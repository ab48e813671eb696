"""A gateway as a process, and what it reports of itself."""

from __future__ import annotations

import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from typing import Any

from .client import get_json
from .process import Process
from .waiting import DEADLINE, wait_for


def healthy_workers(url: str) -> int:
    """How many workers a gateway considers ready; reads a route that needs no key."""
    try:
        return int(get_json(f"{url}/readiness")["healthy_workers"])
    except urllib.error.HTTPError:
        return 0


class Gateway(Process):
    """A gateway started from the command line; its log is JSON."""

    def __init__(self, worker_urls: Iterable[str], *flags: str, port: int = 0, python: str = sys.executable) -> None:
        fixed = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-host", "127.0.0.1"]
        fixed += ["--prometheus-port", "0", "--json-log", "--worker-startup-check-interval", "1"]
        module = "sgl_model_gateway.launch_router"
        named = list(worker_urls)
        workers = ["--worker-urls", *named] if named else []
        super().__init__("-m", module, *fixed, *flags, *workers, python=python)
        said = self.wait_for_start(r'gateway listening.*"addr":"([^"]+)".*"metrics":"Some\(([^)]+)\)')
        self.url, self.metrics_url = (f"http://{address}" for address in said.groups())

    def wait_ready(self, count: int) -> Gateway:
        wait_for(lambda: self._ready() >= count, f"{count} workers ready")
        return self

    def _ready(self) -> int:
        try:
            return healthy_workers(self.url)
        except urllib.error.URLError:
            return 0  # a shared port is listened on once a worker is ready

    def workers(self) -> list[dict[str, Any]]:
        return get_json(f"{self.url}/workers")["workers"]

    def worker(self, url: str) -> dict[str, Any]:
        return next(worker for worker in self.workers() if worker["url"] == url)

    def load(self) -> int:
        """Requests in flight, as the gateway counts them."""
        return sum(worker["load"] for worker in self.workers())

    def limits(self) -> dict[str, Any]:
        return get_json(f"{self.url}/debug/limits")

    def decisions(self) -> list[tuple[float, str]]:
        """When (`time.monotonic`) and for which worker the last decisions were taken, retries included.

        The time is a lower bound: ages are counted from the question, because reading a long answer takes time.
        """
        asked = time.monotonic()
        answer = get_json(f"{self.url}/debug/decisions?limit=100000")
        decisions = answer["decisions"] if isinstance(answer, dict) else answer
        return [(asked - decision["age_secs"], decision["worker"]) for decision in decisions]

    def metrics(self, name: str) -> dict[str, float]:
        """A metric's samples by their labels, as written."""
        with urllib.request.urlopen(f"{self.metrics_url}/metrics", timeout=DEADLINE) as response:
            page = response.read().decode()
        found = re.findall(rf"^{name}(\{{.*\}})? (\S+)$", page, re.MULTILINE)
        return {labels: float(value) for labels, value in found}

    def assert_nothing_left(self) -> None:
        """Alive, no panic, and no request counted anywhere."""
        wait_for(lambda: self.load() == 0, "every worker's load back at 0")
        limits = self.limits()
        assert (limits["queued"], limits["queued_for_a_worker"]) == (0, 0)
        assert limits["concurrent_requests"] in (None, 0)
        assert not [line for line in self.lines if "panicked" in line]
