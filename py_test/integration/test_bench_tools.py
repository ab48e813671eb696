"""Tools of bench/ as processes: a short run of each, a taken port, a sudden end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"
PORTS = 6
GATEWAY = 4  # behind the four workers
OURS = ["--only", "ours", "--target", f"ours={sys.executable}"]


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def all_free(base_port: int) -> bool:
    return all(map(is_free, range(base_port, base_port + PORTS)))


@pytest.fixture(scope="module")
def tools() -> Path:
    """The tools as cargo builds them for tests."""
    subprocess.run(["cargo", "build", "--quiet", "-p", "bench-tools", "--bins"], cwd=ROOT, check=True)
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug"


@pytest.fixture
def base_port() -> Iterator[int]:
    """The first of some free ports in a row, outside the range that the kernel gives out."""
    yield next(base for base in range(21_000, 30_000, 10) if all_free(base))


def compare(tools: Path, base_port: int, *flags: str) -> list[str]:
    own = ["--tools", str(tools), "--base-port", str(base_port), "--rounds", "1"]
    return [sys.executable, str(BENCH / "compare.py"), *OURS, *own, *flags]


def finished(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=50)


def test_a_comparison_measures_a_gateway_and_leaves_nothing_behind(tools: Path, base_port: int, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    flags = ["--secs", "1", "--scenarios", "json_small,stream_burst", "--base", "ours", "--json", str(file)]
    done = finished(compare(tools, base_port, *flags))
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(file.read_text())
    for name in ("json_small", "stream_burst"):
        row = results[name]["summary"]["ours"]
        assert row["rps"] > 0 and row["cpu_us_per_request"] > 0 and row["ratio"] == 1 and row["errors"] == 0
    assert (
        results["stream_burst"]["summary"]["ours"]["events_per_s"] > results["stream_burst"]["summary"]["ours"]["rps"]
    )
    assert all_free(base_port)


def test_a_comparison_refuses_a_taken_port_and_names_it(tools: Path, base_port: int) -> None:
    with socket.create_server(("127.0.0.1", base_port + 2)):
        done = finished(compare(tools, base_port, "--scenarios", "json_small"))
    assert done.returncode == 1
    assert f"port {base_port + 2} is taken" in done.stdout


def test_a_killed_comparison_takes_its_processes_along(tools: Path, base_port: int) -> None:
    command = compare(tools, base_port, "--secs", "600", "--scenarios", "json_small")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_for(lambda: not is_free(base_port + GATEWAY), "the gateway")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_for(lambda: all_free(base_port), "the end of workers and gateway")


def test_a_replay_reports_times_and_hits(tmp_path: Path, base_port: int) -> None:
    trace = tmp_path / "trace.jsonl"
    rows = [{"timestamp": 20 * at, "output_length": 16, "hash_ids": [1, 2, 3, 4, 10 + at]} for at in range(40)]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = tmp_path / "rows.json"
    own = ["--workers", "2", "--speed", "1", "--base-port", str(base_port), "--json", str(results)]
    done = finished([sys.executable, str(BENCH / "replay.py"), str(trace), *OURS, *own])
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads(results.read_text())
    assert (row["answered"], row["errors"]) == (40, 0)
    assert row["hit_ratio"] > 0.5  # four pages of five are shared
    assert row["ttft_mean_ms"] >= 3.2  # one block is never cached


def test_a_failed_leg_is_the_answer_and_the_other_is_free(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    ports = 8 * 6  # a row each for either leg and three kinds of requests
    base = next(base for base in range(21_000, 30_000, ports) if all(map(is_free, range(base, base + ports))))
    own = ["--only", "ours", "--faults", "422", "--at-once", "2", "--base-port", str(base), "--json", str(file)]
    done = finished([sys.executable, str(BENCH / "pair_failures.py"), *own])
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(file.read_text())
    assert [row["leg"] for row in rows] == ["prefill"] * 3 + ["decode"] * 3
    for row in rows:
        assert (row["end"], set(row["left"].values()), row["died"]) == ("422", {0}, [])
        assert row["client_s"] < 5 and f"| {row['kind']} | 422 " in done.stdout
    assert all(map(is_free, range(base, base + ports)))


def test_cost_of_changing_pods_is_measured_under_traffic() -> None:
    short = ["--pods", "20", "--seconds", "1", "--rounds", "1", "--rate", "20"]
    done = finished([sys.executable, str(BENCH / "discovery.py"), *short])
    assert done.returncode == 0, done.stdout + done.stderr
    quiet, busy = (line.split(" | ") for line in done.stdout.splitlines()[2:4])
    assert (quiet[0], busy[0]) == ("| other pods change", "| these pods change")
    assert [row[4] for row in (quiet, busy)] == ["0", "0"]


def test_gateway_leaves_a_pod_that_terminates_alone() -> None:
    done = finished([sys.executable, str(BENCH / "pod_changes.py"), "--only", "ours", "--rows", "terminates"])
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"terminates, ours: last request after (\S+) s", done.stderr)
    assert found and float(found[1]) < 1
