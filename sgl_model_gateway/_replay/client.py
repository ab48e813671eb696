"""Connections to one server, used again; requests are timed, replies are not kept."""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

# The end of a reply, in which its counts are.
_TAIL = 4096
_COUNTS = {
    "prompt_tokens": re.compile(rb'"(?:prompt|input)_tokens": ?(\d+)'),
    "output_tokens": re.compile(rb'"(?:completion|output)_tokens": ?(\d+)'),
    "cached_tokens": re.compile(rb'"(?:cached|cache_read_input)_tokens": ?(\d+)'),
}
_FAILED = re.compile(rb'(?:^|\n)(?:event: error|data: ?\{"(?:error|type": ?"error))')


class ReplyError(Exception):
    """A reply that is no answer; the text is a word or a status."""


@dataclass
class Reply:
    """What came back."""

    # From the request to the first piece of its body, and to its end.
    first_s: float
    total_s: float
    counts: dict[str, int] = field(default_factory=dict)


class Client:
    """Sends requests to the server at a URL.

    Args:
        url: `http://` or `https://`, with a path before all others if there is one.
        headers: further headers of every request.
        ca: file of authorities for `https://`; `None` means the system's.

    Raises:
        ValueError: the URL is none.
    """

    def __init__(self, url: str, headers: Mapping[str, str] | None = None, ca: str | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no http:// or https:// URL")
        self._host, self._prefix = parts.hostname, parts.path.rstrip("/")
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context(cafile=ca) if parts.scheme == "https" else None
        lines = {"host": parts.netloc.rpartition("@")[2], "content-type": "application/json", **(headers or {})}
        self._head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> Reply:
        """One request.

        Raises:
            ReplyError: the reply is an error, or no reply.
        """
        more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        head = f"POST {self._prefix}{path} HTTP/1.1\r\n{self._head}{more}content-length: {len(body)}\r\n\r\n"
        started = time.monotonic()
        try:
            return await self._exchange(head.encode() + body, started)
        except (OSError, EOFError, ValueError, IndexError) as error:
            raise ReplyError(type(error).__name__) from error

    async def _exchange(self, request: bytes, started: float) -> Reply:
        reader, writer = await self._connection()
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            first, tail = 0.0, b""
            async for piece in _pieces(reader, head):
                first = first or time.monotonic()
                tail = (tail + piece)[-_TAIL:]
            ended = time.monotonic()
        except BaseException:
            writer.close()
            raise
        if b"\r\nconnection: close\r\n" in head or not _is_framed(head):
            writer.close()
        else:
            self._idle.append((reader, writer))
        status = int(head.split(b" ", 2)[1])
        if status != 200:
            raise ReplyError(str(status))
        if _FAILED.search(tail):
            raise ReplyError("error in the stream")
        found = {name: pattern.findall(tail) for name, pattern in _COUNTS.items()}
        counts = {name: int(values[-1]) for name, values in found.items() if values}
        return Reply((first or ended) - started, ended - started, counts)

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.close()
        return await asyncio.open_connection(self._host, self._port, ssl=self._tls, limit=1 << 20)

    def close(self) -> None:
        """Closes the idle connections."""
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()


def _is_framed(head: bytes) -> bool:
    return b"\r\ntransfer-encoding: chunked\r\n" in head or b"\r\ncontent-length:" in head


async def _pieces(reader: asyncio.StreamReader, head: bytes) -> AsyncIterator[bytes]:
    """The body of a reply, as it comes."""
    if b"\r\ntransfer-encoding: chunked\r\n" in head:
        while size := int((await reader.readline()).split(b";")[0], 16):
            yield (await reader.readexactly(size + 2))[:-2]
        while (await reader.readline()).strip():
            pass  # trailers
        return
    length = re.search(rb"\r\ncontent-length: *(\d+)", head)
    left = int(length[1]) if length else None
    while left is None or left > 0:
        piece = await reader.read(65536 if left is None else min(left, 65536))
        if not piece:
            if left:
                raise EOFError
            return
        left = None if left is None else left - len(piece)
        yield piece
