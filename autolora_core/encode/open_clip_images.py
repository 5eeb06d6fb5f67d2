"""The image half of a CLIP the user already owns: pictures in, unit vectors out.

Reads CLIP vision files as ComfyUI's ``clip_vision`` folder holds them (Hugging Face names), whole CLIP models of both
namings and open_clip's own files; nothing is downloaded. The network is open_clip's ``VisionTransformer``. Where the
same file holds the text half too, :attr:`OpenClipImageTower.text` is a tower in the same space.
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
from torch.nn import functional

from ..errors import FileFormatError, TowerError
from ..lora.header import read_header, read_tensors
from .open_clip_tower import OpenClipTower, unit_rows
from .towers import file_sha256

# Mean and deviation of the pictures CLIP was trained on (Radford et al. 2021, the released code).
LONGEST = 8  # times its short side; of a longer picture no more than that is scaled, as it is cut to a square anyway
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HEADS = {1280: 16, 1408: 16, 1664: 16, 1792: 16}  # H, g, bigG, e; smaller towers have heads 64 wide
_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)")
_RENAMED = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm": "ln_pre",  # spelt so in Hugging Face's files
    "post_layernorm": "ln_post",
}
_RENAMED_IN_LAYER = (
    ("self_attn.out_proj", "attn.out_proj"), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
)  # fmt: skip
FIX = "choose a CLIP vision file (models/clip_vision) or a whole CLIP model, as .safetensors"


class OpenClipImageTower:
    """Vectors of a CLIP image tower: the projected state of the class token, unit norm.

    ``path`` is a safetensors file. ``quick_gelu``: the activation of OpenAI's own models; None takes it for widths up
    to 1024 (B and L), not above (H, g, G). Loaded on first use; :class:`TowerError` when the file has no image tower or
    open_clip is not installed.
    """

    def __init__(self, path: str | os.PathLike, quick_gelu: bool | None = None):
        self.path, self.quick_gelu = Path(path), quick_gelu
        self._id: str | None = None
        self._model: torch.nn.Module | None = None
        self._text: OpenClipTower | None = None

    @property
    def id(self) -> str:
        """``clip-image-`` and 12 hex digits over the file and the activation."""
        return self.load()._id or ""

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self.load()._model.output_dim)

    @property
    def size(self) -> int:
        """Side of the square it looks at, in pixels."""
        return int(self.load()._model.image_size[0])

    @property
    def text(self) -> OpenClipTower | None:
        """The text half of the same file, in the same space; None when the file has none."""
        self.load()
        return self._text

    def load(self) -> OpenClipImageTower:
        """Read the file (once); returns self."""
        if self._id is not None:
            return self
        try:
            import open_clip.transformer  # noqa: F401
        except ImportError as error:
            raise TowerError(
                "searching by picture needs the package open_clip",
                path=self.path,
                fix="python -m pip install open_clip_torch",
            ) from error
        keys, halves = _read(self.path)
        weights = image_weights(halves)
        has_text = any(key.endswith("token_embedding.weight") for key in keys)
        if not weights:
            instead = "it holds the text half of a CLIP only" if has_text else "nothing in it looks like a CLIP"
            raise TowerError(f"this file has no image tower: {instead}", path=self.path, fix=FIX)
        self._model, quick = _build(weights, self.quick_gelu, self.path)
        if has_text:
            self._text = OpenClipTower(self.path, self.quick_gelu)
        digest = hashlib.sha256(f"{file_sha256(self.path)} quick_gelu={quick}".encode()).hexdigest()
        self._id = f"clip-image-{digest[:12]}"
        return self

    @torch.inference_mode()
    def encode(self, pictures: Sequence[Tensor]) -> np.ndarray:
        """float32 (n, dim), unit rows, of pictures (height, width, 3 or more) with values in [0, 1].

        One at a time, so that a batch changes nothing. Channels beyond the third are left out.
        """
        self.load()
        rows = [self._model(prepare(picture, self.size)[None]) for picture in pictures]
        stacked = torch.cat(rows) if rows else torch.zeros(0, self.dim)
        return unit_rows(stacked, self.path)


def prepare(picture: Tensor, size: int) -> Tensor:
    """(height, width, ≥ 3) in [0, 1] → (3, size, size) as CLIP expects: the shorter side scaled to ``size`` (bicubic),
    the middle cut out, 8-bit levels, standardised."""
    image = _not_too_long(picture[..., :3].float().cpu().movedim(-1, 0)[None])
    height, width = image.shape[2:]
    scale = size / min(height, width)
    shape = (max(size, round(height * scale)), max(size, round(width * scale)))
    if shape != (height, width):
        image = functional.interpolate(image, size=shape, mode="bicubic", antialias=True, align_corners=False)
    top, left = round((shape[0] - size) / 2), round((shape[1] - size) / 2)
    image = image[0, :, top : top + size, left : left + size]
    image = (image * 255).round().clamp(0, 255) / 255
    return (image - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def _not_too_long(image: Tensor) -> Tensor:
    """The middle of a picture that is more than :data:`LONGEST` times as long as it is wide: (1, 3, height, width)."""
    height, width = image.shape[2:]
    most = LONGEST * min(height, width)
    top, left = max(0, (height - most) // 2), max(0, (width - most) // 2)
    return image[:, :, top : top + most, left : left + most]


def image_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the image tower under open_clip's names, whichever naming they came in; empty when there is none."""
    own = {key.partition("visual.")[2]: value for key, value in weights.items() if key.startswith("visual.")}
    if "conv1.weight" in own:
        return own
    found: dict[str, Tensor] = {}
    fused: dict[str, dict[str, Tensor]] = {}
    for key, value in weights.items():
        name = key.partition("vision_model.")[2]
        layer = _LAYER.fullmatch(name)
        if key.endswith("visual_projection.weight"):
            found["proj"] = value.T.contiguous()
        elif layer and (part := re.fullmatch(r"self_attn\.([qkv])_proj\.(weight|bias)", layer[2])):
            fused.setdefault(f"transformer.resblocks.{layer[1]}.attn.in_proj_{part[2]}", {})[part[1]] = value
        elif layer:
            renamed = layer[2]
            for old, new in _RENAMED_IN_LAYER:
                renamed = renamed.replace(old, new)
            found[f"transformer.resblocks.{layer[1]}.{renamed}"] = value
        elif name and (start := next((old for old in _RENAMED if name.startswith(old)), None)):
            found[_RENAMED[start] + name.removeprefix(start)] = value
    found |= {at: torch.cat([parts[p] for p in "qkv"]) for at, parts in fused.items() if len(parts) == 3}
    return found if "conv1.weight" in found else {}


def _read(path: Path) -> tuple[list[str], dict[str, Tensor]]:
    """Names of all tensors of a file, and those of its image half as float32."""
    try:
        header = read_header(path)
        keys = list(header.tensors)
        mine = [key for key in keys if key.startswith("visual") or "vision_model." in key]
        tensors = read_tensors(header, mine)
        return keys, {key: value.float() for key, value in tensors.items() if value.is_floating_point()}
    except FileFormatError as error:
        raise TowerError(f"the CLIP file cannot be read: {error.message}", path=path, fix=FIX) from error


def _build(weights: dict[str, Tensor], quick_gelu: bool | None, path: Path) -> tuple[torch.nn.Module, bool]:
    from open_clip.transformer import QuickGELU, VisionTransformer

    try:
        width, _, patch, _ = weights["conv1.weight"].shape
        side = round((weights["positional_embedding"].shape[0] - 1) ** 0.5)
        layers = len({key.split(".")[2] for key in weights if key.startswith("transformer.resblocks.")})
        mlp = weights["transformer.resblocks.0.mlp.c_fc.weight"].shape[0] / width
        quick = width <= 1024 if quick_gelu is None else quick_gelu
        # A file without a projection gives the state itself.
        projection = weights.get("proj", torch.eye(width))
        model = VisionTransformer(
            image_size=side * patch,
            patch_size=patch,
            width=width,
            layers=layers,
            heads=HEADS.get(width, width // 64),
            mlp_ratio=mlp,
            output_dim=projection.shape[1],
            act_layer=QuickGELU if quick else torch.nn.GELU,
        )
        model.load_state_dict(weights | {"proj": projection})
    except (KeyError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise TowerError(
            f"not a CLIP image tower that can be used ({type(error).__name__}: {str(error)[:200]})", path=path, fix=FIX
        ) from error
    return model.eval(), quick
