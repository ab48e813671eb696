"""What a gateway writes, as a process: a line per request, the level at run time, and never a prompt or a key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from support.client import call
from support.gateway import Gateway
from support.waiting import wait_for

PROMPT = "PROMPT-51d7"
KEY = "sk-gateway-9be0"
CLIENT_KEY = "sk-client-4c12"
SECRETS = (PROMPT, KEY, CLIENT_KEY)
HEADERS = {"authorization": f"Bearer {KEY}", "x-openai-key": CLIENT_KEY}
CHAT = {"model": "sim-model", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 5}
STREAM = CHAT | {"stream": True, "stream_options": {"include_usage": True}}


class Echo(BaseHTTPRequestHandler):
    """A worker that fails, and repeats the request in its answer."""

    def do_GET(self) -> None:
        self._reply(200, b"{}")

    def do_POST(self) -> None:
        self._reply(500, self.rfile.read(int(self.headers["content-length"])))

    def _reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def failing_worker() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def written(
    sim_workers, failing_worker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, list[dict[str, Any]], str]:
    """Everything that a run has written, the lines of its access log, and its failing worker."""
    monkeypatch.setenv("RUST_LOG", "trace")
    flags = ["--api-key", KEY, "--log-dir", str(tmp_path), "--access-log", str(tmp_path / "access.log")]
    flags += ["--policy", "round_robin", "--disable-retries", "--log-max-files", "2"]
    worker = sim_workers(1, api_key=KEY)[0]
    old = [tmp_path / f"smg.2020-01-0{day}" for day in (1, 2, 3)]
    for path in old:
        path.write_text("old\n")
    door = Gateway([worker.url, failing_worker], *flags)
    try:
        door.wait_ready(2)
        scenario(door.url)
        assert door.end() == 0
    finally:
        door.destroy()
    files = sorted(path for path in tmp_path.iterdir() if path not in old)
    assert [path.name.rsplit(".", 1)[0] for path in files] == ["access.log", "smg"]
    assert [path.exists() for path in old] == [False, False, True]
    texts = [path.read_text() for path in files]
    lines = [json.loads(line) for line in texts[0].splitlines()]
    return "\n".join([door.text(), *texts]), lines, failing_worker


def scenario(url: str) -> None:
    """Good and bad requests; every second one goes to the worker that fails."""
    path = "/v1/chat/completions"
    outcomes = [call(url, "POST", path, CHAT, HEADERS | {"x-request-id": f"whole-{turn}"})[0] for turn in (1, 2)]
    assert sorted(outcomes) == [200, 500]
    with httpx.Client(http1=False, http2=True, timeout=20) as client:
        for turn in (1, 2):
            client.post(url + path, json=STREAM, headers=HEADERS | {"x-request-id": f"stream-{turn}"})
    assert call(url, "POST", f"{path}?key={CLIENT_KEY}", PROMPT, HEADERS)[0] == 400
    assert call(url, "POST", path, CHAT, {"authorization": f"Bearer {CLIENT_KEY}"})[0] == 401
    assert call(url, "POST", "/workers", {"url": "http://127.0.0.1:1", "api_key": [CLIENT_KEY]}, HEADERS)[0] == 400
    assert call(url, "PUT", "/debug/log-level", {"level": "debug"})[0] == 401
    assert call(url, "PUT", "/debug/log-level", {"level": "loud"}, HEADERS)[0] == 400
    assert call(url, "PUT", "/debug/log-level", {"level": "debug"}, HEADERS) == (200, {"level": "debug"})
    assert call(url, "GET", "/debug/log-level", None, HEADERS) == (200, {"level": "debug"})


def test_nothing_that_is_written_has_prompts_or_keys(written):
    text, _, _ = written
    for secret in SECRETS:
        found = [line for line in text.splitlines() if secret in line]
        assert not found, f"{secret}: {found[:3]}"
    assert "\x1b[" not in text, "colours off a terminal"


def test_access_log_and_log_have_a_line_for_what_they_are_to_show(written):
    text, lines, failing = written
    by_id = {line["id"]: line for line in lines}
    assert len(by_id) == len(lines)
    for kind in ("whole", "stream"):
        served, failed = sorted((by_id[f"{kind}-{turn}"] for turn in (1, 2)), key=lambda line: line["status"])
        assert (served["status"], failed["status"]) == (200, 500)
        assert served["completion_tokens"] == 5 and served["prompt_tokens"] > 0
        assert served["cached_tokens"] >= 0 and served["model"] == "sim-model"
        assert 0 < served["first_byte_ms"] <= served["last_byte_ms"]
        assert served["stream"] is (kind == "stream") and served["key"] == "api_key"
        assert failed["failed_attempts"] == f"500@{failing}" and failed["worker"] == failing
        logged = [line for line in text.splitlines() if failed["id"] in line and "request failed" in line]
        assert len(logged) == 2, "on the console and in the file"
    assert any(line["status"] == 401 and line["key"] == "" for line in lines)


def test_access_log_may_go_to_standard_output(sim_workers):
    worker = sim_workers(1)[0]
    door = Gateway([worker.url], "--access-log", "-")
    try:
        door.wait_ready(1)
        assert call(door.url, "POST", "/v1/chat/completions", CHAT, {"x-request-id": "shown"})[0] == 200
        wait_for(lambda: any('"id":"shown"' in line for line in list(door.lines)), "the line")
    finally:
        door.destroy()
