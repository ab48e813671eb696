"""Writes the licences of the crates in a wheel: `LICENSE-THIRD-PARTY.txt`, which pyproject.toml adds to wheels.

    python packaging/licenses.py [--target TRIPLE] [--output FILE]

Cargo says which crates those are, for the platform and without those that only build or test. Their licence files lie
beside their sources.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "LICENSE-THIRD-PARTY.txt"
_NAMES = ("LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE")
_RULE = "-" * 80
_LEAD = """\
This package contains code of the crates below, each under its licence, and of Rust's standard library (MIT OR
Apache-2.0, https://github.com/rust-lang/rust). Where a licence is a choice, any of its alternatives holds.
"""


@dataclass(frozen=True)
class Crate:
    """A crate of other authors that is linked into the extension."""

    name: str
    version: str
    licence: str
    texts: tuple[str, ...]


def crates(metadata: dict[str, Any]) -> list[Crate]:
    """Those that `cargo metadata` links into the root package, by name and version.

    Raises:
        ValueError: a crate names no licence.
    """
    packages = {package["id"]: package for package in metadata["packages"]}
    linked = (packages[identifier] for identifier in _linked(metadata["resolve"]))
    found = [_crate(package) for package in linked if package["source"] is not None]
    return sorted(found, key=lambda crate: (crate.name, crate.version))


def _linked(resolve: dict[str, Any]) -> set[str]:
    nodes = {node["id"]: node for node in resolve["nodes"]}
    found: set[str] = set()
    waiting = [resolve["root"]]
    while waiting:
        identifier = waiting.pop()
        if identifier not in found:
            found.add(identifier)
            waiting += (
                dependency["pkg"]
                for dependency in nodes[identifier]["deps"]
                if any(kind["kind"] is None for kind in dependency["dep_kinds"])
            )
    return found


def _crate(package: dict[str, Any]) -> Crate:
    folder = Path(package["manifest_path"]).parent
    texts = tuple(file.read_text(errors="replace").strip() for file in _files(folder, package.get("license_file")))
    licence = package["license"] or ("as follows" if texts else None)
    if licence is None:
        raise ValueError(f"{package['name']} {package['version']} names no licence")
    return Crate(package["name"], package["version"], licence, texts)


def _files(folder: Path, named: str | None) -> Iterator[Path]:
    found = {path for path in folder.iterdir() if path.name.upper().startswith(_NAMES)}
    if named:
        found.add(folder / named)
    for path in sorted(found):
        if path.is_file():
            yield path
        else:
            yield from sorted(inner for inner in path.iterdir() if inner.is_file())


def document(found: list[Crate]) -> str:
    """A line per crate, then every text once, below the crates that it is of."""
    owners: dict[str, tuple[str, list[str]]] = {}
    for crate in found:
        for text in crate.texts:
            _, names = owners.setdefault(" ".join(text.split()), (text, []))
            if crate.name not in names:
                names.append(crate.name)
    lines = [f"{crate.name} {crate.version}: {crate.licence}" for crate in found]
    texts = [f"{_RULE}\n{', '.join(names)}\n{_RULE}\n\n{text}\n" for text, names in owners.values()]
    return "\n".join([_LEAD, *lines, "", *texts])


def main() -> None:
    """Runs the command line above."""
    parser = argparse.ArgumentParser(description="write the licences of the crates that a wheel contains")
    parser.add_argument("--target", metavar="TRIPLE", help="platform of the wheel; this machine's unless given")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE", help="where to write them")
    args = parser.parse_args()
    target = args.target or _host()
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", target]
    ran = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if ran.returncode:
        sys.exit(ran.returncode)
    found = crates(json.loads(ran.stdout))
    args.output.write_text(document(found))
    print(f"{args.output.name}: {len(found)} crates for {target}")


def _host() -> str:
    shown = subprocess.run(["rustc", "-vV"], stdout=subprocess.PIPE, text=True, check=True).stdout
    return next(line.removeprefix("host: ") for line in shown.splitlines() if line.startswith("host: "))


if __name__ == "__main__":
    main()
