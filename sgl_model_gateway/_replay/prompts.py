"""Requests of a trace as bodies: text that follows from the hashes of its blocks, and shares what they share."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from hashlib import shake_128
from typing import Any

from .trace import CHAT, Arrival

# Words of one token each in most vocabularies, 5 bytes with the space on the average.
_WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem "
    "hand part place case week company system program question work number night point home water room mother area "
    "money story fact month lot right study book eye job word business issue side kind head house service friend "
    "father power hour game line end member law car city name team minute idea body back parent face level office "
    "door health person art war history party result change morning reason research girl guy moment air teacher "
    "force order"
).split()
# Texts that are kept, of 2 KiB each as a rule.
_KEPT = 16 * 1024


@lru_cache(_KEPT)
def block_text(block: int, size: int, salt: str) -> str:
    """The text of a block, always the same: plain words of `size` bytes in all, without anything JSON escapes."""
    stream = shake_128(f"{salt}/{block}".encode()).digest(size // 3 + 8)
    # Its beginning is its own: two blocks differ from their first bytes on.
    words = [stream[:6].hex(), *(_WORDS[byte % len(_WORDS)] for byte in stream[6:])]
    return " ".join(words)[: size - 1].ljust(size - 1) + " " if size else ""


def prompt_text(arrival: Arrival, block_bytes: int, salt: str) -> str:
    """The text of a prompt."""
    if not arrival.blocks:
        # It shares nothing, as far as the trace says.
        return block_text(-1 - int(arrival.at_ms * 1000), arrival.input_bytes, salt)
    whole, last = arrival.blocks[:-1], arrival.blocks[-1]
    rest = max(1, arrival.input_bytes - len(whole) * block_bytes)
    return "".join([*(block_text(block, block_bytes, salt) for block in whole), block_text(last, rest, salt)])


def _chat(text: str, tokens: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": tokens, "ignore_eos": True}


def _completion(text: str, tokens: int) -> dict[str, Any]:
    return {"prompt": text, "max_tokens": tokens, "ignore_eos": True}


def _generate(text: str, tokens: int) -> dict[str, Any]:
    return {"text": text, "sampling_params": {"max_new_tokens": tokens, "ignore_eos": True}}


def _responses(text: str, tokens: int) -> dict[str, Any]:
    return {"input": text, "max_output_tokens": tokens}


def _messages(text: str, tokens: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": tokens}


def _embeddings(text: str, tokens: int) -> dict[str, Any]:
    del tokens
    return {"input": text}


_BODIES: dict[str, Callable[[str, int], dict[str, Any]]] = {
    CHAT: _chat,
    "/v1/completions": _completion,
    "/generate": _generate,
    "/v1/responses": _responses,
    "/v1/messages": _messages,
    "/v1/embeddings": _embeddings,
}
_COUNT_IF_ASKED = (CHAT, "/v1/completions")
_WITHOUT_STREAMS = ("/v1/embeddings",)


def endpoint_of(arrival: Arrival) -> str:
    """Where a request is sent: where it was recorded, or to chat where its kind cannot be made."""
    return arrival.endpoint if arrival.endpoint in _BODIES else CHAT


def body(arrival: Arrival, text: str, model: str | None) -> bytes:
    """The body of a request with this text."""
    endpoint = endpoint_of(arrival)
    fields = _BODIES[endpoint](text, max(1, arrival.output_tokens))
    name = model or arrival.model
    if name and endpoint != "/generate":
        fields["model"] = name
    if arrival.streams and endpoint not in _WITHOUT_STREAMS:
        fields["stream"] = True
        if endpoint in _COUNT_IF_ASKED:
            fields["stream_options"] = {"include_usage": True}
    return json.dumps(fields).encode()
