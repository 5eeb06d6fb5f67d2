"""What the modules of a base model read for several prompts, and what they read usually."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .spaces import IMAGE

# An input that the prompt moves by less than this share of its own size says nothing of it, only how numbers round.
LEAST_MOVED = 1e-5


@dataclass(frozen=True)
class TextStates:
    """Inputs of a base model for several texts. ``tokens[reading]`` (T, d): the texts' tokens one after another.

    ``counts`` (n,) is how many tokens each text has; readings that end in ``@image`` have the same number of image
    tokens for every text instead.
    """

    counts: np.ndarray
    tokens: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.counts)

    def owners(self, reading: str) -> np.ndarray:
        """(T,) the text that each row of a reading belongs to."""
        if reading.endswith(IMAGE):
            return np.repeat(np.arange(len(self)), len(self.tokens[reading]) // max(len(self), 1))
        return np.repeat(np.arange(len(self)), self.counts)

    def part(self, which: Sequence[int]) -> TextStates:
        """The texts ``which``, in that order."""
        which = list(which)
        rows = {name: _rows_of(self.owners(name), which) for name in self.tokens}
        return TextStates(self.counts[which], {name: own[rows[name]] for name, own in self.tokens.items()})

    @classmethod
    def join(cls, parts: Sequence[TextStates]) -> TextStates:
        """Several sets of texts after one another; all must have the same readings."""
        tokens = {name: np.concatenate([part.tokens[name] for part in parts]) for name in parts[0].tokens}
        return cls(np.concatenate([part.counts for part in parts]), tokens)


def _rows_of(owners: np.ndarray, which: list[int]) -> np.ndarray:
    starts = np.searchsorted(owners, which, "left"), np.searchsorted(owners, which, "right")
    return np.concatenate([np.arange(a, b) for a, b in zip(*starts, strict=True)]) if which else np.zeros(0, int)


class UsualStates:
    """The mean of every reading over the generic prompts, gathered group by group.

    ``means()``: reading → (1, d) of text tokens, (positions, d) of image tokens, float32; readings that the prompts
    hardly move are left out.
    """

    def __init__(self) -> None:
        self._sums: dict[str, np.ndarray] = {}
        self._counts: dict[str, int] = {}
        self._energy: dict[str, float] = {}

    def add(self, states: TextStates) -> None:
        """Take in the generic prompts' next states."""
        for name, tokens in states.tokens.items():
            whole = tokens.astype(np.float64)
            grouped = whole.reshape(len(states), -1, whole.shape[1]) if name.endswith(IMAGE) else whole[:, None]
            self._sums[name] = self._sums.get(name, 0.0) + grouped.sum(axis=0)
            self._counts[name] = self._counts.get(name, 0) + len(grouped)
            self._energy[name] = self._energy.get(name, 0.0) + float(np.square(whole).sum())

    def means(self) -> dict[str, np.ndarray]:
        """See the class."""
        found = {}
        for name, total in self._sums.items():
            mean = total / max(self._counts[name], 1)
            moved = self._energy[name] - self._counts[name] * float(np.square(mean).sum())
            if moved > LEAST_MOVED * self._energy[name]:
                found[name] = mean.astype(np.float32)
        return found
