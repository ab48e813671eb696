"""Run when an interpreter starts: SGLang's engines in pairs ask torch for an accelerator also where there is none.

Pinned memory is ordinary memory then, and streams and events have nothing to wait for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class Done:
    """A stream or an event of the CPU: what it is asked to wait for has happened."""

    cuda_stream = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, *_: Any) -> None:
        """Nothing is pending."""

    wait = synchronize = wait_stream = wait_event = record

    def record_event(self, event: Any = None) -> Any:
        return event or Done()

    def query(self) -> bool:
        return True

    def elapsed_time(self, _other: Any) -> float:
        return 0.0

    def __enter__(self) -> Done:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def unpinned(make: Callable[..., Any]) -> Callable[..., Any]:
    """`make` without its argument `pin_memory`."""

    def make_unpinned(*arguments: Any, pin_memory: bool = False, **keywords: Any) -> Any:
        return make(*arguments, **keywords)

    return make_unpinned


def replace_accelerator() -> None:
    import torch

    if torch.cuda.is_available():
        return
    for name in ("empty", "zeros", "ones", "full", "tensor"):
        setattr(torch, name, unpinned(getattr(torch, name)))
    torch.Tensor.pin_memory = lambda tensor, *_, **__: tensor  # type: ignore[method-assign]
    cuda: Any = torch.cuda
    Done.device = torch.device("cpu")  # type: ignore[attr-defined]
    cuda.Event = cuda.Stream = Done
    cuda.current_stream = cuda.default_stream = Done
    cuda.synchronize = lambda *_, **__: None


class BeforeSglang:
    """Replaces what torch lacks just before SGLang is imported."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name == "sglang" and self in sys.meta_path:
            sys.meta_path.remove(self)
            replace_accelerator()
        return None


sys.meta_path.insert(0, BeforeSglang())
