"""Text states of the demo base without ComfyUI: what ``nodes.bridge_states`` records, from the zoo's own network.

The same sigma, latent size, noise and tokens (words and end token), so that a benchmark asks what a user's prompt asks;
that both agree is a test.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from autolora_core.encode.response import TextStates
from autolora_core.encode.towers import file_sha256
from autolora_core.library.states import Progress
from zoo.mmdit import MMDiT
from zoo.text_bank import encode

# percent_to_sigma(0.2) of ComfyUI's SD3 sampling, whose shift is 3: 3 · 0.8 / (1 + 2 · 0.8)
SIGMA, SIDE, SEED, GROUP = 2.4 / 2.6, 4, 0, 32


class DemoStates:
    """A ``StateSource`` of the base in ``models/``."""

    lasting = True

    def __init__(self, path: Path):
        self.id = f"demo-{file_sha256(path)[:16]}"
        self.network = MMDiT()
        self.network.load_state_dict({name: value.float() for name, value in load_file(path).items()})
        self.network.eval()

    @torch.inference_mode()
    def record(self, texts: Sequence[str], spaces: Sequence[str], progress: Progress | None = None) -> TextStates:
        """See ``StateSource``."""
        context, pooled = encode(texts)
        real = context.abs().sum(dim=-1) > 0
        real[:, 0] = False  # the start token
        noise = SIGMA * torch.randn(1, 16, SIDE, SIDE, generator=torch.Generator().manual_seed(SEED))
        heard: dict[str, list[torch.Tensor]] = {name: [] for name in spaces}
        handles = [
            self.network.get_submodule(name).register_forward_pre_hook(
                lambda _, args, own=own: own.append(args[0].detach())
            )
            for name, own in heard.items()
        ]
        for start in range(0, len(texts), GROUP):
            part = slice(start, start + GROUP)
            count = len(context[part])
            self.network(noise.expand(count, -1, -1, -1), torch.full((count,), SIGMA), context[part], pooled[part])
            if progress is not None:
                progress(start + count, len(texts), texts[start])
        for handle in handles:
            handle.remove()
        tokens = {name: torch.cat(own)[real].numpy().astype(np.float16) for name, own in heard.items()}
        return TextStates(real.sum(dim=1).numpy(), tokens)
