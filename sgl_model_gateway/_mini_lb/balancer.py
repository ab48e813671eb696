"""The balancer: the servers it knows, and how a request gets to a pair of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
from collections.abc import Callable, Coroutine, Mapping
from contextvars import ContextVar
from dataclasses import fields
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from .._options.flags import default_of, flag_of
from ..router_args import RouterArgs
from .pair import Answer, PairStream, failure, merge_prefill_json, open_leg, read_leg, together

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession
    from fastapi import Response
    from starlette.types import Receive, Scope, Send

logger = logging.getLogger("sgl_model_gateway.mini_lb")

Request = dict[str, Any]
"""A request's JSON body."""

_Leg = TypeVar("_Leg", "Answer", "ClientResponse")
_SendLeg = Callable[["ClientSession", str, str, Request, dict[str, str]], Coroutine[Any, Any, _Leg]]

_USED = {
    *("mini_lb", "host", "port", "pd_disaggregation", "prefill_urls", "decode_urls", "policy", "log_level"),
    *("request_timeout_secs", "shutdown_grace_period_secs", "test_external_dp_routing"),
}
# Not an argument of `generate`: programs replace that method by one with its four parameters.
client_headers: ContextVar[dict[str, str]] = ContextVar("client_headers")


def require(module: str) -> ModuleType:
    """Imports what `--mini-lb` needs. Raises `RuntimeError` that says how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise RuntimeError(
            f"--mini-lb needs {module}, which cannot be imported ({error}). "
            "Install it with: pip install 'sgl-model-gateway[mini-lb]'"
        ) from error


class MiniLoadBalancer:
    """A balancer for prefill/decode pairs, to debug with.

    Usage:

        args = RouterArgs(
            pd_disaggregation=True,
            prefill_urls=[("http://gpu-1:30000", 8998)],
            decode_urls=["http://gpu-2:30000"],
        )
        MiniLoadBalancer(args).start()

    Args:
        router_args: the options. `policy` is set to `random`, the only one; the rest stays as it is.

    Raises:
        ValueError: no prefill or no decode server, not in prefill/decode mode, a URL that is none, or an `api_key`.
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
        self._session_and_loop: tuple[ClientSession, asyncio.AbstractEventLoop] | None = None

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
            raise ValueError("--api-key: MiniLB does not check keys; it forwards those of clients to the servers")
        if ignored := _ignored(router_args):
            logger.warning(f"MiniLB ignores {', '.join(ignored)}")

    def start(self) -> None:
        """Serves until SIGINT or SIGTERM.

        Raises:
            RuntimeError: aiohttp, FastAPI or uvicorn is missing; the message says how to install it.
        """
        # Programs read and replace `lb` and `app` on the public module, so they live there.
        from .. import mini_lb

        for module in ("aiohttp", "fastapi"):
            require(module)
        mini_lb.lb = self
        require("uvicorn").run(
            mini_lb.app,
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
        self, modified_request: Request, prefill_server: str, decode_server: str, endpoint: str
    ) -> Response:
        """The decode server's answer, once both servers have answered.

        Args:
            modified_request: the client's JSON body with `bootstrap_host`, `bootstrap_port` and `bootstrap_room`.
            prefill_server: base URL.
            decode_server: base URL.
            endpoint: path without its first slash.

        Raises:
            LegFailed: one of the two did not answer as it should.
        """
        rank, legs = await self._legs(read_leg, modified_request, (prefill_server, decode_server), endpoint)
        prefill, decode = await together(*legs)
        body = decode.body
        if _wants_merge(modified_request):
            body = _merged(prefill.body, body)
        if rank is not None:
            _check_rank(body, rank)
        return respond(body, decode.status, decode.content_type)

    async def generate_stream(
        self, modified_request: Request, prefill_server: str, decode_server: str, endpoint: str = "generate"
    ) -> StreamResponse:
        """The decode server's stream, once its first piece is there and the prefill server has not refused.

        Arguments and errors are those of `generate`. A later failure becomes an event of the stream.
        """
        _, legs = await self._legs(open_leg, modified_request, (prefill_server, decode_server), endpoint)
        prefill, decode = await together(*legs)
        stream = PairStream(prefill, decode, _wants_merge(modified_request))
        await stream.start()
        return StreamResponse(stream, decode.status)

    def session(self) -> ClientSession:
        """The one client session, made in the event loop that runs."""
        loop = asyncio.get_running_loop()
        if self._session_and_loop is None or self._session_and_loop[1] is not loop:
            from .. import mini_lb

            # Programs' tests replace `mini_lb.aiohttp`.
            aiohttp = getattr(mini_lb, "aiohttp", None) or require("aiohttp")
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
        self, send: _SendLeg[_Leg], request: Request, servers: tuple[str, str], endpoint: str
    ) -> tuple[int | None, list[Coroutine[Any, Any, _Leg]]]:
        """The data-parallel rank that decode is to name, and what is to run: both legs."""
        bodies: tuple[Request, Request] = (request, request)
        rank = None
        if self.test_external_dp_routing:
            await self._ensure_dp_sizes()
            prefill, decode, rank = self._fork_dp_requests(request)
            bodies = (prefill, decode)
        legs = zip(("prefill", "decode"), servers, bodies, strict=True)
        headers = client_headers.get({})
        return rank, [send(self.session(), leg, f"{server}/{endpoint}", body, headers) for leg, server, body in legs]

    async def _ensure_dp_sizes(self) -> None:
        if self.prefill_dp_size is None or self.decode_dp_size is None:
            from .routes import info

            infos = [await info(self, server) for server in (self.prefill_urls[0], self.decode_urls[0])]
            self.prefill_dp_size, self.decode_dp_size = (len(one.get("internal_states") or [1]) for one in infos)

    def _fork_dp_requests(self, request: Request) -> tuple[Request, Request, int]:
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
    """Options that differ from their defaults and do nothing here."""
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


def respond(body: bytes, status: int, content_type: str, leg: str = "") -> Response:
    """A response to a client. `leg` names the server, prefill or decode, that a failure came from."""
    from fastapi import Response

    headers = {"x-mini-lb-leg": leg} if leg else None
    return Response(body, status, headers=headers, media_type=content_type)


class StreamResponse:
    """Ends both legs even when the client goes before the first piece is sent."""

    def __init__(self, stream: PairStream, status: int) -> None:
        from fastapi.responses import StreamingResponse

        self._stream = stream
        self._response = StreamingResponse(stream.pieces(), status, media_type="text/event-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._response(scope, receive, send)
        finally:
            self._stream.close()
