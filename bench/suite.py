"""Every table of RESULTS.md in one run: `make bench`.

Runs the tools of this folder one after the other. The page it writes has the machine, each command, its table, and
pictures of what is compared. It grows section by section, so an interrupted run leaves what was measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import traces
from bars import Bar, bars
from processes import finish, two_cores
from targets import ROOT, find_targets

BENCH = ROOT / "bench"
CPU = "json_small,json_32k,stream_burst,stream_paced"
TLS = "json_small,conn_new,stream_burst,tls_small,tls_workers,tls_new,tls_burst"
CACHE = "json_32k,cache_32k"
RIVALS = ("ours", "smg", "sglang-router")
# A section that takes so many times longer than it should is ended.
PATIENCE = 4
Picture = tuple[str, str]


@dataclass(frozen=True)
class Plan:
    """What the command line asks for."""

    out: Path
    rounds: int
    secs: int
    targets: tuple[str, ...]
    # Mooncake's conversation trace, where there is one.
    trace: Path | None

    def of(self, *names: str) -> str:
        """Those of the names that are installed."""
        return ",".join(name for name in names if name in self.targets)

    def compare(self, section: str, scenarios: str, *flags: str) -> list[str]:
        """A command line of compare.py."""
        times = ["--rounds", str(self.rounds), "--secs", str(self.secs)]
        return python("compare", "--scenarios", scenarios, *times, "--json", str(self.out / f"{section}.json"), *flags)


@dataclass(frozen=True)
class Section:
    """A table of the page."""

    title: str
    minutes: float
    commands: Callable[[Plan], list[list[str]]]
    draw: Callable[[Path], list[Picture]] = lambda _: []
    needs_trace: bool = False


def python(tool: str, *flags: str) -> list[str]:
    return [sys.executable, str(BENCH / f"{tool}.py"), *flags]


def _replays(plan: Plan) -> list[list[str]]:
    """Traces of every shape, and the recorded one."""
    files = [(kind, plan.out / f"{kind}.jsonl") for kind in traces.KINDS]
    for kind, file in files:
        file.write_text("\n".join(traces.lines(kind)) + "\n")
    if plan.trace:
        files.append(("conversation", plan.trace))
    only = ["--only", plan.of(*RIVALS)]
    return [
        python("replay", str(file), *only, "--speed", "30", "--json", str(plan.out / f"replay-{kind}.json"))
        for kind, file in files
    ]


def _latency(plan: Plan) -> list[list[str]]:
    flags = ["--only", plan.of("nginx", "haproxy", "ours"), "--rounds", str(plan.rounds), "--secs", str(plan.secs)]
    return [python("latency", *flags, "--json", str(plan.out / "latency.json"))]


SECTIONS = {
    "cpu": Section(
        "CPU per request and per event",
        12,
        lambda plan: [plan.compare("cpu", CPU)],
        lambda out: list(_ratios(out / "cpu.json")),
    ),
    "tls": Section(
        "What TLS costs",
        8,
        lambda plan: [plan.compare("tls", TLS, "--only", plan.of("nginx", "ours"))],
        lambda out: list(_ratios(out / "tls.json")),
    ),
    "cache_aware": Section(
        "What `cache_aware` costs over `round_robin`",
        2,
        lambda plan: [plan.compare("cache_aware", CACHE, "--only", "ours", "--base", "ours")],
    ),
    "latency": Section("What a gateway adds to a request at half load", 3, _latency),
    "lanes": Section("What a second lane is worth", 2, lambda _: [python("lanes")]),
    "replay": Section("Time to first token on a live replay", 30, _replays, lambda out: list(_times(out))),
    "decision": Section("One routing decision", 6, lambda _: [["cargo", "bench", "-p", "routing", "--bench", "pick"]]),
    "budget": Section(
        "The prefix index under its budget",
        6,
        lambda _: [["cargo", "run", "--release", "-p", "routing", "--example", "budget_proof"]],
    ),
    "discovery": Section(
        "Five hundred pods, ten of which change a second",
        6,
        lambda plan: [python("discovery", "--rounds", str(plan.rounds))],
    ),
    "pod_changes": Section("What gateways do when pods change", 25, lambda _: [python("pod_changes")]),
    "pair_failures": Section("When one leg of a pair fails", 20, lambda _: [python("pair_failures")]),
    "fleet_page": Section(
        "What the fleet page costs",
        3,
        lambda _: [python("fleet_page"), python("fleet_page", "--workers-are", "live")],
    ),
    "fairness": Section("A quiet key beside a noisy one", 2, lambda _: [python("fairness")]),
    "replicas": Section(
        "Four gateways that share a Redis", 8, lambda plan: [python("replicas", str(plan.trace))], needs_trace=True
    ),
    "record": Section(
        "A recording against what it was made of",
        15,
        lambda plan: [python("record", str(plan.trace))],
        needs_trace=True,
    ),
    "pairs": Section("Policies of prefill and decode workers, simulated", 20, lambda _: [python("pairs")]),
    "policies": Section(
        "Policies, simulated", 40, lambda plan: [python("policies", str(plan.trace))], needs_trace=True
    ),
    "goodput": Section(
        "Goodput around the knee, simulated", 40, lambda plan: [python("goodput", str(plan.trace))], needs_trace=True
    ),
}


def _ratios(file: Path) -> Iterator[Picture]:
    """A picture per scenario of compare.py's results."""
    for name, result in json.loads(file.read_text()).items():
        key: str = result["key"]
        unit = "µs per event" if key == "cpu_us_per_event" else "µs per request"
        rows = []
        for target, row in result["summary"].items():
            ratio = "" if row["ratio"] is None else f" ({row['ratio']:.2f})"
            rows.append(Bar(target, row[key], f"{row[key]:.1f}{ratio}"))
        yield f"{file.stem}-{name}.svg", bars(f"{name}: CPU, {unit}", rows)


def _times(out: Path) -> Iterator[Picture]:
    """A picture per trace of replay.py's results."""
    for file in sorted(out.glob("replay-*.json")):
        rows: list[dict[str, Any]] = json.loads(file.read_text())
        means = [Bar(row["target"], row["ttft_mean_ms"], f"{row['ttft_mean_ms']:.0f} ms") for row in rows]
        yield f"{file.stem}.svg", bars(f"{file.stem.removeprefix('replay-')}: mean time to first token", means)


def machine() -> list[str]:
    """The machine and the programs, as rows of a table."""
    model = next((line for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "model name: unknown")
    memory = next((line for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), "MemTotal: 0 kB")
    rows = {
        "processor": f"{model.split(':', 1)[1].strip()}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{int(memory.split()[1]) / 2**20:.0f} GiB",
        "kernel": platform.release(),
        "Python": platform.python_version(),
        "compiler": _said("rustc", "--version"),
        "this version": _said("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
        "nginx": _said("nginx", "-v"),
        "haproxy": _said("haproxy", "-v"),
        "load before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }
    return ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items())]


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _said(*command: str) -> str:
    """The first line that a program prints, on either stream."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "not installed"
    return next(iter((done.stdout + done.stderr).splitlines()), "no answer")


def measure(name: str, section: Section, plan: Plan) -> tuple[list[str], bool]:
    """A section's lines, and whether all its commands succeeded."""
    lines, clean = [f"## {section.title}", ""], True
    begun = time.monotonic()
    for command in section.commands(plan):
        shown = " ".join(word.replace(f"{ROOT}/", "") for word in command)
        print(f"{name}: {shown}", file=sys.stderr, flush=True)
        try:
            done = subprocess.run(
                command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=60 * PATIENCE * section.minutes
            )
            output, code = done.stdout, done.returncode
        except subprocess.TimeoutExpired as late:
            begun_output = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout
            output, code = f"{begun_output or ''}\nended after {late.timeout:.0f} s", 1
        clean = clean and code == 0
        ending = "" if code == 0 else f"Failed with code {code}."
        lines += [f"`{shown}`", "", *_table(output), "", *([ending, ""] if ending else [])]
    if clean:
        for file, picture in section.draw(plan.out):
            (plan.out / file).write_text(picture)
            lines.append(f"![{file}]({file})")
    lines += ["", f"{time.monotonic() - begun:.0f} s.", ""]
    return lines, clean


def _table(output: str) -> list[str]:
    """What a tool printed; as it is where it is Markdown."""
    text = output.strip()
    return [text] if "| ---" in text else ["```text", text, "```"]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def names(text: str) -> list[str]:
        return text.split(",")

    every = ",".join(SECTIONS)
    parser.add_argument("--sections", type=names, default=list(SECTIONS), help=f"of {every}; default all")
    parser.add_argument(
        "--trace", type=Path, help="Mooncake's conversation_trace.jsonl; sections that need it are left out"
    )
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--secs", type=int, default=3, help="seconds of load per run of compare.py; default 3")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench", help="folder of the page and pictures")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.sections if name not in SECTIONS]:
        parser.error(f"no such section: {', '.join(unknown)}; there are {every}")
    if args.trace and not args.trace.is_file():
        parser.error(f"--trace {args.trace}: no such file")
    return args


def run(args: argparse.Namespace) -> bool:
    """Writes the page; whether every section succeeded."""
    two_cores()
    args.out.mkdir(parents=True, exist_ok=True)
    found = tuple(target.name for target in find_targets([]))
    plan = Plan(args.out.resolve(), args.rounds, args.secs, found, args.trace and args.trace.resolve())
    page = plan.out / "RESULTS.md"
    lines, clean = ["# Results", "", *machine(), "", f"Gateways: {', '.join(found)}.", ""], True
    for name in args.sections:
        section = SECTIONS[name]
        if section.needs_trace and not plan.trace:
            lines += [f"## {section.title}", "", "Not measured: no `--trace`.", ""]
            continue
        more, fine = measure(name, section, plan)
        lines, clean = lines + more, clean and fine
        page.write_text("\n".join(lines))
    page.write_text("\n".join(lines))
    print(page)
    return clean


def main(argv: list[str] | None = None) -> None:
    """Exit code 1 when a section failed."""
    args = parse(argv)
    finish(lambda: run(args))


if __name__ == "__main__":
    main()
