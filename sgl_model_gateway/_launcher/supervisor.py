"""Supervises the workers behind a gateway: start, readiness, restarts, and a clean end."""

from __future__ import annotations

import json
import logging
import random
import signal
import socket
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from http.client import HTTPException
from typing import Any, Protocol
from urllib.parse import urlsplit

from .console import Console
from .process import Process, adopt_orphans, adopted, end_adopted, reap_adopted, signal_group
from .signals import StopSignals
from .watchdog import Watchdog

logger = logging.getLogger("router")

_POLL = 0.1  # seconds between looks while a worker is on its way
_IDLE = 1.0  # seconds between looks while all are ready; signals and the end of workers wake it at once
_HEARTBEAT = 10.0  # seconds between progress lines where there is no terminal
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_STABLE = 60.0  # seconds up after which a crash counts as the first one
_ASK_TIMEOUT = 1.0
_FORCED_DRAIN = 5.0
_SHOWN_LINES = 20


class Gateway(Protocol):
    """What the supervisor needs of `Router`."""

    @property
    def url(self) -> str: ...
    @property
    def running(self) -> bool: ...
    def suspect(self, worker_url: str) -> bool: ...
    def stop(self, timeout: float | None = 0.0) -> bool: ...
    def wait(self, timeout: float | None = None) -> bool: ...


class State(Enum):
    """State of a worker."""

    LOADING = "loading"
    READY = "ready"
    RESTING = "waiting for its restart"
    GONE = "gone"


@dataclass
class Worker:
    """One worker and its current process."""

    rank: int
    url: str
    launch: Callable[[], Process]
    role: str = ""  # prefill or decode in pairs
    process: Process | None = None
    state: State = State.GONE
    since: float = 0.0  # when that state began
    crashes: int = 0  # in a row
    was_ready: bool = False
    pause: float = 0.0  # seconds to rest

    @property
    def name(self) -> str:
        """Role and rank, as log lines have them."""
        return f"{self.role} worker {self.rank}".lstrip()


@dataclass
class Limits:
    """Time limits, seconds, and whether a crashed worker is restarted."""

    startup: float = 1800.0
    drain: float = 180.0
    stop: float = 30.0
    restart: bool = True


@dataclass(eq=False)
class WorkerFailed(Exception):
    """A worker did not come up, or none is left."""

    message: str
    exit_code: int
    lines: list[str] = field(default_factory=list)


class Supervisor:
    """Runs until a signal, a worker that fails to load, or the end of the gateway. For one use."""

    def __init__(
        self, gateway: Gateway, workers: list[Worker], limits: Limits, stop: StopSignals, console: Console
    ) -> None:
        self.gateway, self.workers, self.limits = gateway, workers, limits
        self.api_key: str | None = None
        self._stop, self._console = stop, console
        self._watchdog: Watchdog | None = None
        self._others: set[int] = set()  # children that belong to other parts of the program
        self._started = time.monotonic()
        self._reported = self._started
        self._all_ready = self._ended = False

    def run(self) -> int:
        """Serves; returns the exit code: 128 + signal, or the code of the worker that did not load.

        On return nothing is left of workers and gateway, whatever is raised.
        """
        self._stop.on_third = self._kill
        self._others = set(adopted(set()))
        adopt_orphans(True)
        try:
            return self._serve()
        except WorkerFailed as failure:
            self._console.clear()
            logger.error(f"{failure.message}; stopping everything")
            self._end()
            self._report(failure)
            return failure.exit_code
        finally:
            self._console.clear()
            self._end()

    def _serve(self) -> int:
        self._watchdog = Watchdog()
        for worker in self.workers:
            if not self._stop.received:
                self._launch(worker)
        while not self._stop.received:
            self._look()
            self._stop.wait(_IDLE if self._all_ready else _POLL)
        self._console.clear()
        logger.info(f"{signal.Signals(self._stop.received[0]).name}: draining, then stopping the workers")
        return self._stop.exit_code

    # --- one look

    def _look(self) -> None:
        now = time.monotonic()
        reap_adopted(self._own())
        for worker in self.workers:
            if worker.state in (State.LOADING, State.READY):
                self._look_after(worker, now)
            elif worker.state is State.RESTING and now - worker.since >= worker.pause:
                self._relaunch(worker, now)
        if not self.gateway.running:
            raise WorkerFailed("the gateway has ended by itself", 1)
        if any(worker.state is State.LOADING for worker in self.workers):
            self._look_for_ready(now)
        for role in {worker.role: None for worker in self.workers}:
            if all(worker.state is State.GONE for worker in self.workers if worker.role == role):
                raise WorkerFailed(" ".join(filter(None, ("no", role, "worker is left"))), 1)
        self._all_ready = all(worker.state in (State.READY, State.GONE) for worker in self.workers)
        self._show(now)

    def _look_after(self, worker: Worker, now: float) -> None:
        assert worker.process is not None
        code = worker.process.exitcode
        if code is None and worker.state is State.LOADING and now - worker.since > self.limits.startup:
            logger.error(f"{worker.name} is not ready after {self.limits.startup:.0f} s, stopping it")
            signal_group(_pid(worker.process), signal.SIGKILL)
            worker.process.join(_FORCED_DRAIN)
            code = worker.process.exitcode
        if code is not None:
            # After it is reaped its id may belong to another process.
            process, worker.process = worker.process, None
            self._bury(process)
            self._died(worker, process, code, now)

    def _died(self, worker: Worker, process: Process, code: int, now: float) -> None:
        how = f"{worker.name} ({worker.url}, pid {process.pid}) {_ending(code)}"
        self.gateway.suspect(worker.url)
        if not worker.was_ready:
            taken = "" if _is_free(worker.url) else f"; another process listens at {worker.url}"
            raise WorkerFailed(f"{how} while loading{taken}", _as_exit_code(code), process.tail())
        if worker.state is State.READY and now - worker.since > _STABLE:
            worker.crashes = 0
        worker.state, worker.since = (State.RESTING if self.limits.restart else State.GONE), now
        worker.crashes += 1
        worker.pause = min(_FIRST_PAUSE * 2 ** (worker.crashes - 1), _LONGEST_PAUSE) * random.uniform(0.8, 1.2)
        fate = f"restarting it in {worker.pause:.1f} s" if self.limits.restart else "it is not restarted"
        logger.error(f"{how}; {fate}")

    def _look_for_ready(self, now: float) -> None:
        ready = self._ready_urls()
        for worker in self.workers:
            if worker.state is State.LOADING and worker.url in ready and not _is_free(worker.url):
                seconds, worker.state, worker.since = now - worker.since, State.READY, now
                worker.was_ready = True
                count = sum(one.state is State.READY for one in self.workers)
                logger.info(
                    f"{worker.name} ready at {worker.url} after {seconds:.1f} s ({count} of {len(self.workers)})"
                )

    def _ready_urls(self) -> set[str]:
        """URLs of the workers that the gateway sends requests to; empty while it does not respond."""
        headers = {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        request = urllib.request.Request(f"{self.gateway.url}/workers", headers=headers)
        try:
            with _DIRECT.open(request, timeout=_ASK_TIMEOUT) as response:
                listed: list[dict[str, Any]] = json.load(response)["workers"]
        except (OSError, HTTPException, ValueError, KeyError):
            return set()
        return {worker["url"] for worker in listed if worker["is_healthy"]}

    def _show(self, now: float) -> None:
        ready, total = sum(one.state is State.READY for one in self.workers), len(self.workers)
        seconds = now - self._started
        if ready == total and self._reported:
            self._console.clear()
            logger.info(f"gateway at {self.gateway.url}, all {total} workers ready after {seconds:.1f} s")
            self._reported = 0.0
        elif self._reported:
            self._console.show(ready, total, seconds)
            if not self._console.is_terminal and now - self._reported > _HEARTBEAT:
                logger.info(f"{ready} of {total} workers ready after {seconds:.0f} s")
                self._reported = now

    # --- processes

    def _launch(self, worker: Worker) -> None:
        worker.process = worker.launch()
        worker.process.sink = lambda line: self._console.line(f"[{worker.name}] {line}")
        worker.state, worker.since = State.LOADING, time.monotonic()
        assert self._watchdog is not None
        self._watchdog.watch(_pid(worker.process))
        logger.info(f"{worker.name} started at {worker.url}, pid {worker.process.pid}")

    def _relaunch(self, worker: Worker, now: float) -> None:
        """Restarts a worker. A failure (no memory, no process id) must not end the workers that run."""
        try:
            self._launch(worker)
        except (OSError, RuntimeError) as error:
            worker.since, worker.pause = now, _LONGEST_PAUSE
            logger.error(f"{worker.name} cannot be started: {error}; next try in {worker.pause:.0f} s")

    def _bury(self, process: Process) -> None:
        """Ends the processes that a dead worker has left."""
        process.sweep()
        if self._watchdog:
            self._watchdog.forget(_pid(process))

    def _kill(self) -> None:
        for process in self._processes():
            if process.is_alive():
                signal_group(_pid(process), signal.SIGKILL)

    def _processes(self) -> list[Process]:
        return [worker.process for worker in self.workers if worker.process and worker.process.pid]

    def _own(self) -> set[int]:
        """Process ids of children that are not adopted orphans."""
        watchdog = {self._watchdog.pid} if self._watchdog else set()
        return self._others | watchdog | {_pid(process) for process in self._processes()}

    # --- the end

    def _end(self) -> None:
        """Ends the gateway, then the workers, then the processes they left, within the limits. Runs once."""
        if self._ended:
            return
        self._ended = True
        try:
            self._drain()
        finally:
            processes = self._processes()
            end_groups(processes, self.limits.stop)
            for process in processes:
                if not process.is_alive():
                    self._bury(process)
            if self._watchdog:
                end_adopted(self._others | {self._watchdog.pid})
                self._watchdog.close()
            adopt_orphans(False)

    def _drain(self) -> None:
        deadline = time.monotonic() + self.limits.drain + 1
        self.gateway.stop(0.0)
        # A second signal, or the end of the workers, makes waiting pointless.
        while len(self._stop.received) == 1 and time.monotonic() < deadline:
            if self.gateway.wait(_POLL):
                return
        self.gateway.stop(_FORCED_DRAIN)

    def _report(self, failure: WorkerFailed) -> None:
        for line in failure.lines[-_SHOWN_LINES:]:
            self._console.line(f"    {line}")
        self._console.fail(failure.message)


# Proxies of the environment are for the world outside.
_DIRECT = urllib.request.build_opener(
    urllib.request.ProxyHandler({}),
    # Its own gateway on this machine, whose certificate names another host.
    urllib.request.HTTPSHandler(context=ssl._create_unverified_context()),
)


class GroupLeader(Protocol):
    """A process that leads its group: `process.Process`, or `multiprocessing.Process` after `os.setpgrp`."""

    @property
    def pid(self) -> int | None: ...
    def is_alive(self) -> bool: ...
    def join(self, timeout: float | None = None) -> None: ...


def end_groups(processes: Iterable[GroupLeader], timeout: float) -> None:
    """Sends SIGTERM to every process group, and SIGKILL to those left after `timeout` seconds in all."""
    processes = list(processes)
    for process in processes:
        if process.is_alive():
            signal_group(_pid(process), signal.SIGTERM)
    deadline = time.monotonic() + timeout
    for process in processes:
        process.join(timeout=max(0.0, deadline - time.monotonic()))
    for process in processes:
        if process.is_alive():
            logger.warning(f"pid {process.pid} did not end within {timeout:.0f} s, killing its group")
            signal_group(_pid(process), signal.SIGKILL)
            process.join(timeout=_FORCED_DRAIN)


def _pid(process: GroupLeader) -> int:
    assert process.pid is not None
    return process.pid


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def _as_exit_code(code: int) -> int:
    """Exit code as a shell reports it; a worker that ended with 0 counts as 1."""
    return 128 - code if code < 0 else code or 1


def _is_free(url: str) -> bool:
    """Whether no process listens there."""
    where = urlsplit(url)
    try:
        socket.create_connection((where.hostname or "", where.port or 0), timeout=_ASK_TIMEOUT).close()
    except OSError:
        return True
    return False
