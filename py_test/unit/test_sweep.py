"""`simulate --sweep`: many fleets, the smallest that is good enough, and its picture."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from sgl_model_gateway import simulate
from sgl_model_gateway._simulate.sweep import Case, Goal, answer

AXES = [("workers", [2.0, 3.0, 4.0]), ("kv_tokens", [1000.0, 2000.0])]
GOAL = Goal(share=0.95, ttft_ms=500)


def case(workers: float, tokens: float, policy: str, goodput: float) -> Case:
    report = {"policy": policy, "goodput": goodput, "ttft_quantiles_ms": [1.0, *[1000 * (1 - goodput)] * 2]}
    return Case((workers, tokens), report)


def test_answer_is_the_smallest_fleet_and_the_next_smaller_one() -> None:
    cases = [
        case(workers, tokens, policy, share)
        for policy, shares in (("cache_aware", [0.5, 0.9, 0.93, 0.96, 0.97, 0.99]), ("random", [0.1] * 5 + [0.96]))
        for (workers, tokens), share in zip([(w, t) for w in (2, 3, 4) for t in (1000, 2000)], shares, strict=True)
    ]
    assert answer(AXES, cases, GOAL) == (
        "3 workers (2,000 cache tokens) with cache_aware meet TTFT p95 <= 500 ms; 2 workers do not, with any policy."
    )
    best = [case(2, 1000, "random", 0.97), case(2, 1000, "cache_aware", 0.98)]
    assert answer(AXES, best, GOAL) == (
        "2 workers (1,000 cache tokens) with cache_aware or random meet TTFT p95 <= 500 ms."
    )
    assert "No fleet of these meets" in answer(AXES, [case(4, 2000, "random", 0.4)], GOAL)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    rows = [
        {"timestamp": at * 50, "input_length": 2048, "output_length": 20, "hash_ids": [at % 7, 100 + at % 7, 1000 + at]}
        for at in range(300)
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sweep(trace: Path, *flags: str) -> None:
    policies = ["--policy", "cache_aware,round_robin", "--speed", "10"]
    simulate.main(["--trace", str(trace), *policies, "--sweep", "workers=1,2,8", *flags], prog="simulate")


def test_more_workers_are_found_to_be_faster_and_drawn(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "plot.svg"
    sweep(trace, "--sweep", "kv-tokens=20000,200000", "--ttft-slo-ms", "200", "--plot", str(picture), "--json")
    found = json.loads(capsys.readouterr().out)
    assert len(found["cases"]) == 3 * 2 * 2 and "workers" in found["answer"]

    def ttft(**wanted: Any) -> float:
        (one,) = [row for row in found["cases"] if all(row[name] == value for name, value in wanted.items())]
        return float(one["ttft_mean_ms"])

    fleet = {"policy": "cache_aware", "kv_tokens": 200000}
    assert ttft(workers=8, **fleet) < ttft(workers=1, **fleet)
    root = ET.fromstring(picture.read_text())
    assert len(root.findall(".//{http://www.w3.org/2000/svg}polyline")) == 2 * 2


def test_table_ends_with_the_answer(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(trace, "--ttft-slo-ms", "100000")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["workers", "policy"] and len(lines) == 2 + 6 + 2
    assert lines[-1].startswith("1 workers with ") and "meet TTFT p95 <= 100000 ms" in lines[-1]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--sweep", "nothing=1"], "argument --sweep"),
        (["--sweep", "kv_tokens=many"], "argument --sweep"),
        (["--slo-share", "0"], "--slo-share"),
        (["--speed", "1,2"], "one --speed"),
        (["--plot", "plot.html"], ".svg"),
        (["--sweep", "kv_tokens=-5"], "kv_tokens"),
    ],
)
def test_mistake_is_named(trace: Path, flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        sweep(trace, *flags)
    assert end.value.code == 2 and words in capsys.readouterr().err


def test_blocks_of_a_recording_have_the_tokens_that_engines_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = {"version": 1, "block_tokens": 512, "block_bytes": 2048, "sample": 1.0, "began": "2026-01-31T00:00:00Z"}
    own = {"input_bytes": 4096, "prompt_tokens": 2048, "recording": about}
    row = {"timestamp": 0, "input_length": 1024, "output_length": 1, "hash_ids": [1, 2]} | own
    refused = {"timestamp": 1, "input_length": 0, "output_length": 0, "hash_ids": [], "status": 429}
    path = tmp_path / "trace.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(refused) + "\n")
    simulate.main(["--trace", str(path), "--policy", "random", "--prefill-tps", "1000", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["options"]["block_tokens"] == 1024
    assert found["trace"]["requests"] == 1
    # 2048 tokens at a thousand per second.
    assert found["runs"][0]["policies"][0]["ttft_mean_ms"] == pytest.approx(2048, rel=0.01)
