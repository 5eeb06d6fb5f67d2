"""The smallest network of every base that still has all its kinds of layers, with random weights, loaded by ComfyUI.

Where ComfyUI recognises the small network from its weights (``detected``), it is loaded as a user's file is. Where its
detection demands the real widths, the network is made of ComfyUI's own class and configuration for that base.
Float32 on the CPU, so that what is left of a difference is arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

SEED = 3
TOKENS = 6


@dataclass(frozen=True)
class Base:
    """``kind``: ComfyUI's class of the base; ``latent`` (c, [t,] h, w); widths of text states and pooled text."""

    name: str
    family: str
    kind: str
    config: dict[str, Any]
    latent: tuple[int, ...]
    text: int
    pooled: int = 32
    extra: dict[str, Any] = field(default_factory=dict)
    scale: float = 0.08
    keep: frozenset[str] = frozenset()  # of the configuration, that detection does not have to agree about

    @property
    def available(self) -> bool:
        """Whether this ComfyUI knows the base."""
        import comfy.supported_models

        return hasattr(comfy.supported_models, self.kind)


def _unet(context: int, linear: bool, adm: int | None = None, heads: dict[str, Any] | None = None) -> dict[str, Any]:
    levels = 3 if adm else 2
    depths = [0, 1, 2] if adm else [1, 0]
    config = {
        "use_checkpoint": False, "image_size": 32, "out_channels": 4, "use_spatial_transformer": True, "legacy": False,
        "adm_in_channels": adm, "in_channels": 4, "model_channels": 320, "num_res_blocks": [1] * levels,
        "transformer_depth": depths, "channel_mult": [1] * levels, "transformer_depth_middle": 2 if adm else 1,
        "use_linear_in_transformer": linear, "context_dim": context, "use_temporal_attention": False,
        "use_temporal_resblock": False, "transformer_depth_output": [d for d in depths for _ in range(2)],
        **(heads or {"num_heads": -1, "num_head_channels": 64}),
    }  # fmt: skip
    return {**config, "num_classes": "sequential"} if adm else config


def _flux(**more: Any) -> dict[str, Any]:
    config = {
        "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 32, "context_in_dim": 48,
        "hidden_size": 128, "mlp_ratio": 4.0, "num_heads": 1, "depth": 1, "depth_single_blocks": 1,
        "axes_dim": [16, 56, 56], "theta": 10000, "qkv_bias": True, "guidance_embed": True, "patch_size": 2,
    }  # fmt: skip
    config.update(more)
    return {name: value for name, value in config.items() if value is not ...}


def _lumina(**more: Any) -> dict[str, Any]:
    config = {
        "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "cap_feat_dim": 48, "n_layers": 1,
        "n_refiner_layers": 1, "qk_norm": True, "axes_dims": [32] * 3, "axes_lens": [300, 512, 512],
        "rope_theta": 10000.0, "ffn_dim_multiplier": 0.25,
    }  # fmt: skip
    return {**config, **more}


def _wan(**more: Any) -> dict[str, Any]:
    config = {
        "image_model": "wan2.1", "dim": 128, "out_dim": 16, "num_heads": 1, "ffn_dim": 64, "num_layers": 1,
        "patch_size": (1, 2, 2), "freq_dim": 256, "window_size": (-1, -1), "qk_norm": True, "cross_attn_norm": True,
        "eps": 1e-6, "in_dim": 16, "model_type": "t2v",
    }  # fmt: skip
    return {**config, **more}


_SD3 = {
    "in_channels": 16, "patch_size": 2, "depth": 2, "input_size": None, "adm_in_channels": 32, "num_patches": 64,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 48, "out_features": 128}},
    "pos_embed_max_size": 8, "pos_embed_scaling_factor": None, "qk_norm": "rms",
}  # fmt: skip
_COSMOS = {
    "image_model": "cosmos_predict2", "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16,
    "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "model_channels": 128, "num_blocks": 1,
    "concat_padding_mask": True, "crossattn_emb_channels": 64, "pos_emb_cls": "rope3d", "pos_emb_learnable": True,
    "pos_emb_interpolation": "crop", "min_fps": 1, "max_fps": 30, "use_adaln_lora": True, "adaln_lora_dim": 32,
    "num_heads": 1, "extra_per_block_abs_pos_emb": False, "rope_h_extrapolation_ratio": 4.0,
    "rope_w_extrapolation_ratio": 4.0, "rope_t_extrapolation_ratio": 1.0, "extra_h_extrapolation_ratio": 1.0,
    "extra_w_extrapolation_ratio": 1.0, "extra_t_extrapolation_ratio": 1.0, "rope_enable_fps_modulation": False,
}  # fmt: skip
_HUNYUAN = _flux(
    image_model="hunyuan_video", patch_size=[1, 2, 2], theta=256, byt5=False, meanflow=False,
    use_cond_type_embedding=False, vision_in_dim=None,
)  # fmt: skip
_CHROMA = _flux(
    image_model="chroma", in_channels=64, out_channels=64, in_dim=64, out_dim=128, hidden_dim=64, n_layers=1,
    vec_in_dim=..., guidance_embed=...,
)  # fmt: skip
_FLUX2 = _flux(
    image_model="flux2", axes_dim=[32] * 4, mlp_ratio=3.0, theta=2000, patch_size=1, out_channels=128, in_channels=128,
    global_modulation=True, vec_in_dim=None, mlp_silu_act=True, qkv_bias=False, ops_bias=False,
    default_ref_method="index", ref_index_scale=10.0, guidance_embed=False,
)  # fmt: skip
_QWEN = {
    "image_model": "qwen_image", "in_channels": 64, "num_layers": 1, "num_attention_heads": 1,
    "attention_head_dim": 128, "joint_attention_dim": 48,
}  # fmt: skip
_LTXV = {
    "image_model": "ltxv", "num_layers": 1, "attention_head_dim": 4, "cross_attention_dim": 128, "caption_channels": 48,
}  # fmt: skip
_PIXART = {
    "image_model": "pixart_sigma", "num_heads": 16, "patch_size": 2, "hidden_size": 1152, "in_channels": 4, "depth": 1,
    "micro_condition": False, "input_size": 64, "pe_interpolation": 1, "caption_channels": 48, "mlp_ratio": 1.0,
}  # fmt: skip
_KREA2 = {
    "image_model": "krea2", "features": 256, "heads": 2, "kvheads": 1, "layers": 1, "txtlayers": 2, "txtdim": 160,
}  # fmt: skip
_AURA = {
    "max_seq": 64, "cond_seq_dim": 48, "n_double_layers": 1, "n_layers": 2, "dim": 128, "n_heads": 1,
    "global_conddim": 64,
}  # fmt: skip

_MASK = {"attention_mask": torch.ones(1, TOKENS, dtype=torch.int64)}
BASES: tuple[Base, ...] = (
    Base("SD1.5", "sd15", "SD15", _unet(768, False, heads={"num_heads": 8, "num_head_channels": -1}), (4, 8, 8), 768,
         scale=0.02),
    Base("SD2", "sd2", "SD20", _unet(1024, True), (4, 8, 8), 1024, scale=0.02),
    Base("SDXL", "sdxl", "SDXL", _unet(2048, True, 2816), (4, 8, 8), 2048, 1280, scale=0.02),
    Base("SD3", "sd3", "SD3", _SD3, (16, 4, 4), 48),
    Base("SD3.5 medium", "sd3", "SD3", {**_SD3, "x_block_self_attn_layers": [0]}, (16, 4, 4), 48),
    Base("FLUX.1", "flux", "Flux", _flux(), (16, 4, 4), 48),
    Base("FLUX.2", "flux2", "Flux2", _FLUX2, (128, 4, 4), 48),
    Base("Chroma", "chroma", "Chroma", _CHROMA, (16, 4, 4), 48),
    Base("Qwen-Image", "qwen_image", "QwenImage", _QWEN, (16, 1, 4, 4), 48),
    Base("Z-Image", "z_image", "ZImage",
         _lumina(dim=256, n_heads=2, n_kv_heads=2, axes_dims=[32, 48, 48], z_image_modulation=True, time_scale=1000.0),
         (16, 4, 4), 48, extra={**_MASK, "num_tokens": TOKENS}),
    Base("Lumina 2", "lumina2", "Lumina2", _lumina(dim=2304, n_heads=24, n_kv_heads=8), (16, 4, 4), 48,
         extra={**_MASK, "num_tokens": TOKENS}, scale=0.02),
    Base("Wan 2.1", "wan", "WAN21_T2V", _wan(), (16, 1, 4, 4), 4096),
    Base("HunyuanVideo", "hunyuan_video", "HunyuanVideo", _HUNYUAN, (16, 1, 4, 4), 48, extra={"guidance": 6.0}),
    Base("LTX-Video", "ltxv", "LTXV", _LTXV, (128, 1, 4, 4), 48, extra=_MASK),
    Base("PixArt-Σ", "pixart", "PixArtSigma", _PIXART, (4, 64, 64), 48, scale=0.03),
    Base("AuraFlow", "aura_flow", "AuraFlow", _AURA, (4, 4, 4), 48),
    Base("Krea 2", "krea2", "Krea2", _KREA2, (16, 1, 4, 4), 320),  # newer than 0.3.75
    Base("Anima (Cosmos Predict2)", "anima", "CosmosT2IPredict2", _COSMOS, (16, 1, 4, 4), 64),
)  # fmt: skip


def make(base: Base) -> tuple[Any, str]:
    """(MODEL, how it was loaded): ``detected`` by ComfyUI from its weights, or ``built`` of the base's class."""
    import comfy.supported_models

    from .applied import patcher_class, random_state

    config = getattr(comfy.supported_models, base.kind)(dict(base.config))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device=torch.device("cpu"))
    state = random_state(model.diffusion_model, SEED, base.scale)
    found = _detected(base, state)
    if found is not None:
        return found, "detected"
    model.diffusion_model.load_state_dict(state)
    model.eval()
    cpu = torch.device("cpu")
    return patcher_class()(model, load_device=cpu, offload_device=cpu), "built"


def _detected(base: Base, state: dict[str, torch.Tensor]) -> Any:
    """The MODEL ComfyUI makes of the weights alone, when it takes them for this very base and network."""
    import comfy.sd

    try:
        found = comfy.sd.load_diffusion_model_state_dict(dict(state), model_options={"dtype": torch.float32})
    except Exception:  # detection meets sizes it does not expect: each base in a way of its own
        return None
    if found is None or type(found.model.model_config).__name__ != base.kind:
        return None
    loaded = found.model.diffusion_model.state_dict()
    same = loaded.keys() == state.keys() and all(loaded[name].shape == state[name].shape for name in state)
    return found if same and all(torch.equal(loaded[name], state[name]) for name in state) else None


def forward(model: Any, base: Base) -> torch.Tensor:
    """One real step of sampling, (1, *latent); the same noise and text every time."""
    import comfy.sample

    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn(1, *base.latent, generator=generator)
    states = torch.randn(1, TOKENS, base.text, generator=generator)
    pooled = torch.randn(1, base.pooled, generator=generator)
    text = [[states, {"pooled_output": pooled, "guidance": 3.5, **base.extra}]]
    return comfy.sample.sample(
        model, noise, 1, 1.0, "euler", "simple", text, text, torch.zeros_like(noise), seed=0, disable_pbar=True
    )
