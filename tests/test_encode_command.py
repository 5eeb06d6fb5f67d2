"""Proves that ``python -m autolora_core.encode`` makes a library without ComfyUI, says what the node says, stops in
good order and goes on."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT, emoji_factors, write_lora

from autolora_core.cluster import command
from autolora_core.cluster.console import Bar
from autolora_core.encode.towers import LexicalTower
from autolora_core.library.index import Library


@pytest.fixture
def loras(tmp_path):
    for seed, name in enumerate(("otter", "fox", "styles/ink", "styles/neon", "castle", "lynx")):
        write_lora(tmp_path / "loras" / f"{name}.safetensors", emoji_factors(seed, blocks=1))
    return tmp_path / "loras"


@pytest.fixture(autouse=True)
def lexical(monkeypatch):
    monkeypatch.setattr(command, "default_tower", lambda folders: LexicalTower())


def run(loras, library, *more: str) -> int:
    return command.main(["--library", str(library), "--loras", str(loras), *more])


def test_the_report_is_that_of_the_node_and_a_second_run_reads_nothing(loras, tmp_path, capsys):
    assert run(loras, tmp_path / "library") == 0
    first = capsys.readouterr()
    assert "6 LoRA files: 6 new." in first.out and "- emoji: 6" in first.out
    assert f"Index: {tmp_path / 'library'}" in first.out and "Reading [" in first.err
    assert run(loras, tmp_path / "library") == 0
    second = capsys.readouterr().out
    assert "6 LoRA files: 6 unchanged." in second and "Read " not in second
    with Library.open(tmp_path / "library") as library:
        assert len(library.entries("emoji")) == 6 and library.encoder("emoji") is not None


def test_names_and_force(loras, tmp_path, capsys):
    assert run(loras, tmp_path / "library", "--names", "styles/*") == 0
    assert "2 LoRA files: 2 new." in capsys.readouterr().out
    assert run(loras, tmp_path / "library", "--names", "styles/*", "--force") == 0
    assert "2 encoded" in capsys.readouterr().out


def test_ctrl_c_keeps_what_was_read(loras, tmp_path, capsys, monkeypatch):
    before, real = signal.getsignal(signal.SIGINT), Bar.__call__

    def press(self, done, total, name=""):
        if self.step == "Reading" and done == 3:
            os.kill(os.getpid(), signal.SIGINT)
        real(self, done, total, name)

    monkeypatch.setattr(Bar, "__call__", press)
    assert run(loras, tmp_path / "library") == command.STOPPED_CODE
    assert command.STOPPED in capsys.readouterr().err and signal.getsignal(signal.SIGINT) is before
    with Library.open(tmp_path / "library") as library:
        kept = len(library.entries())
    assert 3 <= kept < 6
    monkeypatch.setattr(Bar, "__call__", real)
    assert run(loras, tmp_path / "library") == 0
    assert f"6 LoRA files: {6 - kept} new, {kept} unchanged." in capsys.readouterr().out


def test_a_folder_that_is_not_there_is_said(tmp_path, capsys):
    assert run(tmp_path / "nowhere", tmp_path / "library") == 2
    assert "there is no such folder" in capsys.readouterr().err and not (tmp_path / "library").exists()


def test_it_runs_as_a_module():
    arguments = [sys.executable, "-m", "autolora_core.encode", "--help"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert "--ray ADDRESS" in done.stdout and "--map HERE=THERE" in done.stdout


def test_a_bar_on_a_terminal_covers_what_it_wrote_and_a_log_gets_lines():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    bar = Bar(terminal)
    bar.begin("Reading")
    bar._shown = 0.0
    bar(1, 2, "a-long-name.safetensors")
    bar.end()
    assert terminal.getvalue().count("\n") == 0 and "[############............] 1 of 2" in terminal.getvalue()
    written = terminal.getvalue().split("\r")
    assert written[-1] == "" and written[-2].strip() == "" and len(written[-2]) == len(written[-3])
    log = io.StringIO()
    bar = Bar(log)
    bar.begin("Reading")
    bar(1, 2, "x")
    assert log.getvalue().splitlines() == ["Reading [........................] 0 of 1  "]
