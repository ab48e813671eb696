"""The gateway's routing without the gateway: for schedulers, Ray actors and RL frameworks that send their own requests.

    policy = Policy("cache_aware")
    for url in ("http://gpu-1:30000", "http://gpu-2:30000"):
        policy.add_worker(url)

    with policy.route(text=prompt) as lease:
        for chunk in stream(lease.worker, prompt):
            lease.first_token()
            ...

A lease counts as load at its worker until it is released; that, and what was sent where, is all a policy knows.
Everything may be called from any thread. Mistakes are `ValueError`, `TypeError` and, for workers that are not there,
`KeyError`; `RuntimeError` means that no worker is ready.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypedDict, cast

from .sgl_model_gateway_rs import RoutingLease as Lease
from .sgl_model_gateway_rs import RoutingPolicy

__all__ = ["Lease", "Policy", "Ranked", "WorkerLoad"]


class Ranked(TypedDict):
    """A worker and what speaks for and against it, in tokens.

    `passed_over`: ranked last whatever its cost, because too much waits there or a guard excludes it.
    """

    worker: str
    matched_tokens: int
    queued_tokens: int
    cost: float
    passed_over: bool


class WorkerLoad(TypedDict):
    """What is in flight at a worker."""

    ready: bool
    requests: int
    decoding: int
    queued_tokens: int


class Policy:
    """A routing policy and the workers it chooses from.

    Tunables are those of the gateway's flags; `None` is the default, and leaves a guard of `cache_aware` off.
    `index_bytes` bounds the memory of its prefix index, `index_text` the bytes of prompts it may know (a token id
    counts four). With a `seed`, the same calls give the same choices.
    """

    def __init__(
        self,
        name: str = "cache_aware",
        workers: Iterable[str] = (),
        *,
        index_bytes: int | None = None,
        index_text: int | None = None,
        cache_threshold: float | None = None,
        balance_rel_threshold: float | None = None,
        balance_abs_threshold: int | None = None,
        bucket_adjust_interval_secs: int | None = None,
        assignment_mode: str | None = None,
        max_idle_secs: int | None = None,
        prefix_tokens: int | None = None,
        load_factor: float | None = None,
        seed: int | None = None,
    ) -> None:
        tunables = {
            "index_bytes": index_bytes,
            "index_text": index_text,
            "cache_threshold": cache_threshold,
            "balance_rel_threshold": balance_rel_threshold,
            "balance_abs_threshold": balance_abs_threshold,
            "bucket_adjust_interval_secs": bucket_adjust_interval_secs,
            "assignment_mode": assignment_mode,
            "max_idle_secs": max_idle_secs,
            "prefix_tokens": prefix_tokens,
            "load_factor": load_factor,
            "seed": seed,
        }
        self._policy = RoutingPolicy(name, **{key: value for key, value in tunables.items() if value is not None})
        if isinstance(workers, str):
            raise TypeError("workers is a list of URLs, not one")
        for url in workers:
            self.add_worker(url)

    @property
    def name(self) -> str:
        """The policy's name."""
        return self._policy.name

    @property
    def workers(self) -> list[str]:
        """The workers' URLs, in order."""
        return self._policy.workers

    def add_worker(self, url: str) -> None:
        """A new worker, ready, its cache empty; `ValueError` if it is there already."""
        self._policy.add_worker(url)

    def remove_worker(self, url: str) -> None:
        """It is gone, and so is what was known of its cache. Leases of requests still there can be released later."""
        self._policy.remove_worker(url)

    def set_ready(self, url: str, ready: bool) -> None:
        """Only ready workers are chosen; one that is not keeps what is known of its cache."""
        self._policy.set_ready(url, ready)

    def flush_worker(self, url: str) -> None:
        """Its cache is empty now: it restarted, was flushed, or got new weights."""
        self._policy.flush_worker(url)

    def route(
        self,
        text: str | None = None,
        tokens: Iterable[int] | None = None,
        key: str | None = None,
        exclude: Sequence[str] = (),
    ) -> Lease:
        """Chooses a worker for a prompt and counts the request there.

        `key` keeps requests together under policies that go by keys; `exclude` names workers not to choose, such as
        those already tried. Use text or tokens, but the same one for prompts that share prefixes.
        """
        return self._policy.route(_prompt(text, tokens), key, list(exclude))

    def explain(
        self, text: str | None = None, tokens: Iterable[int] | None = None, key: str | None = None
    ) -> list[Ranked]:
        """What `route` would weigh, best first, changing nothing; empty for policies that have no costs to show."""
        return cast("list[Ranked]", self._policy.explain(_prompt(text, tokens), key))

    def loads(self) -> dict[str, WorkerLoad]:
        """What is in flight at every worker, by URL."""
        return cast("dict[str, WorkerLoad]", self._policy.loads())

    def __repr__(self) -> str:
        return f"<Policy {self.name}: {len(self.workers)} workers>"


def _prompt(text: str | None, tokens: Iterable[int] | None) -> str | Iterable[int] | None:
    if text is None:
        if isinstance(tokens, (str, bytes)):
            raise TypeError("tokens are token ids; text goes into text=")
        return tokens
    if tokens is not None:
        raise ValueError("give text or tokens, not both")
    if not isinstance(text, str):
        raise TypeError("text is a str; token ids go into tokens=")
    return text
