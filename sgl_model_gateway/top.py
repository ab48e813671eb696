"""`python -m sgl_model_gateway top`: a gateway's fleet in a terminal, from the data of the page at `/debug/fleet`."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ._options.help import Parser, program
from ._options.logs import error_line
from ._top.figures import History
from ._top.source import Snapshot, Source, SourceError
from ._top.view import COLUMNS, View, clean

__all__ = ["create_parser", "main"]

_DESCRIPTION = """\
Shows the workers of a running gateway, anew each second; ends with Ctrl-C. Where the output is no terminal it prints
the fleet once.
"""
_EXAMPLES = """\
  %(prog)s --url http://127.0.0.1:30000
  %(prog)s --url https://gateway:30000 --sort requests --filter decode
  %(prog)s --url http://127.0.0.1:30000 --json
"""
_KEY = "SMG_API_KEY"
_RETRY_SECS = 1.0
# The other screen of the terminal, without a cursor; and back.
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _END_OF_LINE, _REST = "\x1b[H", "\x1b[K", "\x1b[J"


def create_parser(prog: str | None = None) -> Parser:
    """The flags.

    Args:
        prog: the command as users type it; `None` is argparse's guess.
    """
    parser = Parser(prog, description=_DESCRIPTION, examples=_EXAMPLES)
    parser.add_argument(
        "--url",
        default="http://127.0.0.1:30000",
        help="the gateway's port, or its metrics port where --fleet-page is metrics",
    )
    parser.add_argument(
        "--api-key",
        metavar="KEY",
        help=f"a key or token of the control plane; better in ${_KEY}, for a command line is seen by others",
    )
    parser.add_argument("--ca-cert-path", metavar="PATH", help="CA file for https://; unset means the system's")
    parser.add_argument("--timeout-secs", type=float, default=5.0, metavar="SECS", help="longest wait for an answer")
    parser.add_argument("--once", action="store_true", help="print the fleet once")
    parser.add_argument("--json", action="store_true", help="print one snapshot as JSON")
    parser.add_argument("--sort", choices=COLUMNS, metavar="COLUMN", help=f"sort by one of {', '.join(COLUMNS)}")
    parser.add_argument(
        "--filter", default="", metavar="TEXT", help="only workers whose name, model, role or state has this text"
    )
    return parser


def main(argv: list[str] | None = None, prog: str | None = None) -> None:
    """Runs a command line.

    Args:
        argv: the words after the program; `None` means this process's own.
        prog: the command as users type it.

    Raises:
        SystemExit: 1 when the gateway gives no snapshot, 2 for a mistake in the flags.
    """
    parser = create_parser(prog)
    args = parser.parse_args(argv)
    try:
        key = args.api_key or os.environ.get(_KEY)
        source = Source(args.url, key, timeout=args.timeout_secs, ca_cert=args.ca_cert_path)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    is_terminal = sys.stdout.isatty()
    view = View(args.sort, args.filter, color=is_terminal and "NO_COLOR" not in os.environ)
    try:
        if args.json:
            print(json.dumps(source.one()))
        elif args.once or not is_terminal:
            _print_once(source, view)
        else:
            _watch(source, view)
    except SourceError as error:
        print(error_line(clean(f"{source.name}: {error}"), as_json=False), file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        pass


def _print_once(source: Source, view: View) -> None:
    snapshot, history = source.one(), History()
    history.add(snapshot)
    width = shutil.get_terminal_size((200, 0)).columns
    print("\n".join(view.lines(snapshot, history, width)))


def _watch(source: Source, view: View) -> None:
    history, shown = History(), [f"waiting for {source.name}"]
    with _other_screen():
        for found in _snapshots(source):
            width, height = shutil.get_terminal_size()
            if isinstance(found, str):
                # What was shown last stays, under a line that says why it is old.
                shown = [found[:width], *shown[1:]]
            else:
                history.add(found)
                shown = ["", *view.lines(found, history, width, height - 1)]
            _draw(shown)


def _snapshots(source: Source) -> Iterator[Snapshot | str]:
    """Snapshots; where there are none, why."""
    while True:
        try:
            yield from source.each()
        except SourceError as error:
            if error.is_refusal:
                raise
            yield clean(f"not live: {error}")
            time.sleep(_RETRY_SECS)


@contextmanager
def _other_screen() -> Iterator[None]:
    sys.stdout.write(_ENTER)
    try:
        yield
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()


def _draw(lines: list[str]) -> None:
    sys.stdout.write(_HOME + "\n".join(line + _END_OF_LINE for line in lines) + _REST)
    sys.stdout.flush()


if __name__ == "__main__":
    main(prog=program("sgl_model_gateway.top"))
