"""Keys and the audit log over the real command line."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from support.gateway import Gateway
from support.waiting import wait_for


def status(url: str, key: str = "", method: str = "GET") -> int:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    data = None if method == "GET" else b'{"text": "hi"}'
    request = urllib.request.Request(url, data, {**headers, "content-type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status  # type: ignore[no-any-return]
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps([{"name": "alice", "key": "sk-alice"}, {"name": "bob", "key": "sk-bob"}]))
    return path


def test_keys_open_their_planes_and_the_audit_log_has_their_ids(sim_workers: Any, keys: Path, tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"
    control = ("--control-plane-api-keys", "ops:Operations:ADMIN:key:with:colons", "eye:Dashboard:user:guest")
    flags = ("--api-keys-file", str(keys), "--audit-log", str(audit), *control)
    gateway = Gateway([sim_workers(1)[0].url], *flags)
    try:
        check_planes(gateway.wait_ready(1).url, keys, audit)
        assert not [line for line in gateway.lines if "colons" in line or "sk-" in line]
        assert gateway.end() == 0
    finally:
        gateway.destroy()


def check_planes(url: str, keys: Path, audit: Path) -> None:
    say = f"{url}/generate"
    assert status(say, "sk-alice", "POST") == 200
    assert [status(say, key, "POST") for key in ("sk-bob", "guest", "", "key:with:colons")] == [200, 401, 401, 401]
    workers, flush = f"{url}/workers", f"{url}/flush_cache"
    assert [status(workers, key) for key in ("guest", "key:with:colons", "sk-alice", "")] == [200, 200, 401, 401]
    assert [status(flush, key, "POST") for key in ("guest", "key:with:colons")] == [403, 200]
    keys.write_text(json.dumps([{"name": "bob", "key": "sk-bob"}]))
    wait_for(lambda: status(say, "sk-alice", "POST") == 401, "the key is withdrawn")
    assert status(say, "sk-bob", "POST") == 200
    wait_for(lambda: audit.read_text().count("\n") >= 6, "the last line is written")
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    last = [(line["principal"], line["name"], line["outcome"], line["status"]) for line in lines[-2:]]
    assert last == [("eye", "Dashboard", "denied", 403), ("ops", "Operations", "success", 200)]
    assert "colons" not in audit.read_text() and "sk-" not in audit.read_text()


def test_gateway_that_cannot_read_its_keys_does_not_start(run: Any, tmp_path: Path) -> None:
    missing = str(tmp_path / "none.json")
    process = run("-m", "sgl_model_gateway.launch_router", "--port", "0", "--api-keys-file", missing)
    assert process.wait() != 0
    assert "api_keys_file" in process.text()
