"""What passed of each LoRA as a picture: a panel for each LoRA, a row for each block, a column for each step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .record import Heat

ROW, EDGE, GAP, WIDE, NARROW = 22, 16, 26, 30, 6  # pixels
PANEL, NAME, LINE = 420, 34, 3  # a panel's widest; letters of a name; panels side by side
PAPER, INK, FAINT, NOTHING = (255, 255, 255), (30, 32, 38), (120, 124, 132), (238, 239, 241)
COLD, MIDDLE, HOT = (68, 1, 84), (33, 145, 140), (253, 231, 37)
SHOWS = {"passes": "how much of each LoRA passes", "loudness": "how much each LoRA changes the layers"}


def draw(heat: Heat, shows: str = "passes") -> np.ndarray:
    """(H, W, 3) float32 in [0, 1]; ``shows``: passes or loudness."""
    blocks, values = heat.by_block(heat.passing() if shows == "passes" else heat.loudness())
    found = values[~torch.isnan(values)]
    most = max(1.0, float(found.max())) if shows == "passes" else float(found.max()) if len(found) else 1.0
    sheet = _Sheet(blocks, len(heat.steps), len(heat.names))
    for place, name in enumerate(heat.names):
        sheet.panel(place, name, values[:, :, place], most)
    sheet.legend(SHOWS[shows], most)
    return np.asarray(sheet.image, dtype=np.float32) / 255


class _Sheet:
    """Panels in lines of :data:`LINE`; names of the blocks left of each line."""

    def __init__(self, blocks: Sequence[str], steps: int, panels: int):
        self.blocks, self.steps, self.font = blocks, max(steps, 1), ImageFont.load_default(13)
        self.cell = max(NARROW, min(WIDE, PANEL // self.steps))
        self.left = EDGE + round(max(self.font.getlength(block) for block in blocks)) + 10
        self.wide = max(self.cell * self.steps, round(self.font.getlength("m" * NAME) * 0.72))
        self.high = (len(blocks) + 2) * ROW + GAP
        columns, lines = min(panels, LINE), -(-panels // LINE)
        size = (self.left + columns * (self.wide + GAP) + EDGE, EDGE + lines * self.high + 2 * ROW)
        self.image = Image.new("RGB", size, PAPER)
        self.pen = ImageDraw.Draw(self.image)
        for line in range(lines):
            for row, block in enumerate(blocks):
                y = EDGE + line * self.high + (row + 1.5) * ROW
                self.pen.text((self.left - 8, y), block, INK, self.font, "rm")

    def panel(self, place: int, name: str, values: Tensor, most: float) -> None:
        """``values`` (steps, blocks)."""
        x = self.left + place % LINE * (self.wide + GAP)
        y = EDGE + place // LINE * self.high
        self.pen.text((x, y + ROW / 2), _clip(name), INK, self.font, "lm")
        for step in range(len(values)):
            for row in range(len(self.blocks)):
                at = (x + step * self.cell, y + (row + 1) * ROW)
                colour = _colour(float(values[step, row]), most)
                self.pen.rectangle((*at, at[0] + self.cell - 2, at[1] + ROW - 2), colour)
        below = y + (len(self.blocks) + 1.5) * ROW
        self.pen.text((x, below), "1", FAINT, self.font, "lm")
        self.pen.text((x + len(values) * self.cell, below), f"step {len(values)}", FAINT, self.font, "rm")

    def legend(self, words: str, most: float) -> None:
        y = self.image.height - 1.3 * ROW
        bar = 160
        for i in range(bar):
            self.pen.line((EDGE + i, y - 6, EDGE + i, y + 6), _colour(i / (bar - 1) * most, most))
        self.pen.text((EDGE + bar + 10, y), f"0 to {most:.2g}: {words}", FAINT, self.font, "lm")


def _colour(value: float, most: float) -> tuple[int, int, int]:
    """Dark to bright; grey where there is nothing."""
    if value != value:
        return NOTHING
    share = min(max(value / most, 0.0), 1.0) * 2 if most > 0 else 0.0
    low, high, by = (COLD, MIDDLE, share) if share <= 1 else (MIDDLE, HOT, share - 1)
    return tuple(round(a + (b - a) * by) for a, b in zip(low, high, strict=True))


def _clip(name: str) -> str:
    name = name.removesuffix(".safetensors")
    return name if len(name) <= NAME else "…" + name[1 - NAME :]
