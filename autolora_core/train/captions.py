"""What the files of a family are said to show: their own words, or those of a table that the user gives.

The table is CSV, a file a line: ``file,caption[,caption…]``. A file is named as ComfyUI shows it, with or without
folder and extension. Commas, semicolons or tabs separate; a first line that begins with ``file`` is a heading.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import LibraryError
from ..library.entries import Entry
from ..library.words import Words, words_of

TABLE_ENDINGS = (".csv", ".tsv")
MAX_TABLE_BYTES = 64 << 20
MAX_CAPTION = 200
TABLE = "table"
_MODEL_ENDINGS = (".safetensors", ".sft", ".ckpt", ".pt", ".bin")


@dataclass(frozen=True)
class Row:
    """One line of a table: ``line`` counts from 1."""

    line: int
    file: str
    captions: tuple[str, ...]


def table_path(given: str | os.PathLike) -> Path | None:
    """The file that ``given`` names, None when it is the text of a table (or empty)."""
    text = os.fspath(given).strip()
    named = "\n" not in text and text.lower().endswith(TABLE_ENDINGS)
    if not text or not (named or isinstance(given, os.PathLike)):
        return None
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~somebody, whom this system does not know
        return Path(text)


def table_inside(path: Path, folders: Sequence[str | os.PathLike]) -> Path:
    """``path``, a relative one in the first of ``folders``. Raises LibraryError where it lies in none of them, links
    followed: what a node is told to read may come over the network."""
    whole = path if path.is_absolute() else Path(folders[0]) / path
    try:
        real = whole.resolve()
        inside = any(real.is_relative_to(Path(folder).resolve()) for folder in folders)
    except (OSError, ValueError, RuntimeError):  # a name that no disk takes, a circle of links
        inside = False
    if not inside:
        fix = f"put the table into {folders[0]}, or paste its lines themselves"
        raise LibraryError("a table of captions is read from ComfyUI's own folders only", path=path, fix=fix)
    return whole


def read_table(given: str | os.PathLike, folders: Sequence[str | os.PathLike] | None = None) -> list[Row]:
    """The rows of a table: a path ending in .csv or .tsv, or the text of one. Empty text has no rows.

    ``folders``: the only ones that a path may lie in, see :func:`table_inside`. Raises LibraryError naming the file, or
    the line, that cannot be used.
    """
    path = table_path(given)
    if path is not None and folders is not None:
        path = table_inside(path, folders)
    if path is not None:
        return parse_table(_read_text(path), os.fspath(given).strip())
    return parse_table(os.fspath(given), "the captions given as text")


def _read_text(path: Path) -> str:
    if path.suffix.lower() not in TABLE_ENDINGS:
        raise LibraryError("a table of captions ends in .csv or .tsv", path=path, fix="rename the file")
    try:
        size = path.stat().st_size
        if size > MAX_TABLE_BYTES:
            raise LibraryError(f"the table of captions has {size} bytes, more than {MAX_TABLE_BYTES}", path=path)
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        fix = "save it as UTF-8 (in a spreadsheet: CSV UTF-8)"
        raise LibraryError(f"the table of captions is not UTF-8 ({error})", path=path, fix=fix) from error
    except OSError as error:
        fix = "check the path; or paste the lines themselves"
        raise LibraryError(f"the table of captions cannot be read ({error.strerror})", path=path, fix=fix) from error


def parse_table(text: str, name: str) -> list[Row]:
    """The rows of ``text``; ``name`` is what errors call it."""
    first = text.lstrip("\ufeff\r\n ").split("\n", 1)[0]
    mark = "\t" if "\t" in first else ";" if ";" in first and "," not in first else ","
    reader, rows, begins = csv.reader(io.StringIO(text.lstrip("\ufeff")), delimiter=mark), [], 1
    try:
        for cells in reader:
            line, begins = begins, reader.line_num + 1
            cells = [" ".join(cell.split()) for cell in cells]
            if not any(cells) or (not rows and cells[0].lower() in ("file", "filename", "name")):
                continue
            rows.append(_row(line, cells, name))
    except csv.Error as error:
        raise LibraryError(f"line {begins} of {name} is not CSV: {error}", key=f"line {begins}") from error
    return rows


def _row(line: int, cells: Sequence[str], name: str) -> Row:
    captions = tuple(dict.fromkeys(cell[:MAX_CAPTION] for cell in cells[1:] if cell))
    if not cells[0]:
        raise LibraryError(f"line {line} of {name} names no file", key=f"line {line}", fix="write: file,caption")
    if not captions:
        fix = "write: file,caption (a caption with commas in quotation marks)"
        raise LibraryError(f"line {line} of {name} has no caption for {cells[0]}", key=f"line {line}", fix=fix)
    return Row(line, cells[0], captions)


def _key(name: str) -> str:
    return name.replace("\\", "/").strip("/ ").casefold()


def _bare(key: str) -> str:
    return next((key[: -len(end)] for end in _MODEL_ENDINGS if key.endswith(end)), key)


def match(rows: Iterable[Row], entries: Iterable[Entry]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """``({content: captions}, notes)``: rows of several names of one content add up; notes name rows without a file,
    and rows whose name means several different files. A file that could not be read (no ``hash``) is none."""
    places: dict[str, set[str]] = {}
    for entry in (entry for entry in entries if entry.hash):
        whole = _key(entry.name)
        for form in {whole, _bare(whole), whole.rpartition("/")[2], _bare(whole.rpartition("/")[2])}:
            places.setdefault(form, set()).add(entry.hash)
    found: dict[str, list[str]] = {}
    unknown, unclear = [], []
    for row in rows:
        key = _key(row.file)
        hashes = places.get(key) or places.get(_bare(key)) or set()
        if len(hashes) == 1:
            found.setdefault(next(iter(hashes)), []).extend(row.captions)
        else:
            (unclear if hashes else unknown).append(f"line {row.line} ({row.file})")
    notes = []
    if unknown:
        notes.append(f"No such file in this index: {_some(unknown)}.")
    if unclear:
        notes.append(f"Several different files have this name, write the folder too: {_some(unclear)}.")
    return {digest: tuple(dict.fromkeys(lines)) for digest, lines in found.items()}, notes


def _some(names: Sequence[str], most: int = 20) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def words_of_files(entries: Iterable[Entry], table: Mapping[str, Sequence[str]]) -> dict[str, Words]:
    """Content → words; a table's take the place of the file's own."""
    own = words_of((entry.hash, entry.text) for entry in entries)
    return own | {digest: Words(tuple(lines), 1.0, TABLE) for digest, lines in table.items()}
