"""Reads the prompts: CSV as Excel and others write it, JSON lines, or a plain list of prompts."""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cli import ScriptFailed

PROMPT = "prompt"
KNOWN = (PROMPT, "negative", "seed", "count", "width", "height", "strength", "top_k", "threshold", "pinned", "banned")
_NEVER = "\x1f"  # a separator that no text holds: the cells of a file with one column


class RowsError(ScriptFailed):
    """The file of prompts cannot be read; the message names file and line."""


@dataclass(frozen=True)
class Row:
    """One row: its ``number`` (1 for the first), its ``line`` in the file, and what its cells hold (none empty).

    Cells of a CSV file are strings; those of JSON lines keep their types. Columns that begin with # are remarks.
    """

    number: int
    line: int
    values: dict[str, Any]

    @property
    def asked(self) -> dict[str, Any]:
        """The cells that say something about the picture."""
        return {name: value for name, value in self.values.items() if not name.startswith("#")}


def read_rows(path: Path, encoding: str | None = None) -> list[Row]:
    """The rows of a .csv, .tsv, .jsonl or .txt file. Raises `RowsError`, also when there is none."""
    text = _decode(path, encoding)
    kind = path.suffix.lower()
    if kind in (".jsonl", ".ndjson"):
        rows = _json_rows(path, text)
    elif kind == ".txt":
        lines = enumerate(text.splitlines(), 1)
        rows = _numbered((line, {PROMPT: words.strip()}) for line, words in lines if words.strip())
    elif kind in (".csv", ".tsv"):
        rows = _csv_rows(path, text)
    else:
        raise RowsError(f"{path}: prompts come as .csv, .tsv, .jsonl or .txt, not as {kind or 'a file without ending'}")
    if not rows:
        raise RowsError(f"{path}: there is no row with anything in it")
    return rows


def check_columns(rows: Sequence[Row], known: Iterable[str], path: Path) -> None:
    """Raise `RowsError` for a column that means nothing, naming the nearest that does. Those with a dot (node.input)
    are the workflow's to judge."""
    known = list(known)
    for row in rows:
        for name in row.asked:
            if name not in known and "." not in name:
                near = difflib.get_close_matches(name, known, 1)
                guess = f" Is {near[0]} meant?" if near else ""
                raise RowsError(
                    f"{path}, line {row.line}: there is no column {name!r}.{guess} Columns are {', '.join(known)}; "
                    f"node.input, as in Sample.steps, sets any other input; # in front of a name makes it a remark."
                )


def _decode(path: Path, encoding: str | None) -> str:
    data = path.read_bytes()
    if encoding is None:
        # Excel's "Unicode text" is UTF-16 with a mark; its "CSV UTF-8" has one too
        encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except (UnicodeDecodeError, LookupError) as error:
        at = data[: getattr(error, "start", 0)].count(b"\n") + 1
        raise RowsError(
            f"{path}, line {at}: this is not {encoding} ({error}). In Excel save as “CSV UTF-8”, or say what it is, "
            "as with --encoding cp1252"
        ) from error
    if "\0" in text:
        raise RowsError(f"{path}: there are zero bytes in it; is it a spreadsheet file (.xlsx)? Save it as CSV UTF-8")
    return text


def _numbered(found: Iterable[tuple[int, dict[str, Any]]]) -> list[Row]:
    return [Row(number, line, values) for number, (line, values) in enumerate(found, 1)]


def _json_rows(path: Path, text: str) -> list[Row]:
    found = []
    for line, words in enumerate(text.split("\n"), 1):
        if not words.strip():
            continue
        try:
            value = json.loads(words)
        except ValueError as error:
            raise RowsError(f"{path}, line {line}: this is not JSON: {error}") from error
        value = {PROMPT: value} if isinstance(value, str) else value
        if not isinstance(value, dict):
            raise RowsError(f"{path}, line {line}: a line is an object or a string, not {type(value).__name__}")
        for name, cell in value.items():
            if isinstance(cell, dict | list) and not name.startswith("#"):
                raise RowsError(f"{path}, line {line}: {name!r} is a list or an object; one value is needed")
        values = {_column(name): cell for name, cell in value.items() if cell is not None and cell != ""}
        if values:
            found.append((line, values))
    return _numbered(found)


def _csv_rows(path: Path, text: str) -> list[Row]:
    text, skipped, separator = _separator(text, path)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        return _numbered(_cells(path, reader, skipped))
    except csv.Error as error:
        raise RowsError(f"{path}, line {reader.line_num + skipped}: {error}") from error


def _cells(path: Path, reader: Any, skipped: int) -> Iterable[tuple[int, dict[str, Any]]]:
    names: list[str] = []
    last = skipped
    for cells in reader:
        line, last = last + 1, reader.line_num + skipped  # a quoted cell may go over several lines
        while cells and not cells[-1].strip():
            cells.pop()  # Excel keeps empty columns on the right
        if not cells:
            continue
        if not names:
            names = _header(path, line, cells)
            continue
        if len(cells) > len(names):
            raise RowsError(
                f"{path}, line {line}: {len(cells)} cells under {len(names)} columns. A text with the separator in it "
                'stands in quotes: "a castle, at night"'
            )
        values = {name: cell.strip() for name, cell in zip(names, cells, strict=False) if cell.strip()}
        if values:
            yield line, values


def _separator(text: str, path: Path) -> tuple[str, int, str]:
    """The text without Excel's ``sep=;`` line, how many lines that were, and what stands between cells."""
    first, _, rest = text.lstrip("\r\n").partition("\n")
    skipped = (len(text) - len(text.lstrip("\r\n"))) and text[: len(text) - len(text.lstrip("\r\n"))].count("\n")
    text = text.lstrip("\r\n")
    if first.strip().strip('"').lower().startswith("sep=") and len(first.strip().strip('"')) == 5:
        return rest, skipped + 1, first.strip().strip('"')[4]
    counts = {sign: _outside_quotes(first, sign) for sign in (",", ";", "\t")}
    best = max(counts, key=lambda sign: counts[sign])
    return text, skipped, best if counts[best] else _NEVER


def _outside_quotes(text: str, sign: str) -> int:
    return sum(part.count(sign) for part in text.split('"')[::2])


def _header(path: Path, line: int, cells: Sequence[str]) -> list[str]:
    names = [_column(cell) for cell in cells]
    doubled = {name for name in names if names.count(name) > 1}
    if doubled or "" in names:
        which = f"the column {min(doubled)!r} is there twice" if doubled - {""} else "a column has no name"
        raise RowsError(f"{path}, line {line}: {which}")
    if not any(name == PROMPT or "." in name for name in names):
        raise RowsError(
            f"{path}, line {line}: the first line names the columns, and {PROMPT} is one of them; it reads "
            f"{', '.join(cells)[:120]!r}. A plain list of prompts is read from a .txt file"
        )
    return names


def _column(name: str) -> str:
    plain = name.strip()
    return plain.lower() if plain.lower() in KNOWN else plain
