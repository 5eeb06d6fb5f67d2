"""Sheets of samples, for looking at: known subjects by known styles, then subjects nobody trained on.

python -m zoo.samples EARLY.png LATE.png OUT.png    the first rows of two of the base's sheets, one above the other
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn

from zoo.autoencoder import decode_latents
from zoo.captions import STYLE_NAMES, subject_name
from zoo.splits import Splits
from zoo.text_bank import encode

TEST_SUBJECTS = 10
CELL, LINE = 132, 148  # a picture with its margin; a row with its labels


def sheet_prompts() -> list[list[str]]:
    """Rows of prompts: plain name, then three styles, over a fixed draw of base-known and unseen subjects."""
    splits = Splits.load()
    rng = np.random.default_rng(3)
    known = list(rng.choice(sorted(splits.base_subjects), TEST_SUBJECTS, replace=False))
    unseen = list(rng.choice(sorted(splits.lora_subjects), 2, replace=False))
    styles = ["twemoji", "fluent-emoji", "emojione"]
    rows = [[subject_name(s) for s in [*known, *unseen]]]
    rows += [[f"{subject_name(s)} in {STYLE_NAMES[style]} style" for s in [*known, *unseen]] for style in styles]
    return rows


def save_grid(images: np.ndarray, labels: list[list[str]], path: Path) -> Path:
    """images uint8 (rows*cols, 128, 128, 3) with a short label under each."""
    rows, cols = len(labels), len(labels[0])
    sheet = Image.new("RGB", (cols * CELL, rows * LINE), "white")
    draw = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        r, c = divmod(i, cols)
        sheet.paste(Image.fromarray(image), (c * CELL, r * LINE))
        draw.text((c * CELL + 2, r * LINE + 130), labels[r][c][:22], fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path


def draw_sheet(model: nn.Module, path: Path) -> Path:
    """Sample the fixed prompts with ``model`` and save the sheet."""
    from zoo.sampler import sample

    labels = sheet_prompts()
    texts = [t for row in labels for t in row]
    context, pooled = encode([*texts, ""])
    with torch.autocast("cpu", torch.bfloat16):
        latents = sample(model, context[:-1], pooled[:-1], (context[-1:], pooled[-1:]))
    return save_grid(decode_latents(latents.float()), labels, path)


def early_and_late(early: Path, late: Path, out: Path, rows: int = 2) -> Path:
    """The first ``rows`` of two sheets that :func:`draw_sheet` made, early above late, in 256 colours."""
    parts = [Image.open(path).convert("RGB") for path in (early, late)]
    width, height = parts[0].width, rows * LINE
    both = Image.new("RGB", (width, 2 * height), "white")
    for i, part in enumerate(parts):
        both.paste(part.crop((0, 0, width, height)), (0, i * height))
    both.quantize(256).save(out, format="PNG", optimize=True)
    return out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="The first rows of two of the base's sheets, one above the other.")
    parser.add_argument("early", type=Path)
    parser.add_argument("late", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    early_and_late(args.early, args.late, args.out)


if __name__ == "__main__":
    main()
