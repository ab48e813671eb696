"""TLS with what users have: requests, httpx, curl and openssl in front of the gateway, uvicorn behind it."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
import uvicorn
from support.certificates import Files
from support.launcher import Launcher
from support.waiting import DEADLINE, wait_for

from sgl_model_gateway.router import Router

needs = {
    name: pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not installed")
    for name in ("curl", "openssl")
}
CHAT = {"model": "sim-model", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "stream": True}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "ours")


@pytest.fixture
def strangers(tmp_path: Path) -> Files:
    return Files(tmp_path / "theirs")


@pytest.fixture
def serving(sim_workers, gateway, files: Files) -> Callable[..., Router]:
    """`serving(**options)`: a gateway over TLS before a simulated worker."""

    def start(**options: Any) -> Router:
        worker = sim_workers(1)[0]
        door = gateway([worker.url], ready=False, **files.serving(), **options)
        cert = files.issue("probe")
        wait_for(
            lambda: requests.get(f"{door.url}/readiness", verify=files.ca, cert=cert, timeout=5).ok, "a ready worker"
        )
        return door

    return start


# --- in front


def test_requests_streams_over_https_and_trusts_no_unknown_authority(serving, files: Files) -> None:
    door = serving()
    assert door.url.startswith("https://127.0.0.1:")
    assert door.metrics_url.startswith("http://")
    with requests.post(f"{door.url}/v1/chat/completions", json=CHAT, verify=files.ca, stream=True, timeout=20) as reply:
        events = [line for line in reply.iter_lines() if line]
    assert reply.status_code == 200 and events[-1] == b"data: [DONE]"
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(f"{door.url}/health", timeout=5)


def test_httpx_gets_http2_by_alpn(serving, files: Files) -> None:
    door = serving()
    with httpx.Client(http2=True, verify=ssl.create_default_context(cafile=files.ca)) as client:
        reply = client.post(f"{door.url}/generate", json={"text": "hi", "sampling_params": {"max_new_tokens": 3}})
    assert (reply.status_code, reply.http_version) == (200, "HTTP/2")


@needs["curl"]
@pytest.mark.parametrize("flags", [["--http1.1"], ["--http1.1", "--tls-max", "1.2"]])
def test_curl_reaches_it(serving, files: Files, flags: list[str]) -> None:
    door = serving()
    url = door.url.replace("127.0.0.1", "localhost") + "/health"
    command = ["curl", "--silent", "--show-error", "--ipv4", "--noproxy", "*", "--cacert", files.ca, *flags, url]
    said = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert (said.returncode, said.stdout) == (0, "OK"), said.stderr


@needs["openssl"]
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_verifies_the_chain_and_agrees_on_a_protocol(serving, files: Files, version: str) -> None:
    door = serving()
    address = door.url.removeprefix("https://")
    command = ["openssl", "s_client", "-connect", address, "-CAfile", files.ca, "-verify_return_error"]
    command += ["-verify_ip", "127.0.0.1", "-alpn", "h2,http/1.1", version]
    said = subprocess.run(command, input="", capture_output=True, text=True, timeout=DEADLINE)
    assert said.returncode == 0, said.stderr
    assert "Verify return code: 0 (ok)" in said.stdout and "ALPN protocol: h2" in said.stdout


def test_client_without_a_certificate_is_refused_where_one_is_wanted(serving, files: Files, strangers: Files) -> None:
    door = serving(tls_client_ca_paths=[files.ca])
    known, foreign = files.issue("me"), strangers.issue("me")
    assert requests.get(f"{door.url}/health", verify=files.ca, cert=known, timeout=5).ok
    for cert in (None, foreign):
        with pytest.raises(requests.exceptions.ConnectionError):
            requests.get(f"{door.url}/health", verify=files.ca, cert=cert, timeout=5)


def test_missing_file_is_a_value_error_and_a_broken_one_a_runtime_error(files: Files, tmp_path: Path) -> None:
    cert, key = files.issue("localhost")
    broken = tmp_path / "broken.pem"
    broken.write_text("hello")
    fixed = {"worker_urls": [], "host": "127.0.0.1", "port": 0, "prometheus_port": 0}
    with pytest.raises(ValueError, match=r"'server_cert_path'.*nowhere\.pem.*cannot be read"):
        Router(**fixed, server_cert_path="/nowhere.pem", server_key_path=key).start_background()
    with pytest.raises(RuntimeError, match=r"broken\.pem \(server_key_path\) holds no private key"):
        Router(**fixed, server_cert_path=cert, server_key_path=str(broken)).start_background()
    with pytest.raises(ValueError, match="needs server_key_path"):
        Router(**fixed, server_cert_path=cert)


# --- behind


async def _engine(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """What a worker answers: its health, what it serves, and the length of a body."""
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    answers = {"/health": b"", "/server_info": b'{"served_model_name":"m"}', "/generate": b'{"took":%d}' % len(body)}
    answer = answers.get(scope["path"])
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 404 if answer is None else 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer or b""})


@pytest.fixture
def uvicorn_worker() -> Iterator[Callable[..., str]]:
    """`uvicorn_worker(cert, key, **ssl options)`: the URL of a worker that is served as SGLang serves."""
    with ExitStack() as stack:

        def start(cert: str, key: str, **options: Any) -> str:
            listener = socket.create_server(("127.0.0.1", 0))
            config = uvicorn.Config(
                _engine, ssl_certfile=cert, ssl_keyfile=key, log_level="error", lifespan="off", **options
            )
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
            thread.start()

            def stop() -> None:
                server.should_exit = True
                thread.join(DEADLINE)
                listener.close()

            stack.callback(stop)
            wait_for(lambda: server.started, "uvicorn")
            return f"https://127.0.0.1:{listener.getsockname()[1]}"

        yield start


def _asked(door: Router, size: int = 10) -> dict[str, Any]:
    return requests.post(f"{door.url}/generate", json={"text": "x" * size}, timeout=20).json()


def _stays_unready(door: Router) -> None:
    """A second probe has failed too."""
    wait_for(lambda: _probes(door) >= 2, "two probes that failed")
    assert requests.get(f"{door.url}/readiness", timeout=5).status_code == 503


def _probes(door: Router) -> float:
    page = requests.get(door.metrics_url, timeout=5).text
    lines = [
        line for line in page.splitlines() if line.startswith("smg_worker_health_checks_total") and "failure" in line
    ]
    return sum(float(line.split()[-1]) for line in lines)


def test_worker_that_only_shows_a_certificate_is_used(uvicorn_worker, gateway, files: Files) -> None:
    door = gateway([uvicorn_worker(*files.issue("127.0.0.1"))], ca_cert_paths=[files.ca])
    for size in (10, 3_000_000, 10):
        assert _asked(door, size) == {"took": size + len('{"text": ""}')}


def test_worker_of_another_authority_is_not_used(uvicorn_worker, gateway, files: Files, strangers: Files) -> None:
    url = uvicorn_worker(*strangers.issue("127.0.0.1"))
    _stays_unready(gateway([url], ready=False, ca_cert_paths=[files.ca]))


def test_worker_that_wants_a_certificate_is_used_with_one_and_not_without(
    uvicorn_worker, gateway, files: Files
) -> None:
    url = uvicorn_worker(*files.issue("127.0.0.1"), ssl_ca_certs=files.ca, ssl_cert_reqs=ssl.CERT_REQUIRED)
    _stays_unready(gateway([url], ready=False, ca_cert_paths=[files.ca]))
    assert "took" in _asked(gateway([url], **files.calling()))


def test_launcher_sees_its_gateway_over_tls(files: Files) -> None:
    cert, key = files.issue("localhost")
    launcher = Launcher("--router-tls-cert-path", cert, "--router-tls-key-path", key)
    try:
        assert launcher.url().startswith("https://")
    finally:
        launcher.destroy()
