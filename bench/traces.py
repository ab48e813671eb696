"""Traces of other shapes than a recorded one: `python bench/traces.py agents|documents|examples|tools > trace.jsonl`.

12 000 requests in the Mooncake format, the same every time. `agents`: long sessions that begin with one of twelve
system prompts and grow turn by turn, with minutes of 2.5 times the traffic. `documents`: short questions about 2 000
documents, some asked for often. `examples`: seven of ten requests begin with one of three long sets of examples, the
others share nothing. `tools`: forty tool prompts of uneven popularity, each used in one to a few steps.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator

REQUESTS = 12_000
BLOCK = 512
Prompt = list[int]


class Ids:
    """Blocks that no earlier request has."""

    def __init__(self) -> None:
        self.used = 0

    def take(self, count: int) -> Prompt:
        self.used += count
        return list(range(self.used - count, self.used))


def agents(chance: random.Random, ids: Ids) -> Iterator[Prompt]:
    systems = [ids.take(chance.choice([4, 12, 40])) for _ in range(12)]
    popularity = [1 / (rank + 1) for rank in range(12)]
    sessions: list[Prompt] = []
    while True:
        if sessions and chance.random() < 0.85:
            session = chance.choice(sessions[-200:])
        else:
            session = chance.choices(systems, popularity)[0] + ids.take(chance.choice([1, 2, 8, 30]))
            sessions.append(session)
        session += ids.take(chance.choice([1, 1, 2, 3, 6]))
        if len(session) > 250:
            sessions.remove(session)
        yield list(session)


def documents(chance: random.Random, ids: Ids) -> Iterator[Prompt]:
    known = [ids.take(chance.choice([8, 16, 32, 64])) for _ in range(2000)]
    popularity = [1 / (rank + 1) ** 0.9 for rank in range(2000)]
    while True:
        yield chance.choices(known, popularity)[0] + ids.take(1)


def examples(chance: random.Random, ids: Ids) -> Iterator[Prompt]:
    sets = [ids.take(40) for _ in range(3)]
    while True:
        if chance.random() < 0.7:
            yield chance.choice(sets) + ids.take(chance.randint(1, 4))
        else:
            yield ids.take(chance.randint(5, 40))


def tools(chance: random.Random, ids: Ids) -> Iterator[Prompt]:
    prompts = [ids.take(chance.choice([2, 4, 8, 12, 20, 30])) for _ in range(40)]
    popularity = [1 / (rank + 1) ** 1.1 for rank in range(40)]
    under_way: list[Prompt] = []
    while True:
        if under_way and chance.random() < 0.45:
            task = under_way.pop(chance.randrange(len(under_way)))
        else:
            task = chance.choices(prompts, popularity)[0] + ids.take(chance.choice([1, 1, 2, 4, 8, 20]))
        task = task + ids.take(chance.choice([1, 1, 1, 2, 4]))
        if chance.random() < 0.5:
            under_way = [*under_way, task][-300:]
        yield task


# What makes the prompts, and the mean milliseconds between two of them.
KINDS: dict[str, tuple[Callable[[random.Random, Ids], Iterator[Prompt]], float]] = {
    "agents": (agents, 250),
    "documents": (documents, 220),
    "examples": (examples, 90),
    "tools": (tools, 100),
}


def lines(kind: str) -> Iterator[str]:
    """The trace, a JSON object per line."""
    chance = random.Random(kind)
    make, gap_ms = KINDS[kind]
    prompts = make(chance, Ids())
    now = 0.0
    for _ in range(REQUESTS):
        busy = kind == "agents" and int(now / 60_000) % 3 == 0
        now += chance.expovariate(2.5 / gap_ms if busy else 1 / gap_ms)
        prompt = next(prompts)
        yield json.dumps(
            {
                "timestamp": int(now),
                "input_length": len(prompt) * BLOCK - chance.randrange(500),
                "output_length": chance.choice([20, 100, 400]),
                "hash_ids": prompt,
            }
        )


if __name__ == "__main__":
    for line in lines(sys.argv[1]):
        print(line)
