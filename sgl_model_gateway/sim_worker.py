"""`python -m sgl_model_gateway.sim_worker`: a simulated SGLang worker, for demos and tests without a GPU.

Flags are the options of the simulated worker itself; the options under `faults` have `--fault-` in front.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Set
from typing import Any

from ._options.help import Parser, program
from .sgl_model_gateway_rs import SimWorker, sim_option_defaults

_EXAMPLES = """\
  %(prog)s --port 30000
  %(prog)s --port 30000 --model Qwen/Qwen3-8B --decode-step-base-ms 8
"""

# Options that are text and unset by default; the other unset ones are numbers.
_TEXT = {"api_key", "bad_content_length"}


def _table() -> Iterator[tuple[str, str, str, Any]]:
    """Group, name, flag and default of every option."""
    for name, default in sim_option_defaults().items():
        if not isinstance(default, dict):
            yield "", name, name, default
            continue
        for inner, value in default.items():
            yield name, inner, f"fault-{inner.removeprefix('fault_')}", value


def create_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """A parser with a flag for every option of `SimWorker`.

    Args:
        prog: the command as users type it; `None` is a guess.
    """
    parser = Parser(prog or program("sgl_model_gateway.sim_worker"), description=__doc__, examples=_EXAMPLES)
    add_flags(parser)
    return parser


def add_flags(parser: argparse._ActionsContainer, leave_out: Set[str] = frozenset()) -> None:
    """Adds a flag for every option of `SimWorker`.

    Args:
        parser: a parser, or a group of one.
        leave_out: names of options that get no flag.
    """
    for group, name, flag, default in _table():
        if name in leave_out:
            continue
        settings: dict[str, Any] = {"action": "store_true"}
        if not isinstance(default, bool):
            kind = (str if name in _TEXT else int) if default is None else type(default)
            settings = {"type": kind, "metavar": kind.__name__.upper()}
        parser.add_argument(
            f"--{flag.replace('_', '-')}", dest=f"{group}.{name}", default=default, help=" ", **settings
        )


def options(args: argparse.Namespace) -> dict[str, Any]:
    """Parsed flags as keywords of `SimWorker`. Other flags of the same parser are ignored."""
    keywords: dict[str, Any] = {}
    for key, value in vars(args).items():
        group, dot, name = key.partition(".")
        if dot:
            (keywords.setdefault(group, {}) if group else keywords)[name] = value
    return keywords


def main(argv: list[str] | None = None, prog: str | None = None) -> None:
    """Serves until SIGINT or SIGTERM.

    Args:
        argv: the command line without the program; `None` means this process's own.
        prog: the command as users type it.

    Raises:
        SystemExit: 2 for wrong options, 1 when the port is in use.
    """
    parser = create_parser(prog)
    args = parser.parse_args(argv)
    try:
        worker = SimWorker(**options(args))
    except ValueError as error:
        parser.error(str(error))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: worker.stop())
    try:
        worker.start_background()
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    print(f"simulated worker listening on {worker.url}", flush=True)
    worker.wait()


if __name__ == "__main__":
    main()
