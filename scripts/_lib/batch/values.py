"""Cells made into values of a workflow's inputs: numbers as people and spreadsheets write them."""

from __future__ import annotations

import re
from typing import Any

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


class ValueWrong(ValueError):
    """A cell does not fit its input; the message says what was expected."""


def like(cell: Any, old: Any) -> Any:
    """``cell`` as the type of ``old``, what the input holds now. Raises `ValueWrong`."""
    if isinstance(old, bool):
        return truth(cell)
    if isinstance(old, int):
        return whole(cell)
    if isinstance(old, float):
        return number(cell)
    return cell if isinstance(cell, str) else str(cell)


def truth(cell: Any) -> bool:
    """Yes or no, in English words or as 1 and 0."""
    word = str(cell).strip().lower()
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    raise ValueWrong(f"{cell!r} is neither true nor false")


def whole(cell: Any) -> int:
    """A whole number; 7.0 is one, 7.5 is not, nor is what a spreadsheet has rounded (1,23E+15)."""
    if isinstance(cell, bool):
        raise ValueWrong(f"{cell!r} is not a whole number")
    text = str(cell).strip()
    if re.fullmatch(r"[+-]?\d+([.,]0*)?", text):
        return int(re.split("[.,]", text)[0])
    if re.fullmatch(r"[+-]?\d+([.,]\d+)?[eE]\+?\d+", text):
        raise ValueWrong(f"{cell!r} is a number that a spreadsheet has rounded: format the column as text")
    raise ValueWrong(f"{cell!r} is not a whole number")


def number(cell: Any) -> float:
    """A number with a point or a decimal comma."""
    text = str(cell).strip()
    if not isinstance(cell, bool) and re.fullmatch(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?", text):
        return float(text.replace(",", "."))
    raise ValueWrong(f"{cell!r} is not a number")
