"""Workers that are pods, over the real command line and a scripted API server."""

from __future__ import annotations

import json
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.backend import Backend, says
from support.client import call, get_json
from support.gateway import Gateway
from support.kube_api import KubeApi, kube_api, pod, slice_of
from support.waiting import wait_for

Start = Callable[..., Gateway]


@pytest.fixture
def api() -> Iterator[KubeApi]:
    with kube_api() as server:
        yield server


@pytest.fixture
def start(api: KubeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """`start("--selector", "app=x")`: a gateway that looks for pods."""
    monkeypatch.setenv("KUBECONFIG", api.write_kubeconfig(tmp_path / "kubeconfig"))
    with ExitStack() as stack:

        def start(*flags: str) -> Gateway:
            gateway = Gateway([], "--service-discovery", *flags)
            stack.callback(gateway.destroy)
            return gateway

        yield start


def port(url: str) -> int:
    return urlsplit(url).port or 0


def urls(gateway: Gateway) -> list[str]:
    return sorted(worker["url"] for worker in gateway.workers())


def discovery(gateway: Gateway) -> dict[str, Any]:
    """What `/readiness` says of the source, whatever its status."""
    return call(gateway.url, "GET", "/readiness")[1]["discovery"]["kubernetes"]


OME = "--service-discovery-namespace ns --selector 'component=engine ome.io/inferenceservice=x'"
WORDS = "--selector component=engine ome.io/inferenceservice=x --service-discovery-namespace ns"


COMMAS = "--selector component=engine,ome.io/inferenceservice=x --service-discovery-namespace ns"
LWS = "leaderworkerset.sigs.k8s.io"
LEADERS = f"--selector {LWS}/name=x {LWS}/worker-index=0 --service-discovery-namespace ns"


@pytest.mark.parametrize(
    "flags", [OME, WORDS, COMMAS, LEADERS, f"{OME} --policy cache_aware --model-id-from label:model"]
)
def test_published_command_lines_find_pods(sim_workers: Any, api: KubeApi, start: Start, flags: str) -> None:
    first, second = (worker.url for worker in sim_workers(2))
    labels = {"component": "engine", "ome.io/inferenceservice": "x", "model": "m-1"}
    labels |= {f"{LWS}/name": "x", f"{LWS}/worker-index": "0"}
    api.put(pod("a", port(first), **labels), pod("b", port(second), **labels))
    api.put(pod("other", 1, component="router"), pod("foreign", 2, component="engine"))
    gateway = start(*shlex.split(flags)).wait_ready(2)
    assert urls(gateway) == sorted([first, second])
    worker = gateway.worker(first)
    assert (worker["source"], worker["labels"]["smg.ai/pod-name"]) == ("kubernetes", "a")
    assert ("m-1" == worker["model_id"]) == ("--model-id-from" in flags)
    assert call(gateway.url, "POST", "/generate", {"text": "hi"})[0] == 200
    assert all(path.startswith("/api/v1/namespaces/ns/pods?") for path in api.asked)
    shown = discovery(gateway)
    assert (shown["status"], shown["workers"]) == ("ok", 2)
    assert gateway.metrics("smg_discovery_up") == {'{source="kubernetes"}': 1}


RBG = "rolebasedgroup.workloads.x-k8s.io"
PAIRS = [
    "--pd-disaggregation --prefill-selector app=sglang component=prefill --decode-selector app=sglang component=decode",
    "--pd-disaggregation --prefill-selector 'app=sglang component=prefill' --decode-selector 'component=decode'",
    # Of a RoleBasedGroup: one word, with a comma.
    f"--pd-disaggregation --service-discovery-namespace ns --prefill-selector {RBG}/name=w-1,{RBG}/role=prefill"
    f" --decode-selector {RBG}/name=w-1,{RBG}/role=decode",
]


@pytest.mark.parametrize("flags", PAIRS)
def test_pods_of_two_roles_serve_as_pairs(sim_workers: Any, api: KubeApi, start: Start, flags: str) -> None:
    prefill, decode = (
        sim_workers(1, disaggregation_mode=role, disaggregation_bootstrap_port=0)[0].url
        for role in ("prefill", "decode")
    )
    leader = {f"{LWS}/worker-index": "0"}
    group = {role: {f"{RBG}/name": "w-1", f"{RBG}/role": role} for role in ("prefill", "decode")}
    api.put(pod("p", port(prefill), app="sglang", component="prefill", **leader, **group["prefill"]))
    gateway = start(*shlex.split(flags))
    wait_for(lambda: urls(gateway) == [prefill], "the prefill pod is found")
    assert call(gateway.url, "GET", "/readiness")[0] == 503
    api.put(pod("d", port(decode), app="sglang", component="decode", **leader, **group["decode"]))
    gateway.wait_ready(2)
    assert call(gateway.url, "POST", "/generate", {"text": "hi"})[0] == 200
    assert {worker["worker_type"] for worker in gateway.workers()} == {"prefill", "decode"}


def test_groups_find_pods_of_several_namespaces_and_models(sim_workers: Any, api: KubeApi, start: Start) -> None:
    chat, code = (sim_workers(1, model=model)[0].url for model in ("m-chat", "m-code"))
    api.put(pod("a", port(chat), namespace="team-a", app="chat"), pod("b", port(code), namespace="team-b", app="code"))
    groups = [
        {"name": "chat", "namespace": "team-a", "selector": {"app": "chat"}, "model_id": "chat"},
        {"name": "code", "namespace": "team-b", "selector": {"app": "code"}, "model_id": "code"},
    ]
    api.denied.add("team-b")
    gateway = start("--service-discovery-groups", json.dumps(groups)).wait_ready(1)
    gateway.wait_for_line("may not list pods in namespace team-b; the service account needs a Role")
    shown = discovery(gateway)
    assert (shown["status"], shown["failing"]) == ("failing", {"namespace team-b": "denied"})
    assert urls(gateway) == [chat]
    assert call(gateway.url, "POST", "/v1/completions", {"model": "chat", "prompt": "hi", "max_tokens": 1})[0] == 200
    api.denied.clear()
    gateway.wait_ready(2)
    assert {worker["url"]: worker["model_id"] for worker in gateway.workers()} == {chat: "chat", code: "code"}
    assert discovery(gateway)["status"] == "ok" and "failing" not in discovery(gateway)


def test_endpoint_slices_of_services_give_workers(sim_workers: Any, api: KubeApi, start: Start) -> None:
    (worker,) = sim_workers(1)
    one = pod("a", port(worker.url))
    api.put(slice_of("engine", one, port=port(worker.url), app="engine"))
    by = ["--service-discovery-by", "endpointslices", "--service-discovery-port-name", "http"]
    gateway = start("--selector", "app=engine", *by).wait_ready(1)
    assert gateway.worker(worker.url)["labels"]["smg.ai/pod-name"] == "a"
    assert all(path.startswith("/apis/discovery.k8s.io/v1/endpointslices?") for path in api.asked)
    assert (discovery(gateway)["status"], discovery(gateway)["workers"]) == ("ok", 1)
    one["status"]["conditions"][0]["status"] = "False"
    api.put(slice_of("engine", one, port=port(worker.url), app="engine"))
    wait_for(lambda: gateway.worker(worker.url)["status"] == "not_ready", "it is held back", 2)


def serving_backend() -> Backend:
    backend = Backend()
    for path in ("/health", "/v1/models"):
        backend.on(path, says({}))
    for path in ("/server_info", "/model_info"):
        backend.on(path, says({"model_path": "m", "served_model_name": "m"}))
    backend.on("/generate", says({"text": "hello"}))
    return backend


def requests_at(backend: Backend) -> int:
    return sum(exchange.path == "/generate" for exchange in list(backend.seen))


class Load:
    """Requests one after the other, for as long as it lasts."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway, self._over = gateway, threading.Event()
        self.statuses: list[int] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._over.is_set():
            self.statuses.append(call(self._gateway.url, "POST", "/generate", {"text": "hi"})[0])

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(20)

    def go_on(self, count: int = 50) -> None:
        """Returns after so many more requests."""
        before = len(self.statuses)
        wait_for(lambda: len(self.statuses) >= before + count, f"{count} requests")


def test_pod_that_is_not_ready_gets_no_request_a_second_later_and_comes_back(api: KubeApi, start: Start) -> None:
    with ExitStack() as stack:
        backends = [serving_backend() for _ in range(3)]
        for backend in backends:
            stack.callback(backend.close)
        api.put(*(pod(f"p{at}", port(backend.url), app="e") for at, backend in enumerate(backends)))
        gateway = start("--selector", "app=e", "--policy", "round_robin").wait_ready(3)
        load = stack.enter_context(Load(gateway))
        load.go_on()
        turned = time.monotonic()
        api.set_ready("p1", False)
        wait_for(lambda: gateway.worker(backends[1].url)["status"] == "not_ready", "it is held back", 1)
        wait_for(lambda: time.monotonic() >= turned + 1, "a second has passed")
        before = requests_at(backends[1])
        load.go_on()
        assert requests_at(backends[1]) == before
        api.set_ready("p1", True)
        wait_for(lambda: requests_at(backends[1]) > before, "it gets requests again", 2)
        api.delete("p2")
        wait_for(lambda: backends[2].url not in urls(gateway), "it has left", 2)
        before = requests_at(backends[2])
        load.go_on()
        assert requests_at(backends[2]) == before
        assert set(load.statuses) == {200}


def test_requests_are_served_while_the_api_server_is_away(sim_workers: Any, api: KubeApi, start: Start) -> None:
    (worker,) = sim_workers(1)
    api.put(pod("a", port(worker.url), app="e"))
    gateway = start("--selector", "app=e").wait_ready(1)
    api.refuse_with = 503
    api.set_ready("a", True)  # the watch ends with its time, 20 s at most
    api.stop()
    wait_for(lambda: discovery(gateway)["status"] == "failing", "the source fails", 40)
    assert discovery(gateway)["reason"] in ("unreachable", "refused")
    assert call(gateway.url, "GET", "/readiness")[0] == 200
    assert call(gateway.url, "POST", "/generate", {"text": "hi"})[0] == 200


def test_denied_access_names_verb_resource_and_what_is_missing(api: KubeApi, start: Start) -> None:
    api.refuse_with = 403
    gateway = start("--selector", "app=e")
    line = gateway.wait_for_line("may not list").string
    assert "may not list pods in all namespaces; the service account needs a ClusterRole with the verbs get" in line
    assert discovery(gateway)["reason"] == "denied"
    api.refuse_with = 0
    wait_for(lambda: discovery(gateway)["status"] == "ok", "access is granted")


def test_credentials_that_change_are_read_again(api: KubeApi, start: Start, tmp_path: Path) -> None:
    api.write_kubeconfig(tmp_path / "kubeconfig", token="old")
    gateway = start("--selector", "app=e")
    wait_for(lambda: discovery(gateway).get("reason") == "unauthenticated", "the old token is not accepted")
    api.write_kubeconfig(tmp_path / "kubeconfig")
    wait_for(lambda: discovery(gateway)["status"] == "ok", "the new token is read")


def test_gateway_without_a_cluster_starts_and_says_so(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    gateway = start(*shlex.split(OME))
    gateway.wait_for_line("knows no cluster")
    assert discovery(gateway)["reason"] == "no_cluster"
    assert get_json(f"{gateway.url}/workers")["total"] == 0
