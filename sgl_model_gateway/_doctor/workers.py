"""The workers: whether their names resolve, what answers there, and which SGLang that is.

Asked as the gateway asks: directly, whatever proxy the environment names, with the gateway's key and trust.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import SplitResult, urlsplit

from ..router_args import RouterArgs
from .finding import Finding, Status

_AT_A_TIME = 32
# Of an answer; a worker's server_info has some ten kilobytes.
_MOST_BYTES = 4 << 20
_SLOW_LOOKUP = 1.0
_CLOCK_SKEW = 5.0
_ROLES = {"null": "regular"}


@dataclass
class _Worker:
    """A worker that the options name, and what it says of itself."""

    url: str
    role: str  # regular, prefill, decode
    at: SplitResult
    version: str | None = None
    findings: list[Finding] = field(default_factory=list)

    def add(self, status: Status, finding: str, advice: str = "") -> None:
        self.findings.append(Finding("worker", status, f"{self.url}: {finding}", advice))


@dataclass(frozen=True)
class _Answer:
    status: int
    date: str | None
    body: bytes

    def fields(self) -> dict[str, Any]:
        """The JSON object in it; empty when it is none."""
        try:
            value = json.loads(self.body)
        except ValueError:
            return {}
        return value if self.status == 200 and isinstance(value, dict) else {}


def urls_of(args: RouterArgs) -> list[str]:
    """The URLs of all workers that the options name."""
    return [url for url, _ in _named(args)]


def _named(args: RouterArgs) -> Iterator[tuple[str, str]]:
    if args.service_discovery and not args.pd_disaggregation:
        return
    if not args.pd_disaggregation:
        yield from ((url, "regular") for url in args.worker_urls)
        return
    yield from ((url, "prefill") for url, _ in args.prefill_urls or ())
    yield from ((url, "decode") for url in args.decode_urls or ())


def check_workers(args: RouterArgs, timeout: float) -> list[Finding]:
    """Asks every worker.

    Args:
        args: the gateway's options.
        timeout: longest wait for a connection and for each answer, seconds.
    """
    workers = [_Worker(url, role, _split(url)) for url, role in _named(args)]
    if not workers:
        advice = "name some, or register them at the running gateway: POST /workers"
        return [Finding("worker", "ok", f"the options name none; {advice}")]
    try:
        trust = _trust(args)
    except (OSError, ssl.SSLError) as error:
        why = f"https:// workers are not asked: {error}"
        return [Finding("worker", "fail", why, "check the files of --ca-cert-paths and --client-cert-path")]
    with ThreadPoolExecutor(min(_AT_A_TIME, len(workers))) as pool:
        list(pool.map(lambda worker: _Visit(args, worker, trust, timeout).run(), workers))
    return [found for worker in workers for found in worker.findings] + _versions(workers)


def _split(url: str) -> SplitResult:
    return urlsplit(url if "://" in url else f"http://{url}")


def _trust(args: RouterArgs) -> ssl.SSLContext:
    trust = ssl.create_default_context()
    for path in args.ca_cert_paths:
        trust.load_verify_locations(path)
    if args.client_cert_path:
        trust.load_cert_chain(args.client_cert_path, args.client_key_path)
    if args.tls_skip_verify:
        trust.check_hostname = False
        trust.verify_mode = ssl.CERT_NONE
    return trust


class _Visit:
    """The questions to one worker."""

    def __init__(self, args: RouterArgs, worker: _Worker, trust: ssl.SSLContext, timeout: float) -> None:
        self.args, self.worker, self.trust, self.timeout = args, worker, trust, timeout

    def run(self) -> None:
        if self.worker.at.scheme.startswith("dns+"):
            self.worker.add("ok", "a name whose addresses the gateway looks up; they are not asked")
            return
        try:
            if self._resolves():
                self._ask()
        except ssl.SSLError as error:
            advice = "see --ca-cert-paths, --worker-tls-name and --client-cert-path in docs/security.md"
            self.worker.add("fail", f"TLS: {error}", advice)
        except (OSError, http.client.HTTPException, ValueError) as error:
            advice = "start the worker, or open the way to it; a gateway that runs finds it when it comes"
            self.worker.add("fail", f"{error or type(error).__name__}", advice)

    def _resolves(self) -> bool:
        host, began = self.worker.at.hostname or "", time.monotonic()
        try:
            socket.getaddrinfo(host, self._port(), type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError) as error:
            advice = "check the name, /etc/hosts and the DNS of this machine"
            self.worker.add("fail", f"the name {host!r} has no address: {error}", advice)
            return False
        taken = time.monotonic() - began
        if taken > _SLOW_LOOKUP:
            self.worker.add(
                "warn", f"it took {taken:.1f} s to look its name up", "check the servers in /etc/resolv.conf"
            )
        return True

    def _port(self) -> int:
        return self.worker.at.port or (443 if self.worker.at.scheme == "https" else 80)

    def _ask(self) -> None:
        health = self._get(self.args.health_check_endpoint)
        info = next((it for it in map(self._get, ("/server_info", "/get_server_info")) if it.status != 404), health)
        if info.status in (401, 403):
            why = f"refuses the gateway's key with {info.status}"
            self.worker.add("fail", why, "give gateway and worker the same --api-key")
            return
        stated = info.fields()
        self._clock(health)
        self._report(health, stated)

    def _report(self, health: _Answer, stated: dict[str, Any]) -> None:
        worker = self.worker
        version = stated.get("version")
        worker.version = version if isinstance(version, str) else None
        name = stated.get("served_model_name") or stated.get("model_path") or "an unknown model"
        text = f"SGLang {worker.version or 'of an unknown version'}, {name}"
        role = _ROLES.get(str(stated.get("disaggregation_mode")), stated.get("disaggregation_mode"))
        if role and role != worker.role:
            advice = (
                f"name it by the flag of its role, or start it as {worker.role}: the gateway goes by what it reports"
            )
            worker.add("warn", f"{text}: it is a {role} worker, and named as a {worker.role} one", advice)
        elif health.status != 200:
            advice = "wait until it has loaded its model; --health-check-endpoint is what is asked"
            worker.add("warn", f"{text}: {self.args.health_check_endpoint} answers {health.status}", advice)
        elif not stated:
            advice = "is it a worker of SGLang? Without /server_info its model is taken from the requests"
            worker.add("warn", "it is healthy, but answers /server_info with no JSON object", advice)
        else:
            worker.add("ok", text)
            self._cache_report(stated)

    def _cache_report(self, stated: dict[str, Any]) -> None:
        if str(self.args.policy) == "cache_aware" and stated.get("enable_cache_report") is False:
            text = "its replies name no cached tokens, so cache_aware cannot check what it believes of its cache"
            self.worker.add("warn", text, "start it with --enable-cache-report; replies of /generate name them anyway")

    def _clock(self, answer: _Answer) -> None:
        """Compares the answer's date, which has whole seconds, with the clock of this machine."""
        try:
            theirs = parsedate_to_datetime(answer.date or "").timestamp()
        except (TypeError, ValueError):
            return
        ahead = theirs - time.time()
        if abs(ahead) > _CLOCK_SKEW:
            text = f"its clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
            self.worker.add("warn", text, "synchronise both: times in logs and metrics do not match")

    def _get(self, path: str) -> _Answer:
        at = self.worker.at
        connection = http.client.HTTPConnection(at.hostname or "", self._port(), timeout=self.timeout)
        connection.sock = self._connect()
        headers = {"authorization": f"Bearer {self.args.api_key}"} if self.args.api_key else {}
        try:
            connection.request("GET", f"{at.path.rstrip('/')}{path}", headers=headers)
            response = connection.getresponse()
            return _Answer(response.status, response.getheader("date"), response.read(_MOST_BYTES))
        finally:
            connection.close()

    def _connect(self) -> socket.socket:
        at = self.worker.at
        plain = socket.create_connection((at.hostname or "", self._port()), self.timeout)
        if at.scheme != "https":
            return plain
        return self.trust.wrap_socket(plain, server_hostname=self.args.worker_tls_name or at.hostname)


def _versions(workers: list[_Worker]) -> list[Finding]:
    """Whether all workers that answered run the same SGLang."""
    counts = Counter(worker.version for worker in workers if worker.version)
    if not counts:
        return []
    text = ", ".join(f"{version} on {count}" for version, count in sorted(counts.items()))
    if len(counts) == 1:
        return [Finding("versions", "ok", f"SGLang {text}")]
    advice = "fine during a roll-out; afterwards give all workers one version, for replies differ"
    return [Finding("versions", "warn", f"SGLang {text}", advice)]
