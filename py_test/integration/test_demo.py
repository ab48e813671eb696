"""The demo, in this process and as a command."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from support.client import get_json

from sgl_model_gateway import demo
from sgl_model_gateway._demo import load as demo_load
from sgl_model_gateway.router import Router


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """The demo installs handlers; this process wants its own back."""
    saved = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in saved.items():
        signal.signal(number, handler)


def test_the_demo_runs_in_this_process(capsys: pytest.CaptureFixture[str]) -> None:
    demo.main(["--workers", "2", "--requests", "6", "--exit"])
    out = capsys.readouterr().out
    assert "2 simulated workers behind http://127.0.0.1:" in out and "6/6 requests answered" in out
    assert out.strip().splitlines()[-1].split()[:4] == ["all", "2", "2", "2"]


def test_the_demo_takes_any_port_when_the_usual_one_is_taken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Router(worker_urls=[], host="127.0.0.1", port=0, prometheus_port=0) as other:
        port = int(other.url.rsplit(":", 1)[1])
        monkeypatch.setattr(demo, "_PORT", port)
        demo.main(["--workers", "1", "--requests", "3", "--exit"])
    assert f":{port}" not in capsys.readouterr().out


def test_an_interrupt_ends_the_demo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "send", interrupted)
    demo.main(["--workers", "1"])
    assert capsys.readouterr().out.endswith("stopped\n")


def test_a_failure_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_healthy", lambda _: 0)
    monkeypatch.setattr(demo, "_PATIENCE", 0.0)
    with pytest.raises(SystemExit) as exit_:
        demo.main(["--workers", "1", "--exit"])
    assert str(exit_.value.code).startswith("error: only 0 of 1 workers")


@pytest.mark.parametrize("flags", [["--workers=0"], ["--requests=0"], ["--pd", "--workers=1"]])
def test_senseless_numbers_are_usage_errors(flags: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        demo.main(flags)
    assert exit_.value.code == 2


def test_progress_on_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    progress = demo_load.Progress(4, width=8)
    for done in (1, 4):
        progress(done)
    assert capsys.readouterr().out == "\r[##......] 1/4\r[########] 4/4\n"


def test_a_refused_call_says_what_came_back(gateway: Any) -> None:
    with pytest.raises(RuntimeError, match="GET /nowhere: 404"):
        demo_load.call(gateway([]).url, "GET", "/nowhere")


@pytest.mark.parametrize("flags", [[], ["--processes"]], ids=["threads", "processes"])
def test_the_demo_shows_where_requests_went(run: Any, flags: list[str]) -> None:
    child = run("-m", "sgl_model_gateway", "demo", "--workers", "2", "--requests", "12", "--exit", *flags)
    lines, code = child.lines_until_end()
    assert code == 0, lines
    assert lines[-1].split()[:4] == ["all", "4", "4", "4"]
    rows = [line.split() for line in lines if line.startswith("http://")]
    assert [sum(map(int, row[1:4])) for row in rows] == [6, 6]


@pytest.mark.parametrize("flags", [[], ["--processes"]], ids=["threads", "processes"])
def test_the_demo_of_pairs_shows_which_two_workers_had_each_request(run: Any, flags: list[str]) -> None:
    child = run("-m", "sgl_model_gateway", "demo", "--pd", "--requests", "12", "--exit", *flags)
    lines, code = child.lines_until_end()
    assert code == 0, lines
    assert any(line.startswith("2 prefill and 2 decode simulated workers behind http://") for line in lines)
    _, *counts, tokens_in, tokens_out, _, _ = lines[-1].split()
    assert counts == ["4", "4", "4"]
    rows = [line.split() for line in lines if line.startswith("http://")]
    assert [row[1] for row in rows] == ["prefill", "prefill", "decode", "decode"]
    served = [sum(map(int, row[2:5])) for row in rows]
    assert sum(served[:2]) == sum(served[2:]) == 12 and min(served) > 0
    assert [row[6] for row in rows[:2]] == [row[5] for row in rows[2:]] == ["-", "-"]

    def total(column: int, of: list[list[str]]) -> str:
        return f"{sum(int(row[column].replace(',', '')) for row in of):,}"

    assert (total(5, rows[:2]), total(6, rows[2:])) == (tokens_in, tokens_out)


def test_the_demo_keeps_serving_until_interrupted(run: Any) -> None:
    child = run("-m", "sgl_model_gateway", "demo", "--workers", "1", "--requests", "3")
    while "keeps serving" not in (line := child.line()):
        pass
    assert get_json(f"{line.split(' at ')[1].split()[0]}/workers")["workers"][0]["is_healthy"]
    child.process.send_signal(signal.SIGINT)
    lines, code = child.lines_until_end()
    assert (lines[-1], code) == ("stopped", 0)
