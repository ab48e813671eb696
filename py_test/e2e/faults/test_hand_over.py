"""A new gateway takes over the port of an old one, and no client notices."""

from __future__ import annotations

import http.client
import json
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from urllib.parse import urlsplit

import requests
from support.client import generate
from support.gateway import Gateway, healthy_workers
from support.ports import free_port
from support.waiting import wait_for

REQUESTS = 5_000
GRACE = 6
BODY = json.dumps(generate(2))
HEADERS = {"content-type": "application/json"}

Ask = Callable[[], int]


@contextmanager
def session(url: str) -> Iterator[Ask]:
    """Keeps its connection; looks before use whether it is still there."""
    with requests.Session() as kept:
        yield lambda: kept.post(f"{url}/generate", data=BODY, headers=HEADERS, timeout=20).status_code


@contextmanager
def bare(url: str) -> Iterator[Ask]:
    """Keeps its connection until the server announces its end."""
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)) as kept:
        yield lambda: post(kept)


@contextmanager
def fresh(url: str) -> Iterator[Ask]:
    """A new connection each time."""

    def ask() -> int:
        with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)) as connection:
            return post(connection)

    yield ask


def post(connection: http.client.HTTPConnection) -> int:
    connection.request("POST", "/generate", BODY, HEADERS)
    with connection.getresponse() as reply:
        reply.read()
        return reply.status


class Crowd:
    """Clients that ask one request after the other until the event is set."""

    def __init__(self, url: str) -> None:
        self.url, self.asked, self.failures = url, 0, []
        self._lock, self._stop = threading.Lock(), threading.Event()

    def run(self, kind: Callable[[str], contextmanager]) -> None:
        with kind(self.url) as ask:
            while not self._stop.is_set():
                self._count(kind.__name__, ask)

    def _count(self, kind: str, ask: Ask) -> None:
        try:
            failure = [] if (status := ask()) == 200 else [(kind, status)]
        except (OSError, http.client.HTTPException) as error:
            failure = [(kind, repr(error))]
        with self._lock:
            self.asked += 1
            self.failures += failure

    def go_home(self) -> None:
        self._stop.set()


def test_a_hand_over_under_load_fails_no_request(workers, gateway, start):
    urls = [worker.url for worker in workers(2)]
    port, flags = free_port(), ["--reuse-port", "--shutdown-grace-period-secs", str(GRACE)]
    old = gateway(urls, *flags, port=port)
    crowd = Crowd(old.url)
    with ThreadPoolExecutor(6) as threads:
        clients = [threads.submit(crowd.run, kind) for kind in (session, bare, fresh) * 2]
        try:
            wait_for(lambda: crowd.asked > REQUESTS / 5, "load on the old gateway")
            new = start(Gateway, urls, *flags, port=port)
            wait_for(lambda: has_served(new), "the new gateway serves")
            old.send(signal.SIGTERM)
            assert old.process.wait(20) == 0
            wait_for(lambda: crowd.asked >= REQUESTS, f"{REQUESTS} requests in all", 60)
        finally:
            crowd.go_home()
        for client in clients:
            client.result()
    assert crowd.failures == []
    assert healthy_workers(new.url) == 2
    new.assert_nothing_left()
    print(f"{crowd.asked} requests, none failed")


def has_served(door: Gateway) -> bool:
    """By its own metrics: on the shared port either may answer."""
    return sum(door.metrics("smg_http_requests_total").values()) > 0
