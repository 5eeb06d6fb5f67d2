"""What the demo base says about texts and LoRAs, on inputs that are fixed once: states of words, and drawings.

``states``: the inputs of the text-fed layers for a text, as :mod:`autolora_core.encode.response` wants them.
``text_draws`` and ``lora_draws``: how the velocity at (nearly) pure noise changes when the empty prompt becomes a text,
and when a LoRA is added while the prompt stays empty. At pure noise the velocity is noise − E[picture], so the change
is the picture that the text, or the LoRA, stands for, blurred: a LoRA shows what it draws without being asked for it.
One forward pass a probe; no sampling, no decoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from autolora_core.encode.input_states import TextStates
from zoo.mmdit import MMDiT
from zoo.multi_lora import target_layers
from zoo.text_bank import encode, tower

Factors = Mapping[str, tuple[Tensor, Tensor]]
SEED, BATCH = 20261124, 32
# Noise level and how many noises: pure noise shows layout and colour, a little below it detail.
DRAWS = ((1.0, 2), (0.85, 2))
# Text states are recorded beside a tiny picture, at sampling's 20 %: 3 · 0.8 / (1 + 2 · 0.8) with SD3's shift of 3.
STATE_TIME, STATE_SIDE = 2.4 / 2.6, 4
# Every layer that a LoRA can change; the last block's text stream ends in its attention. The first of SPACES are those
# that read text themselves.
_PARTS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
SPACES = tuple(f"joint_blocks.{n}.context_block.{part}" for n in range(4) for part in _PARTS)[:13]
IMAGE_SPACES = tuple(f"joint_blocks.{n}.x_block.{part}" for n in range(4) for part in _PARTS)
DRAW_SIZE = len(DRAWS) * 16 * 16 * 16


class BaseProbe:
    """A frozen base and its probes. All results are float32 numpy arrays and depend on nothing but the inputs."""

    def __init__(self, model: MMDiT):
        self.model, self.minilm = model, tower()
        generator = torch.Generator().manual_seed(SEED)
        count = sum(n for _, n in DRAWS)
        self.noise = torch.randn(count, 16, 16, 16, generator=generator)
        self.times = torch.tensor([t for t, n in DRAWS for _ in range(n)])
        self.empty = encode([""], self.minilm)

    @torch.no_grad()
    def states(self, texts: Sequence[str]) -> TextStates:
        """Real inputs of the text-side layers for each text: its words' tokens and the end token."""
        noise = STATE_TIME * self.noise[:1, :, :STATE_SIDE, :STATE_SIDE]
        counts: list[int] = []
        tokens: dict[str, list[np.ndarray]] = {name: [] for name in SPACES}
        for start in range(0, len(texts), BATCH):
            seen, real = self.inputs(texts[start : start + BATCH], SPACES, noise)
            counts += real.sum(dim=1).tolist()
            for name in SPACES:
                tokens[name].append(seen[name][real].numpy().astype(np.float16))
        return TextStates(np.array(counts), {name: np.concatenate(parts) for name, parts in tokens.items()})

    @torch.no_grad()
    def inputs(
        self, texts: Sequence[str], spaces: Sequence[str], noise: Tensor | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Space → (b, tokens, d) inputs of those layers beside one picture of noise (the whole one where none is
        given), and which (b, 24) text tokens are words or the end token."""
        context, pooled = encode(texts, self.minilm)
        real = context.abs().sum(dim=-1) > 0
        real[:, 0] = False  # the start token
        noise = STATE_TIME * self.noise[:1] if noise is None else noise
        with recorded(self.model, spaces) as seen:
            self._velocity(context, pooled, noise.expand(len(texts), -1, -1, -1), STATE_TIME)
        return seen, real

    @torch.no_grad()
    def text_draws(self, texts: Sequence[str]) -> np.ndarray:
        """(n, :data:`DRAW_SIZE`): the base with the text minus the base without."""
        silent, out = self._drawing(*self.empty), []
        step = max(1, BATCH // len(self.noise))
        for start in range(0, len(texts), step):
            out.append(self._drawing(*encode(texts[start : start + step], self.minilm)) - silent)
        return np.concatenate(out)

    @torch.no_grad()
    def lora_draw(self, factors: Factors) -> np.ndarray:
        """(:data:`DRAW_SIZE`,): the base with the LoRA minus the base without, both on the empty prompt."""
        silent = self._drawing(*self.empty)
        with applied(self.model, factors):
            return (self._drawing(*self.empty) - silent)[0]

    def _drawing(self, context: Tensor, pooled: Tensor) -> np.ndarray:
        """(b, DRAW_SIZE) for ``context`` (b, 24, 384): velocity at every probe, averaged over a level's noises."""
        b, n = len(context), len(self.noise)
        velocity = self.model(
            self.noise.repeat(b, 1, 1, 1), self.times.repeat(b), context.repeat_interleave(n, 0),
            pooled.repeat_interleave(n, 0),
        ).unflatten(0, (b, n))  # fmt: skip
        parts = velocity.split([count for _, count in DRAWS], dim=1)
        return torch.stack([part.mean(dim=1) for part in parts], dim=1).flatten(1).numpy()

    def _velocity(self, context: Tensor, pooled: Tensor, noise: Tensor, time: float) -> Tensor:
        return self.model(noise, torch.full((len(context),), time), context, pooled)

    @torch.no_grad()
    def typical_inputs(self, texts: Sequence[str], count: int) -> dict[str, np.ndarray]:
        """Module -> (count, in): the mean input of the module in the base and its leading principal directions, for
        ``texts`` and the empty prompt, image tokens or text tokens alike; unit rows.
        """
        names = tuple(target_layers(self.model))
        kept: dict[str, list[Tensor]] = {name: [] for name in names}
        for text in ["", *texts]:
            context, pooled = encode([text], self.minilm)
            real = int((context.abs().sum(dim=-1) > 0).sum())
            with recorded(self.model, names) as seen:
                self._velocity(context, pooled, self.noise[:1], STATE_TIME)
            for name in names:
                rows = seen[name][0]
                kept[name].append(rows[:real] if ".context_block." in name else rows[::4])
        return {name: _directions(torch.cat(rows), count) for name, rows in kept.items()}


def _directions(rows: Tensor, count: int) -> np.ndarray:
    """Mean and leading principal directions of ``rows`` (n, d), as unit rows (count, d) with a fixed sign."""
    mean = rows.mean(dim=0, keepdim=True)
    _, _, vt = torch.linalg.svd((rows - mean).double(), full_matrices=False)
    found = torch.cat([mean.double() / mean.double().norm(), vt[: count - 1]])
    return (found * torch.sign(found.gather(1, found.abs().argmax(dim=1, keepdim=True)))).float().numpy()


@contextmanager
def recorded(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Inputs of the named modules during the next forward pass."""
    seen: dict[str, Tensor] = {}

    def hook(name: str):
        return lambda module, inputs: seen.__setitem__(name, inputs[0].detach())

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def applied(model: nn.Module, factors: Factors) -> Iterator[None]:
    """The model with ``up @ down`` added to each module's weight; restored to the very bits afterwards."""
    before = {name: model.get_submodule(name).weight.data for name in factors}
    try:
        for name, (down, up) in factors.items():
            model.get_submodule(name).weight.data = before[name] + up.float() @ down.float()
        yield
    finally:
        for name, weight in before.items():
            model.get_submodule(name).weight.data = weight
