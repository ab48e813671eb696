"""The gateways that are compared, and the command that starts each."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from certificates import NAME, Certificates
from processes import HOST, BenchError

ROOT = Path(__file__).resolve().parent.parent
# `install_peers.sh` fills this folder.
PEERS = Path(os.environ.get("BENCH_VENVS", ROOT / "bench" / ".venvs"))
OURS = "sgl_model_gateway.launch_router"


@dataclass(frozen=True)
class Setting:
    """What a gateway is started with."""

    port: int
    metrics_port: int
    worker_ports: tuple[int, ...]
    policy: str
    room: Path
    # Certificates where clients, or workers, are spoken to over TLS.
    clients_tls: Certificates | None = None
    workers_tls: Certificates | None = None

    @property
    def worker_urls(self) -> list[str]:
        scheme = "https" if self.workers_tls else "http"
        return [f"{scheme}://{HOST}:{port}" for port in self.worker_ports]


@dataclass(frozen=True)
class Target:
    """A gateway."""

    name: str
    command: Callable[[Setting], list[str]]
    # None: any policy.
    policies: frozenset[str] | None = None
    tls: bool = False

    def has(self, policy: str) -> bool:
        return self.policies is None or policy in self.policies

    def supports(self, setting: Setting) -> bool:
        needs_tls = bool(setting.clients_tls or setting.workers_tls)
        return self.has(setting.policy) and (self.tls or not needs_tls)


def find_targets(extra: list[str]) -> list[Target]:
    """Every gateway that is installed, and those of `--target "NAME=PATH FLAGS"`; a path replaces what was found."""
    targets = {target.name: target for target in _installed()}
    for text in extra:
        name, _, rest = text.partition("=")
        path, *flags = shlex.split(rest) or [""]
        if not name or not path:
            raise BenchError(f"--target {text}: not NAME=PATH")
        targets[name] = _python_target(name, _python(Path(path)), OURS, flags)
    return list(targets.values())


def _installed() -> list[Target]:
    round_robin = frozenset({"round_robin"})
    found = []
    if shutil.which("nginx"):
        found.append(Target("nginx", _nginx, round_robin, tls=True))
    if shutil.which("haproxy"):
        found.append(Target("haproxy", _haproxy, round_robin))
    pythons = [
        ("ours", ROOT / ".venv", OURS),
        ("sglang-router", PEERS / "sglang-router", "sglang_router.launch_router"),
        ("smg", PEERS / "smg", "smg.launch_router"),
        ("vllm-router", PEERS / "vllm-router", "vllm_router.launch_router"),
    ]
    for name, venv, module in pythons:
        if (venv / "bin" / "python").exists():
            found.append(_python_target(name, _python(venv), module))
    return found


def _python(path: Path) -> Path:
    """The interpreter of a virtual environment, or the interpreter itself. A link is kept: it finds the packages."""
    python = path / "bin" / "python" if path.is_dir() else path
    if not python.is_file():
        raise BenchError(f"no Python at {path}")
    return python.absolute()


def _python_target(name: str, python: Path, module: str, flags: Sequence[str] = ()) -> Target:
    level = "warning" if module.startswith("vllm") else "warn"

    def command(setting: Setting) -> list[str]:
        return [
            *(str(python), "-m", module, "--worker-urls", *setting.worker_urls, "--policy", setting.policy),
            *("--host", HOST, "--port", str(setting.port), "--log-level", level),
            *("--prometheus-host", HOST, "--prometheus-port", str(setting.metrics_port)),
            *flags,
            *_tls_flags(setting),
        ]

    return Target(name, command, tls=module == OURS)


def _tls_flags(setting: Setting) -> list[str]:
    flags: list[str] = []
    if files := setting.clients_tls:
        flags += ["--tls-cert-path", str(files.cert), "--tls-key-path", str(files.key)]
    if files := setting.workers_tls:
        flags += ["--ca-cert-paths", str(files.ca)]
    return flags


def _nginx(setting: Setting) -> list[str]:
    """One worker process, kept connections to the workers, no access log, no buffering of replies."""
    room = setting.room
    servers = " ".join(f"server {HOST}:{port};" for port in setting.worker_ports)
    temporary = " ".join(
        f"{kind}_temp_path {room}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    listen = f"listen {HOST}:{setting.port} backlog=4096"
    if files := setting.clients_tls:
        listen += f" ssl; ssl_certificate {files.cert}; ssl_certificate_key {files.key}; ssl_protocols TLSv1.2 TLSv1.3"
    upstream = "http://workers"
    if files := setting.workers_tls:
        upstream = f"https://workers; proxy_ssl_verify on; proxy_ssl_trusted_certificate {files.ca}"
        upstream += f"; proxy_ssl_name {NAME}; proxy_ssl_protocols TLSv1.2 TLSv1.3"
    config = room / "nginx.conf"
    config.write_text(f"""
        worker_processes 1; daemon off; error_log {room}/nginx.err; pid {room}/nginx.pid;
        events {{ worker_connections 8192; }}
        http {{
            access_log off; {temporary}
            client_max_body_size 512m; client_body_buffer_size 1m; keepalive_requests 10000000;
            upstream workers {{ {servers} keepalive 1024; keepalive_requests 10000000; }}
            server {{
                {listen};
                location / {{
                    proxy_pass {upstream}; proxy_http_version 1.1; proxy_set_header Connection "";
                    proxy_buffering off;
                }}
            }}
        }}
    """)
    return ["nginx", "-c", str(config), "-p", str(room)]


def _haproxy(setting: Setting) -> list[str]:
    """One thread, kept connections to the workers, no log."""
    servers = "\n".join(f"    server s{port} {HOST}:{port}" for port in setting.worker_ports)
    config = setting.room / "haproxy.cfg"
    config.write_text(f"""
global
    maxconn 8192
    nbthread 1
defaults
    mode http
    timeout connect 5s
    timeout client 600s
    timeout server 600s
    option http-keep-alive
    http-reuse always
frontend clients
    bind {HOST}:{setting.port} backlog 4096
    default_backend workers
backend workers
    balance roundrobin
{servers}
""")
    return ["haproxy", "-f", str(config), "-db"]
