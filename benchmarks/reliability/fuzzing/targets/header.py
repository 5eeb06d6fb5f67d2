"""Headers of safetensors files, and the tensors they name: beside safetensors' own reader."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, deserialize

from autolora_core.lora.header import DTYPES, read_header, read_tensors

from .. import lora_seeds
from ..memory import MIB
from ..oracle import Wrong

CASES = 14_000


def bound(size: int) -> int:
    """Parsed JSON takes up to some 40 bytes for a byte of text; a tensor is read once."""
    return 8 * MIB + 40 * size


seeds, make = lora_seeds.seeds, lora_seeds.make


def run(data: bytes, folder: Path) -> None:
    path = folder / "file.safetensors"
    path.write_bytes(data)
    header = read_header(path)
    tensors = read_tensors(header, [key for key, info in header.tensors.items() if DTYPES[info.dtype][1] is not None])
    try:
        theirs = dict(deserialize(data))
    except SafetensorError as error:
        raise Wrong(f"accepted, and safetensors refuses it: {error}") from error
    if theirs.keys() != header.tensors.keys():
        raise Wrong(f"keys {sorted(header.tensors)[:3]} are read by safetensors as {sorted(theirs)[:3]}")
    for key, tensor in tensors.items():
        own = tensor.reshape(-1).contiguous()
        if tuple(theirs[key]["shape"]) != tuple(tensor.shape):
            raise Wrong(f"{key!r} has the shape {tuple(tensor.shape)}, by safetensors {theirs[key]['shape']}")
        if own.numel() and bytes(theirs[key]["data"]) != own.view(torch.uint8).numpy().tobytes():
            raise Wrong(f"the values of {key!r} are not those of the file")
