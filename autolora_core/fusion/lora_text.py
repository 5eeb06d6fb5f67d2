"""``<lora:name:weight>`` in prompts, read and written.

Read as ComfyUI's packs do: ``<lora:name:model>``, ``<lora:name:model:clip>``. AUTOMATIC1111 has the two numbers the
other way round (text encoder first), so only one is written where one will do. Its named forms, ``te=`` and ``unet=``,
say which they are and are read too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import SelectionError
from .requests import Request

MARK = re.compile(r"<lora:([^<>\n]*)>", re.IGNORECASE)
_NAMED = re.compile(r"(te|unet|dyn|lbw|lbwe|start|stop|step)=(.*)", re.IGNORECASE)
_ALMOST_A_NUMBER = re.compile(r"[-+\d.,\s]*\d[-+\d.,\s]*")
GROUPS = ",, "  # between trigger words, for Lora-Manager's TriggerWord Toggle


@dataclass(frozen=True)
class Mark:
    """One ``<lora:…>``: the name as written, strengths for model and text encoder, and fields that have no meaning
    here (LBW=…)."""

    name: str
    model: float = 1.0
    clip: float = 1.0
    ignored: tuple[str, ...] = ()


def read_marks(text: str) -> tuple[list[Mark], str]:
    """The marks in ``text``, in order, and the text without them.

    Raises ``SelectionError`` for a mark without a name and for a weight that is no number.
    """
    return [_mark(found.group(0), found.group(1)) for found in MARK.finditer(text)], without_marks(text)


def without_marks(text: str) -> str:
    """The text without ``<lora:…>``; no doubled comma or space is left where one stood."""
    head, *rest = MARK.split(text)[::2]
    for piece in rest:
        head = _joined(head, piece)
    return head.strip().removesuffix(",").rstrip() if rest else text


def marks_text(requests: Iterable[Request], names: dict[str, str] | None = None) -> str:
    """``<lora:name:weight>`` for every request that is not absent, with one space between.

    ``names``: a request's name → what is written for it, else the name itself. Raises ``SelectionError`` for a name
    that cannot stand in a mark.
    """
    named = names or {}
    return " ".join(
        write_mark(named.get(one.name, one.name), one.model, one.clip) for one in requests if not one.absent
    )


def write_mark(name: str, model: float, clip: float | None = None) -> str:
    """One mark; the second number only where it differs from the first, or the name could be taken for one."""
    if re.search(r"[<>\n]", name) or not name.strip():
        raise SelectionError(
            f"the name {name!r} cannot stand in <lora:…>", key=name, fix="rename the file without <, > and line breaks"
        )
    both = ":" in name or (clip is not None and clip != model)
    return f"<lora:{name}:{plain(model)}{':' + plain(model if clip is None else clip) if both else ''}>"


def plain(number: float) -> str:
    """The number with at least one decimal and no exponent, which no reader of marks understands."""
    return f"{number:.6f}".rstrip("0").removesuffix(".") + (".0" if float(f"{number:.6f}").is_integer() else "")


def _joined(left: str, right: str) -> str:
    left, right = left.rstrip(" \t"), right.lstrip(" \t")
    if not left or left.endswith((",", "\n")):
        right = right.removeprefix(",").lstrip(" \t")
    space = " " if left and right and not left.endswith("\n") and right[0] not in ",.;:\n" else ""
    return left + space + right


def _mark(whole: str, body: str) -> Mark:
    """The name is what is left when numbers and named fields are taken off the end: it may hold colons itself."""
    fields = body.split(":")
    numbers: list[float] = []
    named: dict[str, str] = {}
    while len(fields) > 1:
        field = fields[-1].strip()
        if pair := _NAMED.fullmatch(field):
            named[pair.group(1).lower()] = pair.group(2)
        elif len(numbers) < 2 and _ALMOST_A_NUMBER.fullmatch(field):
            numbers.insert(0, _number(field, whole))
        elif field:
            break
        fields.pop()
    name = ":".join(fields).strip()
    if not name:
        raise SelectionError(f"{whole} names no LoRA", key=whole, fix="write <lora:name:1.0>")
    ignored = tuple(f"{key}={value}" for key, value in named.items() if key not in ("te", "unet"))
    return Mark(name, *_strengths(numbers, {key: _number(named[key], whole) for key in ("te", "unet") if key in named}),
                ignored)  # fmt: skip


def _strengths(numbers: list[float], named: dict[str, float]) -> tuple[float, float]:
    """For model and text encoder. What is not said follows from the rest as in AUTOMATIC1111."""
    if "unet" in named:
        return named["unet"], named.get("te", numbers[0] if numbers else 1.0)
    if "te" in named:
        return numbers[0] if numbers else named["te"], named["te"]
    model = numbers[0] if numbers else 1.0
    return model, numbers[1] if len(numbers) > 1 else model


def _number(text: str, whole: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise SelectionError(f"{text!r} in {whole} is not a number", key=whole, fix="write weights like 0.8")
    return number
