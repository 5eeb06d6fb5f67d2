"""Says what a file that is not safetensors really is, from its first bytes. Nothing is ever unpickled or unzipped."""

from __future__ import annotations

import os

# (first bytes, what it is, what to do). The order matters: longer and surer signs first.
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer (a few lines of text that stand for the real file)",
        "run `git lfs pull`, or download the file itself.",
    ),
    (b"PK\x03\x04", "a zip archive, probably a PyTorch pickle (.pt, .ckpt)", "convert it to safetensors first."),
    (b"GGUF", "a GGUF file", "use it with a GGUF loader; it is not a LoRA in safetensors format."),
    (b"\x93NUMPY", "a NumPy array", "convert it to safetensors first."),
    (b"\x1f\x8b", "a gzip archive", "unpack it first."),
    (b"7z\xbc\xaf'\x1c", "a 7-Zip archive", "unpack it first."),
    (b"Rar!", "a RAR archive", "unpack it first."),
    (b"\x89PNG", "a PNG picture", "look for the file beside it that holds the weights."),
    (b"\xff\xd8\xff", "a JPEG picture", "look for the file beside it that holds the weights."),
    (b"%PDF", "a PDF document", "download the LoRA itself."),
)
_PAGE_STARTS = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<script", b"<body")


def what_is_it(head: bytes) -> tuple[str, str] | None:
    """``(what it is, what to do)`` for the first bytes of a file, or None when they tell nothing."""
    for magic, what, fix in _MAGIC:
        if head.startswith(magic):
            return what, fix
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(_PAGE_STARTS):
        return "an HTML or XML page (a failed download)", "download it again, perhaps after logging in."
    if text.startswith(b"{"):
        return "a JSON text (perhaps an error message of the server)", "download it again."
    if len(head) > 1 and head[0] == 0x80 and head[1] in (2, 3, 4, 5):
        return "a Python pickle", "it can run code when opened, so it is refused; convert it to safetensors first."
    if head and not any(head):
        return "filled with zero bytes (a download that never finished)", "download it again."
    return None


def shown(path: str | os.PathLike) -> str:
    """The path as text that can always be printed: bytes that are not UTF-8 become ``�``."""
    return os.fsencode(path).decode("utf-8", "replace")
