"""The console script: `sgl-model-gateway`, `smg`, `amg`, `sglang-router`, `python -m sgl_model_gateway`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module

from ._options.help import did_you_mean

_EPILOG = """\
examples:
  %(prog)s launch --worker-urls http://gpu-1:30000 http://gpu-2:30000
  %(prog)s launch --help
  %(prog)s server --model-path Qwen/Qwen3-8B --dp-size 2
  %(prog)s demo --workers 4
  %(prog)s simulate --trace trace.jsonl --workers 8 --policy all
  %(prog)s replay --trace trace.jsonl --target http://127.0.0.1:30000
  %(prog)s config check gateway.yaml
  %(prog)s top --url http://127.0.0.1:30000
  %(prog)s doctor --worker-urls http://gpu-1:30000 http://gpu-2:30000
"""


def _program() -> str:
    name = os.path.basename(sys.argv[0])
    return "python -m sgl_model_gateway" if name == "__main__.py" else name


def create_parser() -> argparse.ArgumentParser:
    """The parser for the first word; each command reads the rest itself."""
    parser = argparse.ArgumentParser(
        prog=_program(),
        usage="%(prog)s COMMAND [OPTIONS]",
        description="SGLang Model Gateway",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-V", "--version", action="store_true", help="print the version (as the first argument)")
    parser.add_argument(
        "--version-verbose", action="store_true", help="print the version and how it was built (as the first argument)"
    )
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")
    for name, (text, _) in _COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Runs a command line.

    Args:
        argv: the words after the program; `None` means this process's own.

    Raises:
        SystemExit: 0 after help or a version; 1 without a known command; otherwise what the command ends with.
    """
    argv = sys.argv[1:] if argv is None else argv
    first, rest = (argv[0], argv[1:]) if argv else ("", [])
    if first in ("--version", "-V", "--version-verbose"):
        _print_version(verbose=first == "--version-verbose")
        sys.exit(0)
    if first in _COMMANDS:
        _COMMANDS[first][1](rest)
    else:
        create_parser().print_help()
        if hint := did_you_mean(first, _COMMANDS):
            print(f"{_program()}: error: unknown command {first!r}{hint}", file=sys.stderr)
        sys.exit(0 if first in ("-h", "--help") else 1)


def _print_version(*, verbose: bool) -> None:
    from . import sgl_model_gateway_rs as extension

    print(extension.get_verbose_version_string() if verbose else extension.get_version_string())


def _launch(argv: list[str]) -> None:
    from .launch_router import run

    run(argv, prog=f"{_program()} launch")


def _server(argv: list[str]) -> None:
    # Until the launcher takes it over: amid the imports an interrupt would become some import's error.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from . import launch_server

    # launch_server reads sys.argv, as it does when it is run by itself.
    saved, sys.argv = sys.argv, [f"{_program()} server", *argv]
    try:
        launch_server.main()
    finally:
        sys.argv = saved


def _main_of(command: str) -> Callable[[list[str]], None]:
    """What runs a command by `main` of the module of its name."""

    def run(argv: list[str]) -> None:
        # A module is imported when its command runs: some take long.
        module = import_module(f".{command.replace('-', '_')}", __package__)
        module.main(argv, prog=f"{_program()} {command}")

    return run


# Command, its line in the help, and what runs it.
_COMMANDS: dict[str, tuple[str, Callable[[list[str]], None]]] = {
    "launch": ("start a gateway", _launch),
    "server": ("start SGLang servers, or simulated ones, together with a gateway", _server),
    "sim-worker": ("start a simulated worker", _main_of("sim-worker")),
    "demo": ("start simulated workers and a gateway, and send them some load", _main_of("demo")),
    "simulate": ("replay a trace under several policies in virtual time, and compare them", _main_of("simulate")),
    "replay": ("send a recorded trace to a live gateway, or to two, and compare", _main_of("replay")),
    "config": ("check a configuration file, or print its schema", _main_of("config")),
    "top": ("show the workers of a running gateway", _main_of("top")),
    "doctor": ("check options, ports, this machine and the workers before a start", _main_of("doctor")),
}


if __name__ == "__main__":
    main()
