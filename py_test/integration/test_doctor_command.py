"""`doctor` as a command, beside workers and gateways that run."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from support.gateway import Gateway
from support.ports import free_port


def doctor(*flags: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "sgl_model_gateway", "doctor", "--json", "--host", "127.0.0.1", *flags]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return ran.returncode, json.loads(ran.stdout)


def test_command_passes_before_a_start_and_fails_while_the_port_is_taken(sim_workers: Any) -> None:
    worker = sim_workers(1)[0].url
    flags = ["--port", str(free_port()), "--prometheus-port", "0", "--worker-urls", worker]
    code, report = doctor(*flags)
    assert (code, report["ok"]) == (0, True), report
    assert {"options", "no effect", "port", "metrics port", "open files", "kernel", "clock", "worker", "versions"} <= {
        found["check"] for found in report["checks"]
    }
    with_gateway = Gateway([worker], port=int(flags[1]))
    try:
        code, report = doctor(*flags)
    finally:
        with_gateway.destroy()
    assert (code, report["ok"]) == (1, False)
    assert [found["check"] for found in report["checks"] if found["status"] == "fail"] == ["port"]
    assert f":{flags[1]}" in next(found["finding"] for found in report["checks"] if found["check"] == "port")
