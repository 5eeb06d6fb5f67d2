"""Made-up libraries on disk whose weights say what they show, or do not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from conftest import SHARED, write_lora
from retrieve_worlds import LATENT, TopicTower, normal
from safetensors.torch import save_file

SHAPES = {
    f"joint_blocks.{block}.x_block.{name}": shape
    for block in range(2)
    for name, shape in (("attn.proj", (256, 256)), ("mlp.fc1", (1024, 256)), ("mlp.fc2", (256, 1024)))
}
# Real shapes of a few layers, for where the lists of whole files are not at hand: kohya keys → (out, in).
FEW = {
    "sdxl": {
        f"lora_unet_input_blocks_{block}_1_transformer_blocks_{depth}_{name}": shape
        for block, depth in ((7, 0), (8, 1))
        for name, shape in (
            ("attn1_to_q", (1280, 1280)), ("attn1_to_out_0", (1280, 1280)), ("attn2_to_k", (1280, 2048)),
            ("attn2_to_v", (1280, 2048)), ("ff_net_0_proj", (10240, 1280)), ("ff_net_2", (1280, 5120)),
        )
    },
    "flux": {
        f"lora_unet_double_blocks_{block}_{name}": shape
        for block in range(2)
        for name, shape in (
            ("img_attn_proj", (3072, 3072)), ("img_attn_qkv", (9216, 3072)), ("img_mlp_0", (12288, 3072)),
            ("txt_attn_proj", (3072, 3072)), ("txt_mlp_2", (3072, 12288)),
        )
    },
}  # fmt: skip
LAYOUTS = {"flux": "flux_lora_kohya.json"}


def topic(number: int) -> str:
    """Letters only, so that it is a name with a meaning."""
    return "topic" + "".join("abcdefghij"[int(digit)] for digit in str(number))


def says(words: str, seed: int, noise: float = 0.8) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Rank 3: one direction says the topic through maps common to all files, two are noise."""
    rng, z, made = np.random.default_rng(seed), TopicTower().latent(words), {}
    for name, (out, inputs) in SHAPES.items():
        up = np.stack([normal(f"map {name}", out, LATENT) @ z / LATENT**0.5, *(noise * rng.normal(size=(2, out)))], 1)
        down = np.stack([normal(f"ear {name}", 1, inputs)[0], *rng.normal(size=(2, inputs))])
        made[name] = torch.from_numpy(down).float(), torch.from_numpy(up).float() * 0.05
    return made


def told(words: str) -> dict[str, str]:
    """Metadata that says what a file shows."""
    return {"ss_tag_frequency": json.dumps({"train": {words: 40}})}


def world(folder: Path, captioned: int = 40, silent: int = 10) -> Path:
    """``captioned`` files that say their topic, and ``silent`` nameless ones; returns the loras folder."""
    for i in range(captioned + silent):
        words = topic(i)
        path = folder / "loras" / f"{i:04x}ab00cd.safetensors"
        write_lora(path, says(words, i), told(words) if i < captioned else {})
    return folder / "loras"


def layers(family: str, most: int = 12) -> dict[str, tuple[int, int]]:
    """Real layer shapes of a family: of a whole file's list when it is at hand, else of the few above."""
    path = SHARED / "data" / "layouts" / LAYOUTS.get(family, "absent")
    if not path.is_file():
        return FEW[family]
    shapes = json.loads(path.read_text())
    names = sorted({key.partition(".")[0] for key in shapes if key.endswith(".lora_up.weight")})[:most]
    return {n: (shapes[f"{n}.lora_up.weight"][0], shapes[f"{n}.lora_down.weight"][1]) for n in names}


def random_library(folder: Path, family: str, count: int) -> Path:
    """``count`` files of real shapes, random values, rank 1, each captioned with a word of its own."""
    shapes = layers(family)
    for i in range(count):
        g, tensors = torch.Generator().manual_seed(i), {}
        for name, (out, inputs) in shapes.items():
            tensors[f"{name}.lora_down.weight"] = torch.randn(1, inputs, generator=g).half()
            tensors[f"{name}.lora_up.weight"] = (torch.randn(out, 1, generator=g) * 0.05).half()
            tensors[f"{name}.alpha"] = torch.tensor(1.0)
        path = folder / "loras" / f"{i:04x}ab00cd.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, told(topic(i)))
    return folder / "loras"
