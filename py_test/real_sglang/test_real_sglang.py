"""The launcher with the real SGLang, on a CPU: `make test-sglang`. Skipped unless SGLANG_VENV says where it is."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from openai import OpenAI
from support import launcher as launchers
from support.client import get_json
from support.launcher import Kind, Launcher, nothing_is_left
from support.process import children
from support.sglang import ENVIRONMENT, FLAGS, LOADING, ONLY_WITH_SGLANG, VENV
from support.waiting import wait_for

ENDING = 60.0  # seconds
pytestmark = ONLY_WITH_SGLANG
CHATS = 50


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Launcher]]:
    """`launch("--dp-size", "2")`: a launcher in SGLang's own venv."""
    flags = f"--model-path {VENV}/model {FLAGS} --router-policy round_robin"
    kind = Kind(flags, f"{VENV}/bin/python", tuple(ENVIRONMENT.items()), LOADING)
    monkeypatch.setitem(launchers.KINDS, "real", kind)
    with ExitStack() as stack:

        def start(*flags: str) -> Launcher:
            launcher = Launcher(*flags, "--router-worker-stop-timeout-secs", "30", engine="real")
            stack.callback(launcher.destroy)
            return launcher

        yield start


def chat(url: str, number: int, stream: bool) -> str:
    """The greedy answer to a question, of which there are many."""
    settings: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": f"Question {number}: what is {number} times 7?"}],
        "max_tokens": 8,
        "temperature": 0,
    }
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=ENDING) as client:
        if not stream:
            return client.chat.completions.create(**settings).choices[0].message.content or ""
        pieces = client.chat.completions.create(stream=True, **settings)
        return "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)


def ports(launcher: Launcher) -> list[int]:
    return [int(launcher.wait_for_line(rf"worker {rank} started at \S+:(\d+),").group(1)) for rank in (0, 1)]


def test_two_engines_answer_as_one_does_and_an_interrupt_leaves_nothing(launch: Any) -> None:
    launcher = launch("--dp-size", "2")
    url = launcher.url()
    workers = [f"http://127.0.0.1:{port}" for port in ports(launcher)]
    print(get_json(f"{workers[0]}/server_info")["version"])
    direct = [chat(workers[0], number, stream=False) for number in range(CHATS // 2)]
    assert len(set(direct)) > 1
    through = [(chat(url, number, stream=False), chat(url, number, stream=True)) for number in range(CHATS // 2)]
    assert through == [(answer, answer) for answer in direct]
    # The gateway sent some to each.
    states = get_json(f"{url}/workers")["workers"]
    assert [state["model_id"] for state in states] == ["tiny", "tiny"]
    assert len(launcher.left()) > 5  # launcher, watchdog, and several processes per engine
    assert launcher.end(signal.SIGINT, ENDING) == 128 + signal.SIGINT
    nothing_is_left(launcher, ports(launcher))


def test_an_engine_that_crashes_comes_back_and_a_killed_launcher_leaves_nothing(launch: Any) -> None:
    launcher = launch("--dp-size", "2")
    url = launcher.url()
    os.kill(launcher.worker_pid(1), signal.SIGKILL)
    launcher.wait_for_line("worker 1 .* was ended by SIGKILL; restarting it in")
    launcher.wait_for_line("worker 1 ready at", occurrence=2)
    assert [state for _, state in children(launcher.process.pid) if state == "Z"] == []
    wait_for(lambda: chat(url, 1, stream=True) == chat(url, 1, stream=False), "answers")
    assert launcher.end(signal.SIGKILL, ENDING) == -signal.SIGKILL
    nothing_is_left(launcher, ports(launcher))


def test_a_pair_answers_as_one_engine_does_and_comes_back_after_a_crash(launch: Any) -> None:
    transfer = "--disaggregation-transfer-backend mooncake_tcp --disaggregation-decode-retraction-backup cpu_tensor"
    launcher = launch("--router-prefill-workers", "1", "--router-decode-workers", "1", *transfer.split())
    url = launcher.url()
    pair = [(chat(url, number, stream=False), chat(url, number, stream=True)) for number in range(4)]
    states = get_json(f"{url}/workers")["workers"]
    assert [state["worker_type"] for state in states] == ["prefill", "decode"]
    assert [state["labels"]["disaggregation_mode"] for state in states] == ["prefill", "decode"]
    os.kill(launcher.worker_pid(0), signal.SIGKILL)
    launcher.wait_for_line("prefill worker 0 ready at", occurrence=2)
    assert (chat(url, 0, stream=False), chat(url, 0, stream=True)) == pair[0]
    assert launcher.end(signal.SIGTERM, ENDING) == 128 + signal.SIGTERM
    nothing_is_left(launcher, ports(launcher))
    alone = launch("--dp-size", "1").url()
    direct = [chat(alone, number, stream=False) for number in range(4)]
    assert len(set(direct)) > 1 and pair == [(answer, answer) for answer in direct]


def test_an_engine_that_does_not_load_ends_everything(launch: Any) -> None:
    launcher = launch("--model-path", f"{VENV}/no-such-model", "--dp-size", "2")
    assert launcher.wait(LOADING) not in (0, 2)
    assert launcher.lines[-1].startswith("error: worker ") and launcher.lines[-1].endswith(" while loading")
    nothing_is_left(launcher, [])


def test_help_lists_the_installed_releases_flags(launch: Any) -> None:
    command = [f"{VENV}/bin/python", "-m", "sgl_model_gateway.launch_server", "--help"]
    run = subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=LOADING)
    assert run.returncode == 0, run.stderr
    for flag in ("--mem-fraction-static", "--tp-size", "--router-policy", "--router-dp-worker-base-port", "--engine"):
        assert flag in run.stdout


def test_grpc_is_refused_by_name(launch: Any) -> None:
    launcher = launch("--smg-grpc-mode")
    assert launcher.wait(LOADING) == 2
    assert launcher.lines[-1].startswith("error: --smg-grpc-mode: the gateway does not speak gRPC")
