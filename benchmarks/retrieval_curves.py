"""Recall against the number of candidates and against the number of training LoRAs."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from autolora_core.encode.set_encoder import MODULES
from benchmarks.retrieval_measure import Asked, ranks, shares
from benchmarks.retrieval_study import ENCODER, OURS, RESPONSE, Study
from benchmarks.retrieval_texts import HEADLINE
from zoo.encoder_data import GROUPS
from zoo.splits import unit
from zoo.train_encoder import train

log = logging.getLogger("benchmarks.retrieval")
POOLS = (30, 100, 300, 1000, 3000)
TRAINING, EPOCHS = (100, 300, 900), 4


def pool_curve(study: Study) -> list[dict[str, Any]]:
    """The right LoRAs and others drawn by hash, more and more of them."""
    asked = study.asked["test"]
    which = asked.of(*HEADLINE) & ~asked.trigger_only
    order = np.argsort([unit("pool", row["id"]) for row in study.pack.rows])
    order = order[asked.pool[order]]
    best = max(study.baselines, key=lambda name: study.recall(name, "test", which)["recall_at_5"])
    rows = []
    for size in sorted({min(size, len(order)) for size in POOLS}):
        drawn = np.zeros(len(study.pack), bool)
        drawn[order[:size]] = True
        for name in (OURS, RESPONSE, ENCODER, best):
            scores = study.asking(name)[which]
            found = np.concatenate([_ranks_in(scores, asked.part(which), i, drawn) for i in range(int(which.sum()))])
            rows.append({"curve": "pool", "size": size, "method": name, **shares(found)})
    return rows


def _ranks_in(scores: np.ndarray, asked: Asked, i: int, drawn: np.ndarray) -> np.ndarray:
    one = Asked(asked.prompts[i : i + 1], asked.right[i : i + 1], drawn | asked.right[i], asked.trigger_only[i : i + 1])
    return ranks(scores[i : i + 1], one)


def training_curve(study: Study, epochs: int) -> list[dict[str, Any]]:
    """Encoders of the same kind trained on fewer LoRAs (the nested first ones by hash), a few epochs each."""
    epochs, asked = min(epochs, EPOCHS), study.asked["test"]
    which = asked.of(*HEADLINE) & ~asked.trigger_only
    train_rows = np.flatnonzero(study.data.train)
    order = train_rows[np.argsort([unit("train", study.pack.rows[i]["id"]) for i in train_rows])]
    rows = []
    for size in [*(s for s in TRAINING if s < len(order)), len(order)]:
        only = np.zeros(len(study.pack), bool)
        only[order[:size]] = True
        encoder, data = train(study.pack, study.texts, epochs, only=only)
        kept, study.data = study.data, data
        for name, groups in ((f"{ENCODER} of {size}", GROUPS), (f"{ENCODER} of {size}, file only", (MODULES,))):
            study.add_encoder(name, encoder, groups)
            found = study.recall(name, "test", which)
            label = ENCODER + (", file only" if groups == (MODULES,) else "")
            rows.append({"curve": "training", "size": size, "method": label, **found})
        study.combine((RESPONSE, f"{ENCODER} of {size}"), "curve")
        both = f"{RESPONSE} + {ENCODER}"
        rows.append({"curve": "training", "size": size, "method": both, **study.recall("curve", "test", which)})
        study.data = kept
        log.info("trained on %d: %s", size, rows[-1])
    return rows
