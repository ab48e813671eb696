"""How a table of options becomes a dataclass, flags, and values again.

`option(...)` describes one option; `add_flags` turns every described field of a dataclass into a
flag, `read_namespace` turns what argparse made of them back into field values.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any, TypeAlias, get_args, get_type_hints

PREFIX = "router"
Owner: TypeAlias = Field[Any]
"""A field made by `option`."""
_SAME = object()


@dataclass(frozen=True)
class Flag:
    """What the command line knows about a field."""

    group: str
    help: str
    name: str | None = None  # the flag, when it is not the field's name
    cli_default: Any = _SAME  # when the command line has a default of its own
    env: str | None = None  # environment variable that stands in for a missing flag
    nargs: str | int | None = None
    metavar: str | tuple[str, str] | None = None  # when the name's ending does not say the unit
    append: bool = False  # repeatable: every occurrence adds one list
    parse: Callable[[Any], Any] | None = None  # from argparse's lists to the field's value
    prefixed: bool = True  # takes the `router-` prefix inside another program
    keyword: bool = True  # handed to the Rust `Router` as it is

    def spelling(self, owner: Owner) -> str:
        """The name argparse keeps it under, without any prefix."""
        return self.name or owner.name


def option(default: Any, group: str, text: str, *, secret: bool = False, **more: Any) -> Any:
    """A dataclass field with a flag.

    Args:
        default: the field's default; a list or dict is copied for every instance.
        group: title of the flag's group in the help.
        text: meaning, for the help.
        secret: leave the value out of the repr.
        more: further attributes of `Flag`.
    """
    metadata = {"flag": Flag(group, text, **more)}
    if isinstance(default, (list, dict)):
        return field(default_factory=default.copy, metadata=metadata, repr=not secret)
    return field(default=default, metadata=metadata, repr=not secret)


def flag_of(owner: Owner) -> Flag:
    """The flag of a field made by `option`."""
    flag: Flag = owner.metadata["flag"]
    return flag


def default_of(owner: Owner) -> Any:
    """The default of a field; a fresh one for lists and dicts."""
    return owner.default_factory() if callable(owner.default_factory) else owner.default


class _FromEnvironment(str):
    """A default that is looked up in the environment when parsing ends.

    argparse passes a default that is a string through the flag's type, once, and only when the
    flag was not given: so `--help` never fails on a bad variable, and never shows its value.
    """

    variable: str
    fallback: Any

    def __new__(cls, variable: str, fallback: Any) -> _FromEnvironment:
        shown = f"${variable}" if fallback is None else f"${variable} or {fallback}"
        self = super().__new__(cls, shown)
        self.variable, self.fallback = variable, fallback
        return self


def _with_environment(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        if not isinstance(text, _FromEnvironment):
            return convert(text)
        found = os.environ.get(text.variable)
        if not found:
            return text.fallback
        try:
            return convert(found)
        except ValueError:
            problem = f"invalid {convert.__name__} value: {found!r} (from environment variable {text.variable})"
            raise argparse.ArgumentTypeError(problem) from None

    read.__name__ = convert.__name__  # argparse names it in its errors
    return read


def _item_type(hint: object) -> type:
    """`int` for `int`, `int | None`, `list[int]` and `list[int] | None`; `str` for anything structured."""
    for inner in (hint, *get_args(hint), *(deep for part in get_args(hint) for deep in get_args(part))):
        if inner in (bool, int, float):
            return inner  # type: ignore[no-any-return]
    return str


def add_flags(
    parser: argparse.ArgumentParser,
    table: type,
    *,
    prefix: bool,
    exclude: frozenset[str],
    choices: Mapping[str, Sequence[str]],
) -> None:
    """Adds a flag for every field of `table`, grouped as the table says.

    Args:
        parser: the parser to add to.
        table: a dataclass whose fields are made by `option`; `GROUPS` names its groups in order.
        prefix: write flags as `--router-...`.
        exclude: fields without a flag.
        choices: the words that a field takes, by field.
    """
    hints = get_type_hints(table)
    groups: dict[str, argparse._ArgumentGroup] = {}
    # Groups come in the order the table names them, whatever the order of the fields.
    titles = getattr(table, "GROUPS", ())
    for title in titles:
        groups[title] = parser.add_argument_group(title)
    for owner in fields(table):
        if owner.name not in exclude:
            item = _item_type(hints[owner.name])
            _add_flag(groups[flag_of(owner).group], owner, item, prefix, choices.get(owner.name))


def _add_flag(
    group: argparse._ArgumentGroup, owner: Owner, item: type, prefix: bool, choices: Sequence[str] | None
) -> None:
    flag = flag_of(owner)
    spelling = flag.spelling(owner)
    lead = f"{PREFIX}-" if prefix and flag.prefixed else ""
    default = default_of(owner) if flag.cli_default is _SAME else flag.cli_default
    settings: dict[str, Any] = {"help": flag.help, "default": default, "action": _Store}
    if item is bool:
        settings |= {"nargs": 0, "const": True}
    else:
        settings["type"] = _with_environment(item) if flag.env else item
        given = {"choices": choices, "nargs": flag.nargs, "metavar": None if choices else _metavar(owner, item)}
        settings |= {name: value for name, value in given.items() if value is not None}
        if flag.append:
            settings["action"] = _Append
        if flag.env:
            settings["default"] = _FromEnvironment(flag.env, default)
    group.add_argument(f"--{lead}{spelling.replace('_', '-')}", **settings)


GIVEN = "_router_flags_given"
"""Where a namespace notes which flags were on the command line, by their names there."""


class _Store(argparse.Action):
    """Stores a value, or `const` where the flag takes none, and notes that the flag was there."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, self.const if self.nargs == 0 else values)
        _note(namespace, self.dest)


class _Append(argparse.Action):
    """Adds a value to a list, and notes that the flag was there."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        before = getattr(namespace, self.dest, None) or []
        setattr(namespace, self.dest, [*before, values])
        _note(namespace, self.dest)


def _note(namespace: argparse.Namespace, dest: str) -> None:
    setattr(namespace, GIVEN, getattr(namespace, GIVEN, frozenset()) | {dest})


def given_fields(namespace: Mapping[str, Any], table: type, *, prefix: bool) -> frozenset[str]:
    """The fields of `table` whose flags were on the command line, whatever their values."""
    noted = namespace.get(GIVEN, frozenset())

    def dest(owner: Owner) -> str:
        flag = flag_of(owner)
        lead = f"{PREFIX}_" if prefix and flag.prefixed else ""
        return lead + flag.spelling(owner)

    return frozenset(owner.name for owner in fields(table) if dest(owner) in noted)


def differs(owner: Owner, value: Any) -> bool:
    """Whether a field holds neither its default nor that of its flag."""
    flag = flag_of(owner)
    defaults = [default_of(owner)] if flag.cli_default is _SAME else [default_of(owner), flag.cli_default]
    return all(value != default for default in defaults)


# What the end of a field's name says of its values.
_UNITS = {
    "secs": "SECS",
    "ms": "MS",
    "days": "DAYS",
    "bytes": "BYTES",
    "ratio": "RATIO",
    "port": "PORT",
    "url": "URL",
    "urls": "URL",
    "uri": "URL",
    "host": "ADDR",
    "path": "PATH",
    "paths": "PATH",
    "dir": "PATH",
}


def _metavar(owner: Owner, item: type) -> str | tuple[str, str]:
    word = owner.name.rpartition("_")[2]
    return flag_of(owner).metavar or _UNITS.get(word) or (word.upper() if item is str else "N")


def read_namespace(namespace: Mapping[str, Any], table: type, *, prefix: bool) -> dict[str, Any]:
    """Field values out of parsed flags. Unknown keys are left alone, missing ones left out.

    With a prefix `router_x` wins over `x`: a foreign parser has no `router_host`, so its own
    `host` is ours, too.
    """
    values = {}
    for owner in fields(table):
        found, value = _find(namespace, owner, prefix)
        if found:
            # argparse hands out one list per parser, not per parse.
            values[owner.name] = value.copy() if isinstance(value, list) else value
    return values


def _find(namespace: Mapping[str, Any], owner: Owner, prefix: bool) -> tuple[bool, Any]:
    flag = flag_of(owner)
    spelling = flag.spelling(owner)
    own = f"{PREFIX}_{spelling}" if prefix else spelling
    if own in namespace:
        raw = namespace[own]
        return True, flag.parse(raw) if flag.parse else raw
    if flag.parse and spelling == owner.name:
        return False, None  # what a foreign parser put there has a shape of its own
    # A hand-made namespace may use the field's own name, for a value of the field's own type.
    for key in (owner.name, spelling):
        if key in namespace and not (flag.parse and key == spelling):
            return True, namespace[key]
    return False, None
