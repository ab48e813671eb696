"""Checks wheels: tag, C library, size, contents, and that they start where this machine can run them.

    python packaging/check_wheel.py dist/*.whl

Ends with 1 when one of the checks of one of the wheels fails. Symbols are read by auditwheel.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

MOST_BYTES = 12_000_000
# Of the extension, unpacked.
MOST_EXTENSION_BYTES = 20 << 20
# That of manylinux2014: RHEL 7, Debian 8, Ubuntu 14.04 and everything newer.
NEWEST_GLIBC = (2, 17)
_SYMBOL = re.compile(rb"GLIBC_(\d+)\.(\d+)")


class Wheel:
    """A wheel, opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with zipfile.ZipFile(path) as archive:
            self.files = {name: archive.read(name) for name in archive.namelist()}

    def in_info(self, name: str) -> str:
        """A file of its metadata; empty when there is none."""
        suffix = f".dist-info/{name}"
        return next((data.decode() for path, data in self.files.items() if path.endswith(suffix)), "")

    def extension(self) -> bytes:
        """The Rust extension; empty when there is none."""
        return next((data for path, data in self.files.items() if path.endswith(".so")), b"")

    def tags(self) -> list[str]:
        """`cp310-abi3-manylinux2014_x86_64` and the like."""
        return re.findall(r"^Tag: (\S+)$", self.in_info("WHEEL"), re.M)

    def glibc(self) -> tuple[int, int]:
        """The newest release of glibc that a symbol asks for; (0, 0) when none does."""
        return max(((int(major), int(minor)) for major, minor in _SYMBOL.findall(self.extension())), default=(0, 0))

    def crates(self) -> list[str]:
        """Name and version of every crate in the bill of materials."""
        text = next((data.decode() for path, data in self.files.items() if path.endswith(".cyclonedx.json")), "{}")
        return [f"{one['name']} {one['version']}" for one in json.loads(text).get("components", [])]

    def licensed(self) -> list[str]:
        """Name and version of every crate whose licence is in the wheel."""
        return re.findall(r"^(\S+ \d\S*): \S", self.in_info("licenses/LICENSE-THIRD-PARTY.txt"), re.M)


def problems(wheel: Wheel) -> Iterator[str]:
    """What keeps it from being published; nothing for a wheel that may be."""
    tags = wheel.tags()
    if not tags or not all(tag.startswith("cp310-abi3-manylinux") for tag in tags):
        yield f"tagged {', '.join(tags) or 'not at all'}; expected cp310-abi3-manylinux..."
    if wheel.glibc() > NEWEST_GLIBC:
        yield "needs glibc {}.{}; expected {}.{} at most".format(*wheel.glibc(), *NEWEST_GLIBC)
    size = wheel.path.stat().st_size
    if size > MOST_BYTES:
        yield f"{size} bytes; expected {MOST_BYTES} at most"
    unpacked = len(wheel.extension())
    if unpacked >= MOST_EXTENSION_BYTES:
        yield f"the extension has {unpacked} bytes; expected less than {MOST_EXTENSION_BYTES}"
    home = str(Path.home()).encode()
    if len(home) > 1 and home in wheel.extension():
        yield f"the extension names a folder of this machine, {home.decode()}"
    yield from _bill_of_materials(wheel)


def _bill_of_materials(wheel: Wheel) -> Iterator[str]:
    listed, licensed = set(wheel.crates()), wheel.licensed()
    if "Apache License" not in wheel.in_info("licenses/LICENSE"):
        yield "without the licence of the package"
    if not licensed:
        yield "without the licences of its crates (packaging/licenses.py)"
    if missing := [crate for crate in licensed if crate not in listed]:
        yield f"not in the bill of materials: {', '.join(missing)}"


def audit(path: Path) -> str:
    """What auditwheel says is wrong with its tag; empty when nothing is."""
    command = [sys.executable, "-m", "auditwheel", "show", str(path)]
    ran = subprocess.run(command, capture_output=True, text=True)
    text = " ".join((ran.stdout + ran.stderr).split())
    found = re.search(r'consistent with the following platform tag: "manylinux_(\d+)_(\d+)_', text)
    if ran.returncode or found is None or (int(found[1]), int(found[2])) > NEWEST_GLIBC:
        return f"auditwheel: {text}"
    return ""


def start(path: Path) -> str:
    """What goes wrong when it is installed and serves simulated workers; empty when nothing does."""
    with tempfile.TemporaryDirectory() as folder:
        install = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--no-index",
            "--target",
            folder,
            str(path),
        ]
        demo = [sys.executable, "-W", "error", "-m", "sgl_model_gateway", "demo", "--workers", "1", "--exit"]
        for command in (install, demo):
            environment = os.environ | {"PYTHONPATH": folder}
            ran = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
            if ran.returncode:
                return f"{' '.join(command[1:4])}: {(ran.stdout + ran.stderr)[-2000:]}"
    return ""


def check(path: Path) -> list[str]:
    """All problems of one wheel."""
    wheel = Wheel(path)
    found = [*problems(wheel), *filter(None, [audit(path)])]
    if any(tag.endswith(f"_{platform.machine()}") for tag in wheel.tags()):
        found += filter(None, [start(path)])
    else:
        print(f"{path.name}: not started, for this machine is {platform.machine()}")
    if not found:
        size = f"{path.stat().st_size / 1e6:.1f} MB"
        glibc = ".".join(map(str, wheel.glibc()))
        unpacked = f"{len(wheel.extension()) / (1 << 20):.1f} MiB"
        print(f"{path.name}: {size}, extension {unpacked}, glibc {glibc}, {len(wheel.licensed())} crates")
    return found


def main(paths: list[str]) -> int:
    """Checks every wheel; the exit code."""
    failed = not paths
    for path in (Path(name).resolve() for name in paths):
        for problem in check(path):
            failed = True
            print(f"{path.name}: {problem}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
