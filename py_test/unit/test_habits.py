"""Files that no program of ours reads: they parse, agree with the code, and keep the rules that they state."""

from __future__ import annotations

import argparse
import configparser
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sgl_model_gateway import sim_worker
from sgl_model_gateway.router_args import RouterArgs

try:
    import tomllib
except ImportError:  # Python 3.10
    tomllib = None  # type: ignore[assignment]

ROOT = Path(__file__).resolve().parents[2]
METRICS_PORT = 29000  # where no other is asked for
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
EXAMPLES = ROOT / "examples"
VERSION = re.search(r'^version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]  # type: ignore[index]
IMAGE = f"sgl-model-gateway:{VERSION}"
FILES = subprocess.run(
    ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
).stdout.splitlines()


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(exit_on_error=False)
    RouterArgs.add_cli_args(made)
    return made


def gateway_arguments(words: list[str]) -> Any:
    """What the gateway reads from a command line; an unknown flag is an error."""
    arguments, unknown = parser().parse_known_args(words)
    assert not unknown
    return arguments


# YAML

YAML = [ROOT / name for name in FILES if name.endswith((".yml", ".yaml"))]


def test_there_is_yaml() -> None:
    assert len(YAML) >= 10


@pytest.mark.parametrize("file", YAML, ids=named)
def test_yaml_parses(file: Path) -> None:
    assert all(isinstance(document, dict) for document in yaml.safe_load_all(file.read_text()))


# Workflows


@pytest.mark.parametrize("file", WORKFLOWS, ids=named)
def test_a_workflow_is_bounded_and_has_few_rights(file: Path) -> None:
    workflow = yaml.safe_load(file.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert name in ("version", "publish") or job["timeout-minutes"] <= 90
        rights = job.get("permissions", {})
        assert rights == ({"id-token": "write"} if name == "publish" else {}), name
        assert not re.search(r"secrets\.|password:|token:", json.dumps(job)), "trusted publishing needs no secret"


@pytest.mark.parametrize("file", WORKFLOWS, ids=named)
def test_actions_have_versions(file: Path) -> None:
    for job in yaml.safe_load(file.read_text())["jobs"].values():
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            assert re.fullmatch(r"[\w.-]+/[\w.-]+@(v\d+|release/v\d+)", step.get("uses", "a/b@v1"))


@pytest.mark.parametrize("file", WORKFLOWS, ids=named)
def test_workflows_call_what_exists(file: Path) -> None:
    verbs = re.findall(r"^([a-z0-9-]+):.*## ", (ROOT / "Makefile").read_text(), re.M)
    runs = [
        step["run"]
        for job in yaml.safe_load(file.read_text())["jobs"].values()
        for step in job["steps"]
        if "run" in step
    ]
    for line in "\n".join(runs).splitlines():
        for verb in re.findall(r"\bmake ([a-z0-9-]+)", line):
            assert verb in verbs, line
        for script in re.findall(r"(?:^|\s)(\.\w*/[\w/.-]+)", line):
            assert (ROOT / script).stat().st_mode & 0o100, line
        for module in re.findall(r"-m (sgl_model_gateway[\w.]*)", line):
            assert (ROOT / module.replace(".", "/")).exists(), line
    for run in runs:
        subprocess.run(["bash", "-n"], input=re.sub(r"\$\{\{.*?\}\}", "x", run), text=True, check=True)


def test_ci_runs_the_script_that_every_machine_runs() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    assert {"run": ".ci/run"} in jobs["test"]["steps"]
    assert {"run": "cargo deny check"} in jobs["dependencies"]["steps"]


def test_a_release_covers_the_platforms_and_publishes_only_tags() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]
    for system in ("manylinux", "musllinux", "macos"):
        assert [it["target"] for it in jobs[system]["strategy"]["matrix"]["include"]] == ["x86_64", "aarch64"]
        steps = [step["run"] for step in jobs[system]["steps"] if "run" in step]
        assert any("make wheel" in step or "packaging/licenses.py" in step for step in steps), system
        assert any("demo --exit" in step for step in steps), system
    publish = jobs["publish"]
    assert set(publish["needs"]) == set(jobs) - {"publish"}
    assert "refs/tags/" in publish["if"]
    assert not any("with" in step and "password" in step["with"] for step in publish["steps"])


def test_the_version_check_of_a_release_passes_for_this_version_only() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]
    check = jobs["version"]["steps"][1]["run"]
    for tag, code in ((f"v{VERSION}", 0), ("v0.0.1", 1)):
        done = subprocess.run(["bash", "-c", check], cwd=ROOT, env={"GITHUB_REF_NAME": tag, "PATH": "/usr/bin:/bin"})
        assert done.returncode == code


def test_dependabot_watches_every_manifest() -> None:
    updates = yaml.safe_load((ROOT / ".github/dependabot.yml").read_text())["updates"]
    assert {it["package-ecosystem"] for it in updates} == {"cargo", "pip", "github-actions", "docker"}


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_issue_forms_have_what_the_service_requires(name: str) -> None:
    form = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{name}.yml").read_text())
    assert form["name"] and form["description"]
    fields = [it for it in form["body"] if it["type"] != "markdown"]
    assert all(it["attributes"]["label"] for it in fields)
    assert len({it["id"] for it in fields}) == len(fields)


# TOML


@pytest.mark.skipif(tomllib is None, reason="tomllib is in Python 3.11 and later")
def test_the_toolchain_is_pinned_to_a_release_that_may_build() -> None:
    toolchain = tomllib.loads((ROOT / "rust-toolchain.toml").read_text())["toolchain"]
    oldest = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["rust-version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", toolchain["channel"])
    assert [int(part) for part in toolchain["channel"].split(".")] >= [int(part) for part in oldest.split(".")]
    assert set(toolchain["components"]) == {"clippy", "rustfmt"}


@pytest.mark.skipif(tomllib is None, reason="tomllib is in Python 3.11 and later")
def test_dependencies_have_rules() -> None:
    rules = tomllib.loads((ROOT / "deny.toml").read_text())
    assert {"licenses", "advisories", "bans", "sources"} <= set(rules)
    assert not [name for name in rules["licenses"]["allow"] if "GPL" in name]
    assert rules["sources"]["unknown-registry"] == rules["sources"]["unknown-git"] == "deny"
    assert "openssl-sys" in {it["crate"] for it in rules["bans"]["deny"]}
    locked = tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]
    assert not {it["crate"] for it in rules["bans"]["deny"]} & {it["name"] for it in locked}


def test_editorconfig_agrees_with_the_formatters() -> None:
    config = configparser.ConfigParser()
    config.read_string("[top]\n" + (ROOT / ".editorconfig").read_text())
    line_length = re.search(r"^line-length = (\d+)", (ROOT / "pyproject.toml").read_text(), re.M)
    assert line_length and config["*.{py,pyi}"]["max_line_length"] == line_length[1]
    assert config["Makefile"]["indent_style"] == "tab"


@pytest.mark.parametrize("name", [name for name in FILES if re.search(r"\.(md|toml|ya?ml|py|sh|service|env)$", name)])
def test_text_files_keep_editorconfig(name: str) -> None:
    if not (ROOT / name).exists():  # removed, but not committed yet
        return
    text = (ROOT / name).read_bytes()
    assert b"\r" not in text and text.endswith(b"\n") and not text.endswith(b"\n\n")


# Image


def instructions(text: str) -> list[tuple[str, str]]:
    """Instruction and argument of each line of a Dockerfile, comments left out, continuations joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined]


def test_the_image_is_small_pinned_and_not_root() -> None:
    found = instructions((ROOT / "Dockerfile").read_text())
    stages = [argument for name, argument in found if name == "FROM"]
    assert stages[-1] == "scratch", "with the packages that the gateway needs, and no others"
    assert all(re.fullmatch(r"[\w/.-]+:\d[\w.-]*-slim-bookworm AS \w+", stage) for stage in stages[:-1]), "never latest"
    last = found[[at for at, (name, _) in enumerate(found) if name == "FROM"][-1] :]
    single = {name: argument for name, argument in last}
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", single["USER"]), "a number, so that it is known not to be root"
    assert single["STOPSIGNAL"] == "SIGTERM"
    assert "PYTHONDONTWRITEBYTECODE=1" in single["ENV"]
    names = [name for name, _ in last]
    assert names.index("USER") > max(at for at, name in enumerate(names) if name in ("RUN", "COPY"))
    assert not [argument for name, argument in found if name == "ADD"]
    assert "RUN" not in names, "there is no shell"
    for check in ("ENTRYPOINT", "CMD", "HEALTHCHECK"):
        assert single[check].rpartition("CMD ")[2].startswith("["), "there is no shell"


def test_the_image_is_built_with_the_pinned_toolchain() -> None:
    found = instructions((ROOT / "Dockerfile").read_text())
    channel = re.search(r'channel = "(.+)"', (ROOT / "rust-toolchain.toml").read_text())
    assert channel and found[0] == ("FROM", f"rust:{channel[1]}-slim-bookworm AS build")


def test_the_image_runs_the_gateway_with_arguments_that_it_knows() -> None:
    single = dict(instructions((ROOT / "Dockerfile").read_text()))
    entrypoint, default = json.loads(single["ENTRYPOINT"]), json.loads(single["CMD"])
    assert entrypoint == ["sgl-model-gateway", "launch"]
    assert re.search(r"^sgl-model-gateway = ", (ROOT / "pyproject.toml").read_text(), re.M)
    arguments = gateway_arguments(default)
    assert {str(arguments.port), str(arguments.prometheus_port or METRICS_PORT)} == set(single["EXPOSE"].split())


def test_the_health_check_passes_for_a_gateway_and_fails_without(gateway: Any) -> None:
    check = dict(instructions((ROOT / "Dockerfile").read_text()))["HEALTHCHECK"]
    program, *arguments = json.loads(check[check.index("CMD ") + 4 :])
    assert program == "python"
    port = gateway([]).url.rsplit(":", 1)[1]
    for number, code in ((port, 0), ("9", 1)):
        done = subprocess.run([sys.executable, *arguments], env=os.environ | {"PORT": number}, capture_output=True)
        assert done.returncode == code


def test_hooks_of_the_gateway_run_what_its_image_has() -> None:
    commands = []
    for file in (ROOT / "deploy/kubernetes").rglob("gateway.yaml"):
        for document in yaml.safe_load_all(file.read_text()):
            found = re.findall(r'"exec": \{"command": (\[.*?\])\}', json.dumps(document))
            commands += [json.loads(command)[0] for command in found]
    assert commands and set(commands) <= {"python", "sgl-model-gateway"}, "it has no shell and no coreutils"


def test_the_image_gets_only_what_the_wheel_is_built_from() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    kept = {line[1:] for line in rules if line.startswith("!")}
    assert all((ROOT / name).exists() for name in kept)
    needed = {"Cargo.toml", "Cargo.lock", "build.rs", "src", "crates", "pyproject.toml", "sgl_model_gateway"}
    needed |= {"Makefile", "packaging"}
    assert kept == needed | {"README.md", "LICENSE"}  # the last two are named in pyproject.toml


# Examples


def test_the_composed_gateway_and_workers_start_with_arguments_that_they_know() -> None:
    file = EXAMPLES / "compose/compose.yaml"
    services = yaml.safe_load(file.read_text())["services"]
    gateway = services["gateway"]
    arguments = gateway_arguments(gateway["command"])
    urls = {f"http://{name}:30000" for name in services if name.startswith("worker-")}
    assert set(arguments.worker_urls) == urls
    assert set(gateway["depends_on"]) == {name for name in services if name.startswith("worker-")}
    assert int(gateway["stop_grace_period"].rstrip("s")) > arguments.shutdown_grace_period_secs + 5
    worker = sim_worker.create_parser().parse_args(services["worker-1"]["command"])
    assert sim_worker.options(worker)["port"] == 30000
    for service in services.values():
        assert not service["image"].endswith(":latest") and ":" in service["image"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        for volume in service.get("volumes", []):
            assert (file.parent / volume.split(":")[0]).exists()
    assert {it["image"] for name, it in services.items() if name != "prometheus"} == {IMAGE}


def test_prometheus_asks_ports_that_the_gateway_has() -> None:
    jobs = yaml.safe_load((EXAMPLES / "compose/prometheus.yml").read_text())["scrape_configs"]
    services = yaml.safe_load((EXAMPLES / "compose/compose.yaml").read_text())["services"]
    arguments = gateway_arguments(services["gateway"]["command"])
    ports = {job.get("metrics_path", "/metrics"): job["static_configs"][0]["targets"] for job in jobs}
    expected = {"/metrics": (arguments.prometheus_port or METRICS_PORT), "/engine_metrics": arguments.port}
    assert ports == {path: [f"gateway:{port}"] for path, port in expected.items()}


# Prose

OURS = [
    *("CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "Dockerfile", "Makefile", "deny.toml", ".editorconfig"),
    *(name for name in FILES if name.startswith((".github/", "examples/", "bench/", "deploy/", "packaging/"))),
]


@pytest.mark.parametrize("name", [name for name in OURS if name.endswith(".md")])
def test_links_lead_somewhere(name: str) -> None:
    file = ROOT / name
    for target in re.findall(r"\]\(([^)#]+)\)", file.read_text()):
        assert target.startswith("https://") or (file.parent / target).exists(), target


def test_contributing_names_verbs_that_exist() -> None:
    verbs = re.findall(r"^([a-z0-9-]+):.*## ", (ROOT / "Makefile").read_text(), re.M)
    for name in ("CONTRIBUTING.md", "bench/README.md"):
        assert set(re.findall(r"(?:`|^)make ([a-z0-9-]+)", (ROOT / name).read_text(), re.M)) <= set(verbs)


def test_security_names_options_and_routes_that_exist() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    known = {flag for action in parser()._actions for flag in action.option_strings} | {
        "--version-verbose",
        "--mini-lb",
    }
    flags = set(re.findall(r"--[a-z][a-z-]+", text))
    assert flags and flags <= known
    routes = set(re.findall(r"`(/[a-z_/0-9]+)`", text))
    files = ("api/info.rs", "api/models.rs", "api/engine_metrics.rs", "endpoint.rs")
    source = "".join((ROOT / "crates/gateway/src" / file).read_text() for file in files)
    assert routes and all(f'"{route}"' in source for route in routes)
