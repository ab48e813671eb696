"""A hosts file of a process's own, so that a name can come and go. Needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAME = "worker-of-a-test"


class PrivateHosts:
    """`python` runs with a private `/etc/hosts` in which `NAME` is 127.0.0.1, until it `goes_away`."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "hosts"
        self.python = str(folder / "python")
        self.comes_back()
        Path(self.python).write_text(
            "#!/bin/sh\n"
            f'exec unshare -m sh -c \'mount --bind {self.file} /etc/hosts && exec "$@"\' sh {sys.executable} "$@"\n'
        )
        Path(self.python).chmod(0o755)

    def comes_back(self) -> None:
        self.file.write_text(f"127.0.0.1 localhost {NAME}\n")

    def goes_away(self) -> None:
        self.file.write_text("127.0.0.1 localhost\n")

    @staticmethod
    def are_possible() -> bool:
        """Whether this process may give another one files of its own."""
        if os.geteuid() != 0 or shutil.which("unshare") is None:
            return False
        return subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0
