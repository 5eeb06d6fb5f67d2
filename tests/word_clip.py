"""A CLIP that knows words and nothing else, and what a layer of a live model reads for a text."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import tiny_models
import torch

LENGTH = 12
START, END, PAD = 1, 2, 0


class WordClip:
    """A CLIP of words: every new word is the next token; states are random rows by token."""

    def __init__(self, width: int = tiny_models.SD3_CONTEXT, length: int | None = LENGTH):
        self.length, self.words = length, {}
        table = torch.randn(200, width, generator=torch.Generator().manual_seed(5))
        self.net = torch.nn.Embedding(200, width, _weight=table)
        self.patcher = SimpleNamespace(model=self.net, patches={}, patches_uuid="u", injections={})
        self.layer_idx, self.tokenizer_options, self.asked = None, {}, []

    def tokenize(self, text: str) -> dict:
        ids = [START, *(self.words.setdefault(word, 10 + len(self.words)) for word in text.split()), END]
        ids += [PAD] * ((self.length or 0) - len(ids))
        return {"words": [[(token, 1.0) for token in ids]]}

    def encode_from_tokens_scheduled(self, tokens: dict, show_pbar: bool = True) -> list:
        ids = torch.tensor([[pair[0] for pair in tokens["words"][0]]])
        self.asked.append(ids)
        states = self.net(ids)
        return [[states, {"pooled_output": states.mean(dim=1)[:, : tiny_models.SD3_POOLED]}]]


def layer_reads(model: Any, clip: WordClip, text: str, layer: str, sigma: float, side: int) -> torch.Tensor:
    """The layer's input (1, tokens, in), from a plain call of the network on one noise of ``side`` × ``side``."""
    network, heard = model.model.diffusion_model, []
    ((cond, extra),) = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    noise = torch.randn(1, 16, side, side, generator=torch.Generator().manual_seed(0))
    handle = network.get_submodule(layer).register_forward_pre_hook(lambda _, args: heard.append(args[0]))
    try:
        with torch.inference_mode():
            network(noise * sigma, torch.tensor([sigma * 1000]), context=cond, y=extra["pooled_output"])
    finally:
        handle.remove()
    return heard[0]
