"""The other half of test_lora_comfy: runs in a process of its own with the real ComfyUI.

Builds each architecture on the meta device (no weights, no memory), writes down ComfyUI's whole LoRA key map, and
merges small files into zeros the way the stock loader does. Usage: ``lora_comfy_side.py <job.json> <maps.json>``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from comfy_local import comfy_path, sizes_for


def _unet(levels: int, context: int, linear: bool, depths: list[int], adm: int | None, middle: int) -> dict:
    config = {
        "use_checkpoint": False, "image_size": 32, "out_channels": 4, "use_spatial_transformer": True, "legacy": False,
        "adm_in_channels": adm, "in_channels": 4, "model_channels": 320, "num_res_blocks": [2] * levels,
        "transformer_depth": depths, "channel_mult": [1, 2, 4, 4][:levels], "transformer_depth_middle": middle,
        "use_linear_in_transformer": linear, "context_dim": context, "num_head_channels": 64,
        "use_temporal_attention": False, "use_temporal_resblock": False,
    }  # fmt: skip
    config["transformer_depth_output"] = [depth for depth in depths[::2] for _ in range(3)]
    if adm:
        config["num_classes"] = "sequential"
    return config


def _mmdit(hidden: int, text: int, adm: int) -> dict:
    sizes = {"in_features": text, "out_features": hidden}
    return {
        "in_channels": 16, "patch_size": 2, "depth": hidden // 64, "input_size": None, "adm_in_channels": adm,
        "context_embedder_config": {"target": "torch.nn.Linear", "params": sizes},
        "num_patches": 36864, "pos_embed_max_size": 192, "pos_embed_scaling_factor": None, "qk_norm": "rms",
        "x_block_self_attn_layers": [0, 1],
    }  # fmt: skip


def _flux(**more: object) -> dict:
    config = {
        "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096,
        "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 19, "depth_single_blocks": 38,
        "axes_dim": [16, 56, 56], "theta": 10000, "qkv_bias": True, "guidance_embed": True, "patch_size": 2,
    }  # fmt: skip
    return {**config, **more}


def _configs() -> dict[str, dict]:
    flux2 = _flux(
        image_model="flux2", axes_dim=[32] * 4, num_heads=48, hidden_size=6144, mlp_ratio=3.0, theta=2000, patch_size=1,
        out_channels=128, in_channels=128, global_modulation=True, vec_in_dim=None, mlp_silu_act=True, qkv_bias=False,
        ops_bias=False, default_ref_method="index", ref_index_scale=10.0, context_in_dim=15360, depth=8,
        depth_single_blocks=48,
    )  # fmt: skip
    chroma = _flux(
        image_model="chroma", in_channels=64, out_channels=64, in_dim=64, out_dim=3072, hidden_dim=5120, n_layers=5
    )
    for name in ("vec_in_dim", "guidance_embed"):
        chroma.pop(name)
    hunyuan = _flux(
        image_model="hunyuan_video", patch_size=[1, 2, 2], theta=256, depth=20, depth_single_blocks=40, byt5=False,
        meanflow=False, use_cond_type_embedding=False, vision_in_dim=None,
    )  # fmt: skip
    lumina = {
        "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 2304, "cap_feat_dim": 2304, "n_layers": 26,
        "qk_norm": True, "n_heads": 24, "n_kv_heads": 8, "axes_dims": [32] * 3, "axes_lens": [300, 512, 512],
        "rope_theta": 10000.0, "ffn_dim_multiplier": 4.0,
    }  # fmt: skip
    z_image = {
        **lumina, "dim": 3840, "cap_feat_dim": 2560, "n_layers": 30, "n_heads": 30, "n_kv_heads": 30,
        "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512], "rope_theta": 256.0, "ffn_dim_multiplier": 8.0 / 3.0,
        "z_image_modulation": True, "time_scale": 1000.0,
    }  # fmt: skip
    wan = {
        "image_model": "wan2.1", "dim": 1536, "out_dim": 16, "num_heads": 12, "ffn_dim": 8960, "num_layers": 30,
        "patch_size": (1, 2, 2), "freq_dim": 256, "window_size": (-1, -1), "qk_norm": True, "cross_attn_norm": True,
        "eps": 1e-6, "in_dim": 16, "model_type": "t2v",
    }  # fmt: skip
    cosmos = {
        "image_model": "cosmos_predict2", "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16,
        "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "model_channels": 2048, "num_blocks": 28,
        "concat_padding_mask": True,
        "crossattn_emb_channels": 1024, "pos_emb_cls": "rope3d", "pos_emb_learnable": True, "min_fps": 1, "max_fps": 30,
        "pos_emb_interpolation": "crop", "use_adaln_lora": True, "adaln_lora_dim": 256, "num_heads": 16,
        "extra_per_block_abs_pos_emb": False, "rope_h_extrapolation_ratio": 4.0, "rope_w_extrapolation_ratio": 4.0,
        "rope_t_extrapolation_ratio": 1.0, "extra_h_extrapolation_ratio": 1.0, "extra_w_extrapolation_ratio": 1.0,
        "extra_t_extrapolation_ratio": 1.0, "rope_enable_fps_modulation": False,
    }  # fmt: skip
    pixart = {
        "image_model": "pixart_sigma", "num_heads": 16, "patch_size": 2, "hidden_size": 1152, "in_channels": 4,
        "depth": 28, "micro_condition": False, "input_size": 128, "pe_interpolation": 2,
    }  # fmt: skip
    return {
        "SD15": _unet(4, 768, False, [1, 1, 1, 1, 1, 1, 0, 0], None, 1),
        "SD20": _unet(4, 1024, True, [1, 1, 1, 1, 1, 1, 0, 0], None, 1),
        "SDXL": _unet(3, 2048, True, [0, 0, 2, 2, 10, 10], 2816, 10),
        "SD3": _mmdit(1536, 4096, 2048),
        "Emoji": _mmdit(256, 384, 384),
        "Flux": _flux(),
        "Flux2": flux2,
        "Chroma": chroma,
        "QwenImage": {"image_model": "qwen_image", "in_channels": 64, "num_layers": 60},
        "ZImage": z_image,
        "Lumina2": lumina,
        "WAN21_T2V": wan,
        "HunyuanVideo": hunyuan,
        "LTXV": {"image_model": "ltxv", "num_layers": 28, "attention_head_dim": 64, "cross_attention_dim": 2048},
        "PixArtSigma": pixart,
        "AuraFlow": {"max_seq": 9216, "cond_seq_dim": 2048, "n_double_layers": 4, "n_layers": 36},
        "CosmosT2IPredict2": cosmos,
    }


def _with_newer_sizes(config: dict) -> dict:
    import comfy.ldm.chroma.model
    import comfy.ldm.flux.model
    import comfy.ldm.hunyuan_video.model

    flux = comfy.ldm.flux.model.FluxParams
    known = {"flux": flux, "flux2": flux, "chroma": comfy.ldm.chroma.model.ChromaParams}
    known["hunyuan_video"] = comfy.ldm.hunyuan_video.model.HunyuanVideoParams
    params = known.get(config.get("image_model"))
    return dict(config) if params is None else sizes_for(params, config)


def _comfy_model(name: str, config: dict) -> object:
    import comfy.supported_models
    import torch

    chosen = getattr(comfy.supported_models, "SD3" if name == "Emoji" else name)(_with_newer_sizes(config))
    chosen.set_inference_dtype(torch.float16, None)
    if name.startswith("PixArt"):  # its constructor computes with real numbers
        return chosen.get_model({}, "", device="meta")
    with torch.device("meta"):
        return chosen.get_model({}, "", device="meta")


def _text_encoder(name: str) -> object | None:
    """The text encoder ComfyUI builds for a base, on the meta device."""
    import comfy.sd1_clip
    import comfy.sdxl_clip
    import comfy.text_encoders.flux
    import comfy.text_encoders.sd2_clip
    import comfy.text_encoders.sd3_clip
    import torch

    classes = {
        "SD15": comfy.sd1_clip.SD1ClipModel,
        "SD20": comfy.text_encoders.sd2_clip.SD2ClipModel,
        "SDXL": comfy.sdxl_clip.SDXLClipModel,
        "SD3": comfy.text_encoders.sd3_clip.SD3ClipModel,
        "Flux": comfy.text_encoders.flux.FluxClipModel,
    }
    if name not in classes:
        return None
    with torch.device("meta"):
        return classes[name](device="meta", dtype=torch.float16)


class Base:
    """One architecture: its weights by ComfyUI's names, and ComfyUI's map from LoRA names to them."""

    def __init__(self, name: str, config: dict):
        import comfy.lora

        model, text = _comfy_model(name, config), _text_encoder(name)
        self.state = dict(model.state_dict())
        self.lora_names = comfy.lora.model_lora_keys_unet(model, {})
        if text is not None:
            self.state |= text.state_dict()
            self.lora_names |= comfy.lora.model_lora_keys_clip(text, {})

    def key_map(self) -> dict[str, list]:
        """LoRA name -> [weight, rows or null, halves swapped, shape], for every matrix or kernel ComfyUI maps."""
        result = {}
        for stem, target in self.lora_names.items():
            key, offset, swap = _unpack(target)
            if key not in self.state or not key.endswith(".weight") or self.state[key].ndim < 2:
                continue
            shape = list(self.state[key].shape)
            rows = None if offset is None else [offset[1], offset[1] + offset[2]]
            if rows is not None and rows[1] > shape[0]:
                continue  # rows that this weight does not have (Lumina 2, FLUX.2)
            if rows is not None:
                shape[0] = rows[1] - rows[0]
            result[stem] = [_module(key), rows, swap is not None, shape]
        return result

    def merge(self, path: str) -> dict[str, object]:
        """Module (with rows) -> some rows of the ΔW that ComfyUI merges into zeros, for each patch it finds."""
        import comfy.lora
        import comfy.lora_convert
        import comfy.utils
        import torch

        lora = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(path, safe_load=True))
        result = {}
        for target, patch in comfy.lora.load_lora(lora, self.lora_names, log_missing=False).items():
            key, offset, swap = _unpack(target)
            weight = torch.zeros(self.state[key].shape, dtype=torch.float32)
            merged = comfy.lora.calculate_weight([(1.0, patch, 1.0, offset, swap)], weight, key)
            name = _module(key)
            if offset is not None:
                merged = merged.narrow(*offset)
                name += f"[{offset[1]}:{offset[1] + offset[2]}]"
            result[name] = merged[:: max(1, merged.shape[0] // 48)].contiguous()
        return result


def _unpack(target: object) -> tuple[str, tuple | None, object | None]:
    """A value of ComfyUI's map as (weight key, rows, function on the change)."""
    if isinstance(target, str):
        return target, None, None
    return target[0], target[1], target[2] if len(target) > 2 else None


def _module(key: str) -> str:
    """ComfyUI's weight key as we name modules; a bias keeps its suffix."""
    return key.removeprefix("diffusion_model.").removesuffix(".weight").replace(".transformer.", ".", 1)


def main(job: str, out: str) -> None:
    folder = comfy_path()
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    sys.argv = ["comfy-side", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.utils

    files: dict[str, list[str]] = json.loads(Path(job).read_text())
    maps, configs = {}, _configs()
    for name, paths in files.items():
        base = Base(name, configs[name])
        maps[name] = base.key_map()
        for path in paths:
            comfy.utils.save_torch_file(base.merge(path), path + ".merged")
    Path(out).write_text(json.dumps(maps))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
