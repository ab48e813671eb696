"""What wheels are checked for before they are published, and the licences in them."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TAG = "cp310-abi3-manylinux2014_x86_64"
INFO = "sgl_model_gateway-1.0.dist-info"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"packaging_{name}", ROOT / "packaging" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


licenses, check_wheel = load("licenses"), load("check_wheel")

# --- licences


def package(folder: Path, name: str, *, licence: str | None = "MIT", own: bool = False, **files: str) -> dict[str, Any]:
    home = folder / name
    home.mkdir()
    for file, text in files.items():
        (home / file).write_text(text)
    manifest, source = str(home / "Cargo.toml"), None if own else "registry"
    named = {"id": name, "name": name, "version": "1.0.0", "license": licence, "license_file": None}
    return named | {"manifest_path": manifest, "source": source}


def metadata(packages: list[dict[str, Any]], arrows: dict[str, list[tuple[str, str | None]]]) -> dict[str, Any]:
    def node(name: str) -> dict[str, Any]:
        deps = [{"pkg": to, "dep_kinds": [{"kind": kind}]} for to, kind in arrows.get(name, [])]
        return {"id": name, "deps": deps}

    return {"packages": packages, "resolve": {"root": "root", "nodes": [node(one["id"]) for one in packages]}}


def test_licences_are_those_of_linked_crates_of_others(tmp_path: Path) -> None:
    packages = [
        package(tmp_path, "root", own=True),
        package(tmp_path, "b", LICENSE="the  text"),
        package(tmp_path, "a", licence="MIT OR Apache-2.0", COPYING="the text\n", README="no licence"),
        package(tmp_path, "builds", LICENSE="x"),
        package(tmp_path, "tests", LICENSE="x"),
    ]
    arrows = {"root": [("b", None), ("builds", "build"), ("tests", "dev")], "b": [("a", None)]}
    found = licenses.crates(metadata(packages, arrows))
    assert [(crate.name, crate.licence, crate.texts) for crate in found] == [
        ("a", "MIT OR Apache-2.0", ("the text",)),
        ("b", "MIT", ("the  text",)),
    ]
    text = licenses.document(found)
    assert "a 1.0.0: MIT OR Apache-2.0\nb 1.0.0: MIT\n" in text
    assert re.findall(r"^a, b$", text, re.M) == ["a, b"], "a text stands once"


def test_files_in_a_folder_of_licences_are_read(tmp_path: Path) -> None:
    one = package(tmp_path, "a")
    (tmp_path / "a/LICENSES").mkdir()
    (tmp_path / "a/LICENSES/MIT.txt").write_text("in a folder")
    found = licenses.crates(metadata([package(tmp_path, "root", own=True), one], {"root": [("a", None)]}))
    assert found[0].texts == ("in a folder",)


def test_crate_without_a_licence_is_refused(tmp_path: Path) -> None:
    packages = [package(tmp_path, "root", own=True), package(tmp_path, "a", licence=None)]
    with pytest.raises(ValueError, match=r"a 1\.0\.0 names no licence"):
        licenses.crates(metadata(packages, {"root": [("a", None)]}))


def test_the_wheel_takes_the_file_that_is_written() -> None:
    patterns = re.search(r"^license-files = \[(.*)\]", (ROOT / "pyproject.toml").read_text(), re.M)
    assert patterns and licenses.OUTPUT.match(patterns[1].strip('"'))
    assert f"/{licenses.OUTPUT.name}" in (ROOT / ".gitignore").read_text().splitlines()


# --- wheels


def wheel(folder: Path, *, tag: str = TAG, code: bytes = b"GLIBC_2.9\0GLIBC_2.17\0", **files: str | None) -> Any:
    """A wheel in which nothing is wrong, but for what is given; `None` leaves a file out."""
    components = [{"name": "a", "version": "1.0.0"}, {"name": "of-tests", "version": "2.0.0"}]
    content: dict[str, str | bytes | None] = {
        "extension": code,
        "tags": f"Wheel-Version: 1.0\nTag: {tag}\n",
        "licence": "Apache License",
        "others": "lead\na 1.0.0: MIT\n",
        "bill": json.dumps({"components": components}),
    }
    places = {
        "extension": "sgl_model_gateway/sgl_model_gateway_rs.abi3.so",
        "tags": f"{INFO}/WHEEL",
        "licence": f"{INFO}/licenses/LICENSE",
        "others": f"{INFO}/licenses/LICENSE-THIRD-PARTY.txt",
        "bill": f"{INFO}/sboms/sgl-model-gateway.cyclonedx.json",
    }
    path = folder / f"sgl_model_gateway-1.0-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (content | files).items():
            if data is not None:
                archive.writestr(places[name], data)
    return check_wheel.Wheel(path)


def test_wheel_in_order_has_no_problems(tmp_path: Path) -> None:
    found = wheel(tmp_path)
    assert list(check_wheel.problems(found)) == []
    assert (found.glibc(), found.licensed()) == ((2, 17), ["a 1.0.0"])


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"tag": "cp310-abi3-linux_x86_64"}, "expected cp310-abi3-manylinux"),
        ({"tag": "cp311-cp311-manylinux2014_x86_64"}, "expected cp310-abi3-manylinux"),
        ({"tags": None}, "tagged not at all"),
        ({"code": b"GLIBC_2.9\0GLIBC_2.34\0"}, "needs glibc 2.34; expected 2.17 at most"),
        ({"code": str(Path.home()).encode()}, "names a folder of this machine"),
        ({"licence": None}, "without the licence of the package"),
        ({"others": None}, "without the licences of its crates"),
        ({"others": "lead\na 1.0.0: MIT\nb 1.0.0: MIT\n"}, "not in the bill of materials: b 1.0.0"),
        ({"bill": None}, "not in the bill of materials: a 1.0.0"),
    ],
)
def test_what_is_wrong_with_a_wheel_is_named(given: dict[str, Any], problem: str, tmp_path: Path) -> None:
    (found,) = check_wheel.problems(wheel(tmp_path, **given))
    assert problem in found


@pytest.mark.parametrize(("limit", "words"), [("MOST_BYTES", "10 at most"), ("MOST_EXTENSION_BYTES", "less than 10")])
def test_wheel_that_is_too_large_is_named(
    limit: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_wheel, limit, 10)
    (found,) = check_wheel.problems(wheel(tmp_path))
    assert words in found


def test_wheel_that_does_not_start_is_named(tmp_path: Path) -> None:
    assert check_wheel.start(wheel(tmp_path).path)


def test_no_wheel_and_a_wheel_with_a_problem_are_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def check(path: Path) -> list[str]:
        asked.append(path)
        return ["too large"] if path.name == "a.whl" else []

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check_wheel, "check", check)
    assert [check_wheel.main(names) for names in ([], ["b.whl"], ["a.whl", "b.whl"])] == [1, 0, 1]
    assert asked == [tmp_path / name for name in ("b.whl", "a.whl", "b.whl")], "the start runs in another folder"
    assert capsys.readouterr().err == "a.whl: too large\n"


def test_make_wheel_builds_for_the_glibc_that_is_checked() -> None:
    assert check_wheel.NEWEST_GLIBC == (2, 17)
    assert "--compatibility manylinux2014" in (ROOT / "Makefile").read_text()
