"""The machine: limits on files and ports, kernel and C library, clock."""

from __future__ import annotations

import ctypes
import platform
import re
import resource
import time
from datetime import datetime, timezone
from pathlib import Path

from ..router_args import RouterArgs
from .finding import Finding
from .ports import DEFAULT_METRICS_PORT

SYSTEM = Path("/proc/sys")
CLOCK_SOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
# As `RESERVED_DESCRIPTORS` of crates/gateway/src/config/sections.rs: descriptors for all but clients and requests.
_RESERVED = 64
_FEW_FILES = 16384
_FEW_PORTS = 10000
# The gateway asks for 4096; the kernel grants no more than `somaxconn`.
_FEW_WAITING = 1024
# Rust's standard library needs it (https://doc.rust-lang.org/rustc/platform-support.html).
_OLDEST_KERNEL = (3, 2)
# These are read without a system call. Reading others costs a microsecond, several times per request.
_FAST_CLOCKS = ("tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter", "xen", "riscv_clocksource")
_TIME_ERROR = 5  # adjtimex(2)


def check_machine(args: RouterArgs) -> list[Finding]:
    """All of them. They need no privilege, and change nothing."""
    return [*check_files(args), *check_local_ports(args), *check_kernel(), *check_clock(args)]


def check_files(args: RouterArgs) -> list[Finding]:
    """The limit on open files, to whose hard value the gateway raises its own."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return [Finding("open files", "ok", "no limit")]
    needed = 2 * args.max_concurrent_requests + _RESERVED if args.max_concurrent_requests > 0 else _FEW_FILES
    text = f"{hard} descriptors, enough for {max(0, hard - _RESERVED) // 2} requests at a time"
    if hard >= needed:
        return [Finding("open files", "ok", text)]
    advice = (
        f"raise the hard limit to {needed} or more: ulimit -Hn, LimitNOFILE= of systemd, --ulimit nofile= of docker"
    )
    return [Finding("open files", "warn", text, advice)]


def check_local_ports(args: RouterArgs) -> list[Finding]:
    """Ports of connections to workers, and the kernel's queue of connections from clients."""
    return [*_port_range(args), *_backlog()]


def _port_range(args: RouterArgs) -> list[Finding]:
    try:
        low, high = map(int, (SYSTEM / "net/ipv4/ip_local_port_range").read_text().split())
    except (OSError, ValueError):
        return []
    text = f"{high - low + 1} ports, {low} to {high}, for connections to each worker"
    metrics = DEFAULT_METRICS_PORT if args.prometheus_port is None else args.prometheus_port
    inside = [str(port) for port in (args.port, metrics) if low <= port <= high]
    if inside:
        text += f"; {' and '.join(inside)}, on which the gateway listens, may be taken by a connection before its start"
        advice = f"listen below {low}, or add the port to net.ipv4.ip_local_reserved_ports"
        return [Finding("local ports", "warn", text, advice)]
    if high - low + 1 < _FEW_PORTS:
        return [Finding("local ports", "warn", text, "widen net.ipv4.ip_local_port_range")]
    return [Finding("local ports", "ok", text)]


def _backlog() -> list[Finding]:
    try:
        most = int((SYSTEM / "net/core/somaxconn").read_text())
    except (OSError, ValueError):
        return []
    text = f"{most} connections may wait to be accepted"
    if most >= _FEW_WAITING:
        return [Finding("accept queue", "ok", text)]
    advice = f"set net.core.somaxconn to {_FEW_WAITING} or more: a burst of clients is refused above it"
    return [Finding("accept queue", "warn", text, advice)]


def check_kernel() -> list[Finding]:
    """Kernel, C library and processor."""
    numbers = re.match(r"(\d+)\.(\d+)", platform.release())
    libc = " ".join(platform.libc_ver()).strip() or "another C library than glibc"
    text = f"{platform.system()} {platform.release()}, {platform.machine()}, {libc}, Python {platform.python_version()}"
    if platform.system() != "Linux":
        return [Finding("kernel", "warn", text, "run gateways that serve users on Linux: only there they are tested")]
    if numbers and (int(numbers[1]), int(numbers[2])) < _OLDEST_KERNEL:
        oldest = ".".join(map(str, _OLDEST_KERNEL))
        return [Finding("kernel", "fail", text, f"use Linux {oldest} or newer")]
    return [Finding("kernel", "ok", text)]


def check_clock(args: RouterArgs) -> list[Finding]:
    """Whether the clock can be right, is kept right, and is cheap to read."""
    return [*_time_of_day(args), *_clock_source()]


def _time_of_day(args: RouterArgs) -> list[Finding]:
    now, built = time.time(), _build_time()
    text = f"it is {datetime.fromtimestamp(now, timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
    if built is not None and now < built - 86400:
        text += f", before this gateway was built ({datetime.fromtimestamp(built, timezone.utc):%Y-%m-%d})"
        return [Finding("clock", "fail", text, "set the clock: certificates and tokens are judged by it")]
    dated = args.jwt_issuer or args.server_cert_path or args.ca_cert_paths or args.client_cert_path
    if dated and _is_unsynchronised():
        text += ", and the kernel says that nothing keeps the clock right"
        return [Finding("clock", "warn", text, "run chrony or systemd-timesyncd: certificates and tokens have dates")]
    return [Finding("clock", "ok", text)]


def _build_time() -> float | None:
    """When the extension was built, seconds since 1970."""
    try:
        from ..sgl_model_gateway_rs import get_verbose_version_string
    except ImportError:
        return None
    found = re.search(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) UTC", get_verbose_version_string())
    if found is None:
        return None
    return datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=timezone.utc).timestamp()


def _is_unsynchronised() -> bool:
    """What adjtimex(2) says, which changes nothing when all of its fields are 0."""
    try:
        state: int = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))
    except (AttributeError, OSError):
        return False
    return state == _TIME_ERROR


def _clock_source() -> list[Finding]:
    try:
        source = CLOCK_SOURCE.read_text().strip()
    except OSError:
        return []
    text = f"time is read from {source}"
    if source in _FAST_CLOCKS:
        return [Finding("clock source", "ok", text)]
    return [Finding("clock source", "warn", f"{text}, by a system call each time", "use tsc or the hypervisor's clock")]
