"""Pods of a real kube-apiserver: `make test-k8s`. Skipped unless KUBERNETES_DIR says where it is."""

from __future__ import annotations

import asyncio
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.client import Client, Reply, call
from support.gateway import Gateway
from support.ports import free_port
from support.real_kube import ONLY_WITH_KUBERNETES, Cluster
from support.waiting import wait_for
from support.workers import Worker

pytestmark = [ONLY_WITH_KUBERNETES, pytest.mark.timeout(900)]
OPERATIONS = int(os.environ.get("OPERATIONS", "1000"))
SEED = int(os.environ.get("SEED", "1"))
BURST = 25
SOON = 2.0  # seconds
PER_SECOND = 100
CHAT, PAIRS = "team-a", "team-b"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def start(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Gateway]]:
    """`start(token, "--selector", "app=x")`: a gateway that looks for pods with that token."""
    with ExitStack() as stack:

        def start(token: str, *flags: str) -> Gateway:
            monkeypatch.setenv("KUBECONFIG", cluster.kubeconfig(token))
            gateway = Gateway([], "--service-discovery", *flags)
            stack.callback(gateway.destroy)
            return gateway

        yield start


def discovery(gateway: Gateway) -> dict[str, object]:
    return dict(call(gateway.url, "GET", "/readiness")[1]["discovery"]["kubernetes"])


class Pod:
    """What a pod of the test is meant to be."""

    def __init__(self, name: str, uid: str, worker: Worker) -> None:
        self.name, self.uid, self.worker = name, uid, worker
        self.labels: dict[str, str] = {}
        self.is_ready = self.ends = self.is_anchor = False
        self.turned = 0.0
        """When it ceased to be ready."""

    @property
    def namespace(self) -> str:
        return CHAT if self.labels["app"] in ("chat", "idle-chat") else PAIRS

    @property
    def ip(self) -> str:
        return self.worker.url.split("/")[2].split(":")[0]

    def role(self) -> str | None:
        """Of its worker; `None` for a pod that is none."""
        if self.ends or self.labels["app"].startswith("idle"):
            return None
        roles = {"p": "prefill", "d": "decode"}
        return roles.get(self.labels.get("role", ""), "regular") if self.namespace == PAIRS else "regular"

    def is_asked_for(self) -> bool:
        """It would get requests if it were ready."""
        return not self.is_ready and self.namespace == CHAT

    def requests(self) -> int:
        """That have come to its worker."""
        return self.worker.stats()["requests"]


class Fleet:
    """Pods, the workers that they stand for, and what happens to them."""

    ADDRESSES = 14

    def __init__(self, cluster: Cluster, stack: ExitStack, rng: random.Random) -> None:
        self.cluster, self.rng = cluster, rng
        self.pods: dict[str, Pod] = {}
        self.done: Counter[str] = Counter()
        self.port = free_port()
        self._stack = stack
        self._workers: dict[str, Worker] = {}
        self._made = 0

    def _worker(self, ip: str) -> Worker:
        known = self._workers.get(ip)
        if known is None:
            known = Worker(host=ip, port=self.port, model="m", decode_step_base_ms=2)
            self._stack.callback(known.destroy)
            self._workers[ip] = known
        elif known.process.poll() is not None:
            known.restart()
        return known

    def free(self) -> list[str]:
        used = {pod.ip for pod in self.pods.values()}
        return [ip for at in range(2, 2 + self.ADDRESSES) if (ip := f"127.0.0.{at}") not in used]

    def create(self, app: str | None = None, ready: bool | None = None) -> Pod:
        ip = self.rng.choice(self.free())
        worker = self._worker(ip)
        self._made += 1
        name = f"pod-{self._made}"
        labels = {"app": app or self.rng.choice(["chat", "pd"])}
        if labels["app"] == "pd" and (role := self.rng.choice(["p", "d", ""])):
            labels["role"] = role
        pod = Pod(name, "", worker)
        pod.labels = labels
        pod.uid = self.cluster.pod(pod.namespace, name, labels, {"smg.ai/worker-ports": str(self.port)})
        self.pods[name] = pod
        self.set_ready(pod, self.rng.random() < 0.7 if ready is None else ready)
        return pod

    def set_ready(self, pod: Pod, ready: bool) -> None:
        self.cluster.set_status(pod.namespace, pod.name, pod.ip, ready)
        if pod.is_ready and not ready:
            pod.turned = time.monotonic()
        pod.is_ready = ready

    def operate(self) -> None:
        """One thing that happens to a pod."""
        eligible = [pod for pod in self.pods.values() if not pod.is_anchor]
        if self.free() and (not eligible or self.rng.random() < 0.3):
            self.done["create"] += 1
            self.create()
            return
        pod = self.rng.choice(eligible)
        kinds = ["ready", "not ready", "terminate", "delete", "kill", "label", "role"]
        kind = self.rng.choices(kinds, [3, 3, 1, 1, 1, 2, 2])[0]
        self.done[kind] += 1
        getattr(self, f"_{kind.replace(' ', '_')}")(pod)

    def _ready(self, pod: Pod) -> None:
        self.set_ready(pod, True)

    def _not_ready(self, pod: Pod) -> None:
        self.set_ready(pod, False)

    def _terminate(self, pod: Pod) -> None:
        if not pod.ends:
            self.cluster.delete(pod.namespace, pod.name, grace=30)
            pod.ends = True

    def _delete(self, pod: Pod) -> None:
        self.cluster.delete(pod.namespace, pod.name, grace=0)
        del self.pods[pod.name]

    def _kill(self, pod: Pod) -> None:
        pod.worker.kill()
        self._delete(pod)

    def _label(self, pod: Pod) -> None:
        app = pod.labels["app"]
        pod.labels["app"] = app.removeprefix("idle-") if app.startswith("idle-") else f"idle-{app}"
        self.cluster.set_labels(pod.namespace, pod.name, app=pod.labels["app"])

    def _role(self, pod: Pod) -> None:
        pod.labels["role"] = self.rng.choice(["p", "d"])
        self.cluster.set_labels(pod.namespace, pod.name, role=pod.labels["role"])

    def intended(self, present: dict[str, tuple[str, str, bool]]) -> dict[str, tuple[str, str, bool]]:
        """The workers that must be there. A pod that is not ready may be there, if it has been."""
        meant = {}
        for pod in self.pods.values():
            role, url = pod.role(), pod.worker.url
            if role and (pod.is_ready or present.get(url, ("",))[0] == pod.uid):
                meant[url] = (pod.uid, role, pod.is_ready)
        return meant


def present(gateway: Gateway) -> dict[str, tuple[str, str, bool]]:
    """The workers of the registry by URL: uid of the pod, role, and whether the pod is ready."""
    staying = [worker for worker in gateway.workers() if worker["status"] != "draining"]
    return {
        worker["url"]: (worker["labels"]["smg.ai/pod-uid"], worker["worker_type"], worker["status"] != "not_ready")
        for worker in staying
    }


class Traffic(threading.Thread):
    """Requests on the clock, every second one a stream, for as long as it lasts."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url, self.over = url, threading.Event()
        self.replies: list[Reply] = []

    def run(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        async with Client(self.url) as client:
            started, tasks = time.monotonic(), []
            while not self.over.is_set():
                while len(tasks) < (time.monotonic() - started) * PER_SECOND:
                    body = {
                        "model": "chat",
                        "prompt": f"p {len(tasks)}",
                        "max_tokens": 8,
                        "stream": len(tasks) % 2 == 0,
                    }
                    tasks.append(asyncio.create_task(client.ask(body, "/v1/completions")))
                await asyncio.sleep(0.005)
            self.replies = await asyncio.gather(*tasks)


GROUPS = [
    {"name": "chat", "namespace": CHAT, "selector": {"app": "chat"}, "model_id": "chat"},
    {
        "name": "pairs",
        "namespace": PAIRS,
        "selector": {"app": "pd"},
        "prefill_selector": {"app": "pd", "role": "p"},
        "decode_selector": {"app": "pd", "role": "d"},
        "model_id": "pd",
    },
]


def test_registry_is_as_intended_after_every_burst_of_a_thousand_operations(
    cluster: Cluster, start: Callable[..., Gateway]
) -> None:
    for namespace in (CHAT, PAIRS):
        cluster.namespace(namespace)
    token = cluster.account(CHAT)
    for namespace in (CHAT, PAIRS):
        cluster.allow_pods(namespace, CHAT)
    with ExitStack() as stack:
        fleet = Fleet(cluster, stack, random.Random(SEED))
        # Two that stay, so that no request's only pod is killed.
        for _ in range(2):
            fleet.create("chat", ready=True).is_anchor = True
        gateway = start(token, "--service-discovery-groups", json.dumps(GROUPS)).wait_ready(2)
        traffic = Traffic(gateway.url)
        traffic.start()
        times, quiet = [], 0
        for _ in range(OPERATIONS // BURST):
            for _ in range(BURST):
                fleet.operate()
            times.append(settle(fleet, gateway))
            quiet += check_not_ready_are_left_alone(fleet)
        traffic.over.set()
        traffic.join(60)
        lost = [reply for reply in traffic.replies if not reply.ok]
        times.sort()
        print(
            f"\nseed {SEED}: {sum(fleet.done.values())} operations {dict(fleet.done)}; registry as intended after "
            f"{times[len(times) // 2] * 1000:.0f} ms (median), {times[-1] * 1000:.0f} ms (longest) of {len(times)} "
            f"bursts; {len(traffic.replies)} requests, {len(lost)} lost; {quiet} pods that were not ready got none"
        )
        # A stream that a killed pod had begun ends with it; its head has come.
        assert [reply for reply in lost if reply.status != 200] == []
        assert len(lost) <= fleet.done["kill"] * 2
        assert sum(fleet.done.values()) == OPERATIONS and quiet > OPERATIONS / 100
        gateway.assert_nothing_left()


def settle(fleet: Fleet, gateway: Gateway) -> float:
    """Seconds until the registry is as intended."""
    begun = time.monotonic()
    while True:
        found = present(gateway)
        meant = fleet.intended(found)
        if found == meant:
            return time.monotonic() - begun
        assert time.monotonic() < begun + SOON, f"{found}\nintended {meant}"


def check_not_ready_are_left_alone(fleet: Fleet) -> int:
    """From a second after a pod has ceased to be ready, its worker gets no request; returns how many were looked at."""
    unready = [pod for pod in fleet.pods.values() if pod.turned and pod.role() and pod.is_asked_for()]
    if not unready:
        return 0
    last = max(pod.turned for pod in unready)
    wait_for(lambda: time.monotonic() >= last + 1, "a second has passed")
    before = {pod.name: pod.requests() for pod in unready}
    until = time.monotonic() + 0.5
    wait_for(lambda: time.monotonic() >= until, "some requests later")
    assert {pod.name: pod.requests() for pod in unready} == before
    return len(unready)


def test_denied_rights_name_verb_resource_and_namespace_and_end_when_granted(
    cluster: Cluster, start: Callable[..., Gateway]
) -> None:
    for namespace in (CHAT, PAIRS):
        cluster.namespace(namespace)
    token = cluster.account(CHAT)
    cluster.allow_pods(CHAT, CHAT)
    with ExitStack() as stack:
        fleet = Fleet(cluster, stack, random.Random(SEED))
        chat = fleet.create("chat", ready=True)
        other = fleet.create("pd", ready=True)
        gateway = start(token, "--service-discovery-groups", json.dumps(GROUPS))
        line = gateway.wait_for_line("may not list pods in namespace team-b").string
        assert 'cannot list resource \\"pods\\" in API group' in line
        assert discovery(gateway)["failing"] == {"namespace team-b": "denied"}
        wait_for(lambda: set(present(gateway)) == {chat.worker.url}, "the other namespace is followed")
        cluster.allow_pods(PAIRS, CHAT)
        wait_for(lambda: other.worker.url in present(gateway), "the right is granted", 40)
        assert discovery(gateway)["status"] == "ok"


def test_wrong_token_is_reported_and_read_again(cluster: Cluster, start: Callable[..., Gateway]) -> None:
    cluster.namespace(CHAT)
    gateway = start("no-token", "--selector", "app=chat", "--service-discovery-namespace", CHAT)
    wait_for(lambda: discovery(gateway).get("reason") == "unauthenticated", "the token is refused")
    token = cluster.account(CHAT)
    cluster.allow_pods(CHAT, CHAT)
    cluster.kubeconfig(token)
    wait_for(lambda: discovery(gateway)["status"] == "ok", "the new token is read", 40)
