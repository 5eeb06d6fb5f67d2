"""The dense update of one LoRA at one module, a few rows at a time, so that no whole model of them ever exists."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..branches import Branch

CHUNK = 1 << 22  # numbers of a dense update made at once


@dataclass(frozen=True)
class Part:
    """What one LoRA does to a module: its branches, together one ΔW. ``seed`` tells content and module apart."""

    lora: int
    branches: tuple[Branch, ...]
    seed: int = 0

    def covered(self, channels: int) -> int:
        """Output channels that the LoRA reaches."""
        reached = torch.zeros(channels, dtype=torch.bool)
        for branch in self.branches:
            start, stop = branch.span(channels)
            reached[start:stop] = True
        return int(reached.sum())


def parts_of(branches: Sequence[Branch], contents: Mapping[int, str] | None = None) -> list[Part]:
    """The branches of one module by LoRA, in order of their numbers; ``contents``: LoRA → a hash of its file."""
    loras: dict[int, list[Branch]] = {}
    for branch in branches:
        loras.setdefault(branch.lora_index, []).append(branch)
    seeds = {lora: seed_of(hashed, branches[0].module) for lora, hashed in (contents or {}).items()}
    return [Part(lora, tuple(loras[lora]), seeds.get(lora, 0)) for lora in sorted(loras)]


def seed_of(content: str, module: str) -> int:
    """A number of 63 bits that a LoRA's content and a module's name always give, on every machine."""
    return int.from_bytes(hashlib.sha256(f"{content} {module}".encode()).digest()[:8], "big") >> 1


def blocks(channels: int, width: int) -> Iterator[tuple[int, int]]:
    """(start, stop) over ``channels`` rows of ``width`` numbers each, at most ``CHUNK`` numbers a block."""
    step = max(1, CHUNK // width)
    for start in range(0, channels, step):
        yield start, min(start + step, channels)


def dense_rows(part: Part, start: int, stop: int, channels: int, device: torch.device | str = "cpu") -> Tensor:
    """Rows ``start:stop`` of the LoRA's ΔW, (stop − start, in·kernel) float32; zero where it has no branch."""
    out = torch.zeros(stop - start, part.branches[0].columns, device=device)
    for branch in part.branches:
        first, last = branch.span(channels)
        low, high = max(start, first), min(stop, last)
        if low < high:
            out[low - start : high - start] += _rows(branch, low - first, high - first, device)
    return out


def _rows(branch: Branch, low: int, high: int, device: torch.device | str) -> Tensor:
    """Rows of one branch, numbered from its own first one."""
    if branch.kind == "dense":
        return branch.dense[low:high].flatten(1).to(device, torch.float32) * branch.scale
    if branch.kind == "kron":
        rows = torch.arange(low, high, device=device)
        left, right = (part.to(device, torch.float32) for part in (branch.left, branch.right.flatten(1)))
        height = right.shape[0]
        return (left[rows // height].unsqueeze(2) * right[rows % height].unsqueeze(1)).flatten(1) * branch.scale
    down = (branch.down if branch.mid is None else branch.full_down()).flatten(1)
    return (branch.up[low:high].to(device, torch.float32) @ down.to(device, torch.float32)) * branch.scale
