"""Whether two PNG files show the same picture, whatever their metadata says."""

from __future__ import annotations

import struct
import zlib

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def pixels(png: bytes) -> tuple[bytes, bytes]:
    """The header (size, depth, colour type) and the decompressed scanlines of a PNG.

    Two files written by one encoder agree in both exactly when their pixels agree: the text chunks, where ComfyUI
    stores the graph, are left out.

    Raises:
        ValueError: not a PNG, or cut short.
    """
    if not png.startswith(_SIGNATURE):
        raise ValueError("not a PNG file")
    header, data, at = b"", [], len(_SIGNATURE)
    while at + 12 <= len(png):
        length, kind = struct.unpack_from("!I4s", png, at)
        body = png[at + 8 : at + 8 + length]
        at += 12 + length
        if kind == b"IHDR":
            header = body
        elif kind == b"IDAT":
            data.append(body)
        elif kind == b"IEND":
            return header, zlib.decompress(b"".join(data))
    raise ValueError("the PNG file ends too early")


def same_picture(one: bytes, other: bytes) -> bool:
    """Whether two PNG files hold the same pixels, bit for bit."""
    return pixels(one) == pixels(other)
