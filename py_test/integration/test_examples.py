"""The examples run: scripts as processes, the actor's class against simulated workers."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.client import get_json
from support.waiting import wait_for

from sgl_model_gateway.sgl_model_gateway_rs import SimWorker

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
Start = Callable[..., list[SimWorker]]


def output(name: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    return done.stdout


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_script_is_run_by_a_test() -> None:
    assert {file.stem for file in EXAMPLES.glob("*.py")} == {"quickstart", "explore", "rollouts"}


def test_quickstart_starts_workers_of_its_own() -> None:
    lines = output("quickstart.py").splitlines()
    assert len(lines) == 4 and all(": " in line for line in lines)


def test_quickstart_takes_workers_that_run(sim_workers: Start) -> None:
    workers = sim_workers(2, record_requests=10)
    output("quickstart.py", *(worker.url for worker in workers))
    assert sum(get_json(f"{worker.url}/sim/stats")["requests"] for worker in workers) == 4


def test_explore_shows_that_the_second_prompt_finds_its_prefix() -> None:
    lines = output("explore.py").splitlines()
    first, second = (ast.literal_eval(line) for line in lines[:2])
    assert first["x-smg-matched-tokens"] == "0" and int(second["x-smg-matched-tokens"]) > 2000
    assert first["x-smg-routed-worker"] == second["x-smg-routed-worker"]
    assert any(line.startswith("smg_router_requests_total") and line.endswith(" 2") for line in lines)


def test_explore_is_made_of_cells() -> None:
    text = (EXAMPLES / "explore.py").read_text()
    assert text.count("\n# %% ") >= 5


@pytest.fixture
def rollouts() -> Any:
    return load("rollouts")


def test_a_rollout_stays_on_one_worker_and_rollouts_spread(rollouts: Any, sim_workers: Start) -> None:
    workers = sim_workers(2)
    gateway = rollouts.Gateway()
    try:
        gateway.add_workers([worker.url for worker in workers], timeout=20)
        turns = [rollouts.rollout(gateway.url(), f"r{number}", 3) for number in range(16)]
        assert all(len(set(ids)) == 1 and None not in ids for ids in turns)
        assert len({ids[0] for ids in turns}) == 2
        assert gateway.weights_updated() == 2
        gateway.remove_workers([workers[0].url])
        wait_for(lambda: [it["url"] for it in gateway._workers()] == [workers[1].url], "one worker left")
    finally:
        gateway.stop()


def test_workers_that_do_not_come_up_are_named(rollouts: Any) -> None:
    gateway = rollouts.Gateway()
    try:
        with pytest.raises(TimeoutError, match="127.0.0.1:9"):
            gateway.add_workers(["http://127.0.0.1:9"], timeout=0.3)
    finally:
        gateway.stop()


def test_the_rollouts_run_as_ray_actors_and_tasks(
    rollouts: Any, sim_workers: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", InlineRay("ray"))
    rollouts.main([worker.url for worker in sim_workers(2)])
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"rollout-{number}: 1 worker" for number in range(8)] + ["flushed 2"]


class InlineRay(ModuleType):
    """The part of Ray's interface that the example uses, with every call run at once."""

    def init(self) -> None:
        pass

    def get(self, value: Any) -> Any:
        return value

    def remote(self, target: Any) -> Any:
        return Remote(target, actor=isinstance(target, type))


class Remote:
    def __init__(self, target: Any, actor: bool = False) -> None:
        self._target, self._actor = target, actor

    def remote(self, *arguments: Any) -> Any:
        result = self._target(*arguments)
        return Handle(result) if self._actor else result


class Handle:
    def __init__(self, actor: Any) -> None:
        self._instance = actor

    def __getattr__(self, name: str) -> Remote:
        return Remote(getattr(self._instance, name))
