"""Writing LoRA files as different trainers write them: kohya, diffusers, PEFT, native; with or without metadata."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from zoo.cache import write_atomic
from zoo.captions import with_article
from zoo.lora_plan import LoraSpec
from zoo.raw_factors import Factors

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
DIFFUSERS = {
    "x_block.attn.proj": "attn.to_out.0",
    "context_block.attn.proj": "attn.to_add_out",
    "x_block.mlp.fc1": "ff.net.0.proj",
    "x_block.mlp.fc2": "ff.net.2",
    "context_block.mlp.fc1": "ff_context.net.0.proj",
    "context_block.mlp.fc2": "ff_context.net.2",
}
SPLIT = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}


def kohya(factors: Factors, alpha: float) -> dict[str, Tensor]:
    """``lora_unet_…`` with an alpha a module."""
    out = {}
    for name, (down, up) in factors.items():
        key = "lora_unet_" + name.replace(".", "_")
        out |= {
            f"{key}.lora_down.weight": down,
            f"{key}.lora_up.weight": up,
            f"{key}.alpha": torch.tensor(alpha * down.shape[0]),
        }
    return out


def native(factors: Factors, alpha: float) -> dict[str, Tensor]:
    """``diffusion_model.…`` with lora_A/lora_B and alpha."""
    out = {}
    for name, (down, up) in factors.items():
        key = f"diffusion_model.{name}"
        out |= {
            f"{key}.lora_A.weight": down,
            f"{key}.lora_B.weight": up,
            f"{key}.alpha": torch.tensor(alpha * down.shape[0]),
        }
    return out


def diffusers(factors: Factors, alpha: float, prefix: str = "transformer.") -> dict[str, Tensor]:
    """``transformer.transformer_blocks.…`` with q, k, v apart; no alpha, so the scale is folded into ``up``."""
    out = {}
    for name, (down, up) in factors.items():
        _, block, rest = name.split(".", 2)
        head = f"{prefix}transformer_blocks.{block}."
        parts = SPLIT.get(rest)
        names = parts or (DIFFUSERS[rest],)
        for part, piece in zip(names, up.chunk(len(names)), strict=True):
            out |= {f"{head}{part}.lora_A.weight": down, f"{head}{part}.lora_B.weight": piece * alpha}
    return out


def peft(factors: Factors, alpha: float) -> dict[str, Tensor]:
    """As ``get_peft_model`` saves: ``base_model.model.`` before diffusers' names."""
    return diffusers(factors, alpha, "base_model.model.")


FORMATS = {"kohya": kohya, "diffusers": diffusers, "peft": peft, "native": native}


def metadata(spec: LoraSpec) -> dict[str, str]:
    """What the creator wrote into the header."""
    if spec.metadata == "none":
        return {}
    tags = {"train": {spec.label: 64, (f"{with_article(spec.label)}" if spec.subject else f"{spec.label} style"): 32}}
    out = {
        "ss_output_name": Path(spec.file_name).stem,
        "ss_tag_frequency": json.dumps(tags),
        "ss_base_model_version": "emojimatrix",
    }
    out |= {"ss_network_dim": str(spec.creator.rank), "ss_network_alpha": str(spec.creator.alpha * spec.creator.rank)}
    if spec.metadata == "rich":
        kind = "subject" if spec.subject else "style"
        out |= {
            "modelspec.title": spec.label if spec.subject else f"{spec.label} style",
            "modelspec.author": spec.creator.name,
        }
        out |= {"modelspec.description": f"A {kind} LoRA: {spec.label}.", "modelspec.tags": f"{kind}, {spec.label}"}
        out |= {"modelspec.trigger_phrase": spec.label if spec.subject else f"{spec.label} style"}
    return out


def write(factors: Factors, spec: LoraSpec, path: Path) -> Path:
    """Write one LoRA in its creator's format and dtype."""
    dtype = DTYPES[spec.creator.dtype]
    tensors = FORMATS[spec.creator.keys](factors, spec.creator.alpha)
    tensors = {k: v.to(dtype).contiguous().clone() for k, v in tensors.items()}
    return write_atomic(path, lambda tmp: save_file(tensors, str(tmp), metadata(spec) or None))
