"""CLIP files of the user's, text and image half, in both namings."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from autolora_core.encode.open_clip_images import OpenClipImageTower
from autolora_core.encode.open_clip_tower import OpenClipTower

from .. import document
from ..memory import MIB
from ..oracle import Wrong

CASES = 500
WIDTH = 64


def bound(size: int) -> int:
    """A network is made from the sizes of the file's tensors, and its vocabulary is held by the package."""
    return 128 * MIB + 60 * size


def _layer(prefix: str, t) -> dict[str, torch.Tensor]:
    sizes = {
        "attn.in_proj_weight": (3 * WIDTH, WIDTH),
        "attn.in_proj_bias": (3 * WIDTH,),
        "attn.out_proj.weight": (WIDTH, WIDTH),
        "attn.out_proj.bias": (WIDTH,),
        "mlp.c_fc.weight": (WIDTH, WIDTH),
        "mlp.c_fc.bias": (WIDTH,),
        "mlp.c_proj.weight": (WIDTH, WIDTH),
        "mlp.c_proj.bias": (WIDTH,),
        "ln_1.weight": (WIDTH,),
        "ln_1.bias": (WIDTH,),
        "ln_2.weight": (WIDTH,),
        "ln_2.bias": (WIDTH,),
    }
    return {f"{prefix}transformer.resblocks.0.{name}": t(*size) for name, size in sizes.items()}


def seeds(folder: Path) -> list[bytes]:
    """A text tower whose end token, 49407, is the last of a narrow vocabulary would be large: a wide one in float8."""
    drawn = torch.Generator().manual_seed(2)

    def t(*size: int) -> torch.Tensor:
        return (torch.randn(*size, generator=drawn) * 0.02).half()

    image = {
        "visual.conv1.weight": t(WIDTH, 3, 8, 8),
        "visual.class_embedding": t(WIDTH),
        "visual.positional_embedding": t(5, WIDTH),
        "visual.ln_pre.weight": t(WIDTH),
        "visual.ln_pre.bias": t(WIDTH),
        "visual.ln_post.weight": t(WIDTH),
        "visual.ln_post.bias": t(WIDTH),
        "visual.proj": t(WIDTH, 8),
        **_layer("visual.", t),
    }
    text = {
        "token_embedding.weight": t(100, WIDTH),
        "positional_embedding": t(8, WIDTH),
        "ln_final.weight": t(WIDTH),
        "ln_final.bias": t(WIDTH),
        "text_projection": t(WIDTH, 8),
        **_layer("", t),
    }
    return [save(image), save(text), save({**image, **text})]


def make(rng: random.Random, parent: bytes) -> bytes:
    return document.lie(
        rng,
        parent,
        (
            "visual.proj",
            "text_projection",
            "visual.conv1.weight",
            "vision_model.embeddings.class_embedding",
            "text_model.embeddings.token_embedding.weight",
            "visual.positional_embedding",
        ),
    )


def run(data: bytes, folder: Path) -> None:
    path = folder / "clip.safetensors"
    path.write_bytes(data)
    if b'"visual' in data[:4096]:
        tower = OpenClipImageTower(path).load()
        vectors = tower.encode([torch.full((20, 30, 3), 0.5)])
    else:
        tower = OpenClipTower(path).load()
        vectors = np.ones((1, tower.dim), np.float32)  # so narrow a vocabulary holds no prompt
    if vectors.shape != (1, tower.dim) or not np.isfinite(vectors).all():
        raise Wrong(f"vectors of shape {vectors.shape}, {int((~np.isfinite(vectors)).sum())} not finite")
