"""Gateways side by side on one machine: the same mock workers, the same load, one gateway after another.

The gateway runs on one core, the workers and the load on another. The key figure is the gateway's CPU time per request
or per streamed event, from /proc: other programs on the machine disturb it least. Every round measures each gateway
once; figures are medians of the rounds, and a ratio is the median of the ratios within a round.

Compared are this checkout's .venv (`ours`), nginx and haproxy when they are on PATH, and the peers that
bench/install_peers.sh installed; over TLS, `ours` and nginx. Linux only; ports of 127.0.0.1 only.
"""

from __future__ import annotations

import argparse
import json
import os
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from certificates import Certificates, issue
from processes import (
    HOST,
    BenchError,
    finish,
    pinned,
    process_tree,
    require_free,
    require_tools,
    running,
    two_cores,
    wait_until_answered,
)
from targets import ROOT, Setting, Target, find_targets

WORKERS = 4
CHUNKS = 100
WARM_UP_S = 1
START_TIMEOUT = 45.0
# Beyond the seconds of the load itself.
LOAD_TIMEOUT = 20.0
LIFETIME_S = 900
TOOLS = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
MODEL = "mock-model"
CHAT = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}).encode()
Report = dict[str, Any]


@dataclass(frozen=True)
class Scenario:
    """A load, and the figure that counts."""

    policy: str
    load: dict[str, Any]
    key: str = "cpu_us_per_request"
    worker: dict[str, Any] = field(default_factory=dict)
    # The sides that are spoken to over TLS, and the scenario that is the same without.
    tls: frozenset[str] = frozenset()
    plain: str = ""


_STREAM = {"stream": True, "events": CHUNKS + 1}
_PACED = {"chunks": CHUNKS, "interval_us": 20_000}
_NEW = {"connections": 32, "requests_per_connection": 1}
_CLIENTS, _WORKERS = frozenset({"clients"}), frozenset({"workers"})
SCENARIOS = {
    "json_small": Scenario("round_robin", {"connections": 64}),
    "json_32k": Scenario("round_robin", {"connections": 32, "shared_bytes": 32_000, "unique_bytes": 512}),
    "stream_burst": Scenario("round_robin", {"connections": 64, **_STREAM}, worker={"chunks": CHUNKS}),
    "stream_paced": Scenario("round_robin", {"connections": 500, **_STREAM}, "cpu_us_per_event", _PACED),
    "cache_4k": Scenario("cache_aware", {"connections": 64, "shared_bytes": 3500, "unique_bytes": 500, "groups": 64}),
    "cache_32k": Scenario(
        "cache_aware", {"connections": 32, "shared_bytes": 32_000, "unique_bytes": 512, "groups": 64}
    ),
    "conn_new": Scenario("round_robin", _NEW),
    "tls_small": Scenario("round_robin", {"connections": 64}, tls=_CLIENTS, plain="json_small"),
    "tls_new": Scenario("round_robin", _NEW, tls=_CLIENTS, plain="conn_new"),
    "tls_burst": Scenario(
        "round_robin", {"connections": 64, **_STREAM}, worker={"chunks": CHUNKS}, tls=_CLIENTS, plain="stream_burst"
    ),
    "tls_workers": Scenario("round_robin", {"connections": 64}, tls=_WORKERS, plain="json_small"),
}


@dataclass(frozen=True)
class Bench:
    """Where things are."""

    tools: Path
    base_port: int
    seconds: int
    # The gateway's, and those of workers and load; "0,1" for both.
    cores: tuple[int | str, int | str]
    room: Path
    certificates: Certificates | None = None

    @property
    def worker_ports(self) -> tuple[int, ...]:
        return tuple(range(self.base_port, self.base_port + WORKERS))

    def setting(self, scenario: Scenario) -> Setting:
        gateway = self.base_port + WORKERS
        clients, workers = (self.certificates if side in scenario.tls else None for side in ("clients", "workers"))
        return Setting(gateway, gateway + 1, self.worker_ports, scenario.policy, self.room, clients, workers)


def measure(bench: Bench, target: Target, scenario: Scenario) -> Report:
    """One run: workers, the gateway, the load. Raises `BenchError` when it gives no figure."""
    setting = bench.setting(scenario)
    with ExitStack() as stack:
        trust = _trust(setting)
        stack.enter_context(_workers(bench, setting, scenario))
        log = bench.room / f"{target.name}.log"
        gateway = stack.enter_context(running(target.command(setting), bench.cores[0], log))
        scheme = "https" if setting.clients_tls else "http"
        url = f"{scheme}://{HOST}:{setting.port}/v1/chat/completions"
        wait_until_answered(gateway, log, url, CHAT, START_TIMEOUT, trust)
        return _load(bench, setting, scenario, process_tree(gateway.pid))


def measure_direct(bench: Bench, scenario: Scenario) -> Report:
    """One run without a gateway: the load goes to a worker."""
    setting = bench.setting(scenario)
    with _workers(bench, setting, scenario) as workers:
        return _load(bench, replace(setting, port=setting.worker_ports[0]), scenario, [workers.pid])


@contextmanager
def _workers(bench: Bench, setting: Setting, scenario: Scenario) -> Iterator[subprocess.Popen[bytes]]:
    """The process of the mock workers, once they answer."""
    require_free([*setting.worker_ports, setting.port, setting.metrics_port])
    options = {"ports": setting.worker_ports, "model": MODEL, "lifetime_s": LIFETIME_S, **scenario.worker}
    if files := setting.workers_tls:
        options["tls"] = [str(files.cert), str(files.key)]
    log = bench.room / "worker.log"
    with running([str(bench.tools / "bench-worker"), json.dumps(options)], bench.cores[1], log) as workers:
        wait_until_answered(workers, log, f"{setting.worker_urls[-1]}/health", None, START_TIMEOUT, _trust(setting))
        yield workers


def _trust(setting: Setting) -> ssl.SSLContext | None:
    certificates = setting.clients_tls or setting.workers_tls
    return ssl.create_default_context(cafile=certificates.ca) if certificates else None


def _load(bench: Bench, setting: Setting, scenario: Scenario, pids: list[int]) -> Report:
    options = {
        "port": setting.port,
        "seconds": bench.seconds,
        "warm_up_s": WARM_UP_S,
        "pids": pids,
        "model": MODEL,
        **scenario.load,
    }
    if files := setting.clients_tls:
        options["ca"] = str(files.ca)
    command = pinned([str(bench.tools / "bench-load"), json.dumps(options)], bench.cores[1])
    timeout = WARM_UP_S + bench.seconds + LOAD_TIMEOUT
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=True)
    except subprocess.CalledProcessError as error:
        raise BenchError(f"bench-load: {error.stderr.strip()}") from error
    report: Report = json.loads(done.stdout)
    if report[scenario.key] is None:
        raise BenchError(f"nothing was answered: {report['first_error'] or 'no reply'}")
    return report


def summary(rounds: list[dict[str, Report]], key: str, base: str) -> dict[str, Report]:
    """Medians over the rounds, by target; `ratio` is to the base target, over the rounds that have both."""
    names = dict.fromkeys(name for reports in rounds for name in reports)
    return {name: _medians([reports for reports in rounds if name in reports], name, key, base) for name in names}


def _medians(rounds: list[dict[str, Report]], name: str, key: str, base: str) -> Report:
    own = [reports[name] for reports in rounds]
    ratios = [reports[name][key] / reports[base][key] for reports in rounds if base in reports and reports[base][key]]
    return {
        "rounds": len(own),
        key: median(report[key] for report in own),
        "ratio": median(ratios) if ratios else None,
        "rps": median(report["rps"] for report in own),
        "events_per_s": median(report["events_per_s"] for report in own),
        "p50_ms": median(report["latency_ms"]["p50"] for report in own),
        "p99_ms": median(report["latency_ms"]["p99"] for report in own),
        "ttft_p99_ms": median(report["ttft_ms"]["p99"] for report in own),
        "peak_rss_mib": max(report["peak_rss_mib"] for report in own),
        "cpu_share": median(report["cpu_share"] for report in own),
        "errors": sum(report["errors"] for report in own),
    }


def table(figures: dict[str, Report], key: str, base: str) -> list[str]:
    """The summary as lines of text."""
    unit = "us/event" if key == "cpu_us_per_event" else "us/req"
    columns = [unit, f"/{base}", "rps", "p50 ms", "p99 ms", "ttft99", "RSS MiB", "core", "errors"]
    lines = [f"  {'':14s}" + "".join(f"{column:>10s}" for column in columns)]
    for name, row in figures.items():
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
        cells = [f"{row[key]:.1f}", ratio, f"{row['rps']:.0f}", f"{row['p50_ms']:.2f}", f"{row['p99_ms']:.2f}"]
        cells += [f"{row['ttft_p99_ms']:.2f}", f"{row['peak_rss_mib']:.0f}", f"{row['cpu_share']:.2f}"]
        lines.append(f"  {name:14s}" + "".join(f"{cell:>10s}" for cell in [*cells, str(row["errors"])]))
    return lines


def tls_costs(figures: dict[str, Report], plain: dict[str, Report], key: str, base: str) -> dict[str, Report]:
    """What TLS itself costs each target: the figure over TLS less the same without; `ratio` is to the base target."""
    costs = {name: row[key] - plain[name][key] for name, row in figures.items() if name in plain}
    of_base = costs.get(base)
    return {name: {key: cost, "ratio": cost / of_base if of_base else None} for name, cost in costs.items()}


def _cost_lines(costs: dict[str, Report], base: str) -> list[str]:
    lines = []
    for name, cost in costs.items():
        figure, ratio = cost.values()
        lines.append(f"  {name:14s}{figure:10.1f} us of that is TLS" + (f", /{base} {ratio:.2f}" if ratio else ""))
    return lines


def in_turn(targets: list[Target], number: int) -> list[Target]:
    """The gateways of a round: a different one begins each."""
    return [targets[(place + number) % len(targets)] for place in range(len(targets))]


def compare(bench: Bench, args: argparse.Namespace, targets: list[Target]) -> tuple[dict[str, Any], bool]:
    """All scenarios; the results, and whether every run gave a figure without errors."""
    deadline = time.monotonic() + args.limit_s
    results: dict[str, Any] = {}
    clean = True
    for name in args.scenarios:
        scenario = SCENARIOS[name]
        able = [target for target in targets if target.supports(bench.setting(scenario))]
        print(f"\n{name} ({scenario.policy}), {args.rounds} rounds of {bench.seconds} s", flush=True)
        rounds: list[dict[str, Report]] = []
        for number in range(args.rounds):
            rounds.append({})
            for target in in_turn(able, number):
                if time.monotonic() > deadline:
                    raise BenchError(f"not done within --limit-s {args.limit_s}")
                try:
                    report = rounds[-1][target.name] = measure(bench, target, scenario)
                    clean = clean and not report["errors"]
                except BenchError as error:
                    print(f"  {target.name}: {error}", flush=True)
                    clean = False
        figures = summary(rounds, scenario.key, args.base)
        order = {target.name: figures[target.name] for target in able if target.name in figures}
        print("\n".join(table(order, scenario.key, args.base)), flush=True)
        results[name] = {"key": scenario.key, "summary": order, "rounds": rounds}
        if plain := results.get(scenario.plain):
            costs = results[name]["tls_cost"] = tls_costs(order, plain["summary"], scenario.key, args.base)
            print("\n".join(_cost_lines(costs, args.base)), flush=True)
    return results, clean


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def names(text: str) -> list[str]:
        return text.split(",")

    parser.add_argument("--scenarios", type=names, default=list(SCENARIOS), help="of " + ",".join(SCENARIOS))
    parser.add_argument("--only", type=names, help="names of targets, separated by commas; default: all that are found")
    parser.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help='a virtual environment with this package, and flags: "logged=.venv --access-log /tmp/access"',
    )
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--secs", type=int, default=3, help="seconds of load per run; default 3")
    parser.add_argument("--base", default="nginx", help="target that ratios are to; default nginx")
    parser.add_argument("--base-port", type=int, default=9100, help="first of six ports in a row; default 9100")
    parser.add_argument("--limit-s", type=int, default=3600, help="no run starts later than this; default 3600")
    parser.add_argument("--tools", type=Path, default=TOOLS, help="folder of bench-load and bench-worker")
    parser.add_argument("--json", type=Path, help="file for all results")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.scenarios if name not in SCENARIOS]:
        parser.error(f"no such scenario: {', '.join(unknown)}")
    if args.rounds < 1 or not 1 <= args.secs <= 600:
        parser.error("--rounds must be at least 1, --secs between 1 and 600")
    return args


def chosen(args: argparse.Namespace) -> list[Target]:
    """The targets to measure."""
    targets = find_targets(args.target)
    known = [target.name for target in targets]
    if unknown := [name for name in args.only or [] if name not in known]:
        raise BenchError(f"not installed: {', '.join(unknown)}; found: {', '.join(known) or 'none'}")
    return [target for target in targets if not args.only or target.name in args.only]


def bench_tools(args: argparse.Namespace) -> Path:
    """The folder of bench-load and bench-worker."""
    require_tools(["taskset", "setpriv"])
    tools: Path = args.tools.resolve()
    if not (tools / "bench-load").exists():
        raise BenchError(f"no bench-load in {tools}: cargo build --release -p bench-tools")
    return tools


def _run(args: argparse.Namespace) -> bool:
    tools, targets = bench_tools(args), chosen(args)
    if not targets:
        raise BenchError("no gateway found: make build")
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as room:
        over_tls = any(SCENARIOS[name].tls for name in args.scenarios)
        certificates = issue(Path(room)) if over_tls else None
        bench = Bench(tools, args.base_port, args.secs, two_cores(), Path(room), certificates)
        results, clean = compare(bench, args, targets)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    return clean


def main(argv: list[str] | None = None) -> None:
    """Exit code 1 when a run gave no figure or had errors."""
    args = parse(argv)
    finish(lambda: _run(args))


if __name__ == "__main__":
    main()
