"""LoRA files as trainers write them for SDXL and FLUX: every module and shape is real, the numbers are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

FAMILIES = ("sdxl", "flux")
# Place → (width, transformer blocks): the UNet of SDXL.
_SDXL = {
    "input_blocks_4_1": (640, 2), "input_blocks_5_1": (640, 2), "input_blocks_7_1": (1280, 10),
    "input_blocks_8_1": (1280, 10), "middle_block_1": (1280, 10), "output_blocks_0_1": (1280, 10),
    "output_blocks_1_1": (1280, 10), "output_blocks_2_1": (1280, 10), "output_blocks_3_1": (640, 2),
    "output_blocks_4_1": (640, 2), "output_blocks_5_1": (640, 2),
}  # fmt: skip
_SDXL_TEXT, _FLUX_WIDTH = 2048, 3072


def shapes(family: str) -> Iterator[tuple[str, int, int]]:
    """``(kohya's name, outputs, inputs)`` of every linear layer that trainers adapt: 722 of SDXL, 304 of FLUX."""
    yield from _sdxl() if family == "sdxl" else _flux()


def _sdxl() -> Iterator[tuple[str, int, int]]:
    for place, (width, depth) in _SDXL.items():
        yield f"lora_unet_{place}_proj_in", width, width
        yield f"lora_unet_{place}_proj_out", width, width
        for block in range(depth):
            name = f"lora_unet_{place}_transformer_blocks_{block}"
            for part in ("attn1_to_q", "attn1_to_k", "attn1_to_v", "attn1_to_out_0", "attn2_to_q", "attn2_to_out_0"):
                yield f"{name}_{part}", width, width
            yield f"{name}_attn2_to_k", width, _SDXL_TEXT
            yield f"{name}_attn2_to_v", width, _SDXL_TEXT
            yield f"{name}_ff_net_0_proj", 8 * width, width
            yield f"{name}_ff_net_2", width, 4 * width


def _flux() -> Iterator[tuple[str, int, int]]:
    width = _FLUX_WIDTH
    for block in range(19):
        for stream in ("img", "txt"):
            name = f"lora_unet_double_blocks_{block}_{stream}"
            yield f"{name}_attn_qkv", 3 * width, width
            yield f"{name}_attn_proj", width, width
            yield f"{name}_mlp_0", 4 * width, width
            yield f"{name}_mlp_2", width, 4 * width
            yield f"{name}_mod_lin", 6 * width, width
    for block in range(38):
        name = f"lora_unet_single_blocks_{block}"
        yield f"{name}_linear1", 7 * width, width
        yield f"{name}_linear2", width, 5 * width
        yield f"{name}_modulation_lin", 3 * width, width


def tensors(family: str, rank: int, dtype: torch.dtype, seed: int, layers: int | None = None) -> dict[str, Tensor]:
    """The tensors of one file; ``layers`` takes the first ones only."""
    generator, made = torch.Generator().manual_seed(seed), {}
    fade = torch.linspace(1, 0.05, rank)  # trained directions are not equally strong
    for number, (name, outputs, inputs) in enumerate(shapes(family)):
        if layers is not None and number >= layers:
            break
        up = torch.randn(outputs, rank, generator=generator) * fade * 0.01
        made[f"{name}.lora_down.weight"] = (torch.randn(rank, inputs, generator=generator) * 0.02).to(dtype)
        made[f"{name}.lora_up.weight"] = up.to(dtype)
        made[f"{name}.alpha"] = torch.tensor(rank / 2, dtype=dtype)
    return made


def write(path: Path, family: str, rank: int, dtype: torch.dtype, seed: int, layers: int | None = None) -> Path:
    """A file with the words that a trainer leaves in its header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    words = {"ss_output_name": path.stem, "ss_tag_frequency": f'{{"10_set": {{"thing {seed}": 10, "photo": 8}}}}'}
    save_file(tensors(family, rank, dtype, seed, layers), path, metadata=words)
    return path
