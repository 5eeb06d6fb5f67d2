"""Proves that the pages can be followed: every command in them is one that its program takes, every Python snippet
runs, every link leads to a file, the tables of nodes name them all, and the README is short."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import dropwhile
from pathlib import Path

import pytest
from e2e_world import need_demo_models

from scripts._lib.server import ComfyServer

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
# Programs of others, used as their own pages say; those of Ray by tests/test_ray.py.
OTHERS = {"cd", "git", "ray", "export"}


def blocks(page: Path, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", page.read_text(encoding="utf-8"), re.S)


def commands(page: Path) -> list[list[str]]:
    """The commands of a page as lists of words: of its bash blocks, and in backticks where they begin with Python."""
    lines = [line for block in blocks(page, "bash") for line in block.split("\n")]
    lines += re.findall(r"`((?:\S*python\S* )(?:-m |\S+\.py)[^`\n]*)`", page.read_text(encoding="utf-8"))
    # words in angle brackets stand for something of the reader's
    words = [shlex.split(re.sub(r"<[^>]*>", "SOMETHING", line), comments=True) for line in lines]
    # variables before a command are the shell's
    return [line for all_ in words if (line := list(dropwhile(lambda word: re.match(r"[A-Z_]+=", word), all_)))]


def program(words: list[str]) -> tuple[str, ...] | None:
    """What is called: ("-m", "benchmarks.fusion"), ("scripts/demo.py",), with its sub-command; None: another's."""
    if words[0] in OTHERS:
        return None
    assert re.search(r"python(\.exe)?$", words[0]), words
    size = 2 if words[1] == "-m" else 1
    name = tuple(words[1 : 1 + size])
    if name == ("-m", "pip"):
        return None
    more = words[1 + size : 2 + size]
    return (*name, *more) if name == ("-m", "zoo") and more and not more[0].startswith("-") else name


ALL = {(page.name, " ".join(words)): words for page in PAGES for words in commands(page)}
PROGRAMS = sorted({called for words in ALL.values() if (called := program(words))})


@cache
def help_of(called: tuple[str, ...]) -> tuple[int, str]:
    words = ["install.py" if called[0].endswith("install.py") else called[0], *called[1:]]
    done = subprocess.run(
        [sys.executable, *words, "--help"], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=300
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_every_command_is_one_that_its_program_takes():
    assert len(ALL) > 40 and len(PROGRAMS) > 20  # the pages are read at all
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(help_of, PROGRAMS))
    wrong = []
    for (page, line), words in ALL.items():
        called = program(words)
        if called is None:
            continue
        status, told = help_of(called)
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        missing = {option for option in options if not re.search(rf"{option}(?![\w-])", told)}
        if status or missing:
            wrong.append(f"{page}: {line}: {missing or told[-300:]}")
    assert not wrong, "\n".join(wrong)


def test_the_test_would_notice_an_option_that_is_not_there():
    words = shlex.split("python scripts/demo.py --no-such-option")
    assert program(words) == ("scripts/demo.py",)
    assert "--no-such-option" not in help_of(("scripts/demo.py",))[1]
    with pytest.raises(AssertionError):
        program(["pyhton", "scripts/demo.py"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_stand_where_they_are_found(page):
    text = re.sub(r"```(bash|python|csv|json)\n.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    assert not re.findall(r"^(?:    |```.*\n)[^|`\n]*\bpython\S* .*", text, re.M), "put commands into a bash block"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, heading = target.partition("#")
        if "://" in target:
            continue
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            wrong.append(target)
        elif heading and heading not in _headings(file):
            wrong.append(target)
    assert not wrong, wrong


def _headings(file: Path) -> set[str]:
    """As GitHub names them."""
    found = re.findall(r"^#+ +(.+)$", file.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in found}


def test_every_node_and_every_workflow_is_in_the_list_of_nodes(pack):
    page = (ROOT / "docs" / "nodes.md").read_text(encoding="utf-8")
    for name, title in pack.NODE_DISPLAY_NAME_MAPPINGS.items():
        assert f"](../web/docs/{name}.md)" in page, f"{title} ({name}) is not in docs/nodes.md"
    for path in (ROOT / "workflows").glob("*.json"):
        assert f"](../workflows/{path.name})" in page, f"{path.name} is not in docs/nodes.md"


def test_the_readme_is_short_and_names_every_node(pack):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split("\n")) < 200
    missing = [title for title in pack.NODE_DISPLAY_NAME_MAPPINGS.values() if f"**{title}**" not in text]
    assert not missing, missing


@pytest.mark.slow
def test_the_index_without_comfyui_works_as_the_page_shows_it(tmp_path):
    (snippet,) = [block for block in blocks(ROOT / "docs" / "api.md", "python") if "Library" in block]
    need_demo_models()
    (tmp_path / "ComfyUI" / "models").mkdir(parents=True)
    shutil.copytree(ROOT / "models" / "loras", tmp_path / "ComfyUI" / "models" / "loras")
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{snippet}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert "blueprint-tern" in done.stdout and "Matches" in done.stdout


@pytest.mark.slow
def test_a_prompt_over_the_api_works_as_the_page_shows_it(tmp_path):
    (snippet,) = [block for block in blocks(ROOT / "docs" / "api.md", "python") if "urllib" in block]
    need_demo_models()
    with ComfyServer(tmp_path) as server:
        code = snippet.replace("http://127.0.0.1:8188", server.url)
        assert code != snippet
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
        assert done.returncode == 0, done.stderr
        outputs = wait_for(server, done.stdout.strip())
    assert "castle" in outputs["5"]["text"][0] and outputs["12"]["images"]
    told = json.loads(json.dumps(outputs["5"]["autolora"]))
    assert told, "the page says that the history has what the cards show"


def wait_for(server: ComfyServer, prompt_id: str, seconds: float = 240) -> dict:
    import time

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        history = server.client.get(f"/history/{prompt_id}")
        if prompt_id in history and history[prompt_id]["outputs"].get("12"):
            return history[prompt_id]["outputs"]
        time.sleep(0.5)
    raise AssertionError(f"no picture in {seconds} s: {server.log_text()[-2000:]}")
