"""Draws the contact sheet: a row a prompt, a labelled column a method. Needs Pillow, so it runs in the environment.

As a program: ``python sheet.py <sheet.json> <out.png>``, with the JSON form of `Sheet`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

CELL = 224  # pixels; the demo's pictures are 128 px
GAP, SIDE, CAPTION, HEADER, MARGIN = 14, 250, 44, 40, 20
INK, FAINT, PAPER, EMPTY = (24, 24, 27), (113, 113, 122), (250, 250, 249), (236, 236, 234)


@dataclass(frozen=True)
class Cell:
    """A picture (None: an empty place) and the words under it."""

    image: str | None = None
    caption: str = ""


@dataclass(frozen=True)
class Row:
    """A prompt, a note under it, and its cells in column order."""

    title: str
    note: str = ""
    cells: list[Cell] = field(default_factory=list)


@dataclass(frozen=True)
class Sheet:
    """Column titles, and rows with as many cells."""

    columns: list[str]
    rows: list[Row]

    @classmethod
    def from_json(cls, text: str) -> Sheet:
        """Read what `dataclasses.asdict` and `json.dumps` wrote."""
        data = json.loads(text)
        rows = [Row(row["title"], row["note"], [Cell(**cell) for cell in row["cells"]]) for row in data["rows"]]
        return cls(data["columns"], rows)


def size(sheet: Sheet) -> tuple[int, int]:
    """Width and height of the picture, in pixels."""
    width = 2 * MARGIN + SIDE + len(sheet.columns) * (CELL + GAP)
    return width, 2 * MARGIN + HEADER + len(sheet.rows) * (CELL + CAPTION + GAP)


def draw(sheet: Sheet) -> Image.Image:
    """The contact sheet. Raises OSError when a picture is missing or broken."""
    canvas = Image.new("RGB", size(sheet), PAPER)
    pen = ImageDraw.Draw(canvas)
    large, small = ImageFont.load_default(17), ImageFont.load_default(13)
    for index, column in enumerate(sheet.columns):
        pen.text((_left(index), MARGIN + 8), _clip(pen, column, large, CELL), font=large, fill=INK)
    for number, row in enumerate(sheet.rows):
        top = MARGIN + HEADER + number * (CELL + CAPTION + GAP)
        title = _wrap(pen, row.title, large, SIDE - GAP)
        pen.multiline_text((MARGIN, top), title, font=large, fill=INK, spacing=4)
        below = pen.multiline_textbbox((MARGIN, top), title, font=large, spacing=4)[3] + 8
        note = _wrap(pen, row.note, small, SIDE - GAP)
        pen.multiline_text((MARGIN, below), note, font=small, fill=FAINT, spacing=3)
        for index, cell in enumerate(row.cells):
            _draw_cell(canvas, pen, cell, _left(index), top, small)
    return canvas


def _left(column: int) -> int:
    return MARGIN + SIDE + column * (CELL + GAP)


def _draw_cell(canvas: Image.Image, pen: ImageDraw.ImageDraw, cell: Cell, left: int, top: int, font) -> None:
    if cell.image is None:
        pen.rectangle((left, top, left + CELL - 1, top + CELL - 1), fill=EMPTY)
    else:
        with Image.open(cell.image) as picture:
            canvas.paste(picture.convert("RGB").resize((CELL, CELL), Image.Resampling.LANCZOS), (left, top))
    lines = _wrap(pen, cell.caption, font, CELL).split("\n")[:2]
    pen.multiline_text((left, top + CELL + 6), "\n".join(lines), font=font, fill=FAINT, spacing=3)


def _clip(pen: ImageDraw.ImageDraw, text: str, font, width: int) -> str:
    """`text`, cut with an ellipsis when it is wider than `width` pixels."""
    if pen.textlength(text, font=font) <= width:
        return text
    while text and pen.textlength(text + "…", font=font) > width:
        text = text[:-1]
    return text + "…"


def _wrap(pen: ImageDraw.ImageDraw, text: str, font, width: int) -> str:
    """`text` broken at spaces into lines no wider than `width` pixels."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and pen.textlength(longer, font=font) > width:
                lines.append(line)
                longer = word
            line = _clip(pen, longer, font, width)
        lines.append(line)
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Draw the sheet described by a JSON file into a PNG file."""
    source, target = map(Path, arguments)
    draw(Sheet.from_json(source.read_text(encoding="utf-8"))).save(target, format="PNG", optimize=True)


if __name__ == "__main__":
    main(sys.argv[1:])
