"""Module names of the Stable Diffusion UNets (SD1.x, SD2.x, SDXL): diffusers' blocks -> ldm's, by counting.

ldm numbers the blocks through: level x of n resnets starts at ``input_blocks[1 + (n + 1) * x]`` and ends in a
downsampler; ``output_blocks[(n + 1) * x + i]`` holds resnet, attention (if any) and, last in a level, the upsampler.
"""

from __future__ import annotations

from collections.abc import Callable

from .rules import Rule, rename, same

_RESNET = (
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
)
_ATTENTION = ("norm", "proj_in", "proj_out")
_BLOCK = tuple(
    [f"attn{n}.to_{x}" for n in (1, 2) for x in ("q", "k", "v", "out.0")]
    + ["ff.net.0.proj", "ff.net.2", "norm1", "norm2", "norm3"]
)
_BASIC = (
    ("conv_in", "input_blocks.0.0"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("add_embedding.linear_1", "label_emb.0.0"),
    ("add_embedding.linear_2", "label_emb.0.2"),
    ("class_embedding.linear_1", "label_emb.0.0"),
    ("class_embedding.linear_2", "label_emb.0.2"),
)
_THREE_BY_THREE = (".in_layers.2", ".out_layers.3", ".op", ".conv", "input_blocks.0.0", "out.2")


_ONE_BY_ONE = (".skip_connection",)
_ONE_BY_ONE_SD1 = (".1.proj_in", ".1.proj_out")


def unet_kernel(family: str, module: str) -> int | None:
    """3 or 1 for the convolutions of a UNet (their factors may be stored as matrices), None for linear layers."""
    if module.endswith(_THREE_BY_THREE):
        return 3
    one = module.endswith(_ONE_BY_ONE) or (family == "sd15" and module.endswith(_ONE_BY_ONE_SD1))
    return 1 if one else None


def unet_rules(levels: int, resnets: int, levels_up_with_attention: frozenset[int]) -> list[Rule]:
    """All rules of one UNet: ``levels`` resolutions with ``resnets`` resnets each on the way down."""
    per_level = resnets + 1

    def down(sub: int) -> Callable[[int, int], str | None]:
        return lambda x, i: f"input_blocks.{1 + per_level * x + i}.{sub}" if i < resnets and x < levels else None

    def up(sub: int) -> Callable[[int, int], str | None]:
        return lambda x, i: f"output_blocks.{per_level * x + i}.{sub}" if i < per_level and x < levels else None

    def downsampler(x: int) -> str:
        return f"input_blocks.{per_level * (x + 1)}.0.op"

    def upsampler(x: int) -> str:
        return f"output_blocks.{per_level * x + resnets}.{2 if x in levels_up_with_attention else 1}.conv"

    rules = _attention_rules("down_blocks.{}.attentions.{}", down(1)) + _resnet_rules(
        "down_blocks.{}.resnets.{}", down(0)
    )
    rules += _attention_rules("up_blocks.{}.attentions.{}", up(1)) + _resnet_rules("up_blocks.{}.resnets.{}", up(0))
    rules += _attention_rules("mid_block.attentions.{}", lambda i: "middle_block.1" if i == 0 else None)
    rules += _resnet_rules("mid_block.resnets.{}", lambda i: f"middle_block.{2 * i}" if i < 2 else None)
    rules += [
        Rule("down_blocks.{}.downsamplers.0.conv", downsampler),
        Rule("up_blocks.{}.upsamplers.0.conv", upsampler),
    ]
    return rules + rename(_BASIC) + _native_rules()


def _attention_rules(frame: str, place: Callable[..., str | None]) -> list[Rule]:
    rules = [_joined(f"{frame}.{name}", place, name) for name in _ATTENTION]
    for name in _BLOCK:
        spellings = (name, "attn1.to_out", "attn2.to_out") if name.endswith("to_out.0") else (name,)
        for spelling in spellings:
            if spelling == name or name.startswith(spelling):
                rules.append(_joined(f"{frame}.transformer_blocks.{{}}.{spelling}", place, name, depth=True))
    return rules


def _resnet_rules(frame: str, place: Callable[..., str | None]) -> list[Rule]:
    return [_joined(f"{frame}.{theirs}", place, ours) for theirs, ours in _RESNET]


def _joined(pattern: str, place: Callable[..., str | None], name: str, depth: bool = False) -> Rule:
    def target(*numbers: int) -> str | None:
        head = place(*(numbers[:-1] if depth else numbers))
        middle = f".transformer_blocks.{numbers[-1]}" if depth else ""
        return None if head is None else f"{head}{middle}.{name}"

    return Rule(pattern, target)


def _native_rules() -> list[Rule]:
    rules = []
    for frame in ("input_blocks.{}.{}", "output_blocks.{}.{}", "middle_block.{}"):
        rules += same(*(f"{frame}.{name}" for name in _ATTENTION))
        rules += same(*(f"{frame}.{ours}" for _, ours in _RESNET))
        rules += same(*(f"{frame}.transformer_blocks.{{}}.{name}" for name in _BLOCK))
    rules += same("input_blocks.{}.0.op", "output_blocks.{}.{}.conv")
    return rules + same(*sorted({ours for _, ours in _BASIC}))


def sd_rules() -> list[Rule]:
    """SD1.x and SD2.x: four levels of two resnets; the lowest level has no attention."""
    return unet_rules(4, 2, frozenset({1, 2, 3}))


def sdxl_rules() -> list[Rule]:
    """SDXL (and SSD-1B, Vega): three levels of two resnets; the highest level has no attention."""
    return unet_rules(3, 2, frozenset({0, 1}))


def cloneofsimo_order(targets: tuple[str, ...] = ("CrossAttention", "Attention", "GEGLU")) -> list[str]:
    """The 144 linear layers of an SD1.x UNet in the order in which cloneofsimo/lora numbered them (``unet:N``).

    That is the registration order of diffusers 0.9-0.11: down, up, then mid blocks; within a transformer block attn1,
    the feed-forward's GEGLU projection, attn2.
    """
    homes = [f"down_blocks.{x}.attentions.{i}" for x in range(3) for i in range(2)]
    homes += [f"up_blocks.{x}.attentions.{i}" for x in range(1, 4) for i in range(3)] + ["mid_block.attentions.0"]
    attention = "CrossAttention" in targets or "Attention" in targets
    parts = [f"attn1.to_{x}" for x in ("q", "k", "v", "out.0")] if attention else []
    parts += ["ff.net.0.proj"] if "GEGLU" in targets else []
    parts += [f"attn2.to_{x}" for x in ("q", "k", "v", "out.0")] if attention else []
    return [f"{home}.transformer_blocks.0.{part}" for home in homes for part in parts]


def cloneofsimo_text_order(layers: int = 12) -> list[str]:
    """The CLIP text layers of ``text_encoder:N``: transformers registers k, v, q and out in this order."""
    return [
        f"text_model.encoder.layers.{n}.self_attn.{name}"
        for n in range(layers)
        for name in ("k_proj", "v_proj", "q_proj", "out_proj")
    ]
