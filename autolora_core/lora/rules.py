"""Rules that turn the module names of a file into the base model's own names.

A rule is a dotted pattern with ``{}`` for each block number. Compiled, every dot also matches an underscore, so one
rule reads ``transformer.transformer_blocks.3.attn.to_q`` and OneTrainer's ``transformer_blocks_3_attn_to_q``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

Shape = tuple[int, ...]
Piece = Callable[[Shape], tuple[int, int]]  # (out, in, *k) of the part -> (start, stop) rows of the fused weight


@dataclass(frozen=True)
class Target:
    """Where an update belongs: the base's module, the rows of it (None: all) and whether its halves are swapped.

    ``spelled`` is the file's own name for it with dots, also when the file writes underscores.
    """

    module: str
    spelled: str
    piece: Piece | None = None
    swap_halves: bool = False


@dataclass(frozen=True)
class Rule:
    """``target`` is a pattern with ``{}``, or a function of the block numbers that gives the name (None: no match)."""

    pattern: str
    target: str | Callable[..., str | None]
    piece: Piece | None = None
    swap_halves: bool = False


def same(*patterns: str) -> list[Rule]:
    """Rules for names that files and the base spell alike."""
    return [Rule(pattern, pattern) for pattern in patterns]


def rename(pairs: Iterable[tuple[str, str]], old: str = "{}", new: str = "{}") -> list[Rule]:
    """Rules for (file's name, base's name) pairs put into two frames, each with ``{}`` where the name goes last."""
    return [Rule(_fill(old, a), _fill(new, b)) for a, b in pairs]


def _fill(frame: str, name: str) -> str:
    head, _, tail = frame.rpartition("{}")
    return head + name + tail


# --- rows of fused weights: the part's own shape decides, so they hold for every width and for grouped-query attention
def first(shape: Shape) -> tuple[int, int]:
    """q of a fused qkv, or k of a fused kv."""
    return 0, shape[0]


def after_in(shape: Shape) -> tuple[int, int]:
    """k of a fused qkv: q is as tall as the layer is wide."""
    return shape[1], shape[1] + shape[0]


def after_in_and_self(shape: Shape) -> tuple[int, int]:
    """v of a fused qkv: after q (as tall as the layer is wide) and k (as tall as v)."""
    return shape[1] + shape[0], shape[1] + 2 * shape[0]


def after_self(shape: Shape) -> tuple[int, int]:
    """v of a fused kv."""
    return shape[0], 2 * shape[0]


def after_three_in(shape: Shape) -> tuple[int, int]:
    """The MLP of a parallel block, after q, k and v (FLUX ``linear1``)."""
    return 3 * shape[1], 3 * shape[1] + shape[0]


QKV: tuple[Piece, Piece, Piece] = (first, after_in, after_in_and_self)


def split_qkv_rules(names: Sequence[str], target: str) -> list[Rule]:
    """Three rules: the names of separate q, k and v, and the fused weight they are rows of."""
    return [Rule(name, target, piece) for name, piece in zip(names, QKV, strict=True)]


class RuleTable:
    """Compiled rules of one family; the first match wins."""

    def __init__(self, rules: Iterable[Rule]):
        self._rules = [(_compile(rule.pattern), rule) for rule in rules]
        self._cache: dict[str, Target | None] = {}

    def find(self, path: str) -> Target | None:
        """The base's module for a dotted or underscored path, or None."""
        if path not in self._cache:
            self._cache[path] = self._search(path)
        return self._cache[path]

    def _search(self, path: str) -> Target | None:
        for regex, rule in self._rules:
            match = regex.match(path)
            if match is None:
                continue
            numbers = [int(n) for n in match.groups()]
            name = rule.target(*numbers) if callable(rule.target) else rule.target.format(*numbers)
            if name is not None:
                return Target(name, rule.pattern.format(*numbers), rule.piece, rule.swap_halves)
        return None


def _compile(pattern: str) -> re.Pattern[str]:
    escaped = re.escape(pattern).replace(r"\{\}", r"(\d{1,4})").replace(r"\.", "[._]")
    return re.compile(rf"{escaped}\Z")
