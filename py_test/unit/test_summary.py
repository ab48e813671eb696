"""The table at the end of a test run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SUPPORT = Path(__file__).parents[1]
TESTS = """
import pytest

def test_good(): pass

@pytest.mark.skip
def test_left_out(): pass
"""
FAILING = """
import pytest

@pytest.fixture
def broken():
    yield
    raise RuntimeError

def test_bad(): assert 0

def test_bad_at_its_end(broken): pass
"""


def test_a_run_ends_with_a_row_per_folder_and_one_for_all(tmp_path: Path) -> None:
    for name, text in (("one/test_a.py", TESTS), ("two/test_b.py", TESTS), ("two/test_c.py", FAILING)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "conftest.py").write_text(
        "from support.summary import pytest_terminal_summary as pytest_terminal_summary"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "."]
    path = {"PYTHONPATH": str(SUPPORT), "PATH": ""}
    run = subprocess.run(command, cwd=tmp_path, env=path, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    lines = run.stdout.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("folder"))
    assert lines[first].split() == ["folder", "files", "tests", "failed", "skipped", "seconds"]
    rows = [line.split()[:-1] for line in lines[first + 1 : first + 4]]
    assert rows == [["one", "1", "2", "0", "1"], ["two", "2", "4", "2", "1"], ["all", "3", "6", "2", "2"]]
