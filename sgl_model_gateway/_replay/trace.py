"""Traces in Mooncake's format: a JSON object per line, of a recording (`--record`) or of others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# What Mooncake's traces have, and the usual text.
BLOCK_TOKENS, BYTES_PER_TOKEN = 512, 4
CHAT = "/v1/chat/completions"


class TraceError(Exception):
    """A trace cannot be used."""


@dataclass(frozen=True)
class Arrival:
    """A request of a trace."""

    at_ms: float
    # Of its prompt, the last one perhaps not full.
    blocks: tuple[int, ...]
    input_bytes: int
    output_tokens: int
    endpoint: str = CHAT
    model: str | None = None
    streams: bool = True
    session: str | None = None
    # As they were when it was recorded.
    ttft_ms: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None


@dataclass(frozen=True)
class Trace:
    """Requests in the order of their arrival."""

    arrivals: list[Arrival]
    block_bytes: int
    block_tokens: int
    # It comes from `--record`.
    is_recording: bool
    # Lines of requests that reached no worker.
    left_out: int

    @property
    def span_s(self) -> float:
        """Seconds from the first arrival to the last."""
        return (self.arrivals[-1].at_ms - self.arrivals[0].at_ms) / 1000

    def tokens_per_block(self) -> int:
        """Tokens that a block has by the engines' own counts, where the trace has them."""
        counted = [one for one in self.arrivals if one.prompt_tokens and one.input_bytes]
        tokens = sum(one.prompt_tokens or 0 for one in counted)
        size = sum(one.input_bytes for one in counted)
        return max(1, round(self.block_bytes * tokens / size)) if size else self.block_tokens


def read(path: Path, limit: int | None = None) -> Trace:
    """Reads the first `limit` requests of a file.

    Raises:
        TraceError: a line is no request, or there is none.
        OSError: the file cannot be read.
    """
    about: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    left_out = 0
    for number, row in _rows(path):
        about = about or _about(row, number)
        if not row["hash_ids"] and not row["input_length"]:
            left_out += 1
        elif limit is None or len(rows) < limit:
            rows.append(row)
        else:
            break
    if not rows:
        raise TraceError("the trace is empty")
    block_tokens = about.get("block_tokens", BLOCK_TOKENS)
    block_bytes = about.get("block_bytes", block_tokens * BYTES_PER_TOKEN)
    arrivals = sorted((_arrival(row, block_bytes) for row in rows), key=lambda one: one.at_ms)
    return Trace(arrivals, block_bytes, block_tokens, bool(about), left_out)


def shortened(trace: Trace, *, block_divisor: int, output_divisor: int) -> Trace:
    """The same with smaller blocks and shorter outputs, so that less is sent and computed."""
    size = max(1, trace.block_bytes // block_divisor)
    arrivals = [
        replace(
            one,
            input_bytes=max(1, one.input_bytes // block_divisor),
            output_tokens=max(1, one.output_tokens // output_divisor),
        )
        for one in trace.arrivals
    ]
    return replace(trace, arrivals=arrivals, block_bytes=size, block_tokens=max(1, trace.block_tokens // block_divisor))


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                row.setdefault("input_length", len(row["hash_ids"]) * BLOCK_TOKENS)
                float(row["timestamp"]), int(row["input_length"]), int(row["output_length"]), list(row["hash_ids"])
            except (ValueError, TypeError) as error:
                raise TraceError(f"line {number}: {error}") from None
            except KeyError as error:
                raise TraceError(f"line {number}: there is no field {error}") from None
            yield number, row


def _about(row: dict[str, Any], number: int) -> dict[str, Any]:
    about = row.get("recording", {})
    if about and about.get("version") != 1:
        raise TraceError(f"line {number}: version {about.get('version')} of recordings is not known here")
    return dict(about)


def _arrival(row: dict[str, Any], block_bytes: int) -> Arrival:
    blocks = tuple(row["hash_ids"])
    size = row.get("input_bytes") or row["input_length"] * BYTES_PER_TOKEN
    return Arrival(
        at_ms=float(row["timestamp"]),
        blocks=blocks,
        # A recording looks at the beginning of a long prompt only.
        input_bytes=int(min(max(size, (len(blocks) - 1) * block_bytes + 1), max(1, len(blocks)) * block_bytes)),
        output_tokens=int(row["output_length"]),
        endpoint=row.get("endpoint", CHAT),
        model=row.get("model"),
        streams=bool(row.get("stream", True)),
        session=row.get("session"),
        ttft_ms=row.get("ttft_ms"),
        prompt_tokens=row.get("prompt_tokens"),
        cached_tokens=row.get("cached_tokens"),
    )
