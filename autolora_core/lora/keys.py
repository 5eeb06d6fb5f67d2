"""Tensor names of LoRA files: which trainer's spelling, which half of the model, which module, which factor.

A key is split from both ends. The *suffix table* says what the tensor is (``down``, ``up``, ``alpha`` …), the *form
table* says in whose spelling the module is written. Both are ordered and the first match wins. Module paths stay as the
file writes them; ``names.py`` turns them into the base model's own names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

# Every file of a family has the same keys: SDXL about 2,200, with text encoders 3,000.
KEPT_KEYS = 1 << 15

# (regular expression at the end of the key, role). First match wins.
_ADAPTER = r"(?:\.[A-Za-z0-9_-]+)?"  # PEFT puts the adapter's name ("default") before ".weight"
SUFFIXES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern + r"\Z"), role)
    for pattern, role in (
        (r"[._]lora(?:\.|_linear_layer\.)down\.weight", "down"),  # diffusers 2023: _lora.down, .lora.down
        (r"[._]lora(?:\.|_linear_layer\.)up\.weight", "up"),
        (r"\.lora_down(?:\.weight)?", "down"),  # kohya, LyCORIS, ComfyUI
        (r"\.lora_up(?:\.weight)?", "up"),
        (r"\.lora_mid(?:\.weight)?", "mid"),
        (r"\.lora_up\.bias", "bias"),
        (rf"\.lora_A{_ADAPTER}\.weight|\.lora_A", "down"),  # PEFT, diffusers, BFL; Mochi has no ".weight"
        (rf"\.lora_B{_ADAPTER}\.weight|\.lora_B", "up"),
        (rf"\.lora_B{_ADAPTER}\.bias", "bias"),
        (rf"\.lora_magnitude_vector{_ADAPTER}(?:\.weight)?", "magnitude"),
        (r"\.lora_embedding_A(?:\.[A-Za-z0-9_-]+)?", "embedding_down"),
        (r"\.lora_embedding_B(?:\.[A-Za-z0-9_-]+)?", "embedding_up"),
        (rf"\.lora_E{_ADAPTER}(?:\.weight)?", "adalora_e"),
        (rf"\.ranknum{_ADAPTER}", "adalora_ranknum"),
        (r"\.(?:oft_r|oft_R)(?:\.[A-Za-z0-9_-]+)?(?:\.weight)?", "oft_r"),
        (r"\.boft_(?:R|s)(?:\.[A-Za-z0-9_-]+)?", "boft"),
        (r"\.ia3_l(?:\.[A-Za-z0-9_-]+)?", "ia3"),
        (r"\.vera_lambda_[bd](?:\.[A-Za-z0-9_-]+)?", "vera"),
        (r"\.down\.weight", "down"),  # XLabs
        (r"\.up\.weight", "up"),
        (r":down", "down"),  # cloneofsimo
        (r":up", "up"),
        (r"\.alpha", "alpha"),
        (r"\.dora_scale", "dora_scale"),
        (r"\.(hada_w1_a|hada_w1_b|hada_w2_a|hada_w2_b|hada_t1|hada_t2)", ""),
        (r"\.(lokr_w1_a|lokr_w1_b|lokr_w1|lokr_w2_a|lokr_w2_b|lokr_w2|lokr_t2)", ""),
        (r"\.(oft_blocks|oft_diag|rescale|on_input)", ""),
        (r"\.(a1|a2|b1|b2)\.weight", ""),  # GLoRA
        (r"\.(bias_indices|bias_values|bias_size)", ""),  # LyCORIS sparse bias
        (r"\.(diff_b|diff|set_weight|w_norm|b_norm|reshape_weight|scalar)", ""),
        (r"\.(query_norm|key_norm)\.scale", "set_norm"),  # BFL control LoRA: norm scales to put in place
    )
)

# Keys that carry no update of a layer, with the reason they are set aside.
IGNORED: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"(?:^|\.)(?:bundle_emb|emb_params|string_to_param|learned_embeds)\b"),
        "a textual inversion embedding",
    ),
    (re.compile(r"^<.*>$"), "a textual inversion embedding (cloneofsimo)"),
    (re.compile(r"^(?:clip_l|clip_g|t5xxl)$"), "a textual inversion embedding"),
    (re.compile(r"^lora_controlnet$"), "the mark of a control LoRA"),
    (re.compile(r"\.num_batches_tracked$|(?:^|\.)(?:global_step|epoch|step)$"), "a training counter"),
    (re.compile(r"(?:^|[._])(?:__index_map__|adapter_name|lora_scale|network_type)$"), "a note of the trainer"),
)


@dataclass(frozen=True)
class KeyForm:
    """One spelling of module names: ``pattern`` has a group ``path``; ``half`` is where the module lives."""

    name: str
    pattern: re.Pattern[str]
    half: str  # "model", or "text" with a slot number
    slot: int = 0


def _form(name: str, pattern: str, half: str = "model", slot: int = 0) -> KeyForm:
    return KeyForm(name, re.compile(pattern), half, slot)


_TEXT_PATH = r"(?P<path>(?:text_model|encoder\.block|encoder\.layers|shared|final_layer_norm|text_projection)\b.*)"
# A language model inside its head; ACE-Step's own layers have such names too, but nothing around them.
_LLM_PATH = r"(?P<path>(?:model\.|language_model\.)+layers\.\d+\.(?:self_attn|mlp)\..*)"

# Adding a spelling is adding a line. Order matters: longer prefixes first.
FORMS: tuple[KeyForm, ...] = (
    _form("cloneofsimo", r"^(?P<path>unet:\d+)$"),
    _form("cloneofsimo", r"^(?P<path>text_encoder:\d+)$", "text", 1),
    _form("wan-fun", r"^lora_unet__(?P<path>.+)$"),
    _form("kohya", r"^lora_unet_(?P<path>.+)$"),
    _form("kohya", r"^lora_te_(?P<path>.+)$", "text", 0),
    _form("kohya", r"^lora_te1_(?P<path>.+)$", "text", 1),
    _form("kohya", r"^lora_te2_(?P<path>.+)$", "text", 2),
    _form("kohya", r"^lora_te3_(?P<path>.+)$", "text", 3),
    _form("kohya", r"^lora_te4_(?P<path>.+)$", "text", 4),
    _form("kohya-cascade", r"^lora_prior_unet_(?P<path>.+)$"),
    _form("kohya-cascade", r"^lora_prior_te_(?P<path>.+)$", "text", 0),
    _form("onetrainer", r"^lora_transformer_(?P<path>.+)$"),
    _form("lycoris", r"^lycoris_(?P<path>.+)$"),
    _form("peft", r"^unet\.base_model\.model\.(?P<path>.+)$"),
    _form("peft", r"^(?:base_model\.model\.)text_encoder(?:_1)?\.(?P<path>.+)$", "text", 1),
    _form("peft", r"^base_model\.model\." + _TEXT_PATH + "$", "text", 1),
    _form("peft", r"^base_model\.model\." + _LLM_PATH + "$", "text", 1),
    _form("peft", r"^base_model\.model\.(?:diffusion_model\.|transformer\.|unet\.|model\.)?(?P<path>.+)$"),
    _form("native", r"^(?:model\.)?diffusion_model\.(?P<path>.+)$"),
    _form("comfy-text", r"^text_encoders\.clip_l\.transformer\.(?P<path>.+)$", "text", 1),
    _form("comfy-text", r"^text_encoders\.clip_g\.transformer\.(?P<path>.+)$", "text", 2),
    _form("comfy-text", r"^text_encoders\.(?:[A-Za-z0-9_]+\.)?transformer\.(?P<path>.+)$", "text", 0),
    _form("diffusers", r"^text_encoder_2\.(?P<path>.+)$", "text", 2),
    _form("diffusers", r"^text_encoder_3\.(?P<path>.+)$", "text", 3),
    _form("diffusers", r"^text_encoder_4\.(?P<path>.+)$", "text", 4),
    _form("diffusers", r"^text_encoder\.(?P<path>.+)$", "text", 1),
    _form("diffusers", r"^(?:transformer|unet|prior|pipe\.dit)\.(?P<path>.+)$"),
    _form("xlabs", r"^(?P<path>(?:double|single)_blocks\.\d+\.processor\..+)$"),
    _form("bare-text", r"^" + _TEXT_PATH + "$", "text", 1),
    _form("bare", r"^(?P<path>.+)$"),
)


@dataclass(frozen=True)
class ParsedKey:
    """``stem`` names the module as the file does; all keys of one module share it."""

    key: str
    stem: str
    role: str
    form: KeyForm
    path: str


@lru_cache(maxsize=KEPT_KEYS)
def ignored_reason(key: str) -> str | None:
    """Why a key carries no layer update, or None when it may carry one."""
    return next((reason for pattern, reason in IGNORED if pattern.search(key)), None)


@lru_cache(maxsize=KEPT_KEYS)
def parse_key(key: str) -> ParsedKey | None:
    """Splits one tensor name; None when no known suffix ends it."""
    for pattern, role in SUFFIXES:
        found = pattern.search(key)
        if found is None:
            continue
        if role == "set_norm":  # here the norm is the module itself
            stem, role = key[: found.end(1)], "set_norm"
        else:
            stem, role = key[: found.start()], role or found.group(1)
        return _with_form(key, stem, role) if stem else None
    return None


def _with_form(key: str, stem: str, role: str) -> ParsedKey | None:
    for form in FORMS:
        found = form.pattern.match(stem)
        if found is not None:
            return ParsedKey(key, stem, role, form, _clean_path(found.group("path")))
    return None


def _clean_path(path: str) -> str:
    """Takes out what diffusers' attention processors and PEFT add inside a path."""
    for noise in ("_orig_mod.", "base_layer."):
        path = path.replace(noise, "")
    return path.replace(".processor.", ".").replace("._orig_mod", "").replace("_processor_to_", "_to_")
