"""Text encoders of every base, built by ComfyUI's own classes with random weights: few layers, real names.

CLIP keeps its real widths, because a file tells CLIP-L from CLIP-G by them. Needs ``comfy`` importable in this process.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch

WORDS = 64  # tokens an embedding knows; real tables would be most of the memory
_CLIP = {"num_hidden_layers": 3, "intermediate_size": 64}
_T5 = {"num_layers": 2, "d_model": 64, "d_ff": 96, "d_kv": 16, "num_heads": 4, "vocab_size": WORDS}
_LLM = {
    "num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": WORDS,
}  # fmt: skip
_NAMES_T5 = ("t5xxl", "umt5xxl", "pile_t5xl")
_NAMES_LLM = ("llama", "qwen25_7b", "qwen3_4b", "qwen3_06b", "gemma2_2b", "mistral3_24b")
# FLUX.2 reads its states from the middle of a deep model: those layers have to be there.
_DEEP = {"mistral3_24b": 31, "klein": 28}
Make = Callable[..., Any]


def _of(module: str, name: str, **given: Any) -> Make:
    """A class of ComfyUI's, or what a factory of that module makes of ``given``."""
    found = getattr(importlib.import_module(module), name)
    return found if isinstance(found, type) and not given else found(**given)


# architecture → (how ComfyUI makes its text encoders, the names tokens go under)
ARCHITECTURES: dict[str, tuple[Callable[[], Make], tuple[str, ...]]] = {
    "SD1.5": (partial(_of, "comfy.sd1_clip", "SD1ClipModel"), ("l",)),
    "SD2": (partial(_of, "comfy.text_encoders.sd2_clip", "SD2ClipModel"), ("h",)),
    "SDXL": (partial(_of, "comfy.sdxl_clip", "SDXLClipModel"), ("l", "g")),
    "SDXL refiner": (partial(_of, "comfy.sdxl_clip", "SDXLRefinerClipModel"), ("g",)),
    "Stable Cascade": (partial(_of, "comfy.sdxl_clip", "StableCascadeClipModel"), ("g",)),
    "SD3": (partial(_of, "comfy.text_encoders.sd3_clip", "SD3ClipModel"), ("l", "g", "t5xxl")),
    "FLUX": (partial(_of, "comfy.text_encoders.flux", "FluxClipModel"), ("l", "t5xxl")),
    "Chroma, LTX-Video": (partial(_of, "comfy.text_encoders.genmo", "mochi_te", dtype_t5=None), ("t5xxl",)),
    "PixArt": (partial(_of, "comfy.text_encoders.pixart_t5", "pixart_te", dtype_t5=None), ("t5xxl",)),
    "AuraFlow": (partial(_of, "comfy.text_encoders.aura_t5", "AuraT5Model"), ("pile_t5xl",)),
    "Wan": (partial(_of, "comfy.text_encoders.wan", "te", dtype_t5=None), ("umt5xxl",)),
    "HiDream": (partial(_of, "comfy.text_encoders.hidream", "HiDreamTEModel"), ("l", "g", "t5xxl", "llama")),
    "HunyuanVideo": (partial(_of, "comfy.text_encoders.hunyuan_video", "HunyuanVideoClipModel"), ("l", "llama")),
    "Qwen-Image": (partial(_of, "comfy.text_encoders.qwen_image", "te", dtype_llama=None), ("qwen25_7b",)),
    "Lumina 2": (partial(_of, "comfy.text_encoders.lumina2", "te", dtype_llama=None), ("gemma2_2b",)),
    "Z-Image": (partial(_of, "comfy.text_encoders.z_image", "te", dtype_llama=None), ("qwen3_4b",)),
    "FLUX.2 dev": (partial(_of, "comfy.text_encoders.flux", "flux2_te", dtype_llama=None), ("mistral3_24b",)),
    "FLUX.2 klein": (partial(_of, "comfy.text_encoders.flux", "klein_te", dtype_llama=None), ("qwen3_4b",)),
    "Anima": (partial(_of, "comfy.text_encoders.anima", "te", dtype_llama=None), ("qwen3_06b", "t5xxl")),
}


def known() -> list[str]:
    """The architectures whose text encoders this ComfyUI has."""
    found = []
    for name, (make, _) in ARCHITECTURES.items():
        try:
            make()
        except (ImportError, AttributeError):  # FLUX.2 klein and Anima came later than ComfyUI 0.3.75
            continue
        found.append(name)
    return found


def text_encoders(architecture: str, seed: int = 0) -> Any:
    """A ``comfy.sd.CLIP`` in float32 on the CPU."""
    import comfy.sd

    make = ARCHITECTURES[architecture][0]()
    target = SimpleNamespace(params={}, clip=partial(_made, make), tokenizer=_NoTokenizer)
    options: dict[str, Any] = {"dtype": torch.float32, "clip_l_model_config": dict(_CLIP)}
    options |= {f"{name}_model_config": dict(_CLIP) for name in ("clip_g", "clip_h")}
    options |= {f"{name}_model_config": dict(_T5) for name in _NAMES_T5}
    deep = {name: {"num_hidden_layers": layers} for name, layers in _DEEP.items()}
    options |= {f"{name}_model_config": {**_LLM, **deep.get(name, {})} for name in _NAMES_LLM}
    if architecture == "SD3":  # its T5 states stand beside the CLIP's, which are filled up to 4096
        options["t5xxl_model_config"] = {**_T5, "d_model": 4096, "d_ff": 32}
    if architecture == "FLUX.2 klein":
        options["qwen3_4b_model_config"] = {**_LLM, **deep["klein"]}
    with _small_vision():
        clip = comfy.sd.CLIP(target, model_options=options)
    clip.cond_stage_model.load_state_dict(_random(clip.cond_stage_model, seed))
    return clip


def encode(clip: Any, architecture: str) -> dict[str, Any]:
    """What the CLIP makes of some fixed tokens, all tensors by name; ComfyUI loads and patches it for that."""
    import comfy.model_management

    names = ARCHITECTURES[architecture][1]
    rows = {name: [(7 * place % WORDS, 1.0) for place in range(1, 78 if name in "lgh" else 9)] for name in names}
    with torch.inference_mode():
        out = clip.encode_from_tokens({name: [row] for name, row in rows.items()}, return_dict=True)
    comfy.model_management.unload_all_models()
    return {name: value.clone() for name, value in out.items() if isinstance(value, torch.Tensor)}


class _NoTokenizer:
    """Tokens are given as numbers: some tokenizers live in the checkpoint, which we have not."""

    def __init__(self, **given: Any):
        pass


def _made(make: Make, **given: Any) -> Any:
    model = make(**given)
    for module in model.modules():
        embeddings = getattr(module, "token_embedding", None)
        if embeddings is not None and embeddings.num_embeddings > WORDS:
            width = embeddings.embedding_dim
            module.token_embedding = type(embeddings)(WORDS, width, dtype=torch.float32, device="cpu")
    return model


@contextmanager
def _small_vision() -> Iterator[None]:
    """Qwen2.5-VL's picture half has sizes of its own that no configuration reaches; no LoRA of ours changes it."""
    import comfy.text_encoders.qwen_vl as qwen_vl

    whole = qwen_vl.Qwen2VLVisionTransformer
    try:
        qwen_vl.Qwen2VLVisionTransformer = lambda **given: whole(
            **{**given, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "num_layers": 1}
        )
        yield
    finally:
        qwen_vl.Qwen2VLVisionTransformer = whole


def _random(model: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Loud enough that every layer tells in what comes out; norms near one."""
    generator, made = torch.Generator().manual_seed(seed), {}
    for name, value in model.state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        flat = value.ndim < 2
        made[name] = 1 + 0.1 * noise if flat and name.endswith("weight") else noise * (0.1 if flat else _gain(value))
    return made


def _gain(value: torch.Tensor) -> float:
    return 1.0 / value[0].numel() ** 0.5
