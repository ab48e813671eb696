"""The faults of `test_chaos.py` against prefill/decode pairs: `make chaos SEED=7 FAULTS=10000`.

A prefill and a decode worker are left alone. Answers fit their prompts. In the end no worker holds a request: the
gateway has ended them, for workers take ten minutes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from support.client import Reply, get_json
from support.ports import free_port
from support.waiting import wait_for
from support.workers import Worker

from .test_chaos import FAULTS, FLAGS, FLEET, LARGER_THAN_BUFFERS, SEED, Chaos, check, schedule

PREFILL = 2
SLOW = {"decode_step_base_ms": 3, "disconnect_check_s": 600, "bootstrap_timeout_s": 600, "waiting_timeout_s": 600}


@dataclass
class PairChaos(Chaos):
    # Two pairs are enough to know.
    poisoned: ClassVar[range] = range(2, 5)
    texts: dict[str, str] = field(default_factory=dict)
    """The longest answer to each prompt; the text follows from the prompt."""

    def to_spare(self) -> set[int]:
        pools = {*range(PREFILL)}, {*range(PREFILL, FLEET)}
        return {slot for pool in pools if len(pool - self.ill) > 1 for slot in pool - self.ill}

    def answered(self, body: dict[str, Any], reply: Reply) -> None:
        if len(reply.body) >= LARGER_THAN_BUFFERS:
            return  # what a worker says that is to be read slowly
        if body["stream"]:
            assert reply.finished_stream(), reply
        text = json.loads(reply.events()[-2])["text"] if body["stream"] else reply.json()["text"]
        short, long = sorted((text, self.texts.get(body["text"], "")), key=len)
        assert long.startswith(short), (body, reply)
        self.texts[body["text"]] = long

    async def stall(self, worker: Worker, size: float) -> None:
        """Only a decode worker has answers that a client may leave unread."""
        if worker in self.fleet[PREFILL:]:
            await super().stall(worker, size)


def legs(worker: Worker) -> Iterator[int]:
    """The requests that a worker has, by its own account."""
    rank = get_json(f"{worker.url}/v1/loads")["loads"][0]
    yield from (rank["num_running_reqs"], rank["num_waiting_reqs"])
    yield from (count for name, count in rank["disaggregation"].items() if name.endswith("_reqs"))


@pytest.mark.timeout(90 + FAULTS)
def test_no_request_is_lost_while_a_pair_is_well(workers, gateway):
    ports = [free_port() for _ in range(PREFILL)]
    roles = {"disaggregation_mode": "prefill"}, {"disaggregation_mode": "decode"}
    fleet = [worker for port in ports for worker in workers(1, disaggregation_bootstrap_port=port, **roles[0], **SLOW)]
    flags = [word for worker, port in zip(fleet, ports, strict=True) for word in ("--prefill", worker.url, str(port))]
    fleet += workers(FLEET - PREFILL, **roles[1], **SLOW)
    flags += [word for worker in fleet[PREFILL:] for word in ("--decode", worker.url)]
    door = gateway([], "--pd-disaggregation", *flags, *FLAGS).wait_ready(FLEET)
    chaos = PairChaos(door, fleet, SEED)
    with ExitStack() as stack:
        stack.callback(chaos.close)
        asyncio.run(chaos.run(schedule(SEED, FAULTS)))
        check(chaos)
        wait_for(lambda: not any(sum(legs(worker)) for worker in fleet), "no leg is left at the workers")
