"""Fifty launchers, each ended by a signal at a random moment. Nothing may be left, and the exit code names it."""

from __future__ import annotations

import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from support.launcher import Launcher, nothing_is_left

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL)
PHASES = ("start-up", "serving", "shutdown")
ROUNDS = 50
BATCH = 10
LIMIT = 10.0  # seconds until the launcher has ended, and again until everything it started has


def one_round(number: int) -> None:
    """What is random is only *when*: every pair of signal and phase comes up."""
    chance = random.Random(number)
    victim, phase = SIGNALS[number % 4], PHASES[number % 3]
    stubborn = {"STUB_STUBBORN": "1"} if number % 5 == 0 else {}
    # Every other dozen, which has all signals and phases, starts a pair.
    fleet = "--router-prefill-workers 1 --router-decode-workers 1" if number // 12 % 2 else "--dp-size 2"
    launcher = Launcher(
        *(*fleet.split(), "--router-worker-stop-timeout-secs", "1"),
        engine="sglang" if number % 2 else "sim",
        environment=stubborn,
    )
    try:
        first = victim
        if phase == "start-up":
            time.sleep(chance.uniform(0.0, 0.5))
        else:
            launcher.url()
            time.sleep(chance.uniform(0.0, 0.1))
        if phase == "shutdown":
            first = signal.SIGTERM
            launcher.process.send_signal(first)
            time.sleep(chance.uniform(0.0, 0.1))
        code = launcher.end(victim, LIMIT)
        check_code(launcher, code, first, victim)
        ports = [launcher.base_port, launcher.base_port + 100, launcher.bootstrap_port]
        nothing_is_left(launcher, ports, LIMIT)
    except BaseException as error:
        raise AssertionError(f"round {number}, {victim.name} during {phase}:\n{launcher.text()}") from error
    finally:
        launcher.destroy()


def check_code(launcher: Launcher, code: int, first: int, last: int) -> None:
    allowed = {128 + first}
    if last == signal.SIGKILL:
        allowed = {-signal.SIGKILL} if first == last else {-signal.SIGKILL, 128 + first}
    elif not launcher.text() or "KeyboardInterrupt" in launcher.text():
        allowed.add(-first)  # before the program could do anything: a shell sees the same code
        if "/sgl_model_gateway/" not in launcher.text():
            allowed.add(1)  # what Python ends with when it is interrupted on its way to the program
    assert code in allowed, f"exit code {code}, expected {sorted(allowed)}"


@pytest.mark.parametrize("start", range(0, ROUNDS, BATCH))
def test_a_launcher_ended_at_any_moment_leaves_nothing(start: int) -> None:
    with ThreadPoolExecutor(2) as pool:
        for outcome in [pool.submit(partial(one_round, number)) for number in range(start, start + BATCH)]:
            outcome.result()
