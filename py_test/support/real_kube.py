"""A real kube-apiserver with etcd and no nodes: pods are objects whose status a test writes.

`make test-k8s` sets KUBERNETES_DIR.
"""

from __future__ import annotations

import json
import os
import ssl
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from .certificates import Files
from .ports import free_port
from .process import Process
from .waiting import DEADLINE, wait_for

FOLDER = os.environ.get("KUBERNETES_DIR", "")
ONLY_WITH_KUBERNETES = pytest.mark.skipif(not FOLDER, reason="KUBERNETES_DIR is not set; see `make test-k8s`")
ADMIN = "token-of-the-administrator"
MERGE = "application/merge-patch+json"
STARTING = 60.0  # seconds

Object = dict[str, Any]


class Cluster:
    """An API server on free ports of the loopback, with RBAC.

    Args:
        folder: for certificates and data.
    """

    def __init__(self, folder: Path) -> None:
        self._stack = ExitStack()
        self._folder = folder
        self._files = Files(folder / "pki")
        try:
            self._start(folder)
        except BaseException:
            self.stop()
            raise

    def _start(self, folder: Path) -> None:
        store, peers, port = free_port(), free_port(), free_port()
        self._spawn(
            "etcd",
            *("--data-dir", str(folder / "etcd"), "--listen-peer-urls", f"http://127.0.0.1:{peers}"),
            *("--listen-client-urls", f"http://127.0.0.1:{store}"),
            *("--advertise-client-urls", f"http://127.0.0.1:{store}"),
        )
        cert, key = self._files.issue("127.0.0.1")
        tokens = folder / "tokens.csv"
        tokens.write_text(f'{ADMIN},administrator,1,"system:masters"\n')
        signer = self._signing_key()
        self.url = f"https://127.0.0.1:{port}"
        self._trust = ssl.create_default_context(cafile=self._files.ca)
        self._spawn(
            "kube-apiserver",
            *("--etcd-servers", f"http://127.0.0.1:{store}", "--bind-address", "127.0.0.1"),
            *("--advertise-address", "127.0.0.1", "--endpoint-reconciler-type", "none", "--insecure-port", "0"),
            *("--secure-port", str(port), "--tls-cert-file", cert, "--tls-private-key-file", key),
            *("--authorization-mode", "RBAC", "--token-auth-file", str(tokens), "--anonymous-auth=false"),
            *("--service-account-issuer", "https://cluster.test", "--service-account-key-file", signer),
            *("--service-account-signing-key-file", signer, "--service-cluster-ip-range", "10.96.0.0/24"),
            # No controller makes the accounts and secrets that pods are given by it.
            *("--disable-admission-plugins", "ServiceAccount", "--cert-dir", str(folder)),
        )
        wait_for(self._is_ready, "the API server is ready", STARTING)

    def _spawn(self, program: str, *flags: str) -> None:
        process = Process(*flags, python=str(Path(FOLDER) / "bin" / program))
        self._stack.callback(process.destroy)

    def _signing_key(self) -> str:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL)
        path = self._folder / "accounts.key"
        path.write_bytes(key.private_bytes(*form, serialization.NoEncryption()))
        return str(path)

    def _is_ready(self) -> bool:
        try:
            return self.call("GET", "/readyz")[0] == 200
        except OSError:
            return False

    def stop(self) -> None:
        self._stack.close()

    # --- objects

    def call(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> tuple[int, Any]:
        """Status and answer of a call by the administrator."""
        headers = {"authorization": f"Bearer {ADMIN}", "content-type": content_type}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE, context=self._trust) as response:
                status, text = response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                status, text = error.code, error.read()
        return status, json.loads(text) if text[:1] == b"{" else text

    def create(self, path: str, found: Object) -> Object:
        status, answer = self.call("POST", path, found)
        assert status == 201, answer
        return dict(answer)

    def namespace(self, name: str) -> None:
        self.create("/api/v1/namespaces", {"metadata": {"name": name}})

    def pod(self, namespace: str, name: str, labels: dict[str, str], annotations: dict[str, str]) -> str:
        """A pod on a node that does not exist; returns its uid."""
        meta = {"name": name, "labels": labels, "annotations": annotations}
        spec = {"nodeName": "none", "containers": [{"name": "engine", "image": "x"}]}
        created = self.create(f"/api/v1/namespaces/{namespace}/pods", {"metadata": meta, "spec": spec})
        return str(created["metadata"]["uid"])

    def set_status(self, namespace: str, name: str, ip: str, ready: bool, phase: str = "Running") -> None:
        """As a kubelet does."""
        conditions = [{"type": "Ready", "status": str(ready)}]
        status = {"phase": phase, "podIP": ip, "podIPs": [{"ip": ip}], "conditions": conditions}
        self._patch(f"/api/v1/namespaces/{namespace}/pods/{name}/status", {"status": status})

    def set_labels(self, namespace: str, name: str, **labels: str | None) -> None:
        self._patch(f"/api/v1/namespaces/{namespace}/pods/{name}", {"metadata": {"labels": labels}})

    def _patch(self, path: str, change: Object) -> None:
        status, answer = self.call("PATCH", path, change, MERGE)
        assert status == 200, answer

    def delete(self, namespace: str, name: str, grace: int) -> None:
        """With a grace period, the pod stays until it is deleted without."""
        path = f"/api/v1/namespaces/{namespace}/pods/{name}?gracePeriodSeconds={grace}"
        status, answer = self.call("DELETE", path)
        assert status in (200, 202), answer

    # --- rights

    def account(self, namespace: str, name: str = "gateway") -> str:
        """A service account without rights; returns a token of it."""
        accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        self.create(accounts, {"metadata": {"name": name}})
        spec = {"audiences": ["https://cluster.test"], "expirationSeconds": 3600}
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        return str(self.create(f"{accounts}/{name}/token", request)["status"]["token"])

    def allow_pods(self, namespace: str, account: str, name: str = "gateway") -> None:
        """The service account `name` of the namespace `account` may see the pods of `namespace`."""
        path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
        rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]
        self.create(f"{path}/roles", {"metadata": {"name": name}, "rules": rules})
        subject = {"kind": "ServiceAccount", "name": name, "namespace": account}
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
        binding = {"metadata": {"name": name}, "roleRef": role, "subjects": [subject]}
        self.create(f"{path}/rolebindings", binding)

    def kubeconfig(self, token: str) -> str:
        """The path of a kubeconfig with that token."""
        cluster = {"name": "c", "cluster": {"server": self.url, "certificate-authority": self._files.ca}}
        user = {"name": "u", "user": {"token": token}}
        context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
        config = {"apiVersion": "v1", "kind": "Config", "current-context": "x"}
        path = self._folder / "kubeconfig"
        path.write_text(json.dumps(config | {"clusters": [cluster], "users": [user], "contexts": [context]}))
        return str(path)
