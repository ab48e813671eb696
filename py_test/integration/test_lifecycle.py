"""A gateway inside a Python process: start, stop, again, several, threads, ports."""

from __future__ import annotations

import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from support.client import get_json
from support.gateway import healthy_workers
from support.waiting import DEADLINE, wait_for

from sgl_model_gateway.router import Router
from sgl_model_gateway.router_args import RouterArgs
from sgl_model_gateway.sgl_model_gateway_rs import SimWorker

QUIET: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "prometheus_port": 0, "log_level": "error"}
SLOW = {"decode_step_base_ms": 50.0}


def router(**options: Any) -> Router:
    return Router(**({"worker_urls": []} | QUIET | options))


def one_is_ready(url: str) -> bool:
    return healthy_workers(url) == 1


def generate(url: str, tokens: int = 1) -> Any:
    body = f'{{"text": "a", "sampling_params": {{"max_new_tokens": {tokens}, "ignore_eos": true}}}}'
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{url}/generate", body.encode(), headers)
    with urllib.request.urlopen(request, timeout=DEADLINE) as response:
        return response.read()


def is_refused(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return True
    return False


@pytest.fixture
def in_flight(sim_workers: Any) -> Iterator[Callable[[Router], Any]]:
    """Sends a request that takes about `seconds`; returns its future once the worker has it."""
    with ThreadPoolExecutor() as pool:

        def send(gateway: Router, seconds: float = 1.0) -> Any:
            worker = gateway.worker_urls[0]
            before = get_json(f"{worker}/sim/stats")["requests"]
            future = pool.submit(generate, gateway.url, int(seconds / 0.05))
            wait_for(lambda: get_json(f"{worker}/sim/stats")["requests"] > before, "request at the worker")
            return future

        yield send


def test_a_with_block_serves_and_stops(sim_workers: Any) -> None:
    (worker,) = sim_workers(1)
    with router(worker_urls=[worker.url], worker_startup_check_interval=1) as gateway:
        url = gateway.url
        wait_for(lambda: healthy_workers(url) == 1, "worker ready")
        assert b"meta_info" in generate(url)
        assert gateway.running and url in repr(gateway)
    assert not gateway.running and is_refused(url)
    with pytest.raises(RuntimeError, match="not running"):
        _ = gateway.url


def test_a_gateway_starts_again_after_a_stop() -> None:
    gateway = router()
    urls = []
    for _ in range(3):
        assert gateway.start_background() is gateway
        urls.append(gateway.url)
        assert get_json(f"{gateway.url}/workers")["workers"] == []
        assert gateway.stop(DEADLINE) is True
    assert all(map(is_refused, urls))


def test_starting_twice_is_an_error_and_changes_nothing() -> None:
    with router() as gateway:
        for start in (gateway.start, gateway.start_background):
            with pytest.raises(RuntimeError, match="already running"):
                start()
        get_json(f"{gateway.url}/workers")


def test_several_gateways_serve_at_once(sim_workers: Any, gateway: Any) -> None:
    workers = sim_workers(2)
    first, second = gateway([workers[0].url]), gateway([workers[1].url])
    assert first.url != second.url
    generate(first.url)
    first.stop(DEADLINE)
    generate(second.url)
    assert [get_json(f"{worker.url}/sim/stats")["requests"] for worker in workers] == [1, 1]


def test_stopping_what_does_not_run_is_fine() -> None:
    gateway = router()
    assert gateway.stop() is True and gateway.wait() is True and not gateway.running


@pytest.mark.parametrize("timeout", [-1.0, float("nan")])
def test_a_senseless_timeout_is_refused(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        router().stop(timeout)


def test_a_port_in_use_is_a_runtime_error() -> None:
    with router() as first:
        port = int(first.url.rsplit(":", 1)[1])
        second = router(port=port)
        for start in (second.start, second.start_background):
            with pytest.raises(RuntimeError, match=str(port)):
                start()
        assert not second.running
    second.start_background().stop(DEADLINE)


def test_an_unusable_host_is_a_runtime_error() -> None:
    with pytest.raises(RuntimeError, match=r"no\.such\.host\.invalid"):
        router(host="no.such.host.invalid").start_background()


def test_metrics_have_a_url() -> None:
    with router() as gateway:
        assert gateway.metrics_url is not None
        with urllib.request.urlopen(gateway.metrics_url, timeout=DEADLINE) as response:
            assert b"# TYPE smg_" in response.read()


def test_start_blocks_without_the_gil_and_stop_ends_it() -> None:
    gateway = router()
    thread = threading.Thread(target=gateway.start)
    thread.start()
    wait_for(lambda: gateway.running, "gateway running")
    ticks, end = 0, time.monotonic() + 0.2
    while time.monotonic() < end:
        ticks += 1
    assert ticks > 1000, "other threads hardly run"
    get_json(f"{gateway.url}/workers")
    assert gateway.stop(DEADLINE) is True
    thread.join(DEADLINE)
    assert not thread.is_alive()


def test_the_first_stop_lets_requests_finish(sim_workers: Any, gateway: Any, in_flight: Any) -> None:
    (worker,) = sim_workers(1, **SLOW)
    served = gateway([worker.url], shutdown_grace_period_secs=60)
    answer = in_flight(served)
    assert served.stop() is False and served.running
    assert b"meta_info" in answer.result(DEADLINE)
    assert served.wait(DEADLINE) is True


def test_the_second_stop_ends_requests(sim_workers: Any, gateway: Any, in_flight: Any) -> None:
    (worker,) = sim_workers(1, **SLOW)
    served = gateway([worker.url], shutdown_grace_period_secs=60)
    answer = in_flight(served, seconds=50.0)
    assert served.stop() is False
    assert served.wait(0.2) is False
    assert served.stop(5.0) is True
    with pytest.raises((OSError, urllib.error.HTTPError)):
        answer.result(DEADLINE)


def test_from_args_serves_what_the_flags_say(sim_workers: Any) -> None:
    (worker,) = sim_workers(1)
    args = RouterArgs(
        worker_urls=[worker.url], host="127.0.0.1", port=0, prometheus_port=0, policy="random", log_level="error"
    )
    for _ in range(2):
        with Router.from_args(args) as gateway:
            url = gateway.url
            wait_for(partial(one_is_ready, url), "worker ready")
            generate(url)


def test_a_simulated_worker_starts_and_stops_like_a_gateway() -> None:
    worker = SimWorker(port=0, model="m")
    with worker:
        assert get_json(f"{worker.url}/v1/models")["data"][0]["id"] == "m"
        with pytest.raises(RuntimeError, match="already running"):
            worker.start_background()
    assert not worker.running
    with pytest.raises(TypeError, match="Did you mean 'port'"):
        SimWorker(prot=1)
    with pytest.raises(ValueError, match="page_size"):
        SimWorker(page_size=0)


def test_an_abandoned_gateway_is_gone() -> None:
    gateway = router().start_background()
    url = gateway.url
    del gateway
    wait_for(lambda: is_refused(url), "listener closed")
