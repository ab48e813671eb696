"""`doctor`: what each check finds, and how it is reported."""

from __future__ import annotations

import http.server
import json
import re
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import fields
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import trustme
from support.ports import free_port

from sgl_model_gateway import doctor
from sgl_model_gateway._doctor import issuer, machine, options, ports, workers
from sgl_model_gateway._doctor.finding import Finding, as_json, as_text
from sgl_model_gateway.router_args import RouterArgs

SOURCES = Path(__file__).parents[2] / "crates/gateway/src"


def seen(findings: list[Finding], check: str | None = None) -> list[str]:
    return [found.status for found in findings if check in (None, found.check)]


# --- report

FINDINGS = [Finding("port", "ok", "it is free"), Finding("worker", "fail", "word " * 30, "start it")]


def test_text_has_a_line_per_finding_its_advice_below_and_a_count() -> None:
    first, second, rest, advice, count = as_text(FINDINGS).splitlines()
    assert first == "ok    port           it is free"
    assert second.startswith("fail  worker         word word") and len(second) <= 120
    assert rest.strip().startswith("word") and advice.strip() == "-> start it"
    assert count == "1 ok, 0 warn, 1 fail"


def test_json_has_every_finding_and_whether_none_failed() -> None:
    report = json.loads(as_json(FINDINGS, "1.2.3"))
    assert (report["ok"], report["version"]) == (False, "1.2.3")
    assert report["checks"][0] == {"check": "port", "status": "ok", "finding": "it is free", "advice": ""}
    assert json.loads(as_json(FINDINGS[:1], "1.2.3"))["ok"] is True


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_exit_code_is_1_when_a_check_failed(
    status: Any, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda args, timeout: [Finding("port", status, "x")])
    with pytest.raises(SystemExit) as exit_:
        doctor.main(["--json"])
    assert exit_.value.code == code
    assert json.loads(capsys.readouterr().out)["ok"] == (code == 0)


def test_mistaken_flag_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--no-such-flag"], ["--control-plane-api-keys", "half"]):
        with pytest.raises(SystemExit) as exit_:
            doctor.main(argv)
        assert exit_.value.code == 2
        assert "error:" in capsys.readouterr().err


def test_flags_are_those_of_launch() -> None:
    known = {flag for action in doctor.create_parser()._actions for flag in action.option_strings}
    parser = doctor.Parser()
    RouterArgs.add_cli_args(parser)
    assert known - {flag for action in parser._actions for flag in action.option_strings} == {
        "--json",
        "--timeout-secs",
    }


# --- options


def test_options_that_the_gateway_takes_pass() -> None:
    assert seen(options.check_options(RouterArgs(worker_urls=["http://gpu-1:30000"]))) == ["ok"]


@pytest.mark.parametrize(
    ("given", "named"),
    [({"retry_jitter_factor": 2.0}, "retry_jitter_factor"), ({"policy": "luck"}, "luck"), ({"port": "x"}, "port")],
)
def test_option_that_is_refused_fails_by_name(given: dict[str, Any], named: str) -> None:
    (found,) = options.check_options(RouterArgs(**given))
    assert found.status == "fail" and named in found.finding


# Option, value, what it is idle beside, and what it has an effect beside, if anything.
IDLE: list[tuple[str, Any, dict[str, Any], dict[str, Any] | None]] = [
    *((f"cache_aware_prefill_backlog_{name}", 9.0, {}, None) for name in ("rate", "hop_factor", "hop_scale")),
    ("worker_urls", ["http://a"], {"pd_disaggregation": True}, {}),
    ("worker_urls", ["http://a"], {"service_discovery": True}, {}),
    ("prefill_urls", [("http://a", None)], {}, {"pd_disaggregation": True}),
    ("decode_urls", ["http://a"], {}, {"pd_disaggregation": True}),
    (
        "policy",
        "random",
        {"pd_disaggregation": True, "prefill_policy": "random", "decode_policy": "random"},
        {"pd_disaggregation": True, "prefill_policy": "random"},
    ),
    ("cache_threshold", 0.5, {"policy": "random"}, {"policy": "cache_aware"}),
    (
        "max_tree_size",
        1,
        {"policy": "bucket"},
        {"pd_disaggregation": True, "policy": "random", "prefill_policy": "cache_aware"},
    ),
    ("prefix_index_bytes", 1, {"pd_disaggregation": True, "prefill_policy": "random", "decode_policy": "random"}, {}),
    ("gateway_replicas", 4, {"policy": "manual"}, {"policy": "cache_aware"}),
    ("balance_abs_threshold", 1, {"policy": "manual"}, {"policy": "bucket"}),
    ("balance_rel_threshold", 2.0, {"policy": "manual"}, {"policy": "cache_aware"}),
    ("bucket_adjust_interval_secs", 1, {}, {"policy": "bucket"}),
    ("assignment_mode", "min_load", {}, {"policy": "manual"}),
    ("max_idle_secs", 1, {}, {"policy": "manual"}),
    *(
        (name, 9, {"disable_retries": True}, {})
        for name in ("retry_max_retries", "retry_initial_backoff_ms", "retry_max_backoff_ms")
        + ("retry_backoff_multiplier", "retry_jitter_factor")
    ),
    *(
        (f"cb_{name}", 9, {"disable_circuit_breaker": True}, {})
        for name in ("failure_threshold", "success_threshold", "timeout_duration_secs", "window_duration_secs")
    ),
    ("outlier_max_ejected_ratio", 0.5, {}, {"outlier_ejection": True}),
    ("queue_order", "fair", {}, {"max_requests_per_worker": 5}),
    ("queue_order", "fair", {"rate_limit_tokens_per_second": 5}, {"max_concurrent_requests": 5}),
    ("queue_batch_share", 0.2, {}, {"queue_order": "fair"}),
    ("queue_starvation_secs", 5, {}, {"queue_order": "fair"}),
    ("queue_size", 1, {}, {"max_concurrent_requests": 5}),
    ("queue_size", 1, {"rate_limit_tokens_per_second": 0}, {"rate_limit_tokens_per_second": 5}),
    ("queue_timeout_secs", 1, {}, {"max_requests_per_worker": 5}),
    ("shared_state_on_failure", "closed", {}, {"shared_state": "redis://a"}),
    ("engine_control_timeout_secs", 1, {"engine_control": "off"}, {}),
    ("explain_routing", True, {"hide_routing": True}, {}),
    ("log_max_files", 1, {"access_log": "-"}, {"access_log": "a.log"}),
    ("log_max_files", 1, {}, {"log_dir": "."}),
    ("record_max_mb", 1, {}, {"record": "a.jsonl"}),
    ("record_max_files", 1, {}, {"record": "a.jsonl"}),
    ("record_sample", 0.5, {}, {"record": "a.jsonl"}),
    ("record_block_tokens", 64, {}, {"record": "a.jsonl"}),
    *(
        (name, value, {"worker_urls": ["http://a", "b:1"]}, {"worker_urls": ["http://a", "https://b"]})
        for name, value in (("ca_cert_paths", ["a"]), ("client_cert_path", "a"), ("client_key_path", "a"))
        + (("worker_tls_name", "a"), ("tls_skip_verify", True))
    ),
    (
        "ca_cert_paths",
        ["a"],
        {"worker_urls": ["http://a"]},
        {"worker_urls": ["http://a"], "jwt_issuer": "https://issuer", "jwt_audience": "a"},
    ),
    ("control_plane_audit_enabled", True, {}, {"control_plane_api_keys": [("a", "a", "k", "admin")]}),
    ("jwt_role_claim", "r", {}, {"jwt_issuer": "https://issuer", "jwt_audience": "a"}),
    ("oracle_username", "u", {}, {"history_backend": "oracle"}),
    ("postgres_pool_max", 1, {"history_backend": "redis"}, {"history_backend": "postgres"}),
    ("redis_url", "redis://a", {}, {"history_backend": "Redis"}),
]


@pytest.mark.parametrize(("name", "value", "idle", "active"), IDLE)
def test_option_without_effect_is_named_and_one_with_effect_is_not(
    name: str, value: Any, idle: dict[str, Any], active: dict[str, Any] | None
) -> None:
    flag = "--" + options.flag_of(RouterArgs.__dataclass_fields__[name]).spelling(
        RouterArgs.__dataclass_fields__[name]
    ).replace("_", "-")

    def named(beside: dict[str, Any]) -> list[str]:
        found = options.check_idle_options(RouterArgs(**(beside | {name: value})))
        return [one.finding for one in found if re.match(rf"{flag} (\(.*\) )?has no effect: ", one.finding)]

    assert len(named(idle)) == 1
    assert active is None or not named(active)


def test_every_rule_has_a_case() -> None:
    named = {name for rule in options._RULES for name in rule.names}
    named -= {name for name in named if name.startswith(("oracle_", "postgres_", "redis_"))}
    assert named <= {name for name, *_ in IDLE}
    assert named <= {owner.name for owner in fields(RouterArgs)}


def test_defaults_have_no_idle_option() -> None:
    assert seen(options.check_idle_options(RouterArgs())) == ["ok"]


def test_idle_option_of_the_environment_is_named_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REDIS_POOL_MAX", "3")
    with pytest.raises(SystemExit):
        doctor.main(["--port", "0", "--prometheus-port", "0"])
    assert "--redis-pool-max (or $REDIS_POOL_MAX) has no effect" in " ".join(capsys.readouterr().out.split())


# --- ports


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of the loopback that another socket listens on."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        yield int(holder.getsockname()[1])


def local(**given: Any) -> RouterArgs:
    return RouterArgs(
        **({"host": "127.0.0.1", "port": 0, "prometheus_host": "127.0.0.1", "prometheus_port": 0} | given)
    )


def test_free_ports_pass_and_stay_free() -> None:
    port, metrics = free_port(), free_port()
    for _ in range(2):
        found = ports.check_ports(local(port=port, prometheus_port=metrics))
        assert [one.status for one in found] == ["ok", "ok"]
        assert [one.finding for one in found] == [f"127.0.0.1:{port} is free", f"127.0.0.1:{metrics} is free"]
    assert seen(ports.check_ports(local())) == ["ok", "ok"]


def test_taken_port_fails_with_the_command_that_names_its_owner(taken: int) -> None:
    port, metrics = ports.check_ports(local(port=taken))
    assert (port.status, metrics.status) == ("fail", "ok")
    assert f"127.0.0.1:{taken}: " in port.finding and f"sport = :{taken}" in port.advice
    assert seen(ports.check_ports(local(prometheus_port=taken))) == ["ok", "fail"]


def test_taken_default_port_of_metrics_is_a_warning(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "DEFAULT_METRICS_PORT", taken)
    _, metrics = ports.check_ports(local(prometheus_port=None))
    assert metrics.status == "warn" and "starts without metrics" in metrics.finding


def test_one_port_for_both_fails() -> None:
    (found,) = ports.check_ports(local(port=2000, prometheus_port=2000))
    assert found.status == "fail" and found.advice == "set --prometheus-port"


def test_port_that_is_shared_passes_beside_its_present_owner() -> None:
    with socket.socket() as owner:
        owner.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        owner.bind(("127.0.0.1", 0))
        owner.listen()
        port = owner.getsockname()[1]
        assert seen(ports.check_ports(local(port=port, reuse_port=True)), "port") == ["ok"]
        assert seen(ports.check_ports(local(port=port)), "port") == ["fail"]


def test_port_that_is_shared_takes_no_connection_from_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    listened = []

    class Recorder(socket.socket):
        def listen(self, backlog: int = 0) -> None:
            listened.append(self.getsockname()[0])
            super().listen(backlog)

    monkeypatch.setattr(ports.socket, "socket", Recorder)
    assert seen(ports.check_ports(local(reuse_port=True))) == ["ok", "ok"] and not listened
    assert seen(ports.check_ports(local())) == ["ok", "ok"] and len(listened) == 2


def has_ipv6() -> bool:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_all_addresses_of_ipv6_are_those_of_ipv4_too() -> None:
    with socket.create_server(("0.0.0.0", 0)) as holder:
        port = holder.getsockname()[1]
        assert seen(ports.check_ports(local(host="[::]", port=port)), "port") == ["fail"]
        assert seen(ports.check_ports(local(host="::1", port=port)), "port") == ["ok"]


@pytest.mark.parametrize(
    ("addresses", "status"),
    [
        (["192.0.2.1", "127.0.0.1"], "ok"),
        (["192.0.2.1"], "fail"),
        (["127.0.0.1", "127.0.0.2"], "ok"),
        (["127.0.0.2", "taken"], "fail"),
        (["taken", "127.0.0.2"], "fail"),
    ],
)
def test_every_address_of_a_host_must_be_free_and_one_of_this_machine(
    addresses: list[str], status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.3", 0)) as holder:
        port = holder.getsockname()[1]
        hosts = ["127.0.0.3" if it == "taken" else it for it in addresses]
        resolved = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in hosts]
        monkeypatch.setattr(ports.socket, "getaddrinfo", lambda *_, **__: resolved)
        assert seen(ports.check_ports(local(port=port)), "port") == [status]


@pytest.mark.parametrize("host", ["nosuch.invalid", "192.0.2.1", "a" * 64 + ".example"])
def test_host_that_is_not_of_this_machine_fails(host: str) -> None:
    found = ports.check_ports(local(host=host))[0]
    assert found.status == "fail" and "--host" in found.advice


def test_port_without_permission_has_advice_of_its_own() -> None:
    assert "CAP_NET_BIND_SERVICE" in ports._advice(PermissionError(13, "Permission denied"), "--port", 80)


def test_hosts_and_ports_are_those_of_the_gateway() -> None:
    source = (SOURCES / "app/listen.rs").read_text()
    assert re.search(r"METRICS_PORT: u16 = ([\d_]+);", source)[1].replace("_", "") == str(ports.DEFAULT_METRICS_PORT)  # type: ignore[index]
    cases = re.findall(r'\("(\S+)", (None|Some\("\S+"\)), "(\S+)"\)', source)
    assert len(cases) >= 5
    for host, metrics, expected in cases:
        given = None if metrics == "None" else metrics[6:-2]
        assert ports._metrics_host(RouterArgs(host=host, prometheus_host=given)) == expected


# --- machine


@pytest.mark.parametrize(
    ("hard", "given", "status"),
    [
        (1024, {}, "warn"),
        (16384, {}, "ok"),
        (1024, {"max_concurrent_requests": 480}, "ok"),
        (1024, {"max_concurrent_requests": 481}, "warn"),
        (resource.RLIM_INFINITY, {}, "ok"),
    ],
)
def test_limit_on_files_is_compared_with_what_requests_take(
    hard: int, given: dict[str, Any], status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, hard))
    (found,) = machine.check_files(RouterArgs(**given))
    assert found.status == status
    assert hard != 1024 or "1024 descriptors, enough for 480 requests" in found.finding


def test_reserve_of_descriptors_is_that_of_the_gateway() -> None:
    source = (SOURCES / "config/sections.rs").read_text()
    assert re.search(rf"RESERVED_DESCRIPTORS: u64 = {machine._RESERVED};", source)


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`system(ports="32768 60999", waiting="4096", clock="tsc")`: settings of the kernel, as files."""
    (tmp_path / "net/ipv4").mkdir(parents=True)
    (tmp_path / "net/core").mkdir()
    monkeypatch.setattr(machine, "SYSTEM", tmp_path)
    monkeypatch.setattr(machine, "CLOCK_SOURCE", tmp_path / "clock")

    def put(ports: str = "32768\t60999\n", waiting: str = "4096\n", clock: str = "tsc\n") -> None:
        (tmp_path / "net/ipv4/ip_local_port_range").write_text(ports)
        (tmp_path / "net/core/somaxconn").write_text(waiting)
        (tmp_path / "clock").write_text(clock)

    return put


def test_kernel_that_shows_no_settings_gets_no_findings(system: Callable[..., None]) -> None:
    assert machine.check_local_ports(RouterArgs()) == [] and machine._clock_source() == []


@pytest.mark.parametrize(
    ("kernel", "given", "statuses"),
    [
        ({}, {}, ["ok", "ok"]),
        ({"ports": "32768 40000"}, {}, ["warn", "ok"]),
        ({"ports": "1024 65535"}, {}, ["warn", "ok"]),
        ({}, {"port": 40000}, ["warn", "ok"]),
        ({}, {"prometheus_port": 60999}, ["warn", "ok"]),
        ({"waiting": "128"}, {}, ["ok", "warn"]),
    ],
)
def test_local_ports_and_the_accept_queue(
    kernel: dict[str, str], given: dict[str, Any], statuses: list[str], system: Callable[..., None]
) -> None:
    system(**kernel)
    assert seen(machine.check_local_ports(RouterArgs(**given))) == statuses


@pytest.mark.parametrize(
    ("name", "release", "status"),
    [("Linux", "6.1.0-1-amd64", "ok"), ("Linux", "3.2.0", "ok"), ("Linux", "2.6.32", "fail"), ("Darwin", "25", "warn")],
)
def test_kernel_is_compared_with_the_oldest_that_works(
    name: str, release: str, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.platform, "system", lambda: name)
    monkeypatch.setattr(machine.platform, "release", lambda: release)
    (found,) = machine.check_kernel()
    assert found.status == status and release in found.finding


def test_clock_before_the_build_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    built = machine._build_time()
    assert built is not None and built > 1.7e9
    assert seen(machine._time_of_day(RouterArgs())) == ["ok"]
    monkeypatch.setattr(machine.time, "time", lambda: built - 2 * 86400)
    (found,) = machine._time_of_day(RouterArgs())
    assert found.status == "fail" and "before this gateway was built" in found.finding


@pytest.mark.parametrize("loose", [True, False])
def test_loose_clock_is_a_warning_where_dates_are_judged(loose: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_is_unsynchronised", lambda: loose)
    assert seen(machine._time_of_day(RouterArgs())) == ["ok"]
    assert seen(machine._time_of_day(RouterArgs(jwt_issuer="https://a"))) == ["warn" if loose else "ok"]


def test_kernel_is_asked_about_its_clock() -> None:
    assert machine._is_unsynchronised() in (True, False)
    assert machine.ctypes.CDLL(None).adjtimex(machine.ctypes.create_string_buffer(512)) in range(6)


@pytest.mark.parametrize(
    ("clock", "status"), [("tsc", "ok"), ("kvm-clock", "ok"), ("hpet", "warn"), ("acpi_pm", "warn")]
)
def test_slow_clock_source_is_a_warning(clock: str, status: str, system: Callable[..., None]) -> None:
    system(clock=f"{clock}\n")
    assert seen(machine._clock_source()) == [status]


# --- issuer


def test_issuer_that_can_be_reached_passes_and_others_fail() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/keys"
        found = issuer.check_issuer(RouterArgs(jwt_issuer="https://nosuch.invalid", jwt_jwks_uri=url), 5.0)
        assert (seen(found), found[0].finding) == (["ok"], f"{url} can be reached")
    for given in ("https://nosuch.invalid", f"http://127.0.0.1:{free_port()}", "https://a:no"):
        (failed,) = issuer.check_issuer(RouterArgs(jwt_issuer=given), 5.0)
        assert failed.status == "fail" and failed.finding.startswith(f"{given}: ")


def test_no_issuer_no_finding() -> None:
    assert issuer.check_issuer(RouterArgs(), 5.0) == []


# --- workers


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """`serve(version="0.5.1")`: the URL of a server with `/health`, and `/server_info` with these fields."""
    with ExitStack() as stack:

        def start(date: str | None = None, tls: Any = None, prefix: str = "", **fields: Any) -> str:
            class Handler(http.server.BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    answers = {f"{prefix}/health": b"", f"{prefix}/server_info": json.dumps(fields).encode()}
                    body = answers.get(self.path) if fields or self.path.endswith("/health") else None
                    self.send_response(404 if body is None else 200)
                    self.send_header("content-length", str(len(body or b"")))
                    self.end_headers()
                    self.wfile.write(body or b"")

                def date_time_string(self, timestamp: float | None = None) -> str:
                    return date or super().date_time_string(timestamp)

                def log_message(self, *_: Any) -> None:
                    pass

            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            if tls:
                server.socket = tls.wrap_socket(server.socket, server_side=True)
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            return f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}{prefix}"

        yield start


def ask(*urls: str, **given: Any) -> list[Finding]:
    return workers.check_workers(RouterArgs(worker_urls=list(urls), **given), 5.0)


def test_ready_worker_passes_with_its_version_and_model(sim_workers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    url = sim_workers(1, api_key="k", model="m")[0].url
    worker, versions = ask(url, api_key="k")
    assert worker.status == versions.status == "ok"
    assert re.fullmatch(rf"{url}: SGLang \d+\.\d+\.\d+\S*, m", worker.finding)


def test_worker_with_another_key_fails(sim_workers: Any) -> None:
    (found,) = ask(sim_workers(1, api_key="k")[0].url, api_key="other")
    assert found.status == "fail" and "--api-key" in found.advice


def test_worker_that_is_not_there_fails() -> None:
    refused, unknown = ask(f"127.0.0.1:{free_port()}", "http://nosuch.invalid:1")
    assert refused.status == unknown.status == "fail"
    assert "refused" in refused.finding and "'nosuch.invalid' has no address" in unknown.finding


def test_worker_that_is_silent_fails_after_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        args = RouterArgs(worker_urls=[f"http://127.0.0.1:{silent.getsockname()[1]}"])
        (found,) = workers.check_workers(args, 0.1)
    assert found.status == "fail" and "timed out" in found.finding


def test_worker_that_is_not_healthy_is_a_warning(serve: Callable[..., str]) -> None:
    found = ask(serve(version="0.5.1"), health_check_endpoint="/nothing")[0]
    assert found.status == "warn" and "/nothing answers 404" in found.finding


def test_worker_whose_replies_name_no_cached_tokens_is_a_warning(serve: Callable[..., str]) -> None:
    url = serve(version="0.5.1", enable_cache_report=False)
    found = ask(url, policy="cache_aware")
    assert seen(found, "worker") == ["ok", "warn"] and "--enable-cache-report" in found[1].advice
    assert seen(ask(url, policy="least_load"), "worker") == ["ok"]
    assert seen(ask(serve(version="0.5.1", enable_cache_report=True)), "worker") == ["ok"]


def test_server_of_another_kind_is_a_warning(serve: Callable[..., str]) -> None:
    (found,) = ask(serve())
    assert found.status == "warn" and "is it a worker of SGLang?" in found.advice


def test_path_of_a_url_stands_before_every_question(serve: Callable[..., str]) -> None:
    assert seen(ask(f"{serve(prefix='/a', version='0.5.1')}/")) == ["ok", "ok"]


def test_different_versions_are_a_warning(serve: Callable[..., str]) -> None:
    found = ask(serve(version="0.5.1"), serve(version="0.5.1"), serve(version="0.5.23"))
    assert seen(found, "worker") == ["ok"] * 3
    assert [one.finding for one in found if one.check == "versions"] == ["SGLang 0.5.1 on 2, 0.5.23 on 1"]
    assert seen(found, "versions") == ["warn"]


def test_worker_of_another_role_is_a_warning(sim_workers: Any) -> None:
    (decode,) = sim_workers(1, disaggregation_mode="decode")
    args = RouterArgs(pd_disaggregation=True, prefill_urls=[(decode.url, None)], decode_urls=[decode.url])
    wrong, right, _ = workers.check_workers(args, 5.0)
    assert (wrong.status, right.status) == ("warn", "ok")
    assert "it is a decode worker, and named as a prefill one" in wrong.finding


@pytest.mark.parametrize(("off", "text"), [(-3600, "behind"), (3600, "ahead of"), (0, "")])
def test_clock_of_a_worker_is_compared(off: int, text: str, serve: Callable[..., str]) -> None:
    date = formatdate(machine.time.time() + off, usegmt=True)
    found = [one for one in ask(serve(date=date, version="0.5.1")) if "clock" in one.finding]
    assert seen(found) == (["warn"] if text else [])
    assert not text or f"its clock is 3600 s {text}" in re.sub("3599|3601", "3600", found[0].finding)


def test_certificate_is_judged_as_the_gateway_does(serve: Callable[..., str], tmp_path: Path) -> None:
    authority, context = trustme.CA(), workers.ssl.SSLContext(workers.ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("worker.internal").configure_cert(context)
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    url = serve(tls=context, version="0.5.1")
    trusting: dict[str, Any] = {"ca_cert_paths": [str(ca)]}
    for given, status in (
        ({}, "fail"),
        (trusting, "fail"),
        (trusting | {"worker_tls_name": "worker.internal"}, "ok"),
        ({"tls_skip_verify": True}, "ok"),
    ):
        assert ask(url, **given)[0].status == status, given
    (found,) = ask(url, ca_cert_paths=[str(tmp_path / "none.pem")])
    assert found.status == "fail" and "--ca-cert-paths" in found.advice


def test_slow_name_server_is_a_warning(sim_workers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_SLOW_LOOKUP", -1.0)
    assert seen(ask(sim_workers(1)[0].url)) == ["warn", "ok", "ok"]


@pytest.mark.parametrize("url", ["dns+http://nosuch.invalid:1", "dns+srv+https://_a._tcp.nosuch.invalid"])
def test_name_that_stands_for_workers_is_not_asked(url: str) -> None:
    (found,) = ask(url)
    assert found.status == "ok" and found.finding.startswith(f"{url}: a name ")


def test_no_workers_is_fine() -> None:
    (found,) = ask()
    assert found.status == "ok" and "POST /workers" in found.finding
