"""The launcher's helpers under their public names, its flags, and its parts without processes."""

from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import requests
from support.launcher import STUB, forget_sglang
from support.ports import free_base
from support.waiting import wait_for

from sgl_model_gateway import launch_server
from sgl_model_gateway._launcher import engines, supervisor
from sgl_model_gateway._launcher import process as worker_process
from sgl_model_gateway._launcher.console import Console
from sgl_model_gateway._launcher.engines import SglangEngine, SimEngine, SimServerArgs
from sgl_model_gateway._launcher.signals import StopSignals


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A `sglang` that can be imported."""
    monkeypatch.syspath_prepend(str(STUB))
    forget_sglang()
    yield
    forget_sglang()


def outcome(argv: list[str]) -> Any:
    with pytest.raises(SystemExit) as exit_:
        launch_server.main(argv)
    return exit_.value.code


# --- helpers that others import or patch


def test_importing_launch_server_changes_nothing() -> None:
    code = """
import logging, multiprocessing, signal, sys
before = [signal.getsignal(n) for n in (2, 3, 15)]
import sgl_model_gateway.launch_server as module
assert not logging.getLogger("router").handlers and multiprocessing.get_start_method(allow_none=True) is None
assert before == [signal.getsignal(n) for n in (2, 3, 15)]
assert not {"requests", "torch", "sglang", "fastapi"} & set(sys.modules)
assert all(hasattr(module, name) for name in ("mp", "os", "random", "time", "logger", *module.__all__))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_logger_has_one_handler_however_often_it_is_set_up() -> None:
    logger = launch_server.setup_logger()
    assert launch_server.setup_logger() is logger is logging.getLogger("router") is launch_server.logger
    assert logger.level == logging.INFO and len(logger.handlers) == 1


def test_a_replica_is_a_process_that_runs_run_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_server.mp, "Process", process := Mock())
    given = SimpleNamespace(port=0, base_gpu_id=0, dp_size=8, tp_size=2)
    assert launch_server.launch_server_process(given, worker_port=31001, dp_id=3) is process.return_value
    process.return_value.start.assert_called_once_with()
    settings = process.call_args.kwargs
    assert settings["target"] is launch_server.run_server and settings["args"][1] == 3
    assert vars(settings["args"][0]) == {"port": 31001, "base_gpu_id": 6, "dp_size": 1, "tp_size": 2}
    assert given.dp_size == 8


def test_run_server_leads_its_group_and_starts_sglang(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["sglang", "sglang.srt", "sglang.srt.entrypoints", "sglang.srt.entrypoints.http_server"]
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[names[-1]].launch_server = engine = Mock()  # type: ignore[attr-defined]
    monkeypatch.setattr(launch_server, "_set_title", Mock())
    monkeypatch.setattr(launch_server.os, "setpgrp", setpgrp := Mock())
    monkeypatch.setenv("SGLANG_DP_RANK", "")
    launch_server.run_server(arguments := object(), 5)
    engine.assert_called_once_with(arguments)
    assert os.environ["SGLANG_DP_RANK"] == "5"
    assert setpgrp.called == (os.getpgrp() != os.getpid())


def test_health_is_asked_until_it_is_good(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([requests.exceptions.ConnectionError(), SimpleNamespace(status_code=503)])
    good = SimpleNamespace(status_code=200)

    def get(url: str, timeout: float) -> Any:
        assert url == "http://127.0.0.1:5/health" and timeout == 5
        answer = next(answers, good)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(launch_server.requests, "get", get)
    monkeypatch.setattr(launch_server.time, "sleep", Mock())
    assert launch_server.wait_for_server_health("127.0.0.1", 5, timeout=9)
    good.status_code = 500
    clock = iter(range(100))
    monkeypatch.setattr(launch_server.time, "perf_counter", lambda: next(clock))
    assert not launch_server.wait_for_server_health("127.0.0.1", 5, timeout=3)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = launch_server.nothing


def test_cleanup_is_a_request_first_and_a_kill_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    alive = {1: True, 2: False}
    calls: list[tuple[int, int]] = []

    def killpg(pid: int, number: int) -> None:
        calls.append((pid, number))
        if number == signal.SIGKILL:
            alive[pid] = False

    monkeypatch.setattr(launch_server.os, "killpg", killpg)
    processes = [Mock(pid=pid, is_alive=lambda pid=pid: alive[pid]) for pid in alive]
    launch_server.cleanup_processes(processes)
    assert calls == [(1, signal.SIGTERM), (1, signal.SIGKILL)]
    assert all(process.join.call_args_list[0].kwargs["timeout"] <= 5.0 for process in processes)


# --- flags


def test_sglangs_flags_and_ours_live_in_one_parser(stub: None) -> None:
    argv = (
        "--model-path m --dp 2 --api-key k --router-eviction-interval 7 --router-policy random --router-log-level warn"
    )
    args, (group,) = launch_server._parse(argv.split())
    servers = group.server_args
    assert (group.role, group.count) == ("regular", 2)
    assert (servers.model_path, servers.dp_size, servers.api_key) == ("m", 2, "k")
    assert (args.router_dp_worker_base_port, args.router_eviction_interval_secs) == (31000, 7)
    router = launch_server.RouterArgs.from_cli_args(args, use_router_prefix=True)
    assert (router.host, router.port, router.policy, router.log_level) == ("127.0.0.1", 30000, "random", "warn")
    # The servers' key comes with the URLs; their flags are not the gateway's.
    assert router.api_key is None and router.model_path is None


def test_help_lists_the_flags_of_engine_gateway_and_launcher(stub: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(["--help"]) == 0
    out = capsys.readouterr().out
    for flag in ("--gpu-id-step", "--router-policy", "--router-dp-worker-base-port", "--worker-urls", "--engine"):
        assert flag in out
    assert "--router-host" not in out and "--router-port " not in out


def test_without_sglang_there_is_help_and_a_clear_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if not (Path(entry) / "sglang").exists()])
    assert outcome(["--help"]) == 0
    assert "pip install sglang" in capsys.readouterr().out
    code = outcome(["--model-path", "m"])
    assert code.startswith("error: SGLang cannot be imported") and "--engine sim" in code


def test_a_broken_sglang_says_what_is_broken(stub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sglang.srt.server_args", None)
    code = outcome(["--model-path", "m"])
    assert "sglang.srt.server_args" in code and "pip install" not in code


def test_a_configuration_file_is_merged_by_sglang(stub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    merger = Mock()
    merger.return_value.merge_config_with_args.return_value = ["--model-path", "merged"]
    for home in ("sglang.srt.utils.server_args_config_parser", "sglang.srt.server_args_config_parser"):
        with monkeypatch.context() as patch:
            engine = SglangEngine()
            patch.setitem(sys.modules, home, module := ModuleType(home))
            module.ConfigArgumentMerger = merger  # type: ignore[attr-defined]
            assert engine.read_config(Mock(), ["--config", "f"]) == ["--model-path", "merged"]
    assert engine.read_config(Mock(), ["--x"]) == ["--x"]


def test_plugins_are_loaded_where_there_are_any(stub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sglang.srt.plugins", module := ModuleType("sglang.srt.plugins"))
    module.load_plugins = load = Mock()  # type: ignore[attr-defined]
    SglangEngine()
    load.assert_called_once_with()


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--engine", "vllm"], "invalid choice: 'vllm'"),
        (["--engine", "sim", "--router-dp-worker-base-port", "70000"], "expected 1..65535"),
        (["--engine", "sim", "--router-worker-stop-timeout-secs", "-1"], "expected 0 or more"),
        (["--engine", "sim", "--tp-size", "2"], "unrecognized arguments: --tp-size 2"),
        (["--engine", "sim", "--router-prefill-workers", "1"], "give --router-decode-workers, too"),
        (["--engine", "sim", "--router-decode-workers", "1"], "give --router-prefill-workers, too"),
        ("--engine sim --router-prefill-workers 1 --router-decode-workers 0".split(), "decode-workers: expected 1 or"),
        ("--engine sim --router-prefill-workers -1 --router-decode-workers 1".split(), "prefill-workers: expected 1"),
    ],
)
def test_bad_flags_are_usage_errors(flags: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(flags) == 2
    assert problem in capsys.readouterr().err


def test_simulated_servers_take_the_simulators_options() -> None:
    _, (group,) = launch_server._parse("--engine sim --dp-size 3 --page-size 4 --fault-count 2".split())
    servers = group.server_args
    assert isinstance(servers, SimServerArgs) and servers.dp_size == 3
    assert servers.options["page_size"] == 4 and servers.options["faults"]["count"] == 2
    assert not {"host", "port", "dp_size", "model"} & servers.options.keys()
    assert set(engines.ENGINES) == {"sglang", "sim"} and SimEngine().read_config(Mock(), ["--x"]) == ["--x"]
    assert "secret" not in repr(SimServerArgs(api_key="secret"))


def test_a_simulated_server_ends_on_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    handlers: dict[int, Any] = {}
    monkeypatch.setattr(engines.signal, "signal", handlers.__setitem__)
    monkeypatch.setattr(engines, "SimWorker", worker := Mock())
    worker.return_value.failure = None
    SimServerArgs(port=free_base(), options={"page_size": 4}).serve()
    assert worker.call_args.kwargs["page_size"] == 4
    handlers[signal.SIGTERM](signal.SIGTERM, None)
    worker.return_value.stop.assert_called_once_with()


# --- parts


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_below_the_lines() -> None:
    console = Console(screen := Terminal())
    console.show(1, 3, 4.2)
    bar = f"[{'#' * 10}{'.' * 20}] 1/3 workers ready, 4 s"
    assert screen.getvalue() == bar
    console.line("news")
    assert screen.getvalue().endswith(f"\rnews\n{bar}")
    console.clear()
    assert screen.getvalue().endswith(f"\r{' ' * len(bar)}\r")
    before = screen.getvalue()
    console.clear()
    assert screen.getvalue() == before


def test_elsewhere_there_are_lines_alone_and_a_closed_stream_is_no_problem() -> None:
    console = Console(screen := io.StringIO())
    console.show(1, 3, 4.2)
    console.line("news")
    assert screen.getvalue() == "news\n"
    screen.close()
    console.line("unheard")


def test_hang_up_that_does_something_else_is_no_stop() -> None:
    stop, reloads = StopSignals(), list[int]()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    stop.install()
    try:
        stop.defer()
        stop.on_hang_up = lambda: reloads.append(1) is None
        os.kill(os.getpid(), signal.SIGHUP)
        wait_for(lambda: reloads, "the signal")
        assert stop.received == []
        stop.on_hang_up = lambda: False
        os.kill(os.getpid(), signal.SIGHUP)
        wait_for(lambda: stop.received, "the signal")
        assert stop.exit_code == 128 + signal.SIGHUP
    finally:
        stop.restore()
        # They are ignored after a stop; the tests that follow, and their processes, need them.
        for number, handler in before.items():
            signal.signal(number, handler)


def test_signals_end_the_program_until_they_are_deferred() -> None:
    before = signal.getsignal(signal.SIGTERM)
    stop = StopSignals()
    stop.install()
    try:
        with pytest.raises(SystemExit) as exit_:
            os.kill(os.getpid(), signal.SIGTERM)
        assert exit_.value.code == 143 == stop.exit_code
        with pytest.raises(SystemExit):  # it was not heard of the first time
            stop.defer()
        stop.received.clear()
        stop.defer()
        stop.on_third = third = Mock()
        for count in range(1, 4):
            assert not third.called
            os.kill(os.getpid(), signal.SIGINT)
            stop.wait(5.0)
            assert stop.received == [signal.SIGINT] * count
        third.assert_called_once_with()
        stop.wait(0.0)
    finally:
        stop.received.clear()
        stop.restore()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("code", "words", "exit_code"),
    [
        (0, "ended with exit code 0", 1),
        (7, "ended with exit code 7", 7),
        (-9, "was ended by SIGKILL", 137),
        (-63, "was ended by signal 63", 191),
    ],
)
def test_a_workers_end_is_put_into_words_and_an_exit_code(code: int, words: str, exit_code: int) -> None:
    assert supervisor._ending(code) == words
    assert supervisor._as_exit_code(code) == exit_code


def test_long_lines_and_carriage_returns_reach_the_tail() -> None:
    process = launch_server.mp.Process(target=print, args=("a\rb\n" + "x" * 20000,))
    process.start()
    process.join(20.0)
    assert process.exitcode == 0 and not process.is_alive()
    process.sweep()
    lines = process.tail()
    assert lines[:2] == ["a", "b"] and "".join(lines[2:]) == "x" * 20000


def test_a_worker_whose_launcher_is_gone_does_not_start() -> None:
    """Between its start and the moment the kernel knows, the launcher may die: the child looks itself."""
    code = "from sgl_model_gateway._launcher.process import child_main; child_main(1 << 22)"
    assert subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL).returncode == 1


def test_the_package_is_found_where_the_launcher_found_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "")
    process = launch_server.mp.Process(target=os.getcwd)
    process.start()
    process.join(20.0)
    assert process.exitcode == 0, process.tail()


def test_last_words_are_heard_without_a_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    process = launch_server.mp.Process(target=exec, args=("print('last words'); import os; os._exit(3)",))
    process.start()
    process.join(20.0)
    assert (process.exitcode, process.tail()) == (3, ["last words"])


def test_a_worker_imports_nothing_from_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "decoy.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    process = launch_server.mp.Process(target=exec, args=("import decoy",))
    process.start()
    process.join(20.0)
    assert process.exitcode == 1 and "No module named 'decoy'" in process.tail()[-1]


def test_a_process_without_a_reader_thread_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_process.threading.Thread, "start", Mock(side_effect=RuntimeError("no thread")))
    process = launch_server.mp.Process(target=print)
    with pytest.raises(RuntimeError, match="no thread"):
        process.start()
    assert process.exitcode == -signal.SIGKILL
    assert process._popen and process._popen.stdout
    process._popen.stdout.close()


def test_orphans_that_end_by_themselves_are_no_zombies() -> None:
    code = """
import subprocess
from sgl_model_gateway._launcher.process import adopt_orphans, adopted, reap_adopted
reap_adopted(set())  # there are no children at all
adopt_orphans(True)
orphan = int(subprocess.check_output(["sh", "-c", "sleep 0.2 >&- & echo $!"]))
own = subprocess.Popen(["true"])
assert adopted({own.pid}) == [orphan]
while adopted({own.pid}):
    reap_adopted({own.pid})
assert own.wait() == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)
