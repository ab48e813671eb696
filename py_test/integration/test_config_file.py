"""A configuration file: checked by a command, read at the start, and read again while the gateway serves."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.client import call, get_json
from support.gateway import Gateway
from support.launcher import Launcher
from support.waiting import wait_for

from sgl_model_gateway.config import check
from sgl_model_gateway.doctor import examine
from sgl_model_gateway.router import PolicyType, Router
from sgl_model_gateway.router_args import RouterArgs


def config(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sgl_model_gateway", "config", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "gateway.yaml"


def options(url: str) -> dict[str, Any]:
    shown: dict[str, Any] = get_json(f"{url}/debug/config")["options"]
    return shown


def test_right_file_passes_the_check_and_wrong_one_is_named_line_by_line(file: Path) -> None:
    file.write_text("port: 8080\npolicy: random\n")
    ran = config("check", str(file))
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"{file}: ok\n", "")
    file.write_text("port: 8080\npolcy: random\nqueue_size: many\n")
    ran = config("check", str(file), "--port", "1")
    assert ran.returncode == 1
    assert ran.stderr.splitlines() == [
        f"{file}:2:1: unknown key 'polcy'; did you mean 'policy'?",
        f'{file}:3:13: queue_size: invalid type: string "many", expected an integer from 0 to 2^64-1',
    ]
    missing = config("check", str(file.with_name("missing.yaml")))
    assert missing.returncode == 1
    assert "cannot be read" in missing.stderr


def test_schema_is_json_and_names_every_option() -> None:
    ran = config("schema")
    schema = json.loads(ran.stdout)
    assert schema["properties"]["policy"]["default"] == "cache_aware"
    assert "worker_urls" in schema["properties"]
    assert "config" not in schema["properties"]


def test_flag_wins_over_the_file_also_where_it_repeats_the_default(file: Path) -> None:
    file.write_text("policy: random\nqueue_size: 7\nqueue_timeout_secs: 8\n")
    gateway = Gateway([], "--config", str(file), "--policy", "cache_aware", "--queue-size", "9")
    try:
        shown = options(gateway.url)
        assert shown["policy"] == {"value": "cache_aware", "origin": "given"}
        assert shown["queue_size"] == {"value": 9, "origin": "given"}
        assert shown["queue_timeout_secs"] == {"value": 8, "origin": "file, line 3"}
        assert shown["max_idle_secs"]["origin"] == "default"
    finally:
        gateway.destroy()


def test_hang_up_reads_the_file_again_and_ends_nothing(file: Path, sim_workers: Any) -> None:
    one, other = (worker.url for worker in sim_workers(2))
    file.write_text(f"worker_urls: [{one}]\n")
    gateway = Gateway([], "--config", str(file)).wait_ready(1)
    try:
        file.write_text(f"worker_urls: [{one}, {other}]\nqueue_size: 7\n")
        gateway.process.send_signal(signal.SIGHUP)
        gateway.wait_ready(2)
        assert options(gateway.url)["queue_size"]["value"] == 7
        file.write_text("worker_urls: nonsense\n")
        gateway.process.send_signal(signal.SIGHUP)
        wait_for(lambda: get_json(f"{gateway.url}/debug/config")["last_reload"]["result"] == "failed", "refusal")
        assert len(gateway.workers()) == 2
        body = {"text": "a", "sampling_params": {"max_new_tokens": 1}}
        assert call(gateway.url, "POST", "/generate", body)[0] == 200
    finally:
        gateway.destroy()


def test_router_of_a_script_reads_the_file_and_reloads_it(file: Path) -> None:
    file.write_text("queue_size: 7\npolicy: random\n")
    with Router(config=str(file), host="127.0.0.1", port=0, prometheus_port=0) as router:
        assert router.queue_size == 7
        file.write_text("queue_size: 8\npolicy: random\n")
        assert router.reload()
        wait_for(lambda: options(router.url)["queue_size"]["value"] == 8, "reload")
    with Router(worker_urls=[], host="127.0.0.1", port=0, prometheus_port=0) as router:
        assert not router.reload()


def test_fields_that_differ_or_were_typed_are_given(file: Path) -> None:
    file.write_text("policy: random\nqueue_size: 7\n")
    args = RouterArgs(config=str(file), policy="manual", port=1)
    assert args.given() == {"config", "policy", "port"}
    router = Router.from_args(args)
    assert (router.policy, router.port, router.queue_size) == (PolicyType.Manual, 1, 7)
    file.write_text("policy: nonsense\n")
    assert check(args) != []
    with pytest.raises(ValueError, match=r"gateway\.yaml:1:9: policy: unknown variant"):
        Router.from_args(RouterArgs(config=str(file)))


def test_debug_balancer_takes_no_file(file: Path) -> None:
    command = [sys.executable, "-m", "sgl_model_gateway.launch_router", "--mini-lb", "--config", str(file)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert ran.returncode == 2
    assert "'config' is not for --mini-lb" in ran.stderr


def test_doctor_checks_the_options_of_the_file(file: Path) -> None:
    file.write_text("host: 127.0.0.1\nworker_urls: [http://127.0.0.1:1]\nqueue_size: 7\n")
    findings = examine(RouterArgs(config=str(file), port=0, prometheus_port=0), timeout_secs=1.0)
    worker = next(found for found in findings if found.check == "worker")
    assert (worker.status, "127.0.0.1:1" in worker.finding) == ("fail", True)
    idle = [found.finding for found in findings if found.check == "no effect"]
    assert any("queue" in finding for finding in idle), idle


def test_hang_up_of_a_launcher_reads_the_file_of_its_gateway_again(file: Path) -> None:
    file.write_text("queue_size: 7\n")
    launcher = Launcher("--router-config", str(file))
    try:
        url = launcher.url()
        file.write_text("queue_size: 8\n")
        launcher.process.send_signal(signal.SIGHUP)
        wait_for(lambda: options(url)["queue_size"]["value"] == 8, "reload")
        assert len(get_json(f"{url}/workers")["workers"]) == 1
    finally:
        launcher.destroy()
