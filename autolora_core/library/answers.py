"""What a library's LoRAs answer to prompts inside a base model, asked once and kept.

Asking means one run of the base model a prompt, which is what costs; the answers are one number a LoRA and prompt.
Those to the library's own texts are kept in a file beside the library (``answers.sqlite``) together with what the base
usually reads, keyed by who was asked (base model, text encoder and how they were run). It is a cache: whatever is
wrong with it, the model is asked again. Prompts are remembered in memory only; what is kept on disk grows with the
library, not with its use. A library that got new LoRAs asks anew: the inputs themselves would be megabytes a prompt.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from ..encode.factor_table import FactorTable
from ..encode.generic import GENERIC_PROMPTS
from ..encode.input_states import TextStates, UsualStates
from ..encode.response import response
from ..encode.spaces import named_space
from .answer_store import AnswerStore

# Inputs of the generic prompts are held while their mean is not known, as far as this many bytes; the rest is read
# twice.
MAX_HELD = 1 << 30
MAX_REMEMBERED, MAX_MEMORIES = 2048, 2
Progress = Callable[[int, int, str], None]
Memory = dict[Any, Any]
_memories: OrderedDict[str, Memory] = OrderedDict()
_memory_lock = threading.Lock()


class StateSource(Protocol):
    """A base model with its text encoder. ``id`` says which, ``family`` of what kind; ``lasting`` whether the id means
    the same tomorrow; ``device`` is where to reckon with its numbers."""

    id: str
    family: str
    lasting: bool
    device: Any

    def record(
        self, texts: Sequence[str], spaces: Sequence[str], progress: Progress | None = None
    ) -> Iterator[TextStates]:
        """The inputs of ``spaces`` for the texts, some texts at a time, in order, by ``Space.reading``. Spaces that
        the model does not have are left out."""
        ...


def shared_memory(source: str) -> Memory:
    """What this process remembers of a source; of the two sources used last."""
    with _memory_lock:
        memory = _memories.setdefault(source, {})
        _memories.move_to_end(source)
        while len(_memories) > MAX_MEMORIES:
            _memories.popitem(last=False)
        return memory


class CachedAnswers:
    """A base that remembers: in ``memory``, and on disk (``store``) what is asked with ``keep``."""

    def __init__(self, source: StateSource, store: AnswerStore | None = None, memory: Memory | None = None):
        self.source, self.store = source, store if source.lasting else None
        self._memory: Memory = {} if memory is None else memory

    @property
    def id(self) -> str:
        """The source's."""
        return self.source.id

    def answers(
        self, table: FactorTable, texts: Sequence[str], keep: bool = False, progress: Progress | None = None
    ) -> np.ndarray:
        """Responses (files of ``table``, texts) float32, NaN where there is none; every text is asked once."""
        known = self._known(table, texts, keep)
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        if missing and len(table):
            fresh = self._asked(table, missing, progress)
            self._keep(table, fresh, keep)
            known |= fresh
        empty = np.full(len(table), np.nan, np.float32)
        return np.stack([known.get(text, empty) for text in texts], axis=1) if len(texts) else empty[:, None][:, :0]

    def _known(self, table: FactorTable, texts: Sequence[str], keep: bool) -> dict[str, np.ndarray]:
        found = {text: self._memory[table.id, text] for text in texts if (table.id, text) in self._memory}
        if keep and self.store is not None:
            lacking = [text for text in dict.fromkeys(texts) if text not in found]
            found |= self.store.read(self.id, table.id, table.hashes, lacking)
        return found

    def _keep(self, table: FactorTable, fresh: dict[str, np.ndarray], keep: bool) -> None:
        if keep and self.store is not None:
            self.store.write(self.id, table.id, table.hashes, fresh)
            return
        if len(self._memory) > MAX_REMEMBERED:
            self._memory.clear()
        self._memory |= {(table.id, text): own for text, own in fresh.items()}

    def _asked(self, table: FactorTable, texts: list[str], progress: Progress | None) -> dict[str, np.ndarray]:
        """text → (n,), from the model itself."""
        wanted = list(dict.fromkeys(name for name, _ in table.spaces if named_space(self.source.family, name)))
        means, fresh = self._means(table, wanted, progress)
        lacking = [text for text in texts if text not in fresh]
        if lacking:
            fresh |= self._scored(table, lacking, self.source.record(lacking, wanted, progress), means)
        return {text: fresh[text] for text in texts}

    def _scored(
        self, table: FactorTable, texts: Sequence[str], groups: Iterator[TextStates], means: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for states in groups:
            values = response(table, states, means, self.source.device)
            for column, text in enumerate(texts[len(found) : len(found) + len(states)]):
                found[text] = values[:, column]
        return found

    def _means(
        self, table: FactorTable, wanted: list[str], progress: Progress | None
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """What the base usually reads, and answers to generic prompts that came of finding it out."""
        spaces = ("means", *sorted(wanted))
        means = self._memory.get(spaces)
        if means is None and self.store is not None:
            means = self.store.read_means(self.id, spaces[1:])
        if means is not None:
            self._memory[spaces] = means
            return means, {}
        usual, held, size = UsualStates(), [], 0
        for states in self.source.record(GENERIC_PROMPTS, wanted, progress):
            usual.add(states)
            size += sum(tokens.nbytes for tokens in states.tokens.values())
            if size <= MAX_HELD:
                held.append(states)
        self._memory[spaces] = means = usual.means()
        if self.store is not None:
            self.store.write_means(self.id, spaces[1:], means)
        return means, self._scored(table, GENERIC_PROMPTS, iter(held), means)
