"""What a LoRA does to a prompt inside the base model: a score that needs no training, no caption and no creator.

A module's update ΔW can be applied to the real input x that the module gets for a prompt, and how hard it answers says
whether the LoRA was trained on such prompts: the cross-attention form of this is SEQR (arXiv 2509.18093). Here every
kind of module takes part, those that read text and those that read the picture's tokens (:mod:`.spaces`):

    response(text) = mean over inputs of  log( Σ_t ‖R x̃_t‖² / Σ_t ‖x̃_t‖² ),    R = ΔW / ‖ΔW‖_F,

t running over the text's tokens or over the picture's, which hold one and the same noise for every text. x̃ is x minus
its mean over the generic prompts: of all text tokens, but of image tokens at each position apart, since where a token
lies tells them apart far more than the prompt does. An input that several modules share is one space, their updates
stacked. Strong LoRAs and loud prompts cancel out; what a LoRA answers to everything is taken off by its z-score over
the generic prompts. ``‖R x‖`` needs only ``σ_k v_kᵀ``, so a file is kept as a few of these rows of each space.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from .factor_table import FactorTable, SpaceRows
from .input_states import TextStates
from .spaces import IMAGE, space_name

# Numbers of one intermediate product while scoring: 64 MB of float32.
BLOCK_NUMBERS = 1 << 24
ENERGY_FLOOR = 1e-12


def response(
    table: FactorTable, states: TextStates, means: Mapping[str, np.ndarray], device: str | torch.device = "cpu"
) -> np.ndarray:
    """Responses (n files, texts) float32; NaN for a file none of whose spaces is in ``states``.

    ``means``: see :class:`UsualStates`. Memory is bounded whatever the sizes.
    """
    total, count = np.zeros((len(table), len(states)), np.float32), np.zeros(len(table), np.int32)
    for reading, tokens in states.tokens.items():
        own = table.spaces.get((space_name(reading), tokens.shape[1]))
        if own is None or reading not in means or not len(states):
            continue
        mean = np.tile(means[reading], (len(states), 1)) if reading.endswith(IMAGE) else means[reading]
        centred = torch.from_numpy(tokens.astype(np.float32) - mean).to(device)
        owner = None if reading.endswith(IMAGE) else torch.from_numpy(states.owners(reading)).to(device)
        loudness = _sums(centred.square().sum(dim=1)[None], owner, len(states))[0].clamp_min(ENERGY_FLOOR)
        for part in _blocks(len(own.files), own.rows.shape[1] * len(centred)):
            share = _sums(_energy(own, part, centred), owner, len(states)) / loudness
            total[own.files[part]] += share.clamp_min(ENERGY_FLOOR).log().cpu().numpy()
        count[own.files] += 1
    return np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], np.nan).astype(np.float32)


def _energy(own: SpaceRows, part: slice, centred: Tensor) -> Tensor:
    """``‖R x̃‖²`` of every token, (files, T)."""
    scale = torch.from_numpy(own.scale[part]).to(centred.device)
    rows = torch.from_numpy(own.rows[part]).to(centred.device).float().mul_(scale[..., None])
    answers = rows.flatten(0, 1) @ centred.T
    return answers.square_().view(*rows.shape[:2], -1).sum(dim=1)


def _sums(values: Tensor, owner: Tensor | None, texts: int) -> Tensor:
    """(k, T) → (k, texts), summed over each text's tokens: ``owner`` (T,), or as many for every text."""
    if owner is None:
        return values.view(len(values), texts, -1).sum(dim=2)
    return torch.zeros(len(values), texts, device=values.device).index_add_(1, owner, values)


def _blocks(files: int, numbers: int) -> Iterator[slice]:
    step = max(1, BLOCK_NUMBERS // max(numbers, 1))
    return (slice(start, start + step) for start in range(0, files, step))
