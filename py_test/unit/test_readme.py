"""The tables of docs/options.md are the parser's. Run this file to write them anew."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from sgl_model_gateway.router import Router
from sgl_model_gateway.router_args import RouterArgs

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "options.md"
FEATURES = ROOT / "crates" / "gateway" / "src" / "config" / "feature.rs"
START, END = "<!-- options:", "<!-- end of options -->"
# Options of the Rust core that are made from several flags, and the beginning of their names.
MADE_FROM = {
    "prefill_urls": ("prefill",),
    "decode_urls": ("decode",),
    "oracle_config": ("oracle_",),
    "postgres_config": ("postgres_",),
    "redis_config": ("redis_",),
    "control_plane_auth": ("control_plane_", "jwt_"),
    "server_cert_path": ("tls_cert_path",),
    "server_key_path": ("tls_key_path",),
}


def unbuilt() -> tuple[str, ...]:
    """The beginnings of the names of options that are refused unless left at their default."""
    entries = FEATURES.read_text().split("features! {")[1].split(";")
    # A build without Kubernetes lacks discovery; the wheel has it.
    lacking = ";".join(entry for entry in entries if "Discovery:" not in entry)
    found = re.findall(r"options: \[([^\]]+)\]", lacking)
    names = " ".join(found).split()
    assert names, f"no options in {FEATURES}"
    return tuple(start for name in names for start in MADE_FROM.get(name, (name,)))


def _row(action: argparse.Action) -> str:
    choices = f" ({', '.join(action.choices)})" if action.choices else ""
    mark = "*not yet:* " if action.dest.startswith(unbuilt()) else ""
    return f"| `{action.option_strings[0]}` | {_default(action)} | {mark}{action.help}{choices} |"


def _default(action: argparse.Action) -> str:
    if action.default in (None, [], {}):
        return ""
    return "off" if action.default is False else f"`{action.default}`"


def table() -> str:
    """One Markdown table per help group."""
    parser = argparse.ArgumentParser(add_help=False)
    RouterArgs.add_cli_args(parser)
    lines = []
    for group in parser._action_groups:
        if group.title in RouterArgs.GROUPS:
            lines += ["", f"## {group.title}", "", "| flag | default | meaning |", "| --- | --- | --- |"]
            lines += map(_row, group._group_actions)
    return "\n".join(lines)


def _split(text: str) -> tuple[str, str, str]:
    head, rest = text.split(START)
    note, rest = rest.split("-->\n", 1)
    old, tail = rest.split(f"\n{END}")
    return f"{head}{START}{note}-->\n", old, f"\n{END}{tail}"


def test_options_page_has_the_tables_of_the_parser() -> None:
    assert _split(PAGE.read_text())[1] == f"{table()}\n", f"run: python {Path(__file__).relative_to(PAGE.parents[1])}"


def _switches() -> list[str]:
    parser = argparse.ArgumentParser(add_help=False)
    RouterArgs.add_cli_args(parser)
    # The first two are Python's own; the third does nothing without a key.
    python = ("mini_lb", "test_external_dp_routing", "control_plane_audit_enabled")
    return [action.dest for action in parser._actions if action.const is True and action.dest not in python]


@pytest.mark.parametrize("name", _switches())
def test_a_switch_is_marked_on_the_page_if_and_only_if_it_is_refused(name: str) -> None:
    row = re.search(rf"^\| `--{name.replace('_', '-')}` .*$", PAGE.read_text(), re.M)
    try:
        Router.from_args(RouterArgs(**{name: True}, selector={"a": "b"} if name == "service_discovery" else {}))
        refused = False
    except ValueError as error:
        assert "which this build does not have" in str(error)
        refused = True
    assert row and ("*not yet:*" in row.group()) == refused


if __name__ == "__main__":
    before, _, after = _split(PAGE.read_text().replace("-->\n<!-- end", "-->\n\n<!-- end"))
    PAGE.write_text(f"{before}{table()}\n{after}")
