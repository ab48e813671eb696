"""The unit of deploy/systemd: systemd takes it, it may do little, and the gateway knows its flags."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.pages import ROOT

from sgl_model_gateway.launch_router import parse_router_args
from sgl_model_gateway.router import Router
from sgl_model_gateway.router_args import RouterArgs

FOLDER = ROOT / "deploy" / "systemd"
NAME = "sgl-model-gateway"
UNIT = (FOLDER / f"{NAME}.service").read_text()
# Of `systemd-analyze security`: 0 is best, 100 worst.
EXPOSURE = 20


def service() -> dict[str, list[str]]:
    """The settings of the section `Service`; some may be given more than once."""
    section = UNIT.split("[Service]\n")[1].split("\n[")[0]
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", section, re.M):
        found.setdefault(name, []).append(value)
    return found


def environment() -> dict[str, str]:
    lines = (FOLDER / f"{NAME}.env").read_text().splitlines()
    return dict(word.split("=", 1) for line in lines for word in shlex.split(line, comments=True))


def command() -> list[str]:
    """`ExecStart` as systemd reads it: `$NAME` becomes as many words as it has."""
    (line,) = service()["ExecStart"]
    assert "${" not in line and "%" not in line, "not expanded here"
    words = []
    for word in shlex.split(line):
        words += environment()[word[1:]].split() if word.startswith("$") else [word]
    return words


def options() -> RouterArgs:
    program, verb, *words = command()
    assert (Path(program).name, verb) == (NAME, "launch")
    return parse_router_args(words)


def test_gateway_can_be_made_of_the_unit_and_its_environment() -> None:
    args = options()
    Router.from_args(args)
    assert len(args.worker_urls) > 1 and args.api_keys_file
    # Metrics have no key.
    assert args.prometheus_host == "127.0.0.1"


def test_every_variable_of_the_environment_is_used_and_given() -> None:
    assert set(re.findall(r"\$(\w+)", service()["ExecStart"][0])) == set(environment())


def test_systemd_waits_for_the_drain_and_signals_the_gateway_alone() -> None:
    unit = service()
    assert unit["KillSignal"] == ["SIGTERM"] and unit["KillMode"] == ["mixed"]
    assert int(unit["TimeoutStopSec"][0]) >= options().shutdown_grace_period_secs + 10
    # There is nothing to reload: files are read again when they change.
    assert unit["Type"] == ["exec"] and "ExecReload" not in unit
    assert unit["Restart"] == ["on-failure"] and "StartLimitIntervalSec=0" in UNIT


def test_user_of_the_unit_is_made_and_is_not_root() -> None:
    unit = service()
    assert unit["User"] == unit["Group"] == [NAME]
    assert re.search(rf"^u {NAME} - ", (FOLDER / f"{NAME}.sysusers").read_text(), re.M)


def test_files_that_the_unit_reads_are_where_the_page_puts_them() -> None:
    page = (ROOT / "deploy" / "README.md").read_text()
    for path in (*service()["EnvironmentFile"], str(options().api_keys_file)):
        assert re.search(rf"^install .* {path}$", page, re.M), path


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    version = subprocess.run([program, "--version"], capture_output=True, text=True).stdout.split()[1]
    if int(re.split(r"\D", version)[0]) < 250:
        pytest.skip(f"systemd {version} checks no unit offline")
    return subprocess.run([program, *words], capture_output=True, text=True, timeout=50)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that exists on this machine."""
    path = tmp_path / f"{NAME}.service"
    path.write_text(UNIT.replace(command()[0], sys.executable))
    return path


def verified(unit: Path) -> str:
    done = analyze("verify", "--man=no", "--recursive-errors=no", str(unit))
    complaints = done.stdout + done.stderr
    assert done.returncode == 0 or complaints
    return complaints


def test_systemd_takes_the_unit(unit: Path) -> None:
    assert verified(unit) == ""


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("NoNewPrivilege=yes", "NoNewPrivilege"),
        ("Type=exek", "exek"),
        ("SystemCallFilter=@no-such-set", "no-such-set"),
    ],
)
def test_systemd_complains_of_a_setting_that_is_wrong(unit: Path, line: str, named: str) -> None:
    unit.write_text(unit.read_text().replace("[Service]\n", f"[Service]\n{line}\n"))
    assert named in verified(unit)


def exposure(unit: Path) -> subprocess.CompletedProcess[str]:
    return analyze("security", "--offline=true", f"--threshold={EXPOSURE}", "--no-pager", str(unit))


def test_unit_is_little_exposed(unit: Path) -> None:
    done = exposure(unit)
    assert done.returncode == 0, done.stdout + done.stderr


def test_unit_without_its_limits_is_too_exposed(unit: Path) -> None:
    unit.write_text(re.sub(r"^(Protect|Private|Restrict|SystemCall)\w+=.*$", "", unit.read_text(), flags=re.M))
    assert exposure(unit).returncode != 0
