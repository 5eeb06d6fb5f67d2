"""What every LoRA of the zoo answers to every text of the benchmark, asked as Retrieve asks.

    python -m zoo.responses_pack

writes ``benchmarks/data/responses.safetensors``. Rows of 2,200 LoRAs are too large for git, what they answer to some
thousand texts is not. Nothing here reckons: factors, base and answers are the product's own
(``encode.response_factors``, ``library.answers``) on the demo base as ``benchmarks.demo_states`` runs it. About ten
minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from autolora_core.encode.factor_table import FactorTable
from autolora_core.encode.generic import GENERIC_PROMPTS
from autolora_core.encode.response_factors import ResponseFactors, response_factors
from autolora_core.errors import AutoLoRAError
from autolora_core.library.answers import CachedAnswers, StateSource
from zoo.cache import write_atomic
from zoo.features_pack import DATA, Pack, read, scale_items
from zoo.features_raw import as_update
from zoo.text_side import spread_z

log = logging.getLogger("zoo.responses")
FINEST = 25.0


def table_of(items: Iterable[tuple[dict, Callable[[], Any]]]) -> FactorTable:
    """Factors of ``(row, function that gives a LoRA's factors)``, by id; those without any are empty."""
    found = {}
    for row, factors in items:
        updates = [as_update(name, *pair) for name, pair in factors().items()]
        found[row["id"]] = response_factors(updates, "emoji") or ResponseFactors({})
    return FactorTable.of(found)


def asked(table: FactorTable, base: StateSource, texts: Sequence[str]) -> np.ndarray:
    """(texts, n) float32 z-scores over the generic prompts; NaN for a LoRA that no prompt reaches."""
    began = time.time()

    def tell(done: int, total: int, text: str) -> None:
        log.info("%d of %d texts, %.0f s left", done, total, (time.time() - began) / done * (total - done))

    answers = CachedAnswers(base).answers(table, [*GENERIC_PROMPTS, *texts], progress=tell).T
    return spread_z(answers[len(GENERIC_PROMPTS) :], answers[: len(GENERIC_PROMPTS)])


def write(pack: Pack, texts: Sequence[str], z: np.ndarray) -> None:
    """Roots of z-scores, a byte each: finer near zero, where LoRAs crowd. −128 where there is none."""
    packed = np.clip(np.rint(np.sign(z) * np.sqrt(np.abs(z)) * FINEST), -127, 127)
    packed = np.where(np.isfinite(packed), packed, -128).astype(np.int8)
    about = {"base": pack.info["base"], "texts": json.dumps(list(texts)), "ids": json.dumps(list(pack.column("id")))}
    path = DATA / "responses.safetensors"
    write_atomic(path, lambda tmp: save_file({"roots": np.ascontiguousarray(packed)}, str(tmp), about))
    log.info("%s: %d texts, %.1f MB", path, len(texts), path.stat().st_size / 2**20)


def read_responses(pack: Pack, texts: Sequence[str]) -> np.ndarray:
    """(texts, n) float32, NaN for texts that were not asked and LoRAs that no prompt reaches; of a whole pack or some
    of its LoRAs."""
    with safe_open(str(DATA / "responses.safetensors"), "numpy") as handle:
        about, packed = handle.metadata(), handle.get_tensor("roots").astype(np.float32)
    places = {one: place for place, one in enumerate(json.loads(about["ids"]))}
    mine = [places.get(one) for one in pack.column("id").tolist()]
    if about["base"] != pack.info["base"] or None in mine:
        raise AutoLoRAError(
            "benchmarks/data/responses.safetensors is of another zoo than benchmarks/data/retrieval.safetensors",
            fix="make it again with `python -m zoo.responses_pack`",
        )
    roots = np.where(packed == -128, np.nan, packed / FINEST)
    at = {text: i for i, text in enumerate(json.loads(about["texts"]))}
    found = np.full((len(texts), len(pack)), np.nan, np.float32)
    for row, text in zip(found, texts, strict=True):
        if text in at:
            row[:] = np.sign(roots[at[text], mine]) * roots[at[text], mine] ** 2
    return found


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    from benchmarks.demo_states import DemoStates
    from benchmarks.library import BASE
    from benchmarks.retrieval_study import asked_phrases

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    pack = read("retrieval")
    table = table_of(scale_items())
    if list(table.hashes) != list(pack.column("id")):
        raise AutoLoRAError("the zoo is not the one of the pack", fix="run `python -m zoo.features_pack` first")
    texts = list(dict.fromkeys([*GENERIC_PROMPTS, *asked_phrases(pack)]))
    write(pack, texts, asked(table, DemoStates(BASE), texts))


if __name__ == "__main__":
    main()
