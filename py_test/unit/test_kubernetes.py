"""The manifests of deploy/kubernetes: they fit Kubernetes' schemas, the gateway's flags, and each other."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from support.manifests import FOLDER, Manifest, build, key, pods, ports_of, selected
from support.pages import ROOT
from support.promql import rows_of_metrics

from sgl_model_gateway.launch_router import parse_router_args
from sgl_model_gateway.router import Router
from sgl_model_gateway.router_args import RouterArgs

VERSION = re.search(r'^version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]  # type: ignore[index]
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
BUILDS = {name: build(name) for name in ("base", "discovery")}
GATEWAY, WORKER = "sgl-model-gateway", "sglang-worker"
# An old Kubernetes, and the newest that the schemas know.
RELEASES = ("1.29", kubernetes_validate.latest_version())

builds = pytest.mark.parametrize("manifests", BUILDS.values(), ids=BUILDS)
ALL = [pytest.param(it, id=f"{name}: {' '.join(key(it))}") for name, its in BUILDS.items() for it in its]


def one(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = (it for it in manifests if key(it) == (kind, name))
    return found


def gateway_pod(manifests: list[Manifest]) -> tuple[Manifest, Manifest]:
    """The specification of the gateway's pod, and its container."""
    pod = one(manifests, "Deployment", GATEWAY)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return pod, container


def options(manifests: list[Manifest]) -> RouterArgs:
    """What the gateway reads from its arguments. `$(NAME)` is a variable of the container."""
    _, container = gateway_pod(manifests)
    known = {it["name"] for it in container.get("env", [])}

    def expanded(word: str) -> str:
        assert set(re.findall(r"\$\((\w+)\)", word)) <= known, word
        return re.sub(r"\$\((\w+)\)", "value", word)

    return parse_router_args([expanded(word) for word in container["args"]])


# --- schemas


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("manifest", ALL)
def test_manifest_fits_the_schema(manifest: Manifest, release: str) -> None:
    kubernetes_validate.validate(manifest, release, strict=True)


def test_a_wrong_manifest_does_not_fit() -> None:
    wrong = one(build("base"), "Deployment", GATEWAY)
    wrong["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readinesProbe"):
        kubernetes_validate.validate(wrong, RELEASES[0], strict=True)


@pytest.mark.parametrize("name", [*BUILDS, "monitoring"])
def test_kubectl_builds_the_same(name: str) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run([kubectl, "kustomize", str(FOLDER / name)], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    built = {key(it): it for it in yaml.safe_load_all(done.stdout)}
    assert built == {key(it): it for it in build(name)}


# --- the gateway


@builds
def test_arguments_of_the_gateway_parse(manifests: list[Manifest]) -> None:
    assert options(manifests).host == "0.0.0.0"


@builds
def test_gateway_can_be_made(manifests: list[Manifest]) -> None:
    args = options(manifests)
    if args.service_discovery_namespace == "$(POD_NAMESPACE)":
        args.service_discovery_namespace = "sglang"  # as the kubelet does
    Router.from_args(args)


def test_an_argument_that_the_gateway_does_not_know_is_an_error() -> None:
    wrong = build("base")
    gateway_pod(wrong)[1]["args"].append("--no-such-flag")
    with pytest.raises(SystemExit):
        options(wrong)


def test_both_builds_start_the_gateway_alike_but_for_the_source_of_workers() -> None:
    static, found = (vars(options(manifests)) for manifests in BUILDS.values())
    source = {"worker_urls", "service_discovery", "service_discovery_namespace", "service_discovery_port", "selector"}
    assert {name for name in static if static[name] != found[name]} == source


@builds
def test_ports_are_those_of_the_arguments(manifests: list[Manifest]) -> None:
    pod = one(manifests, "Deployment", GATEWAY)["spec"]["template"]
    args = options(manifests)
    assert ports_of(pod) == {"http": args.port, "metrics": args.prometheus_port}


@builds
def test_pod_is_killed_only_after_the_drain(manifests: list[Manifest]) -> None:
    pod, container = gateway_pod(manifests)
    program, _, code = container["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "python", "the image has no `sleep`"
    (seconds,) = re.findall(r"time\.sleep\((\d+)\)", code)
    assert pod["terminationGracePeriodSeconds"] >= int(seconds) + options(manifests).shutdown_grace_period_secs + 10


@builds
def test_probes_ask_what_the_gateway_has(manifests: list[Manifest], gateway: Any) -> None:
    _, container = gateway_pod(manifests)
    url, status = gateway([]).url, {}
    for probe in ("livenessProbe", "readinessProbe"):
        status[probe] = status_of(url + container[probe]["httpGet"]["path"])
    assert status == {"livenessProbe": 200, "readinessProbe": 503}, "no worker is ready"


def status_of(url: str, key: str = "") -> int:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as response:
            return response.status  # type: ignore[no-any-return]
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@builds
def test_keys_are_a_file_of_a_secret_and_the_control_plane_is_closed(
    manifests: list[Manifest], gateway: Any, tmp_path: Path
) -> None:
    pod, container = gateway_pod(manifests)
    args = options(manifests)
    assert args.api_key is None and not args.control_plane_api_keys
    (mount,) = container["volumeMounts"]
    (volume,) = pod["volumes"]
    assert Path(str(args.api_keys_file)).parent == Path(mount["mountPath"])
    assert mount["name"] == volume["name"] and "subPath" not in mount
    # The group of the pod may read the file, which is root's.
    assert volume["secret"]["defaultMode"] == 0o440 and pod["securityContext"]["fsGroup"]
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps([{"name": "a", "key": "k"}]))
    url = gateway([], api_keys_file=str(keys)).url
    assert [status_of(f"{url}/workers", key) for key in ("", "k")] == [401, 401]


@builds
def test_gateways_spread_and_one_goes_at_a_time(manifests: list[Manifest]) -> None:
    deployment, budget = one(manifests, "Deployment", GATEWAY)["spec"], one(manifests, "PodDisruptionBudget", GATEWAY)
    spread = {it["topologyKey"] for it in deployment["template"]["spec"]["topologySpreadConstraints"]}
    assert spread == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    assert budget["spec"]["maxUnavailable"] == 1 < deployment["replicas"]
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    # A policy that several gateways agree on: docs/routing.md.
    assert options(manifests).policy in ("prefix_hash", "consistent_hashing")


# --- pods


@builds
def test_images_have_versions_and_the_gateway_has_this_one(manifests: list[Manifest]) -> None:
    images = {name: [it["image"] for it in pod["spec"]["containers"]] for name, pod in pods(manifests)}
    assert images[GATEWAY] == [f"sgl-model-gateway:{VERSION}"]
    for image in sum(images.values(), []):
        assert re.fullmatch(r"[\w./-]+:v?\d+(\.\d+)+", image), image


@builds
def test_containers_may_do_no_more_than_they_need(manifests: list[Manifest]) -> None:
    for _, pod in pods(manifests):
        assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["spec"]["enableServiceLinks"] is False
        for container in pod["spec"]["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is context["privileged"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert "memory" in container["resources"]["limits"]
    pod, container = gateway_pod(manifests)
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["securityContext"]["runAsNonRoot"] is True
    user = re.search(r"^USER (\d+):(\d+)", (ROOT / "Dockerfile").read_text(), re.M)
    assert user and {pod["securityContext"][it] for it in ("runAsUser", "runAsGroup")} == {int(user[1]), int(user[2])}


@builds
def test_selectors_select_one_kind_of_pod(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        spec, name = manifest.get("spec", {}), manifest["metadata"]["name"]
        labels = spec.get("selector") or spec.get("podSelector")
        if labels is not None:
            assert len(selected(manifests, labels.get("matchLabels", labels))) == 1, name
        if manifest["kind"] in ("Deployment", "StatefulSet"):
            assert selected(manifests, labels["matchLabels"]) == [spec["template"]]
            for constraint in spec["template"]["spec"].get("topologySpreadConstraints", []):
                assert constraint["labelSelector"] == labels


@builds
def test_named_ports_exist(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        if manifest["kind"] == "Service":
            (pod,) = selected(manifests, manifest["spec"]["selector"])
            names = [port["targetPort"] for port in manifest["spec"]["ports"]]
        elif manifest["kind"] == "NetworkPolicy":
            (pod,) = selected(manifests, manifest["spec"]["podSelector"]["matchLabels"])
            names = [port["port"] for rule in manifest["spec"].get("ingress", []) for port in rule["ports"]]
        else:
            continue
        assert set(names) <= set(ports_of(pod)), manifest["metadata"]["name"]
    for _, pod in pods(manifests):
        for container in pod["spec"]["containers"]:
            probes = [probe for name, probe in container.items() if name.endswith("Probe")]
            assert probes and {it["httpGet"]["port"] for it in probes} <= set(ports_of(pod))


# --- workers


def test_static_workers_are_the_pods_of_the_stateful_set() -> None:
    manifests = BUILDS["base"]
    workers = one(manifests, "StatefulSet", WORKER)["spec"]
    service = one(manifests, "Service", workers["serviceName"])
    assert service["spec"]["clusterIP"] == "None"
    host, port = service["metadata"]["name"], service["spec"]["ports"][0]["port"]
    urls = [f"http://{WORKER}-{number}.{host}:{port}" for number in range(workers["replicas"])]
    assert options(manifests).worker_urls == urls


def test_discovery_finds_the_workers_and_may_look_at_pods() -> None:
    manifests = BUILDS["discovery"]
    args = options(manifests)
    assert args.service_discovery and not args.worker_urls
    (workers,) = selected(manifests, args.selector)
    assert args.service_discovery_port == ports_of(workers)["http"]
    pod, container = gateway_pod(manifests)
    assert pod["automountServiceAccountToken"] is True
    role, binding = (one(manifests, kind, GATEWAY) for kind in ("Role", "RoleBinding"))
    assert role["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]
    assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) == key(role)
    account = one(manifests, "ServiceAccount", pod["serviceAccountName"])["metadata"]
    assert [(it["name"], it["namespace"]) for it in binding["subjects"]] == [(account["name"], account["namespace"])]
    # The role is of this namespace alone.
    assert container["env"] == [
        {"name": "POD_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}}
    ]
    assert "--service-discovery-namespace=$(POD_NAMESPACE)" in container["args"]


def test_nothing_has_a_token_of_the_api_server_where_nothing_needs_one() -> None:
    assert not any(it["kind"].startswith(("Role", "ClusterRole")) for it in BUILDS["base"])
    for name, manifests in BUILDS.items():
        for owner, pod in pods(manifests):
            assert pod["spec"]["automountServiceAccountToken"] == (name == "discovery" and owner == GATEWAY)


def test_workers_of_both_builds_are_the_same() -> None:
    templates = [dict(pods(manifests))[WORKER] for manifests in map(build, BUILDS)]
    assert templates[1]["spec"]["containers"][0].pop("lifecycle")
    assert templates[0] == templates[1]
    workers = templates[0]["spec"]["containers"][0]
    assert {it["httpGet"]["path"] for name, it in workers.items() if name.endswith("Probe")} == {
        options(BUILDS["base"]).health_check_endpoint
    }


# --- network


def test_metrics_are_for_prometheus_and_workers_for_the_gateway() -> None:
    for manifests in BUILDS.values():
        policy = one(manifests, "NetworkPolicy", GATEWAY)["spec"]
        sources = {rule["ports"][0]["port"]: rule["from"] for rule in policy["ingress"]}
        monitoring = {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}
        # No `ipBlock`: nothing from outside the cluster.
        assert sources == {
            "http": [{"namespaceSelector": {}}],
            "metrics": [{"namespaceSelector": monitoring}],
        }
        assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
        workers = one(manifests, "NetworkPolicy", WORKER)["spec"]
        (source,) = (peer for rule in workers["ingress"] for peer in rule["from"])
        (gateway,) = selected(manifests, source["podSelector"]["matchLabels"])
        assert gateway["metadata"]["labels"]["app"] == GATEWAY


@builds
def test_gateway_may_reach_workers_names_and_where_needed_the_api_server(manifests: list[Manifest]) -> None:
    policies = [it["spec"] for it in manifests if it["kind"] == "NetworkPolicy" and GATEWAY in it["metadata"]["name"]]
    reached = {
        (it["port"], it["protocol"]) for spec in policies for rule in spec.get("egress", []) for it in rule["ports"]
    }
    (worker,) = selected(manifests, {"app": WORKER})
    expected = {(ports_of(worker)["http"], "TCP"), (53, "UDP"), (53, "TCP")}
    api_server = {(443, "TCP"), (6443, "TCP")} if options(manifests).service_discovery else set()
    assert reached == expected | api_server


# --- monitoring


def test_pod_monitor_scrapes_the_gateway_as_the_job_of_the_alerts() -> None:
    monitor = one(build("monitoring"), "PodMonitor", GATEWAY)
    (pod,) = selected(BUILDS["base"], monitor["spec"]["selector"]["matchLabels"])
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in ports_of(pod)
    job = pod["metadata"]["labels"][monitor["spec"]["jobLabel"]]
    assert set(re.findall(r'up\{job="([^"]+)"', RULES.read_text())) == {job}
    assert monitor["metadata"]["namespace"] == one(BUILDS["base"], "Deployment", GATEWAY)["metadata"]["namespace"]


def test_labels_of_the_operator_rename_none_of_the_gateways() -> None:
    monitor = one(build("monitoring"), "PodMonitor", GATEWAY)
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    dropped = {it["regex"] for it in endpoint["relabelings"] if it["action"] == "labeldrop"}
    # What the operator puts on every target of a PodMonitor.
    added = {"namespace", "container", "pod", "endpoint", "job", "instance"} - dropped
    assert not added & set().union(*(labels for _, labels in rows_of_metrics().values()))
