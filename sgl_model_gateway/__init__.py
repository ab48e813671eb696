"""The gateway that fleets of SGLang inference workers are put behind.

Usage:

    from sgl_model_gateway import Router

    with Router(worker_urls=["http://gpu-1:30000"], port=0) as gateway:
        print(gateway.url)

Nothing heavy is imported here: names resolve when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .router import Router
    from .router_args import RouterArgs
    from .version import __version__

__all__ = ["Router", "RouterArgs", "__version__"]

_HOMES = {"Router": "router", "RouterArgs": "router_args", "__version__": "version"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    try:
        value = globals()[name] = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    except ImportError as error:  # so that `hasattr` answers
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}: {error}") from error
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
