"""The gate of AutoLoRA (arXiv 2508.02107, in the form released with DiffSynth-Studio) as pure functions.

For one layer with base output ``y0`` and the outputs ``y_k`` of K LoRAs, per sample, token and output channel:

    g_k = sigmoid(LN_b(y0)·w_base + LN_l(y_k)·w_lora + LN_b(y0)·LN_l(y_k)·w_cross + bias)
    out = y0 + sum_k w_out·g_k·y_k

Both layer norms run over the channels, with affine weights, and are shared by all k. Norms and sigmoid are float32
whatever the model computes in; the gate is then cast to the model's dtype.

Ours goes on from there. A gate may know what kind of LoRA it lets through, where sampling stands and how many LoRAs
there are (:class:`Tilt`): shift_k is added to the logits and gain_k multiplies what passes.

    g_k = sigmoid(… + shift_k(u)),   out = y0 + sum_k exp(gain_k(u))·w_out·g_k·y_k,   u = share of the sampling done
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EPS = 1e-5
# The order is that of GateVectors.stack(); the names are those of the files.
VECTORS = (
    "weight_base",
    "weight_lora",
    "weight_cross",
    "weight_out",
    "bias",
    "norm_base.weight",
    "norm_base.bias",
    "norm_lora.weight",
    "norm_lora.bias",
)


ROLES = ("subject", "style")  # rows of GateVectors.roles


@dataclass(frozen=True)
class Tilt:
    """What a gate does differently for one LoRA: ``shift`` of its logits and ``gain``, a logarithm; each a constant
    and a slope along ``2u − 1``. Tensors without axes while a gate is trained."""

    shift: tuple[float | Tensor, float | Tensor] = (0.0, 0.0)
    gain: tuple[float | Tensor, float | Tensor] = (0.0, 0.0)

    @property
    def timed(self) -> bool:
        """Whether it moves; one in training may."""
        return any(isinstance(slope, Tensor) or slope != 0 for slope in (self.shift[1], self.gain[1]))


@dataclass(frozen=True)
class GateVectors:
    """The nine vectors of one layer, each (d,), d = its output channels. ``weight_base`` None means zero.

    ``roles`` (2, 2, 2) float32: for subject and style, the (constant, slope) of the shift and of the gain; a LoRA
    without a role gets the mean of both. ``power``: of 2/K, by which the gain falls with the number K of LoRAs.
    """

    weight_lora: Tensor
    weight_cross: Tensor
    weight_out: Tensor
    bias: Tensor
    norm_base_weight: Tensor
    norm_base_bias: Tensor
    norm_lora_weight: Tensor
    norm_lora_bias: Tensor
    weight_base: Tensor | None = None
    eps: float = EPS
    roles: Tensor | None = None
    power: float = 0.0

    def tilt(self, role: str | None = None, count: float = 2.0) -> Tilt:
        """For a LoRA of ``role`` among ``count``."""
        table = torch.zeros(2, 2, 2) if self.roles is None else self.roles.float()
        (shift, gain) = (table[ROLES.index(role)] if role in ROLES else table.mean(0)).tolist()
        constant = gain[0] + self.power * math.log(2 / max(count, 1.0))
        return Tilt(tuple(shift), (constant, gain[1]))

    @property
    def channels(self) -> int:
        return self.bias.shape[0]

    @property
    def flat(self) -> bool:
        """Whether it lets the same through whatever it sees: then it is a factor a channel."""
        seen = (self.weight_lora, self.weight_cross, self.weight_base)
        return not any(weight is not None and bool(weight.any()) for weight in seen)

    def rest(self, tilt: Tilt, u: float = 0.0) -> Tensor:
        """(d,) float64 ``exp(gain)·w_out·sigmoid(bias + shift)``: what passes where nothing is heard."""
        way = 2 * u - 1
        passed = torch.sigmoid(self.bias.double() + tilt.shift[0] + tilt.shift[1] * way)
        return self.weight_out.double() * passed * math.exp(tilt.gain[0] + tilt.gain[1] * way)

    @classmethod
    def identity(cls, channels: int) -> GateVectors:
        """The gate that changes nothing: sigmoid(0) = 1/2 and ``weight_out`` = 2, so ``w_out·g`` is exactly 1."""
        zero, one = torch.zeros(channels), torch.ones(channels)
        return cls(zero, zero, 2 * one, zero, one, zero, one, zero, zero)

    @classmethod
    def from_named(cls, named: dict[str, Tensor], eps: float = EPS) -> GateVectors:
        """From the vectors under their file names (``VECTORS``); ``weight_base`` may be absent."""
        return cls(eps=eps, **{name.replace(".", "_"): vector for name, vector in named.items()})

    def named(self) -> dict[str, Tensor]:
        """The vectors that are there, under their file names."""
        pairs = ((name, getattr(self, name.replace(".", "_"))) for name in VECTORS)
        return {name: vector for name, vector in pairs if vector is not None}

    def stack(self) -> Tensor:
        """(9, d) float32, rows in the order of ``VECTORS``."""
        named = self.named()
        zero = torch.zeros_like(self.bias)
        return torch.stack([named.get(name, zero).detach().float() for name in VECTORS])

    @classmethod
    def from_stack(cls, stack: Tensor, eps: float = EPS) -> GateVectors:
        """The inverse of :meth:`stack`; the vectors are views."""
        return cls.from_named(dict(zip(VECTORS, stack.unbind(0), strict=True)), eps)


def gate_values(y0: Tensor, branch: Tensor, vectors: GateVectors, dim: int = -1) -> Tensor:
    """``g_k`` in (0, 1), float32, shaped like ``y0``; ``dim`` is the channel axis (1 for convolutions)."""
    return _gate(_norm_base(y0, vectors, dim), branch, vectors, dim)


def gated_update(
    y0: Tensor, branches: Iterable[Tensor], vectors: GateVectors, dim: int = -1,
    tilts: Sequence[Tilt] | None = None, u: Tensor | float = 0.0,
    tell: Callable[[int, Tensor], None] | None = None,
) -> Tensor | None:  # fmt: skip
    """``sum_k exp(gain_k)·w_out·g_k·y_k`` in the dtype of ``y0``; None when there is no branch.

    ``branches`` is consumed one by one, so a generator keeps only one branch output in memory at a time. ``tilts``: one
    a branch; ``u`` in [0, 1], a number or a tensor without axes. ``tell`` is given each term with its number.
    """
    base, update = None, None
    for number, branch in enumerate(branches):
        base = _norm_base(y0, vectors, dim) if base is None else base
        shift, gain = _at(tilts[number], u) if tilts else (None, None)
        factor = _gate(base, branch, vectors, dim, shift) * _over_channels(vectors.weight_out.float(), y0, dim)
        factor = factor if gain is None else factor * gain
        term = factor.to(y0.dtype) * branch.to(y0.dtype)
        if tell:
            tell(number, term)
        update = term if update is None else update + term
    return update


def _at(tilt: Tilt, u: Tensor | float) -> tuple[Tensor | float, Tensor | float]:
    """Shift and gain at ``u``."""
    way = 2 * u - 1 if tilt.timed else 0.0
    exponent = tilt.gain[0] + tilt.gain[1] * way
    gain = torch.exp(exponent) if isinstance(exponent, Tensor) else math.exp(exponent)
    return tilt.shift[0] + tilt.shift[1] * way, gain


def gated_sum(y0: Tensor, branches: Iterable[Tensor], vectors: GateVectors | None, dim: int = -1) -> Tensor:
    """The fused output. ``vectors`` None is the plain sum ``y0 + sum_k y_k``; no branch returns ``y0`` itself."""
    if vectors is not None:
        update = gated_update(y0, branches, vectors, dim)
        return y0 if update is None else y0 + update
    out = y0
    for branch in branches:
        out = out + branch.to(y0.dtype)
    return out


def _gate(base: Tensor, branch: Tensor, vectors: GateVectors, dim: int, shift: Tensor | float | None = None) -> Tensor:
    lora = _norm(branch, vectors.norm_lora_weight, vectors.norm_lora_bias, vectors.eps, dim)
    rows = (vectors.weight_lora, vectors.weight_cross, vectors.bias)
    w_lora, w_cross, bias = (_over_channels(row.float(), base, dim) for row in rows)
    logits = lora * w_lora + base * lora * w_cross + bias
    if vectors.weight_base is not None:
        logits = logits + base * _over_channels(vectors.weight_base.float(), base, dim)
    if shift is not None:
        logits = logits + shift
    return torch.sigmoid(logits)


def _norm_base(y0: Tensor, vectors: GateVectors, dim: int) -> Tensor:
    return _norm(y0, vectors.norm_base_weight, vectors.norm_base_bias, vectors.eps, dim)


def _norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dim: int) -> Tensor:
    """Layer norm over ``dim`` in float32. Moving the axis costs nothing: it only relabels strides."""
    last = x.float().movedim(dim, -1)
    last = torch.nn.functional.layer_norm(last, last.shape[-1:], weight.float(), bias.float(), eps)
    return last.movedim(-1, dim)


def _over_channels(vector: Tensor, like: Tensor, dim: int) -> Tensor:
    """(d,) shaped to broadcast along the channel axis of ``like``."""
    shape = [1] * like.ndim
    shape[dim] = -1
    return vector.view(shape)
