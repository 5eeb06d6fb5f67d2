"""What one file is kept as, from its modules as they come out of the stream: each tensor is seen once.

:class:`WholeFile` takes modules in any order and any portions, without their scales (an alpha may lie behind the
factors it scales); :meth:`WholeFile.features` and :meth:`WholeFile.response` put the scales in at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .batched import sketch_stack
from .canonical import has_linear_part
from .features import ModuleFeatures, fused_bounds, size_for, split_fused
from .response_factors import Layer, ResponseFactors, kept, layer_factors
from .sketch import sketch
from .spaces import Space, space_of

if TYPE_CHECKING:
    from ..lora.adapters import Update

# Numbers of one stack of modules: small enough for a processor's cache, large enough for few calls.
STACK_NUMBERS = 4 << 20


@dataclass(frozen=True)
class Factors:
    """A low-rank module as stored, without its scale: ``up`` (out, r, …), ``down`` (r, in, …)."""

    module: str
    up: Tensor
    down: Tensor

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(out, r, in·k, in)``."""
        return self.up.shape[0], self.down.shape[0], self.down[0].numel(), self.down.shape[1]


class WholeFile:
    """One file of ``family``. ``widths``: module → inputs (in·k) of every module that the header names."""

    def __init__(self, family: str, widths: Mapping[str, int]):
        self.family, self.size = family, size_for(family)
        self._rows: list[tuple[str, str, np.ndarray, float]] = []  # module, name, row, log norm, all without scale
        self._skipped: dict[str, str] = {}
        self._layers: dict[str, Layer] = {}
        self._spaces = _spaces(family, widths)
        self._chosen = set(kept({space: widths[modules[0]] for space, modules in self._spaces.items()}))
        self._reached = {module for space in self._chosen for module in self._spaces[space]}
        self._silent: set[str] = set()  # reached, but zero or not finite

    # -- taking modules --------------------------------------------------------------------------------------------

    def add(self, modules: Sequence[Factors]) -> list[str]:
        """Take low-rank modules. Returns those whose values must be looked at: some may be zero or not finite."""
        odd = []
        for shape, same in groupby(sorted(modules, key=lambda factors: factors.shape), key=lambda f: f.shape):
            same = list(same)
            for some in _portions(same, max(1, STACK_NUMBERS // (shape[1] * (shape[0] + shape[2])))):
                odd += self._stack(some)
        return odd

    def _stack(self, modules: Sequence[Factors]) -> list[str]:
        out, rank, inputs, channels = modules[0].shape
        up, down = torch.empty(len(modules), out, rank), torch.empty(len(modules), rank, inputs)
        for number, module in enumerate(modules):
            up[number].copy_(module.up.reshape(out, rank))
            down[number].copy_(module.down.reshape(rank, inputs))
        gram_down = torch.bmm(down, down.mT).double()
        gram = torch.zeros(len(modules), rank, rank, dtype=torch.float64)
        bounds = [tuple(fused_bounds(module.module, out, channels) or (0, out)) for module in modules]
        for own in dict.fromkeys(bounds):
            mine = [number for number, other in enumerate(bounds) if other == own]
            every = slice(None) if len(mine) == len(modules) else mine
            for parts in _alike(own):
                names = [(modules[n].module, modules[n].module + f"[{start}:{stop}]" * (len(own) > 2))
                         for n in mine for start, stop in parts]  # fmt: skip
                rows = up[every, parts[0][0] : parts[-1][1]].unflatten(1, (len(parts), -1)).flatten(0, 1)
                found = self._sketch(names, rows, down[every], gram_down[every])
                gram[every] += found.unflatten(0, (-1, len(parts))).sum(1)
        loud = (gram * gram_down).sum(dim=(1, 2))
        sums = (gram.diagonal(dim1=1, dim2=2).sum(1) * gram_down.diagonal(dim1=1, dim2=2).sum(1)).tolist()
        odd = [module.module for module, sum_ in zip(modules, sums, strict=True) if not 0 < sum_ < math.inf]
        for number, module in enumerate(modules):
            if module.module in self._reached:
                self._hold(module, gram[number], float(loud[number]), module.module in odd)
        return odd

    def _hold(self, module: Factors, gram: Tensor, squared: float, odd: bool) -> None:
        if odd or not 0 < squared < math.inf:
            self._silent.add(module.module)
        else:
            down = module.down.reshape(module.down.shape[0], -1).clone()
            self._layers[module.module] = Layer(down, gram, squared**0.5)

    def _sketch(self, names: Sequence[tuple[str, str]], up: Tensor, down: Tensor, gram_down: Tensor) -> Tensor:
        """Sketch one stack, again in float64 what float32 blurs, one by one what neither can; (n, r, r) upᵀup."""
        found = sketch_stack([name for _, name in names], up, down, self.size, gram_down)
        rows, norms, gram = found.rows.numpy(), found.log_norms.numpy(), found.gram
        unsure = (~found.sure).nonzero()[:, 0].tolist()
        for number, (module, name) in enumerate(names):
            if found.sure[number]:
                self._rows.append((module, name, rows[number], float(norms[number])))
        if not unsure:
            return gram
        some, shared = [names[number] for number in unsure], len(names) // len(down)
        if up.dtype != torch.float64:
            long = down[[number // shared for number in unsure]].double()
            gram[unsure] = self._sketch(some, up[unsure].double(), long, torch.bmm(long, long.mT))
            return gram
        for number, (module, name) in zip(unsure, some, strict=True):
            self._keep(module, name, _Plain(name, up[number], down[number // shared]))
        return gram

    def add_update(self, module: str, update: Update) -> None:
        """Take a module of another kind (dense, Tucker, DoRA, …)."""
        for part in split_fused(update):
            if has_linear_part(part):
                self._keep(module, part.module, part)
            else:
                self._skipped[part.module] = f"{part.rule or part.kind} is not a matrix that is added"
        if module in self._reached:
            layer = Layer.of(update) if has_linear_part(update) else None
            if layer is not None and 0 < layer.norm < math.inf:
                self._layers[module] = layer
            else:
                self._silent.add(module)

    def _keep(self, module: str, name: str, update: Update | _Plain) -> None:
        found = sketch(update, self.size)
        if found is None:
            self._skipped[name] = "all zero or not finite"
        else:
            self._rows.append((module, name, *found))

    # -- at the end ------------------------------------------------------------------------------------------------

    def features(self, scales: Mapping[str, float]) -> ModuleFeatures:
        """The sketches, every module's product times its scale."""
        skipped, product = dict(self._skipped), self.size.slices[0]
        rows, norms, names = [], [], []
        for module, name, row, norm in sorted(self._rows, key=lambda found: found[1]):
            scale = scales.get(module, 1.0)
            if scale == 0 or not math.isfinite(scale):
                skipped[name] = "all zero or not finite"
                continue
            if scale < 0:
                row = row.copy()
                row[product] *= -1
            rows.append(row)
            norms.append(norm + math.log(abs(scale)))
            names.append(name)
        stacked = np.stack(rows) if rows else np.zeros((0, self.size.width), np.float32)
        return ModuleFeatures(tuple(names), stacked, np.array(norms, np.float32), skipped)

    def response(self, scales: Mapping[str, float]) -> ResponseFactors | None:
        """The response factors. Raises :class:`Incomplete` when other layers than those kept are needed."""
        spaces = {space: [_scaled(self._layers[m], scales.get(m, 1.0)) for m in modules if m in self._layers]
                  for space, modules in self._spaces.items() if space in self._chosen}  # fmt: skip
        spaces = {space: [layer for layer in layers if layer.norm > 0] for space, layers in spaces.items()}
        if not all(spaces.values()) and len(self._chosen) < len(self._spaces):
            raise Incomplete
        return layer_factors({space: layers for space, layers in spaces.items() if layers})


class Incomplete(Exception):
    """A layer that was to be kept changes nothing, so that another one takes its place: read the file again."""


@dataclass(frozen=True)
class _Plain:
    """The fields of an update that :func:`.sketch.sketch` reads."""

    module: str
    up: Tensor
    down: Tensor
    mid: None = None
    dense: None = None


def _scaled(layer: Layer, scale: float) -> Layer:
    gram = layer.gram * scale**2 if layer.gram is not None else None
    down = layer.down if layer.gram is not None else layer.down * scale
    return Layer(down, gram, layer.norm * abs(scale))


def _spaces(family: str, widths: Mapping[str, int]) -> dict[Space, list[str]]:
    """Space → the modules of the file that read it."""
    found: dict[Space, list[str]] = {}
    for module in widths:
        space = space_of(family, module.partition("[")[0])
        if space is not None:
            found.setdefault(space, []).append(module)
    return found


def _alike(bounds: Sequence[int]) -> Iterator[list[tuple[int, int]]]:
    """Row blocks after one another of one height, which can be stacked."""
    blocks = list(zip(bounds[:-1], bounds[1:], strict=True))
    for _, same in groupby(blocks, key=lambda block: block[1] - block[0]):
        yield list(same)


def _portions(items: Sequence[Factors], most: int) -> Iterator[Sequence[Factors]]:
    for start in range(0, len(items), most):
        yield items[start : start + most]
