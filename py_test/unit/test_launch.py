"""`launch_router`, the console script, and what they say when something is wrong."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from sgl_model_gateway import cli, launch_router, launch_server, sim_worker
from sgl_model_gateway.router_args import RouterArgs
from sgl_model_gateway.sgl_model_gateway_rs import (
    SimWorker,
    get_verbose_version_string,
    get_version_string,
    sim_option_defaults,
)


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> Mock:
    monkeypatch.setattr(launch_router, "_set_title", Mock())
    monkeypatch.setattr(launch_router, "Router", mock := Mock())
    return mock


# --- launch_router


def test_launch_router_takes_router_args_or_a_namespace(router: Mock) -> None:
    args = RouterArgs(port=5)
    assert launch_router.launch_router(args) is None  # type: ignore[func-returns-value]
    router.from_args.assert_called_once_with(args)
    router.from_args.return_value.start.assert_called_once_with()
    launch_router.launch_router(SimpleNamespace(port=6, worker_urls=["http://a"]))  # type: ignore[arg-type]
    assert router.from_args.call_args.args[0] == RouterArgs(port=6, worker_urls=["http://a"])


def test_a_failure_is_logged_and_raised(router: Mock, monkeypatch: pytest.MonkeyPatch) -> None:
    router.from_args.side_effect = RuntimeError("no luck")
    monkeypatch.setattr(launch_router, "logger", logger := Mock())
    with pytest.raises(RuntimeError, match="no luck"):
        launch_router.launch_router(RouterArgs())
    assert logger.error.call_args.args[0] == "Error starting router: no luck"


def test_the_mini_balancer_is_started_instead_of_the_gateway(router: Mock, monkeypatch: pytest.MonkeyPatch) -> None:
    from sgl_model_gateway.mini_lb import MiniLoadBalancer

    assert launch_router.MiniLoadBalancer is MiniLoadBalancer
    monkeypatch.setattr(launch_router, "MiniLoadBalancer", balancer := Mock(), raising=False)
    launch_router.launch_router(args := RouterArgs(mini_lb=True))
    balancer.assert_called_once_with(args)
    balancer.return_value.start.assert_called_once_with()
    assert not router.from_args.called


def test_an_option_of_the_mini_balancer_alone_is_refused_by_name(router: Mock) -> None:
    with pytest.raises(ValueError, match="'test_external_dp_routing' is for --mini-lb only"):
        launch_router.launch_router(RouterArgs(test_external_dp_routing=True))
    assert launch_router.logger.name == "router"
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = launch_router.Nothing


def test_a_mistake_on_the_command_line_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        launch_router.run(["--prefill", "http://a", "x"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith("error: Invalid bootstrap port")
    with pytest.raises(SystemExit) as exit_:
        launch_router.run(["--worker-urls", "ftp://a"])
    assert exit_.value.code == 2


# --- the console script


def outcome(argv: list[str]) -> object:
    with pytest.raises(SystemExit) as exit_:
        cli.main(argv)
    return exit_.value.code


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("--version", get_version_string()),
        ("-V", get_version_string()),
        ("--version-verbose", get_verbose_version_string()),
    ],
)
def test_a_version_flag_prints_the_version(flag: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome([flag]) == 0
    assert capsys.readouterr().out == f"{text}\n"


@pytest.mark.parametrize(("argv", "code"), [([], 1), (["nonsense"], 1), (["--port"], 1), (["-h"], 0), (["--help"], 0)])
def test_without_a_known_command_help_goes_to_stdout(
    argv: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert outcome(argv) == code
    out, err = capsys.readouterr()
    assert out.startswith("usage:") and all(word in out for word in ("launch", "server", "demo", "sim-worker"))
    assert err == ""


def test_a_version_flag_comes_first_or_not_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(["launch", "--version"]) == 2


def test_launch_hands_its_flags_on(router: Mock) -> None:
    cli.main(["launch", "--port", "7", "--worker-urls", "http://a"])
    args = router.from_args.call_args.args[0]
    assert (args.port, args.worker_urls, args.prometheus_port) == (7, ["http://a"], None)


def test_launch_help_lists_the_gateways_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(["launch", "--help"]) == 0
    assert "--worker-urls" in capsys.readouterr().out


def test_server_runs_the_launcher_and_restores_argv(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sys.argv
    monkeypatch.setattr(launch_server, "main", lambda: seen.extend(sys.argv))
    seen: list[str] = []
    cli.main(["server", "--x"])
    assert seen[0].endswith(" server") and seen[1:] == ["--x"] and sys.argv is before


@pytest.mark.parametrize("module", ["", ".launch_router", ".launch_server", ".sim_worker"])
def test_a_module_runs_as_a_script(module: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", f"sgl_model_gateway{module}", "--help"], capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith("usage:")


# --- the simulated worker's flags


def test_every_option_of_the_simulated_worker_has_a_flag() -> None:
    assert sim_worker.options(sim_worker.create_parser().parse_args([])) == sim_option_defaults()


def test_every_option_of_the_simulated_worker_has_a_line_of_help() -> None:
    names = {f"{group}.{name}".removeprefix(".") for group, name, _, _ in sim_worker._table()}
    assert set(sim_worker._HELP) == names
    options = {f"{group}.{name}".removeprefix("."): default for group, name, _, default in sim_worker._table()}
    switches = {name for name, default in options.items() if isinstance(default, bool)}
    assert {name for name, (unit, _) in sim_worker._HELP.items() if not unit} == switches


def test_a_switch_that_is_on_by_default_can_be_turned_off() -> None:
    parse = sim_worker.create_parser().parse_args
    argv = [[], ["--no-crash-on-bad-bootstrap"], ["--crash-on-bad-bootstrap"]]
    assert [sim_worker.options(parse(it))["crash_on_bad_bootstrap"] for it in argv] == [True, False, True]


def test_options_that_are_off_by_default_have_the_right_type() -> None:
    # Set together, each unset option is accepted by the worker with the type its flag gives it.
    unset = [(flag, name in sim_worker._TEXT) for _, name, flag, default in sim_worker._table() if default is None]
    argv = [f"--{flag.replace('_', '-')}={'text' if text else 500}" for flag, text in unset]
    SimWorker(**sim_worker.options(sim_worker.create_parser().parse_args(argv)))


def test_a_bad_simulated_worker_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        sim_worker.main(["--page-size", "0"])
    assert exit_.value.code == 2 and "page_size" in capsys.readouterr().err
