"""What the demo base reads, without ComfyUI: what ``nodes.bridge_states`` records, from the zoo's own network.

The same sigma, latent size, noise and tokens (words and end token), so that a benchmark asks what a user's prompt asks;
that both agree is a test.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from autolora_core.encode.input_states import TextStates
from autolora_core.encode.spaces import IMAGE, named_space
from autolora_core.encode.towers import file_sha256
from autolora_core.library.answers import Progress
from zoo.base_probe import recorded
from zoo.mmdit import MMDiT
from zoo.text_bank import encode

# percent_to_sigma(0.2) of ComfyUI's SD3 sampling, whose shift is 3: 3 · 0.8 / (1 + 2 · 0.8)
SIGMA, SIDE, SEED, GROUP = 2.4 / 2.6, 16, 0, 16


class DemoStates:
    """A ``StateSource`` of the base in ``models/``."""

    lasting, family, device = True, "emoji", "cpu"

    def __init__(self, path: Path):
        self.id = f"demo-{file_sha256(path)[:16]}"
        self.network = MMDiT()
        self.network.load_state_dict({name: value.float() for name, value in load_file(path).items()})
        self.network.eval()

    def record(
        self, texts: Sequence[str], spaces: Sequence[str], progress: Progress | None = None
    ) -> Iterator[TextStates]:
        """See ``StateSource``."""
        for start in range(0, len(texts), GROUP):
            part = texts[start : start + GROUP]
            yield self._heard(part, spaces)
            if progress is not None:
                progress(start + len(part), len(texts), part[0])

    @torch.inference_mode()
    def _heard(self, texts: Sequence[str], spaces: Sequence[str]) -> TextStates:
        context, pooled = encode(texts)
        real = context.abs().sum(dim=-1) > 0
        real[:, 0] = False  # the start token
        noise = SIGMA * torch.randn(1, 16, SIDE, SIDE, generator=torch.Generator().manual_seed(SEED))
        with recorded(self.network, spaces) as seen:
            count = len(texts)
            self.network(noise.expand(count, -1, -1, -1), torch.full((count,), SIGMA), context, pooled)
        tokens = {}
        for name in spaces:
            reading = named_space(self.family, name).reading
            own = seen[name].flatten(0, 1) if reading.endswith(IMAGE) else seen[name][real]
            tokens[reading] = own.numpy()
        return TextStates(real.sum(dim=1).numpy(), tokens)
