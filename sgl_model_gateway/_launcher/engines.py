"""The engines the launcher can run: SGLang itself, or the simulated worker for machines without GPUs.

An engine adds its flags to a parser and reads them back; `serve` is what a worker process runs.
"""

from __future__ import annotations

import argparse
import signal
import sys
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from .. import sim_worker
from ..sgl_model_gateway_rs import SimWorker

ServerArguments: TypeAlias = "Any"
"""SGLang's `ServerArgs` of any release, or `SimServerArgs`. Fields differ, so none is named by a type."""

# Options of the simulated worker that the launcher sets, or has flags of its own for.
_OWN = {"host", "port", "model", "api_key", "dp_size", "disaggregation_mode", "disaggregation_bootstrap_port"}


class Engine(Protocol):
    """What the launcher needs of an engine."""

    def add_cli_args(self, parser: argparse.ArgumentParser) -> None:
        """Adds the engine's flags."""

    def from_cli_args(self, args: argparse.Namespace) -> ServerArguments:
        """The server arguments in parsed flags."""

    def read_config(self, parser: argparse.ArgumentParser, argv: list[str]) -> list[str]:
        """The command line, with the flags of a configuration file added."""


@dataclass
class SimServerArgs:
    """Server arguments of the simulated worker, the counterpart of SGLang's `ServerArgs`."""

    model_path: str = "sim-model"
    host: str = "127.0.0.1"
    port: int = 30000
    dp_size: int = 1
    api_key: str | None = field(default=None, repr=False)
    options: dict[str, Any] = field(default_factory=dict)
    disaggregation_mode: str = "null"
    disaggregation_bootstrap_port: int = 8998

    def serve(self) -> None:
        """Runs one simulated worker until SIGINT, SIGTERM or SIGQUIT.

        Raises:
            SystemExit: 1 when a request killed the worker.
        """
        worker = SimWorker(
            host=self.host,
            port=self.port,
            model=self.model_path,
            api_key=self.api_key,
            disaggregation_mode=self.disaggregation_mode,
            disaggregation_bootstrap_port=self.disaggregation_bootstrap_port,
            **self.options,
        )
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
            signal.signal(number, lambda *_: worker.stop())
        worker.start_background()
        worker.wait()
        if worker.failure:
            sys.exit(f"error: {worker.failure}")


class SimEngine:
    """The simulated worker, `--engine sim`."""

    def add_cli_args(self, parser: argparse.ArgumentParser) -> None:
        """Flags under SGLang's names, then the simulated worker's own."""
        group = parser.add_argument_group("Simulated servers")
        defaults = SimServerArgs()
        group.add_argument(
            "--model-path", "--model", default=defaults.model_path, metavar="NAME", help="name of the served model"
        )
        group.add_argument(
            "--host", default=defaults.host, metavar="ADDR", help="address of the gateway and the workers"
        )
        group.add_argument("--port", type=int, default=defaults.port, metavar="PORT", help="port of the gateway")
        group.add_argument(
            "--dp-size",
            "--data-parallel-size",
            type=int,
            default=defaults.dp_size,
            metavar="N",
            help="workers to start",
        )
        group.add_argument("--api-key", metavar="KEY", help="key demanded from clients")
        group.add_argument(
            "--disaggregation-bootstrap-port",
            type=int,
            default=defaults.disaggregation_bootstrap_port,
            metavar="PORT",
            help="first port tried for the bootstrap server of a worker in pairs",
        )
        sim_worker.add_flags(group, leave_out=_OWN)

    def from_cli_args(self, args: argparse.Namespace) -> SimServerArgs:
        """The server arguments in parsed flags."""
        return SimServerArgs(
            *(args.model_path, args.host, args.port, args.dp_size, args.api_key, sim_worker.options(args)),
            disaggregation_mode=getattr(args, "disaggregation_mode", "null"),
            disaggregation_bootstrap_port=args.disaggregation_bootstrap_port,
        )

    def read_config(self, parser: argparse.ArgumentParser, argv: list[str]) -> list[str]:
        """The command line as it is: there is no configuration file."""
        return argv


class SglangEngine:
    """SGLang, `--engine sglang`, the default.

    Raises:
        ImportError: SGLang cannot be imported.
    """

    def __init__(self) -> None:
        from sglang.srt.server_args import ServerArgs

        self._server_args = ServerArgs
        _load_plugins()

    def add_cli_args(self, parser: argparse.ArgumentParser) -> None:
        """Adds all flags of the installed release."""
        self._server_args.add_cli_args(parser)

    def from_cli_args(self, args: argparse.Namespace) -> ServerArguments:
        """The installed release's `ServerArgs`."""
        return self._server_args.from_cli_args(args)

    def read_config(self, parser: argparse.ArgumentParser, argv: list[str]) -> list[str]:
        """The command line with `--config FILE` merged in, as SGLang does it."""
        if "--config" not in argv:
            return argv
        try:
            from sglang.srt.utils.server_args_config_parser import ConfigArgumentMerger
        except ImportError:  # where older releases keep it
            from sglang.srt.server_args_config_parser import ConfigArgumentMerger
        merged: list[str] = ConfigArgumentMerger(parser).merge_config_with_args(argv)
        return merged


def _load_plugins() -> None:
    """Loads SGLang's plugins, which may add flags. Older releases have none."""
    try:
        from sglang.srt.plugins import load_plugins
    except ImportError:
        return
    load_plugins()


ENGINES: dict[str, type[Engine]] = {"sglang": SglangEngine, "sim": SimEngine}
