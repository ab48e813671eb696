"""The documents: links lead somewhere, commands and snippets run, names exist.

Requests of a page go, in order, to a gateway with two simulated workers; a third one is there to be added. Host names
such as `gpu-1` stand for these workers. Command lines pass the real parsers.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from support.pages import DOCS, LINKED, PAGES, ROOT, TIMEOUT, Block, anchors, blocks, name_of, send, without_blocks

from sgl_model_gateway import doctor, launch_server, replay, top
from sgl_model_gateway.launch_router import parse_router_args
from sgl_model_gateway.mini_lb import MiniLoadBalancer
from sgl_model_gateway.router import PolicyType, Router
from sgl_model_gateway.router_args import RouterArgs

# What a block that is not run needs, said in a comment above it.
MISSING = ("a GPU", "a cluster", "the network")
# Flags of programs that are not ours.
FOREIGN = {
    *("--log-json", "--features", "--version", "--add-architecture"),
    *("--namespace", "--from-file", "--now", "--unit"),
    *("--base-gpu-id", "--gpu-id-step", "--disaggregation-transfer-backend", "--enable-cache-report"),
    *("--load-publish-endpoint", "--kv-events-config"),
}

pages = pytest.mark.parametrize("page", PAGES, ids=name_of)
ALL_BLOCKS = [block for page in PAGES for block in blocks(page)]


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_links_and_anchors_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(page)):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target}: no such file"
        assert not anchor or anchor in anchors(file), f"{target}: no such heading"


@pytest.mark.parametrize("page", DOCS, ids=name_of)
def test_page_begins_with_a_title_and_one_sentence_and_is_in_the_index(page: Path) -> None:
    title, empty, *rest = page.read_text().splitlines()
    summary = " ".join(rest[: rest.index("")])
    assert title.startswith("# ") and not empty
    assert summary.startswith("This page ") and summary.endswith(".") and ". " not in summary
    if page.name != "README.md":
        assert f"]({page.name}" in (page.parent / "README.md").read_text()


def test_readme_fits_on_a_few_screens() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


@pages
def test_a_block_has_a_language_and_says_what_it_needs(page: Path) -> None:
    for block in blocks(page):
        assert block.language in {"bash", "python", "json", "text"}, f"line {block.line}"
        needs = block.comment.removeprefix("<!-- not run: needs ").removesuffix(" -->")
        assert block.is_run or needs in MISSING, f"line {block.line}: {block.comment}"


# --- commands


@dataclass(frozen=True)
class Command:
    words: list[str]
    # Of the reply, for requests.
    status: int


def commands(block: Block) -> list[Command]:
    """The commands of a block; a comment line with a number after one is the status of its reply."""
    found: list[Command] = []
    for line in block.text.replace("\\\n", " ").splitlines():
        if status := re.fullmatch(r"# (\d{3})", line):
            found[-1] = Command(found[-1].words, int(status.group(1)))
        elif words := shlex.split(line, comments=True):
            found.append(Command(words, 200))
    return found


class Started(BaseException):
    """A command line was accepted: what follows would start things."""


def check_launch(args: list[str]) -> None:
    options = parse_router_args(args)
    if options.mini_lb:
        MiniLoadBalancer(options)
    else:
        Router.from_args(options)


def check_server(args: list[str]) -> None:
    def stop(_: RouterArgs) -> Router:
        raise Started

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Started):
        patch.setattr(Router, "from_args", staticmethod(stop))
        launch_server.main(args)


def package(*args: str) -> subprocess.Popen[str]:
    """`python -m ...` with this package, in a process of its own."""
    return subprocess.Popen([sys.executable, *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def check_sim_worker(args: list[str]) -> None:
    with package("-m", "sgl_model_gateway.sim_worker", *args, "--port", "0") as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.terminate()
    assert "listening on http://" in line


def run_to_its_end(*args: str) -> None:
    with package(*args) as process:
        output = process.communicate(timeout=TIMEOUT)[0]
    assert process.returncode == 0, output


def check_demo(args: list[str]) -> None:
    run_to_its_end("-m", "sgl_model_gateway", "demo", *args)


def check_simulate(args: list[str]) -> None:
    run_to_its_end("-m", "sgl_model_gateway", "simulate", *args)


def check_doctor(args: list[str]) -> None:
    RouterArgs.from_cli_args(doctor.create_parser().parse_args(args))


def check_top(args: list[str]) -> None:
    top.create_parser().parse_args(args)


def check_replay(args: list[str]) -> None:
    replay.create_parser().parse_args(args)


def check_make(args: list[str]) -> None:
    (target,) = args
    assert re.search(rf"^{target}:.*## ", (ROOT / "Makefile").read_text(), re.M), target


def check_pip(args: list[str]) -> None:
    known = (ROOT / "pyproject.toml").read_text()
    for extra in re.findall(r"\[([\w,-]+)\]", " ".join(args)):
        assert re.search(rf"^{extra} = \[", known, re.M), extra


def check_docker(args: list[str]) -> None:
    assert (ROOT / "Dockerfile").exists()
    if args[0] == "run":
        image = next(at for at, word in enumerate(args) if word.startswith("sgl-model-gateway"))
        check_launch(args[image + 1 :])


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "launch": check_launch,
    "server": check_server,
    "sim-worker": check_sim_worker,
    "demo": check_demo,
    "simulate": check_simulate,
    "doctor": check_doctor,
    "top": check_top,
    "replay": check_replay,
    "make": check_make,
    "pip": check_pip,
    "docker": check_docker,
}
MODULES = {"launch_router": "launch", "launch_server": "server", "sim_worker": "sim-worker"}
SCRIPTS = {"sgl-model-gateway", "smg", "amg", "sglang-router"}


def check(words: list[str]) -> None:
    """Checks a command that is no request."""
    if words[:2] == ["python", "-m"]:
        package_name, _, module = words[2].partition(".")
        assert package_name == "sgl_model_gateway"
        name, args = (MODULES[module], words[3:]) if module else (words[3], words[4:])
    elif words[0] in SCRIPTS:
        name, args = words[1], words[2:]
    else:
        name, args = words[0], words[1:]
    CHECKS[name](args)


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`trace.jsonl` in the present folder."""
    line = {"timestamp": 0, "input_length": 1024, "output_length": 8, "hash_ids": [1, 2]}
    lines = [json.dumps(line | {"timestamp": 40 * at, "hash_ids": [1, at % 7]}) for at in range(50)]
    (tmp_path / "trace.jsonl").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "block",
    [block for block in ALL_BLOCKS if block.language == "bash"],
    ids=lambda block: f"{name_of(block.page)}:{block.line}",
)
@pytest.mark.usefixtures("trace")
def test_commands_are_accepted(block: Block) -> None:
    if block.comment in ("<!-- not run: needs a GPU -->", "<!-- not run: needs a cluster -->"):
        return  # of SGLang or Kubernetes, which have parsers of their own
    for command in commands(block):
        if command.words[0] != "curl":
            check(command.words)


def test_a_command_with_an_unknown_flag_or_a_refused_option_is_not_accepted() -> None:
    with pytest.raises(SystemExit):
        check(["smg", "launch", "--no-such-flag"])
    with pytest.raises(ValueError, match="tokenizers"):
        check(["smg", "launch", "--model-path", "m"])
    with pytest.raises(ValueError, match="pod labels"):
        check(["smg", "launch", "--service-discovery"])
    with pytest.raises(SystemExit):
        check(["smg", "server", "--engine", "sim", "--no-such-flag"])
    with pytest.raises(KeyError):
        check(["kubectl", "apply"])


# --- requests


CURL = argparse.ArgumentParser("curl", allow_abbrev=False)
CURL.add_argument("url")
CURL.add_argument("-X", dest="method")
CURL.add_argument("-H", dest="headers", action="append", default=[])
CURL.add_argument("-d", dest="data")
CURL.add_argument("-N", action="store_true")


def curl(words: list[str]) -> tuple[int, str]:
    """Sends the request that curl would send; status and body."""
    args = CURL.parse_args(words)
    data = None if args.data is None else args.data.encode()
    headers = dict(header.split(": ", 1) for header in args.headers)
    return send(urllib.request.Request(args.url, data, headers, method=args.method))


@pytest.fixture
def fleet(sim_workers: Any, gateway: Any) -> Callable[[str], str]:
    """Puts the addresses of running workers and of a gateway in the place of those in a text."""
    workers = sim_workers(3)
    door = gateway([worker.url for worker in workers[:2]])
    places = {
        "http://localhost:30000": door.url,
        "http://localhost:29000/metrics": door.metrics_url,
        "http://localhost:40000": workers[0].url,
    }
    places |= {f"http://gpu-{number}:30000": worker.url for number, worker in enumerate(workers, 1)}
    places |= {quote(place, safe=""): quote(url, safe="") for place, url in places.items()}

    def put(text: str) -> str:
        for place, url in places.items():
            text = text.replace(place, url)
        return text

    return put


@pages
def test_requests_of_a_page_get_the_replies_that_it_says(page: Path, fleet: Callable[[str], str]) -> None:
    for block in blocks(page):
        if block.language != "bash" or not block.is_run:
            continue
        for command in commands(block):
            if command.words[0] == "curl":
                words = [fleet(word) for word in command.words[1:]]
                status, body = curl(words)
                assert status == command.status, f"{page.name}:{block.line}: {words}: {body}"


@pytest.mark.parametrize(
    "block",
    [block for block in ALL_BLOCKS if block.language == "python"],
    ids=lambda block: f"{name_of(block.page)}:{block.line}",
)
def test_python_snippet_runs(block: Block, fleet: Callable[[str], str]) -> None:
    assert block.is_run
    run_to_its_end("-c", fleet(block.text))


def test_json_blocks_are_json() -> None:
    for block in ALL_BLOCKS:
        if block.language == "json":
            json.loads(block.text)


# --- names


def flags_of_the_package() -> set[str]:
    known: set[str] = set()
    for prefix in (False, True):
        parser = argparse.ArgumentParser()
        RouterArgs.add_cli_args(parser, use_router_prefix=prefix)
        known |= {flag for action in parser._actions for flag in action.option_strings}
    for command in (
        ["server", "--engine", "sim"],
        ["demo"],
        ["simulate"],
        ["sim-worker"],
        ["doctor"],
        ["top"],
        ["replay"],
        [],
    ):
        with package("-m", "sgl_model_gateway", *command, "--help") as process:
            known |= set(re.findall(r"--[a-z][a-z0-9-]+", process.communicate(timeout=TIMEOUT)[0]))
    return known


def test_flags_that_pages_name_exist() -> None:
    known = flags_of_the_package() | FOREIGN
    for page in LINKED:
        text = re.sub(r"`cargo [^`]*`|TIDY_ALL=1[^`]*`", "", page.read_text())
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text):
            fits = flag in known or (flag.endswith("-") and any(one.startswith(flag) for one in known))
            assert fits, f"{name_of(page)}: {flag}"


def test_every_policy_has_a_section() -> None:
    page = ROOT / "docs" / "routing.md"
    assert set(PolicyType.members()) <= anchors(page)
