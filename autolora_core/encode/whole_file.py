"""What one file is kept as, from its modules as they come out of the stream: each tensor is seen once.

:class:`WholeFile` says which modules it needs (:attr:`WholeFile.needed`) and takes these in any order and any portions,
without their scales (an alpha may lie behind the factors it scales); :meth:`WholeFile.features` and
:meth:`WholeFile.response` put the scales in at the end.
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

from .batched import Sketched, sketch_modules
from .canonical import has_linear_part
from .features import ModuleFeatures, fused_bounds, size_for, split_fused
from .long_products import grams
from .response_factors import Layer, ResponseFactors, kept, layer_factors
from .sample import layer_of, sampled
from .sketch import sketch
from .spaces import Space, space_of

if TYPE_CHECKING:
    from ..lora.adapters import Update

# Numbers of one stack of r×r matrices.
CORE_NUMBERS = 1 << 20


@dataclass(frozen=True)
class Factors:
    """A low-rank module as stored, without its scale: ``up`` (out, r, …), ``down`` (r, in, …)."""

    module: str
    up: Tensor
    down: Tensor


class WholeFile:
    """One file of ``family``. ``widths``: module → inputs (in·k) of every module that the header names, None where it
    does not tell.

    ``needed``: those modules that are to be given, for their sketch or for the response.
    """

    def __init__(self, family: str, widths: Mapping[str, int | None]):
        self.family, self.size = family, size_for(family)
        self._rows: list[tuple[str, str, np.ndarray, float]] = []  # module, name, row, log norm, all without scale
        self._skipped: dict[str, str] = {}
        self._layers: dict[str, Layer] = {}
        self._spaces = _spaces(family, {module: width for module, width in widths.items() if width is not None})
        self._chosen = set(kept({space: widths[modules[0]] for space, modules in self._spaces.items()}))
        self._reached = {module for space in self._chosen for module in self._spaces[space]}
        layers = sampled(family, widths)
        self._sketched = {module for module in widths if layer_of(module) in layers}
        self.needed = self._sketched | self._reached
        self._silent: set[str] = set()  # reached, but zero or not finite

    # -- taking modules --------------------------------------------------------------------------------------------

    def add(self, modules: Sequence[Factors]) -> list[str]:
        """Take low-rank modules. Returns those whose values must be looked at: some may be zero or not finite."""
        odd = []
        for (rank, sketched), same in groupby(sorted(modules, key=self._sort), key=self._sort):
            for some in _portions(list(same), max(1, CORE_NUMBERS // rank**2)):
                odd += self._take(some, *(self._sketched_grams(some) if sketched else _plain_grams(some)))
        return odd

    def _sort(self, module: Factors) -> tuple[int, bool]:
        return module.down.shape[0], module.module in self._sketched

    def _sketched_grams(self, modules: Sequence[Factors]) -> tuple[Tensor, Tensor]:
        """Sketch modules of one rank; (modules, r, r) upᵀup and down downᵀ."""
        parts = [_parts(module) for module in modules]
        gram, gram_down = self._sketch(parts, [_wide(module) for module in modules])
        if gram.shape[0] > len(modules):
            owner = torch.tensor([number for number, some in enumerate(parts) for _ in some])
            gram = torch.zeros_like(gram_down).index_add_(0, owner, gram)
        return gram, gram_down

    def _take(self, modules: Sequence[Factors], gram: Tensor, gram_down: Tensor) -> list[str]:
        """Modules of one rank with their Gram matrices; those that may be zero or not finite."""
        loud = (gram * gram_down).sum(dim=(1, 2)).tolist()
        sums = (gram.diagonal(dim1=1, dim2=2).sum(1) * gram_down.diagonal(dim1=1, dim2=2).sum(1)).tolist()
        odd = {module.module for module, sum_ in zip(modules, sums, strict=True) if not 0 < sum_ < math.inf}
        for number, module in enumerate(modules):
            if module.module in self._reached:
                self._hold(module, gram[number], loud[number], module.module in odd)
        return list(odd)

    def _hold(self, module: Factors, gram: Tensor, squared: float, odd: bool) -> None:
        if odd or not 0 < squared < math.inf:
            self._silent.add(module.module)
        else:
            self._layers[module.module] = Layer(_wide(module).clone(), gram.clone(), squared**0.5)

    def _sketch(self, parts: Sequence[Sequence[_Part]], downs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Sketch modules of one rank, again in float64 what float32 blurs; (parts, r, r) upᵀup and (modules, r, r)
        down downᵀ."""
        found = sketch_modules(*_split(parts), downs, self.size)
        flat = [(part, down) for some, down in zip(parts, downs, strict=True) for part in some]
        unsure = self._keep_sure([part for part, _ in flat], found)
        if unsure:
            found.gram[unsure] = self._sketch_doubtful([flat[number] for number in unsure])
        return found.gram, found.gram_down

    def _sketch_doubtful(self, parts: Sequence[tuple[_Part, Tensor]]) -> Tensor:
        """In float64, one by one what even that blurs; (parts, r, r) upᵀup."""
        alone, downs = [[part] for part, _ in parts], [down for _, down in parts]
        found = sketch_modules(*_split(alone), downs, self.size, torch.float64)
        for number in self._keep_sure([part for part, _ in parts], found):
            part, down = parts[number]
            self._keep(part.module, part.name, _Plain(part.name, part.up, down))
        return found.gram

    def _keep_sure(self, parts: Sequence[_Part], found: Sketched) -> list[int]:
        """Keep the rows that can be used; the places of the others."""
        rows, norms, sure = found.rows.numpy(), found.log_norms.tolist(), found.sure.tolist()
        for part, row, norm, good in zip(parts, rows, norms, sure, strict=True):
            if good:
                self._rows.append((part.module, part.name, row, norm))
        return [number for number, good in enumerate(sure) if not good]

    def add_update(self, module: str, update: Update) -> None:
        """Take a module of another kind (dense, Tucker, DoRA, …)."""
        for part in split_fused(update) if module in self._sketched else ():
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
class _Part:
    """Rows of a module that are sketched under a name of their own: ``up`` (rows, r)."""

    module: str
    name: str
    up: Tensor


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


def _wide(module: Factors) -> Tensor:
    """The down factor as (r, in·k)."""
    return module.down.reshape(module.down.shape[0], -1)


def _plain_grams(modules: Sequence[Factors]) -> tuple[Tensor, Tensor]:
    """(modules, r, r) float64 upᵀup and down downᵀ of modules of one rank."""
    ups = [module.up.reshape(module.up.shape[0], -1) for module in modules]
    return grams(ups, True), grams([_wide(module) for module in modules], False)


def _parts(module: Factors) -> list[_Part]:
    """The module itself, or the row blocks of a fused one (:func:`.features.split_fused`)."""
    up = module.up.reshape(module.up.shape[0], -1)
    bounds = fused_bounds(module.module, up.shape[0], module.down.shape[1])
    if bounds is None:
        return [_Part(module.module, module.module, up)]
    return [_Part(module.module, f"{module.module}[{start}:{stop}]", up[start:stop])
            for start, stop in zip(bounds[:-1], bounds[1:], strict=True)]  # fmt: skip


def _split(parts: Sequence[Sequence[_Part]]) -> tuple[list[list[str]], list[list[Tensor]]]:
    """Names and up factors, module by module."""
    return [[part.name for part in some] for some in parts], [[part.up for part in some] for some in parts]


def _portions(items: Sequence[Factors], most: int) -> Iterator[Sequence[Factors]]:
    for start in range(0, len(items), most):
        yield items[start : start + most]
