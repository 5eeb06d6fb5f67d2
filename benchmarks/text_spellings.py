"""How trainers spell the layers of text encoders, and small random adapters for them.

A spelling is a prefix for each encoder of a base, dots or underscores behind it, and names for the factors. What stands
here was read in the trainers' own sources: kohya's sd-scripts, OneTrainer, diffusers, PEFT.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BETWEEN = ".transformer."
KOHYA = {"down": ".lora_down.weight", "up": ".lora_up.weight", "alpha": ".alpha"}
PEFT = {"down": ".lora_A.weight", "up": ".lora_B.weight"}
NAMED = {"down": ".lora_A.mine.weight", "up": ".lora_B.mine.weight"}
OLD = {"down": ".lora_linear_layer.down.weight", "up": ".lora_linear_layer.up.weight"}


@dataclass(frozen=True)
class Spelling:
    """``prefixes``: encoder → prefix of its layers' names; ``inner``: how they begin → what that becomes."""

    prefixes: dict[str, str]
    flat: bool = False
    suffixes: dict[str, str] | None = None
    inner: tuple[str, str] = ("", "")

    def stem(self, weight: str) -> str:
        """The file's name of ``clip_l.transformer.text_model.….q_proj`` (no ``.weight``)."""
        encoder, _, path = weight.partition(BETWEEN)
        if self.inner[0] and path.startswith(self.inner[0]):
            path = self.inner[1] + path.removeprefix(self.inner[0])
        return self.prefixes[encoder] + (path.replace(".", "_") if self.flat else path)

    @property
    def factors(self) -> dict[str, str]:
        return self.suffixes or (KOHYA if self.flat else PEFT)


def _numbered(*encoders: str, first: str = "lora_te1_") -> dict[str, str]:
    """kohya's and OneTrainer's numbers, in the order given; "" leaves a number out."""
    named = {encoder: f"lora_te{number}_" for number, encoder in enumerate(encoders, start=1) if encoder}
    return {**named, encoders[0]: first}


def _dotted(*encoders: str) -> dict[str, str]:
    names = ("text_encoder.", "text_encoder_2.", "text_encoder_3.", "text_encoder_4.")
    return dict(zip(encoders, names, strict=False))


_BARE = "lora_te_"
_NO_MODEL = ("model.", "")
_VISION = ("model.", "model.language_model.")


def _llm(name: str) -> dict[str, Spelling]:
    """One language model: kohya trains it without its head, diffusers and PEFT with or without."""
    return {
        "kohya lora_te_": Spelling({name: _BARE}, flat=True, inner=_NO_MODEL),
        "OneTrainer lora_te_model_": Spelling({name: _BARE}, flat=True),
        "diffusers text_encoder.": Spelling(_dotted(name), inner=_NO_MODEL),
        "diffusers text_encoder.model.": Spelling(_dotted(name)),
        "PEFT base_model.model.": Spelling({name: "base_model.model."}),
        "ComfyUI, without the encoder's name": Spelling({name: "text_encoders.transformer."}, suffixes=KOHYA),
    }


def _t5(name: str) -> dict[str, Spelling]:
    return {
        "OneTrainer lora_te_": Spelling({name: _BARE}, flat=True),
        "ComfyUI lora_te1_": Spelling({name: "lora_te1_"}, flat=True),
        "diffusers text_encoder.": Spelling(_dotted(name)),
        "PEFT base_model.model.": Spelling({name: "base_model.model."}),
    }


def _clip(name: str) -> dict[str, Spelling]:
    return {
        "kohya lora_te_": Spelling({name: _BARE}, flat=True),
        "diffusers text_encoder.": Spelling(_dotted(name)),
        "diffusers 2023": Spelling(_dotted(name), suffixes=OLD),
        "diffusers 5, without text_model.": Spelling(_dotted(name), inner=("text_model.", "")),
        "PEFT base_model.model.": Spelling({name: "base_model.model."}),
        "PEFT, adapter with a name": Spelling({name: "base_model.model."}, suffixes=NAMED),
    }


# architecture → spellings by name; ComfyUI's own, the reference, goes with all
SPELLINGS: dict[str, dict[str, Spelling]] = {
    "SD1.5": _clip("clip_l"),
    "SD2": _clip("clip_h"),
    "SDXL refiner": {"kohya lora_te_": Spelling({"clip_g": _BARE}, flat=True)},
    "Stable Cascade": {"kohya lora_prior_te_": Spelling({"clip_g": "lora_prior_te_"}, flat=True)},
    "SDXL": {
        "kohya lora_te1_, te2_": Spelling(_numbered("clip_l", "clip_g"), flat=True),
        "diffusers text_encoder.": Spelling(_dotted("clip_l", "clip_g")),
        "diffusers 2023": Spelling(_dotted("clip_l", "clip_g"), suffixes=OLD),
    },
    "SD3": {
        "kohya lora_te1_, te2_, te3_": Spelling(_numbered("clip_l", "clip_g", "t5xxl"), flat=True),
        "diffusers text_encoder.": Spelling(_dotted("clip_l", "clip_g", "t5xxl")),
    },
    "FLUX": {
        "kohya lora_te1_, te3_": Spelling(_numbered("clip_l", "", "t5xxl"), flat=True),
        "OneTrainer lora_te1_, te2_": Spelling(_numbered("clip_l", "t5xxl"), flat=True),
        "diffusers text_encoder.": Spelling(_dotted("clip_l", "t5xxl")),
    },
    "HiDream": {
        "OneTrainer lora_te1_ to te4_": Spelling(_numbered("clip_l", "clip_g", "t5xxl", "llama"), flat=True),
        "diffusers text_encoder.": Spelling(_dotted("clip_l", "clip_g", "t5xxl", "llama")),
    },
    "HunyuanVideo": {
        "OneTrainer lora_te1_, te2_": Spelling(_numbered("llama", "clip_l"), flat=True, inner=_NO_MODEL),
        "diffusers text_encoder.": Spelling(_dotted("llama", "clip_l")),
    },
    "Chroma, LTX-Video": _t5("t5xxl"),
    "PixArt": _t5("t5xxl"),
    "AuraFlow": _t5("pile_t5xl"),
    "Wan": _t5("umt5xxl"),
    "Qwen-Image": {
        **_llm("qwen25_7b"),
        "diffusers text_encoder.model.language_model.": Spelling(_dotted("qwen25_7b"), inner=_VISION),
    },
    "Lumina 2": _llm("gemma2_2b"),
    "Z-Image": _llm("qwen3_4b"),
    "FLUX.2 dev": _llm("mistral3_24b"),
    "FLUX.2 klein": _llm("qwen3_4b"),
    "Anima": _llm("qwen3_06b"),
}
COMFY = "ComfyUI text_encoders."


def comfy_spelling(encoders: list[str]) -> Spelling:
    """ComfyUI's generic names, which it reads for every text encoder."""
    return Spelling({name: f"text_encoders.{name}{BETWEEN}" for name in encoders}, suffixes=KOHYA)


def _matrix(*shape: int, seed: str) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(zlib.crc32(seed.encode()))) * 0.2


RANK = 4
Parts = Iterator[tuple[str, Tensor]]


def _lora(out: int, wide: int, seed: str) -> Parts:
    yield "down", _matrix(RANK, wide, seed=f"{seed}d")
    yield "up", _matrix(out, RANK, seed=f"{seed}u")


def _lora_alpha(out: int, wide: int, seed: str) -> Parts:
    yield from _lora(out, wide, seed)
    yield ".alpha", torch.tensor(2.0)


def _loha(out: int, wide: int, seed: str) -> Parts:
    for n in (1, 2):
        yield f".hada_w{n}_a", _matrix(out, RANK, seed=f"{seed}{n}a")
        yield f".hada_w{n}_b", _matrix(RANK, wide, seed=f"{seed}{n}b")
    yield ".alpha", torch.tensor(2.0)


def _lokr(out: int, wide: int, seed: str) -> Parts:
    yield ".lokr_w1", _matrix(4, 4, seed=f"{seed}1")
    yield ".lokr_w2_a", _matrix(out // 4, RANK, seed=f"{seed}2a")
    yield ".lokr_w2_b", _matrix(RANK, wide // 4, seed=f"{seed}2b")
    yield ".alpha", torch.tensor(2.0)


def _dora(out: int, wide: int, seed: str) -> Parts:
    yield from _lora_alpha(out, wide, seed)
    yield ".dora_scale", _matrix(out, 1, seed=f"{seed}s").abs() + 0.5


def _magnitude(out: int, wide: int, seed: str) -> Parts:
    """PEFT's DoRA: no alpha, the same numbers without a second dimension."""
    yield from _lora(out, wide, seed)
    yield ".lora_magnitude_vector.weight", (_matrix(out, 1, seed=f"{seed}s").abs() + 0.5).flatten()


def _glora(out: int, wide: int, seed: str) -> Parts:
    shapes = {"a1": (RANK, wide), "a2": (wide, RANK), "b1": (RANK, wide), "b2": (out, RANK)}
    for role, shape in shapes.items():
        yield f".{role}.weight", _matrix(*shape, seed=f"{seed}{role}")
    yield ".alpha", torch.tensor(2.0)


def _oft(out: int, wide: int, seed: str) -> Parts:
    blocks = _matrix(4, out // 4, out // 4, seed=seed) * 0.1
    yield ".oft_blocks", blocks - blocks.transpose(1, 2)
    yield ".alpha", torch.tensor(1e-3)


def _diff(out: int, wide: int, seed: str) -> Parts:
    yield ".diff", _matrix(out, wide, seed=seed)


def _diff_and_bias(out: int, wide: int, seed: str) -> Parts:
    yield ".diff", _matrix(out, wide, seed=seed)
    yield ".diff_b", _matrix(out, seed=f"{seed}b")


def _set(out: int, wide: int, seed: str) -> Parts:
    yield ".set_weight", _matrix(out, wide, seed=seed)


ADAPTERS: dict[str, Callable[[int, int, str], Parts]] = {
    "lora": _lora, "lora, alpha": _lora_alpha, "loha": _loha, "lokr": _lokr, "dora": _dora, "dora, PEFT": _magnitude,
    "glora": _glora, "oft": _oft, "diff": _diff, "diff and bias": _diff_and_bias, "set": _set,
}  # fmt: skip
# The change needs the base weight: only ComfyUI's own patches make it
OF_THE_BASE = ("dora", "dora, PEFT", "glora", "oft", "set")


def file_of(layers: dict[str, tuple[int, int]], spelling: Spelling, adapter: str) -> dict[str, Tensor]:
    """The tensors of a file that changes ``layers`` (weight without ``.weight`` → (out, in))."""
    made: dict[str, Tensor] = {}
    for weight, (out, wide) in layers.items():
        for role, value in ADAPTERS[adapter](out, wide, weight):
            made[spelling.stem(weight) + spelling.factors.get(role, role)] = value
    return made


def as_stock(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """PEFT's magnitudes as ComfyUI stores them; all else is its own form already."""
    mark = ".lora_magnitude_vector.weight"
    return {
        name.replace(mark, ".dora_scale"): value.reshape(-1, 1) if name.endswith(mark) else value
        for name, value in tensors.items()
    }
