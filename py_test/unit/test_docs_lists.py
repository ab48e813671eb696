"""The lists in the documents are those of the code: routes, rights, metrics, error codes, outcomes."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from support.gateway import healthy_workers
from support.pages import LINKED, ROOT, TIMEOUT, name_of, send, table
from support.promql import METRICS, check, queries_of, rows_of_metrics
from support.waiting import wait_for

from sgl_model_gateway import sgl_model_gateway_rs as extension
from sgl_model_gateway.router import Router

SOURCES = ROOT / "crates" / "gateway" / "src"
OBSERVABILITY = ROOT / "docs" / "observability.md"

# --- routes


ROUTES = ROOT / "docs" / "http-api.md"


def rows_of_routes() -> dict[tuple[str, str], str]:
    """The right that each method and path needs, as the page has it."""
    rows = [[cell.strip("`") for cell in row] for row in table(ROUTES, "method")]
    found = {(method, path): right for method, path, right, _ in rows}
    assert len(found) == len(rows), "a route has two rows"
    return found


def samples(door: Router) -> dict[str, list[dict[str, str]]]:
    """The labels of every sample of a gateway's metrics, by name."""
    status, text = send(urllib.request.Request(str(door.metrics_url)))
    assert status == 200
    found: dict[str, list[dict[str, str]]] = {}
    for name, labels in re.findall(r"^(\w+)(?:\{(.*)\})? \S+$", text, re.M):
        found.setdefault(name, []).append(dict(re.findall(r'(\w+)="([^"]*)"', labels)))
    return found


def test_page_has_the_routes_of_the_gateway() -> None:
    assert rows_of_routes() == {(method, path): right for method, path, right in extension.routes()}


def test_security_page_has_the_rights_of_the_routes_and_the_defaults_of_the_options() -> None:
    page = ROOT / "docs" / "security.md"
    rights: dict[str, set[str]] = {}
    for (_, path), right in rows_of_routes().items():
        rights.setdefault(path, set()).add(right)
    planes = table(page, "right")
    assert {right.strip("`") for right, *_ in planes} == set().union(*rights.values())
    for right, _, routes, _ in planes:
        for path in re.findall("`(/[^`]*)`", routes):
            assert rights[path] == {right.strip("`")}, path
    options = {flag.strip("`"): default for flag, default, _ in table(ROOT / "docs" / "options.md", "flag")}
    rows = [row for row in table(page, "option") if len(row) == 3]
    assert len(rows) > 10
    for flag, default, _ in rows:
        assert options[flag.strip("`")] == ("" if default == "unset" else default), flag


# Rights that replies do not distinguish: both are open to all.
OPEN = {"probe": "open", "info": "open"}


def right_of(url: str, method: str, path: str) -> str:
    """The right that a route of a gateway with a key needs, as its replies show it."""
    target = url + path.replace("{id}", "none").replace("{*model}", "none")

    def ask(**headers: str) -> tuple[int, Any]:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(target, b"" if method != "GET" else None, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                return response.status, response.headers
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers

    status, headers = ask(origin="https://other.example")
    if headers["access-control-allow-origin"] != "*":
        return "control"
    return "inference" if status == 401 else "open"


def test_page_has_the_rights_of_a_running_gateway(sim_workers: Any, gateway: Any) -> None:
    door = gateway([sim_workers(1)[0].url], api_key="k", worker_startup_timeout_secs=1)
    for (method, path), right in rows_of_routes().items():
        shown = {**OPEN, "engine": "control"}.get(right, right)
        assert right_of(door.url, method, path) == shown, f"{method} {path}"


def test_control_needs_the_key_and_a_page_of_another_site_may_not_change(gateway: Any) -> None:
    door = gateway([], api_key="k")
    for (method, path), right in rows_of_routes().items():
        if right not in ("control", "engine"):
            continue
        target, data = door.url + path.replace("{id}", "none"), None if method == "GET" else b"{}"
        assert send(urllib.request.Request(target, data, method=method))[0] in (401, 403), path
        if path.endswith("/stream"):
            continue  # with the key it has no end
        headers = {"authorization": "Bearer k", "sec-fetch-site": "cross-site"}
        status, body = send(urllib.request.Request(target, data, headers, method=method))
        changes = right == "engine" or method != "GET"
        assert (status == 403 and "cross_site_request" in body) == changes, path


# --- metrics


KINDS = {"counter": "counter", "gauge": "gauge", "number": "gauge", "sum": "counter", "seconds": "histogram"}


def metrics_in_the_source() -> dict[str, str]:
    """The type of every series that the gateway makes."""
    found = {}
    for file in (SOURCES / "telemetry" / "metrics").glob("*.rs"):
        source = file.read_text().split("#[cfg(test)]")[0]
        for kind, name in re.findall(r"maker\s*\.(\w+)\(\s*\"(smg_\w+)\"", source):
            found[name] = KINDS[kind]
    for policy in ("manual", "consistent_hashing", "prefix_hash"):
        found[f"smg_{policy}_policy_branch_total"] = "counter"
    return found


def test_page_has_the_series_of_the_source() -> None:
    assert {name: kind for name, (kind, _) in rows_of_metrics().items()} == metrics_in_the_source()


def post(door: Router, path: str, body: Any, method: str = "POST") -> int:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    return send(urllib.request.Request(door.url + path, data, headers, method=method))[0]


@pytest.fixture
def used(sim_workers: Any, gateway: Any, tmp_path: Path) -> list[Router]:
    """Gateways that have seen about everything they count."""
    good, bad, new = sim_workers(3)
    urls = [good.url, bad.url, "http://127.0.0.1:1"]
    rules = {"cb_failure_threshold": 3, "max_concurrent_requests": 9, "retry_initial_backoff_ms": 1}
    door = gateway(urls, ready=False, policy="round_robin", **rules)
    wait_ready(door, 2)
    say = {"text": "hi", "sampling_params": {"max_new_tokens": 2}}
    chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    assert (post(door, "/generate", say), post(door, "/v1/chat/completions", chat)) == (200, 200)
    assert post(door, "/generate", b"{") == 400
    assert post(door, "/workers", {"url": new.url}) == post(door, "/workers", {"url": new.url}) == 202
    wait_ready(door, 3)
    assert post(door, f"/workers/{quote(new.url, safe='')}", b"", "DELETE") == 202
    for worker in (bad, good):
        send(urllib.request.Request(f"{worker.url}/sim/faults", b'{"status": 500}', method="POST"))
        for _ in range(12):
            post(door, "/generate", say)
    strict = gateway(urls[:2], retry_budget_ratio=0.0, retry_budget_min_per_sec=0)
    post(strict, "/generate", say)
    away = {"shared_state": "redis://127.0.0.1:1/0"}
    sticky = [gateway([good.url], policy=policy, **away) for policy in ("manual", "consistent_hashing", "prefix_hash")]
    for one in sticky:
        post(one, "/generate", say)
    (whole,) = sim_workers(1, prefill_tokens_per_sec=100_000)
    # Its collector and its shared state are away, which its requests do not notice.
    more = {"enable_trace": True, "otlp_traces_endpoint": "127.0.0.1:1", "record": str(tmp_path / "trace.jsonl")}
    more |= away | {"rate_limit_tokens_per_second": 1000, "max_concurrent_requests": 1000}
    cached = gateway([whole.url], policy="cache_aware", load_poll_interval_secs=1, **more)
    flush_unseen(cached, whole)
    pairs = pair_gateway(sim_workers, gateway)
    keyed = {"content-type": "application/json", "x-smg-routing-key": "k"}
    body = json.dumps(say).encode()
    assert send(urllib.request.Request(f"{cached.url}/generate", body, keyed, method="POST"))[0] == 200
    assert post(cached, "/generate", say) == post(pairs, "/generate", say | {"stream": True}) == 200
    send(urllib.request.Request(f"{whole.url}/sim/faults", b'{"close_before_headers": true}', method="POST"))
    assert post(cached, "/generate", say) >= 500
    seeking = without_cluster(gateway, tmp_path / "none")
    keys = limited(gateway, tmp_path / "keys.json")
    return [door, strict, *sticky, keys, cached, pairs, seeking, in_fair_order(sim_workers, gateway)]


def in_fair_order(sim_workers: Any, gateway: Any) -> Router:
    """A gateway at which requests have waited in the fair order."""
    (slow,) = sim_workers(1, decode_step_base_ms=20.0)
    door: Router = gateway([slow.url], max_concurrent_requests=1, queue_order="fair")
    say = {"text": "hi", "sampling_params": {"max_new_tokens": 4}}
    with ThreadPoolExecutor(4) as clients:
        assert set(clients.map(lambda _: post(door, "/generate", say), range(4))) == {200}
    return door


def flush_unseen(door: Router, worker: Any) -> None:
    """Has a worker that reports its load lose its cache, which only its replies show."""
    wait_for(lambda: "smg_worker_reported_requests" in samples(door), "the worker reports its load")
    # Short answers: counts are looked for at the end of a reply.
    few = {"sampling_params": {"max_new_tokens": 4}}
    prompts = [{"text": f"conversation {n} about itself " * 80, **few} for n in range(12)]
    for prompt in prompts * 2:
        assert post(door, "/generate", prompt) == 200
    assert post(worker, "/flush_cache", b"") == 200
    for prompt in prompts:
        assert post(door, "/generate", prompt) == 200
    wait_for(lambda: "smg_worker_prefill_tokens_per_second" in samples(door), "its prefill is timed")


def pair_gateway(sim_workers: Any, gateway: Any) -> Router:
    """A gateway in front of a prefill and a decode worker."""
    (prefill,) = sim_workers(1, disaggregation_mode="prefill", disaggregation_bootstrap_port=0)
    (decode,) = sim_workers(1, disaggregation_mode="decode")
    urls = {"prefill_urls": [(prefill.url, None)], "decode_urls": [decode.url]}
    door = gateway([], ready=False, pd_disaggregation=True, **urls)
    wait_ready(door, 2)
    return door


def limited(gateway: Any, keys: Path) -> Router:
    """A gateway whose one client key has been beyond its limit, and in a file that has changed."""
    entry = {"name": "a", "key": "k", "rpm_limit": 1}
    keys.write_text(json.dumps([entry]))
    door: Router = gateway([], api_keys_file=str(keys))
    keys.write_text(json.dumps([entry, {"name": "b", "key": "k2"}]))
    wait_for(lambda: "smg_api_keys_reloads_total" in samples(door), "the file is read again")
    headers = {"authorization": "Bearer k", "content-type": "application/json"}
    request = urllib.request.Request(f"{door.url}/generate", b"{}", headers)
    assert [send(request)[0] for _ in range(2)] == [503, 429]
    return door


def without_cluster(gateway: Any, kubeconfig: Path) -> Router:
    """A gateway that looks for pods, and knows no cluster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECONFIG", str(kubeconfig))
        door: Router = gateway([], service_discovery=True, selector={"app": "x"})
        wait_for(lambda: "smg_discovery_errors_total" in samples(door), "there is no cluster")
    return door


def wait_ready(door: Router, count: int) -> None:
    wait_for(lambda: healthy_workers(door.url) >= count, f"{count} workers ready")


# Only on a machine that lacks something, or by a call that Python has not, or with certificates.
UNSEEN = {"smg_local_faults_total", "smg_config_reloads_total", "smg_tls_certificate_reloads_total"}


def test_labels_on_the_page_are_those_of_running_gateways(used: list[Router]) -> None:
    rows, seen = rows_of_metrics(), set()
    for door in used:
        for name, all_labels in samples(door).items():
            family = re.sub(r"_(bucket|sum|count)$", "", name) if name not in rows else name
            seen.add(family)
            kind, known = rows[family]
            for labels in all_labels:
                assert set(labels) - ({"le"} if kind == "histogram" else set()) == known, name
    assert set(rows) - seen <= UNSEEN


@pytest.mark.parametrize("page", [*LINKED], ids=name_of)
def test_series_and_labels_that_pages_name_exist(page: Path) -> None:
    rows = rows_of_metrics()
    for name, labels in re.findall(r"\b(smg_[a-z_]+[a-z])(?:\{([^}]*)\})?", page.read_text()):
        family = name if name in rows else re.sub(r"_(bucket|sum|count)$", "", name)
        assert family in rows, name
        assert set(re.findall(r"(\w+)[!=]", labels)) <= rows[family][1], f"{name}{{{labels}}}"


QUERIES = [
    pytest.param(query, id=f"{page.name}: {query}")
    for page, columns in ((METRICS, ("example", "query")), (OBSERVABILITY, ("query",)))
    for query in queries_of(page, *columns)
]


def test_every_series_has_an_example_that_names_it() -> None:
    for name, *_, example in table(METRICS, "series"):
        assert name.strip("`") in example, name


@pytest.mark.parametrize("query", QUERIES)
def test_query_of_a_page_parses_and_can_match(query: str) -> None:
    check(query, rows_of_metrics())


def test_page_lists_the_alerts_of_the_rules() -> None:
    rules = (ROOT / "deploy" / "prometheus" / "rules.yml").read_text()
    assert {row[0].strip("`") for row in table(OBSERVABILITY, "alert")} == set(re.findall(r"alert: (\w+)", rules))


def test_log_lines_that_the_page_names_are_in_the_source() -> None:
    source = "".join(path.read_text() for path in SOURCES.rglob("*.rs"))
    paragraphs = re.findall(r"^In the log: (.*?)\n\n", OBSERVABILITY.read_text(), re.M | re.S)
    messages = [message for paragraph in paragraphs for message in re.findall(r"`([^`]+)`", paragraph)]
    assert len(messages) > 20
    codes = set(rows_of_errors()) | {"debug"}
    assert [message for message in messages if message not in codes and f'"{message}' not in source] == []


# --- errors and outcomes


TROUBLE = ROOT / "docs" / "troubleshooting.md"


def rows_of_errors() -> dict[str, str]:
    """The status of every error code, as the page has it."""
    return {row[0].strip("`"): row[1] for row in table(TROUBLE, "code")}


def test_page_has_the_error_codes_of_the_source() -> None:
    source = (SOURCES / "error" / "error.rs").read_text().split("#[cfg(test)]")[0]
    body = source.split("fn code(&self)")[1].split("\n    }\n")[0] + source.split("fn upstream_code(")[1]
    codes = set(re.findall(r'=> "(\w+)"|=> \{\s*"(\w+)"', body))
    assert len(codes) > 20
    assert set(rows_of_errors()) == {one or other for one, other in codes} | {"stream_error", "engine_control_failed"}


@pytest.mark.parametrize(
    ("method", "path", "body", "headers"),
    [
        ("POST", "/generate", '{"text": "hi"}', {}),
        ("GET", "/server_info", None, {}),
        ("POST", "/generate", "{", {}),
        ("POST", "/v1/completions", "{}", {"content-type": "text/plain"}),
        ("POST", "/generate", " " * 1000, {}),
        ("GET", "/workers", None, {"authorization": "Bearer no"}),
        ("POST", "/flush_cache", "", {"sec-fetch-site": "cross-site"}),
        ("GET", "/nothing", None, {}),
        ("PUT", "/generate", "{}", {}),
        ("DELETE", "/v1/responses/1", None, {}),
        ("POST", "/workers", '{"url": ""}', {}),
        ("GET", "/workers/http%3A%2F%2Fgpu-9%3A1", None, {}),
        ("POST", "/abort_request", '{"rid": "r"}', {}),
    ],
)
def test_page_has_the_status_of_an_error(
    method: str, path: str, body: str | None, headers: dict[str, str], gateway: Any
) -> None:
    door = gateway([], api_key="k", max_payload_size=500)
    data = None if body is None else body.encode()
    headers = {"authorization": "Bearer k", "content-type": "application/json"} | headers
    status, text = send(urllib.request.Request(door.url + path, data, headers, method=method))
    found = json.loads(text)
    error = found["error"]
    code = error["code"] if isinstance(error, dict) else found["code"]
    assert rows_of_errors()[code] == str(status)


def test_page_has_the_outcomes_of_the_source() -> None:
    source = (ROOT / "crates" / "routing" / "src" / "resilience" / "outcome.rs").read_text()
    body = source.split("pub enum Outcome {")[1].split("\n}")[0]
    rows = table(ROOT / "docs" / "reliability.md", "outcome")
    assert {row[0].strip("`") for row in rows} == set(re.findall(r"^    (\w+)", body, re.M))
