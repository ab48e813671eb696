"""`top`: snapshots from a gateway, the figures between two of them, and how they look in a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from sgl_model_gateway import top
from sgl_model_gateway._top.figures import History
from sgl_model_gateway._top.source import Source, SourceError
from sgl_model_gateway._top.view import COLUMNS, View, clean

TOP = [sys.executable, "-m", "sgl_model_gateway", "top"]


def worker(number: int = 1, **changes: Any) -> dict[str, Any]:
    sums = ("successes", "failures", "prompt_tokens", "predicted_tokens", "reported_prompt_tokens", "reported_tokens")
    return {
        "id": f"id-{number}",
        "index": number,
        "name": f"http://gpu-{number}:30000",
        "url": f"http://gpu-{number}:30000",
        "rank": None,
        "role": "regular",
        "model": "m",
        "status": "ready",
        "selectable": True,
        "paused": False,
        "circuit_breaker": "closed",
        "breaker_failures": 0,
        "requests": number,
        "decoding": 0,
        "queued_tokens": 0,
        "streams": 0,
        "ttft_secs": 0.0,
        **dict.fromkeys(sums, 0),
        **changes,
    }


def snapshot(*workers: dict[str, Any], uptime: float = 100.0) -> dict[str, Any]:
    pool = {"model": "m", "role": "regular", "policy": "cache_aware", "selectable": 1, "fallback": 0}
    return {
        "snapshot": 1,
        "time": 1e9,
        "uptime_secs": uptime,
        "version": "0.4.0",
        "policy": "cache_aware",
        "draining": False,
        "workers": list(workers),
        "pools": [{**pool, "panicking": False, "queued": 3}],
        "limits": {"max_concurrent_requests": 64, "queued": 2, "queued_for_a_worker": 3},
        "decisions": [],
    }


def lines(view: View, *workers: dict[str, Any], width: int = 200, height: int | None = None) -> list[str]:
    history, now = History(), snapshot(*workers)
    history.add(now)
    return view.lines(now, history, width, height)


# --- figures


def test_figures_are_those_of_the_last_minute() -> None:
    history = History()
    early = worker(successes=100, failures=50, prompt_tokens=1000, predicted_tokens=0, streams=10, ttft_secs=100.0)
    history.add(snapshot(early, uptime=100))
    late = worker(successes=120, failures=53, prompt_tokens=1400, predicted_tokens=300, streams=20, ttft_secs=105.0)
    history.add(snapshot(late, uptime=110))
    figures = history.figures(late)
    assert (figures.predicted, figures.reported, figures.ttft) == (0.75, None, 0.5)
    assert (figures.rate, figures.errors) == (2.3, 3)


def test_where_nothing_has_happened_lately_ratios_are_those_since_the_worker_joined() -> None:
    history = History()
    idle = worker(prompt_tokens=1000, predicted_tokens=250, streams=4, ttft_secs=2.0)
    history.add(snapshot(idle, uptime=100))
    history.add(snapshot(idle, uptime=101))
    figures = history.figures(idle)
    assert (figures.predicted, figures.ttft, figures.rate, figures.errors) == (0.25, 0.5, 0.0, 0)


def test_a_restart_of_the_gateway_begins_a_new_history() -> None:
    history = History()
    history.add(snapshot(worker(failures=9), uptime=100))
    after = worker(failures=1)
    history.add(snapshot(after, uptime=1))
    assert history.figures(after).errors == 0


# --- the view


def test_every_column_is_shown_where_there_is_room_and_the_last_ones_give_way() -> None:
    wide = lines(View(), worker())
    head = next(line for line in wide if line.startswith("worker"))
    assert head.split() == list(COLUMNS)
    narrow = lines(View(), worker(), width=40)
    head = next(line for line in narrow if line.startswith("worker"))
    assert head.split() == list(COLUMNS)[: len(head.split())] and len(head.split()) < len(COLUMNS)
    assert all(len(line) <= 40 for line in narrow)


@pytest.mark.parametrize("width", [1, 5, 10, 20, 80])
def test_no_line_is_longer_than_the_terminal(width: int) -> None:
    found = lines(View(), worker(name="http://" + 200 * "x"), worker(2), width=width)
    assert max(map(len, found)) <= width


def test_summary_has_states_limits_and_queues() -> None:
    down = worker(2, status="not_ready", selectable=False)
    text = "\n".join(lines(View(), worker(), down))
    assert "1 of 2 workers get requests, 3 requests in flight (limit 64), 5 wait" in text
    assert "m, regular: cache_aware, 1 workers, 3 requests wait" in text
    assert "not_ready" in text


def test_workers_are_sorted_and_filtered() -> None:
    workers = [worker(1), worker(3, model="other"), worker(2, status="drained", selectable=False)]

    def names(view: View) -> list[str]:
        return re.findall(r"^http://gpu-(\d)", "\n".join(lines(view, *workers)), re.M)

    assert names(View()) == ["1", "3", "2"]
    assert names(View("requests")) == ["3", "2", "1"]
    assert names(View("state")) == ["2", "1", "3"]
    assert names(View(filter="OTHER")) == ["3"]
    assert names(View(filter="drained")) == ["2"]
    assert "2 of 3 workers are not shown" in lines(View(filter="drained"), *workers)[-1]


def test_a_full_terminal_says_how_many_workers_are_left_out() -> None:
    found = lines(View(), *(worker(number) for number in range(500)), height=20)
    assert len(found) == 20
    assert re.fullmatch(r"\d+ of 500 workers are not shown", found[-1])


def test_states_have_colors_where_there_are_any() -> None:
    broken = worker(circuit_breaker="open", selectable=False)
    assert "\x1b[31mopen" in "\n".join(lines(View(color=True), broken))
    assert "\x1b" not in "\n".join(lines(View(), broken))


HOSTILE = "<img src=x onerror=alert(1)>\x1b[2J\x1b]0;title\x07\r\n\u202egnp\u2066\x9b31m"


def test_names_cannot_steer_the_terminal() -> None:
    assert all(letter.isprintable() for letter in clean(HOSTILE))
    odd = worker(name=HOSTILE, model=HOSTILE, role=HOSTILE, status=HOSTILE, circuit_breaker=HOSTILE)
    for line in lines(View(), odd, width=400):
        assert all(letter.isprintable() for letter in line), line


# --- the source


@contextmanager
def server(status: int, *bodies: bytes) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A gateway that answers everything with this; its URL, and the headers of what it was asked."""
    asked: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append({"path": self.path, **{name.lower(): value for name, value in self.headers.items()}})
            self.send_response(status)
            self.end_headers()
            for body in bodies:
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}", asked
        finally:
            listening.shutdown()


def test_key_goes_into_a_header_and_not_into_the_url() -> None:
    with server(200, json.dumps(snapshot()).encode()) as (url, asked):
        assert Source(f"{url}/behind/", "s3cret").one()["version"] == "0.4.0"
    assert asked[0]["path"] == "/behind/debug/fleet.json"
    assert asked[0]["authorization"] == "Bearer s3cret"


def test_stream_yields_snapshots_and_nothing_else() -> None:
    first, second = (json.dumps(snapshot(uptime=at)).encode() for at in (1, 2))
    events = [b'event: viewer\ndata: {"role":"user"}\n\n', b"data: " + first + b"\n\n", b"data: " + second + b"\n\n"]
    with server(200, *events) as (url, _):
        assert [found["uptime_secs"] for found in Source(url).each()] == [1, 2]


@pytest.mark.parametrize(
    ("status", "body", "why", "is_refusal"),
    [
        (401, b'{"error": {"message": "missing key"}}', "401: missing key", True),
        (503, b'{"error": {"message": "8 viewers"}}', "503: 8 viewers", False),
        (404, b"gone", "404: Not Found", True),
        (200, b"no json", "no JSON", False),
        (200, b"[]", "no snapshot", False),
    ],
)
def test_what_is_wrong_is_said(status: int, body: bytes, why: str, is_refusal: bool) -> None:
    with server(status, body) as (url, _), pytest.raises(SourceError, match=why) as failure:
        Source(url).one()
    assert failure.value.is_refusal == is_refusal


def test_gateway_that_is_away_is_an_error_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        top.main(["--url", "http://127.0.0.1:1", "--once"])
    assert ended.value.code == 1
    assert "http://127.0.0.1:1: " in capsys.readouterr().err


@pytest.mark.parametrize("url", ["ftp://x", "http://", "file:///etc/passwd"])
def test_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(SystemExit) as ended:
        top.main(["--url", url])
    assert ended.value.code == 2


# --- the command, with a real gateway


@pytest.fixture
def door(sim_workers: Any, gateway: Any) -> Any:
    return gateway([worker.url for worker in sim_workers(2)], api_key="k")


def command(door: Any, *flags: str, key: str = "k") -> subprocess.CompletedProcess[str]:
    words = [*TOP, "--url", door.url, *flags]
    return subprocess.run(words, capture_output=True, text=True, timeout=30, env={**os.environ, "SMG_API_KEY": key})


def test_without_a_terminal_the_fleet_is_printed_once(door: Any) -> None:
    for flags in ([], ["--once"]):
        shown = command(door, *flags)
        assert shown.returncode == 0, shown.stderr
        assert "2 of 2 workers get requests" in shown.stdout and "\x1b" not in shown.stdout


def test_json_is_a_snapshot(door: Any) -> None:
    found = json.loads(command(door, "--json").stdout)
    assert [worker["status"] for worker in found["workers"]] == ["ready", "ready"]
    assert set(worker()) == set(found["workers"][0])
    assert set(snapshot()) == set(found)


def test_wrong_key_ends_with_1_and_is_not_repeated(door: Any) -> None:
    refused = command(door, "--once", key="wr0ng")
    assert refused.returncode == 1
    assert "401" in refused.stderr and "wr0ng" not in refused.stderr + refused.stdout
    shown = subprocess.run([*TOP, "--help"], capture_output=True, text=True, env={**os.environ, "SMG_API_KEY": "wr0ng"})
    assert "wr0ng" not in shown.stdout


def test_in_a_terminal_the_fleet_is_drawn_again_and_again_and_the_screen_comes_back(door: Any) -> None:
    ours, theirs = pty.openpty()
    words = [*TOP, "--url", door.url, "--api-key", "k"]
    environment = {**os.environ, "COLUMNS": "160", "LINES": "30"}
    with subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        output, deadline = "", time.monotonic() + 30
        while output.count("2 of 2 workers get requests") < 2:
            assert time.monotonic() < deadline and process.poll() is None, output
            if select.select([ours], [], [], 1)[0]:
                output += os.read(ours, 65536).decode()
        process.send_signal(2)
        # A terminal that is not read from would hold up what it still writes.
        while select.select([ours], [], [], 10)[0]:
            try:
                output += os.read(ours, 65536).decode()
            except OSError:  # the other end is closed
                break
        assert process.wait(timeout=10) == 0
    os.close(ours)
    assert output.startswith("\x1b[?1049h") and output.endswith("\x1b[?25h\x1b[?1049l")
    assert "\x1b[32m" in output
