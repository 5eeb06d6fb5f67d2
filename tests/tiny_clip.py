"""A tiny random CLIP of transformers, as a safetensors file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def tiny_clip(path: Path, quick: bool = True, seed: int = 0) -> Any:
    """Write a whole CLIP (both halves, 32 × 32 pixels, 24 numbers a vector) to ``path``; returns the model."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(seed)
    act = "quick_gelu" if quick else "gelu"
    config = CLIPConfig(
        text_config={
            "vocab_size": 49408, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 1, "hidden_act": act, "eos_token_id": 49407,
        },
        vision_config={
            "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 1,
            "image_size": 32, "patch_size": 8, "hidden_act": act,
        },
        projection_dim=24,
    )  # fmt: skip
    model = CLIPModel(config).eval()
    with torch.no_grad():  # loud enough that every part, and every picture, tells in the vectors
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape)
            if parameter.ndim > 1:
                parameter.copy_(noise * (0.1 if "position" in name else 2.0 / parameter[0].numel() ** 0.5))
            else:
                parameter.copy_(0.1 * noise + float("norm" in name and name.endswith("weight")))
    weights = {k: v.detach().clone().contiguous() for k, v in model.state_dict().items() if "position_ids" not in k}
    save_file(weights, path)
    return model
