"""Reading an encoder file, whatever its kind."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import FileFormatError
from .encoder import FORMAT, RidgeEncoder, WeightEncoder
from .set_encoder import SetEncoder


def load_encoder_file(path: str | os.PathLike) -> WeightEncoder:
    """The encoder in ``path``; its ``kind`` decides. :class:`FileFormatError` when it is none, or damaged."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        with safe_open(os.fspath(path), "numpy") as stream:
            metadata = stream.metadata() or {}
            tensors = {} if metadata.get("kind") != "set" else {name: stream.get_tensor(name) for name in stream.keys()}
    except (OSError, SafetensorError) as error:
        raise FileFormatError(f"the encoder cannot be read: {error}", path=path) from error
    if metadata.get("kind") == "set" and metadata.get("format") == FORMAT:
        return SetEncoder.restore(path, metadata, tensors)
    return RidgeEncoder.load(path)
