"""One request on its two legs: the prefill and the decode server of a pair, which succeed or fail together."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

_Result = TypeVar("_Result")
_Prompts = dict[int | None, dict[str, Any]]
"""Events of the prefill server by position in the batch, `None` for a single request."""

AIOHTTP_STREAM_READ_CHUNK_SIZE = 64 * 1024
_QUEUED_CHUNKS = 16


@dataclass(eq=False)
class LegFailed(Exception):
    """One leg did not answer as it should; holds the reply for the client."""

    leg: str
    status: int
    body: bytes
    content_type: str = "application/json"


@dataclass(eq=False)
class RefusedInStream(LegFailed):
    """The prefill server began a stream with 200 and said in an event that it fails."""


@dataclass
class Answer:
    """A leg's complete answer."""

    status: int
    body: bytes
    content_type: str


def failure(leg: str, status: int, message: str) -> LegFailed:
    """A failure with a message of the balancer's own."""
    error = {"message": message, "type": "mini_lb_error", "param": None, "code": status}
    return LegFailed(leg, status, json.dumps({"error": error}).encode())


async def open_leg(
    session: ClientSession, leg: str, url: str, body: dict[str, Any], headers: dict[str, str]
) -> ClientResponse:
    """Posts JSON and returns the response once its head is there and good. Raises `LegFailed`."""
    try:
        response = await session.post(url, json=body, headers=headers)
        if response.status < 400:
            return response
        with closing(response):
            raise LegFailed(leg, response.status, await response.read(), response.content_type)
    except (OSError, asyncio.TimeoutError, _client_error()) as error:
        raise _transport(leg, url, error) from error


async def read_leg(session: ClientSession, leg: str, url: str, body: dict[str, Any], headers: dict[str, str]) -> Answer:
    """Posts JSON and returns the whole answer. Raises `LegFailed`."""
    with closing(await open_leg(session, leg, url, body, headers)) as response:
        try:
            return Answer(response.status, await response.read(), response.content_type)
        except (OSError, asyncio.TimeoutError, _client_error()) as error:
            raise _transport(leg, url, error) from error


def _client_error() -> type[Exception]:
    import aiohttp

    return aiohttp.ClientError


def _transport(leg: str, url: str, error: BaseException) -> LegFailed:
    late = isinstance(error, asyncio.TimeoutError)
    what = "did not answer in time" if late else f"cannot be reached or broke off ({error or type(error).__name__})"
    return failure(leg, 504 if late else 502, f"the {leg} server {url} {what}")


async def together(*legs: Coroutine[Any, Any, _Result]) -> list[_Result]:
    """All results. The first failure cancels the other legs, which closes their connections, and is raised."""
    tasks = [asyncio.ensure_future(leg) for leg in legs]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        _raise_failure(*tasks)
        return [task.result() for task in tasks]
    except BaseException:
        for task in tasks:
            if task.done() and not task.cancelled() and not task.exception():
                getattr(task.result(), "close", lambda: None)()
        await _cancel(*tasks)
        raise


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# --- streams


class PairStream:
    """The decode server's stream, with the prefill server's logprobs put in when they were asked for.

    `start` returns once the first piece is there, until when failures can still become a status. `pieces` is for
    the response's body; a later failure becomes an error event, the way SGLang reports its own. So does a refusal in
    the prefill server's stream, for which a single server has no other status either.
    """

    def __init__(self, prefill: ClientResponse, decode: ClientResponse, merge: bool) -> None:
        self._responses = prefill, decode
        self._merge = merge
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue(_QUEUED_CHUNKS)
        self._first: bytes | None = None
        self._refused: RefusedInStream | None = None
        self._prefill: asyncio.Task[_Prompts] = asyncio.ensure_future(self._read_prefill())
        self._decode: asyncio.Task[None] = asyncio.ensure_future(self._read_decode())

    async def start(self) -> None:
        """Waits for the first piece. Raises `LegFailed`, with both legs closed."""
        try:
            while self._merge and not self._prefill.done():
                running = [task for task in (self._prefill, self._decode) if not task.done()]
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                _raise_failure(self._prefill, self._decode)
            self._first = await self._next()
        except RefusedInStream as refused:
            self._refused = refused
        except BaseException:
            self.close()
            raise

    async def pieces(self) -> AsyncIterator[bytes]:
        """The rest of the answer. However it ends, both legs are closed."""
        try:
            if self._refused:
                raise self._refused
            events = b""
            prompts: _Prompts = self._prefill.result() if self._merge else {}
            piece = self._first
            while piece is not None:
                if self._merge:
                    *whole, events = (events + piece).split(b"\n\n")
                    piece = b"".join(_with_prompt(event, prompts) + b"\n\n" for event in whole)
                if piece:
                    yield piece
                piece = await self._next()
            if events:
                yield _with_prompt(events, prompts)
        except LegFailed as failed:
            yield b"data: " + _one_line(failed.body) + b"\n\n"
            if isinstance(failed, RefusedInStream):
                yield b"data: [DONE]\n\n"
        finally:
            self.close()

    def close(self) -> None:
        """Ends both legs, without waiting: the calling task may be cancelled itself."""
        for task in (self._prefill, self._decode):
            task.cancel()
            task.add_done_callback(_forget)
        for response in self._responses:
            response.close()

    async def _next(self) -> bytes | None:
        """The next piece of decode's stream, `None` at its end. Raises when either leg fails."""
        piece = asyncio.ensure_future(self._chunks.get())
        try:
            while not piece.done():
                running = [task for task in (self._prefill, self._decode) if not task.done()]
                await asyncio.wait([piece, *running], return_when=asyncio.FIRST_COMPLETED)
                _raise_failure(self._prefill, self._decode)
            return piece.result()
        finally:
            piece.cancel()

    async def _read_decode(self) -> None:
        response = self._responses[1]
        try:
            async for chunk in response.content.iter_chunked(AIOHTTP_STREAM_READ_CHUNK_SIZE):
                await self._chunks.put(chunk)
        except (OSError, asyncio.TimeoutError, _client_error()) as error:
            raise _transport("decode", str(response.url), error) from error
        await self._chunks.put(None)

    async def _read_prefill(self) -> _Prompts:
        """Reads it to the end: prompt logprobs by position in the batch (`None` for a single request)."""
        response = self._responses[0]
        prompts: _Prompts = {}
        rest = b""
        try:
            async for chunk in response.content.iter_chunked(AIOHTTP_STREAM_READ_CHUNK_SIZE):
                *events, rest = (rest + chunk).split(b"\n\n")
                for event in events:
                    _note_prompt(event, prompts)
        except (OSError, asyncio.TimeoutError, _client_error()) as error:
            raise _transport("prefill", str(response.url), error) from error
        return prompts


def _forget(task: asyncio.Task[Any]) -> None:
    """Marks the outcome of a cancelled task as seen, so that asyncio does not log it."""
    if not task.cancelled():
        task.exception()


def _raise_failure(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        if task.done() and not task.cancelled() and (error := task.exception()):
            raise error


def _event(event: bytes) -> dict[str, Any] | None:
    """The JSON object in a `data:` event, `None` when there is none."""
    if not event.startswith(b"data:"):
        return None
    with suppress(ValueError):
        value = json.loads(event[5:])
        return value if isinstance(value, dict) else None
    return None


def _note_prompt(event: bytes, prompts: _Prompts) -> None:
    """Keeps a prompt's event. Raises `RefusedInStream` for an event that is an error."""
    value = _event(event)
    if value and value.get("error"):
        raise RefusedInStream("prefill", 502, json.dumps(value, ensure_ascii=False).encode())
    if value and isinstance(value.get("meta_info"), dict):
        prompts.setdefault(value.get("index"), value)


def _with_prompt(event: bytes, prompts: _Prompts) -> bytes:
    value = _event(event)
    if value is None or value.get("index") not in prompts:
        return event
    try:
        merge_prefill_json(prompts[value.get("index")], value)
    except ValueError as error:
        raise failure("decode", 502, f"the pair's answers cannot be merged: {error}") from error
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _one_line(body: bytes) -> bytes:
    try:
        return json.dumps(json.loads(body)).encode()
    except ValueError:
        return json.dumps({"error": {"message": body.decode(errors="replace")}}).encode()


# --- what only the prefill server has


def merge_prefill_json(prefill: Any, decode: Any) -> None:
    """Puts prefill's prompt logprobs before decode's, and its routed experts over decode's, in place.

    Both are objects as `/generate` answers them, or lists of such.
    """
    if isinstance(prefill, list) and isinstance(decode, list):
        for one, other in zip(prefill, decode, strict=False):
            merge_prefill_json(one, other)
        return
    for key in ("meta_info", "sglext"):
        ours, theirs = _part(prefill, key), _part(decode, key)
        if isinstance(ours.get("input_token_logprobs"), list) and isinstance(theirs.get("input_token_logprobs"), list):
            theirs["input_token_logprobs"] = ours["input_token_logprobs"] + theirs["input_token_logprobs"]
        if ours.get("routed_experts") and theirs.get("routed_experts"):
            head, whole = (base64.b64decode(part["routed_experts"], validate=True) for part in (ours, theirs))
            theirs["routed_experts"] = base64.b64encode(head + whole[len(head) :]).decode()


def _part(value: Any, key: str) -> dict[str, Any]:
    part = value.get(key) if isinstance(value, dict) else None
    return part if isinstance(part, dict) else {}
