"""What a text is to an encoder of LoRAs: a tower's vector, the base's own states, what the base draws for it.

And the two scores that need no training: the response of a LoRA's text-fed layers to a text's states, and the likeness
of what it draws unasked to what the base draws for the text.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from safetensors.numpy import load_file, save_file

from autolora_core.encode.factor_table import FactorTable, quantised
from autolora_core.encode.generic import GENERIC_PROMPTS
from autolora_core.encode.input_states import TextStates, UsualStates
from autolora_core.encode.response import response
from autolora_core.errors import AutoLoRAError
from zoo.base_probe import SPACES, BaseProbe
from zoo.cache import write_atomic, zoo_dir
from zoo.features_pack import Pack
from zoo.train_loras import base_tag, load_base

log = logging.getLogger("zoo.texts")
DRAW_BLOCK = 256


@dataclass
class Texts:
    """Everything about a list of texts: ``vectors`` (n, 384) of the tower, ``states`` projected to the pack's text
    directions, ``draws`` (n, k) of the base projected to the pack's drawing directions, NaN where none was asked for.
    """

    texts: list[str]
    vectors: np.ndarray
    states: TextStates
    draws: np.ndarray

    def __post_init__(self) -> None:
        self.index = {text: i for i, text in enumerate(self.texts)}

    def rows(self, texts: Sequence[str]) -> list[int]:
        return [self.index[text] for text in texts]


class TextReader:
    """Reads texts through the tower and the base of a pack, and keeps what it read in the cache, by content."""

    def __init__(self, pack: Pack, probe_of: Callable[[], BaseProbe] | None = None):
        """``probe_of``: function giving the probe; called when something is not in the cache. Default: the base in
        ``models/``, which must be the one that the pack was made with."""
        self.pack, self.probe_of, self._probe = pack, probe_of or self._shipped, None
        # States and drawings do not depend on the projection, but what is kept of them does.
        kept = b"".join(pack.bases[name].tobytes() for name in ("text_rows", "draw"))
        bases = hashlib.sha256(kept).hexdigest()
        self.id = f"{pack.info['base']} {bases}"

    def read(self, texts: Sequence[str], drawn: Sequence[str] = ()) -> Texts:
        """``texts`` and the generic prompts; the generic ones and ``drawn``, if any, are drawn too."""
        wanted = list(dict.fromkeys([*GENERIC_PROMPTS, *texts, *drawn]))
        heard = self._kept("states", wanted, self._states)
        tokens = {name: heard[f"states.{name}"] for name in SPACES}
        draws = np.full((len(wanted), len(self.pack.bases["draw"])), np.nan, np.float32)
        if drawn:
            shown = list(dict.fromkeys([*GENERIC_PROMPTS, *drawn]))
            place = {text: i for i, text in enumerate(wanted)}
            draws[[place[text] for text in shown]] = self._kept("draws", shown, self._draws)["draws"]
        return Texts(wanted, heard["vectors"], TextStates(heard["counts"], tokens), draws)

    def _kept(self, kind: str, texts: list[str], make: Callable[[list[str]], dict[str, np.ndarray]]):
        digest = hashlib.sha256("\n".join([self.id, *texts]).encode()).hexdigest()[:16]
        path = zoo_dir("retrieval") / f"{kind}-{digest}.safetensors"
        if not path.exists():
            log.info("%s of %d texts", kind, len(texts))
            made = make(texts)
            write_atomic(path, lambda tmp: save_file(made, str(tmp)))
        return load_file(str(path))

    @property
    def probe(self) -> BaseProbe:
        self._probe = self._probe or self.probe_of()
        return self._probe

    def _shipped(self) -> BaseProbe:
        if self.pack.info["base"] != base_tag():
            raise AutoLoRAError(
                f"the features are of {self.pack.info['base']}, the base in models/ is {base_tag()}",
                fix="make them again with `python -m zoo.features_pack`",
            )
        return BaseProbe(load_base())

    def _states(self, texts: list[str]) -> dict[str, np.ndarray]:
        states = self.probe.states(texts)
        out = {"vectors": self.probe.minilm.encode(texts), "counts": states.counts}
        for s, name in enumerate(SPACES):
            tokens = states.tokens[name].astype(np.float32)
            width = tokens.shape[1]
            centred = tokens - self.pack.means["text_rows"][s][:width]
            out[f"states.{name}"] = (centred @ self.pack.bases["text_rows"][s][:, :width].T).astype(np.float16)
        return out

    def _draws(self, texts: list[str]) -> dict[str, np.ndarray]:
        parts, began = [], time.time()
        for start in range(0, len(texts), DRAW_BLOCK):
            parts.append(self.probe.text_draws(texts[start : start + DRAW_BLOCK]) @ self.pack.bases["draw"].T)
            done = min(start + DRAW_BLOCK, len(texts))
            log.info("drew %d of %d, %.0f s left", done, len(texts), (time.time() - began) / done * (len(texts) - done))
        return {"draws": np.concatenate(parts).astype(np.float32)}


def unit_rows(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-9)


def z_scores(scores: np.ndarray, generic: np.ndarray) -> np.ndarray:
    """(texts, n) against (generic, n): robust z-score of each LoRA, as ``encode.calibrate.Ruler``."""
    middle = np.median(generic, axis=0)
    deviation = 1.4826 * np.median(np.abs(generic - middle), axis=0)
    return ((scores - middle) / np.maximum(deviation, 1e-6)).astype(np.float32)


def spread_z(scores: np.ndarray, generic: np.ndarray) -> np.ndarray:
    """The same by mean and standard deviation, as ``retrieve.responding.Responder`` reads responses."""
    return ((scores - generic.mean(axis=0)) / np.maximum(generic.std(axis=0), 1e-3)).astype(np.float32)


def factor_table(rows: np.ndarray) -> FactorTable:
    """``σ_k v_kᵀ`` (n, spaces, r, d) as the response score wants them; all-zero spaces are absent."""
    files = {}
    for i, own in enumerate(rows):
        files[str(i)] = {name: quantised(own[s]) for s, name in enumerate(SPACES) if own[s].any()}
    return FactorTable.packed(files)


def response_scores(table: FactorTable, texts: Texts) -> np.ndarray:
    """(texts, n): the training-free response; NaN for a LoRA that changes no text-side layer."""
    usual = UsualStates()
    usual.add(texts.states.part(texts.rows(GENERIC_PROMPTS)))
    return response(table, texts.states, usual.means()).T


def draw_scores(pack: Pack, texts: Texts) -> np.ndarray:
    """(texts, n): cosine of what the LoRA draws unasked with what the base draws for the text; training-free. NaN for
    texts that were not drawn."""
    generic = texts.draws[texts.rows(GENERIC_PROMPTS)].mean(axis=0)
    # A LoRA's drawing is already about the training LoRAs' mean.
    return (unit_rows(texts.draws - generic) @ unit_rows(pack.arrays["draw"]).T).astype(np.float32)
