"""Module names of text encoders: CLIP (transformers' names), T5, and the llama-like ones of newer bases."""

from __future__ import annotations

from .rules import Rule, RuleTable, rename, same

Shape = tuple[int, ...]


def _clip_rules() -> list[Rule]:
    layer = "text_model.encoder.layers.{}"
    parts = [f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")] + ["mlp.fc1", "mlp.fc2"]
    parts += ["layer_norm1", "layer_norm2"]
    rules = same(*(f"{layer}.{part}" for part in parts))
    rules += [Rule(f"encoder.layers.{{}}.{part}", f"{layer}.{part}") for part in parts]
    ends = ("text_model.embeddings.token_embedding", "text_model.embeddings.position_embedding")
    return rules + same(*ends, "text_model.final_layer_norm", "text_projection")


def _t5_rules() -> list[Rule]:
    block = "encoder.block.{}.layer.{}"
    parts = [f"SelfAttention.{x}" for x in "qkvo"] + ["SelfAttention.relative_attention_bias", "layer_norm"]
    parts += ["DenseReluDense.wi_0", "DenseReluDense.wi_1", "DenseReluDense.wi", "DenseReluDense.wo"]
    return same(*(f"{block}.{part}" for part in parts), "shared", "encoder.final_layer_norm")


def _llama_rules() -> list[Rule]:
    parts = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"self_attn.{x}_norm" for x in "qk"]
    parts += [f"mlp.{x}_proj" for x in ("gate", "up", "down")] + ["input_layernorm", "post_attention_layernorm"]
    parts += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]  # Gemma's
    names = [f"layers.{{}}.{part}" for part in parts] + ["embed_tokens", "norm"]
    rules = same(*names)
    for prefix in ("model.{}", "language_model.{}", "model.language_model.{}"):
        rules += rename([(name, name) for name in names], prefix)
    return rules


_TABLES = (("clip", RuleTable(_clip_rules())), ("t5", RuleTable(_t5_rules())), ("llm", RuleTable(_llama_rules())))
_CLIP_BY_WIDTH = {768: "clip_l", 1280: "clip_g", 1024: "clip_h"}
_WIDTH_FROM_OUTPUT = ("mlp.fc2",)  # every other CLIP layer has the model's width as its input


def find_text_module(path: str, slot: int, shape: Shape, home: str | None = None) -> tuple[str, str] | None:
    """``(encoder, module)`` for a text encoder path, e.g. ``("clip_l", "text_model.encoder.layers.0.mlp.fc1")``.

    CLIP models are told apart by their width, because trainers number them differently; ``slot`` is the number in the
    file's prefix (0: none) and decides only where neither the shape does nor ``home``, the CLIP of its neighbours.
    """
    for kind, table in _TABLES:
        target = table.find(path)
        if target is None:
            continue
        if kind == "clip":
            return clip_by_width(target.module, shape) or home or ("clip_g" if slot == 2 else "clip_l"), target.module
        return ("t5xxl" if kind == "t5" else "text_encoder"), target.module
    return None


def clip_by_width(module: str, shape: Shape) -> str | None:
    """The CLIP model whose width a layer shows, or None where it shows none."""
    width = None
    if len(shape) >= 2:
        width = shape[0] if module.endswith(_WIDTH_FROM_OUTPUT) else shape[1]
    elif len(shape) == 1 and not module.endswith("mlp.fc1"):
        width = shape[0]
    return _CLIP_BY_WIDTH.get(width)
