"""The members of enums in the stub are those of the extension. Run this file to write them anew."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from sgl_model_gateway import sgl_model_gateway_rs as extension

ROOT = Path(__file__).parents[2]
STUB = ROOT / "sgl_model_gateway" / "sgl_model_gateway_rs.pyi"
ENUMS = {kind.__name__: kind for kind in vars(extension).values() if hasattr(kind, "members")}


def _with_members(stub: str) -> str:
    for name, kind in ENUMS.items():
        members = [repr(member).removeprefix(f"{name}.") for member in kind.members().values()]
        lines = [f"    {member}: ClassVar[{name}]\n" for member in members if not keyword.iskeyword(member)]
        old = rf"(?<=^class {name}:\n)((?:    #.*\n)*)(?:    \w+: ClassVar\[{name}\]\n)*"
        stub, found = re.subn(old, rf"\1{''.join(lines)}", stub, flags=re.MULTILINE)
        assert found == 1, f"no class {name} in the stub"
    return stub


def test_the_stub_has_every_member() -> None:
    stub = STUB.read_text()
    assert len(ENUMS) == 4 and _with_members(stub) == stub, f"run: python {Path(__file__).relative_to(ROOT)}"


if __name__ == "__main__":
    STUB.write_text(_with_members(STUB.read_text()))
