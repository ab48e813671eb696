"""The look of a command: usage, help, what it says of mistakes, and its last line as JSON."""

from __future__ import annotations

import argparse
import json
import logging
import re
import socket
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from sgl_model_gateway import cli, launch_router, launch_server, simulate
from sgl_model_gateway._launcher.console import Console
from sgl_model_gateway._options.flags import flag_of
from sgl_model_gateway._options.help import HelpFormatter, Parser, did_you_mean, program
from sgl_model_gateway._options.logs import JsonFormatter, wants_json
from sgl_model_gateway.router_args import RouterArgs


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    """The gateway's flags, as `launch` has them."""
    parser = Parser("smg launch", description="d", examples="  %(prog)s --port 1\n")
    RouterArgs.add_cli_args(parser)
    return parser


def error_of(parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The last line on standard error; the exit code is 2."""
    with pytest.raises(SystemExit) as exit_:
        parser.parse_args(argv)
    assert exit_.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


# --- help


def test_usage_is_one_line_and_examples_come_last(parser: argparse.ArgumentParser) -> None:
    lines = parser.format_help().splitlines()
    assert lines[:2] == ["usage: smg launch [OPTIONS]", ""]
    assert lines[-2:] == ["examples:", "  smg launch --port 1"]


MODULES = ["launch_router", "launch_server", "sim_worker", "simulate", "demo", "doctor", "top"]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_run_as_a_script_is_called_by_its_name(module: str) -> None:
    command = [sys.executable, "-m", f"sgl_model_gateway.{module}", "--help"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.startswith(f"usage: python -m sgl_model_gateway.{module} [OPTIONS]\n")
    assert "\nexamples:\n" in run.stdout


@pytest.mark.parametrize("command", ["launch", "server", "sim-worker", "demo", "simulate", "doctor", "top"])
def test_a_command_is_called_by_its_name(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/smg"])
    with pytest.raises(SystemExit) as exit_:
        cli.main([command, "--help"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: smg {command} [OPTIONS]\n")


def test_another_program_keeps_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/opt/serve.py"])
    assert program("sgl_model_gateway.launch_router") is None


def test_flags_show_units_choices_and_defaults(parser: argparse.ArgumentParser) -> None:
    text = " ".join(parser.format_help().split())
    for wanted in (
        "--port PORT TCP port the gateway listens on; 0 takes a free one (default: 30000)",
        "--request-timeout-secs SECS",
        "--retry-initial-backoff-ms MS",
        "--max-payload-size BYTES",
        "--cache-threshold RATIO",
        "--worker-urls [URL ...]",
        "--prefill URL [PORT|none]",
        "--tls-cert-path PATH",
        "--queue-size N",
        "more wait in the queue; 0 means no limit (default: 0)",
        "one of random, min_load, min_group (default: random)",
        "(default: $REDIS_POOL_MAX or 16)",
    ):
        assert wanted in text
    assert "(default: None)" not in text and "(default: False)" not in text and "(default: [])" not in text


@pytest.mark.parametrize("owner", [f for f in RouterArgs.__dataclass_fields__.values() if f.name.endswith("_secs")])
def test_a_time_in_seconds_says_so(owner: object, parser: argparse.ArgumentParser) -> None:
    name = flag_of(owner).spelling(owner)  # type: ignore[arg-type]
    (action,) = [action for action in parser._actions if action.dest == name]
    assert action.metavar == "SECS"


def test_a_flag_with_a_metavar_of_its_own_keeps_it(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser(formatter_class=HelpFormatter)
    parser.add_argument("--mode", choices=["a%", "b"], metavar="X", help="how")
    parser.add_argument("--kind", choices=["a%", "b"], default="b", help="which")
    text = " ".join(parser.format_help().split())
    assert "--mode X how" in text and "--kind KIND which; one of a%, b (default: b)" in text


# --- mistakes


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["--polcy", "random"], "unrecognized arguments: --polcy random (did you mean --policy?)"),
        (["--polcy=random"], "(did you mean --policy?)"),
        (["--worker_urls", "http://a"], "(did you mean --worker-urls?)"),
        (["--router-policy", "random"], "(did you mean --policy?)"),
        (["--policy", "cash_aware"], "(did you mean cache_aware?)"),
        # An abbreviation would do for any other flag.
        (["--tls-skip-ver"], "unrecognized arguments: --tls-skip-ver (did you mean --tls-skip-verify?)"),
        (["--log-level", "warning"], "(did you mean warn?)"),
        (["http://a:1"], "(workers are listed after --worker-urls)"),
    ],
)
def test_a_near_miss_names_the_right_word(
    argv: list[str], hint: str, parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str]
) -> None:
    line = error_of(parser, capsys, *argv)
    assert line.startswith("smg launch: error: ") and line.endswith(hint)


def test_a_word_that_is_far_from_all_is_not_explained(
    parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str]
) -> None:
    assert error_of(parser, capsys, "--xyzzy") == "smg launch: error: unrecognized arguments: --xyzzy"
    assert did_you_mean("xyzzy", ["launch", "server"]) == ""


def test_the_launcher_names_the_prefixed_flag() -> None:
    assert run("launch_server", "--engine", "sim", "--policy", "random").stderr.endswith(
        "error: unrecognized arguments: --policy random (did you mean --router-policy?)\n"
    )


def test_a_mistyped_command_names_the_right_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["smg"])
    with pytest.raises(SystemExit) as exit_:
        cli.main(["lunch"])
    assert exit_.value.code == 1
    assert capsys.readouterr().err == "smg: error: unknown command 'lunch' (did you mean launch?)\n"


def test_a_mistyped_policy_of_the_simulator_names_the_right_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        simulate.main(["--trace", str(tmp_path / "t"), "--policy", "round-robin"])
    assert "(did you mean round_robin?)" in capsys.readouterr().err


# --- the end of a start that failed


def run(module: str, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"sgl_model_gateway.{module}", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


def as_log_line(text: str) -> tuple[str, str]:
    """Level and message of a line in the shape of the gateway's own."""
    line = json.loads(text)
    assert list(line) == ["timestamp", "level", "fields"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["timestamp"])
    return line["level"], line["fields"]["message"]


@pytest.mark.parametrize(
    ("module", "prefix", "port"), [("launch_router", "", "--port"), ("launch_server", "router-", "--port")]
)
@pytest.mark.parametrize("as_json", [False, True])
def test_a_port_in_use_is_exit_code_1_and_one_last_line(module: str, prefix: str, port: str, as_json: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        flags = ["--host", "127.0.0.1", port, str(taken.getsockname()[1]), f"--{prefix}prometheus-port", "0"]
        flags += ["--engine", "sim"] if prefix else ["--worker-urls", "http://127.0.0.1:9"]
        ended = run(module, *flags, *([f"--{prefix}json-log"] if as_json else []))
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    last = ended.stderr.splitlines()[-1]
    level, message = as_log_line(last) if as_json else ("ERROR", last)
    assert level == "ERROR" and "Address already in use" in message


@pytest.mark.parametrize(
    ("module", "flags", "problem"),
    [
        ("launch_router", ["--json-log", "--port", "x"], "argument --port: invalid int value: 'x'"),
        ("launch_router", ["--json-log", "--polcy", "x"], "(did you mean --policy?)"),
        ("launch_router", ["--json", "--prefill", "http://a", "x"], "Invalid bootstrap port: 'x'"),
        ("launch_router", ["--json-log", "--worker-urls", "ftp://a"], "worker_url"),
        ("launch_router", ["--json-log", "--history-backend", "redis"], "Error starting router"),
        ("launch_server", ["--router-json-log", "--engine", "simm"], "(did you mean sim?)"),
        (
            "launch_server",
            ["--engine", "sim", "--router-json-log", "--router-service-discovery"],
            "--router-service-discovery: ",
        ),
    ],
)
def test_wrong_options_are_exit_code_2_and_one_line_of_json(module: str, flags: list[str], problem: str) -> None:
    ended = run(module, *flags)
    assert ended.returncode == 2 and not ended.stdout
    level, message = as_log_line(ended.stderr)  # no second line
    assert level == "ERROR" and problem in message


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (["--port", "1", "--json-log"], True),
        (["--json"], True),
        (["--js"], True),
        (["--j"], False),
        (["--jwt-issuer", "x"], False),
        (["--json-logs"], False),
        ([], False),
    ],
)
def test_json_is_asked_for_by_any_unique_beginning_of_the_flag(argv: list[str], wanted: bool) -> None:
    assert wants_json(argv, "--json-log") is wanted


def test_log_lines_in_json_have_the_gateways_levels_and_the_traceback() -> None:
    try:
        raise ValueError("why")
    except ValueError:
        record = logging.LogRecord("n", logging.WARNING, "f", 1, "a %s\nb", ("x",), sys.exc_info())
    line = json.loads(JsonFormatter().format(record))
    assert (line["level"], line["fields"]["message"]) == ("WARN", "a x\nb")
    assert line["fields"]["traceback"].endswith("ValueError: why")
    assert datetime.fromisoformat(line["timestamp"].replace("Z", "+00:00")).timestamp() == pytest.approx(record.created)


def test_the_last_line_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Console().fail("first\n  second")
    assert capsys.readouterr().err == "error: first second\n"


# --- names behind a missing package


@pytest.mark.parametrize(
    ("module", "name", "package"),
    [
        ("__init__", "Router", "sgl_model_gateway.sgl_model_gateway_rs"),
        ("launch_server", "requests", "requests"),
        ("launch_server", "ServerArgs", "sglang"),
        ("launch_server", "launch_server", "sglang"),
        ("mini_lb", "aiohttp", "aiohttp"),
        ("mini_lb", "app", "fastapi"),
        ("launch_router", "MiniLoadBalancer", "sgl_model_gateway.mini_lb"),
    ],
)
def test_a_missing_package_is_a_missing_attribute(module: str, name: str, package: str) -> None:
    code = f"""
import importlib, sys
module = importlib.import_module("sgl_model_gateway.{module}".removesuffix(".__init__"))
for loaded in [loaded for loaded in sys.modules if loaded.partition(".")[0] == "{package}"]:
    del sys.modules[loaded]
sys.modules["{package}"] = None
assert not hasattr(module, "{name}")
try:
    module.{name}
except AttributeError as error:
    assert "{package}" in str(error) and isinstance(error.__cause__, (ImportError, RuntimeError))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_names_that_verl_imports_from_launch_server_are_there() -> None:
    assert launch_server.launch_router is launch_router.launch_router
    assert launch_server.RouterArgs is RouterArgs
