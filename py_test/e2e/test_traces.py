"""Traces in a real collector: from the client's span to what the worker is named, and whatever the collector does."""

from __future__ import annotations

import asyncio
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support.client import Client, Reply, ask_all, generate, get_json
from support.gateway import Gateway
from support.rotel import Rotel, agent
from support.waiting import wait_for

pytestmark = pytest.mark.skipif(agent() is None, reason="rotel is not installed")

STREAMS = 300
SPAN = "b7ad6b7169203331"


def traceparent(number: int) -> str:
    return f"00-{number + 1:032x}-{SPAN}-01"


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[Callable[..., Rotel]]:
    """`collector(port)`: a collector, on this port for gRPC."""
    with ExitStack() as stack:

        def start(grpc_port: int = 0) -> Rotel:
            rotel = Rotel(tmp_path, grpc_port)
            stack.callback(rotel.destroy)
            return rotel

        yield start


@contextmanager
def traced(worker_url: str, endpoint: str, *flags: str) -> Iterator[Gateway]:
    """A gateway that sends its traces there."""
    door = Gateway([worker_url], "--enable-trace", "--otlp-traces-endpoint", endpoint, *flags)
    try:
        yield door.wait_ready(1)
    finally:
        door.destroy()


def results(door: Gateway) -> dict[str, int]:
    """Traced requests by what became of their spans."""
    found = door.metrics("smg_traces_total")
    return {labels.split('"')[1]: int(value) for labels, value in found.items()}


def ask(url: str, count: int, at_once: int = 1) -> list[Reply]:
    async def all_of_them() -> list[Reply]:
        async with Client(url) as client:
            return await ask_all(client, (generate() for _ in range(count)), at_once)

    replies = asyncio.run(all_of_them())
    assert all(reply.ok for reply in replies)
    return replies


def test_traces_of_300_streams_arrive_from_client_to_worker(sim_workers, collector):
    worker = sim_workers(1, decode_step_base_ms=10.0, max_running_requests=STREAMS, record_requests=2 * STREAMS)[0]
    rotel = collector()

    async def streams(url: str) -> list[Reply]:
        async with Client(url) as client:
            body = generate(20, stream=True)
            asked = (client.ask(body, headers={"traceparent": traceparent(number)}) for number in range(STREAMS))
            return await asyncio.gather(*asked)

    with traced(worker.url, rotel.grpc) as door:
        replies = asyncio.run(streams(door.url))
        assert all(reply.finished_stream() for reply in replies)
        wait_for(lambda: results(door)["sent"] == STREAMS, "all traces sent")
        wait_for(lambda: len(rotel.spans()) == 2 * STREAMS, "all spans at the collector")
        assert results(door) == {"sent": STREAMS, "queue_full": 0, "not_sent": 0}
    spans = rotel.spans()
    requests = {span.trace: span for span in spans if span.name == "POST /generate"}
    attempts = {span.trace: span for span in spans if span.name == "attempt /generate"}
    assert len(requests) == len(attempts) == STREAMS
    assert {span.parent for span in requests.values()} == {SPAN}
    assert all(span.parent == requests[trace].id for trace, span in attempts.items())
    assert all(span.start <= attempts[trace].start <= attempts[trace].end for trace, span in requests.items())
    named = [
        dict(request["headers"])["traceparent"]
        for request in get_json(f"{worker.url}/sim/requests")
        if request["method"] == "POST"
    ]
    assert sorted(named) == sorted(f"00-{trace}-{span.id}-01" for trace, span in attempts.items())


def test_collector_that_dies_and_comes_back_slows_no_request_and_gets_what_waited(sim_workers, collector):
    worker = sim_workers(1)[0]
    rotel = collector()
    with traced(worker.url, rotel.grpc) as door:
        took = {}
        for phase in ("up", "away", "back"):
            if phase == "away":
                rotel.destroy()
            if phase == "back":
                rotel = collector(rotel.grpc_port)
            took[phase] = [reply.took for reply in ask(door.url, 300)]
        medians = {phase: statistics.median(times) for phase, times in took.items()}
        assert max(medians.values()) < 2 * medians["up"] + 0.002, medians
        assert max(max(times) for times in took.values()) < 1.0
        wait_for(lambda: sum(results(door).values()) == 900, "every trace counted")
        counted = results(door)
        assert counted["queue_full"] == 0
        # What was in the connection when the collector died may be lost, and is counted.
        assert counted["sent"] >= 900 - 64
        wait_for(lambda: len(rotel.spans()) >= 600, "spans of the second collector")


def test_stop_waits_for_a_collector_that_hangs_for_two_seconds_at_most(sim_workers, collector):
    worker = sim_workers(1)[0]
    rotel = collector()
    with traced(worker.url, rotel.grpc) as door:
        rotel.send(signal.SIGSTOP)
        replies = ask(door.url, 200, at_once=20)
        assert max(reply.took for reply in replies) < 1.0
        begun = time.monotonic()
        assert door.end() == 0
        assert time.monotonic() - begun < 2.5


def test_traces_go_over_http_with_names_and_headers_of_the_environment(sim_workers, collector, monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "front-door")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=blue")
    worker = sim_workers(1)[0]
    rotel = collector()
    with traced(worker.url, rotel.http) as door:
        ask(door.url, 1)
        wait_for(lambda: len(rotel.spans()) == 2, "the spans")
    resource = rotel.resource()
    assert (resource["service.name"], resource["deployment.environment"]) == ("front-door", "test")
    headers: list[dict[str, str]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            headers.append({name.lower(): value for name, value in self.headers.items()})
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with traced(worker.url, f"http://127.0.0.1:{server.server_port}/v1/traces") as door:
            ask(door.url, 1)
            wait_for(lambda: headers, "a batch")
        server.shutdown()
    assert headers[0]["x-tenant"] == "blue"
    assert headers[0]["content-type"] == "application/x-protobuf"
