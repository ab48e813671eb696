"""`python -m sgl_model_gateway.sim_worker`: a simulated SGLang worker, for demos and tests without a GPU."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Set
from typing import Any

from ._options.help import Parser, program
from .sgl_model_gateway_rs import SimWorker, sim_option_defaults

_DESCRIPTION = "A simulated SGLang worker, for demos and tests without a GPU."
_EXAMPLES = """\
  %(prog)s --port 30000
  %(prog)s --port 30000 --model Qwen/Qwen3-8B --decode-step-base-ms 8
"""

# Options that are text and unset by default; the other unset ones are numbers.
_TEXT = {"api_key", "bad_content_length", "only_text"}
# Of flags, by the group of their options.
_PREFIXES = {"faults": "fault", "engine": "engine"}


# Unit and meaning of every option, by its name; those of a group have it in front. Switches have no unit.
_HELP: dict[str, tuple[str, str]] = {
    "host": ("ADDR", "address to listen on"),
    "port": ("PORT", "TCP port to listen on; 0 takes a free one"),
    "model": ("NAME", "name of the served model"),
    "api_key": ("KEY", "key that every request except health and metrics must carry"),
    "dp_size": ("N", "data-parallel ranks: independent engines behind one port"),
    "load_publish_port": (
        "PORT",
        "first of the ports on which ranks publish their loads over ZeroMQ; 0 takes free ones",
    ),
    "disaggregation_mode": ("ROLE", "role in prefill/decode disaggregation at start: null, prefill or decode"),
    "disaggregation_bootstrap_port": ("PORT", "port of a prefill worker's bootstrap server; 0 takes a free one"),
    "bootstrap_timeout_s": ("SECS", "time that a prefill worker waits for a request's decode worker"),
    "waiting_timeout_s": ("SECS", "time that a decode worker waits for a request's KV cache"),
    "handshake_timeout_s": ("SECS", "time after which a decode worker gives up a bootstrap server"),
    "lost_connection_s": ("SECS", "time after which a decode worker notices that its prefill worker is gone"),
    "disconnect_check_s": ("SECS", "time between two looks for clients that left, in either role"),
    "kv_transfer_ms_per_1k_tokens": ("MS", "time that the KV cache of 1000 prompt tokens takes to the decode worker"),
    "enable_pd_role_switch": ("", "accept POST /pd_role_switch"),
    "enable_request_header_overrides": ("", "obey x-override-rid, -bootstrap-host, -port, -room and -routed-dp-rank"),
    "crash_on_bad_bootstrap": ("", "stop, as SGLang does, at bootstrap fields that kill its scheduler"),
    "context_length": ("TOKENS", "longest prompt, and the length reported; by default any prompt is accepted"),
    "engine_model": ("MODEL", "split: prefill and decode are two stages; shared: one device and one memory"),
    "engine.prefill_base_ms": ("MS", "shared model: time of a pass over prompts, whatever their length"),
    "engine.prefill_token_us": ("US", "shared model: time that each prompt token adds to its pass"),
    "engine.prefill_context_ns": ("NS", "shared model: time that it adds for every token before it"),
    "engine.decode_base_ms": ("MS", "shared model: time of a decode step, whatever the batch"),
    "engine.decode_sequence_us": ("US", "shared model: time that each sequence of the batch adds to a step"),
    "engine.decode_context_ns": ("NS", "shared model: time that each token in the batch's contexts adds to a step"),
    "engine.chunk_tokens": ("TOKENS", "shared model: prompt tokens that one pass computes at most"),
    "engine.mixed_chunks": ("", "shared model: the batch decodes with each pass, and does not wait for it"),
    "engine.output_reserve": ("RATIO", "shared model: share of longest outputs that is kept free for running ones"),
    "engine.longest_reserve": ("TOKENS", "shared model: tokens of output that are reckoned with at most"),
    "engine.host_cache_tokens": ("TOKENS", "shared model: prefixes in the host's memory, to be loaded back; 0 is none"),
    "engine.host_load_tokens_per_sec": ("TOKENS", "shared model: tokens that are loaded back per second"),
    "prefill_tokens_per_sec": ("TOKENS", "prompt tokens computed per second and rank; 0 is instant"),
    "decode_step_base_ms": ("MS", "time of a decode step, whatever the batch; 0 is instant"),
    "decode_step_per_seq_ms": ("MS", "time that each sequence of the batch adds to a decode step; 0 is instant"),
    "max_running_requests": ("N", "sequences in prefill and decode per rank"),
    "max_queued_requests": ("N", "sequences that may wait per rank, further ones get 503; 0 is 65536"),
    "kv_cache_tokens": ("TOKENS", "capacity of a rank's prefix cache; 0 is no cache"),
    "page_size": ("TOKENS", "size of a cache page"),
    "default_output_tokens": ("TOKENS", "length of a reply if the request sets no maximum"),
    "weight_update_ms": ("MS", "time that a weight update takes; nothing is generated meanwhile"),
    "startup_delay_ms": ("MS", "time after start during which health and inference return 503"),
    "record_requests": ("N", "length of the request log at /sim/requests"),
    "seed": ("N", "seed of request ids and of the fault rate"),
    "faults.fault_rate": ("RATIO", "probability that a request is hit (0..1)"),
    "faults.only_text": ("TEXT", "only inference requests whose body contains this are hit"),
    "faults.count": ("N", "hits after which the faults of inference requests end; 0 is never"),
    "faults.for_ms": ("MS", "time after which all faults end; 0 is never"),
    "faults.status": ("STATUS", "respond with this status (200..599) and a JSON error body"),
    "faults.status_count": ("N", "responses after which that status ends; 0 is never"),
    "faults.retry_after": ("SECS", "Retry-After, sent with that status"),
    "faults.stream_status": ("STATUS", "refuse with this status; a stream begins with 200 and the refusal as an event"),
    "faults.health_status": ("STATUS", "status of /health and /health_generate"),
    "faults.health_hang": ("", "never respond on /health and /health_generate"),
    "faults.delay_first_byte_ms": ("MS", "delay before a response begins"),
    "faults.chunk_delay_ms": ("MS", "delay before each chunk of a body"),
    "faults.close_before_headers": ("", "close the connection without a response"),
    "faults.garbage_headers": ("", "respond with bytes that are not HTTP, then close"),
    "faults.close_mid_headers": ("", "close in the middle of the response's headers"),
    "faults.close_mid_body": ("BYTES", "close abnormally after this much of the body"),
    "faults.stall_mid_body": ("BYTES", "send nothing after this much of the body, and keep the connection open"),
    "faults.duplicate_set_cookie": ("", "send two Set-Cookie headers"),
    "faults.huge_body_bytes": ("BYTES", "respond 200 with a JSON body of this size; 0 is off"),
    "faults.bad_content_length": ("TEXT", "respond 200 with this Content-Length, then close"),
    "faults.refuse_connections": ("", "reset every new connection at once"),
    "faults.close_after_stream": ("", "close the connection after each stream without announcing it"),
}


def _table() -> Iterator[tuple[str, str, str, Any]]:
    """Group, name, flag and default of every option."""
    for name, default in sim_option_defaults().items():
        if not isinstance(default, dict):
            yield "", name, name, default
            continue
        for inner, value in default.items():
            prefix = _PREFIXES[name]
            yield name, inner, f"{prefix}-{inner.removeprefix(f'{prefix}_')}", value


def create_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """A parser with a flag for every option of `SimWorker`.

    Args:
        prog: the command as users type it; `None` is a guess.
    """
    parser = Parser(prog or program("sgl_model_gateway.sim_worker"), description=_DESCRIPTION, examples=_EXAMPLES)
    add_flags(parser)
    return parser


def add_flags(parser: argparse._ActionsContainer, leave_out: Set[str] = frozenset()) -> None:
    """Adds a flag for every option of `SimWorker`.

    Args:
        parser: a parser, or a group of one.
        leave_out: names of options that get no flag.
    """
    for group, name, flag, default in _table():
        if name in leave_out:
            continue
        metavar, text = _HELP.get(f"{group}.{name}".removeprefix("."), ("", " "))
        switch = argparse.BooleanOptionalAction if default is True else "store_true"
        settings: dict[str, Any] = {"action": switch}
        if not isinstance(default, bool):
            kind = (str if name in _TEXT else int) if default is None else type(default)
            settings = {"type": kind, "metavar": metavar or kind.__name__.upper()}
        parser.add_argument(
            f"--{flag.replace('_', '-')}", dest=f"{group}.{name}", default=default, help=text, **settings
        )


def options(args: argparse.Namespace) -> dict[str, Any]:
    """Parsed flags as keywords of `SimWorker`. Other flags of the same parser are ignored."""
    keywords: dict[str, Any] = {}
    for key, value in vars(args).items():
        group, dot, name = key.partition(".")
        if dot:
            (keywords.setdefault(group, {}) if group else keywords)[name] = value
    return keywords


def main(argv: list[str] | None = None, prog: str | None = None) -> None:
    """Serves until SIGINT or SIGTERM.

    Args:
        argv: the command line without the program; `None` means this process's own.
        prog: the command as users type it.

    Raises:
        SystemExit: 2 for wrong options, 1 when a port is in use, or when a request killed the worker.
    """
    parser = create_parser(prog)
    args = parser.parse_args(argv)
    try:
        worker = SimWorker(**options(args))
    except ValueError as error:
        parser.error(str(error))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: worker.stop())
    try:
        worker.start_background()
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    print(f"simulated worker listening on {worker.url}", flush=True)
    if worker.bootstrap_port is not None:
        print(f"bootstrap server listening on port {worker.bootstrap_port}", flush=True)
    worker.wait()
    if worker.failure:
        sys.exit(f"error: {worker.failure}")


if __name__ == "__main__":
    main()
