"""Workers that are registered, changed and removed while the gateway serves, with `requests` as a script would."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import requests
from support.waiting import wait_for

TIMEOUT = 20


def generate(door) -> requests.Response:
    body = {"text": "hi", "sampling_params": {"max_new_tokens": 2}}
    return requests.post(f"{door.url}/generate", json=body, timeout=TIMEOUT)


def add(door, worker, **spec) -> str:
    reply = requests.post(f"{door.url}/workers", json={"url": worker.url, **spec}, timeout=TIMEOUT)
    assert reply.status_code == 202, reply.text
    assert reply.headers["location"] == f"/workers/{reply.json()['worker_id']}"
    return reply.json()["worker_id"]


def shown(door, worker_id: str) -> dict:
    return requests.get(f"{door.url}/workers/{worker_id}", timeout=TIMEOUT).json()


def until_ready(door, worker_id: str) -> None:
    wait_for(lambda: shown(door, worker_id).get("status") == "ready", "the worker is ready")


def test_a_fleet_is_built_and_taken_down_at_run_time(sim_workers, gateway):
    fleet = sim_workers(3)
    door = gateway([], policy="round_robin", slow_start_secs=0)
    assert generate(door).status_code == 503
    ids = [add(door, worker, labels={"rack": "r1"}) for worker in fleet]
    for worker_id in ids:
        until_ready(door, worker_id)
    routed = [generate(door).headers["x-smg-routed-worker-id"] for _ in range(30)]
    assert sorted(set(routed)) == sorted(ids)
    one = shown(door, ids[0])
    assert (one["labels"]["rack"], one["is_healthy"]) == ("r1", True)
    assert "job_status" not in one
    for worker_id in ids:
        assert requests.delete(f"{door.url}/workers/{worker_id}", timeout=TIMEOUT).status_code == 202
    wait_for(lambda: requests.get(f"{door.url}/list_workers", timeout=TIMEOUT).json() == {"urls": []}, "all are gone")
    assert generate(door).status_code == 503


def test_workers_come_and_go_under_load_and_no_request_is_lost(sim_workers, gateway):
    stays, *others = sim_workers(3, decode_step_base_ms=1)
    door = gateway([stays.url], policy="cache_aware", slow_start_secs=0)
    changing = True

    def client() -> list[int]:
        statuses = []
        while changing:
            statuses.append(generate(door).status_code)
        return statuses

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(client) for _ in range(4)]
        try:
            for turn in range(20):
                worker = others[turn % 2]
                worker_id = add(door, worker)
                until_ready(door, worker_id)
                assert shown(door, worker_id)["index"] == 1
                requests.delete(f"{door.url}/workers/{worker_id}", timeout=TIMEOUT)
                wait_for(lambda gone=worker_id: "error" in shown(door, gone), "the worker is gone")
        finally:
            changing = False
        statuses = [status for client in clients for status in client.result()]
    assert set(statuses) == {200}
    (left,) = requests.get(f"{door.url}/workers", timeout=TIMEOUT).json()["workers"]
    assert (left["url"], left["load"]) == (stays.url, 0)


def test_a_worker_with_a_key_and_the_gateways_own(sim_workers, gateway):
    (worker,) = sim_workers(1, api_key="theirs")
    door = gateway([], api_key="ours")
    assert requests.post(f"{door.url}/workers", json={"url": worker.url}, timeout=TIMEOUT).status_code == 401
    with requests.Session() as admin:
        admin.headers["authorization"] = "Bearer ours"
        spec = {"url": worker.url, "api_key": "theirs"}
        reply = admin.post(f"{door.url}/workers", json=spec, timeout=TIMEOUT)
        path = f"{door.url}/workers/{reply.json()['worker_id']}"
        wait_for(lambda: admin.get(path, timeout=TIMEOUT).json()["status"] == "ready", "the worker is ready")
        body = {"text": "hi", "sampling_params": {"max_new_tokens": 2}}
        assert admin.post(f"{door.url}/generate", json=body, timeout=TIMEOUT).status_code == 200
        assert "theirs" not in admin.get(path, timeout=TIMEOUT).text
        assert admin.patch(path, json={"priority": 7, "cost": 0.5}, timeout=TIMEOUT).status_code == 202
        one = admin.get(path, timeout=TIMEOUT).json()
        assert (one["priority"], one["cost"], one["metadata"]["priority"]) == (7, 0.5, "7")
        assert admin.put(path, json={"url": "http://127.0.0.1:9"}, timeout=TIMEOUT).status_code == 400
        differs = admin.post(f"{door.url}/workers", json={**spec, "priority": 8}, timeout=TIMEOUT)
        assert (differs.status_code, differs.json()["code"]) == (409, "WORKER_ALREADY_EXISTS")


def test_the_routes_that_training_frameworks_call(sim_workers, gateway):
    fleet = sim_workers(2)
    door = gateway([])
    for worker in fleet:
        added = requests.post(f"{door.url}/add_worker", params={"url": worker.url}, timeout=TIMEOUT)
        assert (added.status_code, added.text) == (200, f"Successfully added worker: {worker.url}")
    # It is ready once the call returns.
    assert generate(door).status_code == 200
    removed = requests.post(f"{door.url}/remove_worker?url={fleet[0].url}", timeout=TIMEOUT)
    assert (removed.status_code, removed.text) == (200, f"Successfully removed worker: {fleet[0].url}")
    left = {"urls": [fleet[1].url]}
    wait_for(lambda: requests.get(f"{door.url}/list_workers", timeout=TIMEOUT).json() == left, "one is left")
