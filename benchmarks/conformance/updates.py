"""Every kind of adapter as the tensors trainers store for one layer, random, from one generator.

Shapes are those of the papers and of LyCORIS: LoRA (2106.09685), LoCon with and without Tucker core, LoHa and LoKr
(2309.14859), DoRA (2402.09353), rsLoRA (2312.03732), GLoRA (2306.07967), OFT (2306.07280), BOFT (2311.06243).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .names import Place

RANK, ALPHA, SIZE = 4, 2.5, 0.12
Tensors = dict[str, Tensor]


class Draw:
    """Random tensors of one seed. ``numel`` of an update grows with its layer, so factors shrink with its width."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, size: float = SIZE) -> Tensor:
        return torch.randn(*shape, generator=self.generator) * size


@dataclass(frozen=True)
class Kind:
    """A column: ``make`` gives role → tensor of one place, or None where this kind does not fit the layer.

    ``twin``: the same change in tensors ComfyUI's merge reads, where it does not read these, or reads them otherwise.
    ``metadata``: of the file. ``alpha``: stored with it, if any. ``refused``: no cell of it may be
    applied, since nobody can.
    """

    name: str
    make: Callable[[Place, Draw], Tensors | None]
    twin: Callable[[Place, Tensors], Tensors] | None = None
    metadata: Mapping[str, str] | None = None
    alpha: float | None = ALPHA
    refused: bool = False
    partial: bool = False  # few layers of a base carry it, so the file has plain updates beside it


def _flat(place: Place) -> tuple[int, int]:
    return place.shape[0], math.prod(place.shape[1:])


def _matrix(place: Place) -> bool:
    return len(place.shape) >= 2


def _kernel(place: Place) -> bool:
    return len(place.shape) > 2 and math.prod(place.shape[2:]) > 1


def lora(place: Place, draw: Draw) -> Tensors | None:
    """Linear layers and kernels alike: the down factor has the layer's own kernel."""
    if not _matrix(place):
        return None
    out, n_in, *kernel = place.shape
    ones = [1] * len(kernel)
    return {"down": draw(RANK, n_in, *kernel), "up": draw(out, RANK, *ones)}


def _only(keep: Callable[[Place], bool], make: Callable) -> Callable[[Place, Draw], Tensors | None]:
    return lambda place, draw: make(place, draw) if keep(place) else None


def _tucker(place: Place, draw: Draw) -> Tensors | None:
    if len(place.shape) != 4 or not _kernel(place):
        return None
    out, n_in, *kernel = place.shape
    return {"down": draw(RANK, n_in, 1, 1), "mid": draw(RANK, RANK, *kernel, size=0.6), "up": draw(out, RANK, 1, 1)}


def _loha(place: Place, draw: Draw) -> Tensors | None:
    if not _matrix(place):
        return None
    out, wide = _flat(place)
    names = {"hada_w1_a": (out, 3), "hada_w1_b": (3, wide), "hada_w2_a": (out, 3), "hada_w2_b": (3, wide)}
    return {name: draw(*shape, size=0.3) for name, shape in names.items()}


def _loha_tucker(place: Place, draw: Draw) -> Tensors | None:
    if len(place.shape) != 4 or not _kernel(place):
        return None
    out, n_in, *kernel = place.shape
    names = {"hada_w1_a": (3, out), "hada_w1_b": (3, n_in), "hada_w2_a": (3, out), "hada_w2_b": (3, n_in)}
    cores = {f"hada_t{n}": draw(3, 3, *kernel, size=0.6) for n in (1, 2)}
    return {**cores, **{name: draw(*shape, size=0.5) for name, shape in names.items()}}


def _split(n: int) -> tuple[int, int]:
    """Two factors of n, the first at most 8: the parts LyCORIS cuts a width into."""
    small = next(f for f in (8, 6, 5, 4, 3, 2, 1) if n % f == 0)
    return small, n // small


def _lokr_sides(place: Place) -> tuple[int, int, int, int]:
    return (*_split(place.shape[0]), *_split(place.shape[1]))


def _lokr(place: Place, draw: Draw) -> Tensors | None:
    """Both factors whole: LyCORIS then stores an alpha that says nothing, so none counts."""
    if not _matrix(place):
        return None
    a, c, b, d = _lokr_sides(place)
    return {"lokr_w1": draw(a, b, size=0.4), "lokr_w2": draw(c, d, *place.shape[2:], size=0.1)}


def _lokr_products(place: Place, draw: Draw) -> Tensors | None:
    if not _matrix(place):
        return None
    a, c, b, d = _lokr_sides(place)
    wide = d * math.prod(place.shape[2:])
    names = {"lokr_w1_a": (a, 2), "lokr_w1_b": (2, b), "lokr_w2_a": (c, 3), "lokr_w2_b": (3, wide)}
    return {name: draw(*shape, size=0.4) for name, shape in names.items()}


def _lokr_tucker(place: Place, draw: Draw) -> Tensors | None:
    if len(place.shape) != 4 or not _kernel(place):
        return None
    a, c, b, d = _lokr_sides(place)
    core = {"lokr_t2": draw(3, 3, *place.shape[2:], size=0.6)}
    return {**core, "lokr_w1": draw(a, b, size=0.4), "lokr_w2_a": draw(3, c, size=0.4), "lokr_w2_b": draw(3, d)}


def _kron(place: Place, parts: Tensors) -> Tensors:
    """LoKr as a plain difference where ComfyUI 0.3.75 errs: it fails on a Tucker core, and goes on without; and it lays
    kernels of three dimensions out wrongly."""
    core = parts.get("lokr_t2")
    if "lokr_w1" not in parts or (core is None and len(place.shape) < 5):
        return parts
    right, scale = parts.get("lokr_w2"), 1.0
    if core is not None:
        right, scale = torch.einsum("ij...,jr,ip->pr...", core, parts["lokr_w2_b"], parts["lokr_w2_a"]), ALPHA / 3
    left = parts["lokr_w1"].reshape(*parts["lokr_w1"].shape, *[1] * (right.ndim - 2))
    return {"diff": (torch.kron(left.double(), right.double().contiguous()) * scale).float().reshape(place.shape)}


def _magnitude(place: Place, draw: Draw, axis: int) -> Tensor:
    """Near 1 for each output row, or each input column, of a matrix whose norms ComfyUI takes from the base."""
    shape = [1] * len(place.shape)
    shape[axis] = place.shape[axis]
    return 1 + draw(*shape, size=0.2).abs()


def _dora(make: Callable, axis: int = 0) -> Callable[[Place, Draw], Tensors | None]:
    def made(place: Place, draw: Draw) -> Tensors | None:
        parts = make(place, draw)
        return None if parts is None else {**parts, "dora_scale": _magnitude(place, draw, axis)}

    return made


def _glora(place: Place, draw: Draw) -> Tensors | None:
    """W' = W + s (W·A₁A₂ + B₁B₂), as LyCORIS stores it: every factor the weight of a layer of its own."""
    if len(place.shape) != 2:
        return None
    out, n_in = place.shape
    return {
        "a1": draw(n_in, RANK), "a2": draw(RANK, n_in), "b1": draw(out, RANK), "b2": draw(RANK, n_in),
    }  # fmt: skip


def _block(rows: int) -> int:
    return next(b for b in (8, 4, 2, 1) if rows % b == 0)


def _oft(place: Place, draw: Draw) -> Tensors | None:
    if not _matrix(place) or (b := _block(place.shape[0])) == 1:
        return None
    return {"oft_blocks": draw(place.shape[0] // b, b, b, size=0.1)}


def _boft(place: Place, draw: Draw) -> Tensors | None:
    """Two butterfly factors of blocks of four."""
    if not _matrix(place) or place.shape[0] % 8:
        return None
    return {"oft_blocks": draw(2, place.shape[0] // 4, 4, 4, size=0.1)}


def _bias(place: Place, draw: Draw) -> Tensors | None:
    parts = lora(place, draw) if place.bias else None
    return None if parts is None else {**parts, "bias": draw(place.shape[0])}


def _diff(place: Place, draw: Draw) -> Tensors | None:
    return {"diff": draw(*place.shape, size=0.02)} if _matrix(place) else None


def _set(place: Place, draw: Draw) -> Tensors | None:
    return {"set_weight": draw(*place.shape, size=0.05)} if _matrix(place) and place.whole else None


def _norm(place: Place, draw: Draw) -> Tensors | None:
    if len(place.shape) != 1:
        return None
    parts = {"w_norm": draw(*place.shape)}
    return {**parts, "b_norm": draw(*place.shape)} if place.bias else parts


def _as_scaled(factor: float) -> Callable[[Place, Tensors], Tensors]:
    return lambda place, parts: {**parts, "alpha": torch.tensor(factor)}


def _oft_peft(place: Place, draw: Draw) -> Tensors | None:
    return {"oft_R.weight": draw(4, place.shape[0] // 8 * 3)} if len(place.shape) == 2 else None


def _ia3(place: Place, draw: Draw) -> Tensors | None:
    return {"ia3_l": 1 + draw(place.shape[0], 1)} if len(place.shape) == 2 else None


def _vera(place: Place, draw: Draw) -> Tensors | None:
    if len(place.shape) != 2:
        return None
    return {"vera_lambda_b": draw(place.shape[0]), "vera_lambda_d": draw(RANK)}


def _control(place: Place, draw: Draw) -> Tensors | None:
    """A control LoRA: the layer is to become twice as wide."""
    if len(place.shape) != 2 or not place.whole:
        return None
    out, n_in = place.shape
    wide = torch.tensor([out, 2 * n_in])
    return {"down": draw(RANK, 2 * n_in), "up": draw(out, RANK), "reshape_weight": wide}


_RSLORA = {"lora_adapter_metadata": f'{{"transformer.lora_alpha": {ALPHA}, "transformer.use_rslora": true}}'}
KINDS: tuple[Kind, ...] = (
    Kind("LoRA", lora),
    Kind("LoRA, fused q k v", _only(lambda p: p.whole and p.module.split(".")[-1] in FUSED, lora), partial=True),
    Kind("LoRA, split q k v", _only(lambda p: p.rows is not None, lora), partial=True),
    Kind("LoRA, AdaLN swap", _only(lambda p: p.swapped, lora), partial=True),
    Kind("LoRA, no alpha", lora, alpha=None),
    Kind("rsLoRA", lora, _as_scaled(ALPHA * RANK**0.5), _RSLORA, alpha=None),
    Kind("LoCon", _only(_kernel, lora), partial=True),
    Kind("LoCon, Tucker", _tucker, partial=True),
    Kind("LoHa", _loha),
    Kind("LoHa, Tucker", _loha_tucker, partial=True),
    Kind("LoKr", _lokr, _kron),
    Kind("LoKr, products", _lokr_products),
    Kind("LoKr, Tucker", _lokr_tucker, _kron, partial=True),
    Kind("DoRA", _dora(lora)),
    Kind("DoRA, input axis", _dora(_only(lambda p: p.shape[:1] != p.shape[1:2], lora), 1), partial=True),
    Kind("DoRA on LoHa", _dora(_loha)),
    Kind("DoRA on LoKr", _dora(_lokr)),
    Kind("GLoRA", _glora),
    Kind("OFT", _oft, alpha=0.0),
    Kind("OFT, constraint", _oft, alpha=0.5),
    Kind("BOFT", _boft, alpha=0.0),
    Kind("BOFT, no alpha", _boft, lambda place, parts: {**parts, "alpha": torch.tensor(0.0)}, alpha=None),
    Kind("bias", _bias, partial=True),
    Kind("diff", _diff, alpha=None),
    Kind("set", _set, alpha=None),
    Kind("norm", _norm, alpha=None, partial=True),
    Kind("OFT as PEFT stores it", _oft_peft, alpha=None, refused=True),
    Kind("IA³", _ia3, alpha=None, refused=True),
    Kind("VeRA", _vera, alpha=None, refused=True),
    Kind("control LoRA", _control, refused=True),
)
FUSED = ("qkv", "Wqkv", "linear1", "kv_linear", "qkv_linear")
