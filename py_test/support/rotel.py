"""A real OpenTelemetry collector (https://rotel.dev) as a process, and the spans that it was sent."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, field
from pathlib import Path

from .ports import free_port
from .process import Process


@dataclass
class Span:
    """A span, as the collector shows it."""

    name: str = ""
    trace: str = ""
    id: str = ""
    parent: str = ""
    start: int = 0
    end: int = 0
    attributes: dict[str, str] = field(default_factory=dict)


def agent() -> str | None:
    """The program, where it is installed."""
    found = importlib.util.find_spec("rotel")
    return str(Path(found.origin).parent / "rotel-agent") if found and found.origin else None


class Rotel(Process):
    """A collector that takes OTLP over gRPC and HTTP, and writes every span that it gets."""

    def __init__(self, directory: Path, grpc_port: int = 0) -> None:
        program = agent()
        assert program, "rotel is not installed"
        self.grpc_port, self.http_port = grpc_port or free_port(), free_port()
        self.grpc, self.http = f"127.0.0.1:{self.grpc_port}", f"http://127.0.0.1:{self.http_port}/v1/traces"
        flags = ["--pid-file", str(directory / "pid"), "--log-file", str(directory / "log"), "--exporter", "blackhole"]
        flags += ["--debug-log", "traces", "--debug-log-verbosity", "detailed"]
        flags += ["--otlp-grpc-endpoint", self.grpc, "--otlp-http-endpoint", f"127.0.0.1:{self.http_port}"]
        super().__init__("start", *flags, python=program)
        self.wait_for_start("Starting Rotel")

    def spans(self) -> list[Span]:
        """All spans so far."""
        spans: list[Span] = []
        fields = {"Trace ID": "trace", "Parent ID": "parent", "ID": "id", "Name": "name"}
        of_span = False
        for line in list(self.lines):
            if line.startswith(("Span #", "ResourceSpans #")):
                of_span = line.startswith("Span #")
                spans += [Span()] if of_span else []
            elif not of_span:
                continue
            elif found := re.match(r" {4}(Trace ID|Parent ID|ID|Name) *: (\S.*)", line):
                setattr(spans[-1], fields[found[1]], found[2])
            elif found := re.match(r"(Start|End) time: (\d+)", line):
                setattr(spans[-1], found[1].lower(), int(found[2]))
            elif found := re.match(r" +-> (\S+): \w+\((.*)\)$", line):
                spans[-1].attributes[found[1]] = found[2]
        return spans

    def resource(self) -> dict[str, str]:
        """The attributes of what sends."""
        found = re.search(r"^Resource attributes:\n((?: +->.*\n)+)", self.text(), re.MULTILINE)
        assert found, self.text()
        return dict(re.findall(r"-> (\S+): \w+\((.*)\)$", found[1], re.MULTILINE))
