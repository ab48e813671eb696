"""Snapshots of a fleet, as a gateway sends them: one, or one each second.

The key goes into a header, never into a URL. The environment's proxies are not used.
"""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

Snapshot = dict[str, Any]

_ONE = "/debug/fleet.json"
_STREAM = "/debug/fleet/stream"
_DATA = b"data: "
# A snapshot of 500 workers has some 250 kB.
_LONGEST_LINE = 64 << 20


class SourceError(Exception):
    """No snapshot came.

    Attributes:
        is_refusal: the gateway refuses this key, and asking again does not help.
    """

    def __init__(self, why: str, *, is_refusal: bool = False) -> None:
        super().__init__(why)
        self.is_refusal = is_refusal


class Source:
    """A gateway that is asked for snapshots.

    Args:
        url: the port that has the page, `http://host:port`, and a path before `/debug` where a proxy adds one.
        key: a credential of the control plane.
        timeout: longest wait for a connection and for each piece of an answer, seconds.
        ca_cert: CA file for `https://`; `None` means the system's.

    Raises:
        ValueError: the URL is none.
        OSError: the CA file cannot be read.
    """

    def __init__(self, url: str, key: str | None = None, *, timeout: float = 5.0, ca_cert: str | None = None) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"not an http:// or https:// URL: {url!r}")
        self.name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        self._host, self._port, self._path = parts.hostname, parts.port, parts.path.rstrip("/")
        self._timeout = timeout
        self._tls = ssl.create_default_context(cafile=ca_cert) if parts.scheme == "https" else None
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    def one(self) -> Snapshot:
        """The fleet now.

        Raises:
            SourceError: why there is no snapshot.
        """
        with self._ask(_ONE) as reply:
            return _parse(reply.read())

    def each(self) -> Iterator[Snapshot]:
        """A snapshot each second, until the gateway ends the stream.

        Raises:
            SourceError: why there are no more.
        """
        with self._ask(_STREAM) as reply:
            name = b""
            while line := reply.readline(_LONGEST_LINE):
                if line.startswith(b"event: "):
                    name = line
                elif line.startswith(_DATA) and not name:
                    yield _parse(line.removeprefix(_DATA))
                elif not line.strip():
                    name = b""

    @contextmanager
    def _ask(self, path: str) -> Iterator[http.client.HTTPResponse]:
        connection: http.client.HTTPConnection
        if self._tls:
            connection = http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout, context=self._tls)
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
        try:
            connection.request("GET", self._path + path, headers=self._headers)
            # A reply that ends with its connection has the socket to itself.
            with connection.getresponse() as reply:
                if reply.status != 200:
                    raise SourceError(_refusal(reply), is_refusal=reply.status in (401, 403, 404))
                yield reply
        except TimeoutError as error:
            raise SourceError(f"no answer within {self._timeout:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise SourceError(f"{error}" or type(error).__name__) from error
        finally:
            connection.close()


def _parse(text: bytes) -> Snapshot:
    try:
        snapshot = json.loads(text)
    except ValueError as error:
        raise SourceError(f"the answer is no JSON: {error}") from error
    if not isinstance(snapshot, dict) or "workers" not in snapshot:
        raise SourceError("the answer is no snapshot of a fleet")
    return snapshot


def _refusal(reply: http.client.HTTPResponse) -> str:
    try:
        message = json.loads(reply.read(1 << 16))["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = reply.reason
    return f"{reply.status}: {message}"
