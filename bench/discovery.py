"""What following 500 pods costs a gateway under traffic, ten of which change a second: `python bench/discovery.py`.

The API server is scripted; one simulated worker serves at the addresses of all pods. The gateway has a core for itself,
and the API server gives way to worker and client on the other. Rounds in which these pods change take turns with rounds
in which as many others do, which the gateway does not watch but another client: the rest of the machine has the same to
do in both. Addresses of 127.0.0.0/8 only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from processes import HOST, BenchError, finish, require_tools, running, two_cores, wait_until_answered
from targets import OURS, ROOT

sys.path.insert(0, str(ROOT / "py_test"))

from support.client import Client, Reply  # noqa: E402
from support.kube_api import TOKEN, KubeApi, Pod, pod  # noqa: E402
from support.ports import free_port  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
# Of a pod's life, how long one step takes.
STEP_S = 0.02
READY_WITHIN_S = 120.0


def realistic(found: Pod) -> Pod:
    """The same pod, as large as those of a cluster: some 8 kB."""
    container = found["spec"]["containers"][0]
    container["env"] = [{"name": f"VARIABLE_{at}", "value": "x" * 40} for at in range(30)]
    container["volumeMounts"] = [{"name": f"volume-{at}", "mountPath": f"/mnt/{at}"} for at in range(8)]
    container["args"] = ["--model-path", "some/model", "--host", "0.0.0.0", "--mem-fraction-static", "0.85"]
    found["spec"]["volumes"] = [{"name": f"volume-{at}", "emptyDir": {"sizeLimit": "16Gi"}} for at in range(8)]
    found["spec"]["tolerations"] = [
        {"key": f"key-{at}", "operator": "Exists", "effect": "NoSchedule"} for at in range(4)
    ]
    fields: dict[str, Any] = {
        f"f:{name}": {"f:valueFrom": {}, "f:name": {}} for name in map("field-{}".format, range(60))
    }
    found["metadata"]["managedFields"] = [
        {"manager": manager, "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": fields}
        for manager in ("kube-controller-manager", "kubelet")
    ]
    found["status"]["containerStatuses"] = [
        {"name": "engine", "ready": True, "restartCount": 0, "image": "x" * 60, "imageID": "y" * 100}
    ]
    return found


class Fleet:
    """Pods at addresses of the loopback, and their changes."""

    def __init__(self, api: KubeApi, port: int, count: int, app: str) -> None:
        self._api, self._port, self._app = api, port, app
        self._rng = random.Random(1)
        self._made = 0
        self._names: list[str] = []
        for _ in range(count):
            self._api.put(self._new())

    def _new(self) -> Pod:
        self._made += 1
        at = self._made % 60000
        name = f"{self._app}-{self._made}"
        self._names.append(name)
        ip = f"127.1.{at // 250}.{at % 250 + 1}"
        found = realistic(pod(name, self._port, ip=ip, app=self._app))
        found["metadata"]["annotations"].clear()
        return found

    def replace(self) -> None:
        """A pod ends and another one comes, with the events that a cluster has for it."""
        name = self._names.pop(self._rng.randrange(len(self._names)))
        self._api.change(name, lambda it: it["metadata"].update(deletionTimestamp="2026-11-02T00:00:00Z"))
        new = self._new()
        new["status"]["phase"] = "Pending"
        self._api.put(new)
        time.sleep(STEP_S)
        self._api.delete(name)

        def runs(found: Pod) -> None:
            found["status"]["phase"] = "Running"
            found["status"]["conditions"][0]["status"] = "False"

        self._api.change(self._names[-1], runs)
        time.sleep(STEP_S)
        self._api.set_ready(self._names[-1], True)

    def flap(self) -> None:
        """A pod is not ready for a moment."""
        name = self._rng.choice(self._names)
        self._api.set_ready(name, False)
        time.sleep(2 * STEP_S)
        self._api.set_ready(name, True)

    def churn(self, per_second: float, seconds: float) -> int:
        """Every second change replaces a pod; returns how many there were."""
        begun, count = time.monotonic(), int(per_second * seconds)
        for number in range(count):
            time.sleep(max(0.0, begun + number / per_second - time.monotonic()))
            if number % 2:
                self.replace()
            else:
                self.flap()
        return count


def serve_pods(pipe: Connection, port: int, count: int, kubeconfig: Path) -> None:
    """The API server's process: makes the changes that it is asked for, and says how many there were."""
    os.nice(10)
    api = KubeApi()
    fleets = [Fleet(api, port, count, app) for app in ("other", "engine")]
    threading.Thread(target=watch_others, args=(api,), daemon=True).start()
    api.write_kubeconfig(kubeconfig)
    pipe.send(None)
    while True:
        watched, per_second, seconds = pipe.recv()
        pipe.send(fleets[watched].churn(per_second, seconds))


def watch_others(api: KubeApi) -> None:
    """Another client of the API server."""
    query = f"labelSelector=app%3Dother&watch=true&resourceVersion={api.version}&timeoutSeconds=100000"
    headers = {"authorization": f"Bearer {TOKEN}"}
    request = urllib.request.Request(f"{api.url}/api/v1/pods?{query}", headers=headers)
    with urllib.request.urlopen(request) as events:
        for _ in events:
            pass


class Usage:
    """Time and memory of a process, from /proc."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def cpu(self) -> float:
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def rss(self) -> int:
        return int(Path(f"/proc/{self._pid}/statm").read_text().split()[1]) * PAGE


@dataclass(frozen=True)
class Round:
    """What was measured in one round."""

    changes: int
    core: float
    p50_ms: float
    p99_ms: float
    failed: int
    rss_mb: float


async def requests(url: str, per_second: float, seconds: float) -> list[Reply]:
    """Requests on the clock."""
    async with Client(url) as client:
        begun, tasks = time.monotonic(), list[asyncio.Task[Reply]]()
        while (passed := time.monotonic() - begun) < seconds:
            while len(tasks) < passed * per_second:
                # A hundred prompts: what is learnt of them is no memory of pods.
                text = f"prompt {len(tasks) % 100} " * 20
                body = {"text": text, "sampling_params": {"max_new_tokens": 1}}
                tasks.append(asyncio.create_task(client.ask(body)))
            await asyncio.sleep(0.001)
        return await asyncio.gather(*tasks)


def measure(url: str, usage: Usage, pods: Connection, args: argparse.Namespace, *, watched: bool) -> Round:
    """One round, in which pods change that the gateway watches, or others."""
    before, begun = usage.cpu(), time.monotonic()
    pods.send((watched, args.changes, args.seconds))
    replies = asyncio.run(requests(url, args.rate, args.seconds))
    changes = pods.recv()
    core = (usage.cpu() - before) / (time.monotonic() - begun)
    took = sorted(reply.took * 1000 for reply in replies)
    failed = sum(not reply.ok for reply in replies)
    p50, p99 = took[len(took) // 2], took[len(took) * 99 // 100]
    return Round(changes, core, p50, p99, failed, usage.rss() / 1e6)


def gateway_command(python: str, port: int, worker_port: int, flags: Sequence[str]) -> list[str]:
    fixed = ["--host", HOST, "--port", str(port), "--prometheus-host", HOST, "--prometheus-port", "0"]
    found = ["--service-discovery", "--selector", "app=engine", "--service-discovery-port", str(worker_port)]
    return [python, "-m", OURS, *fixed, *found, "--log-level", "warn", *flags]


def run(args: argparse.Namespace) -> list[Round]:
    """All rounds, that of other pods first and every second one; one is left out before."""
    core, other = two_cores()
    with ExitStack() as stack:
        room = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        worker_port, port = free_port(), free_port()
        worker = [sys.executable, "-m", "sgl_model_gateway.sim_worker", "--host", "0.0.0.0", "--port", str(worker_port)]
        served = stack.enter_context(running(worker, other, room / "worker.log"))
        wait_until_answered(served, room / "worker.log", f"http://{HOST}:{worker_port}/health", None, 20)
        os.environ["KUBECONFIG"] = str(room / "kubeconfig")
        # Before the API server starts, which inherits it.
        os.sched_setaffinity(0, {other})
        pods = stack.enter_context(cluster(worker_port, args.pods, room / "kubeconfig"))
        log = room / "gateway.log"
        gateway = stack.enter_context(running(gateway_command(args.python, port, worker_port, args.flags), core, log))
        url = f"http://{HOST}:{port}"
        wait_until_answered(gateway, log, f"{url}/readiness", None, 30)
        wait_until_ready(url, args.pods)
        usage = Usage(gateway.pid)
        measure(url, usage, pods, args, watched=True)
        rounds = []
        for number in range(2 * args.rounds):
            rounds.append(measure(url, usage, pods, args, watched=bool(number % 2)))
            print(rounds[-1], file=sys.stderr)
        return rounds


@contextmanager
def cluster(port: int, count: int, kubeconfig: Path) -> Iterator[Connection]:
    """The API server in a process of its own, once it serves."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve_pods, args=(theirs, port, count, kubeconfig), daemon=True)
    process.start()
    try:
        ours.recv()
        yield ours
    finally:
        process.terminate()
        process.join()


def wait_until_ready(url: str, count: int) -> None:
    end = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < end:
        with urllib.request.urlopen(f"{url}/readiness", timeout=5) as response:
            found: dict[str, Any] = json.load(response)
        if found["healthy_workers"] >= count:
            return
        time.sleep(0.1)
    raise BenchError(f"{found['healthy_workers']} of {count} pods ready after {READY_WITHIN_S:.0f} s")


def table(rounds: list[Round]) -> str:
    """The medians of both kinds of rounds, and what changes cost the gateway."""
    quiet, busy = rounds[::2], rounds[1::2]

    def median(kind: list[Round], name: str) -> float:
        return float(statistics.median(getattr(one, name) for one in kind))

    lines = ["| rounds | core | p50 | p99 | failed | RSS at the end |", "| --- | --- | --- | --- | --- | --- |"]
    for name, kind in (("other pods change", quiet), ("these pods change", busy)):
        core, p50, p99 = (median(kind, field) for field in ("core", "p50_ms", "p99_ms"))
        failed = sum(one.failed for one in kind)
        lines.append(f"| {name} | {core:.1%} | {p50:.2f} ms | {p99:.2f} ms | {failed} | {kind[-1].rss_mb:.0f} MB |")
    more = median(busy, "core") - median(quiet, "core")
    ratio = median(busy, "p99_ms") / median(quiet, "p99_ms")
    growth = busy[-1].rss_mb / busy[0].rss_mb
    lines += [
        "",
        f"{busy[0].changes} changes a round take {more:.1%} of a core; p99 is {ratio:.2f} times as long; memory is "
        f"{growth:.2f} times that after the first of these rounds.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="interpreter whose gateway is measured")
    parser.add_argument("--pods", type=int, default=500)
    parser.add_argument("--changes", type=float, default=10.0, help="pods that change per second")
    parser.add_argument("--rate", type=float, default=200.0, help="requests per second")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of a round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each kind")
    parser.add_argument("flags", nargs="*", help="further flags of the gateway, behind --")
    args = parser.parse_args()

    def measured() -> bool:
        require_tools(["taskset", "setpriv"])
        print(table(run(args)))
        return True

    finish(measured)


if __name__ == "__main__":
    main()
