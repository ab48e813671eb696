"""The gateway's routing without the gateway: for schedulers, Ray actors and RL frameworks that send their own requests.

Usage:

    policy = Policy("cache_aware")
    for url in ("http://gpu-1:30000", "http://gpu-2:30000"):
        policy.add_worker(url)

    with policy.route(text=prompt) as lease:
        for chunk in stream(lease.worker, prompt):
            lease.first_token()
            ...

A lease counts as load at its worker until it is released; that, and what was sent where, is all a policy knows.
Everything may be called from any thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypedDict, cast

from .sgl_model_gateway_rs import RoutingLease as Lease
from .sgl_model_gateway_rs import RoutingPolicy

__all__ = ["Lease", "Policy", "Ranked", "WorkerLoad"]


class Ranked(TypedDict):
    """A worker as a policy weighs it.

    - `worker`: its URL.
    - `matched_tokens`: tokens of the prompt that its cache is believed to hold.
    - `queued_tokens`: prompt tokens that wait there.
    - `cost`: what the prompt costs there, in tokens; the lowest is chosen.
    - `passed_over`: ranked last whatever its cost, because too much waits there or a guard excludes it.
    """

    worker: str
    matched_tokens: int
    queued_tokens: int
    cost: float
    passed_over: bool


class WorkerLoad(TypedDict):
    """What is in flight at a worker.

    - `ready`: whether it is chosen from.
    - `requests`: leases that are not released.
    - `decoding`: those of them whose first token has come.
    - `queued_tokens`: prompt tokens of the others.
    """

    ready: bool
    requests: int
    decoding: int
    queued_tokens: int


class Policy:
    """A routing policy and the workers it chooses from.

    Usage:

        policy = Policy("cache_aware", ["http://gpu-1:30000", "http://gpu-2:30000"])
        with policy.route(tokens=prompt_ids) as lease:
            send(lease.worker)

    Tunables are those of the gateway's flags. `None` is the default, and leaves a guard of `cache_aware` off.

    Args:
        name: a policy as `--policy` takes it.
        workers: URLs of workers, all ready. Any other names will do: none is contacted.
        index_bytes: memory of the prefix index, bytes.
        index_text: prompt text the prefix index may hold, bytes; a token id counts four.
        cache_threshold: least share of a prompt (0..1) that counts as a match.
        balance_rel_threshold: load ratio (at least 1) that counts as imbalance together with the absolute gap.
        balance_abs_threshold: load gap that counts as imbalance: requests; for `bucket` prompt bytes.
        bucket_adjust_interval_secs: pause between recalculations of the boundaries of `bucket`, seconds.
        assignment_mode: placement of a new key by `manual`, as `--assignment-mode` takes it.
        max_idle_secs: time after which `manual` forgets an idle key, seconds.
        prefix_tokens: leading tokens of a prompt that make the key of `prefix_hash` (at least 1).
        load_factor: multiple of the mean load (at least 1) above which hash rings pass a worker over.
        seed: makes equal calls give equal choices.

    Raises:
        ValueError: an unknown policy, a tunable out of range, or a worker listed twice.
        TypeError: `workers` is one string.
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
        """Adds a worker, ready, its cache empty.

        Args:
            url: its URL or name.

        Raises:
            ValueError: it is there already.
        """
        self._policy.add_worker(url)

    def remove_worker(self, url: str) -> None:
        """Removes a worker and what was known of its cache. Its open leases can still be released.

        Raises:
            KeyError: there is no such worker.
        """
        self._policy.remove_worker(url)

    def set_ready(self, url: str, ready: bool) -> None:
        """Marks a worker as ready or not. Only ready ones are chosen; what is known of its cache stays.

        Raises:
            KeyError: there is no such worker.
        """
        self._policy.set_ready(url, ready)

    def flush_worker(self, url: str) -> None:
        """Forgets what is known of a worker's cache: it restarted, was flushed, or got new weights.

        Raises:
            KeyError: there is no such worker.
        """
        self._policy.flush_worker(url)

    def route(
        self,
        text: str | None = None,
        tokens: Iterable[int] | None = None,
        key: str | None = None,
        exclude: Sequence[str] = (),
    ) -> Lease:
        """Chooses a worker for a prompt and counts the request there.

        Args:
            text: the prompt as text; or
            tokens: the prompt as token ids. Prompts that share prefixes need the same of the two.
            key: keeps requests together under policies that go by keys.
            exclude: URLs of workers not to choose, such as those already tried.

        Returns:
            A lease, which is load at its worker until it is released; a context manager.

        Raises:
            RuntimeError: no worker is ready, those in `exclude` aside.
            ValueError: text and tokens are both given, or a token id is not from 0 to 2^32-1.
            TypeError: text is not a string, or tokens are not token ids.
        """
        return self._policy.route(_prompt(text, tokens), key, list(exclude))

    def explain(
        self, text: str | None = None, tokens: Iterable[int] | None = None, key: str | None = None
    ) -> list[Ranked]:
        """The workers as `route` would weigh them, best first. Changes nothing.

        Arguments and errors are those of `route`. Empty for policies without costs.
        """
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
