"""The approximate search of a scorer's weights: which questions it is tried with, and where it is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..library.quick import Quick, quick_path
from .view import VectorsLike

if TYPE_CHECKING:
    from .score import Scorer

# Texts of the library's own; generic ones are asked, too, where it has less than half as many.
TRIED = 100


def quick_weights(scorer: Scorer, generic: np.ndarray, vectors: VectorsLike | None) -> Quick:
    """Of :attr:`Scorer.weight_table`, which is read beside the queries of ``generic`` prompts (g, d)."""
    generic = np.ascontiguousarray(generic)

    def texts() -> np.ndarray:
        count = len(scorer.sayings.texts)
        some = np.unique(np.linspace(0, max(count - 1, 0), min(count, TRIED)).astype(int))
        own = scorer.query(scorer.sayings.vectors[some]) if count else generic[:0]
        return own if 2 * len(own) >= TRIED else np.concatenate([own, generic])

    if vectors is None or scorer.encoder is None:
        return Quick(scorer.weight_table, (), texts)
    return Quick(
        scorer.weight_table, vectors.hashes, texts, quick_path(vectors.folder, scorer.encoder.id, generic)
    )  # fmt: skip
