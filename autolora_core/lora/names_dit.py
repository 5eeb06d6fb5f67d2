"""Module names of the single-stream transformers: Z-Image, Lumina2, Wan, LTX-Video, PixArt, AuraFlow, Anima, Krea 2 …

Where the base keeps diffusers' own names the rules are plain pass-throughs; they are still needed, because kohya's
underscored names can only be read back with a list of the dotted ones.
"""

from __future__ import annotations

from .rules import Rule, after_self, first, rename, same, split_qkv_rules


def z_image_rules() -> list[Rule]:
    """Z-Image and Lumina 2: q, k and v are fused in the base; Lumina 2's k and v are narrower than q."""
    rules: list[Rule] = []
    for stack in ("layers.{}", "noise_refiner.{}", "context_refiner.{}"):
        for theirs in (f"{stack}.attention", f"{stack}.attn"):
            rules += split_qkv_rules([f"{theirs}.to_{x}" for x in "qkv"], f"{stack}.attention.qkv")
            rules += rename([("to_out.0", "out"), ("to_out", "out")], theirs + ".{}", f"{stack}.attention.{{}}")
            rules += rename([("norm_q", "q_norm"), ("norm_k", "k_norm")], theirs + ".{}", f"{stack}.attention.{{}}")
        own = ["attention.qkv", "attention.out", "attention.q_norm", "attention.k_norm"]
        own += [f"feed_forward.w{n}" for n in (1, 2, 3)] + ["adaLN_modulation.0", "adaLN_modulation.1"]
        own += ["attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"]
        rules += same(*(f"{stack}.{name}" for name in own))
        rules += rename(
            [(f"feed_forward.linear_{n}", f"feed_forward.w{n}") for n in (1, 2, 3)], stack + ".{}", stack + ".{}"
        )
    rules += [
        Rule("all_final_layer.2-1.linear", "final_layer.linear"),
        Rule("all_final_layer.2-1.adaLN_modulation.1", "final_layer.adaLN_modulation.1"),
        Rule("all_x_embedder.2-1", "x_embedder"),
    ]
    names = ("final_layer.linear", "final_layer.adaLN_modulation.1", "x_embedder", "cap_embedder.0", "cap_embedder.1")
    return rules + same(*names, "t_embedder.mlp.0", "t_embedder.mlp.2")


def wan_rules() -> list[Rule]:
    """Wan 2.x: original names on the right; diffusers calls self-attention attn1 and cross-attention attn2."""
    block = "blocks.{}"
    rules: list[Rule] = []
    for theirs, ours in (("attn1", "self_attn"), ("attn2", "cross_attn")):
        pairs = [("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o"), ("to_out", "o")]
        pairs += [("add_k_proj", "k_img"), ("add_v_proj", "v_img"), ("norm_q", "norm_q"), ("norm_k", "norm_k")]
        rules += rename(pairs, f"{block}.{theirs}.{{}}", f"{block}.{ours}.{{}}")
        rules += same(*(f"{block}.{ours}.{x}" for x in ("q", "k", "v", "o", "k_img", "v_img", "norm_q", "norm_k")))
        rules += same(*(f"{block}.{ours}.norm_{x}_img" for x in "kq"))
    rules += rename(
        [("ffn.net.0.proj", "ffn.0"), ("ffn.net.2", "ffn.2"), ("norm2", "norm3")], block + ".{}", block + ".{}"
    )
    rules += same(*(f"{block}.{x}" for x in ("ffn.0", "ffn.2", "norm3", "before_proj", "after_proj")))
    embedder = [
        ("time_embedder.linear_1", "time_embedding.0"),
        ("time_embedder.linear_2", "time_embedding.2"),
        ("time_proj", "time_projection.1"),
        ("text_embedder.linear_1", "text_embedding.0"),
        ("text_embedder.linear_2", "text_embedding.2"),
        ("image_embedder.norm1", "img_emb.proj.0"),
        ("image_embedder.ff.net.0.proj", "img_emb.proj.1"),
        ("image_embedder.ff.net.2", "img_emb.proj.3"),
        ("image_embedder.norm2", "img_emb.proj.4"),
    ]
    rules += rename(embedder, "condition_embedder.{}") + same(*(ours for _, ours in embedder))
    return rules + [Rule("proj_out", "head.head")] + same("head.head", "patch_embedding")


def ltxv_rules() -> list[Rule]:
    """LTX-Video: diffusers' block names; only the ends of the model are named differently."""
    block = "transformer_blocks.{}"
    parts = [f"attn{n}.{x}" for n in (1, 2) for x in ("to_q", "to_k", "to_v", "to_out.0", "q_norm", "k_norm")]
    parts += ["ff.net.0.proj", "ff.net.2"]
    rules = same(*(f"{block}.{x}" for x in parts))
    rules += [Rule(f"{block}.attn{n}.to_out", f"{block}.attn{n}.to_out.0") for n in (1, 2)]
    rules += [Rule(f"{block}.attn{n}.norm_{x}", f"{block}.attn{n}.{x}_norm") for n in (1, 2) for x in "qk"]
    rules += [Rule("proj_in", "patchify_proj")]
    rules += [Rule(f"time_embed.{x}", f"adaln_single.{x}") for x in _ADALN]
    ends = ["patchify_proj", "proj_out", *(f"adaln_single.{x}" for x in _ADALN)]
    return rules + same(*ends, *(f"caption_projection.linear_{n}" for n in (1, 2)))


_ADALN = ("linear", "emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2")


def pixart_rules() -> list[Rule]:
    """PixArt-α and -Σ: q, k, v of self-attention and k, v of cross-attention are fused in the base."""
    theirs, ours = "transformer_blocks.{}", "blocks.{}"
    rules = split_qkv_rules([f"{theirs}.attn1.to_{x}" for x in "qkv"], f"{ours}.attn.qkv")
    rules += [
        Rule(f"{theirs}.attn2.to_q", f"{ours}.cross_attn.q_linear"),
        Rule(f"{theirs}.attn2.to_k", f"{ours}.cross_attn.kv_linear", first),
        Rule(f"{theirs}.attn2.to_v", f"{ours}.cross_attn.kv_linear", after_self),
    ]
    pairs = [("attn1.to_out.0", "attn.proj"), ("attn1.to_out", "attn.proj")]
    pairs += [("attn2.to_out.0", "cross_attn.proj"), ("attn2.to_out", "cross_attn.proj")]
    pairs += [("ff.net.0.proj", "mlp.fc1"), ("ff.net.2", "mlp.fc2")]
    rules += rename(pairs, theirs + ".{}", ours + ".{}")
    own = (
        "attn.qkv",
        "attn.proj",
        "cross_attn.q_linear",
        "cross_attn.kv_linear",
        "cross_attn.proj",
        "mlp.fc1",
        "mlp.fc2",
    )
    rules += same(*(f"{ours}.{x}" for x in own))
    basic = [
        ("pos_embed.proj", "x_embedder.proj"),
        ("adaln_single.linear", "t_block.1"),
        ("proj_out", "final_layer.linear"),
    ]
    sizes = (("resolution_embedder", "csize_embedder"), ("aspect_ratio_embedder", "ar_embedder"))
    for a, b in (("timestep_embedder", "t_embedder"), *sizes):
        basic += [(f"adaln_single.emb.{a}.linear_{n}", f"{b}.mlp.{2 * n - 2}") for n in (1, 2)]
    basic += [(f"caption_projection.linear_{n}", f"y_embedder.y_proj.fc{n}") for n in (1, 2)]
    return rules + rename(basic) + same(*(b for _, b in basic))


def aura_flow_rules() -> list[Rule]:
    """AuraFlow: in a double layer stream 1 is the text and stream 2 the image."""
    mlp = [("linear_1", "c_fc1"), ("linear_2", "c_fc2"), ("out_projection", "c_proj")]
    attention = [("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o"), ("to_out", "o")]
    added = [("add_q_proj", "q"), ("add_k_proj", "k"), ("add_v_proj", "v"), ("to_add_out", "o")]
    double, single = "joint_transformer_blocks.{}", "single_transformer_blocks.{}"
    rules = rename(attention, double + ".attn.{}", "double_layers.{}.attn.w2{}")
    rules += rename(added, double + ".attn.{}", "double_layers.{}.attn.w1{}")
    rules += rename(mlp, double + ".ff.{}", "double_layers.{}.mlpX.{}")
    rules += rename(mlp, double + ".ff_context.{}", "double_layers.{}.mlpC.{}")
    rules += [Rule(f"{double}.norm1.linear", "double_layers.{}.modX.1")]
    rules += [Rule(f"{double}.norm1_context.linear", "double_layers.{}.modC.1")]
    rules += rename(attention, single + ".attn.{}", "single_layers.{}.attn.w1{}")
    rules += rename(mlp, single + ".ff.{}", "single_layers.{}.mlp.{}")
    rules += [Rule(f"{single}.norm1.linear", "single_layers.{}.modCX.1")]
    rules += [Rule("norm_out.linear", "modF.1", swap_halves=True)]
    basic = [("time_step_proj.linear_1", "t_embedder.mlp.0"), ("time_step_proj.linear_2", "t_embedder.mlp.2")]
    basic += [
        ("context_embedder", "cond_seq_linear"),
        ("pos_embed.proj", "init_x_linear"),
        ("proj_out", "final_linear"),
    ]
    own = [f"double_layers.{{}}.attn.w{n}{x}" for n in (1, 2) for x in "qkvo"]
    own += [f"double_layers.{{}}.mlp{s}.{b}" for s in "XC" for _, b in mlp] + [
        "double_layers.{}.modX.1",
        "double_layers.{}.modC.1",
    ]
    own += [f"single_layers.{{}}.attn.w1{x}" for x in "qkvo"] + [f"single_layers.{{}}.mlp.{b}" for _, b in mlp]
    return rules + rename(basic) + same(*own, "single_layers.{}.modCX.1", "modF.1", *(b for _, b in basic))


def anima_rules() -> list[Rule]:
    """Anima and Cosmos-Predict2: one block design; Anima adds a small language adapter."""
    parts = [f"{a}.{x}" for a in ("self_attn", "cross_attn") for x in ("q_proj", "k_proj", "v_proj", "output_proj")]
    parts += [f"{a}.{x}_norm" for a in ("self_attn", "cross_attn") for x in "qk"] + ["mlp.layer1", "mlp.layer2"]
    parts += [f"adaln_modulation_{a}.{n}" for a in ("self_attn", "cross_attn", "mlp") for n in (1, 2)]
    rules = same(*(f"blocks.{{}}.{x}" for x in parts))
    adapter = [f"{a}.{x}" for a in ("self_attn", "cross_attn") for x in ("q_proj", "k_proj", "v_proj", "o_proj")]
    adapter += [f"{a}.{x}_norm" for a in ("self_attn", "cross_attn") for x in "qk"] + ["mlp.0", "mlp.2"]
    rules += same(*(f"llm_adapter.blocks.{{}}.{x}" for x in adapter))
    rules += same("llm_adapter.embed", "llm_adapter.in_proj", "llm_adapter.out_proj", "llm_adapter.norm")
    rules += same("x_embedder.proj.1", "t_embedder.1.linear_1", "t_embedder.1.linear_2", "t_embedding_norm")
    return rules + same("final_layer.linear", "final_layer.adaln_modulation.1", "final_layer.adaln_modulation.2")


_KREA_BLOCK = (
    ("attn.to_q", "attn.wq"),
    ("attn.to_k", "attn.wk"),
    ("attn.to_v", "attn.wv"),
    ("attn.to_gate", "attn.gate"),
    ("attn.to_out.0", "attn.wo"),
    ("attn.to_out", "attn.wo"),
    ("ff.gate", "mlp.gate"),
    ("ff.up", "mlp.up"),
    ("ff.down", "mlp.down"),
)
_KREA_BASIC = (
    ("img_in", "first"),
    ("time_embed.linear_1", "tmlp.0"),
    ("time_embed.linear_2", "tmlp.2"),
    ("time_mod_proj", "tproj.1"),
    ("txt_in.linear_1", "txtmlp.1"),
    ("txt_in.linear_2", "txtmlp.3"),
    ("text_fusion.projector", "txtfusion.projector"),
    ("final_layer.linear", "last.linear"),
)


def krea2_rules() -> list[Rule]:
    """Krea 2: grouped-query attention with a gate, and a small transformer that fuses the text layers."""
    homes = [("transformer_blocks.{}", "blocks.{}")]
    homes += [(f"text_fusion.{x}.{{}}", f"txtfusion.{x}.{{}}") for x in ("layerwise_blocks", "refiner_blocks")]
    rules: list[Rule] = []
    for theirs, ours in homes:
        rules += rename(_KREA_BLOCK, theirs + ".{}", ours + ".{}")
        rules += same(*sorted({f"{ours}.{b}" for _, b in _KREA_BLOCK}))
    return rules + rename(_KREA_BASIC) + same(*(b for _, b in _KREA_BASIC))
