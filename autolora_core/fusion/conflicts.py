"""Where LoRAs meet, and how their updates stand to each other there, told from the factors.

For LoRAs i and j at one layer, ΔW_i = U_i D_i:

    inner product   ⟨ΔW_i, ΔW_j⟩ = Σ (U_iᵀ U_j) ∘ (D_i D_jᵀ)                 no dense matrix is made
    read            ‖Q_iᵀ Q_j‖²_F / min(r_i, r_j), Q = orthonormal basis of the rows of ΔW (its input space)
    write           the same of its columns (its output space)

A mean squared cosine of principal angles: 0 where the spaces are at right angles, 1 where one lies in the other. Chance
is what updates of the same sizes and ranks, turned at random, would have: a cosine that scatters by 1/√(out·in) and
overlaps of max(r_i, r_j)/n. The bases are found through Gram matrices in float64, which gives what a QR gives, without
its arbitrary directions where an update has not its full rank.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .branches import Branch
from .methods.factors import NEGLIGIBLE, factors_of
from .methods.rows import Part, blocks, dense_rows, parts_of
from .plan import by_module

SMALL_DENSE = 1 << 20  # numbers; finding the directions of a larger update that has no factors takes seconds
Pair = tuple[int, int]
Tick = Callable[[str], None]


@dataclass(frozen=True)
class Spaces:
    """Overlaps in [0, 1] of what two LoRAs read and write at a layer, and what chance gives."""

    read: float
    read_chance: float
    write: float
    write_chance: float


@dataclass(frozen=True)
class Layer:
    """One layer. ``inner`` (K, K) float64: inner products of the updates of ``loras``, strengths in them, squared norms
    on its diagonal. ``scatter`` (K, K): standard deviation of the inner products if the updates were turned at random.
    ``spaces``: for pairs of LoRA numbers, i < j; without those that have no factors. ``base``: squared norm of the base
    weight, None where it cannot be read.
    """

    module: str
    loras: tuple[int, ...]
    inner: np.ndarray
    scatter: np.ndarray
    spaces: dict[Pair, Spaces] = field(default_factory=dict)
    base: float | None = None

    def energy(self, lora: int) -> float:
        """Squared norm of a LoRA's update; 0 where it has none."""
        return self.product(lora, lora)

    def product(self, one: int, two: int) -> float:
        """Inner product of two LoRAs' updates; 0 where one has none."""
        if one not in self.loras or two not in self.loras:
            return 0.0
        return float(self.inner[self.loras.index(one), self.loras.index(two)])

    def scattered(self, one: int, two: int) -> float:
        """Standard deviation of :meth:`product` under chance."""
        return float(self.scatter[self.loras.index(one), self.loras.index(two)])


def measure(
    branches: Iterable[Branch],
    channels: Mapping[str, int],
    base: Callable[[str], float | None] = lambda module: None,
    tick: Tick | None = None,
) -> list[Layer]:
    """Every layer that a LoRA touches. ``channels``: module → output channels; ``base``: module → squared norm of its
    weight, if known; ``tick`` is called with every module's name before it is measured, and may raise."""
    layers = []
    for name, found in by_module(branches).items():
        if tick is not None:
            tick(name)
        layers.append(measure_layer(name, parts_of(found), channels[name], base(name)))
    return layers


def measure_layer(module: str, parts: Sequence[Part], channels: int, base: float | None = None) -> Layer:
    """One layer with ``channels`` output channels; ``parts``: one a LoRA."""
    thin = [_thin(part, channels) for part in parts]
    grams = _Grams([one for one in thin if one is not None])
    places = dict(zip((k for k, one in enumerate(thin) if one is not None), range(len(thin)), strict=False))
    inner = np.zeros((len(parts), len(parts)))
    for i, j in itertools.combinations_with_replacement(range(len(parts)), 2):
        exact = all(thin[k] is not None and thin[k].exact for k in (i, j))
        found = grams.inner(places[i], places[j]) if exact else inner_product(parts[i], parts[j], channels)
        inner[i, j] = inner[j, i] = found
    loras = tuple(part.lora for part in parts)
    reach = [_reached(part, channels) for part in parts]
    columns = parts[0].branches[0].columns
    spaces = {}
    for i, j in itertools.combinations(places, 2):
        met = grams.spaces(places[i], places[j], columns, _same_rows(reach[i], reach[j]))
        if met is not None:
            spaces[loras[i], loras[j]] = met
    return Layer(module, loras, inner, _scatter(inner, reach, columns), spaces, base)


def inner_product(one: Part, two: Part, channels: int) -> float:
    """⟨ΔW_one, ΔW_two⟩ at a module of ``channels`` output channels, exactly, whatever the kinds of their branches."""
    return sum(_inner(a, b, channels) for a in one.branches for b in two.branches)


def energy(branches: Sequence[Branch], channels: int) -> float:
    """Squared norm of the sum of one LoRA's branches at a module."""
    part = Part(0, tuple(branches))
    return max(inner_product(part, part, channels), 0.0)


def _inner(a: Branch, b: Branch, channels: int) -> float:
    (first, last), (low, high) = a.span(channels), b.span(channels)
    start, stop = max(first, low), min(last, high)
    if start >= stop:
        return 0.0
    a, b = a.rows(start, stop), b.rows(start, stop)
    if a.kind == "lowrank":
        a, b = b, a
    scale = a.scale * b.scale
    if b.kind == "lowrank":
        return scale * float((_applied(a, b.full_down()) * b.up.double()).sum())
    if a.kind == b.kind == "kron" and a.left.shape == b.left.shape and a.right.shape == b.right.shape:
        return scale * float((a.left.double() * b.left).sum() * (a.right.double() * b.right).sum())
    return _dense_inner(a, b, channels)


def _applied(branch: Branch, inputs: Tensor) -> Tensor:
    """(out, r): the update, without its scale, applied to ``inputs`` (r, in, *k)."""
    if branch.kind == "lowrank":
        return branch.up.double() @ (branch.full_down().flatten(1) @ inputs.flatten(1).T)
    if branch.kind == "dense":
        return branch.dense.double().flatten(1) @ inputs.flatten(1).T
    left, right = branch.left.double(), branch.right.double().reshape(*branch.right.shape[:2], -1)
    inputs = inputs.reshape(len(inputs), left.shape[1], right.shape[1], -1)
    return torch.einsum("ab,rbc->acr", left, torch.einsum("cdk,rbdk->rbc", right, inputs)).flatten(0, 1)


def _dense_inner(a: Branch, b: Branch, channels: int) -> float:
    """A few rows at a time, for two updates that share no structure."""
    total = 0.0
    for start, stop in blocks(channels, a.columns):
        rows = [dense_rows(Part(0, (one,)), start, stop, channels).double() for one in (a, b)]
        total += float((rows[0] * rows[1]).sum())
    return total


@dataclass(frozen=True)
class _Thin:
    """``up`` (channels, R), ``down`` (R, in·kernel), float64; not ``exact``: only the largest directions."""

    up: Tensor
    down: Tensor
    exact: bool


def _thin(part: Part, channels: int) -> _Thin | None:
    """All branches of one LoRA side by side; None for a large one without factors."""
    ups, downs, exact = [], [], True
    for branch in part.branches:
        if branch.kind == "dense" and branch.dense.numel() > SMALL_DENSE:
            return None
        factors = factors_of(branch, branch.rank) if branch.rank else factors_of(branch)
        up, (start, stop) = factors.up, branch.span(channels)
        if (start, stop) != (0, channels):
            up = torch.nn.functional.pad(up, (0, 0, start, channels - stop))
        ups, downs, exact = [*ups, up], [*downs, factors.down], exact and factors.exact
    return _Thin(torch.cat(ups, 1), torch.cat(downs), exact)


class _Grams:
    """UᵀU and DDᵀ of all LoRAs of a layer at once; places are those in ``thin``."""

    def __init__(self, thin: Sequence[_Thin]):
        edges = [0, *itertools.accumulate(len(one.down) for one in thin)]
        self._spans = [slice(*ends) for ends in itertools.pairwise(edges)]
        if not thin:
            return
        up, down = torch.cat([one.up for one in thin], 1), torch.cat([one.down for one in thin])
        self._up, self._down = up.T @ up, down @ down.T
        self._found: dict[int, tuple[Tensor, Tensor]] = {}

    def inner(self, i: int, j: int) -> float:
        """Inner product of two updates that are exactly their factors."""
        a, b = self._spans[i], self._spans[j]
        return float((self._up[a, b] * self._down[a, b]).sum())

    def spaces(self, i: int, j: int, columns: int, share: float) -> Spaces | None:
        """Of two LoRAs; ``share``: see :func:`_same_rows`. None where an update is zero."""
        (read_i, write_i), (read_j, write_j) = self._bases(i), self._bases(j)
        ranks = (read_i.shape[1], read_j.shape[1])
        if not min(ranks):
            return None
        a, b = self._spans[i], self._spans[j]
        read = float((read_i.T @ self._down[a, b] @ read_j).square().sum()) / min(ranks)
        write = float((write_i.T @ self._up[a, b] @ write_j).square().sum()) / min(write_i.shape[1], write_j.shape[1])
        largest = max(ranks)
        return Spaces(min(read, 1.0), min(largest / columns, 1.0), min(write, 1.0), min(largest * share, 1.0))

    def _bases(self, i: int) -> tuple[Tensor, Tensor]:
        """(R, r) each: Dᵀ @ the first and U @ the second are orthonormal bases of what ΔW = U D reads and writes.

        Rows of D that U drops, and columns of U that D never feeds (q, k and v that share one down), do not count.
        """
        if i not in self._found:
            own = self._spans[i]
            up, down = self._up[own, own], self._down[own, own]
            heard, fed = _directions(up)[0], _directions(down)[0]
            self._found[i] = (_whitened(heard, down), _whitened(fed, up))
        return self._found[i]


def _whitened(kept: Tensor, gram: Tensor) -> Tensor:
    vectors, values = _directions(kept.T @ gram @ kept)
    return kept @ (vectors / values.sqrt())


def _directions(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors (R, r) and eigenvalues (r,) of a Gram matrix that are no rounding."""
    values, vectors = torch.linalg.eigh(gram)
    largest = float(values.max()) if len(values) else 0.0
    kept = values > NEGLIGIBLE * max(largest, 1e-300)
    return vectors[:, kept], values[kept]


def _reached(part: Part, channels: int) -> np.ndarray:
    """(channels,) bool: the output channels that a LoRA changes."""
    reach = np.zeros(channels, bool)
    for branch in part.branches:
        reach[slice(*branch.span(channels))] = True
    return reach


def _same_rows(one: np.ndarray, two: np.ndarray) -> float:
    """|S_i ∩ S_j| / (|S_i| |S_j|): what the squared cosine of two random directions is on average."""
    return float((one & two).sum()) / (float(one.sum()) * float(two.sum()))


def _scatter(inner: np.ndarray, reach: Sequence[np.ndarray], columns: int) -> np.ndarray:
    norms = np.sqrt(np.maximum(np.diag(inner), 0))
    share = np.array([[_same_rows(one, two) for two in reach] for one in reach])
    return np.outer(norms, norms) * np.sqrt(share / columns)


@dataclass(frozen=True)
class Meeting:
    """Two LoRAs over the ``layers`` they share, each layer counted by the product of their sizes.

    ``cosine`` is that of both updates laid end to end; under chance it scatters around 0 by ``spread``. ``spaces`` is
    None where no layer had any; cosine is 0 where they meet nowhere.
    """

    one: int
    two: int
    layers: int
    cosine: float
    spread: float
    spaces: Spaces | None


def meet(layers: Iterable[Layer], one: int, two: int) -> Meeting:
    """Two LoRAs over some layers, such as those of a block."""
    shared = [layer for layer in layers if one in layer.loras and two in layer.loras]
    product = sum(layer.product(one, two) for layer in shared)
    scatter = math.sqrt(sum(layer.scattered(one, two) ** 2 for layer in shared))
    size = math.sqrt(sum(layer.energy(one) for layer in shared) * sum(layer.energy(two) for layer in shared)) or 1.0
    return Meeting(one, two, len(shared), product / size, scatter / size, _mean_spaces(shared, one, two))


def _mean_spaces(shared: Sequence[Layer], one: int, two: int) -> Spaces | None:
    pair = (min(one, two), max(one, two))
    found = [(layer.spaces[pair], layer) for layer in shared if pair in layer.spaces]
    if not found:
        return None
    weights = np.array([math.sqrt(max(layer.energy(one) * layer.energy(two), 0)) for _, layer in found])
    rows = np.array([(s.read, s.read_chance, s.write, s.write_chance) for s, _ in found])
    return Spaces(*(float(v) for v in weights @ rows / weights.sum()))
