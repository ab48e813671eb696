"""Handshakes as Go's crypto/tls and Java's JSSE make them, with certificates of both kinds."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme
from support.certificates import Files
from support.waiting import DEADLINE, wait_for

from sgl_model_gateway.router import Router

JAVA = Path(__file__).parent / "java" / "TlsClient.java"

GO_SIGNATURES = (
    "rsa_pss_rsae_sha256:ECDSA+SHA256:ed25519:rsa_pss_rsae_sha384:rsa_pss_rsae_sha512:"
    "RSA+SHA256:RSA+SHA384:RSA+SHA512:ECDSA+SHA384:ECDSA+SHA512"
)
JSSE_SIGNATURES = (
    "ECDSA+SHA256:ECDSA+SHA384:ECDSA+SHA512:ed25519:ed448:rsa_pss_rsae_sha256:rsa_pss_rsae_sha384:"
    "rsa_pss_rsae_sha512:rsa_pss_pss_sha256:RSA+SHA256:RSA+SHA384:RSA+SHA512"
)
GO_1_2 = (
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:"
    "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305:"
    "ECDHE-ECDSA-AES128-SHA:ECDHE-RSA-AES128-SHA:ECDHE-ECDSA-AES256-SHA:ECDHE-RSA-AES256-SHA"
)
JSSE_1_2 = (
    "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-CHACHA20-POLY1305:"
    "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-CHACHA20-POLY1305:ECDHE-RSA-AES128-GCM-SHA256:"
    "DHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-AES256-SHA384:ECDHE-RSA-AES256-SHA384"
)


@dataclass(frozen=True)
class Hello:
    """What a client offers, as `openssl s_client` takes it."""

    name: str
    version: str
    suites: str
    groups: str
    signatures: str
    alpn: str
    agreed: str

    def flags(self) -> list[str]:
        suites = "-ciphersuites" if self.version == "-tls1_3" else "-cipher"
        offer = [self.version, suites, self.suites, "-groups", self.groups, "-sigalgs", self.signatures]
        return [*offer, *(("-alpn", self.alpn) if self.alpn else ())]


GO_GROUPS, JSSE_GROUPS = "X25519:P-256:P-384:P-521", "X25519:P-256:P-384:P-521:X448:ffdhe2048:ffdhe3072"
AES_FIRST = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
JSSE_1_3 = "TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256"
CHACHA_FIRST = "TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384"
HELLOS = [
    Hello("go", "-tls1_3", AES_FIRST, GO_GROUPS, GO_SIGNATURES, "h2,http/1.1", "h2"),
    Hello("go-without-aes", "-tls1_3", CHACHA_FIRST, GO_GROUPS, GO_SIGNATURES, "h2,http/1.1", "h2"),
    Hello("go-fips", "-tls1_3", AES_FIRST.rsplit(":", 1)[0], "P-256:P-384", GO_SIGNATURES, "h2,http/1.1", "h2"),
    Hello("go-1.2", "-tls1_2", GO_1_2, GO_GROUPS, GO_SIGNATURES, "h2,http/1.1", "h2"),
    Hello("go-http1-only", "-tls1_3", AES_FIRST, GO_GROUPS, GO_SIGNATURES, "http/1.1", "http/1.1"),
    Hello("jsse", "-tls1_3", JSSE_1_3, JSSE_GROUPS, JSSE_SIGNATURES, "h2,http/1.1", "h2"),
    Hello("jsse-1.2", "-tls1_2", JSSE_1_2, JSSE_GROUPS, JSSE_SIGNATURES, "h2,http/1.1", "h2"),
    # Java 8 before its update 251 offers no ALPN.
    Hello("jsse-8", "-tls1_2", JSSE_1_2, "P-256:P-384:P-521", JSSE_SIGNATURES, "", ""),
]


@pytest.fixture(params=[trustme.KeyType.ECDSA, trustme.KeyType.RSA], ids=["ecdsa", "rsa"])
def door(request: Any, sim_workers: Any, gateway: Callable[..., Router], tmp_path: Path) -> tuple[Router, Files]:
    """A gateway over TLS whose certificate is of this kind, and its authority."""
    files = Files(tmp_path / "ours")
    cert, key = files.issue("localhost", "127.0.0.1", kind=request.param)
    router = gateway([sim_workers(1)[0].url], ready=False, server_cert_path=cert, server_key_path=key)
    wait_for(lambda: requests.get(f"{router.url}/readiness", verify=files.ca, timeout=5).ok, "a ready worker")
    return router, files


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_each_clients_hello_is_answered(door: tuple[Router, Files]) -> None:
    router, files = door
    address = router.url.removeprefix("https://")
    for hello in HELLOS:
        command = ["openssl", "s_client", "-connect", address, "-CAfile", files.ca, "-verify_return_error"]
        command += ["-servername", "localhost", "-verify_hostname", "localhost", *hello.flags()]
        said = subprocess.run(command, input="", capture_output=True, text=True, timeout=DEADLINE)
        assert said.returncode == 0 and "Verify return code: 0 (ok)" in said.stdout, (hello.name, said.stderr)
        agreed = f"ALPN protocol: {hello.agreed}" if hello.agreed else "No ALPN negotiated"
        assert agreed in said.stdout, (hello.name, said.stdout)


@pytest.mark.skipif(shutil.which("javac") is None, reason="no JDK is installed")
@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_javas_own_client_is_served_over_http2(door: tuple[Router, Files], version: str) -> None:
    router, files = door
    command = ["java", "-Xshare:auto", str(JAVA), router.url.replace("127.0.0.1", "localhost"), files.ca, version]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert said.stdout.splitlines() == [f"200 HTTP_2 {version} true"] * 2, said.stderr
