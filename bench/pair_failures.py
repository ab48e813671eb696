"""Gateways before a prefill/decode pair of which one leg fails: `python bench/pair_failures.py` (ten minutes).

Every row has processes of its own: two simulated workers and a gateway with its defaults. Ports of 127.0.0.1 only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pair_stage import MODEL, PORTS, Gateway, Reply, Stage, Worker, exchange, stage
from processes import BenchError, finish, require_tools
from targets import OURS, PEERS, ROOT

ROLES = ("prefill", "decode")
LAST = ROLES[1:]
# How long a client waits, and how long workers are watched after that.
PATIENCE_S = 20.0
# A worker is free when it has had no request for so long.
SETTLED_S = 1.0
# An engine takes so long to refuse, so that the other leg has the request by then.
REFUSES_MS = 100
# Before the names of faults of one worker of two.
SPARE = "2 + 2: "
KINDS = ("generate", "generate stream", "chat stream")
LIMIT = ("--request-timeout-secs", "5")
PROBES = (
    *("--health-check-interval-secs", "1", "--health-check-timeout-secs", "1"),
    *("--health-failure-threshold", "2"),
)


@dataclass(frozen=True)
class Fault:
    """What a leg does."""

    name: str
    # Of the simulated worker.
    faults: dict[str, Any] = field(default_factory=dict)
    # A signal before the request, or after its first token (when it is a stream) or half a second.
    before: int = 0
    amid: int = 0
    # The client leaves in place of a signal.
    leaves: bool = False
    # The prompt's length in tokens, the reply's, and the number of replies.
    prompt: int = 1
    tokens: int = 10
    n: int = 1
    flags: Sequence[str] = ()
    legs: Sequence[str] = ROLES
    kinds: Sequence[str] = KINDS
    # Another request follows.
    again: bool = False
    # Two: one worker of a role has the fault, and four requests are sent at once.
    pairs: int = 1


def refusal(status: int) -> Fault:
    return Fault(str(status), {"status": status, "delay_first_byte_ms": REFUSES_MS})


FAULTS = [
    Fault("refuses connections", before=signal.SIGKILL, again=True),
    *map(refusal, (500, 503, 422, 401, 400)),
    Fault("closes before the head", {"close_before_headers": True, "delay_first_byte_ms": REFUSES_MS}),
    Fault("silent before the head, limit 5 s", {"delay_first_byte_ms": 120_000}, flags=LIMIT),
    Fault("frozen, probes every second", before=signal.SIGSTOP, flags=PROBES),
    Fault("silent amid the body, limit 5 s", {"stall_mid_body": 100}, flags=LIMIT, legs=LAST, kinds=KINDS[:1]),
    Fault("silent amid the body, limit 5 s", amid=signal.SIGSTOP, tokens=400, flags=LIMIT, legs=LAST, kinds=KINDS[1:]),
    Fault("silent amid the body, limit 5 s", {"stall_mid_body": 10}, flags=LIMIT, tokens=400, legs=("prefill",)),
    Fault("dies, prompt computing", amid=signal.SIGKILL, prompt=4000, again=True),
    Fault("dies amid its body", {"stall_mid_body": 10}, amid=signal.SIGKILL, tokens=400, legs=("prefill",), again=True),
    Fault("dies while it generates", amid=signal.SIGKILL, tokens=400, legs=LAST, again=True),
    Fault("dies amid its body", {"stall_mid_body": 100}, amid=signal.SIGKILL, legs=LAST, kinds=KINDS[:1]),
    Fault("slow, 2 s", {"delay_first_byte_ms": 2000}),
    Fault("slow body, 2 s", {"chunk_delay_ms": 2000}, tokens=2),
    Fault("client leaves, prompt computing", leaves=True, prompt=4000, legs=("none",)),
    Fault("client leaves, generating", leaves=True, tokens=400, legs=("none",)),
    Fault("none, 8 s of tokens, limit 5 s", flags=LIMIT, tokens=400, legs=("none",)),
    Fault("n=2", n=2, legs=("none",)),
]
# The same with a worker to spare.
FAULTS += [
    replace(fault, name=SPARE + fault.name, pairs=2, kinds=KINDS[::2], again=False)
    for fault in FAULTS
    if fault.before
    or fault.name in ("500", "503", "401", "closes before the head", "silent before the head, limit 5 s")
]


@dataclass
class Row:
    """What was seen. Seconds are from the event: the fault, or the request when the fault was there before."""

    fault: str
    leg: str
    kind: str
    gateway: str
    end: str = ""
    # None: not within the client's patience.
    client_s: float | None = None
    # When the other worker (after a client that leaves: each) had its last request; None: never had one.
    free_s: dict[str, float | None] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    requests: dict[str, int] = field(default_factory=dict)
    # Workers that ended by themselves.
    died: list[str] = field(default_factory=list)
    again: str = ""


def body(fault: Fault, kind: str) -> tuple[str, dict[str, Any]]:
    """Path and body; a token of the simulated worker has four bytes."""
    text, stream = "abc " * fault.prompt, kind.endswith("stream")
    if kind.startswith("chat"):
        asked: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": text}]}
        sampling = {"max_tokens": fault.tokens, "ignore_eos": True, **({"n": fault.n} if fault.n > 1 else {})}
        return "/v1/chat/completions", {**asked, **sampling, "stream": stream}
    sampling = {"max_new_tokens": fault.tokens, "ignore_eos": True, **({"n": fault.n} if fault.n > 1 else {})}
    return "/generate", {"text": text, "sampling_params": sampling, "stream": stream}


async def act(fault: Fault, worker: Worker | None, reply: Reply, client: asyncio.Task[None], stream: bool) -> float:
    """The event amid the request; its time."""
    begun = time.monotonic()
    token = stream and fault.prompt == 1
    while time.monotonic() < begun + (5.0 if token else 0.5) and not (token and reply.first):
        await asyncio.sleep(0.005)
    if fault.leaves:
        client.cancel()
    if fault.amid and worker:
        worker.send(fault.amid)
    return time.monotonic()


async def drive(place: Stage, fault: Fault, row: Row) -> None:
    """The request, the fault, and what comes of both."""
    worker = place.workers.get(row.leg)
    if worker and fault.faults:
        await worker.ask("POST", "/sim/faults", fault.faults)
    if worker and fault.before:
        worker.send(fault.before)
        await asyncio.sleep(0.1)
    path, asked = body(fault, row.kind)
    if fault.pairs > 1:
        row.end, row.client_s = await several(place.port, path, asked)
        return
    async with place.watched():
        reply, event = Reply(), time.monotonic()
        client = asyncio.create_task(exchange(place.port, "POST", path, asked, reply))
        if fault.amid or fault.leaves:
            event = await act(fault, worker, reply, client, asked["stream"])
        elif "delay_first_byte_ms" in fault.faults and not fault.name.startswith(("silent", "slow")):
            event += REFUSES_MS / 1000
        await asyncio.wait([client], timeout=max(0.0, event + PATIENCE_S - time.monotonic()))
        row.end, row.client_s = reply.end(), reply.learnt - event if reply.ended else None
        row.end = "left" if fault.leaves else row.end
        client.cancel()
        await settled(place, time.monotonic() + PATIENCE_S)
        for role, other in place.workers.items():
            if role != row.leg:
                row.free_s[role] = max(0.0, other.busy - event) if other.busy else None
            if not other.away:
                await count(row, role, other)
        if fault.again:
            row.again = await next_request(place.port)


async def count(row: Row, role: str, worker: Worker) -> None:
    """What is left at a worker that ought to live."""
    stats = await worker.ask("GET", "/sim/stats")
    if stats is None:
        row.died.append(role)
    else:
        row.left[role], row.requests[role] = worker.held, stats["requests"]


async def several(port: int, path: str, asked: dict[str, Any]) -> tuple[str, float | None]:
    """How four requests at once end, and when the last one did."""
    replies, begun = [Reply() for _ in range(4)], time.monotonic()
    tasks = [asyncio.create_task(exchange(port, "POST", path, asked, reply)) for reply in replies]
    await asyncio.wait(tasks, timeout=PATIENCE_S)
    for task in tasks:
        task.cancel()
    ends = Counter(reply.end() for reply in replies)
    words = " + ".join(f"{count} × {end}" for end, count in sorted(ends.items()))
    return words, max(reply.learnt for reply in replies) - begun if all(reply.ended for reply in replies) else None


async def settled(place: Stage, until: float) -> None:
    """Returns once no worker has had a request for a while, at the latest at that time."""
    begun = time.monotonic()
    while (now := time.monotonic()) < until:
        if all(worker.away or now - max(begun, worker.busy) > SETTLED_S for worker in place.workers.values()):
            return
        await asyncio.sleep(0.05)


async def next_request(port: int) -> str:
    """How a request is answered after a worker's death."""
    reply, begun = Reply(), time.monotonic()
    path, asked = body(Fault(""), "generate")
    await asyncio.wait([task := asyncio.create_task(exchange(port, "POST", path, asked, reply))], timeout=PATIENCE_S)
    task.cancel()
    return f"{reply.end()} {reply.learnt - begun:.1f}" if reply.ended else reply.end()


def gateways(args: argparse.Namespace) -> Iterator[Gateway]:
    """Those that are installed; ours needs no venv of its own when this Python has it."""
    pythons = {
        "ours": (Path(args.python), OURS),
        "sglang-router": (PEERS / "sglang-router/bin/python", "sglang_router.launch_router"),
        "smg": (PEERS / "smg/bin/python", "smg.launch_router"),
    }
    for name in args.only:
        python, module = pythons.get(name, (ROOT / "nothing", ""))
        if not python.exists():
            raise BenchError(f"{name} is not installed ({python}); bench/install_peers.sh")
        yield Gateway(name, str(python.absolute()), module)


def rows(args: argparse.Namespace) -> Iterator[tuple[Gateway, Fault, Row]]:
    found = list(gateways(args))
    for fault in FAULTS:
        for leg in fault.legs:
            for kind in fault.kinds:
                for gateway in found:
                    if args.faults in fault.name:
                        yield gateway, fault, Row(fault.name, leg, kind, gateway.name)


def measure(number: int, gateway: Gateway, fault: Fault, row: Row, args: argparse.Namespace) -> Row:
    """One row, in this thread."""
    with tempfile.TemporaryDirectory(prefix="pair-failures-") as name:
        room, base = Path(name), args.base_port + number * PORTS
        with stage(gateway, args.python, base, fault.pairs, fault.flags, room) as place:
            asyncio.run(drive(place, fault, row))
    print(f"{row.gateway}: {row.leg} {row.fault}, {row.kind}: {cell(row)}", file=sys.stderr, flush=True)
    return row


def cell(row: Row | None) -> str:
    """`status and end, seconds until the client knew; P and D: seconds until each was free`."""
    if row is None:
        return "-"
    words = row.end if row.client_s is None else f"{row.end} {row.client_s:.1f}"
    frees = [f"{role[0].upper()} {free(row, role, seconds)}" for role, seconds in row.free_s.items()]
    # The leg at fault, when its process lives on.
    frees += [f"{row.leg[0].upper()} **kept**"] if row.left.get(row.leg) else []
    parts = [words, *frees, *([f"next: {row.again}"] if row.again else [])]
    return "; ".join(parts)


def free(row: Row, role: str, seconds: float | None) -> str:
    if role in row.died:
        return "**died**"
    if seconds is None:
        return "-"
    return "**kept**" if row.left.get(role) else f"{seconds:.1f}"


def table(seen: Sequence[Row], names: Sequence[str]) -> list[str]:
    """Markdown: a line per fault, leg and kind of request, a column per gateway."""
    cells = {(row.fault, row.leg, row.kind, row.gateway): row for row in seen}
    lines = ["| leg | fault | request | " + " | ".join(names) + " |", "|" + " --- |" * (3 + len(names))]
    for fault, leg, kind in dict.fromkeys(key[:3] for key in cells):
        found = [cell(cells.get((fault, leg, kind, name))) for name in names]
        lines.append(f"| {leg[0].upper() if leg in ROLES else ''} | {fault} | {kind} | {' | '.join(found)} |")
    return lines


def tables(seen: Sequence[Row], names: Sequence[str]) -> list[str]:
    """The rows of one pair, and those of two."""
    one = [row for row in seen if not row.fault.startswith(SPARE)]
    two = [replace(row, fault=row.fault.removeprefix(SPARE)) for row in seen if row.fault.startswith(SPARE)]
    parts = [("### One pair", one), ("### Two pairs, one worker at fault, four requests at once", two)]
    return [line for title, rows in parts if rows for line in [title, "", *table(rows, names), ""]]


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: text.split(","), default=["ours", "sglang-router", "smg"])
    parser.add_argument("--faults", default="", help="those with this in their name")
    parser.add_argument("--at-once", type=int, default=10, help="rows at a time")
    parser.add_argument("--base-port", type=int, default=11_000, help="eight ports per row, from here on")
    parser.add_argument("--python", default=sys.executable, help="the Python with our gateway and simulated workers")
    parser.add_argument("--json", type=Path, help="file for all rows")
    return parser.parse_args(argv)


def _run(args: argparse.Namespace) -> bool:
    require_tools(["taskset", "setpriv"])
    seen, failed = [], 0
    plan = list(rows(args))
    with ThreadPoolExecutor(args.at_once) as pool:
        runs = [pool.submit(measure, number, *one, args) for number, one in enumerate(plan)]
        for run, (_, _, row) in zip(runs, plan, strict=True):
            try:
                seen.append(run.result())
            except (BenchError, OSError) as error:
                failed += 1
                print(f"error: {row.gateway}, {row.leg} {row.fault}, {row.kind}: {error}", file=sys.stderr)
    print("\n".join(tables(seen, args.only)))
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in seen], indent=1) + "\n")
    return not failed


def main(argv: list[str] | None = None) -> None:
    """Exit code 1 when a row could not be measured."""
    args = parse(argv)
    finish(lambda: _run(args))


if __name__ == "__main__":
    main()
