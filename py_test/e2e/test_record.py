"""A recording of live traffic: replayed it hits as many cached tokens, simulated it ranks policies as live."""

from __future__ import annotations

import json
import random
import re
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.waiting import wait_for

from sgl_model_gateway import replay, simulate
from sgl_model_gateway.router import Router

SimWorkers = Callable[..., list[Any]]
Gateways = Callable[..., Router]
BLOCK = 64
# The last block of a prompt is not the beginning of the next turn's: small blocks lose little by that.
PAGE = 16
# A worker computes so many tokens a second, and holds so many.
FLEET = {"prefill_tokens_per_sec": 8000.0, "kv_cache_tokens": 40_000}


def conversations(requests: int, seed: int = 7) -> list[dict[str, Any]]:
    """Sessions behind one of three system prompts, which grow turn by turn."""
    chance = random.Random(seed)
    systems = [list(range(1000 * at, 1000 * at + length)) for at, length in ((1, 3), (2, 8), (3, 20))]
    sessions: list[list[int]] = []
    rows, fresh, now = [], 100_000, 0.0
    for _ in range(requests):
        if len(sessions) < 12 or chance.random() < 0.2:
            sessions = [*sessions[-30:], list(chance.choice(systems))]
        session = chance.choice(sessions)
        more = chance.choice([1, 2, 4])
        session += range(fresh, fresh + more)
        fresh += more
        now += chance.expovariate(1 / 25)
        rows.append(
            {
                "timestamp": int(now),
                "input_length": len(session) * BLOCK - chance.randrange(BLOCK),
                "output_length": 4,
                "hash_ids": list(session),
                "model": "sim-model",
            }
        )
    about = {"version": 1, "block_tokens": BLOCK, "block_bytes": 4 * BLOCK, "sample": 1.0, "began": ""}
    rows[0]["recording"] = about
    return rows


def sent(trace: Path, url: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The figures of a replay."""
    with pytest.raises(SystemExit) as end:
        replay.main(["--trace", str(trace), "--target", url, "--json", "--salt", "x"])
    found = json.loads(capsys.readouterr().out)
    assert end.value.code == 0, found
    run: dict[str, Any] = found["runs"][0] | {"recorded": found["recorded"]}
    return run


def written(path: Path, count: int) -> list[dict[str, Any]]:
    """The lines of a recording, once all are there."""
    wait_for(lambda: path.read_text().count("\n") >= count, f"{count} lines")
    return [json.loads(line) for line in path.read_text().splitlines()]


def fleet(sim_workers: SimWorkers, gateway: Gateways, **options: Any) -> Router:
    workers = sim_workers(4, model="sim-model", page_size=PAGE, **FLEET)
    return gateway([worker.url for worker in workers], **options)


def test_replayed_recording_hits_as_many_cached_tokens_as_were_hit_live(
    sim_workers: SimWorkers, gateway: Gateways, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = conversations(400)
    trace, recording = tmp_path / "made.jsonl", tmp_path / "recorded.jsonl"
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"policy": "cache_aware", "record": str(recording), "record_block_tokens": PAGE}
    live = sent(trace, fleet(sim_workers, gateway, **options).url, capsys)
    lines = written(recording, len(rows))
    # A chat has a few bytes around its text.
    found = sorted(len(line["hash_ids"]) * PAGE for line in lines)
    wanted = sorted(row["input_length"] for row in rows)
    assert all(0 <= one - other <= 2 * PAGE for one, other in zip(found, wanted, strict=True))
    again = sent(recording, fleet(sim_workers, gateway, policy="cache_aware").url, capsys)
    assert live["hit_ratio"] > 0.4
    assert again["recorded"]["hit_ratio"] == pytest.approx(live["hit_ratio"], abs=1e-6)
    assert again["hit_ratio"] == pytest.approx(live["hit_ratio"], rel=0.02)


def test_simulated_recording_says_which_policy_is_better_as_it_was_live(
    sim_workers: SimWorkers, gateway: Gateways, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = conversations(500)
    trace, recording = tmp_path / "made.jsonl", tmp_path / "recorded.jsonl"
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    more: dict[str, Any] = {"record": str(recording), "record_block_tokens": BLOCK}
    live = {}
    for policy in ("cache_aware", "round_robin"):
        live[policy] = sent(trace, fleet(sim_workers, gateway, policy=policy, **more).url, capsys)
        written(recording, len(rows))
        more = {}
    flags = ["--trace", recording, "--workers", 4, "--policy", ",".join(live), "--decode-ms", 0, "--json"]
    flags += ["--prefill-tps", FLEET["prefill_tokens_per_sec"], "--kv-tokens", FLEET["kv_cache_tokens"]]
    simulate.main([*map(str, flags)])
    reports = json.loads(capsys.readouterr().out)["runs"][0]["policies"]
    simulated = {report["policy"]: report for report in reports}
    for figure in (lambda run: run["hit_ratio"], lambda run: -run["ttft"]["mean_ms"]):
        assert figure(live["cache_aware"]) > figure(live["round_robin"])
    assert simulated["cache_aware"]["hit_ratio"] > simulated["round_robin"]["hit_ratio"]
    assert simulated["cache_aware"]["ttft_mean_ms"] < simulated["round_robin"]["ttft_mean_ms"]
    for policy, run in live.items():
        assert simulated[policy]["hit_ratio"] == pytest.approx(run["hit_ratio"], abs=0.05), policy


def test_requests_go_on_where_the_recording_is_gone(
    sim_workers: SimWorkers, gateway: Gateways, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "records"
    folder.mkdir()
    recording, trace = folder / "recorded.jsonl", tmp_path / "made.jsonl"
    trace.write_text("".join(json.dumps(row) + "\n" for row in conversations(20)))
    door = fleet(sim_workers, gateway, record=str(recording))
    sent(trace, door.url, capsys)
    written(recording, 20)
    folder.rename(tmp_path / "away")

    def lost() -> bool:
        assert sent(trace, door.url, capsys)["answered"] == 20
        found = re.search(r'smg_recorded_requests_total\{result="not_written"\} (\d+)', metrics(door))
        return found is not None and int(found[1]) > 0

    wait_for(lost, "a line that is lost")
    folder.mkdir()

    def is_back() -> bool:
        sent(trace, door.url, capsys)
        return recording.exists() and '"recording":' in recording.read_text()

    wait_for(is_back, "recording to go on")


def metrics(door: Router) -> str:
    with urllib.request.urlopen(str(door.metrics_url), timeout=5) as response:
        return str(response.read().decode())
