"""What the demo ends with: a table on the terminal, ``results.json`` and the contact sheet."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import textwrap
from pathlib import Path, PurePosixPath
from typing import Any

from .cli import ScriptFailed
from .files import write_atomic
from .install import Install
from .showcase import Shown

_PROMPT_WIDTH, _SECONDS_WIDTH = 34, 9


def lora_title(name: str) -> str:
    """A LoRA's file name without its folder and ending."""
    return PurePosixPath(name.replace("\\", "/")).stem


def table(shown: list[Shown], width: int | None = None) -> str:
    """Prompt, picks with score and reason, seconds; wrapped to `width` characters (default: the terminal's)."""
    width = width or max(shutil.get_terminal_size((110, 24)).columns, 90)
    middle = width - _PROMPT_WIDTH - _SECONDS_WIDTH - 4
    lines = [_line("prompt", "picks: score, part played, reason", "seconds", middle), "-" * width]
    for one in shown:
        left = textwrap.wrap(one.prompt, _PROMPT_WIDTH) or [""]
        centre = [part for text in outcome(one) for part in textwrap.wrap(text, middle, subsequent_indent="    ")]
        for index in range(max(len(left), len(centre))):
            seconds = f"{one.seconds:.1f}" if index == 0 else ""
            lines.append(_line(_at(left, index), _at(centre, index), seconds, middle))
        lines.append("")
    return "\n".join(lines)


def outcome(one: Shown) -> list[str]:
    """What was decided for a prompt, a line a pick."""
    if one.picks:
        return [
            f"{lora_title(pick['name'])}: {pick['score']:.2f}, {pick['role']}, {pick['reason']}" for pick in one.picks
        ]
    same = "identical to the base model's picture" if one.same_as_base else "NOT the base model's picture"
    return [f"none fits: {one.selection.get('none_reason') or 'no reason given'}", same]


def _line(left: str, centre: str, right: str, middle: int) -> str:
    return f"{left:<{_PROMPT_WIDTH}}  {centre:<{middle}}  {right:>{_SECONDS_WIDTH}}".rstrip()


def _at(lines: list[str], index: int) -> str:
    return lines[index] if index < len(lines) else ""


def write_results(shown: list[Shown], out: Path, about: dict[str, Any]) -> Path:
    """``results.json``: everything the table and the sheet say, for programs."""
    rows = [
        {
            "prompt": one.prompt,
            "text": one.text,
            "seconds": round(one.seconds, 3),
            "selection": one.selection,
            "fusion": one.fusion,
            "same_as_base": one.same_as_base,
            "pictures": {name: path.relative_to(out).as_posix() for name, path in one.pictures.items()},
        }
        for one in shown
    ]
    path = out / "results.json"
    write_atomic(path, json.dumps({**about, "prompts": rows}, indent=1, ensure_ascii=False).encode())
    return path


def sheet_spec(shown: list[Shown]) -> dict[str, Any]:
    """The contact sheet as `sheet.Sheet` reads it."""
    most = max((len(one.picks) for one in shown), default=0)
    names = ["base", *(f"pick{number}" for number in range(1, most + 1)), "chain", "ours"]
    titles = {"base": "base model", "chain": "stock loaders, all picks", "ours": "AutoLoRA gate"}
    titles |= {f"pick{number}": f"pick {number} alone" for number in range(1, most + 1)}
    rows = [{"title": one.prompt, "note": _note(one), "cells": [_cell(one, name) for name in names]} for one in shown]
    return {"columns": [titles[name] for name in names], "rows": rows}


def _note(one: Shown) -> str:
    """Words under the prompt; of a long reason the first sentence, the table has the rest."""
    return (
        f"{one.seconds:.1f} s"
        if one.picks
        else "\n".join([*(words.partition(". ")[0] for words in outcome(one)), f"{one.seconds:.1f} s"])
    )


def _cell(one: Shown, name: str) -> dict[str, Any]:
    caption = ""
    if name.startswith("pick") and name in one.pictures:
        pick = one.picks[int(name[4:]) - 1]
        caption = f"{lora_title(pick['name'])}\n{pick['score']:.2f} {pick['role']}"
    elif name == "ours" and not one.picks:
        caption = "unchanged: nothing fits"
    return {"image": str(one.pictures[name]) if name in one.pictures else None, "caption": caption}


def draw_sheet(shown: list[Shown], out: Path, install: Install) -> Path:
    """``contact_sheet.png``, drawn by the environment's Python. Raises `ScriptFailed`."""
    target = out / "contact_sheet.png"
    with tempfile.TemporaryDirectory(prefix="part-", dir=out) as part:
        spec, drawn = Path(part) / "sheet.json", Path(part) / "sheet.png"
        spec.write_text(json.dumps(sheet_spec(shown)), encoding="utf-8")
        # by its path: an embedded Python finds no module in the folder it is started in
        command = [str(install.python), str(Path(__file__).with_name("sheet.py")), str(spec), str(drawn)]
        done = subprocess.run(command, capture_output=True, check=False, env=install.env())
        if done.returncode:
            said = done.stderr.decode("utf-8", errors="replace")
            raise ScriptFailed(f"The contact sheet could not be drawn:\n{said[-2000:]}")
        os.replace(drawn, target)
    return target
