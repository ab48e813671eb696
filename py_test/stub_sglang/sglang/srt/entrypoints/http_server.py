"""The server. Environment variables make it misbehave:

STUB_RECORD=DIR      write its server arguments to DIR/RANK.json, in pairs to DIR/ROLE-PORT.json
STUB_GATE=FILE       load until FILE exists
STUB_CRASH=RANK:CODE this rank ends with this code while loading
STUB_STUBBORN=1      ignore SIGTERM, and have another child outside the group
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from sgl_model_gateway.sgl_model_gateway_rs import SimWorker

from ..server_args import ServerArgs

_SLEEPER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"
_CHILD = [sys.executable, "-I", "-S", "-c", _SLEEPER]


def launch_server(server_args: ServerArgs) -> None:
    role = f"{server_args.disaggregation_mode}-{server_args.port}"
    rank = os.environ.get("SGLANG_DP_RANK", role)
    _record(server_args, rank)
    # Engines have processes of their own, in their group.
    children = [subprocess.Popen(_CHILD)]
    worker = SimWorker(
        host=server_args.host,
        port=server_args.port,
        model=server_args.model_path,
        api_key=server_args.api_key,
        disaggregation_mode=server_args.disaggregation_mode,
        disaggregation_bootstrap_port=server_args.disaggregation_bootstrap_port,
    )
    if os.environ.get("STUB_STUBBORN"):
        children.append(subprocess.Popen(_CHILD, start_new_session=True))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    print(f"loading {server_args.model_path}", flush=True)
    _load(rank)
    worker.start_background()
    print("serving", flush=True)
    worker.wait()
    for child in children:
        child.kill()
        child.wait()


def _load(rank: str) -> None:
    gate = os.environ.get("STUB_GATE")
    while gate and not Path(gate).exists():
        time.sleep(0.01)
    doomed, _, code = os.environ.get("STUB_CRASH", "").partition(":")
    if rank == doomed:
        print("weights not found\nlast words", file=sys.stderr, flush=True)
        sys.exit(int(code))


def _record(server_args: ServerArgs, rank: str) -> None:
    home = os.environ.get("STUB_RECORD")
    if home:
        groups = {"pid": os.getpid(), "pgid": os.getpgid(0), "ppid": os.getppid()}
        (Path(home) / f"{rank}.json").write_text(json.dumps(dataclasses.asdict(server_args) | groups))
