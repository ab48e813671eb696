"""`python -m sgl_model_gateway doctor`: would a gateway with these options serve, here and now?"""

from __future__ import annotations

import sys

from ._doctor.finding import Finding, as_json, as_text, has_failed
from ._doctor.issuer import check_issuer
from ._doctor.machine import check_machine
from ._doctor.options import check_idle_options, check_options, with_file
from ._doctor.ports import check_ports
from ._doctor.workers import check_workers
from ._options.help import Parser, program
from ._options.logs import error_line
from .router_args import RouterArgs
from .version import __version__

__all__ = ["Finding", "create_parser", "examine", "main"]

_DESCRIPTION = "Checks options, ports, this machine and the workers for a gateway, without starting it."
_EXAMPLES = """\
  %(prog)s --worker-urls http://gpu-1:30000 http://gpu-2:30000 --policy cache_aware
  %(prog)s --worker-urls http://gpu-1:30000 --json
"""


def examine(args: RouterArgs, timeout_secs: float = 5.0) -> list[Finding]:
    """Runs every check. Nothing is started, no request for inference is sent.

    Usage:

        findings = examine(RouterArgs(worker_urls=["http://gpu-1:30000"]))

    Args:
        args: the options that a gateway is to be started with.
        timeout_secs: longest wait for a worker's connection and for each of its answers.

    Returns:
        What was found, at least one finding per check.
    """
    findings = check_options(args)
    args = with_file(args)
    return [
        *findings,
        *check_idle_options(args),
        *check_ports(args),
        *check_machine(args),
        *check_issuer(args, timeout_secs),
        *check_workers(args, timeout_secs),
    ]


def create_parser(prog: str | None = None) -> Parser:
    """The flags of `launch`, and those of the report.

    Args:
        prog: the command as users type it; `None` is argparse's guess.
    """
    parser = Parser(prog, description=_DESCRIPTION, examples=_EXAMPLES)
    report = parser.add_argument_group("Report")
    report.add_argument("--json", action="store_true", help="write the report as one JSON object")
    report.add_argument(
        "--timeout-secs",
        type=float,
        default=5.0,
        metavar="SECS",
        help="longest wait for a worker's connection and for each of its answers",
    )
    RouterArgs.add_cli_args(parser, use_router_prefix=False)
    return parser


def main(argv: list[str] | None = None, prog: str | None = None) -> None:
    """Runs a command line, and prints the report.

    Args:
        argv: the words after the program; `None` means this process's own.
        prog: the command as users type it.

    Raises:
        SystemExit: 0 when no check failed, 1 when one did, 2 for a mistake in the flags.
    """
    namespace = create_parser(prog).parse_args(argv)
    try:
        args = RouterArgs.from_cli_args(namespace, use_router_prefix=False)
    except ValueError as error:
        print(error_line(str(error), as_json=False), file=sys.stderr)
        sys.exit(2)
    findings = examine(args, namespace.timeout_secs)
    print(as_json(findings, __version__) if namespace.json else as_text(findings))
    sys.exit(1 if has_failed(findings) else 0)


if __name__ == "__main__":
    main(prog=program("sgl_model_gateway.doctor"))
