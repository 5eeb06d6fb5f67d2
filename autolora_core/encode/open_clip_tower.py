"""The text half of a CLIP the user already owns, as a tower.

Reads ``clip_l.safetensors`` and ``clip_g.safetensors`` as SD and FLUX installations hold them (Hugging Face names) and
open_clip's own files; nothing is downloaded. The network is open_clip's ``TextTransformer``.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import FileFormatError, TowerError
from ..lora.header import read_header, read_tensors
from .towers import file_sha256

HEAD_WIDTH = 64
_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)")
_RENAMED = (
    ("self_attn.out_proj", "attn.out_proj"),
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
)


class OpenClipTower:
    """Vectors of a CLIP text tower: the projected state at the end token, unit norm.

    ``path`` is a safetensors file. ``quick_gelu``: the activation of OpenAI's own models; None takes it for widths up
    to 768 (clip_l), not above (clip_g, H). A file without a projection gives the unprojected state. Loaded on first
    use; :class:`TowerError` when the file is no CLIP text tower or open_clip is not installed.
    """

    def __init__(self, path: str | os.PathLike, quick_gelu: bool | None = None):
        self.path, self.quick_gelu = Path(path), quick_gelu
        self._id: str | None = None
        self._model = self._tokenizer = None
        self._dim = 0

    @property
    def id(self) -> str:
        """``clip-`` and 12 hex digits over the file and the activation."""
        return self.load()._id or ""

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.load()._dim

    def load(self) -> OpenClipTower:
        """Read the file (once); returns self."""
        if self._id is not None:
            return self
        try:
            from open_clip.tokenizer import SimpleTokenizer
        except ImportError as error:
            raise TowerError(
                "a CLIP tower needs the package open_clip", path=self.path, fix="python -m pip install open_clip_torch"
            ) from error
        weights = open_clip_names(self._read())
        model, quick = _build(weights, self.quick_gelu, self.path)
        self._model, self._tokenizer = model, SimpleTokenizer(context_length=weights["positional_embedding"].shape[0])
        projection = weights.get("text_projection")
        self._dim = weights["token_embedding.weight"].shape[1] if projection is None else projection.shape[1]
        digest = hashlib.sha256(f"{file_sha256(self.path)} quick_gelu={quick}".encode()).hexdigest()
        self._id = f"clip-{digest[:12]}"
        return self

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (n, dim), unit rows; one text at a time, so that a batch changes nothing."""
        self.load()
        rows = [self._model(self._tokenizer([text])) for text in texts]
        stacked = torch.cat(rows) if rows else torch.zeros(0, self._dim)
        return unit_rows(stacked, self.path)

    def _read(self) -> dict[str, Tensor]:
        try:
            header = read_header(self.path)
            mine = [key for key in header.tensors if "visual." not in key]
            return {key: read_tensors(header, [key])[key].float() for key in mine}
        except FileFormatError as error:
            raise TowerError(
                f"the CLIP file cannot be read: {error.message}", path=self.path, fix="choose a .safetensors file"
            ) from error


def unit_rows(states: Tensor, path: Path) -> np.ndarray:
    """float32 (n, dim) rows of unit norm. :class:`TowerError` where values of the file gave NaN: of a download that
    was cut off, or of a model saved in too narrow a type."""
    rows = torch.nn.functional.normalize(states.float(), dim=1)
    if not bool(torch.isfinite(rows).all()):
        raise TowerError("this CLIP gives values that are not finite", path=path, fix="download it again")
    return rows.numpy()


def open_clip_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a text tower under open_clip's names, whichever of the two namings they came in."""
    plain = {re.sub(r"^(?:text|clip_[lg]\.transformer|transformer(?=\.text_model))\.", "", k): v for k, v in
             weights.items()}  # fmt: skip
    if not any(key.startswith("text_model.") for key in plain):
        return {key: value for key, value in plain.items() if key not in ("logit_scale", "attn_mask", "logit_bias")}
    found: dict[str, Tensor] = {}
    fused: dict[str, dict[str, Tensor]] = {}
    for key, value in plain.items():
        name = key.removeprefix("text_model.")
        layer = _LAYER.fullmatch(name)
        if name == "embeddings.token_embedding.weight":
            found["token_embedding.weight"] = value
        elif name == "embeddings.position_embedding.weight":
            found["positional_embedding"] = value
        elif name.startswith("final_layer_norm."):
            found[name.replace("final_layer_norm", "ln_final")] = value
        elif name == "text_projection.weight":
            found["text_projection"] = value.T.contiguous()
        elif layer and (part := re.fullmatch(r"self_attn\.([qkv])_proj\.(weight|bias)", layer[2])):
            at = f"transformer.resblocks.{layer[1]}.attn.in_proj_{part[2]}"
            fused.setdefault(at, {})[part[1]] = value
        elif layer:
            renamed = layer[2]
            for old, new in _RENAMED:
                renamed = renamed.replace(old, new)
            found[f"transformer.resblocks.{layer[1]}.{renamed}"] = value
    found |= {at: torch.cat([parts[p] for p in "qkv"]) for at, parts in fused.items() if len(parts) == 3}
    return found


def _build(weights: dict[str, Tensor], quick_gelu: bool | None, path: Path) -> tuple[torch.nn.Module, bool]:
    from open_clip.transformer import QuickGELU, TextTransformer

    try:
        vocabulary, width = weights["token_embedding.weight"].shape
        length = weights["positional_embedding"].shape[0]
        layers = len({key.split(".")[2] for key in weights if key.startswith("transformer.resblocks.")})
        mlp = weights["transformer.resblocks.0.mlp.c_fc.weight"].shape[0] / width
        quick = width <= 768 if quick_gelu is None else quick_gelu
        projection = weights.get("text_projection")
        model = TextTransformer(
            context_length=length,
            vocab_size=vocabulary,
            width=width,
            heads=width // HEAD_WIDTH,
            layers=layers,
            mlp_ratio=mlp,
            output_dim=None if projection is None else projection.shape[1],
            act_layer=QuickGELU if quick else torch.nn.GELU,
        )
        model.load_state_dict(weights)
    except (KeyError, ValueError, RuntimeError) as error:
        raise TowerError(
            f"not a CLIP text tower ({type(error).__name__}: {str(error)[:200]})",
            path=path,
            fix="choose clip_l.safetensors, clip_g.safetensors or an open_clip file",
        ) from error
    return model.eval(), quick
