"""What is noted of a picture: what the judge names in it, and how far it is from the picture that it should be.

The judge saw real pictures only, never a generated one; its embedding is the feature space of the distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.judge import Judge, Verdict
from zoo.splits import stem

VIEWS, SMALL = 5, 32
MEASURES = ("subject", "named", "style", "likely_subject", "likely_style", "distance", "pixels", "edges")


@dataclass(frozen=True)
class Wanted:
    """What a picture should show, and the picture (128, 128, 3) uint8 that it should be, if there is one."""

    subject: str
    style: str
    picture: np.ndarray | None = None


class Critic:
    """Verdicts with the embeddings behind them computed once."""

    def __init__(self, judge: Judge):
        self.judge = judge

    def verdict(self, vectors: Tensor) -> Verdict:
        """As ``Judge.judge``, from embeddings (n, d)."""
        judge = self.judge
        scale = judge.model.logit_scale.exp()
        names = judge.subject_vectors, judge.style_vectors
        return Verdict(judge.subjects, judge.styles, *(F.log_softmax(scale * vectors @ n.T, -1).numpy() for n in names))

    def notes(self, images: np.ndarray, wanted: Wanted) -> dict[str, list[float]]:
        """Measure → a number a picture.

        ``subject``, ``style``: rank of the true name, 0 is right. ``named``: 1 where the subject named is the true one
        up to its stem (man-artist for woman-artist). ``likely_…``: log-probability of the true name. ``distance``:
        1 − cosine of embeddings; ``pixels``, ``edges``: mean absolute difference of 32 px copies and of their
        gradients, in units of the full range.
        """
        vectors = self.judge.image_embeddings(images, VIEWS)
        verdict, many = self.verdict(vectors), len(images)
        first = [row[0] for row in verdict.top_subjects(1)]
        out = {
            "subject": verdict.subject_rank([wanted.subject] * many).tolist(),
            "named": [int(stem(name) == stem(wanted.subject)) for name in first],
            "style": verdict.style_rank([wanted.style] * many).tolist(),
            "likely_subject": verdict.subject_logp[:, verdict.subjects.index(wanted.subject)].tolist(),
            "likely_style": verdict.style_logp[:, verdict.styles.index(wanted.style)].tolist(),
        }
        if wanted.picture is not None:
            out |= self.distances(images, vectors, wanted.picture[None].repeat(many, 0))
        return {key: [round(float(v), 4) for v in values] for key, values in out.items()}

    def distances(self, images: np.ndarray, vectors: Tensor, truths: np.ndarray) -> dict[str, list[float]]:
        """Of pictures (n, 128, 128, 3) with embeddings (n, d) to ``truths``, picture by picture."""
        true = self.judge.image_embeddings(truths, VIEWS)
        a, b = small(images), small(truths)
        return {
            "distance": (1 - (vectors * true).sum(1)).tolist(),
            "pixels": (a - b).abs().mean((1, 2, 3)).tolist(),
            "edges": sum((a.diff(dim=d) - b.diff(dim=d)).abs().mean((1, 2, 3)) for d in (2, 3)).tolist(),
        }

    def shift(self, images: np.ndarray, before: np.ndarray, wanted: Wanted) -> dict[str, list[float]]:
        """As ``notes``, with each picture's distances to its own picture in ``before``."""
        out = self.notes(images, Wanted(wanted.subject, wanted.style))
        vectors = self.judge.image_embeddings(images, VIEWS)
        far = self.distances(images, vectors, before)
        return out | {key: [round(float(v), 4) for v in values] for key, values in far.items()}


def small(images: np.ndarray) -> Tensor:
    """uint8 (n, 128, 128, 3) → float (n, 3, 32, 32) in 0..1."""
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    return F.adaptive_avg_pool2d(x, SMALL)


def right(cell: dict[str, Sequence[float]]) -> dict[str, np.ndarray]:
    """Whether subject, style and both are right, (n,) bool: the style named first, the subject first up to its stem."""
    subject, style = np.array(cell["named"]) > 0, np.array(cell["style"]) < 1
    return {"subject": subject, "style": style, "joint": subject & style}
