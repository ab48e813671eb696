"""A scripted Kubernetes API server for a gateway that is a process: lists and watches of pods and endpoint slices."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "token-of-the-gateway"

Pod = dict[str, Any]
"""A pod or an endpoint slice."""


def slice_of(service: str, *pods: Pod, port: int | None = None, **labels: str) -> Pod:
    """The endpoint slice of a service that selects these pods. In labels, `_` stands for `-`."""
    endpoints = []
    for one in pods:
        meta, status = one["metadata"], one["status"]
        ready = status["conditions"][0]["status"] == "True"
        target = {"kind": "Pod", "name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"]}
        conditions = {"ready": ready, "serving": ready, "terminating": False}
        endpoints.append({"addresses": [status["podIP"]], "conditions": conditions, "targetRef": target})
    found = {key.replace("_", "-"): value for key, value in labels.items()}
    return {
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "addressType": "IPv4",
        "metadata": {
            "name": f"{service}-slice",
            "namespace": "ns",
            "uid": f"uid-{service}",
            "labels": {"kubernetes.io/service-name": service, **found},
            "creationTimestamp": "2026-11-01T00:00:00Z",
        },
        "endpoints": endpoints,
        "ports": [{"name": "http", "port": port}] if port else [],
    }


def pod(name: str, port: int, *, ip: str = "127.0.0.1", namespace: str = "ns", **labels: str) -> Pod:
    """A pod that runs and is ready, whose engine has this port. In labels, `_` stands for `-`."""
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-{name}",
            "labels": {key.replace("_", "-"): value for key, value in labels.items()},
            "annotations": {"smg.ai/worker-ports": str(port)},
            "creationTimestamp": "2026-11-01T00:00:00Z",
        },
        "spec": {"containers": [{"name": "engine", "image": "x"}]},
        "status": {
            "phase": "Running",
            "podIP": ip,
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


class Handler(BaseHTTPRequestHandler):
    """One request of a list or a watch."""

    server: KubeApi  # type: ignore[assignment]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.server.asked.append(self.path)
        scope = Scope(url.path, query.get("labelSelector", ""))
        code = self.server.refuse_with
        if scope.namespace in self.server.denied:
            code = 403
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            code = 401
        if code:
            self.answer(code, {"kind": "Status", "code": code, "message": "pods is forbidden", "reason": "Forbidden"})
        elif query.get("watch") in ("true", "1"):
            self.watch(query, scope)
        else:
            with self.server.changed:
                items = [it for it in self.server.pods.values() if scope.has(it)]
                version = str(self.server.version)
            self.answer(200, {"kind": "List", "metadata": {"resourceVersion": version}, "items": items})

    def watch(self, query: dict[str, str], scope: Scope) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        seen, end = int(query["resourceVersion"]), time.monotonic() + int(query["timeoutSeconds"])
        try:
            for kind, found in self.server.changes(scope, seen, end):
                line = json.dumps({"type": kind, "object": found}).encode() + b"\n"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True

    def answer(self, status: int, value: Any) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


class Scope:
    """Which objects a request is for."""

    def __init__(self, path: str, selector: str) -> None:
        self._kind = "EndpointSlice" if path.endswith("/endpointslices") else "Pod"
        self.namespace = path.partition("/namespaces/")[2].partition("/")[0] or None
        self._selector = selector

    def has(self, found: Pod) -> bool:
        is_here = self.namespace in (None, found["metadata"]["namespace"])
        return is_here and found.get("kind", "Pod") == self._kind and selects(self._selector, found)


def selects(selector: str, found: Pod) -> bool:
    """Whether `a=1,b in (1,2)` matches the pod."""
    labels = found["metadata"]["labels"]
    terms = selector.replace(" in (", "=").replace("),", ";").rstrip(")")
    values = {}
    for term in terms.split(";"):
        # Behind the first key that has several values, commas are between these.
        for part in term.split(","):
            key, equals, value = part.partition("=")
            if equals:
                values[key] = [value]
            elif part:
                values[next(reversed(values))].append(part)
    return all(labels.get(key) in allowed for key, allowed in values.items())


class KubeApi(ThreadingHTTPServer):
    """Pods by name. Every change has a version, by which watches go on."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pods: dict[str, Pod] = {}
        self.version = 1
        self.asked: list[str] = []
        self.refuse_with = 0
        self.denied: set[str | None] = set()
        """Namespaces that may not be read."""
        self._silenced = -1
        self.changed = threading.Condition()
        self._log: list[tuple[int, Pod | None, Pod | None]] = []
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def put(self, *pods: Pod) -> None:
        for one in pods:
            self._log_change(one["metadata"]["name"], one)

    def change(self, name: str, change: Callable[[Pod], None]) -> None:
        copy = json.loads(json.dumps(self.pods[name]))
        change(copy)
        self._log_change(name, copy)

    def set_ready(self, name: str, ready: bool) -> None:
        def set_condition(found: Pod) -> None:
            found["status"]["conditions"][0]["status"] = str(ready)

        self.change(name, set_condition)

    def delete(self, name: str) -> None:
        self._log_change(name, None)

    def lose(self, name: str) -> None:
        """Deletes it, and no watch hears of that."""
        with self.changed:
            self.version += 1
            del self.pods[name]

    def silence(self) -> None:
        """The watches that there are say nothing from now on, and do not end."""
        self._silenced = self.version

    def _log_change(self, name: str, new: Pod | None) -> None:
        with self.changed:
            self.version += 1
            old = self.pods.pop(name, None)
            for one in (old, new):
                if one is not None:
                    one["metadata"]["resourceVersion"] = str(self.version)
            if new is not None:
                self.pods[name] = new
            self._log.append((self.version, old, new))
            self.changed.notify_all()

    def changes(self, scope: Scope, seen: int, end: float) -> Iterator[tuple[str, Pod]]:
        """The events of a watch from the version `seen` to its end."""
        begun = self.version
        while True:
            with self.changed:
                while begun <= self._silenced:
                    self.changed.wait()
                news = [change for change in self._log if change[0] > seen]
                if not news:
                    left = end - time.monotonic()
                    if left <= 0:
                        return
                    self.changed.wait(left)
                    continue
            seen = news[-1][0]
            for _, old, new in news:
                before, after = old and scope.has(old), new and scope.has(new)
                if new and after:
                    yield ("MODIFIED" if before else "ADDED"), new
                elif old and before:
                    yield "DELETED", old

    def write_kubeconfig(self, path: Path, token: str = TOKEN) -> str:
        cluster = {"name": "c", "cluster": {"server": self.url}}
        user = {"name": "u", "user": {"token": token}}
        context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
        config = {"apiVersion": "v1", "kind": "Config", "current-context": "x"}
        config |= {"clusters": [cluster], "users": [user], "contexts": [context]}  # type: ignore[dict-item]
        # JSON is YAML.
        path.write_text(json.dumps(config))
        return str(path)

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


@contextmanager
def kube_api() -> Iterator[KubeApi]:
    server = KubeApi()
    try:
        yield server
    finally:
        server.stop()
