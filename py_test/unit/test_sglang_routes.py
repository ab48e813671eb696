"""Every route of SGLang is carried, or refused by name. `py_test/real_sglang/routes.py` writes the list."""

from __future__ import annotations

import csv
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from support.pages import TIMEOUT

from sgl_model_gateway import sgl_model_gateway_rs as extension

LIST = Path(__file__).with_name("sglang_routes.csv")
# What the gateway answers, by name, with what to do instead.
NOT_CARRIED = {
    ("GET", "/metrics"),
    ("GET", "/docs"),
    ("GET", "/docs/oauth2-redirect"),
    ("GET", "/redoc"),
    ("GET", "/openapi.json"),
}


def of_sglang() -> list[tuple[str, str]]:
    """Method and path as the gateway writes them."""
    with LIST.open() as file:
        rows = [(row["method"], row["path"]) for row in csv.DictReader(file)]
    paths = {"/v1/models/{model:path}": "/v1/models/{*model}"}
    ids = {"{response_id}": "{id}"}
    found = []
    for method, path in rows:
        path = paths.get(path, path)
        for name, ours in ids.items():
            path = path.replace(name, ours)
        found.append(("GET" if method == "WEBSOCKET" else method, path))
    return found


def test_the_list_is_whole() -> None:
    assert len(of_sglang()) == len({*of_sglang()}) > 110


@pytest.mark.parametrize(("method", "path"), of_sglang())
def test_route_of_sglang_is_a_route_of_the_gateway(method: str, path: str) -> None:
    assert (method, path) in {(method, path) for method, path, _ in extension.routes()}


def test_routes_of_sglang_are_answered_and_those_not_carried_are_501(sim_workers: Any, gateway: Any) -> None:
    door = gateway([sim_workers(1)[0].url])
    # A paused engine answers nothing: it continues before anything else is asked.
    first = ["/pause_generation", "/continue_generation"]
    routes = sorted(of_sglang(), key=lambda route: first.index(route[1]) if route[1] in first else len(first))
    for method, path in routes:
        target = door.url + path.replace("{id}", "none").replace("{*model}", "none")
        headers = {"content-type": "application/json"}
        data = None if method == "GET" else b"{}"
        request = urllib.request.Request(target, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                status, code = response.status, response.headers["x-smg-error-code"]
        except urllib.error.HTTPError as error:
            with error:
                status, code = error.code, error.headers["x-smg-error-code"]
                text = error.read().decode()
        if (method, path) in NOT_CARRIED:
            assert (status, code) == (501, "not_implemented"), path
            assert len(json.loads(text)["error"]["message"]) > 20
        else:
            assert code not in ("unknown_url", "method_not_allowed", "not_implemented"), f"{method} {path}"
