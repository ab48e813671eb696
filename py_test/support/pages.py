"""The documents as Markdown: their blocks, tables and anchors; and plain requests."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", *DOCS]
OTHERS = ("CHANGELOG.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "SECURITY.md", "deploy/README.md")
LINKED = [*PAGES, *(ROOT / name for name in OTHERS)]
TIMEOUT = 20


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@dataclass(frozen=True)
class Block:
    """A fenced block, and the comment right above it."""

    page: Path
    line: int
    language: str
    comment: str
    text: str

    @property
    def is_run(self) -> bool:
        return not self.comment.startswith("<!-- not run:")


def blocks(page: Path) -> list[Block]:
    found, lines = [], page.read_text().splitlines()
    opened = None
    for at, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if opened is None:
            opened = at
            continue
        comment = lines[opened - 1] if opened else ""
        found.append(Block(page, opened + 1, lines[opened][3:].strip(), comment, "\n".join(lines[opened + 1 : at])))
        opened = None
    assert opened is None, f"{page}:{opened}: a block without an end"
    return found


def without_blocks(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of headings."""
    headings = re.findall(r"^#+ (.*)$", without_blocks(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def table(page: Path, first: str) -> list[list[str]]:
    """The rows of all tables whose first column is called so."""
    rows: list[list[str]] = []
    inside = False
    for line in without_blocks(page).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("|") else []
        inside = bool(cells) and (inside or cells[0].strip() == first)
        if inside and cells[0] != first and not line.startswith("| ---"):
            rows.append(cells)
    assert rows, f"{page} has no table with the column {first}"
    return rows


def send(request: urllib.request.Request) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
