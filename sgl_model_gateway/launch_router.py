"""`python -m sgl_model_gateway.launch_router`: a gateway from the command line."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Any

from .router_args import RouterArgs

try:
    from .router import Router
except ImportError:  # flags still work without the extension, starting says what is missing
    Router = None  # type: ignore[assignment,misc]

logger = logging.getLogger("router")

_DESCRIPTION = """\
SGLang Model Gateway: one address in front of a fleet of inference workers.

examples:
  %(prog)s --worker-urls http://gpu-1:30000 http://gpu-2:30000
  %(prog)s --worker-urls http://gpu-1:30000 --policy round_robin --port 8080
"""


class CustomHelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the description's lines and shows defaults."""


def __getattr__(name: str) -> Any:
    if name == "MiniLoadBalancer":  # most gateways never need it
        from .mini_lb import MiniLoadBalancer

        return MiniLoadBalancer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def launch_router(args: argparse.Namespace | RouterArgs) -> None:
    """Runs a gateway until it is told to stop. Takes a `RouterArgs` or whatever argparse made of its flags.

    Returns `None` after a regular end; failures are logged and raised.
    """
    _set_title("sglang::router")
    try:
        router_args = args if isinstance(args, RouterArgs) else RouterArgs.from_cli_args(args)
        if router_args.mini_lb:
            sys.modules[__name__].MiniLoadBalancer(router_args).start()
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
    """Flags as `RouterArgs`."""
    parser = argparse.ArgumentParser(prog=prog, description=_DESCRIPTION, formatter_class=CustomHelpFormatter)
    RouterArgs.add_cli_args(parser, use_router_prefix=False)
    return RouterArgs.from_cli_args(parser.parse_args(args), use_router_prefix=False)


def run(argv: list[str], prog: str | None = None) -> None:
    """Parses and launches for a command line: a mistake ends in one line and exit code 1, not in a traceback."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        args = parse_router_args(argv, prog)
    except ValueError as error:
        sys.exit(f"error: {error}")
    try:
        launch_router(args)
    except (ValueError, RuntimeError):
        sys.exit(1)  # logged already


def main() -> None:
    """Entry point of the module."""
    run(sys.argv[1:])


if __name__ == "__main__":
    main()
