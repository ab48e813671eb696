"""Workers as processes: the simulated one, and one that is scripted in Python."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .client import call, get_json
from .process import Process

SCRIPTED = Path(__file__).with_name("scripted_worker.py")


class Worker(Process):
    """A simulated worker; it keeps its port through `kill` and `restart`."""

    def __init__(self, *, port: int = 0, **options: Any) -> None:
        flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        self._flags = ["-m", "sgl_model_gateway.sim_worker", *flags]
        super().__init__(*self._flags, "--port", str(port))
        self.url = self.wait_for_start(r"listening on (http://\S+)").group(1)

    def kill(self) -> None:
        """As the kernel's out-of-memory killer does it."""
        self.destroy()

    def restart(self) -> None:
        """On the same port, with nothing cached."""
        self.destroy()
        self.lines.clear()
        self.command = [sys.executable, *self._flags, "--port", str(urlsplit(self.url).port)]
        self._spawn()
        self.wait_for_start("listening on")

    def freeze(self) -> None:
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    def set_faults(self, **faults: Any) -> None:
        """Replaces the faults in force; none ends them."""
        call(self.url, "POST", "/sim/faults", faults)

    def faults(self) -> dict[str, Any]:
        """Those in force."""
        return get_json(f"{self.url}/sim/faults")

    def stats(self) -> dict[str, int]:
        return get_json(f"{self.url}/sim/stats")


class Scripted(Process):
    """Workers scripted in Python (`scripted_worker.py`): one process, a port each, one set of counts."""

    def __init__(self, ports: int = 1, **script: Any) -> None:
        super().__init__(str(SCRIPTED), str(ports), json.dumps(script))
        self.urls: list[str] = json.loads(self.wait_for_start(r"listening on (.*)").group(1))

    def stats(self) -> dict[str, Any]:
        return get_json(f"{self.urls[0]}/script/stats")
