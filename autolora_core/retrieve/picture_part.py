"""The optional part ``picture`` of the score: what previews say a LoRA does to pictures, beside the prompt's words.

Directions of picture differences (:mod:`..previews.difference`) need a way to words. A CLIP that embedded the pictures
and has a text half is one: a phrase is its text's vector without the mean of the generic prompts'. Otherwise the way is
learned from the library's own captioned LoRAs that have previews, by ridge as for weights; each of those gets the
prediction of the fit that left it out. Either way a LoRA's z-score over the generic prompts becomes a probability as
the weights' does: a logistic among so many strangers, bounded by how often LoRAs come first for their own words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..encode.calibrate import WEIGHT_FLOOR, Logistic, Ruler, fit_logistic
from ..encode.generic import GENERIC_PROMPTS
from ..encode.ridge import KernelRidge
from ..encode.towers import TextTower
from ..previews.shelf import PreviewVectors
from ..wording import counted
from .odds import WEIGHT_PRIOR, among, bounded

if TYPE_CHECKING:
    from .score import Scorer

LEAST_TAUGHT = 8  # captioned LoRAs with previews; of fewer nothing is learned
MOST_TAUGHT = 4000


@dataclass(frozen=True)
class PictureSource:
    """``vectors`` of a library's previews and the text half of the CLIP that embedded them; None: learned."""

    vectors: PreviewVectors
    text: TextTower | None = None

    @property
    def id(self) -> str:
        """What a prepared library depends on."""
        return f"{self.vectors.id} {self.text.id if self.text else 'learned'}"


class PicturePart:
    """Made ready for one family. ``rows`` (N,) is each LoRA's row of ``predicted`` (n, d), −1 where it has none;
    ``text`` is the tower whose vectors, without ``centre``, are compared with them, None for the scorer's own."""

    def __init__(self, rows: np.ndarray, predicted: np.ndarray, centre: np.ndarray, text: TextTower | None):
        self.rows, self.predicted, self.centre, self.text = rows, predicted, centre, text
        self.loras = np.flatnonzero(rows >= 0)
        self.ruler: Ruler | None = None
        self.model, self.claim, self.asks = among(WEIGHT_PRIOR, len(self.loras)), 0.5, 0

    def z(self, texts: Sequence[str], vectors: np.ndarray) -> np.ndarray:
        """(S, N) z-scores, NaN for LoRAs without a preview. ``vectors`` (S, d): the scorer's tower's of ``texts``."""
        own = vectors if self.text is None else self.text.encode(list(texts))
        found = np.full((len(texts), len(self.rows)), np.nan)
        scores = self.predicted @ centred(own, self.centre).T
        found[:, self.loras] = self.ruler.z(scores)[self.rows[self.loras]].T
        return found

    def evidence(self, z: np.ndarray) -> np.ndarray:
        """z-scores (S, C) → probability-like; NaN stays NaN."""
        return bounded(self.model.probability(z[..., None]), self.claim)

    @property
    def note(self) -> str:
        """How far it is believed, for the report."""
        way = "by the CLIP's own words" if self.text is not None else "learned from LoRAs with words"
        share = f"for at most {self.claim:.0%}: so often they put the right LoRA first ({counted(self.asks, 'ask')})"
        return f"Previews of {counted(len(self.loras), 'LoRA')} count, {way}, {share}."


def learn(scorer: Scorer, groups: np.ndarray, source: PictureSource) -> tuple[PicturePart | None, str]:
    """The part for the LoRAs of ``scorer`` (near-duplicates share a number of ``groups``), or None, and a note."""
    rows = _rows(scorer, source.vectors)
    if not (rows >= 0).any():
        return None, "Previews were not used: none of these LoRAs has one. Run Render LoRA Previews."
    owners = np.flatnonzero((rows >= 0) & scorer.has_text)[:MOST_TAUGHT]
    texts = [scorer.sayings.first(lora) for lora in owners]
    if source.text is not None:
        generic = source.text.encode(list(GENERIC_PROMPTS))
        centre = generic.mean(axis=0)
        part = PicturePart(rows, _unit(source.vectors.matrix), centre, source.text)
        own, taught = source.text.encode(texts) if texts else generic[:0], np.zeros(len(owners), bool)
    else:
        _, first = np.unique(rows[owners], return_index=True)
        owners, texts = owners[np.sort(first)], [texts[i] for i in np.sort(first)]
        if len(owners) < LEAST_TAUGHT:
            few = f"only {len(owners)} of them have words" if len(owners) else "none of them has words"
            return None, f"Previews were not used: {few}, too few to learn from. A CLIP with a text half needs none."
        generic = scorer.tower.encode(list(GENERIC_PROMPTS))
        centre, own = generic.mean(axis=0), scorer.tower.encode(texts)
        part = PicturePart(rows, _learned(source.vectors.matrix, rows[owners], centred(own, centre)), centre, None)
        taught = _told_by_others(groups[owners])
    part.ruler = Ruler.measure(part.predicted @ centred(generic, centre).T, WEIGHT_FLOOR)
    if len(owners):
        _calibrate(part, part.z(texts, own), owners, groups, ~taught)
    return part, part.note


def _rows(scorer: Scorer, vectors: PreviewVectors) -> np.ndarray:
    place = {digest: row for row, digest in enumerate(vectors.hashes)}
    return np.array([place.get(entry.hash, -1) for entry in scorer.entries], int).reshape(-1)


def _learned(matrix: np.ndarray, rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(n, d) unit: predicted text vectors of all directions, those of the taught ``rows`` leaving themselves out."""
    fit = KernelRidge.fit(matrix[rows], targets)
    found = fit.predict(matrix)
    found[rows] = fit.loo()
    return _unit(found)


def _told_by_others(groups: np.ndarray) -> np.ndarray:
    """Whether a near-duplicate was taught too: then leaving one out leaves its answer in."""
    _, at, count = np.unique(groups, return_inverse=True, return_counts=True)
    return count[at] > 1


def _calibrate(part: PicturePart, z: np.ndarray, owners: np.ndarray, groups: np.ndarray, honest: np.ndarray) -> None:
    """``z`` (owners, N): each asked for by its own words. Only ``honest`` owners prove anything."""
    z, owners = z[honest], owners[honest]
    if not len(owners):
        return
    first = np.where(np.isfinite(z), z, -np.inf).argmax(axis=1)
    strangers = (groups[None] != groups[owners][:, None]) & np.isfinite(z)
    own = z[np.arange(len(owners)), owners]
    model: Logistic = fit_logistic(own[:, None], z[strangers][:, None], WEIGHT_PRIOR)
    part.model = among(model, len(part.loras))
    right = int((groups[first] == groups[owners]).sum())
    part.claim, part.asks = (right + 1) / (len(owners) + 2), len(owners)


def centred(vectors: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Unit rows of ``vectors`` (S, d) without what all texts have in common."""
    return _unit(np.asarray(vectors, np.float64) - centre)


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
