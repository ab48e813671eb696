"""The fields that name a data-parallel rank, against the request classes in the wheels of two releases of SGLang.

The engine on a CPU has no ranks to try.
"""

from __future__ import annotations

import ast
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.backend import Backend, Exchange, says
from support.client import call
from support.gateway import Gateway
from support.sglang import ONLY_WITH_SGLANG, VENV

pytestmark = ONLY_WITH_SGLANG
RANKS = 3
REQUESTS = 8 * RANKS
RANK_FIELDS = {"routed_dp_rank", "data_parallel_rank"}
CLASSES = {
    "/generate": ("managers/io_struct.py", "GenerateReqInput"),
    "/v1/chat/completions": ("entrypoints/openai/protocol.py", "ChatCompletionRequest"),
    "/v1/completions": ("entrypoints/openai/protocol.py", "CompletionRequest"),
}


@pytest.fixture(params=["0.5.9", "0.5.23"])
def release(request: Any, tmp_path: Path) -> tuple[str, zipfile.ZipFile]:
    """A version, and its wheel."""
    wheel = ["download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(tmp_path)]
    subprocess.run([f"{VENV}/bin/python", "-m", "pip", *wheel, f"sglang=={request.param}"], check=True)
    return request.param, zipfile.ZipFile(next(tmp_path.glob("*.whl")))


def fields(classes: dict[str, ast.ClassDef], name: str) -> Iterator[str]:
    """The fields that a class declares, and those of its bases in the same file."""
    found = classes[name]
    yield from (it.target.id for it in found.body if isinstance(it, ast.AnnAssign) and isinstance(it.target, ast.Name))
    for base in found.bases:
        if isinstance(base, ast.Name) and base.id in classes:
            yield from fields(classes, base.id)


def declared(wheel: zipfile.ZipFile, path: str) -> set[str]:
    file, name = CLASSES[path]
    tree = ast.parse(wheel.read(f"sglang/srt/{file}"))
    return set(fields({it.name: it for it in tree.body if isinstance(it, ast.ClassDef)}, name))


def noting(bodies: list[Any]) -> Callable[[Exchange], None]:
    """Answers, and keeps the bodies."""

    def script(exchange: Exchange) -> None:
        bodies.append(exchange.body)
        exchange.answer(200, {})

    return script


def test_every_release_reads_the_rank_that_a_request_is_sent_to(release: tuple[str, zipfile.ZipFile]) -> None:
    version, wheel = release
    with ExitStack() as stack:
        worker = Backend()
        stack.callback(worker.close)
        worker.on("/health", says({}))
        worker.on("/server_info", says({"version": version, "dp_size": RANKS, "model_path": "m"}))
        got: dict[str, list[Any]] = {path: [] for path in CLASSES}
        for path in CLASSES:
            worker.on(path, noting(got[path]))
        gateway = Gateway([worker.url], "--dp-aware", "--policy", "round_robin")
        stack.callback(gateway.destroy)
        gateway.wait_ready(1)
        for path in CLASSES:
            for _ in range(REQUESTS):
                body = {"model": "m", "text": "x", "prompt": "x", "messages": []}
                assert call(gateway.url, "POST", path, body)[0] == 200
            known = declared(wheel, path)
            assert known & RANK_FIELDS, path
            ranks = [value for body in got[path] for name, value in body.items() if name in known & RANK_FIELDS]
            assert (len(ranks), set(ranks)) == (REQUESTS, {*range(RANKS)}), (path, got[path])
