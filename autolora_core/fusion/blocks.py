"""The block of a base model that a layer belongs to, by its name: what pictures and reports have a row for."""

from __future__ import annotations

import re
from collections.abc import Iterable


def block_of(module: str) -> str:
    """The dotted name up to its first number, else its first part; a UNet has one ``middle_block``, whatever follows.

    ``joint_blocks.2.x_block.attn.qkv`` → ``joint_blocks.2``, ``x_embedder.proj`` → ``x_embedder``.
    """
    parts = module.split(".")
    number = next((place for place, part in enumerate(parts) if part.isdigit()), None)
    if number is None or parts[0] == "middle_block":
        return parts[0]
    return ".".join(parts[: number + 1])


def in_order(blocks: Iterable[str]) -> list[str]:
    """Each block once, numbers counted as numbers: 2 before 10. Input, middle and output blocks of a UNet, double and
    single blocks of FLUX come out in the order in which the model runs them."""
    return sorted(set(blocks), key=lambda name: [(part.isdigit(), int(part) if part.isdigit() else 0, part)
                                                 for part in re.split(r"(\d+)", name)])  # fmt: skip
