"""`simulate`: traces, results, tables, pictures, and what is said about mistakes."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sgl_model_gateway import cli, simulate
from sgl_model_gateway.sgl_model_gateway_rs import FleetTrace, fleet_option_defaults, fleet_policies, simulate_fleet


def conversations(requests: int, users: int = 20, gap: float = 100.0) -> list[dict[str, Any]]:
    """Users in turn; every turn repeats what was said before, and adds a block."""
    rows = []
    for number in range(requests):
        user, turn = number % users, number // users % 12
        ids = [user * 100_000 + number // users // 12 * 100 + block for block in range(turn + 2)]
        rows.append({"timestamp": number * gap, "input_length": len(ids) * 512, "output_length": 100, "hash_ids": ids})
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return write(tmp_path / "trace.jsonl", conversations(400))


def as_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    simulate.main([*map(str, arguments), "--json"])
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as end:
        simulate.main([*map(str, arguments)], prog="simulate")
    said = capsys.readouterr()
    assert end.value.code == 2 and not said.out and said.err.count("\n") == 1
    return said.err.strip()


# --- results


def test_json_has_a_run_per_speed_and_a_report_per_policy(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = as_json(capsys, "--trace", trace, "--speed", "10,40", "--policy", "round_robin, cache_aware,charge_3")
    assert result["trace"]["requests"] == 400 and result["trace"]["was_sorted"] is True
    assert result["options"]["workers"] == 8 and result["options"]["seeds"] == [0]
    assert [run["speed"] for run in result["runs"]] == [10, 40]
    for run in result["runs"]:
        assert [report["policy"] for report in run["policies"]] == ["round_robin", "cache_aware", "charge_3"]
        for report in run["policies"]:
            assert report["requests"] == 400 and report["rejected"] == 0
            assert 0 <= report["hit_ratio"] <= 1 and 0 <= report["goodput"] <= 1 and report["imbalance"] >= 1
            times = [report[f"ttft_{which}_ms"] for which in ("p50", "p90", "p99", "max")]
            assert times == sorted(times) and times[0] > 0
            assert report["decision_max_us"] >= report["decision_mean_us"] > 0


def test_prefixes_are_found_again(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = as_json(capsys, "--trace", trace, "--speed", 20, "--policy", "round_robin,cache_aware")["runs"][0]
    by_turns, aware = run["policies"]
    assert aware["hit_ratio"] > by_turns["hit_ratio"] + 0.1
    assert aware["ttft_mean_ms"] < by_turns["ttft_mean_ms"]


def test_pairs_have_a_policy_for_each_role_and_times_to_the_last_token(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = ("--trace", trace, "--prefill", 2, "--decode", 3)
    reports = as_json(capsys, *fleet)["runs"][0]["policies"]
    assert reports[0]["policy"] == "cache_aware+least_load" and len(reports) == 3
    assert all(0 < report["ttft_mean_ms"] < report["e2e_mean_ms"] and report["output_tps"] > 0 for report in reports)
    simulate.main([*map(str, fleet), "--policy", "round_robin+random"])
    said = capsys.readouterr().out
    assert "2 prefill and 3 decode workers" in said and "tokens/s" in said
    assert "unknown policy 'fastest'" in refused(capsys, *fleet, "--policy", "cache_aware+fastest")
    assert "decode" in refused(capsys, "--trace", trace, "--prefill", 2)


def test_every_policy_of_the_gateway_takes_part(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reports = as_json(capsys, "--trace", trace, "--speed", 20)["runs"][0]["policies"]
    assert [report["policy"] for report in reports] == fleet_policies()
    assert {"random", "round_robin", "cache_aware"} <= set(fleet_policies())


def test_equal_seeds_give_equal_results(trace: Path) -> None:
    def times(seed: int) -> Any:
        return simulate_fleet(FleetTrace(trace), "random", seed=seed, speed=50.0)["ttft_quantiles_ms"]

    assert times(1) == times(1) != times(2)


def test_seeds_are_averaged(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def mean(seeds: str) -> float:
        result = as_json(capsys, "--trace", trace, "--speed", 50, "--policy", "random", "--seed", seeds)
        return float(result["runs"][0]["policies"][0]["ttft_mean_ms"])

    assert mean("1,2") == pytest.approx((mean("1") + mean("2")) / 2)


def test_a_single_worker_is_a_queue(tmp_path: Path) -> None:
    # Two blocks at 1024 tokens/s take a second; the second request waits for the first, its block is cached by then.
    rows = [{"timestamp": 5, "input_length": 1024, "output_length": 1, "hash_ids": [1, 2]}] * 2
    report = simulate_fleet(
        FleetTrace(write(tmp_path / "t", rows)), "round_robin", workers=1, prefill_tps=1024.0, ttft_slo_ms=500.0
    )
    assert report["hit_ratio"] == 0.5 and report["goodput"] == 0
    assert report["ttft_quantiles_ms"][0] == report["ttft_max_ms"] == 1000


def test_a_full_queue_rejects_requests(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--workers", 1, "--max-queued", 3, "--speed", 1e6, "--policy", "random"]
    report = as_json(capsys, "--trace", trace, *flags)["runs"][0]["policies"][0]
    assert report["rejected"] == 400 - 4 and report["goodput"] <= 0.01


def test_events_take_workers_out_and_bring_them_back(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--workers", 2, "--speed", 60, "--policy", "cache_aware", "--decode-ms", 5]
    events = ["--event", "20000:1:leave", "--event", "30000:1:join", "--event", "35000:0:flush"]
    usual = as_json(capsys, "--trace", trace, *flags)["runs"][0]["policies"][0]
    churned = as_json(capsys, "--trace", trace, *flags, *events)["runs"][0]["policies"][0]
    assert usual["rerouted"] == usual["cut"] == 0 < churned["rerouted"] + churned["cut"]
    assert churned["hit_ratio"] < usual["hit_ratio"] and churned["rejected"] == 0
    simulate.main([str(word) for word in ("--trace", trace, *flags, *events)])
    assert "rerouted" in capsys.readouterr().out


def test_rules_route_around_a_worker_at_fault_as_an_oracle_does(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--workers", 4, "--policy", "round_robin", "--fault", "0:1000000000:2:fast-failing"]
    flags += ["--fault", "0:1000000000:3:gray=0.5"]

    def failed(knowledge: str) -> int:
        return int(
            as_json(capsys, "--trace", trace, *flags, "--knowledge", knowledge)["runs"][0]["policies"][0]["failed"]
        )

    assert failed("rules") == failed("oracle") == 0 < failed("none")


@pytest.mark.parametrize("fault", ["1:2:0:odd", "1:2:0:slow", "1:2:0:dead=3", "1:2:dead", "2:1:0:dead", "1:2:99:dead"])
def test_a_malformed_fault_is_refused(trace: Path, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        simulate.main(["--trace", str(trace), "--fault", fault])
    assert end.value.code == 2 and "fault" in capsys.readouterr().err


def test_a_limit_takes_the_first_requests_by_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = conversations(50)
    path = write(tmp_path / "shuffled", rows[25:] + rows[:25])
    assert not FleetTrace(path).was_sorted and len(FleetTrace(path)) == 50
    assert FleetTrace(path, 10).span_secs == pytest.approx(0.9)
    straight = FleetTrace(write(tmp_path / "straight", rows))
    ours, theirs = (simulate_fleet(trace, "cache_aware") for trace in (FleetTrace(path), straight))
    assert ours["ttft_quantiles_ms"] == theirs["ttft_quantiles_ms"]
    simulate.main(["--trace", str(path), "--policy", "random"])
    assert "sorted by time" in capsys.readouterr().out


# --- what people see


def test_the_table_is_aligned_and_marks_the_best(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["simulate", "--trace", str(trace), "--speed", "20,30", "--policy", "random,cache_aware"])
    said = capsys.readouterr()
    assert said.err == "" and said.out.count("speed ") == 2
    head, rule, *rows = said.out.split("\n\n")[1].splitlines()[1:]
    assert head.split()[:3] == ["policy", "hit", "mean"] and set(rule) == {"-"}
    assert [row.split()[0] for row in rows] == ["random", "cache_aware"]
    ends = [[match.end() for match in re.finditer(r"[\d.,]+(?=[* ]|$)", row)] for row in rows]
    assert ends[0] == ends[1]
    assert re.search(r"cache_aware +0\.\d{3}\*", rows[1]) and not re.search(r"random +0\.\d{3}\*", rows[0])


def test_progress_is_for_terminals(trace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    simulate.main(["--trace", str(trace), "--policy", "random"])
    said = capsys.readouterr()
    assert "[#####" in said.err and said.err.endswith("\r\x1b[K") and "#" not in said.out


def test_the_page_stands_alone(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "out.html"
    simulate.main(["--trace", str(trace), "--speed", "10,30", "--policy", "random,cache_aware", "--plot", str(page)])
    text = page.read_text()
    assert text.count("<svg") == 1 + 2 * 4 and text.count("<polyline") == 2 * (1 + 2 * 3)
    assert "cache_aware" in text and "nan" not in text and "src=" not in text and "http" not in text
    points = re.findall(r'points="([^"]+)"', text)[0].split()
    heights = [float(point.split(",")[1]) for point in points]
    assert heights == sorted(heights, reverse=True)


def test_a_png_has_a_row_per_speed(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "out.png"
    flags = ["--speed", "10,30", "--policy", "random,cache_aware", "--limit", "50", "--plot", str(picture)]
    simulate.main(["--trace", str(trace), *flags])
    assert "cache_aware" in capsys.readouterr().out
    data = picture.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and data.endswith(b"IEND\xaeB`\x82")
    assert struct.unpack(">II", data[16:24]) == (2880, 1200)
    assert len(data) > 60_000, "axes without curves and bars take 40 KB"
    assert "matplotlib.pyplot" not in sys.modules, "it would look for a display"


def test_a_png_without_matplotlib_is_refused_before_the_work(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(simulate, "compare", lambda *_, **__: pytest.fail("the simulation ran"))
    picture = tmp_path / "out.png"
    said = refused(capsys, "--trace", trace, "--policy", "random", "--plot", picture)
    assert "pip install 'sgl-model-gateway[plot]'" in said and ".html" in said and not picture.exists()


def test_the_simulator_runs_as_a_module(trace: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "sgl_model_gateway.simulate",
        "--trace",
        str(trace),
        "--policy",
        "random",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["runs"] and done.stderr == ""


def test_help_names_policies_and_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        simulate.main(["--help"])
    said = capsys.readouterr().out
    assert "--decode-interference" in said and "cache_aware" in said
    of_their_own = {"share", "speed", "seed", "changes", "faults", "knowledge", "engine_model", "engine"}
    assert set(simulate._OPTIONS) == set(fleet_option_defaults()) - of_their_own


# --- mistakes


def test_a_wrong_trace_is_one_line_that_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "No such file" in refused(capsys, "--trace", tmp_path / "missing")
    assert "empty" in refused(capsys, "--trace", write(tmp_path / "empty", []))
    path = write(tmp_path / "bad", conversations(2))
    with path.open("a") as file:
        file.write('{"timestamp": 3, "input_length": 1')
    assert f"{path}: line 3: EOF while parsing" in refused(capsys, "--trace", path)
    for line, why in (
        ("[]", "line 1: "),
        ('{"timestamp": 0}', "line 1: missing field `input_length`"),
        ('{"timestamp": -1, "input_length": 1, "output_length": 1, "hash_ids": []}', "not a time"),
        ('{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": [-1]}', "line 1: invalid value"),
        ('{"timestamp": 0, "input_length": 4000000000, "output_length": 1, "hash_ids": []}', "too long"),
    ):
        path.write_text(line)
        assert why in refused(capsys, "--trace", path)
    path.write_bytes(b"\xff\xfe")
    assert "line 1: not UTF-8" in refused(capsys, "--trace", path)


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--policy", "cash_aware"], "unknown policy 'cash_aware' (choose from random, round_robin, cache_aware"),
        (["--policy", "charge_x"], "unknown policy 'charge_x'"),
        (["--policy", ","], "choose from"),
        (["--workers", "0"], "'workers'"),
        (["--speed", "0"], "'speed'"),
        (["--speed", "fast"], "--speed"),
        (["--speed", ","], "--speed"),
        (["--seed", "1.5"], "--seed"),
        (["--limit", "0"], "--limit"),
        (["--decode-interference", "2"], "'decode_interference'"),
        (["--prefill-tps", "nan"], "'prefill_tps'"),
        (["--workers", "-1"], "workers"),
        (["--event", "1:2"], "--event"),
        (["--event", "1:9:leave"], "changes.worker"),
        (["--event", "1:0:explode"], "leave|join|flush"),
        (["--plot", "out.svg"], ".html"),
        (["--plot", "/nowhere/out.html"], "no directory"),
        (["--nonsense"], "--nonsense"),
    ],
    ids=" ".join,
)
def test_a_wrong_flag_is_one_line_that_names_it(
    trace: Path, capsys: pytest.CaptureFixture[str], flags: list[str], why: str
) -> None:
    assert why in refused(capsys, "--trace", trace, *flags)


def test_wrong_arguments_of_the_function_are_errors(trace: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FleetTrace(trace.parent / "missing")
    with pytest.raises(ValueError, match="unknown policy"):
        simulate_fleet(FleetTrace(trace), "unknown")
    with pytest.raises(TypeError, match="Did you mean 'workers'"):
        simulate_fleet(FleetTrace(trace), "random", wokers=2)


def test_progress_may_raise(trace: Path) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate_fleet(FleetTrace(trace), "random", stop)


# --- speed


def test_two_thousand_requests_under_every_policy_are_quick(tmp_path: Path) -> None:
    trace = FleetTrace(write(tmp_path / "t", conversations(2000, users=100, gap=20.0)))
    started = time.monotonic()
    for policy in fleet_policies():
        simulate_fleet(trace, policy)
    assert time.monotonic() - started < 10


def test_other_threads_run_meanwhile(tmp_path: Path) -> None:
    trace = FleetTrace(write(tmp_path / "t", conversations(5000, gap=20.0)))
    ticks, over = [0], threading.Event()

    def tick() -> None:
        while not over.is_set():
            ticks[0] += 1
            time.sleep(0)

    ticker = threading.Thread(target=tick)
    ticker.start()
    # Without a callback only the look at signals needs the GIL.
    simulate_fleet(trace, "cache_aware")
    over.set()
    ticker.join()
    assert ticks[0] > 0


# --- the shared model

SHARED = ("--engine-model", "shared", "--kv-tokens", 400_000, "--ttft-slo-ms", 2000, "--tpot-slo-ms", 20)


def test_shared_model_has_times_per_token_and_goodput_by_both_limits(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--trace", trace, "--speed", "1,40", "--policy", "cache_aware")
    calm, busy = (run["policies"][0] for run in as_json(capsys, *arguments, *SHARED)["runs"])
    assert 4.4 < calm["tpot_p50_ms"] < calm["tpot_p99_ms"] < busy["tpot_mean_ms"]
    assert calm["goodput"] == 1
    assert calm["e2e_mean_ms"] == pytest.approx(calm["ttft_mean_ms"] + 99 * calm["tpot_mean_ms"], rel=1e-6)
    strict = as_json(capsys, *arguments, *SHARED, "--tpot-slo-ms", busy["tpot_p50_ms"])["runs"][1]["policies"][0]
    assert strict["goodput"] == pytest.approx(0.5, abs=0.05)
    by_first_token = as_json(capsys, *arguments, *SHARED, "--tpot-slo-ms", 0)["runs"][1]["policies"][0]
    assert by_first_token["goodput"] == 1


def test_settings_of_the_engine_count(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--trace", trace, "--policy", "random", *SHARED)
    plain = as_json(capsys, *arguments)["runs"][0]["policies"][0]
    slow = as_json(capsys, *arguments, "--engine", "decode_base_ms=15")["runs"][0]["policies"][0]
    assert slow["tpot_p50_ms"] - plain["tpot_p50_ms"] == pytest.approx(10.54, abs=1.0)
    assert "speed" in refused(capsys, *arguments, "--engine", "speed=1")
    assert "decode_base_ms" in refused(capsys, *arguments, "--engine", "decode_base_ms=-1")
    assert "kv_tokens" in refused(capsys, *arguments, "--kv-tokens", 512)
    assert "prefill" in refused(capsys, *arguments, "--prefill", 1, "--decode", 1, "--policy", "cache_aware+random")


def test_memory_that_is_short_holds_requests_up(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--trace", trace, "--speed", 40, "--policy", "round_robin", *SHARED)
    much = as_json(capsys, *arguments)["runs"][0]["policies"][0]
    little = as_json(capsys, *arguments, "--kv-tokens", 16_000)["runs"][0]["policies"][0]
    assert little["ttft_mean_ms"] > much["ttft_mean_ms"] and little["hit_ratio"] < much["hit_ratio"]


def test_table_shows_times_per_token_and_fairness_where_there_are_any(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = conversations(400)
    for number, row in enumerate(rows):
        row["tenant"] = "heavy" if number % 4 else "light"
    path = write(tmp_path / "tenants.jsonl", rows)
    simulate.main(["--trace", str(path), "--policy", "random", "--speed", "40", *map(str, SHARED)])
    head = capsys.readouterr().out.splitlines()[3]
    assert "tpot p99" in head and "e2e mean" in head and "fairness" in head
    report = as_json(capsys, "--trace", path, "--policy", "random", "--speed", 40, *SHARED)["runs"][0]["policies"][0]
    assert set(report["tenant_service"]) == {"heavy", "light"}
    shares = list(report["tenant_service"].values())
    jain = sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))
    assert report["fairness"] == pytest.approx(jain)


def test_rival_rule_is_a_reference_of_its_own(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--trace", trace, "--speed", 20, "--policy", "smg_1.13,random")
    rule, chance = as_json(capsys, *arguments)["runs"][0]["policies"]
    assert rule["hit_ratio"] > chance["hit_ratio"] + 0.1
    assert "smg_1.13" not in fleet_policies()


@pytest.mark.parametrize("ending", ["html", "png"])
def test_pictures_have_all_distributions(
    trace: Path, tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if ending == "png":
        pytest.importorskip("matplotlib")
    path = tmp_path / f"out.{ending}"
    simulate.main(["--trace", str(trace), "--speed", "10,20", "--plot", str(path), *map(str, SHARED)])
    capsys.readouterr()
    if ending == "html":
        page = path.read_text()
        assert page.count("within …") == 6 and "Goodput by speed" in page
    else:
        assert path.stat().st_size > 10_000
