"""Writes the routes of an installed SGLang: `.venv-sglang/bin/python py_test/real_sglang/routes.py > list.csv`.

Read from the running application object, so that included routers are in it; mounts and `HEAD` aside.
Compare with `py_test/unit/sglang_routes.csv`.
"""

from __future__ import annotations

import csv
import sys
from typing import Any

# Mounted with `--enable-metrics`.
ADDED = [("/metrics", "GET")]


def routes(app: Any) -> set[tuple[str, str]]:
    """Path and method of every route of a FastAPI application."""
    found = set()
    for route in app.routes:
        # Newer releases of FastAPI keep a router that was included as one entry.
        if (included := getattr(route, "original_router", None)) is not None:
            found |= routes(included)
            continue
        methods = getattr(route, "methods", None)
        if methods is None and type(route).__name__.endswith("WebSocketRoute"):
            methods = {"WEBSOCKET"}
        found |= {(route.path, method) for method in methods or () if method != "HEAD"}
    return found


def main() -> None:
    from sglang.srt.entrypoints.http_server import app

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["path", "method"])
    writer.writerows(sorted(routes(app) | {*ADDED}))


if __name__ == "__main__":
    main()
