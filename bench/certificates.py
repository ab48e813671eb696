"""An authority and a certificate of this machine, for measurements over TLS."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from processes import HOST, require_tools

NAME = "localhost"
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


@dataclass(frozen=True)
class Certificates:
    """Files: the authority, and a certificate that gateways and workers share (ECDSA, P-256)."""

    ca: Path
    cert: Path
    key: Path


def issue(folder: Path) -> Certificates:
    """Makes them with openssl."""
    require_tools(["openssl"])
    ca, cert, key = (folder / name for name in ("ca.crt", "tls.crt", "tls.key"))
    ca_key, request, extensions = (folder / name for name in ("ca.key", "tls.csr", "extensions"))
    extensions.write_text(f"subjectAltName=IP:{HOST},DNS:{NAME}\nextendedKeyUsage=serverAuth\n")
    days = ("-days", "7")
    _openssl("req", "-x509", *_KEY, *days, "-subj", "/CN=bench authority", "-keyout", ca_key, "-out", ca)
    _openssl("req", *_KEY, "-subj", "/CN=bench", "-keyout", key, "-out", request)
    authority = ("-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-extfile", extensions)
    _openssl("x509", "-req", *days, "-in", request, *authority, "-out", cert)
    return Certificates(ca, cert, key)


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)
