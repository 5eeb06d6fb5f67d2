"""SSR-Merge (arXiv 2606.10617): LoRAs share one stacked subspace, and a router sends every signal to its owner.

Stack A = [A₁; …; A_K] and B = [B₁ … B_K]. With X_k the base's inputs of a layer for LoRA k's own prompt:

    Z_k = A X_k,   G = Σ_k Z_k Z_kᵀ,   block k of Q = (A_k X_k) Z_kᵀ,   R = Q G⁻¹,   merged ΔW = B R A

R is the least-squares answer to "on LoRA k's prompt only LoRA k speaks". R = I is the plain sum, and one LoRA alone
always gets R = I. The ridge pulls towards R = I, (Q + εI)(G + εI)⁻¹: where the prompts said nothing, LoRAs are summed.
LoRAs with one and the same prompt own its signal together, and G counts it once. Given to them one by one, equal Z
would be G = K·ZZᵀ against Q = ZZᵀ: R = I/K, a strength divided by the number of LoRAs that say the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..branches import Branch
from .factors import Factors, factors_of

# Relative to the power of a row of Z. The paper has none; with next to none (1e-4) the routers fit the few tokens they
# were shown and shout elsewhere: worse than the plain sum. On true composites of the demo base's training part the flow
# loss is 0.253 summed, and routed 0.237, 0.230, 0.2275, 0.228, 0.231 for ridges of 0.03, 0.1, 0.3, 1 and 3.
RIDGE = 0.3


@dataclass(frozen=True)
class Stack:
    """All branches of one module. ``down`` (R, in, *k) and ``up`` (out, R), float32, with strengths in ``up``;
    ``owner`` (R,) the LoRA of every row. ``rest`` are (branch, its rows) not wholly told by their factors."""

    module: str
    down: Tensor
    up: Tensor
    owner: Tensor
    rest: tuple[tuple[Branch, slice], ...]


def stack(branches: Sequence[Branch], channels: int) -> Stack:
    """Stack the branches of a module with ``channels`` output channels; a slice's ``up`` is zero elsewhere."""
    parts = [factors_of(branch) for branch in branches]
    down = torch.cat([part.down for part in parts])
    up = torch.cat([_padded(part, one, channels) for part, one in zip(parts, branches, strict=True)], 1)
    owner = torch.cat([torch.full((len(p.down),), b.lora_index) for p, b in zip(parts, branches, strict=True)])
    ends = torch.tensor([len(part.down) for part in parts]).cumsum(0).tolist()
    rest = tuple(
        (one, slice(end - len(part.down), end))
        for one, part, end in zip(branches, parts, ends, strict=True)
        if not part.exact
    )
    down = down.reshape(len(down), -1, *branches[0].kernel)
    return Stack(branches[0].module, down.float(), up.float(), owner, rest)


def _padded(part: Factors, branch: Branch, channels: int) -> Tensor:
    start, stop = branch.span(channels)
    whole = part.up.new_zeros(channels, part.up.shape[1])
    whole[start:stop] = part.up
    return whole


class Signals:
    """What one module's routers are made of, gathered prompt by prompt; two (R, R) float32 matrices, however many."""

    def __init__(self, owner: Tensor):
        self.owner = owner
        self.total, self.routed = (torch.zeros(len(owner), len(owner)) for _ in range(2))

    def add(self, loras: Sequence[int], gram: Tensor) -> None:
        """``gram`` (R, R) is Z Zᵀ of one prompt, or a part of its tokens; ``loras``: all whose prompt it is."""
        gram = gram.to("cpu", torch.float32)
        self.total += gram
        mine = torch.isin(self.owner, torch.tensor(loras))
        self.routed[mine] += gram[mine]

    def router(self, ridge: float = RIDGE) -> Tensor:
        """R (R, R), float64.

        Rows are brought to one power first, so the ridge means the same for loud and quiet LoRAs. Without any signal,
        or with numbers that are not finite, R = I.
        """
        eye = torch.eye(len(self.owner), dtype=torch.float64)
        total, routed = self.total.double(), self.routed.double()
        power = total.diagonal().clamp_min(0).sqrt()
        if not torch.isfinite(total).all() or not power.any():
            return eye
        power = power.clamp_min(1e-6 * power.max())
        even = power.unsqueeze(1) * power
        solved = torch.linalg.solve(total / even + ridge * eye, (routed / even + ridge * eye).T).T
        return solved * power.unsqueeze(1) / power


def merge(stacked: Stack, routes: Tensor) -> list[Branch]:
    """The branches whose sum is B R A: one of rank R, and the originals that their factors do not tell wholly.

    Of those, what the factors do tell is taken out of the routed branch once: ΔW_k − B_kA_k + (B R)A.
    """
    up = stacked.up.double() @ routes.double()
    for _, rows in stacked.rest:
        up[:, rows] -= stacked.up[:, rows].double()
    merged = Branch(stacked.module, int(stacked.owner.min()), down=stacked.down, up=up.float())
    return [merged, *(branch for branch, _ in stacked.rest)]


def route(stacked: Stack, routes: Tensor) -> list[Branch]:
    """The same sum, LoRA by LoRA: B_k (R A)_k, for a gate that weighs each of them.

    A LoRA that its factors do not tell wholly keeps its own branch, and what they tell of it is taken out once.
    """
    down = (routes.double() @ stacked.down.flatten(1).double()).float().view_as(stacked.down)
    branches = []
    for lora in stacked.owner.unique().tolist():
        mine = stacked.owner == lora
        branches.append(Branch(stacked.module, lora, down=down[mine], up=stacked.up[:, mine]))
    for branch, rows in stacked.rest:
        told = Branch(stacked.module, branch.lora_index, down=stacked.down[rows], up=-stacked.up[:, rows])
        branches += [branch, told]
    return branches


def mean_shift(routes: Iterable[Tensor]) -> float:
    """How far routers are from the plain sum: root mean square of ‖R − I‖_F / ‖I‖_F over modules, for the report."""
    shares = [float((one - torch.eye(len(one), dtype=one.dtype)).square().sum()) / len(one) for one in routes]
    return (sum(shares) / len(shares)) ** 0.5 if shares else 0.0
