"""A sheet of what each shipped LoRA does: for each, the true picture, the base alone, and the base with the LoRA.

``python -m zoo.lora_sheet`` writes ``<cache>/zoo/lora_sheet.png``.
"""

from __future__ import annotations

import argparse
import copy
import logging
from pathlib import Path

import numpy as np
import torch

from autolora_core.lora.file import LoraFile
from zoo.autoencoder import Autoencoder, decode_latents
from zoo.cache import read_json, shelf_table, zoo_dir
from zoo.captions import plain_caption
from zoo.lora_data import true_picture
from zoo.mmdit import MMDiT
from zoo.pictures import Pictures
from zoo.sampler import sample
from zoo.samples import save_grid
from zoo.text_bank import encode
from zoo.train_loras import load_base, lora_folder

log = logging.getLogger("zoo.sheet")
SHOWN_WITH = "fox"  # style LoRAs are shown on a subject the base knows
COLUMNS = 4  # LoRAs side by side


def merged(base: MMDiT, path: Path, strength: float = 1.0) -> MMDiT:
    """A copy of ``base`` with a LoRA file added to its weights."""
    model = copy.deepcopy(base)
    for update in LoraFile.open(path).updates():
        name, _, part = update.module.partition("[")
        start, stop = (int(v) for v in part.rstrip("]").split(":")) if part else (0, None)
        weight = model.get_submodule(name).weight
        with torch.no_grad():
            weight[start:stop] += (strength * update.delta()).to(weight.dtype)
    return model


def prompt_of(row: dict) -> str:
    return plain_caption(row["subject"]) if row["subject"] else plain_caption(SHOWN_WITH, row["style"])


def draw(rows: list[dict], steps: int = 16) -> Path:
    """Sample every LoRA and save the sheet."""
    base, pictures, autoencoder = load_base(), Pictures.load(), Autoencoder.load()
    empty = encode([""])
    cells, labels = [], []
    for i, row in enumerate(rows):
        prompt = prompt_of(row)
        context, pooled = encode([prompt])
        models = (base, merged(base, lora_folder() / row["file"]))
        with torch.autocast("cpu", torch.bfloat16):
            latents = [sample(m, context, pooled, empty, steps=steps, seed=5) for m in models]
        images = decode_latents(torch.cat(latents).float(), autoencoder)
        subject, style = row["subject"] or SHOWN_WITH, row["style"] or "noto"
        truth = true_picture(pictures, subject, style)
        cells += [np.zeros((128, 128, 3), np.uint8) if truth is None else truth, *images]
        labels += [row["label"], "base", f"{row['creator']} {row['file'][:12]}"]
        if i % 10 == 9:
            log.info("%d of %d", i + 1, len(rows))
    width = 3 * COLUMNS
    while len(cells) % width:
        cells.append(np.full((128, 128, 3), 255, np.uint8))
        labels.append("")
    grid = [labels[i : i + width] for i in range(0, len(labels), width)]
    return save_grid(np.stack(cells), grid, zoo_dir() / "lora_sheet.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", help="LoRAs whose label contains this")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rows = [r for r in read_json(shelf_table()) if not args.only or args.only in r["label"]]
    log.info("%s", draw(rows))


if __name__ == "__main__":
    main()
