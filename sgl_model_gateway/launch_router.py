"""`python -m sgl_model_gateway.launch_router`: a gateway from the command line."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Any

from ._options.help import HelpFormatter, Parser, program
from ._options.logs import error_line, formatter, wants_json
from .router_args import RouterArgs

try:
    from .router import Router
except ImportError:  # flags still work without the extension, starting says what is missing
    Router = None  # type: ignore[assignment,misc]

logger = logging.getLogger("router")

_DESCRIPTION = "SGLang Model Gateway: one address in front of a fleet of inference workers."
_EXAMPLES = """\
  %(prog)s --worker-urls http://gpu-1:30000 http://gpu-2:30000
  %(prog)s --worker-urls http://gpu-1:30000 http://gpu-2:30000 --policy round_robin --port 8080
  %(prog)s --worker-urls http://gpu-1:30000 --api-key KEY --max-concurrent-requests 512
"""

# Upstream's name for it, which programs import from here.
CustomHelpFormatter = HelpFormatter


def __getattr__(name: str) -> Any:
    # Upstream's tests patch `launch_router.MiniLoadBalancer`. Most gateways never need it. One that cannot be imported
    # is a missing attribute, so that `hasattr` answers.
    if name == "MiniLoadBalancer":
        try:
            from .mini_lb import MiniLoadBalancer
        except ImportError as error:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}: {error}") from error
        return MiniLoadBalancer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def launch_router(args: argparse.Namespace | RouterArgs) -> None:
    """Runs a gateway until a stop signal.

    Usage:

        launch_router(RouterArgs(worker_urls=["http://gpu-1:30000"], port=30000))

    Args:
        args: a `RouterArgs`, or an object whose `__dict__` holds flags as argparse names them (`worker_urls`, `port`).

    Raises:
        ValueError: an option that cannot work. Every failure is logged at level ERROR on the logger `router` first.
        RuntimeError: the port is in use, or the Rust extension is missing.
    """
    _set_title("sglang::router")
    try:
        router_args = args if isinstance(args, RouterArgs) else RouterArgs.from_cli_args(args)
        if router_args.mini_lb:
            if router_args.config:
                raise ValueError("option 'config' is not for --mini-lb; give it flags")
            sys.modules[__name__].MiniLoadBalancer(
                router_args
            ).start()  # through the module: upstream's tests replace it there
            return
        if router_args.test_external_dp_routing:
            raise ValueError("option 'test_external_dp_routing' is for --mini-lb only")
        if Router is None:
            raise RuntimeError("the Rust extension of sgl_model_gateway is missing; reinstall the package")
        router_args._validate_router_args()
        Router.from_args(router_args).start()
    except Exception as error:
        logger.error(f"Error starting router: {error}")
        raise


def _set_title(title: str) -> None:
    try:
        from setproctitle import setproctitle
    except ImportError:
        return
    setproctitle(title)


def parse_router_args(args: list[str], prog: str | None = None) -> RouterArgs:
    """Reads a command line.

    Usage:

        args = parse_router_args(["--worker-urls", "http://gpu-1:30000", "--policy", "random"])

    Args:
        args: the words of the command line, without the program.
        prog: the command as users type it, for messages; `None` is argparse's guess.

    Raises:
        ValueError: a structured value (`--prefill`, `--control-plane-api-keys`, `--jwt-role-mapping`) is malformed.
        SystemExit: 2 for any other mistake, 0 after `--help`.
    """
    return _parse(args, prog, as_json=False)


def _parse(args: list[str], prog: str | None, *, as_json: bool) -> RouterArgs:
    parser = Parser(prog, description=_DESCRIPTION, examples=_EXAMPLES, as_json=as_json, formatter=CustomHelpFormatter)
    RouterArgs.add_cli_args(parser, use_router_prefix=False)
    return RouterArgs.from_cli_args(parser.parse_args(args), use_router_prefix=False)


def run(argv: list[str], prog: str | None = None) -> None:
    """Parses and launches. A failed start ends with one line on standard error, JSON with `--json-log`.

    Args:
        argv: the command line without the program.
        prog: the command as users type it.

    Raises:
        SystemExit: 2 for wrong options, 1 when the start fails. A regular end returns.
    """
    as_json = wants_json(argv, "--json-log")
    handler = logging.StreamHandler()
    handler.setFormatter(formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", as_json=as_json))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        args = _parse(argv, prog, as_json=as_json)
    except ValueError as error:
        print(error_line(str(error), as_json=as_json), file=sys.stderr)
        sys.exit(2)
    try:
        launch_router(args)  # logs what it raises
    except (ValueError, TypeError):
        sys.exit(2)
    except (RuntimeError, OSError):
        sys.exit(1)


def main() -> None:
    """Entry point of the module."""
    run(sys.argv[1:], program("sgl_model_gateway.launch_router"))


if __name__ == "__main__":
    main()
