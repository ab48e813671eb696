"""Forked children, sub-interpreters and values that contain themselves, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.waiting import wait_for

START = """
import os, sys, time
from sgl_model_gateway import Router
router = Router(worker_urls=[], host="127.0.0.1", port=0, prometheus_port=0, log_level="error").start_background()
"""


def run(code: str, limit: float = 20) -> str:
    """What a script prints; fails when it does not end well within `limit` seconds."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=limit)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_forked_child_that_exits_does_not_wait_for_the_parents_gateway() -> None:
    code = (
        START
        + """
begun = time.monotonic()
if os.fork() == 0:
    sys.exit(0)
_, status = os.wait()
print(status, time.monotonic() - begun < 1, router.running, router.stop(timeout=5))
"""
    )
    assert run(code).split() == ["0", "True", "True", "True"]


def test_forked_child_sees_no_running_gateway_and_may_start_its_own() -> None:
    code = (
        START
        + """
url = router.url
if os.fork() == 0:
    begun = time.monotonic()
    print(router.running, router.stop(timeout=9), router.wait(timeout=9), time.monotonic() - begun < 1)
    print(router.url == url)
    router.start_background()
    print(router.running, router.url != url, router.stop(timeout=5), flush=True)
    os._exit(0)
os.wait()
import urllib.request
print(urllib.request.urlopen(url + "/health", timeout=3).status, router.stop(timeout=5))
"""
    )
    assert run(code).split() == "False True True True True True True True 200 True".split()


MULTIPROCESSING = """
import multiprocessing, os, sys
from sgl_model_gateway import Router
if __name__ == "__main__":
    with Router(worker_urls=[], host="127.0.0.1", port=0, prometheus_port=0, log_level="error") as router:
        child = multiprocessing.get_context(sys.argv[1]).Process(target=os.getpid)
        child.start()
        child.join(10)
        print(child.exitcode, router.running)
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_child_of_multiprocessing_ends_while_the_parent_serves(tmp_path: Path, method: str) -> None:
    script = tmp_path / "main.py"
    script.write_text(MULTIPROCESSING)
    done = subprocess.run([sys.executable, str(script), method], capture_output=True, text=True, timeout=30)
    assert done.stdout.split() == ["0", "True"], done.stderr


NESTED = ["a = []; a.append(a)", "a = []\nfor _ in range(200000): a = [a]", "a = {}; a['x'] = a"]


@pytest.mark.parametrize("value", NESTED)
def test_value_nested_too_deep_is_a_value_error_that_names_the_option(value: str) -> None:
    code = f"""
from sgl_model_gateway import Router
{value}
try:
    Router(worker_urls=a)
except ValueError as error:
    print(error)
import os
os._exit(0)
"""
    assert "worker_urls" in run(code)


def test_sub_interpreter_is_refused_and_the_process_ends() -> None:
    code = """
import _xxsubinterpreters as interpreters
one = interpreters.create()
try:
    interpreters.run_string(one, "import sgl_model_gateway.sgl_model_gateway_rs")
except interpreters.RunFailedError as error:
    print("ImportError" in str(error), "main interpreter" in str(error))
"""
    pytest.importorskip("_xxsubinterpreters")
    assert run(code).split() == ["True", "True"]


ORPHAN = """
import multiprocessing, os, sys, time

def serve(channel):
    from sgl_model_gateway import Router
    router = Router(worker_urls=[], host="127.0.0.1", port=0, prometheus_port=0, log_level="error")
    import threading
    def announce():
        while not router.running:
            time.sleep(0.01)
        channel.send(os.getpid())
    threading.Thread(target=announce, daemon=True).start()
    router.start()

if __name__ == "__main__":
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=serve, args=(theirs,))
    child.start()
    print(ours.recv(), flush=True)
    os._exit(0)  # as a trainer that is killed: nothing is cleaned up
"""


def test_gateway_in_a_child_whose_parent_died_stops(tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(ORPHAN)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=30)
    child = Path("/proc") / done.stdout.strip()
    wait_for(lambda: not child.exists(), "the gateway's process has ended", 15)
