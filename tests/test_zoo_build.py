"""``python -m zoo build`` goes on where it was, keeps to folders of its own when it is to be quick, and says in words
what is wrong.
"""

from __future__ import annotations

import logging
import multiprocessing
import sys
import time
from pathlib import Path

import pytest

import zoo.__main__ as command
from zoo import cache, pictures
from zoo.budget import Budget


@pytest.fixture
def folders(tmp_path, monkeypatch) -> Path:
    """An empty cache; the variables that a build sets are taken back."""
    for variable in (cache.FOLDER, cache.MODELS):
        monkeypatch.setenv(variable, "")
    monkeypatch.setenv("AUTOLORA_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def steps(folders, monkeypatch) -> list[str]:
    """Two steps that note when they run: `one` is kept when it is there, `two` always looks for itself."""
    ran: list[str] = []

    def make(name):
        def run(args):
            ran.append(name)
            cache.write_json(cache.models_dir() / name, {})

        return run

    def made(name):
        return lambda: [cache.models_dir() / name]

    both = (
        command.Step("one", "", made("one"), make("one"), kept=True),
        command.Step("two", "", made("two"), make("two")),
    )
    monkeypatch.setattr(command, "STEPS", both)
    return ran


def call(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["zoo", *arguments])
    return command.main()


def test_what_is_done_is_not_done_again(steps, monkeypatch, tmp_path):
    where = ["--models", str(tmp_path / "mödels x")]
    assert call(monkeypatch, "build", *where, "--until", "one") == 0 and steps == ["one"]
    assert call(monkeypatch, "build", *where) == 0 and steps == ["one", "two"]
    assert call(monkeypatch, "build", *where) == 0 and steps == ["one", "two", "two"]
    assert {p.name for p in (tmp_path / "mödels x").iterdir()} == {"one", "two"}


def test_a_quick_build_keeps_to_its_own_folders(steps, monkeypatch, folders):
    shipped = sorted((p.name, p.stat().st_mtime) for p in (cache.REPO / "models").iterdir())
    assert call(monkeypatch, "build", "--quick") == 0
    assert steps == ["one", "two"] and cache.zoo_dir() == folders / "zoo-quick"
    assert {p.name for p in (folders / "zoo-quick" / "models").iterdir()} == {"one", "two"}
    assert cache.shelf_table().parent == folders / "zoo-quick" / "models"
    assert shipped == sorted((p.name, p.stat().st_mtime) for p in (cache.REPO / "models").iterdir())


def test_without_variables_the_shipped_models_are_meant(folders):
    assert cache.models_dir() == cache.REPO / "models" and cache.shelf_table() == cache.REPO / "zoo" / "loras.json"
    assert cache.zoo_dir("base") == folders / "zoo" / "base"


def test_quick_settings_fill_only_what_was_not_given(folders):
    args = command.parse(["build", "--quick", "--base-minutes", "3", "--loras", "9", "--models", "x"])
    assert (args.loras, args.no_compile, args.models) == (9, True, Path("x"))
    assert command.chosen(args.base_minutes, args.base_steps, 120) == Budget(3, 40)
    plain = command.parse(["build"])
    assert not plain.no_compile and command.chosen(plain.base_minutes, plain.base_steps, 120) == Budget(120)


@pytest.mark.parametrize("arguments", [["--base-minutes", "0"], ["--loras", "5"], ["--loras", "0"], ["--until", "x"]])
def test_settings_that_would_break_a_build_are_refused(folders, arguments):
    with pytest.raises(SystemExit):
        command.parse(["build", *arguments])


def test_a_step_that_does_not_make_its_files_is_noticed(steps, monkeypatch, tmp_path):
    idle = command.Step("idle", "", lambda: [tmp_path / "gone"], lambda args: None)
    monkeypatch.setattr(command, "STEPS", (idle,))
    with pytest.raises(FileNotFoundError, match="step idle did not make .*gone"):
        call(monkeypatch, "build", "--quick")


def test_what_is_written_can_be_read_by_others(tmp_path):
    path = cache.write_atomic(tmp_path / "x", lambda tmp: tmp.touch(0o600))
    assert path.stat().st_mode & 0o044 == 0o044


def test_status_names_what_is_missing_and_how_long_was_trained(folders, monkeypatch, caplog):
    cache.write_json(folders / "zoo-quick" / "base" / "state.json", {"step": 7, "seconds": 3.2})
    cache.write_json(folders / "zoo-quick" / "judge" / "state.json", {"steps": 9, "spent": 2.0})
    with caplog.at_level(logging.INFO):
        assert call(monkeypatch, "status", "--quick") == 0
    lines = {line.split()[0]: line for line in (r.getMessage() for r in caplog.records)}
    assert "trained for 7 steps, 3 s" in lines["base"] and "trained for 9 steps, 2 s" in lines["judge"]
    assert "missing: pictures.npy, pictures.json" in lines["pictures"]


def test_ctrl_c_ends_the_training_processes(steps, monkeypatch, caplog):
    def interrupted(args):
        multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,)).start()
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "STEPS", (command.Step("x", "", list, interrupted),))
    assert call(monkeypatch, "build", "--quick") == 130
    assert "goes on from here" in caplog.text
    deadline = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert multiprocessing.active_children() == []


@pytest.fixture
def npm(folders, monkeypatch) -> Path:
    """A program called npm that writes the file named in its place, or fails."""
    program = folders / "bin" / "npm"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport os, pathlib, sys\n"
        "name = os.environ['FAKE_NPM']\n"
        "if not name: sys.exit('npm error code ENOTFOUND')\n"
        "pathlib.Path(sys.argv[sys.argv.index('--pack-destination') + 1], name).write_bytes(b'whole')\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    return program


def test_a_package_is_fetched_once_and_whole_or_not_at_all(npm, folders, monkeypatch):
    monkeypatch.setenv("FAKE_NPM", "")
    with pytest.raises(ConnectionError, match="could not fetch @a/b 1.0:\nnpm error code ENOTFOUND"):
        pictures.tarball("@a/b", "1.0")
    assert list((folders / "downloads" / "npm").iterdir()) == []
    monkeypatch.setenv("FAKE_NPM", "a-b-1.0.tgz")
    path = pictures.tarball("@a/b", "1.0")
    assert path.read_bytes() == b"whole" and list(path.parent.iterdir()) == [path]
    npm.unlink()
    assert pictures.tarball("@a/b", "1.0") == path
    with pytest.raises(ConnectionError, match="not on the PATH"):
        pictures.tarball("@a/b", "2.0")
