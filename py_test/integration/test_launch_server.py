"""The launcher over real processes: start, crash, restart, drain, ports. Random ends are in `test_launch_kills.py`."""

from __future__ import annotations

import json
import os
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.client import get_json
from support.launcher import Launcher, nothing_is_left
from support.process import children
from support.waiting import DEADLINE, wait_for

from sgl_model_gateway._demo.load import call


@pytest.fixture
def launch() -> Iterator[Callable[..., Launcher]]:
    """`launch("--dp-size", "2", engine="sglang")`; whatever is left afterwards is killed."""
    with ExitStack() as stack:

        def start(*flags: str, **options: Any) -> Launcher:
            launcher = Launcher(*flags, **options)
            stack.callback(launcher.destroy)
            return launcher

        yield start


def generate(url: str, tokens: int = 1) -> Any:
    body = {"text": "a", "sampling_params": {"max_new_tokens": tokens, "ignore_eos": True}}
    return json.load(call(url, "POST", "/generate", body))["meta_info"]


def answers(url: str) -> bool:
    try:
        return bool(generate(url))
    except (RuntimeError, OSError):
        return False


@pytest.mark.parametrize("engine", ["sim", "sglang"])
@pytest.mark.parametrize("size", [1, 2, 8])
def test_every_replica_serves_and_nothing_stays(launch: Any, engine: str, size: int) -> None:
    launcher = launch("--dp-size", str(size), "--router-policy", "round_robin", engine=engine)
    url = launcher.url()
    for _ in range(size):
        assert generate(url)["completion_tokens"] == 1
    ports = [int(launcher.wait_for_line(rf"worker {rank} started at \S+:(\d+),").group(1)) for rank in range(size)]
    assert len(set(ports)) == size and min(ports) == launcher.base_port
    for port in ports:
        assert get_json(f"http://127.0.0.1:{port}/v1/models")["data"][0]["id"] == "m"
    assert launcher.end() == 128 + signal.SIGTERM
    nothing_is_left(launcher, ports)


def test_replicas_get_gpus_ports_and_addresses_of_their_own(launch: Any, tmp_path: Path) -> None:
    flags = "--dp-size 2 --tp-size 2 --pp-size 2 --gpu-id-step 2 --base-gpu-id 3 --dist-init-addr 127.0.0.1:29500"
    launcher = launch(*flags.split(), engine="sglang", environment={"STUB_RECORD": str(tmp_path)})
    launcher.url()
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert [one["base_gpu_id"] for one in (first, second)] == [3, 11]
    assert [one["dist_init_addr"] for one in (first, second)] == ["127.0.0.1:29500", "127.0.0.1:29600"]
    assert len({one["nccl_port"] for one in (first, second)}) == 2
    for one in (first, second):
        assert (one["dp_size"], one["tp_size"], one["model_path"]) == (1, 2, "m")
        assert one["pgid"] == one["pid"] and one["ppid"] == launcher.process.pid
    assert launcher.end(signal.SIGINT) == 128 + signal.SIGINT


def test_workers_carry_the_title_that_scripts_look_for(launch: Any) -> None:
    pytest.importorskip("setproctitle")
    launcher = launch()
    launcher.url()
    pid = launcher.worker_pid(0)
    assert Path(f"/proc/{pid}/cmdline").read_bytes().strip(b"\0") == b"sglang::server"
    assert b"sglang::router" in Path(f"/proc/{launcher.process.pid}/cmdline").read_bytes()
    assert b"SGLANG_DP_RANK=0" not in Path(f"/proc/{launcher.process.pid}/environ").read_bytes()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::1", "[::1]", "localhost"])
def test_any_host_gives_urls_that_work(launch: Any, host: str) -> None:
    launcher = launch("--host", host)
    assert generate(launcher.url())
    assert launcher.end() == 128 + signal.SIGTERM


def test_the_servers_key_is_the_gateways(launch: Any) -> None:
    launcher = launch("--api-key", "k1", "--dp-size", "2")
    url = launcher.url()
    with pytest.raises(RuntimeError, match="401"):
        generate(url)
    headers = {"authorization": "Bearer k1", "content-type": "application/json"}
    body = b'{"text": "a", "sampling_params": {"max_new_tokens": 1}}'
    with urllib.request.urlopen(urllib.request.Request(f"{url}/generate", body, headers), timeout=DEADLINE) as reply:
        assert reply.status == 200
    assert "k1" not in launcher.text()


# --- failures


def test_a_crash_while_loading_ends_everything_with_code_and_last_words(launch: Any) -> None:
    launcher = launch("--dp-size", "2", engine="sglang", environment={"STUB_CRASH": "1:7"})
    assert launcher.wait() == 7
    assert launcher.lines[-1].endswith("ended with exit code 7 while loading")
    assert launcher.lines[-3:-1] == ["    weights not found", "    last words"]
    nothing_is_left(launcher, [launcher.base_port, launcher.base_port + 100])


def test_a_worker_killed_while_loading_counts_as_a_crash(launch: Any, tmp_path: Path) -> None:
    launcher = launch(engine="sglang", environment={"STUB_GATE": str(tmp_path / "never")})
    pid = launcher.worker_pid(0)
    launcher.wait_for_line("loading m")
    os.kill(pid, signal.SIGKILL)
    assert launcher.wait() == 128 + signal.SIGKILL
    assert "was ended by SIGKILL while loading" in launcher.lines[-1]
    nothing_is_left(launcher, [launcher.base_port])


def test_a_worker_that_never_gets_ready_is_given_up(launch: Any, tmp_path: Path) -> None:
    gate = {"STUB_GATE": str(tmp_path / "never")}
    launcher = launch("--router-worker-startup-timeout-secs", "1", engine="sglang", environment=gate)
    assert launcher.wait() == 128 + signal.SIGKILL
    assert "is not ready after 1 s" in launcher.text()
    nothing_is_left(launcher, [launcher.base_port])


def test_a_port_stolen_while_loading_is_named(launch: Any, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    launcher = launch(engine="sglang", environment={"STUB_GATE": str(gate)})
    launcher.wait_for_line("loading m")
    with socket.create_server(("127.0.0.1", launcher.base_port)):
        gate.touch()
        assert launcher.wait() == 1
    assert f"another process listens at http://127.0.0.1:{launcher.base_port}" in launcher.lines[-1]
    nothing_is_left(launcher, [launcher.base_port])


def test_a_crash_later_is_reported_and_the_worker_comes_back(launch: Any) -> None:
    # Probes often enough for gateways that only hear of a dead worker from them.
    quick = "--dp-size 2 --router-health-check-interval-secs 1 --router-health-failure-threshold 1"
    launcher = launch(*quick.split(), "--router-health-success-threshold", "1", engine="sglang")
    url = launcher.url()
    pid = launcher.worker_pid(1)
    os.kill(pid, signal.SIGKILL)
    launcher.wait_for_line(rf"worker 1 \(\S+, pid {pid}\) was ended by SIGKILL; restarting it in \d\.\d s")
    assert launcher.worker_pid(1, occurrence=2) != pid
    wait_for(lambda: answers(url), "the other worker answers")
    launcher.wait_for_line("worker 1 ready at", occurrence=2)
    assert [state for _, state in children(launcher.process.pid) if state == "Z"] == []
    # What the dead worker had started is gone with it: two workers with a child each, the watchdog, the launcher.
    wait_for(lambda: len(launcher.left()) == 6, f"six processes: {launcher.left()}")
    assert launcher.end() == 128 + signal.SIGTERM
    nothing_is_left(launcher, [launcher.base_port, launcher.base_port + 100])


def test_a_worker_that_crashes_again_and_again_is_restarted_more_slowly(launch: Any) -> None:
    launcher = launch("--dp-size", "1")
    launcher.url()
    for crash in range(1, 4):
        os.kill(launcher.worker_pid(0, occurrence=crash), signal.SIGKILL)
        launcher.wait_for_line("restarting it in", occurrence=crash)
    pauses = [float(line.split("restarting it in ")[1].split()[0]) for line in launcher.lines if "restarting" in line]
    assert pauses[0] < pauses[1] < pauses[2]
    assert launcher.end() == 128 + signal.SIGTERM  # in the middle of a pause
    nothing_is_left(launcher, [launcher.base_port])


def test_restarts_can_be_turned_off(launch: Any) -> None:
    launcher = launch("--dp-size", "2", "--router-disable-worker-restart")
    launcher.url()
    for rank in (0, 1):
        os.kill(launcher.worker_pid(rank), signal.SIGKILL)
        launcher.wait_for_line("it is not restarted", occurrence=rank + 1)
    assert launcher.wait() == 1
    assert any(line.endswith("no worker is left") for line in launcher.lines), launcher.lines
    nothing_is_left(launcher, [launcher.base_port])


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--router-dp-worker-base-port", "65500", "--dp-size", "2"], "only 1 from 65500 to 65535"),
        (["--router-dp-worker-base-port", "65536"], "expected 1..65535"),
        (["--router-pd-disaggregation"], "give --router-prefill-workers and --router-decode-workers"),
        (["--router-service-discovery", "--router-selector", "a=b"], "--router-service-discovery"),
        (["--worker-urls", "http://a:1"], "--worker-urls"),
        (["--dp-size", "0"], "--dp-size: 0 is not a number of workers"),
        (["--router-cache-threshold", "7"], "cache_threshold"),
        (["--page-size", "0"], "page_size"),
        (["--no-such-flag"], "unrecognized arguments"),
    ],
)
def test_options_that_cannot_work_are_refused_and_leave_nothing_behind(
    launch: Any, flags: list[str], problem: str
) -> None:
    launcher = launch(*flags)
    assert launcher.wait() in (1, 2)
    assert problem in launcher.text() and "Traceback" not in launcher.lines[0]
    nothing_is_left(launcher, [])


def test_a_metrics_port_in_use_is_an_error_before_the_first_worker(launch: Any) -> None:
    with socket.create_server(("0.0.0.0", 0)) as other:
        launcher = launch("--router-prometheus-port", str(other.getsockname()[1]))
        assert launcher.wait() == 1
    assert launcher.lines[-1].startswith("error: ") and "started at" not in launcher.text()


def test_the_last_port_of_all_can_be_used(launch: Any) -> None:
    launcher = launch("--router-dp-worker-base-port", "65535")
    line = launcher.wait_for_line("worker 0 started at|error:").group(0)
    assert line == "worker 0 started at"
    assert generate(launcher.url())


# --- the end


def test_the_first_signal_drains_before_workers_are_stopped(launch: Any) -> None:
    launcher = launch("--decode-step-base-ms", "50")
    url = launcher.url()
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(generate, url, 20)
        wait_for(lambda: get_json(f"http://127.0.0.1:{launcher.base_port}/sim/stats")["requests"], "request")
        assert launcher.end() == 128 + signal.SIGTERM
        assert answer.result(DEADLINE)["completion_tokens"] == 20


def test_the_second_signal_cuts_the_drain(launch: Any) -> None:
    launcher = launch("--decode-step-base-ms", "50", "--router-shutdown-grace-period-secs", "100")
    url = launcher.url()
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(generate, url, 1000)
        wait_for(lambda: get_json(f"http://127.0.0.1:{launcher.base_port}/sim/stats")["requests"], "request")
        launcher.process.send_signal(signal.SIGINT)
        launcher.wait_for_line("SIGINT: draining")
        assert launcher.end(signal.SIGTERM) == 128 + signal.SIGINT
        with pytest.raises((OSError, urllib.error.URLError)):
            answer.result(DEADLINE)
    nothing_is_left(launcher, [launcher.base_port])


def test_stubborn_workers_share_one_deadline_and_take_their_children_along(launch: Any) -> None:
    flags = ["--dp-size", "3", "--router-worker-stop-timeout-secs", "1"]
    launcher = launch(*flags, engine="sglang", environment={"STUB_STUBBORN": "1"})
    launcher.url()
    # Three workers with a child inside and one outside the group, the watchdog, the launcher.
    assert len(launcher.left()) == 11
    launcher.process.send_signal(signal.SIGTERM)
    assert launcher.wait(2.5) == 128 + signal.SIGTERM
    assert launcher.text().count("did not end within 1 s, killing its group") == 3
    nothing_is_left(launcher, [launcher.base_port], deadline=1.0)


def test_the_third_signal_kills_at_once(launch: Any) -> None:
    flags = ["--router-worker-stop-timeout-secs", "100"]
    launcher = launch(*flags, engine="sglang", environment={"STUB_STUBBORN": "1"})
    launcher.url()
    launcher.process.send_signal(signal.SIGTERM)
    # Signals that are pending together are seen in the order of their numbers, and two of a kind become one.
    launcher.wait_for_line("SIGTERM: draining")
    launcher.process.send_signal(signal.SIGINT)
    assert launcher.end(signal.SIGQUIT, deadline=5.0) == 128 + signal.SIGTERM
    nothing_is_left(launcher, [launcher.base_port])
