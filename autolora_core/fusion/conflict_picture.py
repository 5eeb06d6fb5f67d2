"""The conflict report as a picture: a row for each block, a column for each pair; for one LoRA its size in each block.

The text on it is plain ASCII but for the files' own names: Pillow's built-in font is all that there is everywhere.
Names that it cannot write are told by the letters, which the report has too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .conflict_words import Facts, letter, signed, size_of
from .conflicts import Meeting

CELL, ROW, EDGE, GAP = 62, 24, 16, 28  # pixels
PAIRS, NAME = 12, 40  # columns at most; letters of a name
LEAST_SCALE = 0.1  # full colour is at least this: cosines near 0 must not look like conflicts
PAPER, INK, FAINT, NOTHING = (255, 255, 255), (30, 32, 38), (120, 124, 132), (238, 239, 241)
CANCEL, DOUBLE, SHARE, SIZE = (33, 102, 172), (191, 73, 32), (97, 64, 150), (60, 130, 110)
EVERYWHERE = "whole model"
Colour = tuple[int, int, int]


def draw(facts: Facts) -> np.ndarray:
    """(H, W, 3) float32 in [0, 1]."""
    met = [one for one in facts.pairs if one.layers]
    picture = _pairs(facts, met[:PAIRS], len(met)) if met else _sizes(facts)
    return np.asarray(picture, dtype=np.float32) / 255


class _Sheet:
    """A page that grows with what is to be drawn: ``rows`` on the left, panels to their right, lines of text below."""

    def __init__(self, rows: Sequence[str], widths: Sequence[int], headers: int, below: Sequence[str]):
        self.font = ImageFont.load_default(13)
        self.left = EDGE + round(max(self.font.getlength(row) for row in rows)) + 10
        self.top = EDGE + headers * ROW
        right = self.left + sum(widths) + GAP * (len(widths) - 1) + EDGE
        wide = max([right, *(round(self.font.getlength(line)) + 2 * EDGE for line in below)])
        bottom = self.top + len(rows) * ROW + 10
        self.image = Image.new("RGB", (wide, bottom + len(below) * ROW + EDGE), PAPER)
        self.pen = ImageDraw.Draw(self.image)
        for place, row in enumerate(rows):
            self.text(self.left - 8, self.top + place * ROW + ROW // 2, row, INK, "rm")
        for place, line in enumerate(below):
            self.text(EDGE, bottom + place * ROW + ROW // 2, line, FAINT if place == 0 else INK, "lm")

    def text(self, x: float, y: float, text: str, colour: Colour = INK, anchor: str = "mm") -> None:
        self.pen.text((x, y), text, colour, self.font, anchor)

    def cell(self, x: int, row: int, colour: Colour, text: str) -> None:
        y = self.top + row * ROW
        self.pen.rectangle((x, y, x + CELL - 2, y + ROW - 2), colour)
        self.text(x + (CELL - 2) / 2, y + (ROW - 2) / 2, text, _readable(colour))


def _pairs(facts: Facts, pairs: Sequence[Meeting], count: int) -> Image.Image:
    letters = {lora.number: letter(lora.number) for lora in facts.loras}
    rows = [EVERYWHERE, *facts.blocks]
    cells = {(met.one, met.two): {EVERYWHERE: met, **facts.by_block[met.one, met.two]} for met in pairs}
    widest = max(abs(one.cosine) for by_row in cells.values() for one in by_row.values())
    scale = max(widest, LEAST_SCALE)
    below = [_legend(scale, len(pairs), count), *(f"{letters[n]}  {_clip(name)}" for n, name in facts.names.items())]
    sheet = _Sheet(rows, [max(len(pairs) * CELL, 3 * CELL)] * 2, 2, below)
    second = sheet.left + max(len(pairs) * CELL, 3 * CELL) + GAP
    _panel(sheet, sheet.left, "cosine of updates", rows, cells, letters, lambda met: _cosine(met, scale))
    _panel(sheet, second, "inputs shared", rows, cells, letters, _shared)
    return sheet.image


def _legend(scale: float, drawn: int, count: int) -> str:
    more = f"; the {drawn} strongest of {count} pairs" if drawn < count else ""
    return f"blue: cancel, red: double up, full colour at {scale:.2f}; violet: 0 to 1; grey: do not meet{more}"


def _panel(
    sheet: _Sheet, x: int, title: str, rows: Sequence[str], cells: dict, letters: dict[int, str],
    paint: Callable[[Meeting], tuple[Colour, str]],
) -> None:  # fmt: skip
    sheet.text(x, EDGE + ROW // 2, title, INK, "lm")
    for column, ((one, two), by_row) in enumerate(cells.items()):
        at = x + column * CELL
        sheet.text(at + CELL / 2, EDGE + ROW + ROW // 2, f"{letters[one]} + {letters[two]}", FAINT)
        for row, name in enumerate(rows):
            sheet.cell(at, row, *(paint(by_row[name]) if name in by_row else (NOTHING, "")))


def _cosine(met: Meeting, scale: float) -> tuple[Colour, str]:
    end = CANCEL if met.cosine < 0 else DOUBLE
    return _mixed(end, abs(met.cosine) / scale), signed(met.cosine).replace("−", "-")


def _shared(met: Meeting) -> tuple[Colour, str]:
    return (_mixed(SHARE, met.spaces.read), f"{met.spaces.read:.2f}") if met.spaces else (NOTHING, "?")


def _sizes(facts: Facts) -> Image.Image:
    """A bar for each LoRA and block, as long as its update there: of the base's weights where they can be read."""
    rows = [(name, lora) for name in facts.blocks for lora in facts.names if _touches(facts, name, lora)]
    if not rows:
        return _Sheet(["no layer to measure"], [3 * CELL], 1, []).image
    found = [size_of(facts.blocks[name], lora) for name, lora in rows]
    relative = all(one["over_base"] is not None for one in found)
    values = [one["over_base"] if relative else one["norm"] for one in found]
    many = len({lora for _, lora in rows}) > 1
    letters = {lora.number: letter(lora.number) for lora in facts.loras}
    labels = [f"{name}  {letters[lora]}" if many else name for name, lora in rows]
    below = ["no two LoRAs meet in a layer" if many else "one LoRA: nothing to overlap with"]
    sheet = _Sheet(labels, [6 * CELL], 1, below + [f"{letters[n]}  {_clip(one)}" for n, one in facts.names.items()])
    title = "size of the update, of the base's weights" if relative else "size of the update"
    sheet.text(sheet.left, EDGE + ROW // 2, title, INK, "lm")
    for row, value in enumerate(values):
        y = sheet.top + row * ROW
        end = sheet.left + round(5 * CELL * value / max(values))
        sheet.pen.rectangle((sheet.left, y + 3, end, y + ROW - 4), SIZE)
        sheet.text(end + 6, y + ROW // 2, f"{100 * value:.2g} %" if relative else f"{value:.3g}", FAINT, "lm")
    return sheet.image


def _touches(facts: Facts, block: str, lora: int) -> bool:
    return any(lora in layer.loras for layer in facts.blocks[block])


def _clip(name: str) -> str:
    """Both ends of a long name: versions are told at its end."""
    return name if len(name) <= NAME else f"{name[: NAME // 2]}...{name[3 - NAME // 2 :]}"


def _mixed(end: Colour, share: float) -> Colour:
    share = min(max(share, 0.0), 1.0)
    return tuple(round(p + (e - p) * share) for p, e in zip(PAPER, end, strict=True))


def _readable(colour: Colour) -> Colour:
    """Dark or white, by the colour's luminance (ITU-R BT.601)."""
    return INK if 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140 else PAPER
