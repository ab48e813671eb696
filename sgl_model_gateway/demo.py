"""`python -m sgl_model_gateway demo`: simulated workers, a gateway in front of them, some load, and what went where."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from contextlib import ExitStack
from typing import Any, NoReturn

from ._demo.load import KINDS, MODEL, PAIR_KINDS, Progress, Server, call, send, served_by, table
from ._launcher.engines import SimServerArgs
from ._launcher.fleet import DECODE, PREFILL, REGULAR, Group, members
from ._launcher.process import Process
from ._options.help import Parser, program
from .launch_server import cleanup_processes, launch_server_process
from .router import Router
from .router_args import RouterArgs
from .sgl_model_gateway_rs import SimWorker

# A small model on a small GPU, roughly.
_WORKER: dict[str, Any] = {
    "model": MODEL,
    "prefill_tokens_per_sec": 20_000.0,
    "decode_step_base_ms": 8.0,
    "decode_step_per_seq_ms": 0.2,
    "record_requests": 10_000,
}
_TRANSFER_MS = 4.0  # per 1000 tokens of a prompt, between the workers of a pair
_PORT = 30000
_FIRST_WORKER_PORT = 31000
_PATIENCE = 30.0
_GRACE = 5

_WHAT_NOW = """
The fleet keeps serving at {url} (Ctrl-C ends it). Try:

  curl {url}/v1/chat/completions -H 'content-type: application/json' \\
    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'

  curl -N {url}/generate -H 'content-type: application/json' \\
    -d '{{"text": "Once upon a time", "sampling_params": {{"max_new_tokens": 16}}, "stream": true}}'

  curl {url}/workers

  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key="none")
  answer = client.chat.completions.create(model="{model}", messages=[{{"role": "user", "content": "Hello"}}])
  print(answer.choices[0].message.content)
"""


_DESCRIPTION = "Simulated workers, a gateway in front of them, some load, and a table of what each worker served."
_EXAMPLES = """\
  %(prog)s
  %(prog)s --workers 8 --requests 400 --exit
  %(prog)s --pd                 # half of the workers compute prompts, the others generate
  %(prog)s --processes          # a process per worker, as in production
"""


def _parse(argv: list[str] | None, prog: str | None) -> argparse.Namespace:
    parser = Parser(
        prog or program("sgl_model_gateway.demo") or "sgl-model-gateway demo",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    parser.add_argument("--workers", type=int, default=4, metavar="N", help="simulated workers to start")
    parser.add_argument("--requests", type=int, default=96, metavar="N", help="requests to send")
    parser.add_argument("--pd", action="store_true", help="start prefill and decode workers, half of each")
    parser.add_argument("--processes", action="store_true", help="run every worker in a process of its own")
    parser.add_argument("--exit", action="store_true", help="end after the load instead of keeping the fleet up")
    args = parser.parse_args(argv)
    if args.workers < 1 or args.requests < 1:
        parser.error("--workers and --requests must be at least 1")
    if args.pd and args.workers < 2:
        parser.error("--pd needs at least 2 workers, one of each role")
    return args


def main(argv: list[str] | None = None, prog: str | None = None) -> None:
    """Runs the demo. Ctrl-C or SIGTERM ends everything, with exit code 0.

    Args:
        argv: the command line without the program; `None` means this process's own.
        prog: the command as users type it.

    Raises:
        SystemExit: 2 for wrong options, 1 when the start fails.
    """
    args = _parse(argv, prog)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with ExitStack() as stack:
            _run(args, stack)
    except KeyboardInterrupt:
        print("\nstopped")
    except (RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")


def _run(args: argparse.Namespace, stack: ExitStack) -> None:
    started = time.monotonic()
    fleet = _roles(args)
    workers = (_worker_processes if args.processes else _workers_here)(fleet, stack)
    gateway = stack.enter_context(_gateway(workers))
    _wait_until_ready(gateway.url, args.workers)
    what = " and ".join(f"{count} {role}".replace(f" {REGULAR}", "") for role, count in fleet.items())
    print(f"{what} simulated workers behind {gateway.url}, up in {time.monotonic() - started:.2f} s", flush=True)

    started = time.monotonic()
    kinds = PAIR_KINDS if args.pd else KINDS
    results = send(gateway.url, args.requests, Progress(args.requests), kinds)
    print(f"{len(results)} requests in {time.monotonic() - started:.2f} s\n")
    print(table(results, served_by(workers), kinds), flush=True)
    if not args.exit:
        print(_WHAT_NOW.format(url=gateway.url, model=MODEL), flush=True)
        gateway.wait()


def _roles(args: argparse.Namespace) -> dict[str, int]:
    """How many workers of each role to start."""
    half = args.workers // 2
    return {PREFILL: half, DECODE: args.workers - half} if args.pd else {REGULAR: args.workers}


def _workers_here(fleet: dict[str, int], stack: ExitStack) -> list[Server]:
    found = []
    for role, count in fleet.items():
        for _ in range(count):
            worker = stack.enter_context(SimWorker(**_WORKER, **_role_options(role), disaggregation_bootstrap_port=0))
            found.append(Server(worker.url, _shown(role), worker.bootstrap_port))
    return found


def _role_options(role: str) -> dict[str, Any]:
    mode = "null" if role == REGULAR else role
    return {"disaggregation_mode": mode, "kv_transfer_ms_per_1k_tokens": _TRANSFER_MS}


def _shown(role: str) -> str:
    return "" if role == REGULAR else role


def _worker_processes(fleet: dict[str, int], stack: ExitStack) -> list[Server]:
    """As `launch_server --engine sim` starts them: they die with the demo, however it dies."""
    groups = []
    for role, count in fleet.items():
        options = {name: value for name, value in (_WORKER | _role_options(role)).items() if name != "model"}
        mode = options.pop("disaggregation_mode")
        groups.append(Group(role, count, SimServerArgs(MODEL, options=options, disaggregation_mode=mode)))
    processes: list[Process] = []
    stack.callback(cleanup_processes, processes)
    started = members(groups, RouterArgs(port=_PORT), _FIRST_WORKER_PORT)
    processes += (launch_server_process(one.server_args, one.port, one.rank) for one in started)
    return [Server(one.url, _shown(one.role), one.bootstrap_port) for one in started]


def _gateway(workers: list[Server]) -> Router:
    """On the usual port if it is free, else on any."""
    options: dict[str, Any] = {
        "worker_urls": [worker.url for worker in workers if not worker.role],
        "prefill_urls": [(worker.url, worker.bootstrap_port) for worker in workers if worker.role == PREFILL],
        "decode_urls": [worker.url for worker in workers if worker.role == DECODE],
        "pd_disaggregation": any(worker.role for worker in workers),
        "host": "127.0.0.1",
        "policy": "round_robin",
        "log_level": "warn",
        "worker_startup_check_interval": 1,
        "shutdown_grace_period_secs": _GRACE,
    }
    try:
        return Router(port=_PORT, **options).start_background()
    except RuntimeError:
        return Router(port=0, **options).start_background()


def _wait_until_ready(base: str, expected: int) -> None:
    deadline = time.monotonic() + _PATIENCE
    while (healthy := _healthy(base)) < expected:
        if time.monotonic() > deadline:
            _give_up(healthy, expected)
        time.sleep(0.02)


def _healthy(base: str) -> int:
    return sum(bool(worker["is_healthy"]) for worker in json.load(call(base, "GET", "/workers"))["workers"])


def _give_up(healthy: int, expected: int) -> NoReturn:
    raise RuntimeError(f"only {healthy} of {expected} workers came up within {_PATIENCE:.0f} s")


if __name__ == "__main__":
    main()
