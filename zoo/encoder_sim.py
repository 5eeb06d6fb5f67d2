"""LoRAs that nobody trained: what the text-fed layers of one would answer to, made from a text's own states.

A LoRA captioned with a thing's name turns its text-fed layers towards the states of those captions: the right singular
vectors lie in their span. So the leading directions of the states of a few captions stand in for its rows ``σ_k v_kᵀ``,
and a map from responses to texts can be learnt from thousands of words that no LoRA exists for. Words of subjects that
the validation or test part is about are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from autolora_core.encode.response_factors import leading_rows
from autolora_core.retrieve.words import content_stems
from zoo.base_probe import SPACES
from zoo.captions import subject_name, with_article
from zoo.features_pack import ROW_DIMS, Pack
from zoo.features_raw import ROWS
from zoo.splits import unit
from zoo.text_side import Texts

MOST = 1500


def things(pack: Pack) -> list[tuple[str, ...]]:
    """Captions of made-up LoRAs: what the training part shows, and the words that it is searched by."""
    held_out: set[str] = set()
    for row in pack.rows:
        if row["part"] != "train":
            held_out |= set(content_stems(row["label"]))
    subjects = sorted({r["subject"] for r in pack.rows if r["part"] == "train" and r["subject"]})
    words = {w for s in subjects for w in pack.info["keywords"].get(s, ())} | {subject_name(s) for s in subjects}
    styles = {r["label"] for r in pack.rows if r["part"] == "train" and not r["subject"]}
    found = [(w, with_article(w), f"a picture of {with_article(w)}") for w in words if apart(w, held_out)]
    found += [(f"{s} style", s, f"a picture in {s} style") for s in styles if apart(s, held_out)]
    return sorted(found, key=lambda own: unit("made-up", own[0]))[:MOST]


def apart(words: str, held_out: set[str]) -> bool:
    return not held_out & set(content_stems(words))


def made_up_rows(texts: Texts, captions: Sequence[Sequence[str]]) -> np.ndarray:
    """(n, spaces, ROWS, ROW_DIMS) float32: leading directions of the states of each LoRA's captions.

    The states are about the mean of the pack's bank, as they are projected.
    """
    starts = np.concatenate([[0], np.cumsum(texts.states.counts)])
    out = np.zeros((len(captions), len(SPACES), ROWS, ROW_DIMS), np.float32)
    for own, texts_of_one in zip(out, captions, strict=True):
        at = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in texts.rows(texts_of_one)])
        for s, name in enumerate(SPACES):
            rows = leading_rows(torch.from_numpy(texts.states.tokens[name][at].astype(np.float64)), ROWS)
            own[s, : len(rows)] = rows.numpy()
    return out
