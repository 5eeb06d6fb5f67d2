"""When, where and in which blocks a LoRA is on: what a user asks for in words, read and checked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor

from ..errors import SelectionError
from .blocks import block_of, in_order

EVERY = "*"
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)"
_POINT = re.compile(rf"({_NUMBER})\s*[:=]\s*({_NUMBER})")
_SPAN = re.compile(r"(\d*\.?\d+)\s*-\s*(\d*\.?\d+)")
_RANGE = re.compile(r"(.*?)(?<!\d)(\d{1,6})-(\d{1,6})(?!\d)(.*)")
_FACTOR = re.compile(rf"(\S+?)\s*(?:[:=]|\s)\s*({_NUMBER})")


@dataclass(frozen=True)
class Schedule:
    """A factor along the sampling: straight lines between ``points`` (progress, factor), level before and after.

    Progress is 0 at the first step and (n − 1)/n at the last of n, so half of the steps are below 0.5. Where two points
    share a place the factor jumps, and the later one counts from there on.
    """

    points: tuple[tuple[float, float], ...]

    def at(self, progress: float) -> float:
        before = [point for point in self.points if point[0] <= progress]
        after = [point for point in self.points if point[0] > progress]
        if not before:
            return self.points[0][1]
        if not after:
            return before[-1][1]
        (u, v), (w, x) = before[-1], after[0]
        return v + (x - v) * (progress - u) / (w - u)

    def __str__(self) -> str:
        return ", ".join(f"{u:g}: {v:g}" for u, v in self.points)

    @classmethod
    def parse(cls, text: str) -> Schedule | None:
        """``"0: 1, 0.5: 1, 0.6: 0"``, or ``"0.2-0.8"`` for "on there and nowhere else"; None for an empty text.

        Raises ``SelectionError`` for anything else.
        """
        if span := _SPAN.fullmatch(text.strip()):
            start, stop = float(span[1]), float(span[2])
            points = ((start, 0.0), (start, 1.0), (stop, 1.0), (stop, 0.0))
            return cls(_checked(points[1 if start == 0 else 0 : 3 if stop >= 1 else 4], text))
        fix = "write progress: factor, as 0: 1, 0.5: 1, 0.6: 0, or a span as 0.2-0.8"
        found = _entries(text, _POINT, "schedule", "no point of a schedule", fix)
        return cls(_checked(tuple((float(u), float(v)) for u, v in found), text)) if found else None


def _entries(text: str, pattern: re.Pattern, key: str, what: str, fix: str) -> list[tuple[str, str]]:
    """The two groups of ``pattern`` in every entry of ``text``, by commas, semicolons or lines."""
    found = []
    for part in (part.strip() for part in re.split(r"[,;\n]", text) if part.strip()):
        entry = pattern.fullmatch(part)
        if entry is None:
            raise SelectionError(f"'{part}' is {what}", key=key, fix=fix)
        found.append((entry[1], entry[2]))
    return found


def _checked(points: tuple[tuple[float, float], ...], text: str) -> tuple[tuple[float, float], ...]:
    places = [place for place, _ in points]
    if places != sorted(places) or places[0] < 0 or places[-1] > 1:
        raise SelectionError(
            f"the schedule '{text.strip()}' does not go forward between 0 and 1",
            key="schedule",
            fix="progress goes from 0, the first step, to 1, the end of sampling",
        )
    return points


@dataclass(frozen=True)
class BlockFactors:
    """``entries``: (pattern, factor); of those that fit a module the last counts, 1 where none does.

    A pattern is a name or a glob of a block (``double_blocks.3``), of several (``double_blocks.0-8``,
    ``output_blocks``) or of modules (``*.attn*``).
    """

    entries: tuple[tuple[str, float], ...]

    def of(self, module: str) -> float:
        fitting = [factor for pattern, factor in self.entries if _fits(pattern, module)]
        return fitting[-1] if fitting else 1.0

    def check(self, modules: Iterable[str]) -> None:
        """Raises ``SelectionError`` for a pattern that fits none of the model's ``modules``."""
        modules = list(modules)
        for pattern, _ in self.entries:
            if not any(_fits(pattern, module) for module in modules):
                raise SelectionError(
                    f"no block of this model is called '{pattern}'",
                    key="blocks",
                    fix=f"its blocks are {_named(in_order(map(block_of, modules)))}",
                )

    def __str__(self) -> str:
        return ", ".join(f"{pattern}: {factor:g}" for pattern, factor in self.entries)

    @classmethod
    def parse(cls, text: str) -> BlockFactors | None:
        """``"double_blocks.0-8: 0.5, single_blocks: 0"``, by commas or lines; None for an empty text.

        Raises ``SelectionError`` for anything else.
        """
        fix = "write a block and a factor, as double_blocks.0-8: 0.5, single_blocks: 0"
        found = _entries(text, _FACTOR, "blocks", "no block with a factor", fix)
        return cls(tuple((pattern, float(factor)) for pattern, factor in found)) if found else None


def _fits(pattern: str, module: str) -> bool:
    """Whether ``pattern`` names the module, its block, or the family of its block."""
    block = block_of(module)
    names = (module, block, block.rpartition(".")[0])
    ranged = _RANGE.fullmatch(pattern)
    if ranged and "[" not in ranged[1]:  # [0-8] is a glob's own range
        first, last = int(ranged[2]), int(ranged[3])
        tail = block.removeprefix(ranged[1])
        if not ranged[4] and block.startswith(ranged[1]):
            return tail.isdecimal() and first <= int(tail) <= last
        # Numbers that stand in the name, not all of the range: somebody may write 0-999999.
        numbers = [number for number in _numbers_in(module) if first <= int(number) <= last]
        return any(fnmatchcase(module, f"{ranged[1]}{number}{ranged[4]}") for number in numbers)
    return any(fnmatchcase(name, pattern) for name in names)


def _numbers_in(module: str) -> set[str]:
    """All whole numbers that can be read in a name: of ``blocks.12`` 12, 1 and 2, as a * before them may take the 1."""
    runs = re.findall(r"[0-9]{1,12}", module)
    parts = {run[i:j] for run in runs for i in range(len(run)) for j in range(i + 1, len(run) + 1)}
    return {part for part in parts if part == "0" or part[0] != "0"}


def _named(blocks: Sequence[str]) -> str:
    """``joint_blocks.0 to .3, final_layer``."""
    families: dict[str, list[int]] = {}
    for block in blocks:
        name, _, number = block.rpartition(".")
        if number.isdigit():
            families.setdefault(name, []).append(int(number))
        else:
            families.setdefault(block, [])
    return ", ".join(f"{name}.{min(numbers)}-{max(numbers)}" if numbers else name for name, numbers in families.items())


@dataclass(frozen=True)
class Term:
    """What is asked of the LoRAs that ``lora`` names: all (``*``), one by its number, or those with this in their name.

    ``mask`` (h, w) float in [0, 1]: where in the picture, 1 is all of it.
    """

    lora: str = EVERY
    schedule: Schedule | None = None
    blocks: BlockFactors | None = None
    mask: Tensor | None = field(default=None, compare=False)

    def meant(self, names: Sequence[str]) -> list[int]:
        """Places of the LoRAs that are meant: by number counted from 1, by whole file name, else by a part of it; with
        a slash, of the path."""
        wanted = _plain(self.lora)
        if wanted in ("", EVERY):
            return list(range(len(names)))
        if wanted.isdecimal() and len(wanted) < 10 and 1 <= int(wanted) <= len(names):
            return [int(wanted) - 1]
        told = [_plain(name) if "/" in wanted else _plain(name).rpartition("/")[2] for name in names]
        whole = [i for i, name in enumerate(told) if name == wanted]
        return whole or [i for i, name in enumerate(told) if wanted in name or fnmatchcase(name, wanted)]

    @property
    def passing(self) -> bool:
        """Whether it is about time or place, which a merged weight does not know."""
        return self.schedule is not None or self.mask is not None


def _plain(name: str) -> str:
    return name.strip().lower().replace("\\", "/").removesuffix(".safetensors")


def terms_of(value: Any) -> tuple[Term, ...]:
    """What a LORA_TERMS input holds. Raises ``SelectionError`` for anything else."""
    if value is None:
        return ()
    if not isinstance(value, tuple) or not all(isinstance(one, Term) for one in value):
        raise SelectionError("this is no output of LoRA Time and Place", key="terms")
    return value


def terms_by_lora(terms: Sequence[Term], names: Sequence[str]) -> dict[int, Term]:
    """LoRA number from 0 → everything asked of it; what a later term says replaces what an earlier one said.

    Raises ``SelectionError`` for a term that means none of ``names``.
    """
    found: dict[int, Term] = {}
    for term in terms:
        meant = term.meant(names)
        if not meant:
            raise SelectionError(
                f"LoRA Time and Place is about '{term.lora}', and no LoRA that is applied is called so",
                key="lora",
                fix=f"those applied are {', '.join(names) if names else 'none'}; use a part of a name, a number or *",
            )
        for i in meant:
            before = found.get(i, Term())
            said: Mapping[str, Any] = {
                name: getattr(term, name) for name in ("schedule", "blocks", "mask") if getattr(term, name) is not None
            }
            found[i] = replace(before, **said)
    return found
