"""What is asked of a library's LoRAs, and what they have to say to it, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from .lexicon import Shared
from .spans import Span

# Log odds that a phrase loses per word left out, for lacking its head, for being several phrases together, and for
# being a time or place.
PARTIAL_PENALTY, HEADLESS_PENALTY, JOINED_PENALTY, SETTING_PENALTY = 0.15, 1.5, 0.3, 1.0


@dataclass(frozen=True)
class Asked:
    """Texts made ready to be asked: their tower ``vectors`` (S, dim), what words they share with the library's, and
    the LoRAs' ``answers`` to them (S, N) as z-scores, None where no base is at hand. ``query`` (S, d) is what the
    weights' vectors are compared with."""

    texts: Sequence[str]
    vectors: np.ndarray
    shared: Shared
    use_weights: bool
    use_text: bool
    answers: np.ndarray | None = None
    query: np.ndarray | None = None
    pictured: np.ndarray | None = None  # z-scores (S, N) of the previews, None where they are not used


@dataclass(frozen=True)
class Evidence:
    """Of the LoRAs ``loras`` (C,), ascending; (spans, C) each: probabilities of the parts (NaN where absent), ``logit``
    of them all with the adjustments. ``picture`` is None where previews are not used.

    ``phrase`` is the index of the LoRA's phrase that matched best by text or words, −1 where it has none.
    """

    loras: np.ndarray
    weights: np.ndarray
    text: np.ndarray
    lexical: np.ndarray
    response: np.ndarray
    logit: np.ndarray
    phrase: np.ndarray
    picture: np.ndarray | None = None

    def joined(self, other: Evidence) -> Evidence:
        """Both, for LoRAs that the two do not share."""
        order = np.argsort(np.concatenate([self.loras, other.loras]), kind="stable")
        pairs = [(getattr(self, field.name), getattr(other, field.name)) for field in fields(self)]
        return Evidence(*(None if pair[0] is None else np.concatenate(pair, axis=-1)[..., order] for pair in pairs))


def hints(spans: Sequence[Span]) -> np.ndarray:
    """(S,) 1 for phrases that grammar calls a style, −1 for subjects, 0 for others."""
    return np.array([{"style": 1.0, "subject": -1.0, None: 0.0}[span.hint] for span in spans])


def losses(spans: Sequence[Span]) -> np.ndarray:
    """(S,) log odds lost for incomplete phrases."""
    return np.array([
        PARTIAL_PENALTY * span.partial + HEADLESS_PENALTY * span.headless + JOINED_PENALTY * span.joined
        + SETTING_PENALTY * span.setting
        for span in spans
    ])  # fmt: skip
