"""What goes to ComfyUI's own weight patches, made ready for them: it logs a tensor that does not fit, and goes on.

So sizes are checked here, where the user can be told. A BOFT without constraint, over which it stumbles (it compares
None), gets one of nought.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from comfy.weight_adapter import WeightAdapterBase

from ..autolora_core.errors import FamilyError

_WEIGHTS = {"lora": 6, "loha": 8, "lokr": 9, "glora": 6, "oft": 4, "boft": 4}


def ready(patch: Any, shape: tuple[int, ...], layer: str, source: str) -> Any:
    """The patch to hand to ``add_patches`` for a parameter, or rows of one, of ``shape``.

    Raises ``FamilyError`` where its tensors do not have that size.
    """
    if not isinstance(patch, WeightAdapterBase):
        _require(tuple(patch[1][0].shape) == tuple(shape), [patch[1][0]], shape, layer, source)
        return patch
    if len(patch.weights) != _WEIGHTS.get(patch.name):
        return patch  # of a newer ComfyUI: it knows what to do with it
    _require(_FITS[patch.name](patch.weights, shape), patch.weights, shape, layer, source)
    if patch.name == "boft" and patch.weights[2] is None:
        blocks, rescale, _, magnitude = patch.weights
        return type(patch)(patch.loaded_keys, (blocks, rescale, 0.0, magnitude))
    return patch


def _lora_fits(weights: tuple, shape: tuple[int, ...]) -> bool:
    up, down, _, mid, magnitude, _ = weights
    wide = down[0].numel() if mid is None else down.shape[1] * mid[0, 0].numel()
    return _same(up.shape[0], wide, shape) and _scales(magnitude, shape)


def _loha_fits(weights: tuple, shape: tuple[int, ...]) -> bool:
    w1a, w1b, _, w2a, w2b, core, _, magnitude = weights
    if core is not None:
        return _same(w1a.shape[1], w1b.shape[1] * core[0, 0].numel(), shape) and _scales(magnitude, shape)
    same = _same(w1a.shape[0], w1b.shape[1], shape) and _same(w2a.shape[0], w2b.shape[1], shape)
    return same and _scales(magnitude, shape)


def _lokr_fits(weights: tuple, shape: tuple[int, ...]) -> bool:
    w1, w2, _, w1a, w1b, w2a, w2b, core, magnitude = weights
    a, b = w1.shape if w1 is not None else (w1a.shape[0], w1b.shape[1])
    if w2 is not None:
        c, d = w2.shape[0], w2[0].numel()
    else:
        c, d = (w2a.shape[0], w2b.shape[1]) if core is None else (w2a.shape[1], w2b.shape[1] * core[0, 0].numel())
    return _same(a * c, b * d, shape) and _scales(magnitude, shape)


def _same(out: int, wide: int, shape: tuple[int, ...]) -> bool:
    return out == shape[0] and wide == math.prod(shape[1:])


def _scales(magnitude: torch.Tensor | None, shape: tuple[int, ...]) -> bool:
    return magnitude is None or magnitude.numel() in shape[:2]


def _blocks_fit(weights: tuple, shape: tuple[int, ...]) -> bool:
    """Blocks (n, b, b), or (m, n, b, b) of m butterfly factors; both on the n·b outputs."""
    blocks, rescale = weights[0], weights[1]
    outputs = blocks.shape[-3] * blocks.shape[-2]
    return outputs == shape[0] and (rescale is None or rescale.numel() in (1, outputs))


def _glora_fits(weights: tuple, shape: tuple[int, ...]) -> bool:
    a1, a2, b1, b2 = (part.flatten(1) for part in weights[:4])
    out, n_in, wide = shape[0], shape[1], math.prod(shape[1:])
    new = a1.shape[0] == a2.shape[1] == n_in and b1.shape[0] == out and b2.shape[1] == wide
    old = a2.shape[0] == a1.shape[1] == wide and b2.shape[0] == out and b1.shape[1] == wide
    return new or old


_FITS = {
    "lora": _lora_fits, "loha": _loha_fits, "lokr": _lokr_fits, "glora": _glora_fits, "oft": _blocks_fit,
    "boft": _blocks_fit,
}  # fmt: skip


def _require(fits: bool, parts: Any, shape: tuple[int, ...], layer: str, source: str) -> None:
    if fits:
        return
    sizes = ", ".join("×".join(map(str, part.shape)) for part in parts if isinstance(part, torch.Tensor))
    raise FamilyError(
        f"{source} does not fit this model: for {layer} it has tensors of {sizes}, the model's are "
        f"{'×'.join(map(str, shape))}",
        key=layer,
        fix="choose a LoRA made for this base model",
    )
