"""Every spelling trainers give a base's layers, with the name under which ComfyUI itself knows each of them.

What a layer is called by trainers comes from ComfyUI's own LoRA key map where it has such names, and from the tables
below, written from diffusers' classes, where it has none. So a file in any spelling has a twin that ComfyUI reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

PREFIX = "diffusion_model."


@dataclass(frozen=True)
class Place:
    """A layer, or some ``rows`` of it, as one module of a LoRA file.

    ``stem``: ComfyUI's own name of it in files; ``path``: how trainers name it, with dots; ``module``: the layer's
    name in the network; ``shape`` (out, in, *k) of the rows, or (n,) of a norm; ``swapped``: its two halves are stored
    the other way round.
    """

    stem: str
    path: str
    module: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None
    swapped: bool = False
    bias: bool = False

    @property
    def whole(self) -> bool:
        return self.rows is None and not self.swapped


@dataclass(frozen=True)
class Form:
    """A column: ``spell`` gives a place's stem in the file, ``suffixes`` its factors' endings (role → ending)."""

    name: str
    spell: Callable[[str], str]
    suffixes: Mapping[str, str]
    trainers: bool = True  # trainers' names of the layers, or the network's own
    unets: bool | None = None  # only for UNets, only for others, or for all
    lacks: tuple[str, ...] = ()  # kinds that nobody writes so


_TUCKER = ("LoCon, Tucker",)
_LYCORIS_DORA = ("DoRA, input axis", "DoRA on LoHa", "DoRA on LoKr")
KOHYA = {"down": ".lora_down.weight", "up": ".lora_up.weight", "mid": ".lora_mid.weight", "bias": ".diff_b"}
LETTERS = {"down": ".lora_A.weight", "up": ".lora_B.weight", "bias": ".diff_b"}
PEFT = {**LETTERS, "dora_scale": ".lora_magnitude_vector", "bias": ".lora_B.bias"}
PEFT_NAMED = {
    "down": ".lora_A.default.weight",
    "up": ".lora_B.default.weight",
    "dora_scale": ".lora_magnitude_vector.default.weight",
    "bias": ".lora_B.default.bias",
}
PROCESSOR = {"down": "_lora.down.weight", "up": "_lora.up.weight", "bias": ".diff_b"}
LINEAR_LAYER = {"down": ".lora_linear_layer.down.weight", "up": ".lora_linear_layer.up.weight", "bias": ".diff_b"}


def _under(prefix: str) -> Callable[[str], str]:
    return lambda path: prefix + path.replace(".", "_")


def _dotted(prefix: str) -> Callable[[str], str]:
    return lambda path: prefix + path


def _processor(prefix: str) -> Callable[[str], str]:
    """diffusers of 2023: attention layers inside processors, ``to_out`` without its number."""
    return lambda path: prefix + re.sub(r"\.(to_[qkv]|to_out)(\.0)?$", r".processor.\1", path)


FORMS: tuple[Form, ...] = (
    Form("ComfyUI, AI-Toolkit", _dotted("diffusion_model."), LETTERS, trainers=False, lacks=_TUCKER),
    Form("checkpoint names", _dotted("model.diffusion_model."), KOHYA, trainers=False),
    Form("kohya", _under("lora_unet_"), KOHYA, trainers=False),
    Form("kohya, diffusers names", _under("lora_unet_"), KOHYA, unets=True),
    Form("diffusers", _dotted("unet."), LETTERS, unets=True, lacks=_TUCKER),
    Form("diffusers", _dotted("transformer."), LETTERS, unets=False, lacks=_TUCKER),
    Form("diffusers 2023, processors", _processor("unet."), PROCESSOR, unets=True, lacks=_TUCKER),
    Form("diffusers 2023, layers", _dotted("unet."), LINEAR_LAYER, unets=True, lacks=_TUCKER),
    Form("PEFT", _dotted("base_model.model."), PEFT, lacks=_TUCKER + _LYCORIS_DORA),
    Form("PEFT, named adapter", _dotted("base_model.model."), PEFT_NAMED, lacks=_TUCKER + _LYCORIS_DORA),
    Form("LyCORIS", _under("lycoris_"), KOHYA),
    Form("OneTrainer", _under("lora_transformer_"), KOHYA, unets=False),
    Form("no prefix", _dotted(""), LETTERS, lacks=_TUCKER),
)

# How diffusers calls a layer → the network's own name, for the bases of which ComfyUI has no such names.
_WAN = (
    *((f"blocks.{{}}.attn1.to_{x}", f"blocks.{{}}.self_attn.{x}") for x in "qkv"),
    *((f"blocks.{{}}.attn2.to_{x}", f"blocks.{{}}.cross_attn.{x}") for x in "qkv"),
    ("blocks.{}.attn1.to_out.0", "blocks.{}.self_attn.o"),
    ("blocks.{}.attn2.to_out.0", "blocks.{}.cross_attn.o"),
    ("blocks.{}.ffn.net.0.proj", "blocks.{}.ffn.0"),
    ("blocks.{}.ffn.net.2", "blocks.{}.ffn.2"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    ("proj_out", "head.head"),
)
_FLUX2 = (
    ("transformer_blocks.{}.ff.linear_in", "double_blocks.{}.img_mlp.0"),
    ("transformer_blocks.{}.ff.linear_out", "double_blocks.{}.img_mlp.2"),
    ("transformer_blocks.{}.ff_context.linear_in", "double_blocks.{}.txt_mlp.0"),
    ("transformer_blocks.{}.ff_context.linear_out", "double_blocks.{}.txt_mlp.2"),
    ("single_transformer_blocks.{}.attn.to_qkv_mlp_proj", "single_blocks.{}.linear1"),
    ("single_transformer_blocks.{}.attn.to_out", "single_blocks.{}.linear2"),
    ("double_stream_modulation_img.linear", "double_stream_modulation_img.lin"),
    ("double_stream_modulation_txt.linear", "double_stream_modulation_txt.lin"),
    ("single_stream_modulation.linear", "single_stream_modulation.lin"),
    ("time_guidance_embed.timestep_embedder.linear_1", "time_in.in_layer"),
    ("time_guidance_embed.timestep_embedder.linear_2", "time_in.out_layer"),
    ("x_embedder", "img_in"),
    ("context_embedder", "txt_in"),
    ("proj_out", "final_layer.linear"),
)
_TABLES = {"wan": _WAN, "flux2": _FLUX2}
_AS_FLUX1 = re.compile(r"transformer_blocks\.\d+\.attn\.|norm_out\.")  # named in FLUX.2 as ComfyUI has them of FLUX.1


def places_of(model: Any, family: str) -> tuple[list[Place], list[Place]]:
    """(by the network's own names, by trainers' names) of a MODEL's matrices, kernels and norms."""
    import comfy.lora

    state = {name: tuple(value.shape) for name, value in model.model.state_dict().items()}
    key_map = comfy.lora.model_lora_keys_unet(model.model, {})
    found = [place for stem, target in key_map.items() if (place := _place(stem, target, state)) is not None]
    own = [p for p in found if p.whole and p.stem == PREFIX + p.module]
    return own, _unique(_by_trainers(found, own, family))


def _place(stem: str, target: Any, state: Mapping[str, tuple[int, ...]]) -> Place | None:
    weight, offset, function = target if isinstance(target, tuple) and len(target) == 3 else (*_pair(target), None)
    if weight not in state or not weight.endswith(".weight"):
        return None
    shape, rows = state[weight], None
    if offset is not None:
        rows = (offset[1], offset[1] + offset[2])
        if offset[0] != 0 or rows[1] > shape[0]:  # ComfyUI maps rows that some bases do not have
            return None
        shape = (offset[2], *shape[1:])
    module = weight.removeprefix(PREFIX).removesuffix(".weight")
    has_bias = f"{PREFIX}{module}.bias" in state and rows is None and function is None
    return Place(stem, _path(stem), module, shape, rows, function is not None, has_bias)


def _pair(target: Any) -> tuple[str, Any]:
    return (target, None) if isinstance(target, str) else (target[0], target[1])


def _path(stem: str) -> str:
    for prefix in ("transformer.", "unet.", PREFIX):
        if stem.startswith(prefix):
            path = stem.removeprefix(prefix)
            path = f"{path}.0" if path.endswith(".processor.to_out") else path
            return path.replace(".processor.", ".")
    return ""


def _by_trainers(found: list[Place], own: list[Place], family: str) -> list[Place]:
    if family in _TABLES:
        alike = [place for place in found if place.stem.startswith("transformer.") and _AS_FLUX1.match(place.path)]
        return [*alike, *_translated(own, _TABLES[family])]
    for prefix in ("transformer.", "unet."):
        named = [place for place in found if place.stem.startswith(prefix)]
        if named:
            return named
    modules = {place.path for place in own}
    other = [p for p in found if p.stem.startswith(PREFIX) and not p.stem.endswith("_qkv") and p.path not in modules]
    taken = {place.module for place in other}
    return [*other, *(place for place in own if place.module not in taken)]


def _translated(own: list[Place], table: tuple[tuple[str, str], ...]) -> list[Place]:
    result = []
    for theirs, ours in table:
        pattern = re.compile(re.escape(ours).replace(r"\{\}", r"(\d+)") + r"\Z")
        for place in own:
            match = pattern.match(place.module)
            if match:
                result.append(replace(place, path=theirs.format(*match.groups())))
    return result


def _unique(places: list[Place]) -> list[Place]:
    """One name each: ComfyUI knows some layers by several."""
    return list({(place.module, place.rows): place for place in reversed(places)}.values())[::-1]
