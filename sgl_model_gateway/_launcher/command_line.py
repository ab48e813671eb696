"""The launcher's flags: the engine's own, the gateway's with `--router-` in front, and a few of the launcher."""

from __future__ import annotations

import argparse

from .._options.help import HelpFormatter, Parser
from .._options.logs import wants_json
from ..router_args import RouterArgs
from .engines import ENGINES, Engine
from .fleet import DECODE, PREFILL, REGULAR, Group
from .plan import COUNT_FLAGS, HIGHEST_PORT

BASE_PORT = 31000
STOP_TIMEOUT = 30
_DESCRIPTION = """\
Starts SGLang servers and a gateway in front of them: one server per data-parallel replica, or prefill/decode pairs.

The flags are SGLang's own; those of the gateway have --router- in front.
"""
_EXAMPLES = """\
  %(prog)s --model-path Qwen/Qwen3-8B --dp-size 2
  %(prog)s --model-path Qwen/Qwen3-8B --dp-size 4 --tp-size 2 --router-policy round_robin
  %(prog)s --model-path Qwen/Qwen3-8B --router-prefill-workers 1 --router-decode-workers 1
  %(prog)s --engine sim --dp-size 4          # simulated workers: no GPU, no SGLang
"""


def parse(
    argv: list[str],
    prog: str | None = None,
    formatter: type[argparse.HelpFormatter] = HelpFormatter,
) -> tuple[argparse.Namespace, list[Group]]:
    """Every flag, and the workers that they ask for.

    Args:
        argv: the command line without the program.
        prog: the command as users type it.
        formatter: the look of the help.

    Raises:
        RuntimeError: the engine cannot be imported.
        ValueError: `--disaggregation-mode` besides the numbers of prefill and decode workers.
        SystemExit: 2 for wrong flags, 0 after `--help`.
    """
    help_wanted = any(word in ("-h", "--help") for word in argv)
    as_json = wants_json(argv, "--router-json-log")
    parser = Parser(prog, description=_DESCRIPTION, examples=_EXAMPLES, as_json=as_json, formatter=formatter)
    engine = _engine(argv, parser, help_wanted)
    if engine:
        engine.add_cli_args(parser)
    _add_cli_args(parser)
    args = parser.parse_args(engine.read_config(parser, argv) if engine else ["--help"])
    assert engine is not None
    _check(parser, args)
    return args, _groups(engine, args)


def _check(parser: Parser, args: argparse.Namespace) -> None:
    """Ends with exit code 2 for a value of the launcher's own flags that is out of range."""
    if not 0 < args.router_dp_worker_base_port <= HIGHEST_PORT:
        parser.error(f"argument --router-dp-worker-base-port: expected 1..{HIGHEST_PORT}")
    if args.router_worker_stop_timeout_secs < 0:
        parser.error("argument --router-worker-stop-timeout-secs: expected 0 or more")
    counts = (args.router_prefill_workers, args.router_decode_workers)
    for flag, other, count in zip(COUNT_FLAGS, reversed(COUNT_FLAGS), counts, strict=True):
        if count is None and counts != (None, None):
            parser.error(f"argument {other}: pairs need workers of both roles; give {flag}, too")
        if count is not None and count < 1:
            parser.error(f"argument {flag}: expected 1 or more")


def _groups(engine: Engine, args: argparse.Namespace) -> list[Group]:
    """The workers to start; the server arguments of each role are read for that role, on which defaults depend."""
    if args.router_prefill_workers is None:
        server_args = engine.from_cli_args(args)
        return [Group(REGULAR, server_args.dp_size, server_args)]
    if getattr(args, "disaggregation_mode", None) not in (None, "null"):
        raise ValueError(f"--disaggregation-mode: {' and '.join(COUNT_FLAGS)} give the roles; leave it out")
    counts = ((PREFILL, args.router_prefill_workers), (DECODE, args.router_decode_workers))
    given = vars(args)
    return [
        Group(role, count, engine.from_cli_args(argparse.Namespace(**given | {"disaggregation_mode": role})))
        for role, count in counts
    ]


def _engine(argv: list[str], parser: Parser, help_wanted: bool) -> Engine | None:
    """The engine that the command line names; `None` for `--help` without SGLang."""
    # Its flags are not known before, so nothing may be abbreviated and the rest is left alone.
    early = Parser(parser.prog, as_json=parser.as_json, add_help=False, allow_abbrev=False)
    _add_engine(early)
    name = early.parse_known_args(argv)[0].engine
    try:
        return ENGINES[name]()
    except ImportError as error:
        problem = f"SGLang cannot be imported ({error})"
        if isinstance(error, ModuleNotFoundError) and error.name == "sglang":
            problem += ". Install it with: pip install sglang"
        if not help_wanted:
            raise RuntimeError(f"{problem}; or run simulated workers with: --engine sim") from error
        parser.epilog = f"{parser.epilog}\n{problem}; its own flags are not listed here."
        return None


def _add_engine(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--engine",
        choices=sorted(ENGINES),
        default="sglang",
        help="what the workers run; sim is for machines without GPUs",
    )


def _add_cli_args(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("Launcher")
    _add_engine(group)
    group.add_argument(
        "--router-dp-worker-base-port",
        type=int,
        default=BASE_PORT,
        metavar="PORT",
        help="first port tried for a worker",
    )
    for flag, role in zip(COUNT_FLAGS, (PREFILL, DECODE), strict=True):
        group.add_argument(flag, type=int, metavar="N", help=f"{role} workers to start, in pairs instead of replicas")
    group.add_argument(
        "--router-disable-worker-restart", action="store_true", help="leave a crashed worker out for good"
    )
    group.add_argument(
        "--router-worker-stop-timeout-secs",
        type=int,
        default=STOP_TIMEOUT,
        metavar="SECS",
        help="longest time for all workers together to end before they are killed",
    )
    RouterArgs.add_cli_args(parser, use_router_prefix=True, exclude_host_port=True)
    # Workers on this machine are probed often, so that a start or restart shows soon.
    parser.set_defaults(router_worker_startup_check_interval=1, router_health_check_interval_secs=5)
