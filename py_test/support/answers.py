"""What two answers to one request have in common."""

from __future__ import annotations

import json
from typing import Any

VOLATILE = {"id", "created", "cached_tokens", "cached_tokens_details", "dp_rank", "cache_read_input_tokens"}
VOLATILE |= {"input_tokens"}  # Anthropic's, without those that are cached


def steady(value: Any) -> Any:
    """A value without what differs between two equal requests."""
    if isinstance(value, dict):
        return {k: steady(v) for k, v in value.items() if k not in VOLATILE and not k.endswith(("_ts", "_latency"))}
    if isinstance(value, float):
        return round(value, 3)  # the sums of a batch depend on what is computed together
    return [steady(inner) for inner in value] if isinstance(value, list) else value


def texts(value: Any) -> list[str]:
    """The pieces of text in a chunk, whatever the API."""
    if isinstance(value, dict):
        pieces = [(key, inner) for key, inner in value.items() if key in ("text", "content") and isinstance(inner, str)]
        return [text for _, text in pieces] + [text for inner in value.values() for text in texts(inner)]
    return [text for inner in value for text in texts(inner)] if isinstance(value, list) else []


def outcome(answer: tuple[int, str], cumulative: bool) -> Any:
    """What an answer says: a stream by the texts that it gives to each choice, for engines cut it anew each time."""
    code, text = answer
    if not text.startswith(("data:", "event:")):
        return code, steady(json.loads(text))
    events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    said: dict[int, str] = {}
    errors = []
    for event in events:
        if event == "[DONE]":
            continue
        chunk = json.loads(event)
        if "error" in chunk:
            errors.append(chunk["error"])
        choices = chunk.get("choices") or [chunk]
        for choice in choices:
            at, new = choice.get("index", 0), "".join(texts(choice))
            said[at] = new if cumulative else said.get(at, "") + new
    return code, said, errors, events[-1] == "[DONE]"
