"""What the chosen mode will do, in sentences made of ``conflict_modes``' numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..wording import counted

Numbers = Mapping[str, Any]
Names = Mapping[int, str]


def percent(share: float) -> str:
    """``0.0812`` → ``"8.1 %"``; whole from 10 on."""
    value = 100 * share
    return f"{value:.0f} %" if abs(value) >= 9.95 or value == 0 else f"{value:.2g} %"


def mode_lines(mode: str, numbers: Numbers, names: Names) -> list[str]:
    """A few sentences; none for a mode without numbers. ``names``: LoRA number → what to call it."""
    if not numbers:
        return []
    lines = _WORDS[mode](numbers, names) if mode in _WORDS else []
    asked = numbers.get("asked") or {}
    return lines + [f"{names[lora]} is hardly asked for by the prompt: × {share:.2f}" for lora, share in asked.items()]


def sum_lines(numbers: Numbers, names: Names) -> list[str]:
    total, largest, independent = (numbers[key] for key in ("total", "largest", "independent"))
    base = numbers["over_base"]
    of_base = "" if base is None else f", {percent(base)} of the base's weights there"
    lines = [f"Added up: size {total:.3g}, {_ratio(total, largest)} × the largest single LoRA{of_base}."]
    if len(numbers["loras"]) > 1:
        change = total / independent - 1 if independent else 0.0
        does = "pulling together adds" if change >= 0 else "cancelling takes away"
        lines.append(f"At right angles to each other they would have {independent:.3g}: {does} {percent(abs(change))}.")
    return lines


def _ratio(one: float, two: float) -> str:
    return f"{one / two if two else 0.0:.2f}"


def _gate(numbers: Numbers, names: Names) -> list[str]:
    plain = numbers["layers"] - numbers["gated"]
    rest = f"; the other {'is' if plain == 1 else f'{plain} are'} summed" if plain else ""
    lines = [f"The gate stands on {numbers['gated']} of {counted(numbers['layers'], 'layer')}{rest}."]
    if not numbers["flat"]:
        lines.append("It moves with what the model computes; below is how it stands at rest, and the most it can be.")
    for lora, factor in numbers["factors"].items():
        start, end = factor["start"], factor["end"]
        passes = f"× {start:.2f}" if abs(start - end) < 0.005 else f"× {start:.2f} at the start, × {end:.2f} at the end"
        most = "" if numbers["flat"] else f", at most × {factor['most']:.2f}"
        role = (numbers.get("roles") or {}).get(lora)
        who = f"{names[lora]} ({role})" if role else f"{names[lora]} (no role)"
        lines.append(f"{who} passes {passes} on average{most}.")
    return lines


def _energy(numbers: Numbers, names: Names) -> list[str]:
    return [
        f"The sum is turned down wherever it is longer than the loudest LoRA: in {numbers['turned_down']} of "
        f"{counted(numbers['layers'], 'layer')} for inputs of which nothing is known, to × {numbers['factor']:.2f} of "
        "its size over all. The true factor follows every token.",
    ]


def _ties(numbers: Numbers, names: Names) -> list[str]:
    return [
        _largest(numbers),
        f"{percent(numbers['disagree'])} of the kept numbers have a sign that the others outvote, and are dropped.",
        _size(numbers),
    ]


def _magnitude(numbers: Numbers, names: Names) -> list[str]:
    return [_largest(numbers), _size(numbers)]


def _dare(numbers: Numbers, names: Names) -> list[str]:
    density = numbers["density"]
    return [f"A random {percent(density)} of each LoRA's numbers is kept, made {1 / density:.3g} × as large.",
            _size(numbers)]  # fmt: skip


def _largest(numbers: Numbers) -> str:
    kept = percent(numbers["energy_kept"])
    return f"The largest {percent(numbers['density'])} of each LoRA's numbers are kept; they hold {kept} of its energy."


def _size(numbers: Numbers) -> str:
    return f"The result has {numbers['size']:.2f} × the size of the plain sum."


def _klora(numbers: Numbers, names: Names) -> list[str]:
    layers = counted(numbers["layers"], "layer")
    told = ", ".join(
        f"{names[lora]} in {numbers['early'][lora]} early and {numbers['late'][lora]} late" for lora in numbers["early"]
    )
    lines = [f"One LoRA speaks at a time in each of {layers}: {told}."]
    if numbers["changes"]:
        of_these = f"{numbers['changes']} of them change{'s' if numbers['changes'] == 1 else ''} on the way"
        lines.append(f"{of_these}, the middle one at {percent(numbers['after'])} of the steps.")
    return lines


def _np(numbers: Numbers, names: Names) -> list[str]:
    return [
        f"{percent(share)} of {names[lora]}'s energy is taken away, where it reads what a style reads."
        for lora, share in numbers["taken"].items()
    ]


def _ssr(numbers: Numbers, names: Names) -> list[str]:
    lines = [
        f"The model is asked once with the own words of each of {counted(numbers['loras'], 'LoRA')}; then every input "
        "is led to the LoRAs whose words it answers to. The report does not run the model, so how far that is from the "
        "plain sum is told by the Apply node.",
    ]
    return lines if numbers["clip"] else [*lines, "It needs CLIP, and none is connected: Apply would stop here."]


def _switch(numbers: Numbers, names: Names) -> list[str]:
    order = ", ".join(names[lora] for lora in numbers["order"])
    return [f"One LoRA at a time, {counted(numbers['interval'], 'step')} each, in this order: {order}. No two meet."]


def _composite(numbers: Numbers, names: Names) -> list[str]:
    passes = numbers["passes"]
    return [f"{passes} evaluations a step, one with each LoRA, and their mean: {passes} times as slow. No two meet."]


_WORDS: dict[str, Callable[[Numbers, Names], list[str]]] = {
    "sum": sum_lines, "gate": _gate, "energy": _energy, "ties": _ties, "dare": _dare, "magnitude": _magnitude,
    "klora": _klora, "np": _np, "ssr": _ssr, "switch": _switch, "composite": _composite,
}  # fmt: skip
