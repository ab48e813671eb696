"""The issuer of tokens for the control plane: whether its keys can be fetched from here."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from ..router_args import RouterArgs
from .finding import Finding


def check_issuer(args: RouterArgs, timeout: float) -> list[Finding]:
    """Connects to where the issuer's keys are; nothing is fetched.

    Args:
        args: the gateway's options.
        timeout: longest wait for the connection, seconds.
    """
    url = args.jwt_jwks_uri or args.jwt_issuer
    if not url:
        return []
    try:
        at = urlsplit(url)
        port = at.port or (80 if at.scheme == "http" else 443)
        socket.create_connection((at.hostname or "", port), timeout).close()
    except (OSError, UnicodeError, ValueError) as error:
        advice = "until its keys can be fetched no token opens the control plane; check the name, and the way to it"
        return [Finding("issuer", "fail", f"{url}: {error or type(error).__name__}", advice)]
    return [Finding("issuer", "ok", f"{url} can be reached")]
