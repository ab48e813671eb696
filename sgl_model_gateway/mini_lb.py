"""`--mini-lb`: a balancer for prefill/decode pairs in pure Python, to debug with. Pairs are chosen at random.

The balancer is in `_mini_lb/`. FastAPI, uvicorn and aiohttp are imported when they are first used; `app` (the FastAPI
application) and `aiohttp` are attributes of this module all the same.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ._mini_lb.balancer import MiniLoadBalancer, require
from ._mini_lb.pair import AIOHTTP_STREAM_READ_CHUNK_SIZE, merge_prefill_json

# The names that upstream's module has. Its `test_mini_lb.py` and programs that derive from `MiniLoadBalancer` use them.
from ._mini_lb.routes import (
    _broadcast,
    _forward_to_backend,
    _generate_bootstrap_room,
    _get_request_batch_size,
    abort_request,
    create_app,
    flush_cache,
    get_model_info,
    get_models,
    get_server_info,
    handle_chat_completion_request,
    handle_completion_request,
    handle_generate_request,
    health_check,
    health_generate,
    maybe_wrap_ipv6_address,
)

if TYPE_CHECKING:
    import aiohttp as aiohttp
    from fastapi import FastAPI

    app: FastAPI

__all__ = [
    "AIOHTTP_STREAM_READ_CHUNK_SIZE",
    "MiniLoadBalancer",
    "_broadcast",
    "_forward_to_backend",
    "_generate_bootstrap_room",
    "_get_request_batch_size",
    "abort_request",
    "flush_cache",
    "get_model_info",
    "get_models",
    "get_server_info",
    "handle_chat_completion_request",
    "handle_completion_request",
    "handle_generate_request",
    "health_check",
    "health_generate",
    "maybe_wrap_ipv6_address",
]

logger = logging.getLogger(__name__)

# Programs that derive from `MiniLoadBalancer` set this and run `app` themselves.
lb: MiniLoadBalancer | None = None
"""The balancer that `app` serves, `None` until one starts."""

# Upstream's module has this flag.
trace_package_imported = False
"""Whether requests are traced: never."""

# Upstream's tests of merging, and programs that replace `MiniLoadBalancer.generate`, call it by this name.
_merge_prefill_json = merge_prefill_json


def __getattr__(name: str) -> Any:
    # Upstream's `test_mini_lb.py` patches `mini_lb.aiohttp.ClientSession`; derived balancers run `mini_lb.app`.
    # A package that is not installed is a missing attribute, so that `hasattr` answers.
    try:
        if name == "app":
            globals()[name] = application = create_app()
            return application
        if name == "aiohttp":
            return require(name)
    except RuntimeError as error:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}: {error}") from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
