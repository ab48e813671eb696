"""Words that this project's texts do without: a worker, a client or a request is named, and not left to guess."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORDS = ("who", "whoever", "nobody", "somebody", "tell", "tells", "told")
# Within identifiers, too: `_` divides words here.
PATTERN = re.compile(rf"(?<![a-z])({'|'.join(WORDS)})(?![a-z])", re.IGNORECASE)
SUFFIXES = {".py", ".pyi", ".sh", ".csv", ".txt", ".toml", ".md", ".yml", ".yaml", ".service", ".env", ".sysusers"}


def texts() -> list[Path]:
    """Python sources, tests, what runs them, and the documents."""
    found = [
        ROOT / "Makefile",
        ROOT / "Dockerfile",
        ROOT / "deny.toml",
        *(ROOT / ".ci").iterdir(),
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
    ]
    for folder in ("sgl_model_gateway", "py_test", "bench", "deploy", "examples", "packaging", ".github"):
        # Not the virtual environments in hidden folders, which are other people's texts.
        found += (path for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES and not hidden(path, folder))
    return sorted(path for path in found if path.is_file() and path != Path(__file__))


def hidden(path: Path, folder: str) -> bool:
    """Whether a folder on the way to it begins with a dot."""
    return any(part.startswith(".") for part in path.relative_to(ROOT / folder).parts)


def hits(text: str) -> list[str]:
    """Every line with one of the words, with its number."""
    return [f"{number}: {line.strip()}" for number, line in enumerate(text.splitlines(), 1) if PATTERN.search(line)]


def test_texts_name_workers_clients_and_requests() -> None:
    found = [f"{path.relative_to(ROOT)}:{hit}" for path in texts() for hit in hits(path.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("line", ["a worker that nobody knows", "# Who asks", "def test_who_comes_first()", "as TOLD"])
def test_a_forbidden_word_is_found(line: str) -> None:
    assert hits(f"fine\n{line}") == [f"2: {line}"]


def test_words_that_only_contain_one_are_fine() -> None:
    assert not hits("whole, teller, untold, whose, retelling")


def test_texts_of_installed_peers_are_left_out() -> None:
    assert hidden(ROOT / "bench" / ".venvs" / "peer" / "client.py", "bench")
    assert not hidden(ROOT / ".github" / "workflows" / "ci.yml", ".github")


def test_all_folders_are_read() -> None:
    names = {path.relative_to(ROOT).parts[0] for path in texts()}
    assert names >= {"Makefile", ".ci", "sgl_model_gateway", "py_test", "bench", "deploy", "docs", "README.md"}
