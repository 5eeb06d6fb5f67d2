"""Reading an encoder file, whatever its kind."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import FileFormatError
from ..lora.header import read_header
from ..portable import load_whole
from .encoder import FIX, FORMAT, RidgeEncoder, WeightEncoder, arrays
from .set_encoder import SetEncoder


def load_encoder_file(path: str | os.PathLike) -> WeightEncoder:
    """The encoder in ``path``; its ``kind`` decides. :class:`FileFormatError` when it is none, or damaged."""
    from safetensors import SafetensorError

    path = Path(path)
    if read_header(path).metadata.get("format") != FORMAT:  # text encoders of many gigabytes lie under such names
        raise FileFormatError(f"not an encoder of format {FORMAT}", path=path, fix=FIX)
    try:
        read, metadata = load_whole(path)
    except (OSError, SafetensorError) as error:
        raise FileFormatError(f"the encoder cannot be read: {error}", path=path) from error
    if metadata.get("kind") == "set" and metadata.get("format") == FORMAT:
        return SetEncoder.restore(path, metadata, arrays(read))
    return RidgeEncoder.of_file(path, arrays(read), metadata)
