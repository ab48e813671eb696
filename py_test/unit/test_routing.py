"""`sgl_model_gateway.routing`: the gateway's policies as a library."""

from __future__ import annotations

import gc
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from sgl_model_gateway.routing import Lease, Policy
from sgl_model_gateway.sgl_model_gateway_rs import PolicyType, routing_option_defaults

WORKERS = [f"http://gpu-{number}:30000" for number in range(4)]
IDLE = {"ready": True, "requests": 0, "decoding": 0, "queued_tokens": 0}
TEXT = "You are a helpful assistant. " * 40


def fleet(name: str = "cache_aware", **tunables: Any) -> Policy:
    return Policy(name, WORKERS, **({"seed": 7} | tunables))


# --- routing


def test_a_lease_counts_until_it_is_released() -> None:
    policy = fleet()
    lease = policy.route(text=TEXT)
    tokens = len(TEXT) // 4
    assert lease.worker in WORKERS and (lease.prompt_tokens, lease.matched_tokens) == (tokens, 0)
    assert policy.loads()[lease.worker] == {"ready": True, "requests": 1, "decoding": 0, "queued_tokens": tokens}
    for _ in range(2):
        lease.first_token()
        assert policy.loads()[lease.worker] == {"ready": True, "requests": 1, "decoding": 1, "queued_tokens": 0}
    for _ in range(2):
        lease.release()
        assert policy.loads() == dict.fromkeys(WORKERS, IDLE) and lease.released
    lease.first_token()
    assert policy.loads()[lease.worker] == IDLE
    assert lease.worker in repr(lease)


def test_a_lease_ends_with_its_block_or_its_object() -> None:
    policy = fleet()
    with pytest.raises(ZeroDivisionError), policy.route(tokens=[1, 2, 3]) as lease:
        assert isinstance(lease, Lease) and not lease.released
        raise ZeroDivisionError
    assert lease.released
    lost = policy.route(text=TEXT)
    assert policy.loads()[lost.worker]["requests"] == 1
    del lost
    gc.collect()
    assert policy.loads() == dict.fromkeys(WORKERS, IDLE)


def test_tokens_are_counted_exactly_and_found_again() -> None:
    policy, prompt = fleet(), list(range(100_000, 100_320))
    with policy.route(tokens=prompt) as first:
        assert (first.prompt_tokens, first.matched_tokens) == (320, 0)
    longer = [*prompt, *range(40)]
    with policy.route(tokens=longer) as second:
        assert second.worker == first.worker
        assert (second.prompt_tokens, second.matched_tokens) == (360, 320)
    with policy.route(tokens=(token + 1 for token in prompt)) as other:
        assert (other.prompt_tokens, other.matched_tokens) == (320, 0)
    with policy.route(tokens=[]) as nothing, policy.route() as neither:
        assert nothing.prompt_tokens == neither.prompt_tokens == 0


def test_text_is_found_again() -> None:
    policy = fleet()
    home = policy.route(text=TEXT).worker
    again = policy.route(text=TEXT + "What is new?")
    assert again.worker == home and 0 < again.matched_tokens <= again.prompt_tokens


def test_a_busy_worker_is_left_alone() -> None:
    policy = fleet()
    leases = [policy.route(text=f"{number} " + TEXT) for number in range(4)]
    assert {lease.worker for lease in leases} == set(WORKERS)


def test_only_ready_workers_are_chosen() -> None:
    policy = fleet("round_robin")
    for url in WORKERS[1:]:
        policy.set_ready(url, False)
    assert {policy.route().worker for _ in range(8)} == {WORKERS[0]}
    policy.set_ready(WORKERS[2], True)
    assert {policy.route().worker for _ in range(8)} == {WORKERS[0], WORKERS[2]}
    assert {policy.route(exclude=[WORKERS[0]]).worker for _ in range(8)} == {WORKERS[2]}
    with pytest.raises(RuntimeError, match="no worker is ready"):
        policy.route(exclude=WORKERS)
    assert policy.loads()[WORKERS[1]]["ready"] is False


def test_a_flushed_worker_has_no_matches() -> None:
    policy = fleet()
    home = policy.route(text=TEXT).worker
    policy.flush_worker(home)
    assert policy.route(text=TEXT).matched_tokens == 0
    home = policy.route(text=TEXT).worker
    policy.remove_worker(home)
    policy.add_worker(home)
    assert all(row["matched_tokens"] == 0 for row in policy.explain(text=TEXT) if row["worker"] == home)


def test_a_removed_workers_leases_can_be_released() -> None:
    policy = fleet()
    lease = policy.route(text=TEXT)
    policy.remove_worker(lease.worker)
    assert lease.worker not in policy.workers and lease.worker not in policy.loads()
    policy.add_worker(lease.worker)
    lease.first_token()
    lease.release()
    assert policy.loads() == dict.fromkeys(policy.workers, IDLE) and set(policy.workers) == set(WORKERS)


def test_explain_ranks_and_changes_nothing() -> None:
    policy = fleet()
    lease = policy.route(text=TEXT)
    lease.first_token()
    before = policy.explain(text=TEXT)
    assert before == policy.explain(text=TEXT) and len(before) == 4
    assert [row["cost"] for row in before] == sorted(row["cost"] for row in before)
    assert before[0]["worker"] == lease.worker and before[0]["matched_tokens"] > before[1]["matched_tokens"] == 0
    assert policy.route(text=TEXT).worker == lease.worker
    assert Policy("random", WORKERS).explain(text=TEXT) == [] == Policy().explain(text=TEXT)


def test_a_key_keeps_requests_together() -> None:
    policy = fleet("consistent_hashing")
    homes = {key: policy.route(key=key).worker for key in map(str, range(50))}
    assert all(policy.route(key=key).worker == home for key, home in homes.items())
    assert len(set(homes.values())) == 4


@pytest.mark.parametrize("name", PolicyType.members())
def test_every_policy_with_equal_seeds_chooses_the_same(name: str) -> None:
    def choices() -> list[str]:
        policy = fleet(name)
        return [policy.route(text=f"{number % 5} {TEXT}", key=str(number % 7)).worker for number in range(60)]

    assert choices() == choices() and set(choices()) <= set(WORKERS)


def test_without_a_seed_policies_differ() -> None:
    def choices() -> list[str]:
        policy = Policy("random", WORKERS)
        return [policy.route().worker for _ in range(40)]

    assert choices() != choices()


# --- threads


@pytest.mark.parametrize("name", PolicyType.members())
def test_many_threads_route_while_the_fleet_changes(name: str) -> None:
    policy, over = fleet(name), threading.Event()

    def churn() -> None:
        while not over.is_set():
            policy.remove_worker(WORKERS[3])
            policy.add_worker(WORKERS[3])
            policy.set_ready(WORKERS[2], False)
            policy.set_ready(WORKERS[2], True)
            policy.flush_worker(WORKERS[1])
            policy.loads()

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(300):
            prompt = [chance.randrange(3)] * chance.randrange(200)
            with policy.route(tokens=prompt, key=str(chance.randrange(9))) as lease:
                if chance.random() < 0.5:
                    lease.first_token()

    churner = threading.Thread(target=churn)
    churner.start()
    with ThreadPoolExecutor(4) as workers:
        for done in [workers.submit(work, seed) for seed in range(4)]:
            done.result()
    over.set()
    churner.join()
    assert policy.loads() == dict.fromkeys(WORKERS, IDLE)


# --- mistakes


def test_an_unknown_worker_is_a_key_error_and_a_double_one_a_value_error() -> None:
    policy = fleet()
    for act in (policy.remove_worker, policy.flush_worker, lambda url: policy.set_ready(url, True)):
        with pytest.raises(KeyError, match="http://unknown"):
            act("http://unknown")
    with pytest.raises(ValueError, match="there already"):
        policy.add_worker(WORKERS[0])
    with pytest.raises(ValueError, match="URL"):
        policy.add_worker("")
    with pytest.raises(TypeError):
        Policy("random", "http://a")
    with pytest.raises(RuntimeError, match="no worker is ready"):
        Policy().route(text="hello")
    assert policy.workers == WORKERS and repr(policy) == "<Policy cache_aware: 4 workers>"


@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        ({"text": "a", "tokens": [1]}, ValueError),
        ({"text": [1, 2]}, TypeError),
        ({"text": b"bytes"}, TypeError),
        ({"tokens": "text"}, TypeError),
        ({"tokens": b"bytes"}, TypeError),
        ({"tokens": 7}, TypeError),
        ({"tokens": [1.5]}, TypeError),
        ({"tokens": ["1"]}, TypeError),
        ({"tokens": [-1]}, ValueError),
        ({"tokens": [2**32]}, ValueError),
        ({"key": 7}, TypeError),
    ],
    ids=repr,
)
def test_a_wrong_prompt_is_a_type_or_value_error(prompt: dict[str, Any], error: type[Exception]) -> None:
    policy = fleet()
    with pytest.raises(error):
        policy.route(**prompt)
    assert policy.loads() == dict.fromkeys(WORKERS, IDLE)


@pytest.mark.parametrize(
    ("tunables", "error"),
    [
        ({"name": "cash_aware"}, ValueError),
        ({"index_bytes": 0}, ValueError),
        ({"index_bytes": 2**60}, ValueError),
        ({"index_bytes": -1}, ValueError),
        ({"index_bytes": "1"}, TypeError),
        ({"cache_threshold": 2.0}, ValueError),
        ({"cache_threshold": float("nan")}, ValueError),
        ({"balance_rel_threshold": 0.5}, ValueError),
        ({"load_factor": 0.5}, ValueError),
        ({"assignment_mode": "best"}, ValueError),
        ({"prefix_tokens": 0}, ValueError),
        ({"thresholds": 1}, TypeError),
    ],
    ids=repr,
)
def test_a_wrong_tunable_is_an_error_that_names_it(tunables: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(tunables.values() if "name" in tunables else tunables))):
        Policy(**tunables)


def test_tunables_are_the_defaults_unless_set() -> None:
    defaults = routing_option_defaults()
    assert defaults["index_bytes"] == 64 * 1024 * 1024 and defaults["cache_threshold"] is None
    assert Policy("manual", assignment_mode="min_load", max_idle_secs=5, load_factor=2.0).name == "manual"
    # A guard that is set is a guard: nothing below it is affinity.
    strict = fleet(cache_threshold=1.0)
    strict.route(text=TEXT).release()
    assert strict.route(text=TEXT * 2).matched_tokens == 0
