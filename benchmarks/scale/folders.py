"""A collector's folders: many small LoRA files with the sidecars that other tools write beside them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save

TOP = ("sdxl", "pony", "illustrious", "flux", "sd15", "wan", "z_image", "unsorted")
KINDS = ("characters", "styles", "concepts", "clothing", "poses", "tools")
A_FOLDER = 120  # files in one folder


def name_of(number: int) -> str:
    """``flux/styles/set 12/lora_001234.safetensors``."""
    folder = number // A_FOLDER
    top, kind = TOP[folder % len(TOP)], KINDS[folder // len(TOP) % len(KINDS)]
    return f"{top}/{kind}/set {folder}/lora_{number:06}.safetensors"


def make(root: Path, files: int) -> None:
    """``files`` LoRAs of a few kilobytes; three in four have a preview, half of them a .civitai.info."""
    picture = b"\x89PNG\r\n\x1a\n" + bytes(200)
    for number in range(files):
        path = root / name_of(number)
        if number % A_FOLDER == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(small_lora(number))
        if number % 4:
            path.with_suffix(".preview.png").write_bytes(picture)
        if number % 2:
            words = {"model": {"name": f"Thing {number}"}, "trainedWords": [f"thing{number}"]}
            path.with_suffix(".civitai.info").write_text(json.dumps(words), encoding="utf-8")


def small_lora(number: int) -> bytes:
    """Two layers of SDXL, each with numbers of its own, and a trainer's words."""
    name = "lora_unet_middle_block_1_transformer_blocks_{}_attn2_to_out_0"
    tensors = {}
    for block in range(2):
        generator = torch.Generator().manual_seed(2 * number + block)
        for part, shape in (("down", (1, 1280)), ("up", (1280, 1))):
            drawn = torch.randn(shape, generator=generator, dtype=torch.float32)
            tensors[f"{name.format(block)}.lora_{part}.weight"] = drawn.half()
    words = {
        "ss_output_name": f"thing {number}",
        "ss_tag_frequency": f'{{"10_a": {{"thing {number}": 9, "photo": 7}}}}',
    }
    return save(tensors, metadata=words)
