"""Fitting an encoder on a folder of LoRAs whose subjects are known, and saying honestly how good it is.

    python -m autolora_core.encode.train FOLDER CAPTIONS.json OUT.safetensors

CAPTIONS.json is a list of ``{"file": name, "label": caption, "creator": recipe}`` (``creator`` may be absent). Every
figure is about files the encoder did not see, beside controls that know nothing of content: which layers exist and how
loud they are (the recipe), and chance.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import AutoLoRAError
from ..lora.file import LoraFile
from .encoder import RidgeEncoder
from .features import Features, FeatureSchema, module_features, size_for
from .ridge import KernelRidge
from .text_cache import CachedTower
from .threads import one_thread
from .towers import TextTower, default_tower

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Known:
    """A LoRA file whose content is known. Files of one ``label`` show the same thing; ``creator`` is the recipe."""

    path: Path
    label: str
    creator: str = ""


@dataclass(frozen=True)
class Figures:
    """Retrieval of files by their label, as shares in [0, 1]: the right label first, among five, and its mean rank
    from 0 (first) to 1 (last)."""

    top1: float
    top5: float
    mean_rank: float


@dataclass(frozen=True)
class Report:
    """``unseen_file``: the file left out, others of its label may stay. ``unseen_label``: all files of its label left
    out. ``recipe``: the control, layers and norms alone, file left out. ``chance``: top1 by guessing."""

    files: int
    labels: int
    unseen_file: Figures
    unseen_label: Figures
    recipe: Figures
    chance: float


def read_known(folder: Path, captions: Path) -> list[Known]:
    """The list in ``captions``; files that are not in ``folder`` are passed over with a warning."""
    found = []
    for row in json.loads(captions.read_text(encoding="utf-8")):
        path = folder / row["file"]
        if path.is_file():
            found.append(Known(path, row["label"], row.get("creator") or ""))
        else:
            log.warning("%s is not there", path)
    return sorted(found, key=lambda known: known.path.name)


@one_thread()
def fit_files(known: Sequence[Known], tower: TextTower) -> tuple[RidgeEncoder, Report]:
    """Read every file, fit, and measure. All files must be of one base family. The encoder states its recall for
    unseen labels, the hardest figure of the report: a user's LoRAs show things it never saw."""
    files = [LoraFile.open(each.path) for each in known]
    families = sorted({file.family.name for file in files})
    if len(families) != 1:
        raise AutoLoRAError(f"an encoder is for one base family; these files are for {', '.join(families) or 'none'}")
    sketches = [module_features(file.updates(), size_for(families[0])) for file in files]
    schema = FeatureSchema.learn(families[0], sketches)
    features = [schema.assemble(sketch) for sketch in sketches]
    labels = [each.label for each in known]
    tower = CachedTower(tower)
    encoder = RidgeEncoder.fit(schema, np.stack([each.vector for each in features]), labels, tower)
    report = measure(encoder, features, labels, tower)
    return replace(encoder, held_out_recall_at_1=report.unseen_label.top1), report


def measure(encoder: RidgeEncoder, features: Sequence[Features], labels: Sequence[str], tower: TextTower) -> Report:
    """See :class:`Report`; ``features[i]`` belongs to training row i."""
    names = sorted(set(labels))
    place = np.array([names.index(label) for label in labels])
    queries = encoder.query(tower.encode(names))
    X, Y = encoder.ridge.X, queries[place]
    single = np.arange(len(labels))
    recipe = np.stack([np.concatenate([each.mask, each.log_norms * each.mask]) for each in features])
    recipe = (recipe - recipe.mean(axis=0)) / np.maximum(recipe.std(axis=0), 1e-6) / recipe.shape[1] ** 0.5
    control = KernelRidge.fit(recipe, Y)
    return Report(
        files=len(labels),
        labels=len(names),
        unseen_file=_figures(leave_groups_out(X, Y, single, encoder.ridge.lam), queries, place),
        unseen_label=_figures(leave_groups_out(X, Y, place, encoder.ridge.lam), queries, place),
        recipe=_figures(control.loo(), queries, place),
        chance=1 / max(len(names), 1),
    )


def leave_groups_out(X: np.ndarray, Y: np.ndarray, groups: np.ndarray, lam: float) -> np.ndarray:
    """(n, d) predictions of ridge regression, each row by the fit without its whole group; exact.

    With G = X Xᵀ + λI and α = G⁻¹Y the residuals of group g are ``(G⁻¹)_gg⁻¹ α_g``: the block form of the formula in
    :mod:`.ridge`.
    """
    X = np.asarray(X, np.float64)
    inverse = np.linalg.inv(X @ X.T + lam * np.eye(len(X)))
    dual, predicted = inverse @ Y, np.array(Y, np.float64)
    for group in np.unique(groups):
        own = np.flatnonzero(groups == group)
        predicted[own] -= np.linalg.solve(inverse[np.ix_(own, own)], dual[own])
    return predicted


def _figures(vectors: np.ndarray, queries: np.ndarray, place: np.ndarray) -> Figures:
    """Rank the labels for every file by cosine; ties count half."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    scores = unit @ queries.T
    own = scores[np.arange(len(place)), place][:, None]
    rank = (scores > own + 1e-12).sum(axis=1) + 0.5 * ((np.abs(scores - own) <= 1e-12).sum(axis=1) - 1)
    return Figures(float((rank < 1).mean()), float((rank < 5).mean()), float((rank / max(len(queries) - 1, 1)).mean()))


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Fit a weight encoder on LoRAs whose content is known.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("captions", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    encoder, report = fit_files(read_known(args.folder, args.captions), default_tower([args.out.parent]))
    encoder.save(args.out)
    log.info("%s: %s", encoder.id, json.dumps(asdict(report), indent=1))


if __name__ == "__main__":
    main()
