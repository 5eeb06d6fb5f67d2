"""Previews beside LoRA files: broken ones, enormous ones, and files of other kinds under a picture's name."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path

from PIL import Image

from autolora_core.encode.open_clip_images import prepare
from autolora_core.errors import LibraryError
from autolora_core.library.pictures import FORMATS, LARGEST_SIDE, MAX_PIXELS, read_picture

from .. import mutate
from ..memory import MIB
from ..oracle import Wrong

CASES = 2_000
OTHERS = ("BMP", "TIFF", "ICO", "PPM", "TGA", "EPS", "PDF")  # Pillow knows them; previews are none of these


def bound(size: int) -> int:
    """A picture of at most MAX_PIXELS, decoded, and its small copies."""
    return 8 * MAX_PIXELS + 64 * MIB + 10 * size


def _picture(kind: str, mode: str = "RGB", size: tuple[int, int] = (24, 16)) -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(out, kind)
    return out.getvalue()


def seeds(folder: Path) -> list[bytes]:
    return [
        *(_picture(kind) for kind in FORMATS),
        _picture("PNG", "RGBA"),
        _picture("PNG", "P"),
        _picture("PNG", "1"),
        _picture("PNG", "LA"),
        _picture("JPEG", "CMYK"),
        _picture("PNG", "RGB", (1, 3000)),
    ]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int, depth: int = 8, colour: int = 2, text: bytes = b"") -> bytes:
    """A PNG of a few bytes that claims so many pixels; ``text`` becomes a compressed text chunk."""
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    words = _chunk(b"zTXt", b"parameters\0\0" + zlib.compress(text)) if text else b""
    return b"\x89PNG\r\n\x1a\n" + head + words + _chunk(b"IDAT", zlib.compress(b"\0" * 4096)) + _chunk(b"IEND", b"")


def make(rng: random.Random, parent: bytes) -> bytes:
    kind = rng.random()
    if kind < 0.12:
        side = rng.choice((1, 100, 5000, 8000, 50_000, 2**20, 2**31 - 1))
        return bomb(
            side,
            rng.choice((1, 100, 8000, 50_000, 2**31 - 1)),
            rng.choice((1, 8, 16)),
            rng.choice((0, 2, 3, 4, 6)),
            b"x" * rng.choice((0, 0, 1 << 20, 80 << 20)) if rng.random() < 0.2 else b"",
        )
    if kind < 0.14:
        return _picture(rng.choice(OTHERS))
    if kind < 0.17:
        return rng.choice(
            (
                b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
                b"P6 9 9 255\n",
                b"RIFF\xff\xff\xff\xffWEBPVP8X",
                b"GIF89a" + rng.randbytes(64),
                b"II*\0" + rng.randbytes(64),
                b"\0\0\1\0" + rng.randbytes(64),
                b"<svg onload='alert(1)'/>",
                b"8BPS\0\1" + rng.randbytes(64),
                b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
            )
        )
    return mutate.bytes_of(rng, parent, parent)


def run(data: bytes, folder: Path) -> None:
    path = folder / "otter.preview.png"
    path.write_bytes(data)
    try:
        picture = read_picture(str(path))
    except (OSError, ValueError) as error:  # as the caller takes it: a note that names the file
        raise LibraryError(f"the preview cannot be read ({error!r:.80})", path=path) from error
    if (
        picture.ndim != 3
        or picture.shape[2] != 3
        or max(picture.shape[:2]) > LARGEST_SIDE
        or min(picture.shape[:2]) < 1
    ):
        raise Wrong(f"a picture of shape {tuple(picture.shape)}")
    if not bool(((picture >= 0) & (picture <= 1)).all()):
        raise Wrong("a picture with values outside 0 to 1")
    if tuple(prepare(picture, 32).shape) != (3, 32, 32):
        raise Wrong("a picture that CLIP cannot be shown")
