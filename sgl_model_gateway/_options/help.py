"""How a command shows itself: its help, and the one line about a mistake in its flags."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from .logs import error_line

_UNKNOWN = "unrecognized arguments: "
_SPELT_OUT = ("tls_skip_verify",)


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the lines of a description, and ends each flag's line with its choices and its default.

    Defaults that mean "nothing" (`None`, `False`, an empty list) are left out.
    """

    def __init__(
        self, prog: str, indent_increment: int = 2, max_help_position: int = 36, width: int | None = None
    ) -> None:
        super().__init__(prog, indent_increment, max_help_position, width)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.choices is not None and not action.metavar:
            text += f"; one of {', '.join(map(str, action.choices))}".replace("%", "%%")
        default = action.default
        if default is None or default is False or default in ([], {}, argparse.SUPPRESS) or "%(default)" in text:
            return text
        return f"{text} (default: %(default)s)"

    def _metavar_formatter(self, action: argparse.Action, default_metavar: str) -> Callable[[int], tuple[str, ...]]:
        if action.choices is not None and not action.metavar:
            # `--log-level LEVEL`: the choices are named in the text, where they can be wrapped.
            word = action.dest.rpartition("_")[2].upper()
            return lambda count: (word,) * count
        return super()._metavar_formatter(action, default_metavar)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs == "+" and isinstance(action.metavar, tuple):
            return "{} [{}]".format(*action.metavar)  # a second word at most, not any number
        return super()._format_args(action, default_metavar)


class Parser(argparse.ArgumentParser):
    """A parser with usage on one line, and errors that name the nearest right word.

    Args:
        prog: the command as users type it; `None` is argparse's guess.
        description: what the command does.
        examples: command lines for the end of the help; `%(prog)s` is the command.
        as_json: write mistakes as JSON log lines.
        formatter: the look of the help.
        add_help: whether there is a flag `--help`.
        allow_abbrev: whether unique beginnings of flags are accepted.
    """

    def __init__(
        self,
        prog: str | None = None,
        *,
        description: str | None = None,
        examples: str | None = None,
        as_json: bool = False,
        formatter: type[argparse.HelpFormatter] = HelpFormatter,
        add_help: bool = True,
        allow_abbrev: bool = True,
    ) -> None:
        super().__init__(
            prog=prog,
            usage="%(prog)s [OPTIONS]",
            description=description,
            epilog=examples and f"examples:\n{examples}",
            formatter_class=formatter,
            add_help=add_help,
            allow_abbrev=allow_abbrev,
        )
        self.as_json = as_json

    usage_in_errors = True
    """Whether the usage line precedes a mistake."""

    def error(self, message: str) -> NoReturn:
        """Ends with exit code 2; the last line on standard error names the mistake."""
        if message.startswith(_UNKNOWN):
            message += self._hint(message.removeprefix(_UNKNOWN).split())
        if self.usage_in_errors and not self.as_json:
            self.print_usage(sys.stderr)
        self.exit(2, f"{error_line(message, as_json=self.as_json, prefix=f'{self.prog}: error: ')}\n")

    def _hint(self, unknown: list[str]) -> str:
        flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
        for word in unknown:
            if word.startswith("--") and (hint := did_you_mean(_other_prefix(word, flags) or word, flags)):
                return hint
        if "--worker-urls" in flags and any(word.startswith(("http://", "https://")) for word in unknown):
            return " (workers are listed after --worker-urls)"
        return ""

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        # A flag that takes a protection away counts only when it is spelt out.
        found = super()._get_option_tuples(option_string)
        return [match for match in found if not match[0].dest.endswith(_SPELT_OUT)]

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += did_you_mean(str(value), map(str, action.choices or ()))
            raise


def _other_prefix(word: str, flags: list[str]) -> str | None:
    """The flag that `launch` and `server` spell differently: `--policy` and `--router-policy`."""
    name = word.partition("=")[0].removeprefix("--")
    other = f"--{name.removeprefix('router-')}" if name.startswith("router-") else f"--router-{name}"
    return other if other in flags else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`" (did you mean X?)"`, X being the word of `known` nearest to `word`; empty when none is near."""
    near = difflib.get_close_matches(word.partition("=")[0], list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def program(module: str) -> str | None:
    """The command that runs `module` as a script, `None` when this process was started by another name."""
    is_script = os.path.basename(sys.argv[0]) == f"{module.rpartition('.')[2]}.py"
    return f"python -m {module}" if is_script else None
