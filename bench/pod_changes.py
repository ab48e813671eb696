"""Gateways whose pods change as clusters change them: `python bench/pod_changes.py` (fifteen minutes).

Every row has processes of its own: a scripted API server, three simulated workers at addresses of the loopback, and a
gateway that finds them by their label, with its defaults. Addresses of 127.0.0.0/8 only.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from processes import HOST, BenchError, finish, require_tools, running, two_cores, wait_until_answered
from targets import OURS, PEERS, ROOT

sys.path.insert(0, str(ROOT / "py_test"))

from support.client import Client, Reply, call  # noqa: E402
from support.kube_api import KubeApi, Pod, pod  # noqa: E402
from support.ports import free_port  # noqa: E402

PODS = ("a", "b", "c")
PER_SECOND = 50
START_S = 90.0


@dataclass(frozen=True)
class Gateway:
    """A gateway: the Python that it is installed for, and its module."""

    name: str
    python: str
    module: str

    def command(self, port: int, metrics_port: int, worker_port: int) -> list[str]:
        return [
            *(self.python, "-m", self.module, "--service-discovery", "--selector", "app=engine"),
            *("--service-discovery-port", str(worker_port), "--service-discovery-namespace", "ns"),
            *("--host", HOST, "--port", str(port), "--prometheus-host", HOST, "--prometheus-port", str(metrics_port)),
            *("--policy", "round_robin", "--log-level", "warn"),
        ]


@dataclass
class Stage:
    """A gateway that has found its pods, and requests to it."""

    url: str
    api: KubeApi
    worker_port: int
    # Of the server of a pod.
    stop: Callable[[str], None]
    start: Callable[[str], None]
    # With the time of their requests (`time.monotonic()`).
    replies: list[tuple[float, Reply]] = field(default_factory=list)

    def requests_at(self, name: str) -> int:
        status, stats = call(f"http://{address(name)}:{self.worker_port}", "GET", "/sim/stats")
        return int(stats["requests"]) if status == 200 else 0

    def failed_since(self, begun: float) -> int:
        return sum(not reply.ok for at, reply in list(self.replies) if at >= begun)

    def until(self, condition: Callable[[], bool], limit: float) -> str:
        """How long it takes, in words."""
        begun = time.monotonic()
        while time.monotonic() < begun + limit:
            if condition():
                return f"{time.monotonic() - begun:.1f} s"
            time.sleep(0.05)
        return f"not in {limit:.0f} s"

    def until_asked(self, name: str, limit: float) -> str:
        before = self.requests_at(name)
        return self.until(lambda: self.requests_at(name) > before, limit)

    def until_left_alone(self, name: str, limit: float) -> str:
        """How long it takes until a worker has had no request for a second."""
        begun = last = time.monotonic()
        known = self.requests_at(name)
        while time.monotonic() < begun + limit:
            time.sleep(0.05)
            count = self.requests_at(name)
            if count != known:
                known, last = count, time.monotonic()
            elif time.monotonic() > last + 1:
                return f"{last - begun:.1f} s"
        return f"not in {limit:.0f} s"


def address(name: str) -> str:
    """Of a pod."""
    return f"127.0.1.{ord(name)}"


def not_ready(stage: Stage) -> str:
    """A pod is not ready, though its server answers; later it is ready again."""
    stage.api.set_ready("b", False)
    left = stage.until_left_alone("b", 60)
    stage.api.set_ready("b", True)
    return f"last request after {left}; ready again: next one after {stage.until_asked('b', 90)}"


def terminates(stage: Stage) -> str:
    """A pod gets its deletion timestamp, and its server goes on for its grace period."""
    stage.api.change("b", lambda it: it["metadata"].update(deletionTimestamp="2026-11-02T00:00:00Z"))
    return f"last request after {stage.until_left_alone('b', 60)}"


def delete_is_lost(stage: Stage) -> str:
    """A pod is deleted, and no event says so; something else answers at its address."""
    stage.api.lose("b")
    return f"last request after {stage.until_left_alone('b', 180)}"


def dead_and_delete_is_lost(stage: Stage) -> str:
    """The same, and nothing listens at its address."""
    begun = time.monotonic()
    stage.api.lose("b")
    stage.stop("b")
    time.sleep(60)
    return f"{stage.failed_since(begun)} of {PER_SECOND * 60} requests failed in a minute"


def watch_is_silent(stage: Stage) -> str:
    """The connection of the watch is dead without an end; a pod comes."""
    stage.api.silence()
    stage.start("d")
    stage.api.put(pod_named("d", stage.worker_port))
    return f"the new pod's first request after {stage.until(lambda: stage.requests_at('d') > 0, 180)}"


def label_changes(stage: Stage) -> str:
    """A pod loses the label that it was found by."""
    stage.api.change("b", lambda it: it["metadata"]["labels"].update(app="idle"))
    return f"last request after {stage.until_left_alone('b', 60)}"


ROWS = (
    not_ready,
    terminates,
    label_changes,
    delete_is_lost,
    dead_and_delete_is_lost,
    watch_is_silent,
)


def pod_named(name: str, port: int) -> Pod:
    """At its address; its engine has the port that all have."""
    found: Pod = pod(name, port, ip=address(name), app="engine")
    found["metadata"]["annotations"].clear()
    return found


@contextmanager
def stage(gateway: Gateway, room: Path) -> Iterator[Stage]:
    """A gateway with three pods, once all of them have had requests."""
    core, other = two_cores()
    with ExitStack() as stack:
        worker_port, port, metrics_port = free_port(), free_port(), free_port()
        workers: dict[str, ExitStack] = {}

        def start(name: str) -> None:
            workers[name] = stack.enter_context(ExitStack())
            command = [sys.executable, "-m", "sgl_model_gateway.sim_worker", "--host", address(name)]
            log = room / f"{name}.log"
            process = workers[name].enter_context(running([*command, "--port", str(worker_port)], other, log))
            wait_until_answered(process, log, f"http://{address(name)}:{worker_port}/health", None, START_S)

        api = KubeApi()
        stack.callback(api.stop)
        for name in PODS:
            start(name)
            api.put(pod_named(name, worker_port))
        os.environ["KUBECONFIG"] = api.write_kubeconfig(room / "kubeconfig")
        log = room / "gateway.log"
        command = gateway.command(port, metrics_port, worker_port)
        process = stack.enter_context(running(command, core, log))
        url = f"http://{HOST}:{port}"
        wait_until_answered(process, log, f"{url}/liveness", None, START_S)
        shown = Stage(url, api, worker_port, lambda name: workers[name].close(), start)
        over = stack.enter_context(load(shown))
        assert not over.is_set()
        found = shown.until(lambda: all(shown.requests_at(name) for name in PODS), START_S)
        if found.startswith("not"):
            raise BenchError(f"{gateway.name}: pods are not found: {log.read_text()[-600:]}")
        yield shown


@contextmanager
def load(shown: Stage) -> Iterator[threading.Event]:
    """Requests on the clock, for as long as it lasts."""
    over = threading.Event()

    async def ask(client: Client, number: int) -> None:
        body = {"model": "sim-model", "prompt": f"prompt {number}", "max_tokens": 1}
        begun = time.monotonic()
        shown.replies.append((begun, await client.ask(body, "/v1/completions")))

    async def run() -> None:
        async with Client(shown.url) as client:
            begun, tasks = time.monotonic(), list[asyncio.Task[None]]()
            while not over.is_set():
                while len(tasks) < (time.monotonic() - begun) * PER_SECOND:
                    tasks.append(asyncio.create_task(ask(client, len(tasks))))
                await asyncio.sleep(0.005)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    try:
        yield over
    finally:
        over.set()
        thread.join()


def gateways(ours: str) -> list[Gateway]:
    """Ours, and those that are installed."""
    found = [Gateway("ours", ours, OURS)]
    for name, module in (("smg", "smg.launch_router"), ("sglang-router", "sglang_router.launch_router")):
        python = PEERS / name / "bin" / "python"
        if python.exists():
            found.append(Gateway(name, str(python), module))
    return found


def table(rows: Sequence[Callable[[Stage], str]], found: Sequence[Gateway]) -> Iterator[str]:
    """A line per row, as it is measured."""
    yield f"| | {' | '.join(gateway.name for gateway in found)} |"
    yield f"| --- |{' --- |' * len(found)}"
    for row in rows:
        cells = []
        for gateway in found:
            with tempfile.TemporaryDirectory() as room:
                try:
                    with stage(gateway, Path(room)) as shown:
                        cells.append(row(shown))
                except BenchError as error:
                    cells.append(str(error))
            print(f"{row.__name__}, {gateway.name}: {cells[-1]}", file=sys.stderr)
        yield f"| {(row.__doc__ or '').strip()} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="interpreter of our gateway")
    parser.add_argument("--rows", default="", help="names of rows, separated by commas; without, all")
    parser.add_argument("--only", default="", help="names of gateways, separated by commas; without, all")
    args = parser.parse_args()
    rows = [
        row for row in ROWS if row.__name__ in (args.rows.split(",") if args.rows else [it.__name__ for it in ROWS])
    ]
    found = [it for it in gateways(args.python) if not args.only or it.name in args.only.split(",")]

    def measured() -> bool:
        require_tools(["taskset", "setpriv"])
        for line in table(rows, found):
            print(line, flush=True)
        return True

    finish(measured)


if __name__ == "__main__":
    main()
