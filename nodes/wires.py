"""What arrives at the inputs MODEL, CLIP and VAE.

ComfyUI compares the names of links' types, and lets through whatever a wildcard, a reroute, a switch or another pack's
node gives under such a name: nothing at all, a thing of another kind, a class that only looks like one. Who connected
it should read which input that is, and not an AttributeError from inside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..autolora_core.errors import InputError

_FIX = (
    "connect the {kind} of a loader (Load Checkpoint, {loader}); where a reroute, a switch or a bypassed node lies "
    "between, look at what goes in there"
)
_LOADERS = {"MODEL": "Load Diffusion Model", "CLIP": "Load CLIP", "VAE": "Load VAE"}


def require_model(given: Any, key: str = "model") -> None:
    """Raise :class:`InputError` for what is no ModelPatcher around a diffusion model."""
    _require(is_model, given, "MODEL", key)


def require_clip(given: Any, key: str = "clip") -> None:
    """Raise :class:`InputError` for what is no CLIP: text encoders with their patcher and tokenizer. No more is asked
    of it than the nodes use: CLIPs of other packs are classes of their own."""
    _require(is_clip, given, "CLIP", key)


def require_patchable_clip(given: Any, key: str = "clip") -> None:
    """:func:`require_clip`, and text encoders that LoRAs can be put on."""
    _require(lambda clip: is_clip(clip) and _takes_loras(clip), given, "CLIP that takes LoRAs", key)


def require_vae(given: Any, key: str = "vae") -> None:
    """Raise :class:`InputError` for what can neither decode nor encode pictures."""
    _require(is_vae, given, "VAE", key)


def is_model(given: Any) -> bool:
    network = _part(_part(given, "model"), "diffusion_model")
    return isinstance(network, torch.nn.Module) and _is_patcher(given)


def is_clip(given: Any) -> bool:
    able = all(callable(_part(given, name)) for name in ("tokenize", "encode_from_tokens_scheduled"))
    patcher = _part(given, "patcher")
    return able and isinstance(_part(patcher, "model"), torch.nn.Module) and isinstance(_part(patcher, "patches"), dict)


def _takes_loras(clip: Any) -> bool:
    return callable(_part(_part(clip, "cond_stage_model"), "state_dict"))


def is_vae(given: Any) -> bool:
    return all(callable(_part(given, name)) for name in ("decode", "encode"))


def _is_patcher(given: Any) -> bool:
    needed = ("clone", "add_patches", "get_attachment", "set_attachments", "get_model_object")
    able = all(callable(_part(given, name)) for name in needed)
    return able and all(isinstance(_part(given, name), dict) for name in ("model_options", "patches"))


def _require(passes: Callable[[Any], bool], given: Any, kind: str, key: str) -> None:
    if passes(given):
        return
    message = f"the input {key} needs a {kind}, but what arrives there is {what_it_is(given)}"
    plain = kind.partition(" ")[0]
    raise InputError(message, key=key, fix=_FIX.format(kind=plain, loader=_LOADERS[plain]))


def what_it_is(given: Any) -> str:
    """In the words of ComfyUI's links where they are known, else the name of the class."""
    if given is None:
        return "nothing (None)"
    if isinstance(given, type):
        return f"the class {given.__name__[:60]}"
    kinds = (
        ("a MODEL", is_model), ("a CLIP", is_clip), ("a CONTROL_NET", _has("control_model")),
        ("a VAE", is_vae), ("a CLIP_VISION", _has("encode_image")), ("a LATENT", _is_latent),
        ("a picture or mask", lambda one: isinstance(one, torch.Tensor)), ("CONDITIONING", _is_conditioning),
    )  # fmt: skip
    found = next((kind for kind, fits in kinds if fits(given)), None)
    if found is None and _part(given, "model") is not None and _is_patcher(given):
        found = f"a {type(given).__name__[:60]} without a diffusion model"
    return found or f"of the type {type(given).__name__[:60]}"


def _has(name: str) -> Callable[[Any], bool]:
    return lambda given: _part(given, name) is not None


def _is_latent(given: Any) -> bool:
    return isinstance(given, dict) and isinstance(given.get("samples"), torch.Tensor)


def _is_conditioning(given: Any) -> bool:
    inside = given[0] if isinstance(given, list) and given else None
    return isinstance(inside, (list, tuple)) and len(inside) == 2 and isinstance(inside[0], torch.Tensor)


def _part(given: Any, name: str) -> Any:
    """An attribute, None where there is none: classes of other packs may raise anything for one."""
    try:
        return getattr(given, name, None)
    except Exception:  # noqa: BLE001
        return None
