"""Everything the encoders and baselines may look at in one LoRA, before compression.

All of it is a function of ΔW (and of the base): another factorisation of the same update gives the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from torch import Tensor

from autolora_core.encode.canonical import Canonical, canonical
from autolora_core.encode.features import module_features, size_for
from autolora_core.lora.adapters import Update
from zoo.base_probe import DRAW_SIZE, IMAGE_SPACES, SPACES, BaseProbe, Factors
from zoo.multi_lora import target_layers

SIGMAS, ROWS, INPUTS, OUTPUTS, PRODUCT, WIDEST = 8, 4, 12, 24, 24, 1024
HEARD = (*SPACES, *IMAGE_SPACES)


@dataclass(frozen=True)
class Layout:
    """The base's modules and what is multiplied with their updates. ``inputs``: module -> (INPUTS, in) unit rows."""

    modules: dict[str, tuple[int, int]]  # name -> (out, in)
    split: tuple[str, ...]  # the same with q, k and v apart, as the library has them
    inputs: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, probe: BaseProbe, texts: list[str]) -> Layout:
        shapes = {n: tuple(probe.model.get_submodule(n).weight.shape) for n in target_layers(probe.model)}
        split = []
        for name, (out, _) in shapes.items():
            thirds = [f"{name}[{i * out // 3}:{(i + 1) * out // 3}]" for i in range(3)]
            split += thirds if name.endswith("qkv") else [name]
        return cls(shapes, tuple(sorted(split)), probe.typical_inputs(texts, INPUTS))

    @cached_property
    def id(self) -> str:
        """12 hex digits over the inputs, which stand for the base."""
        return hashlib.sha256(b"".join(rows.tobytes() for rows in self.inputs.values())).hexdigest()[:12]

    @property
    def widths(self) -> dict[str, tuple[int, ...]]:
        """Name of a feature -> its shape for one LoRA."""
        m, outs, ins = len(self.modules), *(sum(s[i] for s in self.modules.values()) for i in (0, 1))
        return {
            "log_norm": (m,), "present": (m,), "sigma": (m, SIGMAS), "rows": (len(HEARD), ROWS, WIDEST),
            "tokens": (len(self.split), size_for("emoji").width), "functional": (m, OUTPUTS * INPUTS),
            "draw": (DRAW_SIZE,), "u1": (outs,), "diagonals": (outs + ins,), "product": (m * PRODUCT**2,),
            "flat": (m * PRODUCT**2,),
        }  # fmt: skip


@lru_cache(maxsize=256)
def signs(name: str, rows: int, columns: int) -> np.ndarray:
    """(rows, columns) of ±1/√columns, drawn from SHAKE-128 of ``name``: the same on every machine."""
    bits = np.frombuffer(hashlib.shake_128(name.encode()).digest((rows * columns + 7) // 8), np.uint8)
    return (np.unpackbits(bits)[: rows * columns].reshape(rows, columns) * 2.0 - 1) / columns**0.5


def raw_features(factors: Factors, layout: Layout, probe: BaseProbe) -> dict[str, np.ndarray]:
    """One LoRA's features, shapes as in :attr:`Layout.widths`, float32; absent modules are zero."""
    out = {name: np.zeros(shape, np.float32) for name, shape in layout.widths.items()}
    updates = {name: as_update(name, *pair) for name, pair in factors.items() if name in layout.modules}
    row = column = 0
    for i, (name, (outs, ins)) in enumerate(layout.modules.items()):
        found = canonical(updates[name]) if name in updates else None
        if found is not None and found.rank:
            _module(out, i, found, layout.inputs[name])
            out["u1"][row : row + outs] = found.u[:, 0]
            out["diagonals"][row + column : row + column + outs + ins] = _diagonals(found)
            if name in HEARD:
                _rows(out["rows"][HEARD.index(name)], found)
        row, column = row + outs, column + ins
    scale = np.exp(out["log_norm"].max(initial=-20.0, where=out["present"] > 0))
    norms = np.exp(out["log_norm"]) * out["present"] / scale
    out["flat"] = (out["product"].reshape(len(norms), -1) * norms[:, None]).ravel()
    _tokens(out["tokens"], updates, layout)
    out["draw"] = probe.lora_draw(factors)
    return out


def as_update(name: str, down: Tensor, up: Tensor) -> Update:
    return Update(module=name, kind="lowrank", down=down.float(), up=up.float())


def _module(out: dict[str, np.ndarray], i: int, found: Canonical, inputs: np.ndarray) -> None:
    keep = min(SIGMAS, found.rank)
    out["log_norm"][i], out["present"][i] = found.log_norm, 1
    out["sigma"][i, :keep] = found.sigma[:keep]
    left = (found.u * found.sigma).numpy()
    right = found.v.numpy()
    outs, ins = left.shape[0], right.shape[0]
    answers = left @ (right.T @ inputs.T)  # (out, INPUTS): what the update does to real inputs
    out["functional"][i] = (signs(found.module + ">seen", outs, OUTPUTS).T @ answers).ravel()
    both = signs(found.module + ">out", outs, PRODUCT).T @ left, signs(found.module + ">in", ins, PRODUCT).T @ right
    size = PRODUCT**2
    out["product"][i * size : (i + 1) * size] = (both[0] @ both[1].T).ravel()


def _diagonals(found: Canonical) -> np.ndarray:
    """``diag(U Uᵀ) ‖ diag(V Vᵀ)`` over the directions that carry something."""
    keep = found.sigma > 0.05 * found.sigma[0]
    sides = (found.u[:, keep], found.v[:, keep])
    return np.concatenate([side.square().sum(dim=1).numpy() * len(side) ** 0.5 for side in sides])


def _rows(out: np.ndarray, found: Canonical) -> None:
    keep = min(ROWS, found.rank)
    out[:keep, : len(found.v)] = (found.sigma[:keep, None] * found.v[:, :keep].T).numpy()


def _tokens(out: np.ndarray, updates: Mapping[str, Update], layout: Layout) -> None:
    found = module_features(updates.values(), size_for("emoji"))
    for name, row in zip(found.modules, found.rows, strict=True):
        out[layout.split.index(name)] = row
