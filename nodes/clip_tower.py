"""A ComfyUI CLIP as the text tower of an encoder: whatever text encoder the user's base has, its space is learnt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..autolora_core.errors import TowerError
from ..autolora_core.library.encoders import OF_CLIP
from .bridge_paths import throw_if_interrupted
from .bridge_states import clip_options, fingerprint
from .text_marks import real_tokens
from .wires import require_clip


class ClipTower:
    """``encode.towers.TextTower`` of a CLIP (or T5, or language model) as a workflow has it.

    A text's vector is the pooled output where the encoder has one, else the mean over the states of its own tokens;
    unit norm. ``id`` names the encoder by its weights and options; a CLIP with LoRAs on it is another tower.
    """

    def __init__(self, clip: Any):
        require_clip(clip)
        self.clip = clip
        made = f"{fingerprint(clip.patcher)} {clip_options(clip)}"
        self.id = f"{OF_CLIP}{hashlib.sha256(made.encode()).hexdigest()[:12]}"
        self._empty = clip.tokenize("")
        self._dim = 0

    @property
    def dim(self) -> int:
        """Length of a vector; asks the encoder once."""
        self._dim = self._dim or len(self._vector("a picture"))
        return self._dim

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (n, dim), unit rows; one text at a time, so that a batch changes nothing. Raises ``TowerError`` when
        the encoder gives nothing to go by, and ComfyUI's interrupt when the user cancels."""
        rows = [self._vector(text) for text in texts]
        return np.stack(rows) if rows else np.zeros((0, self.dim), np.float32)

    @torch.inference_mode()
    def _vector(self, text: str) -> np.ndarray:
        throw_if_interrupted()
        tokens = self.clip.tokenize(text)
        ((states, extra),) = self.clip.encode_from_tokens_scheduled(tokens, show_pbar=False)[:1]
        pooled = extra.get("pooled_output")
        if not isinstance(pooled, torch.Tensor) or not pooled.any():
            mark = torch.from_numpy(real_tokens(tokens, self._empty, states.shape[1]))
            pooled = states[:, mark].mean(dim=1)
        vector = pooled.flatten().float().cpu()
        length = float(vector.norm())
        if not np.isfinite(length) or not length:
            raise TowerError(f"this CLIP makes nothing of {text!r}", fix="disconnect it: MiniLM is used instead")
        return (vector / length).numpy()
