"""`python -m sgl_model_gateway config`: checks a configuration file, or prints the schema of it."""

from __future__ import annotations

import argparse
import sys

from ._options.help import Parser, program
from .router_args import RouterArgs

__all__ = ["check", "create_parser", "main"]

_DESCRIPTION = "Checks a configuration file without starting a gateway, or prints its JSON Schema."
_EXAMPLES = """\
  %(prog)s check gateway.yaml
  %(prog)s check gateway.yaml --port 8080
  %(prog)s schema > gateway.schema.json
"""
_PREFIX = "Configuration error: "


def check(args: RouterArgs) -> list[str]:
    """Checks the file of `args.config` together with the other options. Nothing is opened or connected to.

    Usage:

        mistakes = check(RouterArgs(config="gateway.yaml"))

    Args:
        args: the options that a gateway is to be started with.

    Returns:
        A line for each mistake, `gateway.yaml:3:1: ...`; none for a file that is right.

    Raises:
        RuntimeError: the Rust extension is missing.
    """
    try:
        from .router import check_file
    except ImportError as error:
        raise RuntimeError("the Rust extension of sgl_model_gateway is missing; reinstall the package") from error
    try:
        check_file(args)
    except (KeyError, TypeError, ValueError) as error:
        why = f"no policy is named {error}" if isinstance(error, KeyError) else str(error)
        return why.removeprefix(_PREFIX).splitlines()
    return []


def create_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The parser of both commands.

    Args:
        prog: the command as users type it; `None` is argparse's guess.
    """
    parser = Parser(prog, description=_DESCRIPTION, examples=_EXAMPLES)
    parser.usage = "%(prog)s COMMAND [OPTIONS]"
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND", required=True)
    checking = commands.add_parser(
        "check",
        help="check FILE, with the flags of launch over it",
        description="Checks a configuration file with the flags that a gateway is to be started with.",
    )
    checking.usage = "%(prog)s FILE [OPTIONS]"
    checking.add_argument("file", metavar="FILE", help="the configuration file")
    RouterArgs.add_cli_args(checking, use_router_prefix=False)
    commands.add_parser("schema", help="print the JSON Schema of the file", description="Prints the JSON Schema.")
    return parser


def main(argv: list[str] | None = None, prog: str | None = None) -> None:
    """Runs a command line.

    Args:
        argv: the words after the program; `None` means this process's own.
        prog: the command as users type it.

    Raises:
        SystemExit: 1 when the file has mistakes, 2 for a mistake in the flags. A regular end returns.
    """
    namespace = create_parser(prog).parse_args(argv)
    if namespace.command == "schema":
        from .sgl_model_gateway_rs import config_schema

        print(config_schema())
        return
    try:
        args = RouterArgs.from_cli_args(namespace, use_router_prefix=False)
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    args.config = namespace.file
    mistakes = check(args)
    for mistake in mistakes:
        print(mistake, file=sys.stderr)
    if mistakes:
        sys.exit(1)
    print(f"{namespace.file}: ok")


if __name__ == "__main__":
    main(prog=program("sgl_model_gateway.config"))
