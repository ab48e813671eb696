"""`replay`: traces, texts, the client, figures and what is said about mistakes."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.backend import Backend, Exchange, breaks_off, says, streams

from sgl_model_gateway import cli, replay
from sgl_model_gateway._replay.client import Client, Reply, ReplyError
from sgl_model_gateway._replay.figures import compare, report
from sgl_model_gateway._replay.prompts import block_text, body, prompt_text
from sgl_model_gateway._replay.send import Outcome
from sgl_model_gateway._replay.trace import Trace, TraceError, read, shortened

CHAT = "/v1/chat/completions"
ABOUT = {"version": 1, "block_tokens": 64, "block_bytes": 256, "sample": 1.0, "began": "2026-01-31T00:00:00Z"}


def row(at: int, ids: list[int], **more: Any) -> dict[str, Any]:
    return {"timestamp": at, "input_length": len(ids) * 512, "output_length": 4, "hash_ids": ids} | more


def trace_of(tmp_path: Path, *rows: dict[str, Any]) -> Trace:
    return read(write(tmp_path, *rows))


def write(tmp_path: Path, *rows: dict[str, Any]) -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


# --- traces


def test_requests_are_in_the_order_of_their_arrival_and_refused_ones_are_left_out(tmp_path: Path) -> None:
    refused = row(5, [], status=429)
    trace = trace_of(tmp_path, row(30, [1]), refused, row(10, [2]))
    assert [one.at_ms for one in trace.arrivals] == [10, 30]
    assert trace.left_out == 1 and not trace.is_recording and trace.block_bytes == 2048


def test_recording_says_how_long_its_blocks_are(tmp_path: Path) -> None:
    own = {"input_bytes": 600, "prompt_tokens": 200, "endpoint": "/generate", "model": "m", "stream": False}
    trace = trace_of(tmp_path, row(0, [1, 2, 3], recording=ABOUT, **own), row(1, [4]))
    assert (trace.block_bytes, trace.block_tokens, trace.is_recording) == (256, 64, True)
    # Three bytes a token, as the engine counted.
    assert trace.tokens_per_block() == 85
    first = trace.arrivals[0]
    assert (first.input_bytes, first.endpoint, first.model, first.streams) == (600, "/generate", "m", False)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nonsense", "line 1"),
        ('{"input_length": 1, "output_length": 1, "hash_ids": []}', "no field 'timestamp'"),
        ('{"timestamp": 1, "output_length": 1}', "no field 'hash_ids'"),
        (json.dumps(row(1, [1], recording={"version": 9})), "version 9"),
        ("", "empty"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(line)
    with pytest.raises(TraceError, match=words):
        read(path)


def test_shortened_trace_keeps_what_requests_share(tmp_path: Path) -> None:
    trace = shortened(trace_of(tmp_path, row(0, [1, 2]), row(1, [1, 3])), block_divisor=32, output_divisor=100)
    texts = [prompt_text(one, trace.block_bytes, "") for one in trace.arrivals]
    assert [len(text) for text in texts] == [128, 128]
    assert texts[0][:64] == texts[1][:64] and texts[0][64:70] != texts[1][64:70]
    assert trace.arrivals[0].output_tokens == 1


# --- texts


def test_text_of_a_block_is_always_the_same_plain_and_as_long_as_the_block() -> None:
    for size in (1, 7, 64, 2048):
        text = block_text(2**53 - 1, size, "s")
        assert len(json.dumps(text)) == size + 2 and text == block_text(2**53 - 1, size, "s")
    assert block_text(1, 64, "s")[:12] != block_text(1, 64, "t")[:12]


def test_prompts_share_as_many_bytes_as_they_share_blocks(tmp_path: Path) -> None:
    trace = trace_of(tmp_path, row(0, [1, 2, 3]), row(1, [1, 2, 9, 8]))
    one, other = (prompt_text(arrival, 2048, "") for arrival in trace.arrivals)
    assert (len(one), len(other)) == (3 * 2048, 4 * 2048)
    common = next(at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    assert 2 * 2048 <= common < 2 * 2048 + 4


@pytest.mark.parametrize("endpoint", [CHAT, "/v1/completions", "/generate", "/v1/responses", "/v1/messages", "/odd"])
def test_body_is_of_the_recorded_endpoint_with_its_output_and_stream(tmp_path: Path, endpoint: str) -> None:
    trace = trace_of(tmp_path, row(0, [1], endpoint=endpoint, model="m", stream=False), row(1, [1], endpoint=endpoint))
    whole, streamed = (body(one, "TEXT", None).decode() for one in trace.arrivals)
    assert "TEXT" in whole and ": 4" in whole and '"stream": true' not in whole
    assert '"stream": true' in streamed
    assert ('"model": "m"' in whole) == (endpoint != "/generate")


# --- the client


@pytest.fixture
def backend() -> Iterator[Backend]:
    backend = Backend()
    yield backend
    backend.close()


def post(backend: Backend, path: str = "/x") -> Reply:
    async def run() -> Reply:
        client = Client(backend.url)
        try:
            await client.post(path, b"{}")
            return await client.post(path, b"{}")  # over the same connection
        finally:
            client.close()

    return asyncio.run(run())


USAGE = {"usage": {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 6}}}


@pytest.mark.parametrize("script", [says(USAGE), streams({"a": 1}, USAGE, b"[DONE]")])
def test_times_and_counts_of_a_reply_are_read(backend: Backend, script: Any) -> None:
    backend.on("/x", script)
    reply = post(backend)
    assert 0 < reply.first_s <= reply.total_s
    assert reply.counts == {"prompt_tokens": 9, "output_tokens": 4, "cached_tokens": 6}
    assert len({exchange.client_address for exchange in backend.seen}) == 1


def cut_off(exchange: Exchange) -> None:
    exchange.start_stream()
    exchange.event({"a": 1})
    breaks_off(exchange)


@pytest.mark.parametrize(
    ("script", "word"),
    [
        (says({"error": "x"}, 503), "503"),
        (streams({"a": 1}, {"error": {"message": "boom"}}), "error in the stream"),
        (cut_off, "IncompleteReadError|ValueError"),
        (breaks_off, "IncompleteReadError|ConnectionResetError"),
    ],
)
def test_failed_reply_is_an_error_with_a_word(backend: Backend, script: Any, word: str) -> None:
    backend.on("/x", script)
    with pytest.raises(ReplyError, match=word):
        post(backend)


def test_url_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="no http://"):
        Client("localhost:1")


# --- figures


def outcome(times: list[float]) -> Outcome:
    counts = {"prompt_tokens": 100, "cached_tokens": 25}
    return Outcome({place: Reply(time, time * 2, counts) for place, time in enumerate(times)}, Counter())


def test_report_has_percentiles_and_the_share_of_cached_tokens(tmp_path: Path) -> None:
    trace = trace_of(tmp_path, *(row(at, [1]) for at in range(100)))
    found = report(trace, outcome([place / 1000 for place in range(100)]))
    assert found["ttft"]["p50_ms"] == pytest.approx(50) and found["ttft"]["p99_ms"] == pytest.approx(99)
    assert found["hit_ratio"] == 0.25 and found["answered"] == 100


def test_difference_is_stated_only_where_rounds_agree_on_it(tmp_path: Path) -> None:
    trace = trace_of(tmp_path, *(row(at, [1]) for at in range(50)))
    base = [0.1 + place / 1000 for place in range(50)]

    def rounds(*gaps: float) -> list[tuple[Outcome, Outcome]]:
        return [(outcome(base), outcome([time + gap for time in base])) for gap in gaps]

    faster = compare(trace, rounds(-0.010, -0.011, -0.009, -0.010))[0]
    assert faster.interval is not None and faster.interval[1] < 0
    assert "10.0 ms" in faster.sentence and "shorter" in faster.sentence and "4 rounds" in faster.sentence
    unclear = compare(trace, rounds(-0.010, 0.012, 0.001, -0.004))[0]
    assert "no difference can be shown" in unclear.sentence
    single = compare(trace, rounds(-0.010))[0]
    assert single.interval is None and "says nothing of chance" in single.sentence


# --- the command


def test_trace_is_sent_and_reported(
    tmp_path: Path, backend: Backend, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMG_API_KEY", "k")
    backend.on(CHAT, streams({"a": 1}, USAGE))
    path = write(tmp_path, *(row(at, [1, at], session="abc", ttft_ms=5.0) for at in (0, 20)), row(30, []))
    with pytest.raises(SystemExit) as end:
        cli.main(["replay", "--trace", str(path), "--target", backend.url, "--speed", "2", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert end.value.code == 0
    (run,) = found["runs"]
    assert (run["answered"], run["errors"], run["hit_ratio"]) == (2, {}, pytest.approx(6 / 9))
    assert found["left_out"] == 1 and found["recorded"]["ttft"]["mean_ms"] == 5.0
    headers = backend.seen[0].headers
    assert (headers["x-smg-routing-key"], headers["authorization"]) == ("abc", "Bearer k")


def test_two_servers_are_compared_and_errors_are_counted(
    tmp_path: Path, backend: Backend, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts: set[str] = set()

    def script(exchange: Exchange) -> None:
        prompts.add(exchange.body["messages"][0]["content"][:12])
        streams({"a": 1}, USAGE)(exchange)

    backend.on(CHAT, script)
    path = write(tmp_path, row(0, [1, 2]), row(5, [1, 3]))
    flags = ["--trace", str(path), "--target", backend.url, "--rounds", "2"]
    with pytest.raises(SystemExit) as end:
        replay.main([*flags, "--compare", f"{backend.url}/nowhere"])
    said = capsys.readouterr().out
    assert end.value.code == 1 and "2 × 404" in said and "/nowhere #2" in said
    with pytest.raises(SystemExit):
        replay.main([*flags, "--compare", backend.url])
    assert "TTFT mean: " in capsys.readouterr().out
    # Texts differ from turn to turn: no cache knows them from an earlier one.
    assert len(prompts) == 2 + 4


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--speed", "0"], "--speed must be above 0"),
        (["--target", "nowhere"], "is no http:// or https:// URL"),
        (["--trace", "/nowhere.jsonl"], "cannot read /nowhere.jsonl"),
    ],
)
def test_mistake_in_a_flag_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    path = write(tmp_path, row(0, [1]))
    with pytest.raises(SystemExit) as end:
        replay.main(["--trace", str(path), "--target", "http://127.0.0.1:1", *flags])
    assert end.value.code == 2 and words in capsys.readouterr().err
