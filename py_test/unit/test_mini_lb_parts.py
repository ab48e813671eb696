"""The debug balancer's parts, and what it says when something is missing."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from typing import Any
from unittest.mock import Mock, patch

import pytest

from sgl_model_gateway import mini_lb
from sgl_model_gateway.mini_lb import MiniLoadBalancer, _get_request_batch_size, maybe_wrap_ipv6_address
from sgl_model_gateway.router_args import RouterArgs


def arguments(**options: Any) -> RouterArgs:
    pair = {"prefill_urls": [("http://p1:8000", 9000), ("http://p2:8000", None)], "decode_urls": ["http://d:8001"]}
    return RouterArgs(**({"pd_disaggregation": True} | pair | options))


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    code = """
import sys
import sgl_model_gateway.mini_lb
from sgl_model_gateway import launch_router
launch_router.MiniLoadBalancer
assert not {"fastapi", "uvicorn", "aiohttp", "starlette"} & set(sys.modules)
app = sgl_model_gateway.mini_lb.app
assert app.title == "MiniLB" and app is sgl_model_gateway.mini_lb.app
assert sgl_model_gateway.mini_lb.lb is None
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("module", ["fastapi", "uvicorn", "aiohttp"])
def test_a_missing_package_is_named_with_its_install_command(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", Mock())
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RuntimeError, match=rf"needs {module}, .*pip install 'sgl-model-gateway\[mini-lb\]'"):
        MiniLoadBalancer(arguments()).start()
    mini_lb.lb = None
    with pytest.raises(AttributeError, match="nothing"):
        _ = mini_lb.nothing


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"pd_disaggregation": False}, "PD disaggregation"),
        ({"prefill_urls": []}, "at least one prefill and one decode"),
        ({"decode_urls": []}, "at least one prefill and one decode"),
        ({"api_key": "k"}, "--api-key"),
        ({"prefill_urls": [("p1:8000", None)]}, "--prefill: 'p1:8000' is not"),
        ({"decode_urls": ["http://"]}, "--decode: 'http://' is not"),
    ],
)
def test_options_it_cannot_work_with_are_refused_by_name(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        MiniLoadBalancer(arguments(**options))


def test_only_the_policy_is_changed_and_ignored_options_are_named(caplog: pytest.LogCaptureFixture) -> None:
    args = arguments(policy="cache_aware", queue_size=7, log_level="info", prometheus_host="0.0.0.0")
    before = vars(args).copy()
    balancer = MiniLoadBalancer(args)
    assert vars(args) == before | {"policy": "random"}
    balancer.decode_urls.clear()
    assert args.decode_urls == ["http://d:8001"]
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 3
    assert caplog.records[-1].message == "MiniLB ignores --queue-size"


def test_a_slash_at_the_end_of_a_url_is_no_part_of_paths() -> None:
    balancer = MiniLoadBalancer(arguments(prefill_urls=[("http://p:1/", None)], decode_urls=["http://d:1/"]))
    assert (balancer.prefill_urls, balancer.decode_urls) == (["http://p:1"], ["http://d:1"])


def test_pairs_are_random_and_keep_their_port() -> None:
    pairs = {MiniLoadBalancer(arguments()).select_pair() for _ in range(60)}
    assert pairs == {("http://p1:8000", 9000, "http://d:8001"), ("http://p2:8000", None, "http://d:8001")}
    assert len({mini_lb._generate_bootstrap_room() for _ in range(100)}) == 100


@pytest.mark.parametrize(
    ("address", "wrapped"), [("::1", "[::1]"), ("2001:db8::1", "[2001:db8::1]"), ("127.0.0.1", "127.0.0.1"), ("a", "a")]
)
def test_an_ipv6_address_gets_brackets(address: str, wrapped: str) -> None:
    assert maybe_wrap_ipv6_address(address) == wrapped


@pytest.mark.parametrize(
    ("request_", "size"),
    [
        ({"text": "a"}, None),
        ({"text": ["a", "b"]}, 2),
        ({"text": []}, 0),
        ({"text": 5}, None),
        ({"input_ids": [1, 2]}, None),
        ({"input_ids": [[1], [2]]}, 2),
        ({"input_ids": []}, None),
        ({}, None),
    ],
)
def test_a_batch_is_as_large_as_its_list_of_prompts(request_: dict[str, Any], size: int | None) -> None:
    assert _get_request_batch_size(request_) == size


def test_the_balancer_serves_at_the_given_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", uvicorn := Mock())
    monkeypatch.setattr(mini_lb, "lb", None)
    balancer = MiniLoadBalancer(arguments(host="[::1]", port=5, log_level="warn", shutdown_grace_period_secs=9))
    balancer.start()
    assert mini_lb.lb is balancer and uvicorn.run.call_args.args == (mini_lb.app,)
    settings = {"host": "::1", "port": 5, "log_level": "warning", "timeout_graceful_shutdown": 9}
    assert uvicorn.run.call_args.kwargs == settings


def test_the_client_session_can_be_replaced() -> None:
    """As other programs' tests do: a class that takes anything, with `request(method, url, json=None)`."""
    calls: list[Any] = []

    class Session:
        async def request(self, method: str, url: str, json: Any = None) -> None:
            calls.append((method, url, json))

    async def abort() -> None:
        await mini_lb._broadcast(MiniLoadBalancer(arguments()), "POST", "/abort_request", json={"rid": "r"})

    with patch("sgl_model_gateway.mini_lb.aiohttp.ClientSession", lambda **_: Session()):
        asyncio.run(abort())
    urls = ["http://p1:8000", "http://p2:8000", "http://d:8001"]
    assert calls == [("POST", f"{url}/abort_request", {"rid": "r"}) for url in urls]
