"""Hostile bytes, texts and JSON, drawn from a seed."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

MOST_BYTES = 1 << 20  # of a case made from others: none grows without end

TEXTS = (
    "",
    " ",
    "\0",
    "a\0b",
    "../../../etc/passwd",
    "..\\..\\windows\\win.ini",
    "/etc/passwd",
    "C:\\Windows\\win.ini",
    "\\\\server\\share\\x",
    "file:///etc/passwd",
    "http://127.0.0.1:9/x",
    "'; DROP TABLE files; --",
    '" OR 1=1 --',
    "<img src=x onerror=alert(1)>",
    '"><script>alert(1)</script>',
    "javascript:alert(1)",
    "{{7*7}}",
    "${jndi:ldap://x}",
    "%s%s%s%n",
    "%(x)s",
    "{0.__class__}",
    "{x}",
    "\u202egnp.exe",
    "\ufeffbom",
    "a\u0301" * 40,
    "\ud800",
    "\udfff\ud800",
    "\U0001f9a6" * 20,
    "\n" * 30,
    "\r\n",
    "\t",
    "\x1b[31m",
    "\x7f",
    "NUL",
    "con.safetensors",
    "aux",
    "COM1",
    "a" * 300,
    "x" * 10_000,
    "*",
    "?",
    "[",
    "[a",
    "[!",
    "**/**",
    "*" * 40 + "b",
    "(" * 50,
    "a:b:c",
    "0-999999999999",
    "-",
    "--",
    "None",
    "null",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "1_000",
    "\u0663",
    "\u00b2",
    "0x10",
    "9" * 400,
    "9" * 5000,
    "-0",
    "1.5",
    "true",
    "__proto__",
    "__metadata__",
    "__class__",
    "constructor",
    "<lora:x:1>",
    "=cmd|' /C calc'!A0",
    "\u2028",
    "a/b",
    "a\\b",
)
NUMBERS = (
    0,
    -0.0,
    1,
    -1,
    2,
    0.5,
    1e-320,
    1e308,
    -1e308,
    1e39,
    float("nan"),
    float("inf"),
    float("-inf"),
    2**31,
    2**32,
    2**53 + 1,
    2**63,
    -(2**63),
    2**64,
    10**30,
    10**400,
)


def text(rng: random.Random) -> str:
    """A hostile text, now and then two of them."""
    found = rng.choice(TEXTS)
    return found if rng.random() < 0.85 else found + rng.choice(TEXTS)


def value(rng: random.Random, depth: int = 2) -> Any:
    """Any JSON value."""
    kind = rng.randrange(9)
    if kind < 3:
        return text(rng)
    if kind < 5:
        return rng.choice(NUMBERS)
    if kind == 5:
        return rng.choice((None, True, False))
    if kind == 6:
        return rng.choice(([], {}, [[]], [None], {"": None}))
    if depth == 0:
        return text(rng)
    if kind == 7:
        return [value(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {text(rng): value(rng, depth - 1) for _ in range(rng.randrange(4))}


def changed(rng: random.Random, document: Any, times: int | None = None) -> Any:
    """A copy of a JSON document with some of its values replaced, dropped, doubled, wrapped or made of another type."""
    holder = [copy.deepcopy(document)]
    for _ in range(times or rng.choice((1, 1, 1, 2, 3, 5))):
        places = list(_places(holder))
        box, key = rng.choice(places)
        _change(rng, box, key)
    return holder[0] if holder else None


def _places(box: Any, limit: int = 4000) -> list[tuple[Any, Any]]:
    found, queue = [], [box]
    while queue and len(found) < limit:
        box = queue.pop()
        keys = list(box) if isinstance(box, dict) else range(len(box))
        for key in keys:
            found.append((box, key))
            if isinstance(box[key], (dict, list)):
                queue.append(box[key])
    return found


def _change(rng: random.Random, box: Any, key: Any) -> None:
    old, kind = box[key], rng.randrange(8)
    if kind < 4:
        box[key] = value(rng)
    elif kind == 4 and isinstance(old, (dict, list)) and old:
        inner = rng.choice(list(old)) if isinstance(old, dict) else rng.randrange(len(old))
        del old[inner]
    elif kind == 5 and isinstance(old, dict):
        old[text(rng)] = value(rng)
    elif kind == 5 and isinstance(old, list):
        old.insert(
            rng.randrange(len(old) + 1), copy.deepcopy(rng.choice(old)) if old and rng.random() < 0.5 else value(rng)
        )
    elif kind == 6:
        box[key] = [old] if rng.random() < 0.5 else {"value": old}
    elif isinstance(old, (int, float)) and not isinstance(old, bool):
        box[key] = rng.choice((str(old), -old, old + 1, [old], bool(old)))
    else:
        box[key] = value(rng)


def dumped(document: Any) -> bytes:
    """As JSON: with NaN, Infinity and lone surrogates, as Python's reader takes them."""
    return json.dumps(document).encode()


def loaded(data: bytes) -> Any:
    """The document of :func:`dumped`; None for bytes that are none (they are other targets' matter)."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def unhex(given: Any) -> bytes:
    """Bytes that stand in a document as hex digits; none for anything else."""
    try:
        return bytes.fromhex(given)
    except (TypeError, ValueError):
        return b""


def as_json(rng: random.Random, data: bytes, fresh: Callable[[], Any]) -> bytes:
    """A changed copy of the document in ``data``, of ``fresh()`` now and then, or any value at all."""
    if rng.random() < 0.02:
        return dumped(value(rng))
    document = loaded(data) if rng.random() < 0.7 else None
    made = dumped(changed(rng, fresh() if document is None else document))
    return made if len(made) <= MOST_BYTES else dumped(fresh())


def bytes_of(rng: random.Random, data: bytes, other: bytes = b"") -> bytes:
    """Bits flipped, bytes set, cut out, put in, cut off, doubled, spliced with another input."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not out:
            return rng.randbytes(rng.randrange(64))
        at, kind = rng.randrange(len(out)), rng.randrange(8)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x7B, 0x5B))
        elif kind == 2:
            del out[at : at + rng.choice((1, 2, 8, 64))]
        elif kind == 3:
            out[at:at] = rng.randbytes(rng.choice((1, 4, 32)))
        elif kind == 4 and rng.random() < 0.3:
            del out[at:]
        elif kind == 5:
            size = rng.choice((1, 2, 4, 8))
            out[at : at + size] = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1)).to_bytes(8, "little")[:size]
        elif kind == 6 and len(out) < MOST_BYTES:
            out[at:at] = out[at : at + rng.choice((8, 64, 512))]
        elif other:
            start = rng.randrange(len(other))
            out[at : at + 32] = other[start : start + 32]
    return bytes(out)


def lines(rng: random.Random, parts: tuple[str, ...]) -> str:
    """Some of ``parts`` and some hostile texts, after one another."""
    return "".join(
        rng.choice(parts) if rng.random() < 0.75 else text(rng) for _ in range(rng.choice((1, 2, 3, 5, 8, 13)))
    )
