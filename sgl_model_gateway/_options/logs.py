"""Log lines of the Python side: text, or with `--json-log` objects of the same shape as the gateway's own."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from datetime import datetime, timezone

_LEVELS = {"WARNING": "WARN", "CRITICAL": "ERROR"}


class JsonFormatter(logging.Formatter):
    """One JSON object per line: `timestamp`, `level`, and `fields` with the `message`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end. A traceback becomes the field `traceback`."""
        fields = {"message": record.getMessage()}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return _object(record.levelname, fields, record.created)


def _object(level: str, fields: dict[str, str], at: float) -> str:
    when = datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return json.dumps({"timestamp": when, "level": _LEVELS.get(level, level), "fields": fields})


def error_line(message: str, *, as_json: bool, prefix: str = "error: ") -> str:
    """The last line of a start that failed. `prefix` is for text only."""
    text = " ".join(message.split())
    if not as_json:
        return f"{prefix}{text}"
    record = logging.LogRecord("router", logging.ERROR, "", 0, "%s", (text,), None)
    return JsonFormatter().format(record)


def formatter(text: str, *, as_json: bool) -> logging.Formatter:
    """A formatter for `text`, a format of `logging`, or for JSON."""
    return JsonFormatter() if as_json else logging.Formatter(text)


def wants_json(argv: Iterable[str], flag: str) -> bool:
    """Whether a command line asks for JSON. For errors that come before the flags are parsed.

    Unique beginnings of `flag` count, as argparse accepts them.
    """
    shortest = flag.removesuffix("on-log")  # `--j` could be `--jwt-issuer`
    return any(flag.startswith(word) and len(word) >= len(shortest) for word in argv)
