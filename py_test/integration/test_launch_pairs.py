"""Prefill/decode pairs that the launcher starts: they serve, come back after a crash, and leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.client import call, get_json
from support.launcher import Launcher, nothing_is_left
from support.waiting import wait_for

from sgl_model_gateway.sgl_model_gateway_rs import SimWorker

ASK = {"text": "once", "sampling_params": {"max_new_tokens": 5, "ignore_eos": True}}
QUICK = "--router-health-check-interval-secs 1 --router-health-success-threshold 1"


@pytest.fixture
def launch() -> Iterator[Callable[..., Launcher]]:
    """`launch(2, 1, "--api-key", "k", engine="sglang")`: numbers of prefill and decode workers, then flags."""
    with ExitStack() as stack:

        def start(prefill: int, decode: int, *flags: str, **options: Any) -> Launcher:
            counts = ["--router-prefill-workers", str(prefill), "--router-decode-workers", str(decode)]
            launcher = Launcher(*counts, *flags, **options)
            stack.callback(launcher.destroy)
            return launcher

        yield start


def ports_of(launcher: Launcher, count: int) -> list[int]:
    """The workers' ports and their bootstrap ports."""
    ports = [int(launcher.wait_for_line(rf"worker {rank} started at \S+:(\d+),").group(1)) for rank in range(count)]
    return ports + [launcher.bootstrap_port + rank for rank in range(count)]


def text_of_one_worker() -> str:
    """What a worker that is no pair says to `ASK`."""
    with SimWorker(model="m") as alone:
        return str(call(alone.url, "POST", "/generate", ASK)[1]["text"])


def answers(url: str) -> bool:
    return call(url, "POST", "/generate", ASK)[0] == 200


@pytest.mark.parametrize("engine", ["sim", "sglang"])
@pytest.mark.parametrize(("prefill", "decode"), [(1, 1), (2, 3)])
def test_every_worker_serves_in_its_role_and_nothing_stays(launch: Any, engine: str, prefill: int, decode: int) -> None:
    launcher = launch(prefill, decode, "--router-policy", "round_robin", engine=engine)
    url, count = launcher.url(), prefill + decode
    said = text_of_one_worker()
    for _ in range(2 * max(prefill, decode)):
        assert call(url, "POST", "/generate", ASK)[1]["text"] == said
    workers = get_json(f"{url}/workers")["workers"]
    assert [worker["worker_type"] for worker in workers] == ["prefill"] * prefill + ["decode"] * decode
    first = launcher.bootstrap_port
    assert [worker["bootstrap_port"] for worker in workers[:prefill]] == list(range(first, first + prefill))
    for worker in workers:
        assert get_json(f"{worker['url']}/sim/stats")["requests"] >= 2
    ports = ports_of(launcher, count)
    assert len(set(ports)) == 2 * count
    assert launcher.end() == 128 + signal.SIGTERM
    nothing_is_left(launcher, ports)


def test_servers_get_the_arguments_of_their_role(launch: Any, tmp_path: Path) -> None:
    flags = "--tp-size 2 --base-gpu-id 1 --router-pd-disaggregation"
    launcher = launch(1, 2, *flags.split(), engine="sglang", environment={"STUB_RECORD": str(tmp_path)})
    launcher.url()
    base = launcher.base_port
    names = [f"prefill-{base}", f"decode-{base + 100}", f"decode-{base + 200}"]
    prefill, *decode = (json.loads((tmp_path / f"{name}.json").read_text()) for name in names)
    assert [one["base_gpu_id"] for one in (prefill, *decode)] == [1, 3, 5]
    assert [one["disable_radix_cache"] for one in (prefill, *decode)] == [False, True, True]
    assert len({one["disaggregation_bootstrap_port"] for one in (prefill, *decode)}) == 3
    assert {one["dp_size"] for one in (prefill, *decode)} == {1}


def test_the_servers_key_is_the_gateways(launch: Any) -> None:
    launcher = launch(1, 1, "--api-key", "k1")
    url = launcher.url()
    assert call(url, "POST", "/generate", ASK)[0] == 401
    headers = {"authorization": "Bearer k1"}
    assert call(url, "POST", "/generate", ASK, headers)[0] == 200
    assert "k1" not in launcher.text()


@pytest.mark.parametrize(("rank", "role"), [(0, "prefill"), (2, "decode")])
def test_a_worker_that_crashed_comes_back_in_its_role(launch: Any, rank: int, role: str) -> None:
    launcher = launch(2, 2, *QUICK.split())
    url = launcher.url()
    pid = launcher.worker_pid(rank)
    os.kill(pid, signal.SIGKILL)
    launcher.wait_for_line(rf"{role} worker {rank} \(\S+, pid {pid}\) was ended by SIGKILL; restarting it in \d\.\d s")
    wait_for(lambda: answers(url), "the other pair answers")
    assert launcher.worker_pid(rank, occurrence=2) != pid
    launcher.wait_for_line(f"{role} worker {rank} ready at", occurrence=2)
    workers = get_json(f"{url}/workers")["workers"]
    assert [worker["worker_type"] for worker in workers] == ["prefill"] * 2 + ["decode"] * 2
    target = {"x-smg-target-worker": workers[rank]["url"]}
    assert call(url, "POST", "/generate", ASK, target)[1]["text"] == text_of_one_worker()
    assert launcher.end() == 128 + signal.SIGTERM
    nothing_is_left(launcher, ports_of(launcher, 4))


def test_without_restarts_the_end_of_a_role_is_the_end(launch: Any) -> None:
    launcher = launch(2, 1, "--router-disable-worker-restart")
    launcher.url()
    os.kill(launcher.worker_pid(0), signal.SIGKILL)
    launcher.wait_for_line("prefill worker 0 .*; it is not restarted")
    os.kill(launcher.worker_pid(2), signal.SIGKILL)
    assert launcher.wait() == 1
    assert any(line.endswith("no decode worker is left") for line in launcher.lines), launcher.lines
    nothing_is_left(launcher, ports_of(launcher, 3))


def test_a_worker_may_take_the_other_role(launch: Any) -> None:
    launcher = launch(1, 2, "--enable-pd-role-switch")
    url = launcher.url()
    workers = get_json(f"{url}/workers")["workers"]
    path = f"/pd_role_switch?worker={workers[1]['url']}"
    assert call(url, "POST", path, {"new_role": "prefill"})[0] == 200

    def roles() -> list[str]:
        return [worker["worker_type"] for worker in get_json(f"{url}/workers")["workers"]]

    wait_for(lambda: roles() == ["prefill", "prefill", "decode"], "the worker has its new role")
    # At a bootstrap port of its own.
    target = {"x-smg-target-worker": workers[1]["url"]}
    assert call(url, "POST", "/generate", ASK, target)[1]["text"] == text_of_one_worker()


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--dp-size", "2"], "--dp-size: replicas are no pairs"),
        (["--router-mini-lb"], "--router-mini-lb: "),
        (["--router-decode", "http://a:1"], "--router-decode: the gateway gets the workers started here"),
        (["--disaggregation-bootstrap-port", "65535"], "choose another --disaggregation-bootstrap-port"),
    ],
)
def test_options_that_cannot_work_are_refused_and_leave_nothing_behind(
    launch: Any, flags: list[str], problem: str
) -> None:
    launcher = launch(1, 1, *flags)
    assert launcher.wait() in (1, 2)
    assert problem in launcher.text()
    nothing_is_left(launcher, [])
