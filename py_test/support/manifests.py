"""The manifests of deploy/kubernetes: as files, and as `kubectl kustomize` builds them."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from support.pages import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
Manifest = dict[str, Any]


def build(name: str) -> list[Manifest]:
    """What `kubectl kustomize` makes of a folder, for what our kustomizations use of it."""
    return _build(FOLDER / name)


def _build(folder: Path) -> list[Manifest]:
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    unknown = set(kustomization) - {"apiVersion", "kind", "namespace", "resources", "patches"}
    assert not unknown, f"{folder}: {unknown} is not understood here"
    found: list[Manifest] = []
    for resource in kustomization["resources"]:
        path = folder / resource
        found += _build(path) if path.is_dir() else yaml.safe_load_all(path.read_text())
    for patch in kustomization.get("patches", []):
        found = _patched(found, yaml.safe_load(patch.get("patch") or (folder / patch["path"]).read_text()))
    for manifest in found:
        if manifest["kind"] != "Namespace":
            manifest["metadata"]["namespace"] = kustomization["namespace"]
    return found


def key(manifest: Manifest) -> tuple[str, str]:
    return manifest["kind"], manifest["metadata"]["name"]


def _patched(manifests: list[Manifest], patch: Manifest) -> list[Manifest]:
    (target,) = (it for it in manifests if key(it) == key(patch))
    others = [it for it in manifests if it is not target]
    return others if patch.get("$patch") == "delete" else [*others, _merged(target, patch)]


def _merged(base: Any, patch: Any) -> Any:
    """A strategic merge: lists of things with names are merged by name, others are replaced."""
    if isinstance(base, dict) and isinstance(patch, dict):
        return {name: _merged(base.get(name), patch.get(name, base.get(name))) for name in {**base, **patch}}
    if isinstance(base, list) and all(isinstance(it, dict) and "name" in it for it in patch):
        found = {it["name"]: it for it in base}
        return list({**found, **{it["name"]: _merged(found.get(it["name"]), it) for it in patch}}.values())
    return deepcopy(patch)


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Name and pod template of everything that makes pods."""
    for manifest in manifests:
        if manifest["kind"] in ("Deployment", "StatefulSet"):
            yield manifest["metadata"]["name"], manifest["spec"]["template"]


def selected(manifests: list[Manifest], labels: dict[str, str]) -> list[Manifest]:
    """The pod templates that have these labels."""
    assert labels, "selects everything"
    return [pod for _, pod in pods(manifests) if labels.items() <= pod["metadata"]["labels"].items()]


def ports_of(pod: Manifest) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for it in pod["spec"]["containers"] for port in it["ports"]}
