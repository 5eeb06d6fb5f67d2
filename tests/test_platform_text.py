"""Proves that no text file is read or written in whatever encoding a system happens to have, and that our programs
live with a console that lacks most characters."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("autolora_core", "nodes", "scripts", "zoo", "benchmarks")
# method or function -> place of the encoding among its positional arguments
TEXT_METHODS = {"read_text": 0, "write_text": 1}
RUNNERS = {"run", "Popen", "check_output", "check_call", "call"}


def sources() -> list[Path]:
    return [ROOT / "__init__.py", *(path for folder in SHIPPED for path in sorted((ROOT / folder).rglob("*.py")))]


def _mode(call: ast.Call, place: int) -> str:
    """The mode of an ``open``; "r" when none is given, "?" when it is not written down."""
    given = [word.value for word in call.keywords if word.arg == "mode"] + call.args[place : place + 1]
    if not given:
        return "r"
    return given[0].value if isinstance(given[0], ast.Constant) else "?"


def _fault(call: ast.Call) -> str | None:
    """What is wrong with a call, or None."""
    words = {word.arg for word in call.keywords}
    method = isinstance(call.func, ast.Attribute)
    name = call.func.attr if method else getattr(call.func, "id", "")
    owner = call.func.value.id if method and isinstance(call.func.value, ast.Name) else ""
    if method and name in TEXT_METHODS and "encoding" not in words and len(call.args) <= TEXT_METHODS[name]:
        return f"{name} without encoding"
    if name == "open" and "encoding" not in words:
        # of a path (mode first) or the built-in one (mode second); classes with an ``open`` of their own are capital
        if not method and "b" not in _mode(call, 1):
            return "open of a text file without encoding"
        mode = _mode(call, 0)
        if method and not owner[:1].isupper() and owner not in ("os", "webbrowser") and set(mode) <= set("rwaxt+"):
            return "open of a text file without encoding"
    if owner == "subprocess" and name in RUNNERS and words & {"text", "universal_newlines"} and "encoding" not in words:
        return "a program's text without encoding"
    return None


def faults(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = ((node, _fault(node)) for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [f"{path.relative_to(ROOT)}:{node.lineno}: {why}" for node, why in found if why]


def test_every_text_file_has_an_encoding() -> None:
    assert [line for path in sources() for line in faults(path)] == []
    assert len(sources()) > 200


@pytest.mark.parametrize(
    ("code", "wrong"),
    [("open('x')", True), ("open('x', 'w')", True), ("open('x', mode='a')", True), ("open('x', 'rb')", False),
     ("open('x', encoding='utf-8')", False), ("path.open()", True), ("path.open('wb')", False),
     ("path.read_text()", True), ("path.read_text('utf-8')", False), ("path.write_text('a')", True),
     ("path.write_text('a', encoding='utf-8')", False), ("LoraFile.open(path)", False), ("os.open('x', 0)", False),
     ("subprocess.run(c, text=True)", True), ("subprocess.run(c)", False)],
)  # fmt: skip
def test_the_check_sees_what_it_is_for(code, wrong) -> None:
    call = ast.parse(code).body[0].value
    assert bool(_fault(call)) == wrong


def console(encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "ascii"])
def test_a_report_reaches_a_console_that_lacks_its_characters(monkeypatch, encoding) -> None:
    from autolora_core.train import __main__ as program

    out, err = console(encoding), console(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(program, "parse", lambda: None)
    monkeypatch.setattr(program, "run", lambda args: "cosine of ΔW ≥ 0.6 → “otter” × 2, 水彩")
    assert program.main() == 0
    out.flush()
    said = out.buffer.getvalue().decode(encoding)
    assert said.startswith("cosine of ") and "0.6" in said and said.endswith("\n")


@pytest.mark.parametrize("program", ["scripts/demo.py", "scripts/train_gate.py", "scripts/test.py"])
@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_programs_start_on_an_old_console(program, encoding) -> None:
    env = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, str(ROOT / program), "--help"], env=env, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode(encoding, "replace")
    assert b"usage:" in done.stdout


def test_sources_are_utf8_without_a_mark_and_with_plain_line_ends() -> None:
    for path in sources():
        data = path.read_bytes()
        assert not data.startswith(b"\xef\xbb\xbf") and b"\r" not in data, path
        data.decode("utf-8")
