"""Second copies and pieces of finished LoRAs, as folders have them: re-saved, re-scaled, re-factorised, partial."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zoo.lora_plan import ATTENTION, LoraSpec, meaningless_name
from zoo.raw_factors import Factors


@dataclass(frozen=True)
class Variant:
    """A file made from another: ``spec`` says how it is written, ``change`` what is done to the factors."""

    spec: LoraSpec
    source: LoraSpec
    change: Callable[[Factors], Factors]


def unchanged(factors: Factors) -> Factors:
    return factors


def louder(factors: Factors) -> Factors:
    return {n: (d, u * 1.3) for n, (d, u) in factors.items()}


def refactorised(factors: Factors) -> Factors:
    """A -> R A, B -> B R⁻¹ with a random well-conditioned R: the same update in other numbers."""
    generator = torch.Generator().manual_seed(5)
    out = {}
    for name, (down, up) in factors.items():
        r = down.shape[0]
        matrix = torch.linalg.qr(torch.randn(r, r, generator=generator))[0] * (0.5 + torch.rand(r, generator=generator))
        out[name] = matrix @ down, up @ torch.linalg.inv(matrix)
    return out


def of_rank(down: Tensor, up: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of an update ``up down`` by ``rank`` (Eckart and Young 1936), in factors again."""
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.T)
    u, s, vh = torch.linalg.svd(r_up @ r_down.T)
    return vh[:rank] @ q_down.T, (q_up @ u)[:, :rank] * s[:rank]


def first_blocks(factors: Factors) -> Factors:
    return {n: f for n, f in factors.items() if n.startswith(("joint_blocks.0.", "joint_blocks.1."))}


def image_side(factors: Factors) -> Factors:
    return {n: f for n, f in factors.items() if ".x_block." in n}


CHANGES = (unchanged, louder, refactorised, first_blocks, image_side, refactorised, first_blocks)


def variants(specs: Sequence[LoraSpec]) -> list[Variant]:
    """Seven, from fixed places of the list; each keeps its source's recipe but another key format and no metadata."""
    out = []
    for j, change in enumerate(CHANGES):
        # Every fifth from the seventh on; a source needs the image stream's layers for its piece to be something.
        able = [s for s in specs if ATTENTION in s.creator.layers]
        source = next((s for s in specs[7 + 5 * j :] if s in able), able[0] if able else None)
        if source is None:
            break
        creator = replace(source.creator, keys="native" if source.creator.keys != "native" else "kohya")
        name = meaningless_name(900 + j)
        out.append(
            Variant(replace(source, id=f"v{j}", creator=creator, metadata="none", file_name=name), source, change)
        )
    return out
