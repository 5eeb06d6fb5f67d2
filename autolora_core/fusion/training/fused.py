"""A layer's low-rank LoRAs through the gate in training, without their outputs (see :mod:`..fast.backward`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..branches import Branch
from ..fast import backward
from ..fast.packed import Packed, coefficients, moments_of
from ..gate import EPS
from .parameters import GateParameters, spans_of

Span = tuple[int, int]


@dataclass(frozen=True)
class _Piece:
    """What a LoRA puts on a gated span. ``members``: number of a branch, rows of its up factor, rows of the span.

    ``mean`` (r,), ``root`` (r, min(d, r)) float32 of all those factors side by side: see :class:`..fast.packed.Packed`.
    """

    members: tuple[tuple[int, Span, Span], ...]
    mean: Tensor
    root: Tensor


class FusedLoras:
    """The LoRAs of one layer, number → branches; any of them may speak together. Up factors stay where they are."""

    def __init__(self, name: str, channels: int, loras: Mapping[int, Sequence[Branch]]):
        self.name, self.channels, self.loras = name, channels, loras
        self._pieces: dict[tuple[str, int], _Piece] = {}
        for entry, start, stop in spans_of(name, channels):
            for lora in loras:
                if members := self._members(lora, start, stop):
                    self._pieces[entry, lora] = self._measured(lora, members, stop - start)

    @staticmethod
    def take(loras: Mapping[int, Sequence[Branch]]) -> bool:
        """Whether all are of low rank."""
        return all(branch.kind == "lowrank" for own in loras.values() for branch in own)

    def output(
        self, parameters: GateParameters, y0: Tensor, heard: Mapping[int, Sequence[Tensor]],
        roles: Mapping[int, str | None], count: float, u: float, dim: int,
    ) -> Tensor:  # fmt: skip
        """The layer's output with its LoRAs. ``y0`` (…, d), or (n, d, …) with ``dim`` = 1; ``heard``: for each LoRA
        that speaks what each of its branches' up factors reads, scaled, (…, r) or (n, r, …)."""
        flat = {lora: [h.movedim(dim, -1).flatten(0, -2) for h in own] for lora, own in heard.items()}
        last = y0.movedim(dim, -1)
        base, parts = last.flatten(0, -2), []
        for entry, start, stop in spans_of(self.name, self.channels):
            pieces = {lora: self._pieces[entry, lora] for lora in heard if (entry, lora) in self._pieces}
            part = base.narrow(-1, start, stop - start)
            if pieces:
                vectors = parameters.live(entry, y0.device)
                hidden = torch.cat([flat[lora][m[0]] for lora, piece in pieces.items() for m in piece.members], -1)
                packed = self._packed(pieces, stop - start, hidden)
                knobs = parameters.knobs(entry, [roles.get(lora) for lora in pieces], count, u, y0.device)
                table = coefficients(vectors, products=torch.float32)  # not every device has float64
                part = backward.gated(part, hidden, packed, table, knobs, EPS)
            parts.append(part)
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return whole.unflatten(0, last.shape[:-1]).movedim(-1, dim)

    def _members(self, lora: int, start: int, stop: int) -> list[tuple[int, Span, Span]]:
        """Of a :class:`_Piece`."""
        members = []
        for number, branch in enumerate(self.loras[lora]):
            first, last = branch.span(self.channels)
            low, high = max(first, start), min(last, stop)
            if low < high:
                members.append((number, (low - first, high - first), (low - start, high - start)))
        return members

    def _measured(self, lora: int, members: Sequence[tuple[int, Span, Span]], width: int) -> _Piece:
        ups = [self.loras[lora][number].up for number, _, _ in members]
        whole = torch.zeros(width, sum(up.shape[1] for up in ups), dtype=torch.float64)
        at = 0
        for up, (_, (low, high), (first, last)) in zip(ups, members, strict=True):
            whole[first:last, at : at + up.shape[1]] = up[low:high]
            at += up.shape[1]
        mean, root = moments_of(whole)
        return _Piece(tuple(members), mean.float(), root.T.float())

    def _packed(self, pieces: Mapping[int, _Piece], width: int, like: Tensor) -> Packed:
        """Factors and statistics of some LoRAs side by side, where ``like`` is and in its dtype; no fill."""
        ranks = [len(piece.mean) for piece in pieces.values()]
        total, widest = sum(ranks), max(piece.root.shape[1] for piece in pieces.values())
        up, root = like.new_zeros(width, total), torch.zeros(total, widest)
        bounds, at = [], 0
        for (lora, piece), rank in zip(pieces.items(), ranks, strict=True):
            root[at : at + rank, : piece.root.shape[1]] = piece.root
            bounds.append((at, at + rank))
            for number, (low, high), (first, last) in piece.members:
                factor = self.loras[lora][number].up
                up[first:last, at : at + factor.shape[1]] = factor[low:high].to(up)
                at += factor.shape[1]
        mean = torch.cat([piece.mean for piece in pieces.values()])
        return Packed(up, mean.to(up.device), root.to(up.device), torch.tensor(bounds), tuple(bounds))
