"""One vector a file: sketches of its modules laid out on a module list common to the whole family.

Two steps, so that a growing library recomputes nothing: :func:`module_features` reads a file once (store its result),
:class:`FeatureSchema` then places, centres and scales it. A new file with a new module changes the schema, not the
stored sketches.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from .canonical import has_linear_part
from .sample import layer_of, sampled
from .sketch import KINDS, SketchSize, sketch

if TYPE_CHECKING:
    from ..lora.adapters import Update
    from ..lora.file import LoraFile

# Sketch noise falls with the numbers a file, not a module: where few modules are sketched their rows are longer.
SIZE_FEW_MODULES = SketchSize(product=16, gram=8, diag=16)
SIZE_MANY_MODULES = SketchSize(product=12, gram=8, diag=16)
FAMILIES_OF_FEW_MODULES = frozenset({"emoji"})
# Centring on fewer files than this would remove what the files say.
MIN_FILES_TO_CENTRE = 3
# Part of every id: raise it when the numbers of `sketch` change, so that stored rows are not mixed with new ones.
SKETCH_VERSION = 1

_FUSED = re.compile(r"(?:^|[._])(?:qkv|to_qkv|qkv_proj|in_proj|single_blocks\.\d+\.(?P<mlp>linear1))$")


def size_for(family: str) -> SketchSize:
    """The sketch size of a base family; fixed for ever, so that rows of one family always agree."""
    return SIZE_FEW_MODULES if family in FAMILIES_OF_FEW_MODULES else SIZE_MANY_MODULES


@dataclass(frozen=True)
class ModuleFeatures:
    """What one file says, before any comparison: row i of ``rows`` (m, width) float32 belongs to ``modules[i]``.

    ``log_norms`` (m,) float32 is ln ‖ΔW‖_F. ``skipped`` names modules left out, with the reason.
    """

    modules: tuple[str, ...]
    rows: np.ndarray
    log_norms: np.ndarray
    skipped: dict[str, str]


@dataclass(frozen=True)
class Features:
    """One file on its family's schema: ``vector`` (F,) float32, zero where ``mask`` (M,) bool says absent;

    ``log_norms`` (M,) float32 (zero where absent), ``modules`` the M names. F = M · sketch width.
    """

    vector: np.ndarray
    mask: np.ndarray
    log_norms: np.ndarray
    modules: tuple[str, ...]


def module_features(updates: Iterable[Update], size: SketchSize) -> ModuleFeatures:
    """Sketch every one of ``updates``, fused qkv split first."""
    rows, norms, skipped = {}, {}, {}
    for update in (part for whole in updates for part in split_fused(whole)):
        if not has_linear_part(update):
            skipped[update.module] = f"{update.rule or update.kind} is not a matrix that is added"
            continue
        found = sketch(update, size)
        if found is None:
            skipped[update.module] = "all zero or not finite"
            continue
        rows[update.module], norms[update.module] = found
    names = tuple(sorted(rows))
    stacked = np.stack([rows[name] for name in names]) if names else np.zeros((0, size.width), np.float32)
    return ModuleFeatures(names, stacked, np.array([norms[name] for name in names], np.float32), skipped)


def file_features(lora: LoraFile) -> ModuleFeatures:
    """:func:`module_features` of the layers of an open file that are sketched (:func:`.sample.sampled`), or where these
    are zero, as in a file that was made of a few blocks of another, of all."""
    size, chosen = size_for(lora.family.name), sampled(lora.family.name, lora.entries)
    found = module_features((lora.update(name) for name in lora.modules if layer_of(name) in chosen), size)
    return found if found.modules else module_features(lora.updates(), size)


def split_fused(update: Update) -> Iterator[Update]:
    """The update's q, k and v (and mlp) row blocks as updates of their own, named ``module[start:stop]``.

    A file that trained one LoRA on the fused projection and one that trained three give the same modules. Updates
    that are no fused projection, or already a slice, come back as they are.
    """
    tensor = update.dense if update.dense is not None else update.up
    if tensor is None or tensor.ndim < 2:
        yield update
        return
    bounds = fused_bounds(
        update.module, tensor.shape[0], (tensor if update.dense is not None else update.down).shape[1]
    )
    if bounds is None:
        yield update
        return
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        part = {"dense": update.dense[start:stop]} if update.dense is not None else {"up": update.up[start:stop]}
        yield replace(update, module=f"{update.module}[{start}:{stop}]", bias=None, **part)


def fused_bounds(module: str, outputs: int, inputs: int) -> list[int] | None:
    """Row bounds of q, k, v (and mlp) in a layer of that name and size, or None when nothing in it is fused."""
    match = _FUSED.search(module)
    if match is None:
        return None
    if match["mlp"] is not None:  # FLUX single block: q, k, v of the model's width, then the mlp
        return [0, inputs, 2 * inputs, 3 * inputs, outputs] if outputs > 3 * inputs else None
    if outputs % 3 == 0 and (outputs == 3 * inputs or outputs <= inputs):
        return [0, outputs // 3, 2 * outputs // 3, outputs]
    if outputs > inputs and (outputs - inputs) % 2 == 0:  # grouped-query attention: k and v are narrower than q
        return [0, inputs, inputs + (outputs - inputs) // 2, outputs]
    return None


@dataclass(frozen=True)
class FeatureSchema:
    """Module list and standardisation of one family's library.

    ``modules`` (M names, sorted), ``mean`` (M, width) float32, ``scale`` (M, kinds) float32: the root mean square of
    the centred rows by module and kind of number; zero switches a block off.
    """

    family: str
    size: SketchSize
    modules: tuple[str, ...]
    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def learn(cls, family: str, files: Sequence[ModuleFeatures], size: SketchSize | None = None) -> FeatureSchema:
        """Schema of ``files``, all of ``family``; order of the files does not matter beyond float rounding."""
        size = size or size_for(family)
        modules = tuple(sorted({name for file in files for name in file.modules}))
        place = {name: i for i, name in enumerate(modules)}
        total, square = np.zeros((len(modules), size.width)), np.zeros((len(modules), size.width))
        count = np.zeros((len(modules), 1))
        for file in files:
            at = [place[name] for name in file.modules]
            total[at] += file.rows
            square[at] += np.square(file.rows, dtype=np.float64)
            count[at] += 1
        mean = np.where(count >= MIN_FILES_TO_CENTRE, total / np.maximum(count, 1), 0)
        spread = square / np.maximum(count, 1) - np.square(mean)
        scale = np.stack([np.sqrt(np.maximum(spread[:, part].mean(axis=1), 0)) for part in size.slices], axis=1)
        return cls(family, size, modules, mean.astype(np.float32), scale.astype(np.float32))

    @property
    def width(self) -> int:
        """F, the length of a vector."""
        return len(self.modules) * self.size.width

    @property
    def id(self) -> str:
        """12 hex digits over everything that decides a vector."""
        digest = hashlib.sha256(repr((SKETCH_VERSION, self.family, self.size, self.modules)).encode())
        digest.update(self.mean.tobytes() + self.scale.tobytes())
        return digest.hexdigest()[:12]

    def assemble(self, file: ModuleFeatures) -> Features:
        """Place a file's rows: centred, every block scaled to unit mean square, absent modules zero.

        The vector is divided by the root of the number of numbers present, so a partial file is as loud as a full
        one. Modules that the schema does not know are left out.
        """
        grid = np.zeros((len(self.modules), self.size.width), np.float32)
        mask, norms = np.zeros(len(self.modules), bool), np.zeros(len(self.modules), np.float32)
        place = {name: i for i, name in enumerate(self.modules)}
        known = [(i, place[name]) for i, name in enumerate(file.modules) if name in place]
        if known:
            source, target = (list(side) for side in zip(*known, strict=True))
            grid[target] = file.rows[source] - self.mean[target]
            mask[target], norms[target] = True, file.log_norms[source]
        for kind, part in enumerate(self.size.slices):
            scale = self.scale[:, kind : kind + 1]
            # Every kind weighs the same, however many numbers it has.
            weight = (len(KINDS) * (part.stop - part.start)) ** -0.5
            grid[:, part] *= np.where(scale > 1e-9, weight / np.maximum(scale, 1e-9), 0)
        vector = grid.ravel() / np.float32(max(int(mask.sum()), 1) ** 0.5)
        return Features(vector, mask, norms, self.modules)


def featurize(lora_file: LoraFile, schema: FeatureSchema) -> Features:
    """Read ``lora_file`` and place it on ``schema``: :func:`file_features`, then :meth:`FeatureSchema.assemble`."""
    return schema.assemble(file_features(lora_file))
