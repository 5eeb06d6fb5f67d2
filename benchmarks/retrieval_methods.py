"""How each method scores LoRAs for texts: (texts, LoRAs) matrices, all from the same pack and the same splits.

A *control* sees no content (rank, which layers exist, how loud, who made it). A *baseline* maps one training-free
feature to the text tower's space, by ridge, by CCA or by nearest neighbours. What is learnt is learnt from the training
part alone. Every method's scores are read against the generic prompts: a z-score a LoRA.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from autolora_core.encode.generic import GENERIC_PROMPTS
from autolora_core.encode.ridge import KernelRidge
from zoo.encoder_data import texts_of
from zoo.features_pack import Pack
from zoo.text_side import Texts, unit_rows

NEIGHBOURS, CCA_DIMS, CCA_RIDGE = 5, 64, 0.1


def standardised(x: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Columns centred and scaled by the training rows, then divided by √width; constant columns become zero."""
    x = x.reshape(len(x), -1).astype(np.float32)
    mean, deviation = x[train].mean(axis=0), x[train].std(axis=0)
    return (x - mean) * np.where(deviation > 1e-6, 1 / np.maximum(deviation, 1e-6), 0) / x.shape[1] ** 0.5


def whole(x: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Centred, with one scale for all columns: principal components keep their weights."""
    x = x.reshape(len(x), -1).astype(np.float32)
    x = x - x[train].mean(axis=0)
    return x / max(float(np.sqrt((x[train] ** 2).sum(axis=1).mean())), 1e-9)


def one_hot(values: Sequence[object], known: Sequence[object]) -> np.ndarray:
    """(n, k + 1): a column a known value, the last for any other."""
    place = {value: i for i, value in enumerate(dict.fromkeys(known))}
    out = np.zeros((len(values), len(place) + 1), np.float32)
    out[np.arange(len(values)), [place.get(value, len(place)) for value in values]] = 1
    return out


def drawn_as(row: dict) -> int:
    """Which of a LoRA's texts the base is asked to draw: 'an otter', 'pixel art style'."""
    return 1 if row["subject"] else 0


class Learner:
    """What the training part teaches: ``Y`` are the text targets of its rows (unit, centred on the generic prompts)."""

    def __init__(self, pack: Pack, texts: Texts, targets: Sequence[Sequence[str]], train: np.ndarray):
        self.pack, self.texts, self.train = pack, texts, train
        self.centre = texts.vectors[texts.rows(GENERIC_PROMPTS)].mean(axis=0)
        own = [self.query(texts.vectors[texts.rows(t)]).mean(axis=0) for t in targets]
        self.Y = unit_rows(np.stack(own))

    def query(self, vectors: np.ndarray) -> np.ndarray:
        return unit_rows(vectors - self.centre)

    def ridge(self, X: np.ndarray) -> np.ndarray:
        """(n, d) unit rows. A training row gets its leave-one-out prediction, as in a library."""
        fit = KernelRidge.fit(X[self.train], self.Y[self.train])
        out = fit.predict(X)
        out[self.train] = fit.loo()
        return unit_rows(out)

    def neighbours(self, X: np.ndarray) -> np.ndarray:
        """(n, d): mean of the targets of the nearest training rows (never itself)."""
        near = unit_rows(X) @ unit_rows(X[self.train]).T
        near[np.flatnonzero(self.train), np.arange(int(self.train.sum()))] = -np.inf
        count = min(NEIGHBOURS, near.shape[1] - 1)
        best = np.argpartition(-near, count, axis=1)[:, :count]
        return unit_rows(self.Y[self.train][best].mean(axis=1))

    def cca(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Regularised canonical correlation: features (n, k) and the map (384, k) of queries into the same space."""
        x, y = X[self.train].astype(np.float64), self.Y[self.train].astype(np.float64)
        basis, x = _leading(x, len(x) // 2)
        roots = [_inverse_root(a.T @ a) for a in (x, y)]
        u, s, vt = np.linalg.svd(roots[0] @ (x.T @ y) @ roots[1], full_matrices=False)
        k = min(CCA_DIMS, len(s))
        left, right = roots[0] @ u[:, :k] * s[:k], roots[1] @ vt[:k].T * s[:k]
        return unit_rows(X.astype(np.float64) @ basis @ left), right

    def drawing(self) -> np.ndarray:
        """(texts, n): cosine of what a LoRA draws unasked with what it should draw for the text.

        Should: ridge from the base's own drawing of the text and the tower's vector to the drawings of training LoRAs,
        so that things which the base does not know are drawn as their likes. NaN for texts that were not drawn.
        """
        drawn, known = self.texts.draws, np.isfinite(self.texts.draws).all(axis=1)
        generic = drawn[self.texts.rows(GENERIC_PROMPTS)].mean(axis=0)
        seen = np.where(known[:, None], drawn - generic, 0)
        seen /= np.sqrt((seen[known] ** 2).sum(axis=1).mean())
        x = np.concatenate([seen, self.query(self.texts.vectors)], axis=1)
        rows = np.flatnonzero(self.train)
        at = self.texts.rows([texts_of(self.pack.rows[i], ())[drawn_as(self.pack.rows[i])] for i in rows])
        own = unit_rows(self.pack.arrays["draw"])
        wanted = unit_rows(KernelRidge.fit(x[at], own[rows]).predict(x))
        return np.where(known[:, None], wanted @ own.T, np.nan).astype(np.float32)

    def cosine(self, vectors: np.ndarray, project: np.ndarray | None = None) -> np.ndarray:
        """(texts, n) cosines of all texts with ``vectors``."""
        asked = self.query(self.texts.vectors)
        asked = asked if project is None else unit_rows(asked @ project)
        return asked @ vectors.T


def _leading(x: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Leading principal directions (d, k) of ``x`` and ``x`` on them: CCA in more dimensions than rows is noise."""
    _, _, vt = np.linalg.svd(x, full_matrices=False)
    basis = vt[: max(1, min(count, 256))].T
    return basis, x @ basis


def _inverse_root(gram: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(gram + CCA_RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram)))
    return vectors / np.sqrt(np.maximum(values, 1e-12)) @ vectors.T


def controls(pack: Pack, train: np.ndarray) -> dict[str, np.ndarray]:
    """Features that know nothing of content."""
    present = pack.arrays["present"].astype(np.float32)
    known = [row for row, t in zip(pack.rows, train, strict=True) if t]
    rank = np.array([[row["rank"]] for row in pack.rows], np.float32)
    recipe = [one_hot(pack.column(f), [row[f] for row in known]) for f in ("keys", "dtype", "rule", "rank")]
    recipe.append(np.array([[row["alpha"], np.log(row["rank"])] for row in pack.rows], np.float32))
    norms, spectra = np.where(present > 0, pack.arrays["log_norm"], 0), pack.arrays["sigma"].reshape(len(pack), -1)
    return {
        "control rank and layers": np.concatenate([rank, present], axis=1),
        "control recipe": np.concatenate([*recipe, present, norms, spectra], axis=1),
        "control creator": one_hot(pack.column("creator"), [row["creator"] for row in known]),
    }


def baseline_features(pack: Pack) -> dict[str, np.ndarray]:
    """The training-free features that others use."""
    present = pack.arrays["present"][..., None]
    norms = np.where(pack.arrays["present"], pack.arrays["log_norm"], 0)
    return {
        "u1": pack.arrays["u1"],
        "projector diagonals": pack.arrays["diagonals"],
        "product sketch": pack.arrays["product"],
        "sigma and norm": np.concatenate([(pack.arrays["sigma"] * present).reshape(len(pack), -1), norms], axis=1),
        "PCA of flat weights": pack.arrays["flat"],
    }


def baseline_scores(learner: Learner) -> dict[str, np.ndarray]:
    """Method -> (texts, n): every control and baseline by ridge; baselines by CCA too, σ and norm by neighbours."""
    out = {}
    for name, x in controls(learner.pack, learner.train).items():
        out[name] = learner.cosine(learner.ridge(standardised(x, learner.train)))
    for name, x in baseline_features(learner.pack).items():
        prepare: Callable = standardised if name == "sigma and norm" else whole
        ready = prepare(x, learner.train)
        out[f"{name}, ridge"] = learner.cosine(learner.ridge(ready))
        out[f"{name}, CCA"] = learner.cosine(*learner.cca(ready))
        out[f"{name}, kNN"] = learner.cosine(learner.neighbours(ready))
    return out
