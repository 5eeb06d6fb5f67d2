"""A contact sheet: the pictures of some LoRAs with their names, those without a LoRA first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..wording import shown

SIDE, EDGE, GAP, LINE = 192, 12, 8, 20  # pixels
WIDE, LEAST = 1600, 64  # a sheet, about; a picture with its title
PAPER, INK = (255, 255, 255), (30, 32, 38)


def contact_sheet(strips: Sequence[tuple[str, Sequence[Image.Image]]], side: int = SIDE) -> np.ndarray:
    """(H, W, 3) float32 in [0, 1]. ``strips``: a title and pictures each, which are made no larger than ``side``.

    Strips stand beside each other as long as there is room.
    """
    side = min(side, max([LEAST, *(max(own.size) for _, pictures in strips for own in pictures)]))
    longest = max((len(pictures) for _, pictures in strips), default=1) or 1
    wide = longest * (side + GAP)
    columns = max(1, min(len(strips), WIDE // wide))
    lines = -(-max(len(strips), 1) // columns)
    sheet = Image.new("RGB", (2 * EDGE + columns * wide, 2 * EDGE + lines * (side + LINE + GAP)), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for place, (title, pictures) in enumerate(strips):
        x, y = EDGE + place % columns * wide, EDGE + place // columns * (side + LINE + GAP)
        pen.text((x, y), _fitting(shown(title), wide - GAP, font), INK, font)
        for number, picture in enumerate(pictures):
            small = picture.convert("RGB")
            small.thumbnail((side, side), Image.Resampling.LANCZOS)
            sheet.paste(small, (x + number * (side + GAP), y + LINE))
    return np.asarray(sheet, np.float32) / 255


def _fitting(title: str, room: float, font: ImageFont.FreeTypeFont) -> str:
    """The end of a name tells files of one folder apart, so the beginning goes."""
    if font.getlength(title) <= room:
        return title
    while title and font.getlength(f"…{title}") > room:
        title = title[1:]
    return f"…{title}"
