"""A web page of another origin uses the gateway as OpenAI's SDK for browsers does: `make test-browser`.

Skipped unless BROWSER names a Chromium (Debian: `apt-get install chromium`).
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests
from support.waiting import wait_for

BROWSER = os.environ.get("BROWSER", "")
pytestmark = [
    pytest.mark.skipif(not BROWSER, reason="BROWSER is not set; see `make test-browser`"),
    pytest.mark.timeout(120),
]
PATIENCE = 60.0  # seconds
FLAGS = "--headless --no-sandbox --disable-gpu --no-first-run --disable-dev-shm-usage"

PAGE = """<!doctype html><title>page</title><script>
const GATEWAY = "%s";
// What OpenAI's SDK sends.
const headers = {
  "authorization": "Bearer k", "content-type": "application/json", "x-stainless-lang": "js",
  "x-stainless-os": "Linux", "x-stainless-retry-count": "0", "x-smg-routing-key": "page",
};
const chat = (more, options) => fetch(GATEWAY + "/v1/chat/completions", {
  method: "POST", headers,
  body: JSON.stringify({model: "sim-model", max_tokens: 8, messages: [{role: "user", content: "hi"}], ...more}),
  ...options,
});
const steps = {
  async whole() {
    const reply = await chat({});
    const text = (await reply.json()).choices[0].message.content;
    return [reply.status, text.length > 0, reply.headers.get("x-request-id") !== null];
  },
  async stream() {
    const reply = await chat({stream: true});
    let text = "";
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let piece; !(piece = await reader.read()).done;) text += piece.value;
    return [reply.status, text.endsWith("data: [DONE]\\n\\n")];
  },
  async error() {
    const reply = await chat({}, {body: "{"});
    return [reply.status, (await reply.json()).error.code, reply.headers.get("x-smg-error-code")];
  },
  async unauthorized() {
    const reply = await chat({}, {headers: {...headers, authorization: "Bearer wrong"}});
    return [reply.status, (await reply.json()).error.code];
  },
  async control() {
    try {
      return [(await fetch(GATEWAY + "/flush_cache", {method: "POST", headers})).status];
    } catch (error) {
      return ["blocked"];
    }
  },
  async cancel() {
    const abort = new AbortController();
    const reply = await chat({stream: true, max_tokens: 50000, ignore_eos: true}, {signal: abort.signal});
    const reader = reply.body.getReader();
    await reader.read();
    abort.abort();
    try {
      for (;;) if ((await reader.read()).done) return ["ended"];
    } catch (error) {
      return [error.name];
    }
  },
};
(async () => {
  const seen = {};
  for (const [name, step] of Object.entries(steps)) {
    try { seen[name] = await step(); } catch (error) { seen[name] = ["failed", String(error)]; }
  }
  await fetch("/seen", {method: "POST", body: JSON.stringify(seen)});
})();
</script>"""


@contextmanager
def site(gateway: list[str], seen: queue.Queue[dict[str, Any]]) -> Iterator[str]:
    """A server of the page; what the page saw comes into the queue."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer((PAGE % gateway[0]).encode() if self.path == "/" else b"")

        def do_POST(self) -> None:
            seen.put(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.answer(b"")

        def answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def load(url: str) -> int:
    listed = requests.get(f"{url}/workers", headers={"authorization": "Bearer k"}, timeout=10).json()
    return listed["workers"][0]["load"]


@pytest.mark.parametrize("listed", [False, True], ids=["any origin", "a listed origin"])
def test_page_of_another_origin_chats_streams_reads_errors_and_cancels(
    sim_workers: Any, gateway: Any, listed: bool
) -> None:
    worker = sim_workers(1, api_key="k", decode_step_base_ms=5)[0]
    seen: queue.Queue[dict[str, Any]] = queue.Queue()
    address: list[str] = []
    with site(address, seen) as page, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        door = gateway([worker.url], api_key="k", cors_allowed_origins=[page] if listed else [])
        address.append(door.url)
        command = [BROWSER, *FLAGS.split(), f"--user-data-dir={profile}", f"{page}/"]
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            found = seen.get(timeout=PATIENCE)
            # While the browser lives: its end would close the connection, too.
            wait_for(lambda: load(door.url) == 0, "the cancelled stream frees its worker")
        finally:
            browser.kill()
            browser.wait()
    assert found == {
        "whole": [200, True, True],
        "stream": [200, True],
        "error": [400, "json_parse_error", "json_parse_error"],
        "unauthorized": [401, "invalid_api_key"],
        # Only a listed origin may change anything.
        "control": [200] if listed else ["blocked"],
        "cancel": ["AbortError"],
    }
