"""The smallest models ComfyUI recognises, with random weights, loaded and sampled by ComfyUI itself.

SD3 at hidden 64 (one block) and 128 (two blocks), as in the demo model's layout; SD1.5 with one level for convolutions.
"""

from __future__ import annotations

from typing import Any

import torch

SD3_CONTEXT, SD3_POOLED = 32, 8
SEED = 3


def random_state(module: torch.nn.Module, seed: int = SEED, scale: float = 0.08) -> dict[str, torch.Tensor]:
    """Random weights for every parameter: norms near 1, the rest small, all drawn from one seed."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in module.state_dict().items():
        noise = torch.randn(value.shape, generator=generator) * scale
        norm = value.ndim == 1 and (("norm" in name and name.endswith("weight")) or name.endswith(".scale"))
        state[name] = noise + 1 if norm else noise
    return state


def sd3_state(hidden: int = 128, seed: int = SEED) -> dict[str, torch.Tensor]:
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT

    network = MMDiT(
        input_size=None,
        in_channels=16,
        depth=hidden // 64,
        adm_in_channels=SD3_POOLED,
        context_embedder_config={
            "target": "torch.nn.Linear",
            "params": {"in_features": SD3_CONTEXT, "out_features": hidden},
        },
        num_patches=64,
        pos_embed_max_size=8,
        qk_norm="rms",
        device="meta",
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )
    return random_state(network, seed)


def sd15_state(seed: int = SEED, scale: float = 0.02, middle: bool = False) -> dict[str, torch.Tensor]:
    """``middle``: with the block in the middle, which some patches ask for."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    network = UNetModel(
        image_size=32,
        in_channels=4,
        out_channels=4,
        model_channels=320,
        num_res_blocks=[1],
        channel_mult=[1],
        transformer_depth=[1],
        transformer_depth_output=[1, 1],
        transformer_depth_middle=1 if middle else -2,
        num_heads=8,
        use_spatial_transformer=True,
        context_dim=768,
        use_linear_in_transformer=False,
        legacy=False,
        device="meta",
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )
    return random_state(network, seed, scale)


def load(state: dict[str, torch.Tensor], metadata: dict[str, str] | None = None, **model_options: Any) -> Any:
    """A MODEL from a state dict, by ComfyUI's own detection."""
    import comfy.sd

    model = comfy.sd.load_diffusion_model_state_dict(dict(state), model_options=model_options, metadata=metadata)
    assert model is not None, "ComfyUI does not recognise the tiny model"
    return model


def conditioning(
    seed: int, tokens: int = 6, width: int = SD3_CONTEXT, pooled: int = SD3_POOLED, batch: int = 1
) -> list:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(1, tokens, width, generator=generator)
    return [[states, {"pooled_output": torch.randn(1, pooled, generator=generator)}]]


def sample(
    model: Any, *, batch: int = 1, cfg: float = 3.0, steps: int = 2, seed: int = 0, callback: Any = None
) -> torch.Tensor:
    """Real ``comfy.sample.sample``, euler; noise row ``i`` is the same in every batch size. ``callback``: a step."""
    import comfy.sample

    unet = model.model.latent_format.latent_channels == 4
    shape = (4, 8, 8) if unet else (16, 4, 4)
    noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed + n)) for n in range(batch)])
    width, pooled = (768, 8) if unet else (SD3_CONTEXT, SD3_POOLED)
    return comfy.sample.sample(
        model,
        noise,
        steps,
        cfg,
        "euler",
        "simple",
        conditioning(11, width=width, pooled=pooled),
        conditioning(12, width=width, pooled=pooled),
        torch.zeros_like(noise),
        seed=seed,
        callback=callback,
        disable_pbar=True,
    )


def save_lora(path: Any, layers: dict[str, tuple[int, ...]], rank: int = 4, seed: int = 0, scale: float = 0.15) -> Any:
    """A float32 LoRA for ``layers`` (key prefix → weight shape (out, in, *k)) with kohya suffixes; returns ``path``."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for prefix, (out, n_in, *kernel) in layers.items():
        tensors[f"{prefix}.lora_down.weight"] = torch.randn(rank, n_in, *kernel, generator=generator) * scale
        tensors[f"{prefix}.lora_up.weight"] = torch.randn(out, rank, *[1] * len(kernel), generator=generator) * scale
        tensors[f"{prefix}.alpha"] = torch.tensor(float(rank) / 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


def linear_layers(state: dict[str, torch.Tensor], contains: str = "", prefix: str = "diffusion_model.") -> dict:
    """Key prefix → shape of every weight matrix or kernel whose name contains a text."""
    return {
        prefix + name.removesuffix(".weight"): tuple(value.shape)
        for name, value in state.items()
        if name.endswith(".weight") and value.ndim >= 2 and contains in name
    }
