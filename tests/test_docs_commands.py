"""Proves that every command of the pages is run: in a short form here, or by a test that is named and still there."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from comfy_local import comfy_path
from docs_commands import COMMANDS, OTHERS, SHORT, Run
from e2e_world import need_demo_models
from test_docs import ALL

from scripts._lib.paths import cache_dir

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 500  # of one program, on a machine that is busy with other things
KEPT = ("docs/images", "benchmarks/results", "benchmarks/data", "models", "workflows")


def bare(line: str) -> str:
    """A command without its interpreter."""
    return re.sub(r"^\S*python(\.exe)? ", "", line)


WRITTEN = {bare(line): page for page, line in ALL if not bare(line).startswith(OTHERS)}


def test_every_command_of_the_pages_is_in_the_table():
    missing = {line: page for line, page in WRITTEN.items() if line not in COMMANDS}
    assert not missing, "say in tests/docs_commands.py what runs them: a short form, or the name of a test"
    gone = set(COMMANDS) - set(WRITTEN)
    assert not gone, f"on no page any more: {gone}"


def test_the_table_names_short_forms_and_tests_that_are_there():
    wrong, used = [], set()
    for line, runs in COMMANDS.items():
        for name in (runs,) if isinstance(runs, str) else runs:
            file, _, test = name.partition("::")
            used.add(name)
            if test:
                module = importlib.import_module(file.removesuffix(".py"))
                if not (test.startswith("test_") and callable(getattr(module, test, None))):
                    wrong.append(f"{line}: {name}")
            elif name not in SHORT:
                wrong.append(f"{line}: {name}")
    assert not wrong, "\n".join(wrong)
    assert set(SHORT) <= used, f"run for no command: {set(SHORT) - used}"


def test_a_short_form_runs_the_program_that_the_page_calls():
    for line, runs in COMMANDS.items():
        for name in (runs,) if isinstance(runs, str) else runs:
            if name in SHORT:
                ours, theirs = (shlex.split(x.replace("autolora/", "")) for x in (SHORT[name].words, line))
                same = 2 if theirs[0] == "-m" else 1
                assert ours[:same] == theirs[:same], f"{line}: {SHORT[name].words}"


def started(run: Run, folder: Path) -> tuple[int, str]:
    """Exit code, and what it printed. As in a fresh clone: in the cache is what ``scripts/test.py`` installs."""
    environment = os.environ | {
        "AUTOLORA_CACHE": str(folder / "cache"), "AUTOLORA_RESULTS": str(folder / "results"), "OMP_NUM_THREADS": "1",
        "COMFYUI_PATH": str(comfy_path()), "COMFYUI_PYTHON": os.environ.get("COMFYUI_PYTHON", sys.executable),
    }  # fmt: skip
    environment.pop("AUTOLORA_ZOO", None)
    (folder / "cache").mkdir(parents=True)
    if (cache_dir() / "browser").is_dir():
        (folder / "cache" / "browser").symlink_to(cache_dir() / "browser", target_is_directory=True)
    places = run.words.replace("{out}", folder.as_posix()).replace("{comfyui}", comfy_path().as_posix())
    with (folder / "said").open("w+", encoding="utf-8", errors="replace") as said:
        command = [sys.executable, *shlex.split(places)]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=subprocess.STDOUT)
        end = time.monotonic() + SECONDS
        try:
            while process.poll() is None and time.monotonic() < end:
                time.sleep(0.2)
                if run.stop and re.search(run.says, (folder / "said").read_text(encoding="utf-8")):
                    process.send_signal(signal.SIGINT)
                    process.wait(60)
        finally:
            process.kill()
    return process.wait(), (folder / "said").read_text(encoding="utf-8", errors="replace")


def tree() -> dict[str, str]:
    """All that a benchmark may write in the repository, by content."""
    files = [file for name in KEPT for file in (ROOT / name).rglob("*") if file.is_file()]
    return {str(file.relative_to(ROOT)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def running(request, tmp_path_factory, comfy):
    """Two at a time, the longest first."""
    need_demo_models()
    before, base = tree(), tmp_path_factory.mktemp("commands")
    with ThreadPoolExecutor(2) as pool:
        chosen = {item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")}
        wanted = {name: run for name, run in SHORT.items() if name in chosen}
        yield {name: (pool.submit(started, run, base / name), base / name) for name, run in wanted.items()}
    changed = {name for name, state in tree().items() if before.get(name) != state}
    assert not changed, f"written into the repository: {changed}"


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_the_short_form_runs(running: dict[str, tuple[Future, Path]], name):
    run, (future, folder) = SHORT[name], running[name]
    code, said = future.result()
    assert code == run.code and re.search(run.says, said), f"exit code {code}: {said[-4000:]}"
    missing = [file for file in run.wrote if not (folder / "results" / file).is_file()]
    assert not missing, missing
