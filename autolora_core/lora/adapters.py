"""Adapter arithmetic: the tensors of one module -> one :class:`Update`, exact in float64.

LoRA (2106.09685): ΔW = s·B·A. LoCon and Tucker, LoHa, LoKr: LyCORIS (2309.14859), equations 3 to 7. DoRA (2402.09353),
OFT, BOFT, GLoRA and IA³ change the weight in ways that need the base weight; they are handed on as ``not_additive``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import LoraError, UnsupportedAdapterError

MAX_DENSE = 2**29  # numbers in one dense update; the largest layers of FLUX.2 have 2**28.4
NOT_ADDITIVE_KINDS = ("oft", "boft", "ia3", "vera", "glora", "adalora", "embedding", "set", "norm")


@dataclass(frozen=True)
class Update:
    """What one module of a LoRA adds to the base: ``ΔW = up·down`` (through ``mid``, if any) or ``dense``.

    ``down`` (r, in, *k), ``up`` (out, r), ``mid`` (r, r, *k) with the scale already in ``up``; or ``dense``
    (out, in, *k). ``not_additive``: the change needs the base weight; ``rule`` names how ("dora", "oft", "set", …) and
    ``extra`` holds the tensors by role. A "dora" keeps its product without the magnitude in ``up`` and ``down`` (or
    ``dense``); every other rule leaves them empty and puts ``scale`` (float64) into ``extra``.
    ``bias`` (out,) is added to the layer's bias. ``module`` may end in ``[start:stop]``, the rows of a fused weight.
    """

    module: str
    kind: str
    down: Tensor | None = None
    up: Tensor | None = None
    mid: Tensor | None = None
    dense: Tensor | None = None
    bias: Tensor | None = None
    rule: str | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)

    @property
    def base_module(self) -> str:
        """The module's name without the rows."""
        return self.module.partition("[")[0]

    @property
    def rows(self) -> tuple[int, int] | None:
        """``(start, stop)`` of the fused weight's output rows, or None for the whole weight."""
        _, bracket, inside = self.module.partition("[")
        if not bracket:
            return None
        start, stop = inside.rstrip("]").split(":")
        return int(start), int(stop)

    @property
    def rank(self) -> int | None:
        return None if self.down is None else self.down.shape[0]

    @property
    def out_rows(self) -> int | None:
        return None if self.shape is None else self.shape[0]

    @property
    def shape(self) -> tuple[int, ...] | None:
        """(out, in, *k) of the change, or None when the tensors do not tell."""
        if self.dense is not None:
            return tuple(self.dense.shape)
        if self.up is None or self.down is None:
            return None
        kernel = self.down.shape[2:] if self.mid is None else self.mid.shape[2:]
        return (self.up.shape[0], self.down.shape[1], *kernel)

    def delta(self) -> Tensor:
        """ΔW in float64, (out, in, *k). Raises UnsupportedAdapterError for ``not_additive`` updates."""
        if self.kind == "not_additive":
            raise UnsupportedAdapterError(
                f"{self.rule} changes the weight itself; it has no additive form",
                key=self.module,
                fix="load this LoRA with the stock loader instead.",
            )
        if self.dense is not None:
            return self.dense.double()
        up, down = self.up.double(), self.down.double()
        if self.mid is not None:
            return torch.einsum("or,rs...,si->oi...", up, self.mid.double(), down.flatten(1))
        return (up @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])


def build(
    name: str, kind: str, tensors: Mapping[str, Tensor], scale: float, shape: tuple[int, ...], dora: bool = False
) -> Update:
    """The update of one module from its tensors (role -> tensor).

    ``kind`` and ``shape`` (out, in, *k) come from ``shapes.describe``; ``scale`` multiplies the product.
    """
    if kind in NOT_ADDITIVE_KINDS or kind == "bias":
        return _plain_extra(name, kind, tensors, scale)
    update = {"lora": _lora, "loha": _loha, "lokr": _lokr, "diff": _diff}[kind](name, tensors, scale, shape)
    update = replace(update, bias=_bias(tensors, scale))
    if not dora:
        return update
    extra = {role: tensor for role, tensor in tensors.items() if role in ("dora_scale", "magnitude")}
    return replace(update, kind="not_additive", rule="dora", extra=extra)


def _working(tensor: Tensor) -> Tensor:
    """float32, or float64 where the file has it; half and 8-bit values convert without loss."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _fold(up: Tensor, scale: float) -> Tensor:
    return up if scale == 1.0 else _narrowed(up.double() * scale, up.dtype)


def _narrowed(values: Tensor, dtype: torch.dtype) -> Tensor:
    """float64 ``values`` as ``dtype``. RuntimeError where finite ones become infinite: an enormous alpha does that."""
    made = values.to(dtype)
    if not bool(torch.isfinite(made).all()) and bool(torch.isfinite(values).all()):
        raise RuntimeError("times its scale, its values are beyond what float32 holds")
    return made


def _bias(tensors: Mapping[str, Tensor], scale: float) -> Tensor | None:
    """What is added to the layer's bias; the bias of an up factor (PEFT) is scaled as its product is."""
    found = next((role for role in ("diff_b", "bias", "b_norm") if role in tensors), None)
    if found is None:
        return None
    return _fold(_working(tensors[found]).reshape(-1), scale if found == "bias" else 1.0)


def _plain_extra(name: str, kind: str, tensors: Mapping[str, Tensor], scale: float) -> Update:
    extra = {role: tensor for role, tensor in tensors.items() if role not in ("alpha", "diff_b", "bias", "b_norm")}
    extra["scale"] = torch.tensor(scale, dtype=torch.float64)
    return Update(name, "not_additive", rule=kind, extra=extra, bias=_bias(tensors, scale))


def _lora(name: str, tensors: Mapping[str, Tensor], scale: float, shape: tuple[int, ...]) -> Update:
    down, up = _working(tensors["down"]), _working(tensors["up"])
    up = _fold(up.flatten(1), scale)
    if "mid" in tensors:
        return Update(name, "lowrank", down=down.flatten(1), up=up, mid=_working(tensors["mid"]))
    return Update(name, "lowrank", down=down.reshape(down.shape[0], *shape[1:]), up=up)


def _diff(name: str, tensors: Mapping[str, Tensor], scale: float, shape: tuple[int, ...]) -> Update:
    return Update(name, "dense", dense=_working(tensors["diff"]).reshape(shape))


def _cheaper_as_factors(rank: int, shape: tuple[int, ...]) -> bool:
    """Whether ``rank`` factors take less than half the numbers of the dense matrix."""
    out, wide = shape[0], math.prod(shape[1:])
    return 2 * rank * (out + wide) <= out * wide


def _dense(name: str, matrix: Callable[[], Tensor], scale: float, shape: tuple[int, ...], like: Tensor) -> Update:
    """A dense update; a few small tensors can claim a layer of any size, so the size is checked before it is made."""
    if math.prod(shape) > MAX_DENSE:
        raise LoraError(f"its tensors claim a layer of shape {list(shape)}", key=name, fix="the file is damaged.")
    return Update(name, "dense", dense=_narrowed((matrix() * scale).reshape(shape), _working(like).dtype))


def _from_factors(name: str, up: Tensor, down: Tensor, scale: float, shape: tuple[int, ...], like: Tensor) -> Update:
    """``up`` (out, r) and ``down`` (r, …) in float64 -> a lowrank update in the file's precision."""
    dtype = _working(like).dtype
    return Update(name, "lowrank", down=_narrowed(down.reshape(-1, *shape[1:]), dtype), up=_narrowed(up * scale, dtype))


def _tucker(core: Tensor, wa: Tensor, wb: Tensor) -> tuple[Tensor, Tensor]:
    """LyCORIS' rebuild ``W[p, q, …] = Σ_ij t[i, j, …] wb[j, q] wa[i, p]`` as up (p, i) and down (i, q, …)."""
    return wa.double().T.contiguous(), torch.einsum("ij...,jq->iq...", core.double(), wb.double()).contiguous()


def _loha_half(tensors: Mapping[str, Tensor], n: int) -> tuple[Tensor, Tensor]:
    wa, wb, core = tensors[f"hada_w{n}_a"], tensors[f"hada_w{n}_b"], tensors.get(f"hada_t{n}")
    return (wa.double(), wb.double()) if core is None else _tucker(core, wa, wb)


def _loha(name: str, tensors: Mapping[str, Tensor], scale: float, shape: tuple[int, ...]) -> Update:
    """LoHa: ΔW = s·(B₁A₁) ⊙ (B₂A₂). A Hadamard product of ranks r₁ and r₂ has rank r₁r₂ (row-wise Khatri-Rao)."""
    (up1, down1), (up2, down2) = _loha_half(tensors, 1), _loha_half(tensors, 2)
    like = tensors["hada_w1_a"]
    if not _cheaper_as_factors(up1.shape[1] * up2.shape[1], shape):
        return _dense(name, lambda: (up1 @ down1.flatten(1)) * (up2 @ down2.flatten(1)), scale, shape, like)
    up = torch.einsum("oi,oj->oij", up1, up2).flatten(1)
    down = torch.einsum("ix,jx->ijx", down1.flatten(1), down2.flatten(1)).flatten(0, 1)
    return _from_factors(name, up, down, scale, shape, like)


def _kron_part(tensors: Mapping[str, Tensor], n: int) -> tuple[Tensor, Tensor]:
    """One factor of a Kronecker product as up (a, r), down (r, b, *k); a full matrix uses its shorter side as rank."""
    full = tensors.get(f"lokr_w{n}")
    if full is not None:
        full = full.double()
        if full.shape[0] <= math.prod(full.shape[1:]):
            return torch.eye(full.shape[0], dtype=torch.float64), full
        return full.flatten(1), torch.eye(math.prod(full.shape[1:]), dtype=torch.float64).reshape(-1, *full.shape[1:])
    wa, wb, core = tensors[f"lokr_w{n}_a"], tensors[f"lokr_w{n}_b"], tensors.get("lokr_t2") if n == 2 else None
    return (wa.double(), wb.double()) if core is None else _tucker(core, wa, wb)


def _lokr(name: str, tensors: Mapping[str, Tensor], scale: float, shape: tuple[int, ...]) -> Update:
    """LoKr: ΔW = s·(W₁ ⊗ W₂). With W = B·A on both sides, B₁A₁ ⊗ B₂A₂ = (B₁ ⊗ B₂)(A₁ ⊗ A₂), of rank r₁r₂."""
    (up1, down1), (up2, down2) = _kron_part(tensors, 1), _kron_part(tensors, 2)
    like = next(tensor for role, tensor in tensors.items() if role.startswith("lokr_w"))
    if not _cheaper_as_factors(up1.shape[1] * up2.shape[1], shape):
        return _dense(name, lambda: torch.kron(up1 @ down1, up2 @ down2.flatten(1)), scale, shape, like)
    return _from_factors(name, torch.kron(up1, up2), torch.kron(down1, down2.flatten(1)), scale, shape, like)


def swap_halves(update: Update) -> Update:
    """Exchanges the two halves of the output rows: diffusers stores (scale, shift), the original (shift, scale)."""

    def swap(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else torch.cat(tensor.chunk(2, dim=0)[::-1], dim=0)

    tall = {role: swap(t) if t.ndim and t.shape[0] == update.out_rows else t for role, t in update.extra.items()}
    return replace(update, up=swap(update.up), dense=swap(update.dense), bias=swap(update.bias), extra=tall)


def split_qkv(update: Update) -> tuple[Update, ...]:
    """Splits an update of a fused weight into its parts, named by rows; any other update comes back alone.

    Fused: ``…qkv`` and ``…Wqkv`` (q, k, v), FLUX ``single_blocks.N.linear1`` (q, k, v, MLP), ``kv_linear`` (k, v).
    """
    bounds = _fused_bounds(update)
    if bounds is None:
        return (update,)
    return tuple(_rows(update, start, stop) for start, stop in bounds)


def _fused_bounds(update: Update) -> list[tuple[int, int]] | None:
    shape = update.shape
    if shape is None or update.kind == "not_additive":
        return None
    out, wide = shape[0], shape[1]
    leaf = update.base_module.rpartition(".")[2]
    edges: list[int] = []
    if leaf in ("qkv", "Wqkv") and out > wide and (out - wide) % 2 == 0:
        edges = [0, wide, wide + (out - wide) // 2, out]
    elif leaf == "linear1" and "single_blocks." in update.base_module and out >= 3 * wide:
        edges = [0, wide, 2 * wide, 3 * wide] + ([out] if out > 3 * wide else [])
    elif leaf == "kv_linear" and out % 2 == 0:
        edges = [0, out // 2, out]
    return list(zip(edges, edges[1:], strict=False)) or None


def _rows(update: Update, start: int, stop: int) -> Update:
    offset = update.rows[0] if update.rows else 0

    def cut(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[start:stop]

    name = f"{update.base_module}[{offset + start}:{offset + stop}]"
    return replace(update, module=name, up=cut(update.up), dense=cut(update.dense), bias=cut(update.bias))
