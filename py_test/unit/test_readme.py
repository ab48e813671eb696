"""The README's table of options is the parser's. Run this file to write it anew."""

from __future__ import annotations

import argparse
from pathlib import Path

from sgl_model_gateway.router_args import RouterArgs

README = Path(__file__).parents[2] / "README.md"
START, END = "<!-- options:", "<!-- end of options -->"


def _row(action: argparse.Action) -> str:
    choices = f" ({', '.join(action.choices)})" if action.choices else ""
    return f"| `{action.option_strings[0]}` | {_default(action)} | {action.help}{choices} |"


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
            lines += ["", f"### {group.title}", "", "| flag | default | meaning |", "| --- | --- | --- |"]
            lines += map(_row, group._group_actions)
    return "\n".join(lines)


def _split(text: str) -> tuple[str, str, str]:
    head, rest = text.split(START)
    note, rest = rest.split("-->\n", 1)
    old, tail = rest.split(f"\n{END}")
    return f"{head}{START}{note}-->\n", old, f"\n{END}{tail}"


def test_the_table_of_options_is_up_to_date() -> None:
    assert _split(README.read_text())[1] == f"{table()}\n", f"run: python {Path(__file__).relative_to(README.parent)}"


if __name__ == "__main__":
    before, _, after = _split(README.read_text().replace("-->\n<!-- end", "-->\n\n<!-- end"))
    README.write_text(f"{before}{table()}\n{after}")
