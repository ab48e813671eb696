"""Dashboard and alert rules: they parse, name series and labels that the gateway has, and can match."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import yaml
from support.pages import ROOT, blocks, send
from support.ports import free_port
from support.promql import check, rows_of_metrics
from support.waiting import wait_for

from sgl_model_gateway.router import Router

DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"
PAGE = DEPLOY / "README.md"
DASHBOARD = DEPLOY / "grafana" / "gateway.json"


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def queries_of_dashboard() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def rules() -> dict[str, dict[str, Any]]:
    found = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    named = {rule["alert"]: rule for rule in found}
    assert len(named) == len(found)
    return named


def test_dashboard_and_rules_have_many_expressions() -> None:
    assert len(queries_of_dashboard()) >= 20
    assert len(rules()) >= 10


@pytest.mark.parametrize("query", queries_of_dashboard())
def test_query_of_the_dashboard_can_match(query: str) -> None:
    check(query.replace("$__rate_interval", "5m").replace("$quantile", "0.9"), rows_of_metrics())


@pytest.mark.parametrize("alert", rules())
def test_expression_of_an_alert_can_match_and_its_text_names_labels_of_the_result(alert: str) -> None:
    rule = rules()[alert]
    labels = check(rule["expr"], rows_of_metrics())
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= labels


def test_every_alert_fires_in_the_tests_of_the_rules() -> None:
    suite = yaml.safe_load((RULES.parent / "tests.yml").read_text())
    cases = [case for part in suite["tests"] for case in part["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == set(rules())


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("sum by (model (up)", "parenthesis"),
        ("smg_no_such_series", "no series"),
        ('smg_worker_health{model="m"}', "no label model"),
        ("sum by (path) (smg_worker_health)", "no label path"),
        ("sum by (worker) (sum by (instance) (smg_worker_health))", "no label worker"),
        ("rate(smg_worker_health[5m])", "rate of the gauge"),
        ("rate(smg_router_ttft_seconds[5m])", "no name of a sample"),
        ("smg_worker_cb_outcomes_total_sum", "no name of a sample"),
        ("histogram_quantile(0.9, sum(rate(smg_router_ttft_seconds_bucket[5m])))", "without the label le"),
        ("sum by (worker) (smg_worker_health) / sum(smg_worker_health)", "never match"),
        ("smg_worker_health and on (model) smg_worker_cb_state", "no label model"),
    ],
)
def test_a_query_that_cannot_be_right_is_refused(query: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        check(query, rows_of_metrics())


def test_panels_do_not_overlap_and_have_names_of_their_own() -> None:
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels()]
    titles = [panel["title"] for panel in panels()]
    assert len(set(places)) == len(places) and len(set(titles)) == len(titles)


def commands_of_the_page() -> list[list[str]]:
    text = "\n".join(block.text for block in blocks(PAGE))
    return [shlex.split(line) for line in text.splitlines()]


def test_page_installs_and_applies_files_that_exist() -> None:
    commands = commands_of_the_page()
    installed = [words[-2] for words in commands if words[0] == "install" and "-d" not in words]
    applied = [words[words.index("-k") + 1] for words in commands if "-k" in words]
    unit = {f"deploy/systemd/{file.name}" for file in (DEPLOY / "systemd").iterdir()}
    assert set(installed) == unit | {"api-keys.json"}
    folders = {str(file.parent.relative_to(ROOT)) for file in DEPLOY.rglob("kustomization.yaml")}
    assert set(applied) == folders


def test_secret_that_the_page_makes_is_that_of_the_manifests() -> None:
    (secret,) = (words for words in commands_of_the_page() if words[0] == "kubectl" and "secret" in words)
    manifests = (DEPLOY / "kubernetes" / "base" / "gateway.yaml").read_text()
    assert f"secretName: {secret[secret.index('generic') + 1]}," in manifests
    assert "--from-file=api-keys.json" in secret and "/api-keys.json\n" in manifests


def test_file_of_keys_that_the_page_makes_is_taken(gateway: Any, tmp_path: Path) -> None:
    (line,) = (line for block in blocks(PAGE) for line in block.text.splitlines() if line.startswith("python3 -c"))
    subprocess.run(["bash", "-c", line], cwd=tmp_path, check=True, timeout=30)
    door = gateway([], api_keys_file=str(tmp_path / "api-keys.json"))
    key = json.loads((tmp_path / "api-keys.json").read_text())[0]["key"]

    def status(key: str) -> int:
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        return send(urllib.request.Request(f"{door.url}/generate", b"{}", headers))[0]

    assert (status("wrong"), status(key)) == (401, 503), "503: there is no worker"


def program(name: str) -> str:
    """A program of Prometheus: `apt-get install prometheus`, or a folder in `PROMETHEUS_BIN`."""
    found = shutil.which(name, path=os.environ.get("PROMETHEUS_BIN")) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.mark.parametrize(
    "words", [("check", "rules", "rules.yml"), ("check", "config", "scrape.yml"), ("test", "rules", "tests.yml")]
)
def test_promtool_accepts(words: tuple[str, ...]) -> None:
    promtool = program("promtool")
    done = subprocess.run([promtool, *words], cwd=RULES.parent, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def page_of(door: Router) -> str:
    status, text = send(urllib.request.Request(str(door.metrics_url)))
    assert status == 200
    return text


def test_metrics_page_passes_the_linter(sim_workers: Any, gateway: Any) -> None:
    promtool, door = program("promtool"), gateway([sim_workers(1)[0].url])
    page = page_of(door)
    done = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, text=True, timeout=60)
    # Status 3: it parses, and names might be better; they are those that users have dashboards for.
    assert done.returncode in (0, 3), done.stderr


@pytest.fixture
def prometheus(tmp_path: Path, gateway: Any) -> Iterator[str]:
    """A Prometheus that scrapes a gateway without workers by our configuration, once a second; its URL."""
    binary, door = program("prometheus"), gateway([])
    address = urlsplit(str(door.metrics_url)).netloc
    config = (RULES.parent / "scrape.yml").read_text().replace("15s", "1s").replace("localhost:29000", address)
    (tmp_path / "scrape.yml").write_text(config)
    (tmp_path / "rules.yml").write_text(RULES.read_text())
    port = free_port()
    listen = f"127.0.0.1:{port}"
    flags = ["--config.file=scrape.yml", "--storage.tsdb.path=data", f"--web.listen-address={listen}"]
    process = subprocess.Popen([binary, *flags], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://{listen}"
    finally:
        process.terminate()
        process.wait(timeout=20)


def test_real_prometheus_scrapes_and_an_outage_becomes_an_alert(prometheus: str) -> None:
    def ask(path: str) -> Any:
        try:
            status, text = send(urllib.request.Request(f"{prometheus}/api/v1/{path}"))
        except OSError:
            return {}  # it does not listen yet
        return json.loads(text)["data"] if status == 200 else {}

    def value(query: str) -> str | None:
        result = ask(f"query?query={quote(query)}").get("result")
        return result[0]["value"][1] if result else None

    def alerts() -> set[str]:
        return {alert["labels"]["alertname"] for alert in ask("alerts").get("alerts", [])}

    wait_for(lambda: value("up") == "1", "a scrape")
    assert value("smg_http_connections_active") == "0"
    wait_for(lambda: "GatewayNoWorkerReady" in alerts(), "the alert of a gateway without workers")
    assert alerts() == {"GatewayNoWorkerReady"}
    groups = ask("rules")["groups"]
    assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}
