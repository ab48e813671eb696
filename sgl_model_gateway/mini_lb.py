"""`--mini-lb`: a balancer for prefill/decode pairs in pure Python, to debug with. Pairs are chosen at random.

FastAPI, uvicorn and aiohttp are imported when they are first used; `app` (the FastAPI application) and `aiohttp`
are attributes of this module all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import random
import sys
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextvars import ContextVar
from dataclasses import fields
from typing import Any
from urllib.parse import urlsplit

from .mini_lb_pair import (
    AIOHTTP_STREAM_READ_CHUNK_SIZE,
    LegFailed,
    PairStream,
    failure,
    merge_prefill_json,
    open_leg,
    read_leg,
    together,
)
from .options import default_of, flag_of
from .router_args import RouterArgs

__all__ = ["AIOHTTP_STREAM_READ_CHUNK_SIZE", "MiniLoadBalancer", "maybe_wrap_ipv6_address"]

logger = logging.getLogger(__name__)

lb: MiniLoadBalancer | None = None
"""The balancer that `app` serves, `None` until one starts."""

trace_package_imported = False
"""Whether requests are traced: never."""

_merge_prefill_json = merge_prefill_json

_USED = {
    *("mini_lb", "host", "port", "pd_disaggregation", "prefill_urls", "decode_urls", "policy", "log_level"),
    *("request_timeout_secs", "shutdown_grace_period_secs", "test_external_dp_routing"),
}
# Of the connection with the client, or made anew for the one with a server.
_NOT_FORWARDED = {
    *("host", "content-length", "content-type", "accept-encoding", "connection", "keep-alive", "te", "trailer"),
    *("transfer-encoding", "upgrade", "proxy-authenticate", "proxy-authorization", "proxy-connection", "expect"),
}
# Not an argument of `generate`: programs replace that method by one with its four parameters.
_client_headers: ContextVar[dict[str, str]] = ContextVar("client_headers")


def __getattr__(name: str) -> Any:
    if name == "app":
        globals()[name] = app = _create_app()
        return app
    if name == "aiohttp":
        return _require("aiohttp")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _require(module: str) -> Any:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        raise RuntimeError(
            f"--mini-lb needs {module}, which cannot be imported ({error}). "
            "Install it with: pip install 'sgl-model-gateway[mini-lb]'"
        ) from error


def maybe_wrap_ipv6_address(address: str) -> str:
    """An IPv6 address in brackets; anything else as it is."""
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return address
    return f"[{address}]"


class MiniLoadBalancer:
    """The balancer: which servers there are, and how a request gets to a pair of them.

    Raises `ValueError` unless there are a prefill and a decode server in prefill/decode mode. Sets the caller's
    policy to `random`, which is the only one; otherwise `router_args` stays as it is.
    """

    def __init__(self, router_args: RouterArgs) -> None:
        self._validate_router_args(router_args)
        self.host = router_args.host
        self.port = router_args.port
        self.timeout = router_args.request_timeout_secs
        self.prefill_urls = [_base(url, "--prefill") for url, _ in router_args.prefill_urls]
        self.prefill_bootstrap_ports = [port for _, port in router_args.prefill_urls]
        self.decode_urls = [_base(url, "--decode") for url in router_args.decode_urls]
        self.test_external_dp_routing = router_args.test_external_dp_routing
        self.prefill_dp_size: int | None = None
        self.decode_dp_size: int | None = None
        self._grace = router_args.shutdown_grace_period_secs
        self._log_level = {"warn": "warning"}.get(router_args.log_level or "info", router_args.log_level or "info")
        self._session_and_loop: tuple[Any, Any] | None = None

    def _validate_router_args(self, router_args: RouterArgs) -> None:
        logger.warning("\x1b[33mMiniLB is for debugging only, and chooses pairs at random\x1b[0m")
        if router_args.policy != "random":
            logger.warning(f"MiniLB uses the policy random instead of {router_args.policy}")
            router_args.policy = "random"
        if not router_args.pd_disaggregation:
            raise ValueError("MiniLB only supports PD disaggregation mode: give --pd-disaggregation")
        if not router_args.prefill_urls or not router_args.decode_urls:
            raise ValueError("MiniLB requires at least one prefill and one decode server")
        if router_args.api_key:
            raise ValueError("--api-key: MiniLB asks nobody for a key; clients' own keys go through to the servers")
        if ignored := _ignored(router_args):
            logger.warning(f"MiniLB ignores {', '.join(ignored)}")

    def start(self) -> None:
        """Serves until SIGINT or SIGTERM. Raises `RuntimeError` naming what to install when something is missing."""
        global lb
        for module in ("aiohttp", "fastapi"):
            _require(module)
        lb = self
        _require("uvicorn").run(
            sys.modules[__name__].app,
            host=self.host.strip("[]"),
            port=self.port,
            log_level=self._log_level,
            timeout_graceful_shutdown=self._grace,
        )

    def select_pair(self) -> tuple[str, int | None, str]:
        """A random prefill server, its bootstrap port, and a random decode server."""
        assert self.prefill_urls, "No prefill servers available"
        assert self.decode_urls, "No decode servers available"
        prefill = random.randrange(len(self.prefill_urls))
        return self.prefill_urls[prefill], self.prefill_bootstrap_ports[prefill], random.choice(self.decode_urls)

    async def generate(
        self, modified_request: dict[str, Any], prefill_server: str, decode_server: str, endpoint: str
    ) -> Any:
        """The decode server's answer, once both have answered. `endpoint` has no slash in front."""
        rank, legs = await self._legs(read_leg, modified_request, (prefill_server, decode_server), endpoint)
        prefill, decode = await together(*legs)
        body = decode.body
        if _wants_merge(modified_request):
            body = _merged(prefill.body, body)
        if rank is not None:
            _check_rank(body, rank)
        return _response(body, decode.status, decode.content_type)

    async def generate_stream(
        self, modified_request: dict[str, Any], prefill_server: str, decode_server: str, endpoint: str = "generate"
    ) -> Any:
        """The decode server's stream, once its first piece is there and the prefill server has not refused."""
        _, legs = await self._legs(open_leg, modified_request, (prefill_server, decode_server), endpoint)
        prefill, decode = await together(*legs)
        stream = PairStream(prefill, decode, _wants_merge(modified_request))
        await stream.start()
        return _StreamResponse(stream, decode.status)

    def session(self) -> Any:
        """The one client session, made in the event loop that runs."""
        loop = asyncio.get_running_loop()
        if self._session_and_loop is None or self._session_and_loop[1] is not loop:
            aiohttp = _require("aiohttp")
            # A limit could leave one leg waiting for the other's end. Servers close idle connections after 5 s.
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2)
            timeout = aiohttp.ClientTimeout(total=self.timeout)
            # One client's cookies are not the next one's.
            session = aiohttp.ClientSession(connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar())
            self._session_and_loop = session, loop
        return self._session_and_loop[0]

    async def close(self) -> None:
        """Closes the client session."""
        if self._session_and_loop:
            await self._session_and_loop[0].close()
            self._session_and_loop = None

    async def _legs(
        self, send: Any, request: dict[str, Any], servers: tuple[str, str], endpoint: str
    ) -> tuple[int | None, list[Any]]:
        """The data-parallel rank that decode is to name, and what is to run: both legs."""
        bodies, rank = (request, request), None
        if self.test_external_dp_routing:
            await self._ensure_dp_sizes()
            *bodies, rank = self._fork_dp_requests(request)  # type: ignore[assignment]
        legs = zip(("prefill", "decode"), servers, bodies, strict=True)
        headers = _client_headers.get({})
        return rank, [send(self.session(), leg, f"{server}/{endpoint}", body, headers) for leg, server, body in legs]

    async def _ensure_dp_sizes(self) -> None:
        if self.prefill_dp_size is None or self.decode_dp_size is None:
            infos = [await _info(self, server) for server in (self.prefill_urls[0], self.decode_urls[0])]
            self.prefill_dp_size, self.decode_dp_size = (len(info.get("internal_states") or [1]) for info in infos)

    def _fork_dp_requests(self, request: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], int]:
        """The request for each leg with random data-parallel ranks, and decode's rank."""
        prefill = random.randrange(self.prefill_dp_size or 1)
        decode = random.randrange(self.decode_dp_size or 1)
        return (
            request | {"routed_dp_rank": prefill},
            request | {"routed_dp_rank": decode, "disagg_prefill_dp_rank": prefill},
            decode,
        )


def _base(url: str, flag: str) -> str:
    where = urlsplit(url)
    if where.scheme not in ("http", "https") or not where.hostname:
        raise ValueError(f"{flag}: {url!r} is not a server's URL; expected http://host:port")
    return url.rstrip("/")


def _ignored(router_args: RouterArgs) -> list[str]:
    """Options that were set, as far as can be told, and do nothing here."""
    return [
        f"--{flag_of(field).spelling(field).replace('_', '-')}"
        for field in fields(router_args)
        if field.name not in _USED
        and getattr(router_args, field.name) not in (default_of(field), flag_of(field).cli_default)
    ]


def _wants_merge(request: Mapping[str, Any]) -> bool:
    return bool(request.get("return_logprob") or request.get("return_routed_experts"))


def _merged(prefill: bytes, decode: bytes) -> bytes:
    try:
        first, second = json.loads(prefill), json.loads(decode)
        merge_prefill_json(first, second)
    except ValueError as error:
        raise failure("decode", 502, f"the pair's answers cannot be merged: {error}") from error
    return json.dumps(second, ensure_ascii=False, separators=(",", ":")).encode()


def _check_rank(body: bytes, expected: int) -> None:
    with contextlib.suppress(ValueError):
        answer = json.loads(body)
        answer = answer[0] if isinstance(answer, list) and answer else answer
        actual = answer.get("meta_info", {}).get("dp_rank") if isinstance(answer, dict) else None
        if actual == expected:
            return
        raise failure("decode", 500, f"DP rank mismatch: expected {expected}, got {actual}")


def _response(body: bytes, status: int, content_type: str, leg: str = "") -> Any:
    from fastapi.responses import Response

    headers = {"x-mini-lb-leg": leg} if leg else None
    return Response(body, status, headers=headers, media_type=content_type)


class _StreamResponse:
    """Ends both legs even when the client goes before the first piece is sent."""

    def __init__(self, stream: PairStream, status: int) -> None:
        from fastapi.responses import StreamingResponse

        self._stream = stream
        self._response = StreamingResponse(stream.pieces(), status, media_type="text/event-stream")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self._response(scope, receive, send)
        finally:
            self._stream.close()


# --- routes


def _create_app() -> Any:
    fastapi = _require("fastapi")

    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        yield
        if lb:
            await lb.close()

    app = fastapi.FastAPI(lifespan=lifespan, title="MiniLB")
    for method, path, handler in _ROUTES:
        app.add_route(path, _answering(handler), methods=[method])
    return app


def _answering(handler: Any) -> Any:
    """A handler whose failures become answers, and which ends when its client goes."""

    async def answer(request: Any) -> Any:
        hops = _NOT_FORWARDED | {name.strip() for name in request.headers.get("connection", "").lower().split(",")}
        _client_headers.set({k: v for k, v in request.headers.items() if k not in hops})
        await request.body()
        try:
            return await _unless_gone(request, handler(request, _balancer()))
        except LegFailed as failed:
            return _response(failed.body, failed.status, failed.content_type, failed.leg)

    answer.__name__ = handler.__name__
    return answer


async def _unless_gone(request: Any, work: Coroutine[Any, Any, Any]) -> Any:
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_has_gone(request))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        return _response(b"", 499, "text/plain")
    finally:
        gone.cancel()
        task.cancel()


async def _has_gone(request: Any) -> None:
    """Returns when the client has left; its body must have been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _balancer() -> MiniLoadBalancer:
    if lb is None:
        raise failure("", 503, "no balancer has been started")
    return lb


async def health_check(request: Any, balancer: MiniLoadBalancer) -> Any:
    """The balancer's own health."""
    return _response(b"", 200, "text/plain")


async def health_generate(request: Any, balancer: MiniLoadBalancer) -> Any:
    """Every server's health."""
    return await _broadcast(balancer, "GET", "/health_generate")


async def flush_cache(request: Any, balancer: MiniLoadBalancer) -> Any:
    """Flushes every server's cache; the query (`timeout`) goes along."""
    query = f"?{request.url.query}" if request.url.query else ""
    return await _broadcast(balancer, "POST", f"/flush_cache{query}")


async def abort_request(request: Any, balancer: MiniLoadBalancer) -> Any:
    """Aborts at every server: only two of them know the request, and not which."""
    return await _broadcast(balancer, "POST", "/abort_request", json=await _json(request))


async def _broadcast(balancer: MiniLoadBalancer, method: str, path: str, **body: Any) -> Any:
    servers = [*balancer.prefill_urls, *balancer.decode_urls]
    answers = await asyncio.gather(*(_ask(balancer, method, server, path, **body) for server in servers))
    for server, (status, text) in zip(servers, answers, strict=True):
        if status >= 400:
            raise failure("", status, f"{server}{path}: {text.decode(errors='replace') or status}")
    return _response(b"", 200, "text/plain")


async def _ask(balancer: MiniLoadBalancer, method: str, server: str, path: str, **body: Any) -> tuple[int, bytes]:
    """Status and body of a request of the balancer's own; 502 or 504 when there is no answer."""
    headers = {k: v for k, v in _client_headers.get({}).items() if k not in ("accept", "user-agent")}
    more = body | ({"headers": headers} if headers else {})
    try:
        response = await balancer.session().request(method, f"{server}{path}", **more)
        if response is None:  # from a stand-in for the session
            return 200, b""
        async with response:
            return response.status, await response.read()
    except asyncio.TimeoutError:
        return 504, b"no answer in time"
    except (OSError, _require("aiohttp").ClientError) as error:
        return 502, f"cannot be reached ({error})".encode()


async def _info(balancer: MiniLoadBalancer, server: str, *paths: str) -> Any:
    """The JSON object at the first of `paths` that the server has."""
    status, text = 404, b""
    for path in paths or ("/server_info", "/get_server_info"):
        status, text = await _ask(balancer, "GET", server, path)
        if status != 404:
            break
    if status != 200:
        raise failure("", 503 if status in (502, 504) else 502, f"{server}: {status} {text.decode(errors='replace')}")
    try:
        return json.loads(text)
    except ValueError as error:
        raise failure("", 502, f"{server}: not JSON ({error})") from error


async def get_server_info(request: Any, balancer: MiniLoadBalancer) -> Any:
    """What every server says of itself, and the decode servers' internal states in one list."""
    prefill = await asyncio.gather(*(_info(balancer, server) for server in balancer.prefill_urls))
    decode = await asyncio.gather(*(_info(balancer, server) for server in balancer.decode_urls))
    states = [state for info in decode for state in info.get("internal_states") or ()]
    unknown = {"last_gen_throughput": 0.0, "avg_spec_accept_length": None}
    answer = {"internal_states": states or [unknown], "prefill": prefill, "decode": decode}
    return _response(json.dumps(answer).encode(), 200, "application/json")


async def get_model_info(request: Any, balancer: MiniLoadBalancer) -> Any:
    """The first prefill server's model."""
    if not balancer.prefill_urls:
        raise failure("", 503, "there is no prefill server")
    info = await _info(balancer, balancer.prefill_urls[0], "/model_info", "/get_model_info")
    return _response(json.dumps(info).encode(), 200, "application/json")


async def get_models(request: Any, balancer: MiniLoadBalancer) -> Any:
    """The first prefill server's list of models, with its status."""
    if not balancer.prefill_urls:
        raise failure("", 503, "there is no prefill server")
    status, text = await _ask(balancer, "GET", balancer.prefill_urls[0], "/v1/models")
    return _response(text, status, "application/json")


async def handle_generate_request(request: Any, balancer: MiniLoadBalancer) -> Any:
    """`/generate`: a batch gets a bootstrap room per request."""
    data = await _json(request)
    return await _forward_to_backend(data, "generate", balancer, _get_request_batch_size(data))


async def handle_chat_completion_request(request: Any, balancer: MiniLoadBalancer) -> Any:
    """`/v1/chat/completions`."""
    return await _forward_to_backend(await _json(request), "v1/chat/completions", balancer)


async def handle_completion_request(request: Any, balancer: MiniLoadBalancer) -> Any:
    """`/v1/completions`: several prompts are a batch."""
    data = await _json(request)
    return await _forward_to_backend(data, "v1/completions", balancer, _prompts(data.get("prompt")))


async def _json(request: Any) -> dict[str, Any]:
    try:
        data = json.loads(await request.body())
    except ValueError as error:
        raise failure("", 400, f"the body is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise failure("", 400, "the body is not a JSON object")
    return data


async def _forward_to_backend(
    data: dict[str, Any], endpoint: str, balancer: MiniLoadBalancer, batch: int | None = None
) -> Any:
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
