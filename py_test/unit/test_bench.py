"""The tools in bench/: how runs are summed up, what is refused, what the documents say."""

from __future__ import annotations

import itertools
import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"
sys.path.insert(0, str(BENCH))

import bars  # noqa: E402
import compare  # noqa: E402
import goodput  # noqa: E402
import latency  # noqa: E402
import pair_failures  # noqa: E402
import pair_stage  # noqa: E402
import processes  # noqa: E402
import replay  # noqa: E402
import suite  # noqa: E402
import targets  # noqa: E402

from sgl_model_gateway._replay.prompts import block_text  # noqa: E402
from sgl_model_gateway.sgl_model_gateway_rs import FleetTrace  # noqa: E402


def report(cost: float, *, errors: int = 0, rps: float = 1000.0) -> dict[str, Any]:
    times = {"p50": 1.0, "p99": 2.0}
    return {
        "cpu_us_per_request": cost,
        "rps": rps,
        "events_per_s": 0.0,
        "latency_ms": times,
        "ttft_ms": times,
        "peak_rss_mib": cost,
        "cpu_share": 1.0,
        "errors": errors,
    }


def test_what_a_gateway_adds_is_its_percentile_less_that_without_a_gateway() -> None:
    def at(p50: float, p99: float) -> dict[str, Any]:
        return {"latency_ms": {"p50": p50, "p99": p99}}

    rounds = [
        latency.added({"nginx": at(0.2, 0.5), "ours": at(0.3, 0.9)}, at(0.1, 0.3)),
        latency.added({"nginx": at(0.3, 0.6), "ours": at(0.3, 0.6)}, at(0.1, 0.4)),
        latency.added({"nginx": at(0.2, 0.3), "ours": at(0.5, 0.5)}, at(0.1, 0.4)),
    ]
    figures = latency.summary(rounds, "nginx")
    ours = figures["ours"]
    assert ours["p50"] == pytest.approx(0.2) and ours["p50_ratio"] == pytest.approx(2.0)
    # The base added nothing in the last round: no ratio is made of that.
    assert ours["p99_ratio"] == pytest.approx((3.0 + 1.0) / 2)
    assert any("ours" in line for line in latency.table(figures, "nginx"))


def test_a_ratio_is_the_median_of_the_ratios_within_a_round() -> None:
    rounds = [
        {"nginx": report(20), "ours": report(30)},
        {"nginx": report(40), "ours": report(44, errors=3)},
        {"nginx": report(10), "ours": report(30), "late": report(5)},
    ]
    figures = compare.summary(rounds, "cpu_us_per_request", "nginx")
    assert figures["ours"]["ratio"] == 1.5
    assert figures["ours"]["cpu_us_per_request"] == 30
    assert (figures["ours"]["errors"], figures["ours"]["peak_rss_mib"]) == (3, 44)
    assert (figures["nginx"]["ratio"], figures["late"]["ratio"], figures["late"]["rounds"]) == (1, 0.5, 1)
    lines = compare.table(figures, "cpu_us_per_request", "nginx")
    assert re.split(r"\s+", lines[2].strip())[:3] == ["ours", "30.0", "1.50"]


def test_without_the_base_there_is_no_ratio() -> None:
    figures = compare.summary([{"ours": report(30)}], "cpu_us_per_request", "nginx")
    assert figures["ours"]["ratio"] is None
    assert "-" in compare.table(figures, "cpu_us_per_request", "nginx")[1].split()


def test_a_taken_port_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with pytest.raises(processes.BenchError, match="is taken"):
            processes.require_free([server.getsockname()[1]])


@pytest.mark.parametrize("text", ["ours", "=x", "ours=/nowhere/at/all"])
def test_a_target_needs_a_name_and_a_python(text: str) -> None:
    with pytest.raises(processes.BenchError):
        targets.find_targets([text])


def test_command_lines_and_configurations_name_loopback_addresses_only(tmp_path: Path) -> None:
    setting = targets.Setting(9104, 9105, (9100, 9101), "round_robin", tmp_path)
    found = [targets._nginx(setting), targets._haproxy(setting)]
    found.append(targets._python_target("ours", Path(sys.executable), targets.OURS).command(setting))
    texts = [" ".join(command) for command in found] + [file.read_text() for file in tmp_path.iterdir()]
    assert len(texts) == 5
    addresses = {address for text in texts for address in re.findall(r"\b\d+\.\d+\.\d+\.\d+\b|\*:\d+", text)}
    assert addresses == {"127.0.0.1"}


def test_the_readme_has_a_row_for_each_scenario() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|.*\| µs per (\w+) \|$", (BENCH / "README.md").read_text(), re.M)
    scenarios = {name: (it.policy, it.key.rsplit("_", 1)[1]) for name, it in compare.SCENARIOS.items()}
    assert {name: (policy, unit) for name, policy, unit in rows} == scenarios


def test_documents_name_nothing_outside_the_repository() -> None:
    for file in [*BENCH.glob("*.md"), *BENCH.glob("*.py"), *BENCH.glob("*.sh")]:
        assert not re.search(r"\.\./|/work/|shared/", file.read_text()), file


def test_peers_are_pinned_to_versions_and_have_targets() -> None:
    script = (BENCH / "install_peers.sh").read_text()
    pinned = re.findall(r"([\w-]+)==[\d.]+", script)
    assert pinned == ["sglang-router", "smg", "vllm-router"]
    subprocess.run(["bash", "-n", BENCH / "install_peers.sh"], check=True)
    source = (BENCH / "targets.py").read_text()
    assert all(f'PEERS / "{name}"' in source for name in pinned)


def test_a_page_of_a_replayed_prompt_is_a_page_of_the_worker() -> None:
    pages = {block_text(block, replay.PAGE_BYTES, "") for block in (0, 1, 255, 2**31)}
    assert {len(page) for page in pages} == {replay.PAGE_BYTES} and len(pages) == 4


TOKEN, DONE = b'data: {"text": "a"}\n\n', b"data: [DONE]\n\n"
LAST = b'data: {"meta_info": {"finish_reason": {"type": "length"}}}\n\n'
ERROR = b'data: {"error": {"message": "boom"}}\n\n'
ABORTED = b'data: {"meta_info": {"finish_reason": {"type": "abort"}}}\n\n'


@pytest.mark.parametrize(
    ("status", "pieces", "ended", "words"),
    [
        (200, [TOKEN, LAST, DONE], "whole", "200, whole"),
        (200, [b'{"finish_reason": "length"}'], "whole", "200, whole"),
        (200, [TOKEN, DONE], "whole", "200, ends early"),
        (200, [TOKEN, LAST], "whole", "200, ends early"),
        (200, [TOKEN], "cut", "200, cut"),
        (200, [TOKEN, ERROR], "cut", "200, error event, cut"),
        (200, [TOKEN, ERROR[:9], ERROR[9:], DONE], "whole", "200, error event, [DONE]"),
        (200, [ABORTED, DONE], "whole", "200, error event, [DONE]"),
        (200, [TOKEN], "", "200, no end"),
        (503, [b"{}"], "whole", "503"),
        (0, [], "cut", "closed"),
        (0, [], "", "no answer"),
    ],
)
def test_a_reply_says_how_it_ended(status: int, pieces: list[bytes], ended: str, words: str) -> None:
    reply = pair_stage.Reply(status, whole=ended == "whole", cut=ended == "cut")
    for piece in pieces:
        reply.take(piece)
    assert reply.end() == words


def test_a_row_says_when_the_client_knew_and_which_worker_is_not_free() -> None:
    row = pair_failures.Row("500", "prefill", "chat stream", "ours", "503", 0.42, {"decode": 3.91}, again="503 0.0")
    assert pair_failures.cell(row) == "503 0.4; D 3.9; next: 503 0.0"
    row.left, row.client_s, row.again = {"decode": 1, "prefill": 1}, None, ""
    assert pair_failures.cell(row) == "503; D **kept**; P **kept**"
    row.died = ["decode"]
    assert "D **died**" in pair_failures.cell(row)
    lines = pair_failures.table([row], ["smg", "ours"])
    assert lines[2].startswith("| P | 500 | chat stream | - | 503;")


def test_goodput_is_compared_at_multiples_of_the_knee(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(goodput, "SEEDS", (1,))
    trace = tmp_path / "tools.jsonl"
    made = itertools.islice(goodput.lines("tools"), 400)
    trace.write_text("\n".join(made))
    limits = {"ttft_slo_ms": 2000.0, "tpot_slo_ms": 25.0}
    options = {"engine_model": "shared", "kv_tokens": 150_000, "output_scale": 4.0, "workers": 2} | limits
    read = FleetTrace(trace)
    rule, rival, ours, ratio, other = goodput.rows(read, "mix", options)
    shares = [[float(cell) for cell in row.split("|")[3:-1]] for row in (rule, rival, ours, ratio, other)]
    assert [len(row) for row in shares] == [len(goodput.LOADS)] * 5
    below, at_knee, *_, above = shares[0]
    assert below >= at_knee >= above and at_knee == pytest.approx(goodput.KNEE, abs=0.1)
    assert shares[3][1] == pytest.approx(shares[2][1] / shares[0][1], abs=0.02)


def test_model_is_compared_with_every_row_of_the_published_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(goodput, "PUBLISHED", tuple((*row[:2], 60, row[3]) for row in goodput.PUBLISHED[:2]))
    head, line, *rows = goodput.published(tmp_path)
    assert head.count("|") == line.count("|") == 5 and len(rows) == 2
    # Sixty at once are not full load.
    assert all("(-" in row for row in rows)


# --- The suite


def plan(room: Path, trace: Path | None = None) -> suite.Plan:
    return suite.Plan(room, 2, 1, ("nginx", "ours", "smg"), trace)


@pytest.mark.parametrize("name", list(suite.SECTIONS))
def test_each_section_runs_tools_that_are_there_with_flags_they_know(name: str, tmp_path: Path) -> None:
    for command in suite.SECTIONS[name].commands(plan(tmp_path, tmp_path / "trace.jsonl")):
        if command[0] != sys.executable:
            assert command[0] == "cargo"
            continue
        tool, flags = Path(command[1]), command[2:]
        assert tool.parent == BENCH
        if tool.stem in ("compare", "replay"):
            args = sys.modules[tool.stem].parse(flags)
            assert not args.only or set(args.only) <= {"nginx", "ours", "smg"}
        elif any(flag.startswith("-") for flag in flags):
            known = re.findall(r"add_argument\(\s*\"(--[\w-]+)", tool.read_text())
            assert {flag for flag in flags if flag.startswith("-")} <= set(known)


def test_a_section_that_fails_is_in_the_page_and_the_next_one_runs(tmp_path, monkeypatch) -> None:
    def section(title: str, code: str, needs_trace: bool = False) -> suite.Section:
        return suite.Section(title, 1, lambda _: [[sys.executable, "-c", code]], needs_trace=needs_trace)

    broken = section("Broken", "print('half a figure'); raise SystemExit(3)")
    sections = {"broken": broken, "fine": section("Fine", "print('| a |\\n| --- |')")}
    sections["traced"] = section("Traced", "raise SystemExit(4)", needs_trace=True)
    monkeypatch.setattr(suite, "SECTIONS", sections)
    args = suite.parse(["--out", str(tmp_path)])
    args.sections = list(sections)
    assert suite.run(args) is False
    page = (tmp_path / "RESULTS.md").read_text()
    assert "half a figure\n```\n\nFailed with code 3." in page
    assert "## Fine" in page and "\n| a |\n| --- |\n" in page
    assert "## Traced\n\nNot measured: no `--trace`." in page
    assert f"| Python | {sys.version.split()[0]} |" in page


def test_a_section_that_hangs_is_ended_and_keeps_what_it_printed(tmp_path, monkeypatch) -> None:
    code = "import time; print('begun', flush=True); time.sleep(60)"
    hangs = suite.Section("Hangs", 0.005, lambda _: [[sys.executable, "-c", code]])
    lines, clean = suite.measure("hangs", hangs, plan(tmp_path))
    assert not clean and "begun\n\nended after 1 s" in "\n".join(lines)


def test_pictures_have_a_bar_as_long_as_its_figure_and_escape_names(tmp_path) -> None:
    rows = [bars.Bar("ours", 10, "10 µs"), bars.Bar("<b>", 40, "40 µs")]
    picture = ElementTree.fromstring(bars.bars("CPU & more", rows))
    widths = [float(it.attrib["width"]) for it in picture.iter("{http://www.w3.org/2000/svg}rect")]
    assert widths[1] == pytest.approx(4 * widths[0])
    assert "<b>" in [it.text for it in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert picture.attrib["aria-label"] == "CPU & more. ours: 10 µs; <b>: 40 µs"


def test_pictures_of_compared_gateways_show_figure_and_ratio(tmp_path) -> None:
    row = {"cpu_us_per_request": 22.0, "ratio": 1.1}
    results = {"json_small": {"key": "cpu_us_per_request", "summary": {"ours": row}}}
    (tmp_path / "cpu.json").write_text(json.dumps(results))
    ((name, picture),) = suite.SECTIONS["cpu"].draw(tmp_path)
    assert name == "cpu-json_small.svg" and "22.0 (1.10)" in picture
