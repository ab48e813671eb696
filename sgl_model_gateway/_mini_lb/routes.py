"""The application: a route per path, and what the balancer asks of servers itself."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

from .balancer import MiniLoadBalancer, StreamResponse, client_headers, require, respond
from .pair import LegFailed, failure

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response

Answer: TypeAlias = "Response | StreamResponse"
Handler: TypeAlias = "Callable[[Request, MiniLoadBalancer], Coroutine[Any, Any, Answer]]"

# Of the connection with the client, or made anew for the one with a server.
_NOT_FORWARDED = {
    *("host", "content-length", "content-type", "accept-encoding", "connection", "keep-alive", "te", "trailer"),
    *("transfer-encoding", "upgrade", "proxy-authenticate", "proxy-authorization", "proxy-connection", "expect"),
}


def maybe_wrap_ipv6_address(address: str) -> str:
    """An IPv6 address in brackets; anything else as it is."""
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return address
    return f"[{address}]"


def create_app() -> FastAPI:
    """The application. It serves `mini_lb.lb`, whichever balancer that is when a request comes."""
    from .. import mini_lb

    fastapi = require("fastapi")

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        if mini_lb.lb:
            await mini_lb.lb.close()

    app: FastAPI = fastapi.FastAPI(lifespan=lifespan, title="MiniLB")
    for method, path, handler in _ROUTES:
        # Starlette runs any ASGI application that a handler returns.
        app.add_route(path, _answering(handler), methods=[method])  # type: ignore[arg-type]
    return app


def _answering(handler: Handler) -> Callable[[Request], Awaitable[Answer]]:
    """A handler whose failures become answers, and which ends when its client goes."""

    async def answer(request: Request) -> Answer:
        hops = _NOT_FORWARDED | {name.strip() for name in request.headers.get("connection", "").lower().split(",")}
        client_headers.set({k: v for k, v in request.headers.items() if k not in hops})
        await request.body()
        try:
            return await _unless_gone(request, handler(request, _balancer()))
        except LegFailed as failed:
            return respond(failed.body, failed.status, failed.content_type, failed.leg)

    answer.__name__ = handler.__name__
    return answer


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_has_gone(request))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        return respond(b"", 499, "text/plain")
    finally:
        gone.cancel()
        task.cancel()


async def _has_gone(request: Request) -> None:
    """Returns when the client has left; its body must have been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _balancer() -> MiniLoadBalancer:
    from .. import mini_lb

    if mini_lb.lb is None:
        raise failure("", 503, "no balancer has been started")
    return mini_lb.lb


async def health_check(request: Request, balancer: MiniLoadBalancer) -> Answer:
    """The balancer's own health."""
    return respond(b"", 200, "text/plain")


async def health_generate(request: Request, balancer: MiniLoadBalancer) -> Answer:
    """Every server's health."""
    return await _broadcast(balancer, "GET", "/health_generate")


async def flush_cache(request: Request, balancer: MiniLoadBalancer) -> Answer:
    """Flushes every server's cache; the query (`timeout`) goes along."""
    query = f"?{request.url.query}" if request.url.query else ""
    return await _broadcast(balancer, "POST", f"/flush_cache{query}")


async def abort_request(request: Request, balancer: MiniLoadBalancer) -> Answer:
    """Aborts at every server: two of them have the request, and the balancer does not know which."""
    return await _broadcast(balancer, "POST", "/abort_request", json=await _json(request))


async def _broadcast(balancer: MiniLoadBalancer, method: str, path: str, **body: Any) -> Answer:
    servers = [*balancer.prefill_urls, *balancer.decode_urls]
    answers = await asyncio.gather(*(_ask(balancer, method, server, path, **body) for server in servers))
    for server, (status, text) in zip(servers, answers, strict=True):
        if status >= 400:
            raise failure("", status, f"{server}{path}: {text.decode(errors='replace') or status}")
    return respond(b"", 200, "text/plain")


async def _ask(balancer: MiniLoadBalancer, method: str, server: str, path: str, **body: Any) -> tuple[int, bytes]:
    """Status and body of a request of the balancer's own; 502 or 504 when there is no answer."""
    headers = {k: v for k, v in client_headers.get({}).items() if k not in ("accept", "user-agent")}
    more = body | ({"headers": headers} if headers else {})
    try:
        response = await balancer.session().request(method, f"{server}{path}", **more)
        if response is None:  # from a stand-in for the session
            return 200, b""
        async with response:
            return response.status, await response.read()
    except asyncio.TimeoutError:
        return 504, b"no answer in time"
    except (OSError, require("aiohttp").ClientError) as error:
        return 502, f"cannot be reached ({error})".encode()


async def info(balancer: MiniLoadBalancer, server: str, *paths: str) -> dict[str, Any]:
    """The JSON object at the first of `paths` that the server has."""
    status, text = 404, b""
    for path in paths or ("/server_info", "/get_server_info"):
        status, text = await _ask(balancer, "GET", server, path)
        if status != 404:
            break
    if status != 200:
        raise failure("", 503 if status in (502, 504) else 502, f"{server}: {status} {text.decode(errors='replace')}")
    try:
        found: dict[str, Any] = json.loads(text)
        return found
    except ValueError as error:
        raise failure("", 502, f"{server}: not JSON ({error})") from error


async def get_server_info(request: Request, balancer: MiniLoadBalancer) -> Answer:
    """Every server's info, and the decode servers' internal states in one list."""
    prefill = await asyncio.gather(*(info(balancer, server) for server in balancer.prefill_urls))
    decode = await asyncio.gather(*(info(balancer, server) for server in balancer.decode_urls))
    states = [state for found in decode for state in found.get("internal_states") or ()]
    unknown = {"last_gen_throughput": 0.0, "avg_spec_accept_length": None}
    answer = {"internal_states": states or [unknown], "prefill": prefill, "decode": decode}
    return respond(json.dumps(answer).encode(), 200, "application/json")


async def get_model_info(request: Request, balancer: MiniLoadBalancer) -> Answer:
    """The first prefill server's model."""
    if not balancer.prefill_urls:
        raise failure("", 503, "there is no prefill server")
    found = await info(balancer, balancer.prefill_urls[0], "/model_info", "/get_model_info")
    return respond(json.dumps(found).encode(), 200, "application/json")


async def get_models(request: Request, balancer: MiniLoadBalancer) -> Answer:
    """The first prefill server's list of models, with its status."""
    if not balancer.prefill_urls:
        raise failure("", 503, "there is no prefill server")
    status, text = await _ask(balancer, "GET", balancer.prefill_urls[0], "/v1/models")
    return respond(text, status, "application/json")


async def handle_generate_request(request: Request, balancer: MiniLoadBalancer) -> Answer:
    """`/generate`: a batch gets a bootstrap room per request."""
    data = await _json(request)
    return await _forward_to_backend(data, "generate", balancer, _get_request_batch_size(data))


async def handle_chat_completion_request(request: Request, balancer: MiniLoadBalancer) -> Answer:
    """`/v1/chat/completions`."""
    return await _forward_to_backend(await _json(request), "v1/chat/completions", balancer)


async def handle_completion_request(request: Request, balancer: MiniLoadBalancer) -> Answer:
    """`/v1/completions`: several prompts are a batch."""
    data = await _json(request)
    return await _forward_to_backend(data, "v1/completions", balancer, _prompts(data.get("prompt")))


async def _json(request: Request) -> dict[str, Any]:
    try:
        data = json.loads(await request.body())
    except ValueError as error:
        raise failure("", 400, f"the body is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise failure("", 400, "the body is not a JSON object")
    return data


async def _forward_to_backend(
    data: dict[str, Any], endpoint: str, balancer: MiniLoadBalancer, batch: int | None = None
) -> Answer:
    """Sends a request to a random pair. Both legs get the same bootstrap host, port and room."""
    prefill, port, decode = balancer.select_pair()
    host = maybe_wrap_ipv6_address(urlsplit(prefill).hostname or "")
    modified = data | {"bootstrap_host": host, "bootstrap_port": port, "bootstrap_room": _generate_bootstrap_room()}
    if batch is not None:
        rooms = [_generate_bootstrap_room() for _ in range(batch)]
        modified |= {"bootstrap_host": [host] * batch, "bootstrap_port": [port] * batch, "bootstrap_room": rooms}
    send = balancer.generate_stream if data.get("stream") else balancer.generate
    return await send(modified, prefill, decode, endpoint)


def _generate_bootstrap_room() -> int:
    return random.getrandbits(63)


def _get_request_batch_size(request: Mapping[str, Any]) -> int | None:
    """How many requests `/generate` gets at once; `None` for a single one."""
    text, ids = request.get("text"), request.get("input_ids")
    if text is not None:
        return len(text) if isinstance(text, list) else None
    return _prompts(ids)


def _prompts(prompt: Any) -> int | None:
    """How many prompts these are; a list of token ids, or nothing, is a single one."""
    if not isinstance(prompt, list) or not prompt or isinstance(prompt[0], int):
        return None
    return len(prompt)


_ROUTES = (
    ("GET", "/health", health_check),
    ("GET", "/health_generate", health_generate),
    ("POST", "/flush_cache", flush_cache),
    ("POST", "/abort_request", abort_request),
    ("GET", "/server_info", get_server_info),
    ("GET", "/get_server_info", get_server_info),
    ("GET", "/model_info", get_model_info),
    ("GET", "/get_model_info", get_model_info),
    ("GET", "/v1/models", get_models),
    ("POST", "/generate", handle_generate_request),
    ("POST", "/v1/chat/completions", handle_chat_completion_request),
    ("POST", "/v1/completions", handle_completion_request),
)
