"""Module names of the two-stream transformers: SD3 (and the demo base), FLUX, Chroma, FLUX.2, HunyuanVideo, Qwen-Image.

Sources: the released checkpoints' own names on the right, diffusers' model classes on the left.
"""

from __future__ import annotations

from .rules import Rule, after_three_in, rename, same, split_qkv_rules

_TO_QKV = ("to_q", "to_k", "to_v")
_ADD_QKV = ("add_q_proj", "add_k_proj", "add_v_proj")


def _attention_parts(block: str, attention: str, names: tuple[str, ...], target: str) -> list[Rule]:
    return split_qkv_rules([f"{block}.{attention}.{name}" for name in names], target)


_ATTN2 = ("attn2.qkv", "attn2.proj", "attn2.ln_q", "attn2.ln_k")


def sd3_rules() -> list[Rule]:
    """Stable Diffusion 3 and 3.5; also the demo base, which is the same architecture at width 256."""
    theirs, ours = "transformer_blocks.{}", "joint_blocks.{}"
    rules = _attention_parts(theirs, "attn", _TO_QKV, f"{ours}.x_block.attn.qkv")
    rules += _attention_parts(theirs, "attn", _ADD_QKV, f"{ours}.context_block.attn.qkv")
    rules += _attention_parts(theirs, "attn2", _TO_QKV, f"{ours}.x_block.attn2.qkv")
    pairs = [
        ("attn.to_out.0", "x_block.attn.proj"),
        ("attn.to_out", "x_block.attn.proj"),
        ("attn2.to_out.0", "x_block.attn2.proj"),
        ("attn2.to_out", "x_block.attn2.proj"),
        ("attn.to_add_out", "context_block.attn.proj"),
        ("ff.net.0.proj", "x_block.mlp.fc1"),
        ("ff.net.2", "x_block.mlp.fc2"),
        ("ff_context.net.0.proj", "context_block.mlp.fc1"),
        ("ff_context.net.2", "context_block.mlp.fc2"),
        ("norm1.linear", "x_block.adaLN_modulation.1"),
        ("norm1_context.linear", "context_block.adaLN_modulation.1"),
        ("attn.norm_q", "x_block.attn.ln_q"),
        ("attn.norm_k", "x_block.attn.ln_k"),
        ("attn2.norm_q", "x_block.attn2.ln_q"),
        ("attn2.norm_k", "x_block.attn2.ln_k"),
        ("attn.norm_added_q", "context_block.attn.ln_q"),
        ("attn.norm_added_k", "context_block.attn.ln_k"),
    ]
    rules += rename(pairs, theirs + ".{}", ours + ".{}")
    rules += rename(_TIME_TEXT_SD3) + [Rule("norm_out.linear", "final_layer.adaLN_modulation.1", swap_halves=True)]
    for stream in ("x_block", "context_block"):
        parts = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1", "attn.ln_q", "attn.ln_k")
        rules += same(*(f"{ours}.{stream}.{part}" for part in (*parts, *_ATTN2)))
    return rules + same("final_layer.linear", "final_layer.adaLN_modulation.1", *(b for _, b in _TIME_TEXT_SD3))


_TIME_TEXT_SD3 = (
    ("context_embedder", "context_embedder"),
    ("time_text_embed.timestep_embedder.linear_1", "t_embedder.mlp.0"),
    ("time_text_embed.timestep_embedder.linear_2", "t_embedder.mlp.2"),
    ("time_text_embed.text_embedder.linear_1", "y_embedder.mlp.0"),
    ("time_text_embed.text_embedder.linear_2", "y_embedder.mlp.2"),
    ("pos_embed.proj", "x_embedder.proj"),
    ("proj_out", "final_layer.linear"),
)

_FLUX_DOUBLE = [
    ("attn.to_out.0", "img_attn.proj"),
    ("attn.to_out", "img_attn.proj"),
    ("attn.to_add_out", "txt_attn.proj"),
    ("norm1.linear", "img_mod.lin"),
    ("norm1_context.linear", "txt_mod.lin"),
    ("ff.net.0.proj", "img_mlp.0"),
    ("ff.net.2", "img_mlp.2"),
    ("ff_context.net.0.proj", "txt_mlp.0"),
    ("ff_context.net.2", "txt_mlp.2"),
    ("ff.linear_in", "img_mlp.0"),  # FLUX.2
    ("ff.linear_out", "img_mlp.2"),
    ("ff_context.linear_in", "txt_mlp.0"),
    ("ff_context.linear_out", "txt_mlp.2"),
    ("attn.norm_q", "img_attn.norm.query_norm"),
    ("attn.norm_k", "img_attn.norm.key_norm"),
    ("attn.norm_added_q", "txt_attn.norm.query_norm"),
    ("attn.norm_added_k", "txt_attn.norm.key_norm"),
    ("proj_lora1", "img_attn.proj"),  # XLabs: 1 = image, 2 = text
    ("proj_lora2", "txt_attn.proj"),
    ("qkv_lora1", "img_attn.qkv"),
    ("qkv_lora2", "txt_attn.qkv"),
]
_FLUX_SINGLE = [
    ("norm.linear", "modulation.lin"),
    ("proj_out", "linear2"),
    ("attn.to_qkv_mlp_proj", "linear1"),  # FLUX.2
    ("attn.to_out", "linear2"),
    ("attn.norm_q", "norm.query_norm"),
    ("attn.norm_k", "norm.key_norm"),
]
_FLUX_BASIC = (
    ("x_embedder", "img_in"),
    ("context_embedder", "txt_in"),
    ("time_text_embed.timestep_embedder.linear_1", "time_in.in_layer"),
    ("time_text_embed.timestep_embedder.linear_2", "time_in.out_layer"),
    ("time_text_embed.text_embedder.linear_1", "vector_in.in_layer"),
    ("time_text_embed.text_embedder.linear_2", "vector_in.out_layer"),
    ("time_text_embed.guidance_embedder.linear_1", "guidance_in.in_layer"),
    ("time_text_embed.guidance_embedder.linear_2", "guidance_in.out_layer"),
    ("proj_out", "final_layer.linear"),
)
_FLUX2_BASIC = (
    ("time_guidance_embed.timestep_embedder.linear_1", "time_in.in_layer"),
    ("time_guidance_embed.timestep_embedder.linear_2", "time_in.out_layer"),
    ("time_guidance_embed.guidance_embedder.linear_1", "guidance_in.in_layer"),
    ("time_guidance_embed.guidance_embedder.linear_2", "guidance_in.out_layer"),
    ("double_stream_modulation_img.linear", "double_stream_modulation_img.lin"),
    ("double_stream_modulation_txt.linear", "double_stream_modulation_txt.lin"),
    ("single_stream_modulation.linear", "single_stream_modulation.lin"),
)


def flux_rules() -> list[Rule]:
    """FLUX.1, FLUX.2 and Chroma: one set of block names; ``linear1`` of a single block is q, k, v and the MLP."""
    theirs, ours = "transformer_blocks.{}", "double_blocks.{}"
    rules = _attention_parts(theirs, "attn", _TO_QKV, f"{ours}.img_attn.qkv")
    rules += _attention_parts(theirs, "attn", _ADD_QKV, f"{ours}.txt_attn.qkv")
    rules += rename(_FLUX_DOUBLE, theirs + ".{}", ours + ".{}")
    rules += rename([pair for pair in _FLUX_DOUBLE if "_lora" in pair[0]], ours + ".{}", ours + ".{}")
    theirs, ours = "single_transformer_blocks.{}", "single_blocks.{}"
    rules += _attention_parts(theirs, "attn", _TO_QKV, f"{ours}.linear1")
    rules += [Rule(f"{theirs}.proj_mlp", f"{ours}.linear1", after_three_in)]
    rules += rename(_FLUX_SINGLE, theirs + ".{}", ours + ".{}")
    rules += [Rule(f"{ours}.{name}", f"{ours}.linear1", _xlabs_single) for name in ("qkv", "qkv_lora", "linear1_qkv")]
    rules += rename([("proj", "linear2"), ("proj_lora", "linear2")], ours + ".{}", ours + ".{}")
    rules += rename(_FLUX_BASIC) + rename(_FLUX2_BASIC)
    return rules + [Rule("norm_out.linear", "final_layer.adaLN_modulation.1", swap_halves=True)] + _flux_native()


def _xlabs_single(shape: tuple[int, ...]) -> tuple[int, int]:
    return 0, shape[0]  # q, k and v of a single block in one piece; the MLP rows follow


def _flux_native() -> list[Rule]:
    names = [f"double_blocks.{{}}.{s}_{part}" for s in ("img", "txt") for part in _NATIVE_STREAM]
    names += [f"single_blocks.{{}}.{part}" for part in ("linear1", "linear2", "modulation.lin", *_NORMS)]
    names += ["final_layer.linear", "final_layer.adaLN_modulation.1"]
    names += sorted({b for _, b in _FLUX_BASIC + _FLUX2_BASIC})
    names += [f"distilled_guidance_layer.{part}" for part in ("in_proj", "out_proj")]  # Chroma
    names += [f"distilled_guidance_layer.layers.{{}}.{part}" for part in ("in_layer", "out_layer")]
    return same(*names)


_NORMS = ("norm.query_norm", "norm.key_norm")
_NATIVE_STREAM = ("attn.qkv", "attn.proj", "mlp.0", "mlp.2", "mod.lin", "attn.norm.query_norm", "attn.norm.key_norm")


def hunyuan_video_rules() -> list[Rule]:
    """HunyuanVideo: ComfyUI's names are FLUX-like; the original code writes ``fc1``, ``linear`` and ``_qkv``."""
    streams = [(s, f"double_blocks.{{}}.{s}_") for s in ("img", "txt")]
    rules: list[Rule] = []
    for _, head in streams:
        rules += rename(
            [("mlp.fc1", "mlp.0"), ("mlp.fc2", "mlp.2"), ("mod.linear", "mod.lin")], head + "{}", head + "{}"
        )
        rules += rename([("attn_qkv", "attn.qkv"), ("attn_proj", "attn.proj")], head + "{}", head + "{}")
    rules += [Rule("single_blocks.{}.modulation.linear", "single_blocks.{}.modulation.lin")]
    refiner = "txt_in.individual_token_refiner.blocks.{}"
    for part, ours in (("self_attn_qkv", "self_attn.qkv"), ("self_attn_proj", "self_attn.proj")):
        rules += [Rule(f"{refiner}.{part}", f"{refiner}.{ours}"), *same(f"{refiner}.{ours}")]
    rules += rename([("mlp.fc1", "mlp.0"), ("mlp.fc2", "mlp.2")], refiner + ".{}", refiner + ".{}")
    rules += same(*(f"{refiner}.{part}" for part in ("mlp.0", "mlp.2", "adaLN_modulation.1", "norm1", "norm2")))
    rules += same("txt_in.input_embedder")
    for part in ("c_embedder", "t_embedder"):
        rules += same(
            f"txt_in.{part}.in_layer", f"txt_in.{part}.out_layer", f"txt_in.{part}.mlp.0", f"txt_in.{part}.mlp.2"
        )
    return rules + [Rule("x_embedder.proj", "img_in.proj"), *same("img_in.proj")] + flux_rules()


def qwen_image_rules() -> list[Rule]:
    """Qwen-Image: the base keeps diffusers' names, with separate q, k and v."""
    block = "transformer_blocks.{}"
    parts = [f"attn.{name}" for name in (*_TO_QKV, *_ADD_QKV, "to_out.0", "to_add_out")]
    parts += [f"{s}_mlp.net.{end}" for s in ("img", "txt") for end in ("0.proj", "2")]
    parts += ["img_mod.1", "txt_mod.1", "attn.norm_q", "attn.norm_k", "attn.norm_added_q", "attn.norm_added_k"]
    rules = [Rule(f"{block}.attn.to_out", f"{block}.attn.to_out.0")] + same(*(f"{block}.{part}" for part in parts))
    embed = [f"time_text_embed.timestep_embedder.linear_{n}" for n in (1, 2)]
    return rules + same("img_in", "txt_in", "txt_norm", "proj_out", "norm_out.linear", *embed)
