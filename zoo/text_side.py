"""What a text is to an encoder of LoRAs: a tower's vector, the base's own states, what the base draws for it.

And the two scores that need no training: the response of a LoRA's text-fed layers to a text's states, and the likeness
of what it draws unasked to what the base draws for the text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from safetensors.numpy import load_file, save_file

from autolora_core.encode.generic import GENERIC_PROMPTS
from autolora_core.encode.response import FactorTable, TextStates, quantised, response
from zoo.base_probe import SPACES, BaseProbe
from zoo.cache import write_atomic, zoo_dir
from zoo.features_pack import Pack


@dataclass
class Texts:
    """Everything about a list of texts: ``vectors`` (n, 384) of the tower, ``states`` projected to the pack's text
    directions, ``draws`` (n, 256) of the base projected to the pack's drawing directions.
    """

    texts: list[str]
    vectors: np.ndarray
    states: TextStates
    draws: np.ndarray

    def __post_init__(self) -> None:
        self.index = {text: i for i, text in enumerate(self.texts)}

    def rows(self, texts: Sequence[str]) -> list[int]:
        return [self.index[text] for text in texts]


def read_texts(texts: Sequence[str], pack: Pack, probe_of: Callable[[], BaseProbe], draws: bool = True) -> Texts:
    """``texts`` and the generic prompts through the tower and the base, kept in the cache by content.

    ``probe_of``: function giving the :class:`BaseProbe`, called only when something is not in the cache.
    """
    wanted = list(dict.fromkeys([*GENERIC_PROMPTS, *texts]))
    # A drawing and a state do not depend on the projection, but what is kept does.
    basis = hashlib.sha256(pack.bases["text_rows"].tobytes() + pack.bases["draw"].tobytes()).hexdigest()
    digest = hashlib.sha256("\n".join([pack.info["base"], basis, str(draws), *wanted]).encode()).hexdigest()[:16]
    path = zoo_dir("retrieval") / f"texts-{digest}.safetensors"
    if not path.exists():
        stored = _read(wanted, pack, probe_of(), draws)
        write_atomic(path, lambda tmp: save_file(stored, str(tmp)))
    stored = load_file(str(path))
    tokens = {name: stored[f"states.{name}"] for name in SPACES}
    return Texts(wanted, stored["vectors"], TextStates(stored["counts"], tokens), stored["draws"].astype(np.float32))


def _read(texts: list[str], pack: Pack, probe: BaseProbe, draws: bool) -> dict[str, np.ndarray]:
    states = probe.states(texts)
    out = {"vectors": probe.minilm.encode(texts), "counts": states.counts}
    for s, name in enumerate(SPACES):
        centred = states.tokens[name].astype(np.float32) - pack.means["text_rows"][s]
        out[f"states.{name}"] = (centred @ pack.bases["text_rows"][s].T).astype(np.float16)
    drawn = np.zeros((len(texts), len(pack.bases["draw"])), np.float32)
    if draws:
        for start in range(0, len(texts), 64):
            drawn[start : start + 64] = probe.text_draws(texts[start : start + 64]) @ pack.bases["draw"].T
    return out | {"draws": drawn.astype(np.float32)}


def unit_rows(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-9)


def z_scores(scores: np.ndarray, generic: np.ndarray) -> np.ndarray:
    """(texts, n) against (generic, n): robust z-score of each LoRA, as ``encode.calibrate.Ruler``."""
    middle = np.median(generic, axis=0)
    deviation = 1.4826 * np.median(np.abs(generic - middle), axis=0)
    return ((scores - middle) / np.maximum(deviation, 1e-6)).astype(np.float32)


def factor_table(rows: np.ndarray) -> FactorTable:
    """``σ_k v_kᵀ`` (n, spaces, r, d) as the response score wants them; all-zero spaces are absent."""
    files = {}
    for i, own in enumerate(rows):
        there = [s for s in range(len(SPACES)) if own[s].any()]
        files[str(i)] = (tuple(SPACES[s] for s in there), *quantised(own[there]))
    return FactorTable.packed(files)


def response_scores(table: FactorTable, texts: Texts) -> np.ndarray:
    """(texts, n): the training-free response; NaN for a LoRA that changes no text-fed layer."""
    generic = texts.states.part(texts.rows(GENERIC_PROMPTS))
    return response(table, texts.states, generic.mean()).T


def draw_scores(pack: Pack, texts: Texts, train: np.ndarray) -> np.ndarray:
    """(texts, n): cosine of what the LoRA draws unasked with what the base draws for the text; training-free."""
    generic = texts.draws[texts.rows(GENERIC_PROMPTS)].mean(axis=0)
    drawn = pack.arrays["draw"]  # already about the training LoRAs' mean
    return unit_rows(texts.draws - generic) @ unit_rows(drawn).T

