"""What people type and read: the commands and examples of docs/batch.md, help, and the end of a batch in words."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys

import pytest
from batch_world import manifest
from fake_comfy import NODES, FakeComfy

from scripts import batch
from scripts._lib.batch.rows import KNOWN
from scripts._lib.paths import REPO

PAGE = (REPO / "docs" / "batch.md").read_text(encoding="utf-8")
GRAPH = {
    "find": {"class_type": "AutoLoRARetrieve", "inputs": {"prompt": "", "strength": 1.0}, "_meta": {"title": "Find"}},
    "draw": {"class_type": "Draw", "inputs": {"prompt": "{prompt}", "seed": 1, "steps": 2, "from": ["find", 0]},
             "_meta": {"title": "Sample"}},
}  # fmt: skip


def block(kind, number=0):
    """One of the page's fenced blocks."""
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)[number]


@pytest.fixture
def fake():
    fake = FakeComfy()
    yield fake
    fake.stop()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "prompts.csv").write_text(block("csv").replace("negative", "#negative"), encoding="utf-8")
    (tmp_path / "workflow.json").write_text(json.dumps(GRAPH), encoding="utf-8")
    return tmp_path


def command(folder, *words):
    run = [sys.executable, "-I", "-S", str(REPO / "scripts" / "batch.py"), *words]
    return subprocess.run(run, cwd=folder, capture_output=True, encoding="utf-8", timeout=60)


def test_the_page_s_first_command_reads_the_page_s_own_table(tmp_path):
    (tmp_path / "prompts.csv").write_text(block("csv"), encoding="utf-8")
    typed = shlex.split(block("bash").splitlines()[0])
    assert typed[:2] == ["python", "scripts/batch.py"]
    done = command(tmp_path, *typed[2:])
    assert done.returncode == 0, done.stderr
    assert "negative → Negative prompt.text" in done.stdout and "Sample.steps → Sample.steps" in done.stdout
    assert "4 jobs from 2 rows; nothing was sent." in done.stdout
    assert "for the demo model; --workflow FILE takes yours" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.csv"]


def test_the_page_s_second_command_makes_what_the_page_shows(folder, fake):
    typed = shlex.split(block("bash").splitlines()[1].replace("http://127.0.0.1:8188", fake.url))
    typed = [*typed[2:], "--workflow", "workflow.json"]
    typed[typed.index("http://otherbox:8188")] = f"localhost:{fake.port}"
    done = command(folder, *typed)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 made (4 files), 0 failed." in done.stdout
    lines = sorted(manifest(folder / "pictures"), key=lambda line: (line["row"], line["copy"]))
    shown = json.loads(block("json"))
    assert set(lines[0]) == set(shown) and set(lines[0]["files"][0]) == set(shown["files"][0])
    assert set(lines[0]["picks"][0]) <= set(shown["picks"][0])
    assert [line["seed"] for line in lines[:3]] == [7, 8, 9]
    assert lines[1]["files"][0]["name"].startswith("00001-1-")
    again = command(folder, *typed)
    assert "4 jobs, 4 made already." in again.stdout and len(fake.made) == 4


def test_every_option_and_column_is_on_the_page(capsys):
    with pytest.raises(SystemExit):
        batch.parse(["--help"])
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    assert (
        options
        and [option for option in sorted(options) if f"`{option}" not in PAGE and option not in block("bash")] == []
    )
    assert [name for name in KNOWN if f"`{name}`" not in PAGE] == []


def test_a_failure_ends_with_its_reason_and_the_command_that_tries_again(folder, fake):
    fake.fails = lambda graph: graph["draw"]["inputs"]["prompt"].startswith("a sunflower")
    done = command(folder, "prompts.csv", "--server", fake.url, "--workflow", "workflow.json")
    assert done.returncode == 1
    assert "row 2 failed: node draw (Draw): ValueError: no ink" in done.stdout
    assert "3 made (3 files), 1 failed." in done.stdout and "--retry-failed tries them again" in done.stdout
    assert len(manifest(folder / "prompts")) == 4  # the folder's name is the file's


def test_mistakes_are_told_in_a_line_and_nothing_is_made(folder, fake):
    (folder / "bad.csv").write_text("prompt,sed\na,1\n")
    for words, said in (
        (["bad.csv"], "line 2: there is no column 'sed'. Is seed meant?"),
        (["nowhere.csv"], "nowhere.csv"),
        (["prompts.csv", "--server", "ftp://x"], "an address is like http"),
    ):
        done = command(folder, *words, "--workflow", "workflow.json")
        assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr
    fake.nodes = {name: NODES[name] for name in ("Draw", "PreviewAny")}
    done = command(folder, "prompts.csv", "--server", fake.url, "--workflow", "workflow.json")
    assert done.returncode == 1 and "does not know AutoLoRARetrieve" in done.stderr
    assert "4 jobs are left. To go on:" in done.stderr and not fake.made


def test_a_console_that_knows_few_letters_gets_question_marks(folder, fake):
    (folder / "prompts.csv").write_text("prompt\nein Schloß 城\n", encoding="utf-8")
    run = [
        sys.executable,
        str(REPO / "scripts" / "batch.py"),
        "prompts.csv",
        "--dry-run",
        "--workflow",
        "workflow.json",
    ]
    done = subprocess.run(run, cwd=folder, capture_output=True, env={"PYTHONIOENCODING": "ascii"}, timeout=60)
    assert done.returncode == 0 and b"prompt ? " in done.stdout
