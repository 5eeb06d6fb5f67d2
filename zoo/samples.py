"""Sheets of samples, for looking at: known subjects by known styles, then subjects nobody trained on."""

from __future__ import annotations

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
    sheet = Image.new("RGB", (cols * 132, rows * 148), "white")
    draw = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        r, c = divmod(i, cols)
        sheet.paste(Image.fromarray(image), (c * 132, r * 148))
        draw.text((c * 132 + 2, r * 148 + 130), labels[r][c][:22], fill="black")
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
