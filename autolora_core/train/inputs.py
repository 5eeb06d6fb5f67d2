"""What encoders see of a library's files: tokens for the set transformer, rows for ridge, and for the control nothing
but which layers there are and how loud they are.

Means, scales and principal directions are taken over all files of the family, held-out ones too: they need no caption,
and the files are there when the library is searched. Captions of held-out files are never looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..encode.features import FeatureSchema, ModuleFeatures
from ..encode.set_encoder import token_schema
from ..encode.tokens import TokenMap, assemble

# Directions kept a module: few modules are looked at closely, of hundreds each says little.
NUMBERS, LEAST_KEPT, MOST_KEPT = 1536, 4, 24


@dataclass(frozen=True)
class Inputs:
    """``schema`` lays out ``files`` (n, all of one family) as a library does; arrays are made when first asked for."""

    schema: FeatureSchema
    files: Sequence[ModuleFeatures]

    @classmethod
    def of(cls, family: str, files: Sequence[ModuleFeatures]) -> Inputs:
        """Learn the layout from ``files``, in this order."""
        return cls(FeatureSchema.learn(family, files), files)

    @cached_property
    def rows(self) -> np.ndarray:
        """(n, F) float32, what ridge reads."""
        return np.stack([self.schema.assemble(file).vector for file in self.files])

    @cached_property
    def kernel_rows(self) -> np.ndarray:
        """(n, ≤ n) rows with the inner products of :attr:`rows`: ridge gives the same on them, for less."""
        if self.rows.shape[1] <= len(self.rows):
            return self.rows
        gram = np.zeros((len(self.rows), len(self.rows)))
        for start in range(0, self.rows.shape[1], 4096):
            part = self.rows[:, start : start + 4096].astype(np.float64)
            gram += part @ part.T
        values, vectors = np.linalg.eigh(gram)
        return (vectors * np.sqrt(np.maximum(values, 0))).astype(np.float32)

    @cached_property
    def control(self) -> np.ndarray:
        """(n, 2 M) standardised: which modules there are and how loud they are. A recipe, not a content."""
        mask, norms = self._presence
        both = np.concatenate([mask, np.where(mask, norms, 0)], axis=1).astype(np.float64)
        both = (both - both.mean(axis=0)) / np.maximum(both.std(axis=0), 1e-6)
        return (both / max(both.shape[1], 1) ** 0.5).astype(np.float32)

    @cached_property
    def _presence(self) -> tuple[np.ndarray, np.ndarray]:
        """(n, M) bool and float32: which modules a file has, their log-norms."""
        place = {name: at for at, name in enumerate(self.schema.modules)}
        mask = np.zeros((len(self.files), len(place)), bool)
        norms = np.zeros(mask.shape, np.float32)
        for i, file in enumerate(self.files):
            at = [place[name] for name in file.modules]
            mask[i, at], norms[i, at] = True, file.log_norms
        return mask, norms

    @cached_property
    def recipes(self) -> np.ndarray:
        """(n,) int: files with the same modules at about the same loudness may be of one maker."""
        mask, norms = self._presence
        level = np.where(mask, norms, 0).sum(axis=1) / np.maximum(mask.sum(axis=1), 1)
        numbers: dict[tuple, int] = {}
        keys = [(row.tobytes(), int(round(2 * loud))) for row, loud in zip(mask, level.tolist(), strict=True)]
        return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)

    @cached_property
    def tokens(self) -> tuple[TokenMap, np.ndarray, np.ndarray]:
        """The map that an encoder file keeps, and the files as it gives them: (n, M, width) float32, (n, M) bool."""
        mask, norms = self._presence
        names, width = self.schema.modules, self.schema.size.width
        kept_numbers = int(np.clip(NUMBERS // max(len(names), 1), LEAST_KEPT, min(MOST_KEPT, width)))
        mean, basis = np.zeros((len(names), width), np.float32), np.zeros((len(names), kept_numbers, width), np.float32)
        kept = np.zeros((len(self.files), len(names), kept_numbers), np.float32)
        places = {modules: {name: i for i, name in enumerate(modules)} for modules in {f.modules for f in self.files}}
        for at, (name, there) in enumerate(zip(names, mask.T, strict=True)):
            who = np.flatnonzero(there)
            values = np.stack([self.files[i].rows[places[self.files[i].modules][name]] for i in who])
            mean[at], basis[at] = principal(values, kept_numbers)
            kept[who, at] = (values - mean[at]) @ basis[at].T
        scale = half_whitening(kept, mask)
        usual = np.where(mask, norms, 0).sum(axis=0) / np.maximum(mask.sum(axis=0), 1)
        map_ = TokenMap(token_schema(self.schema.family, self.schema.size, names), basis, mean, scale,
                        usual.astype(np.float32))  # fmt: skip
        return map_, assemble(kept, mask, norms, scale, map_.usual), mask


def principal(values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and ``count`` principal directions (count, d) of ``values`` (n, d); zero rows where there are fewer."""
    mean = values.mean(axis=0, dtype=np.float64)
    rows = values - mean
    basis = np.zeros((count, values.shape[1]), np.float32)
    power, vectors = np.linalg.eigh(rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows)
    order = np.argsort(-power)[: min(count, len(rows) - 1, rows.shape[1])]
    order = order[power[order] > 1e-7 * max(float(power.max()), 1e-30)]
    found = vectors[:, order].T
    if len(rows) <= rows.shape[1]:
        found = found @ rows / np.sqrt(power[order])[:, None]
    # A direction and its opposite are the same: the largest entry is positive.
    found = found * np.sign(np.take_along_axis(found, np.abs(found).argmax(axis=1)[:, None], axis=1))
    basis[: len(found)] = found
    return mean.astype(np.float32), basis


def half_whitening(kept: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(n, M, k) and (n, M) → (M, k) divisors half-way to whitening: leading directions stay louder, the rest can be
    heard."""
    spread = np.sqrt((kept**2 * mask[..., None]).sum(axis=0) / mask.sum(axis=0).clip(1)[:, None])
    return np.sqrt(spread * np.sqrt((spread**2).mean(axis=1, keepdims=True))).astype(np.float32)
