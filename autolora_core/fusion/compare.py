"""Modes beside strengths: the pairs to be drawn, and the sheet that shows what came of them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import SelectionError

PAPER, INK = (255, 255, 255), (30, 32, 38)
EDGE, LINE, LETTER = 8, 20, 15  # pixels: around a picture, a line of its label, a letter
MOST_PAIRS, MOST_LINES, MOST_PIXELS = 64, 3, 64_000_000


@dataclass(frozen=True)
class Pair:
    """One picture of the sheet."""

    mode: str
    strength: float

    @property
    def label(self) -> str:
        return "no LoRA" if self.strength == 0 else f"{self.mode}, {self.strength:g}"


def pairs(modes: str, strengths: str, known: Sequence[str]) -> tuple[list[Pair], int]:
    """Every mode (one a line) with every strength (numbers, commas between), and how many columns that makes.

    Raises SelectionError for an unknown mode, for what is no number, and for more than :data:`MOST_PAIRS` pairs.
    """
    wanted = list(dict.fromkeys(line.strip() for line in modes.replace(",", "\n").split("\n") if line.strip()))
    unknown = [mode for mode in wanted if mode not in known]
    if unknown or not wanted:
        said = f"{unknown[0]!r} is no mode" if unknown else "no mode is named"
        raise SelectionError(said, key="modes", fix=f"write one a line, of: {', '.join(known)}")
    numbers = list(dict.fromkeys(_number(word) for word in re.split(r"[\s,;]+", strengths.strip()) if word))
    if not numbers:
        raise SelectionError("no strength is named", key="strengths", fix="write numbers with commas: 0.5, 1.0")
    if len(wanted) * len(numbers) > MOST_PAIRS:
        raise SelectionError(
            f"{len(wanted)} modes with {len(numbers)} strengths are more than {MOST_PAIRS} pictures",
            key="modes", fix="compare fewer at a time",
        )  # fmt: skip
    return [Pair(mode, number) for mode in wanted for number in numbers], len(numbers)


def _number(word: str) -> float:
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not -10 <= number <= 10:
        fix = "write numbers with commas: 0.5, 1.0"
        raise SelectionError(f"{word!r} is not a strength from -10 to 10", key="strengths", fix=fix)
    return number


def sheet(pictures: Sequence[np.ndarray], labels: Sequence[str], columns: int = 0) -> np.ndarray:
    """Pictures, (h, w, 3) in [0, 1], in lines of ``columns`` (0: a square), each with its label below.

    Returns (H, W, 3) float32 in [0, 1]. Pictures keep their pixels; smaller ones stand in the middle of their place.
    Raises SelectionError when there is nothing to show, or more than a sheet holds.
    """
    if not pictures:
        raise SelectionError("there is no picture to show", key="images", fix="connect a VAE Decode")
    columns = min(columns or math.ceil(math.sqrt(len(pictures))), len(pictures))
    high, wide = (max(picture.shape[axis] for picture in pictures) for axis in (0, 1))
    font = ImageFont.load_default(LETTER)
    words = [_wrapped(labels[place] if place < len(labels) else "", font, wide) for place in range(len(pictures))]
    below = LINE * max(map(len, words))
    step = (wide + EDGE, high + below + EDGE)
    size = (EDGE + columns * step[0], EDGE + -(-len(pictures) // columns) * step[1])
    if size[0] * size[1] > MOST_PIXELS:
        said = f"a sheet of {size[0]} × {size[1]} pixels is too large"
        raise SelectionError(said, key="images", fix="compare fewer or smaller pictures")
    paper = np.empty((size[1], size[0], 3), dtype=np.float32)
    paper[:] = np.asarray(PAPER) / 255
    for place, (picture, lines) in enumerate(zip(pictures, words, strict=True)):
        left, top = EDGE + place % columns * step[0], EDGE + place // columns * step[1]
        y, x = top + (high - picture.shape[0]) // 2, left + (wide - picture.shape[1]) // 2
        paper[y : y + picture.shape[0], x : x + picture.shape[1]] = picture[..., :3]
        if lines:
            paper[top + high : top + high + below, left : left + wide] = _text(lines, font, (wide, below))
    return paper


def _text(lines: Sequence[str], font: ImageFont.FreeTypeFont, size: tuple[int, int]) -> np.ndarray:
    """A strip of letters, (h, w, 3) in [0, 1]."""
    strip = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(strip)
    for number, line in enumerate(lines):
        pen.text((size[0] / 2, LINE * (number + 0.5)), line, INK, font, "mm")
    return np.asarray(strip, dtype=np.float32) / 255


def _wrapped(label: str, font: ImageFont.FreeTypeFont, wide: int) -> list[str]:
    """The label in lines that fit, at most :data:`MOST_LINES`."""
    lines: list[str] = []
    for word in label.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= wide:
            lines[-1] = longer
        else:
            lines.append(word)
    return [_clipped(line, font, wide) for line in lines[:MOST_LINES]]


def _clipped(line: str, font: ImageFont.FreeTypeFont, wide: int) -> str:
    if font.getlength(line) <= wide:
        return line
    while len(line) > 1 and font.getlength(f"{line}…") > wide:
        line = line[:-1]
    return f"{line}…"
