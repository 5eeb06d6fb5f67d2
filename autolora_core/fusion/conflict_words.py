"""The conflict report in words, and the same in numbers (JSON). Nothing is judged by a threshold but by what chance
gives: a cosine counts as found where it lies more than ``DEVIATIONS`` standard deviations of chance from 0."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from ..wording import counted, listed, shown
from .blocks import block_of, in_order
from .conflict_mode_words import mode_lines, percent
from .conflict_modes import sum_numbers
from .conflicts import Layer, Meeting, Pair, meet

FORMAT = "autolora-conflicts/1"
DEVIATIONS = 2
PAIRS_SHOWN, NOTES_SHOWN = 10, 4


@dataclass(frozen=True)
class Lora:
    """One LoRA of the set, as it was asked for. ``outside``: why it is kept out of the mode, if it is; ``patches``:
    layers that went to ComfyUI's weight patches and are not measured."""

    number: int
    name: str
    strength: float
    role: str | None = None
    asked: float = 1.0
    outside: str | None = None
    patches: int = 0
    notes: tuple[str, ...] = ()


@dataclass
class Facts:
    """All that was found. ``mode`` asked for ``became`` another, for the reason ``why``; ``numbers``: what it will do,
    see ``conflict_modes``; ``sampled``: (layers looked at for that, of how many) where not all were."""

    loras: Sequence[Lora]
    layers: Sequence[Layer]
    mode: str = "sum"
    became: str = "sum"
    why: str = ""
    numbers: Mapping[str, Any] = field(default_factory=dict)
    sampled: tuple[int, int] | None = None
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()

    @cached_property
    def names(self) -> dict[int, str]:
        """LoRA number → its file's name without folder and ending; with them where two would be the same."""
        stems = {lora.number: short(lora.name) for lora in self.loras}
        values = list(stems.values())
        return {
            lora.number: stems[lora.number] if values.count(stems[lora.number]) == 1 else shown(lora.name)
            for lora in self.loras
        }

    @cached_property
    def blocks(self) -> dict[str, list[Layer]]:
        """Block → its layers, in the model's order."""
        found: dict[str, list[Layer]] = {name: [] for name in in_order(block_of(one.module) for one in self.layers)}
        for layer in self.layers:
            found[block_of(layer.module)].append(layer)
        return found

    @cached_property
    def pairs(self) -> list[Meeting]:
        """Every pair of LoRAs over the whole model; those that share layers and stand furthest from 0 first."""
        touching = [lora.number for lora in self.loras if any(lora.number in layer.loras for layer in self.layers)]
        found = [meet(self.layers, *pair) for pair in itertools.combinations(touching, 2)]
        return sorted(found, key=lambda one: (not one.layers, -abs(one.cosine)))

    @cached_property
    def by_block(self) -> dict[Pair, dict[str, Meeting]]:
        """Pair → block → how the pair meets there, only where it does."""
        found = {}
        for pair in ((met.one, met.two) for met in self.pairs):
            meetings = {name: meet(layers, *pair) for name, layers in self.blocks.items()}
            found[pair] = {name: met for name, met in meetings.items() if met.layers}
        return found


def short(name: str) -> str:
    """``"styles/Old Neon.safetensors"`` → ``"Old Neon"``."""
    return shown(name.replace("\\", "/").rpartition("/")[2].removesuffix(".safetensors"))


def letter(place: int) -> str:
    """What the picture calls a LoRA by its place: A, B … Z, then A1, B1 …"""
    return chr(ord("A") + place % 26) + (str(place // 26) if place >= 26 else "")


def signed(value: float) -> str:
    """``-0.314`` → ``"−0.31"``; more digits near 0."""
    digits = 2 if abs(value) >= 0.0995 else 3 if abs(value) >= 0.0005 else 4
    return f"{value:+.{digits}f}".replace("-", "−")


def report_text(facts: Facts) -> str:
    """The whole report; the verdict comes first."""
    became = facts.mode if facts.mode == facts.became else f"{facts.mode} → {facts.became}"
    lines = [verdict(facts), "", f"mode: {became}" + (f" ({facts.why})" if facts.why else "")]
    lines += [f"  warning: {one}" for one in facts.warnings]
    lines += [f"  {one}" for one in mode_lines(facts.became, facts.numbers, facts.names)]
    if facts.sampled:
        looked, whole = facts.sampled
        lines.append(f"  told by {looked} of {counted(whole, 'layer')}, evenly spaced")
    lines += [f"  {note}" for note in facts.notes]
    lines += ["", "LoRAs", *(line for lora in facts.loras for line in _lora_lines(facts, lora))]
    if facts.pairs:
        lines += ["", "pairs (± is the scatter that chance gives)"]
        lines += [_pair_line(facts, met) for met in facts.pairs[:PAIRS_SHOWN]]
        if len(facts.pairs) > PAIRS_SHOWN:
            lines.append(f"  and {counted(len(facts.pairs) - PAIRS_SHOWN, 'more pair')}: see the json output")
    return "\n".join(lines)


def verdict(facts: Facts) -> str:
    """Who pulls against whom, who doubles up with whom, and where, in one or two sentences."""
    touching = {lora for layer in facts.layers for lora in layer.loras}
    if not touching:
        return "Nothing to compare: no LoRA changes a layer of the diffusion model that can be measured."
    if len(touching) == 1:
        return f"No pairs: {facts.names[next(iter(touching))]} is the only LoRA that changes the diffusion model."
    told, meetings = [_overall(facts)], [met for met in facts.pairs if met.layers]
    near = sum(not found(met) for met in meetings)
    if near:
        told.append(f"{near} of {counted(len(meetings), 'pair')} no further from independent than chance would have it")
    everywhere = [(name, met) for by_block in facts.by_block.values() for name, met in by_block.items()]
    for words, sign in (("pull against each other", -1), ("double up", 1)):
        name, met = max(everywhere, key=lambda one: sign * one[1].cosine, default=("", None))
        if met is not None and sign * met.cosine > 0 and found(met):
            who = f"{facts.names[met.one]} and {facts.names[met.two]}"
            told.append(f"{who} {words} most in {name} (cosine {signed(met.cosine)}, chance ±{met.spread:.1g})")
    return ". ".join(told) + "."


def _overall(facts: Facts) -> str:
    """The cosines of all pairs, and what they come to in the size of the sum."""
    pairs, cosines = counted(len(facts.pairs), "pair"), [met.cosine for met in facts.pairs if met.layers]
    if not cosines:
        return f"{pairs} and no layer in common: no LoRA overlaps with another"
    apart = len(facts.pairs) - len(cosines)
    low, high = signed(min(cosines)), signed(max(cosines))
    span = f"cosine {low}" if low == high else f"cosines {low} to {high}"
    size = sum_numbers(facts.layers, list(facts.names))
    change = size["total"] / (size["independent"] or 1.0) - 1
    than = f"{percent(abs(change))} {'larger' if change >= 0 else 'smaller'} than at right angles"
    alone = f", {apart} without a layer in common" if apart else ""
    return f"{pairs}{alone}: {span} (1: the same, 0: independent, −1: opposite). Added up, they are {than}"


def found(met: Meeting) -> bool:
    """Whether the cosine is further from 0 than chance makes likely."""
    return abs(met.cosine) > DEVIATIONS * met.spread


def _lora_lines(facts: Facts, lora: Lora) -> list[str]:
    size = size_of(facts.layers, lora.number)
    role = f" ({lora.role})" if lora.role else ""
    who = f"{letter(lora.number)}: {facts.names[lora.number]}"
    line = f"- {who} × {lora.strength:g}{role}: {counted(size['layers'], 'layer')}"
    if size["layers"]:
        base = "" if size["over_base"] is None else f", {percent(size['over_base'])} of the base's weights there"
        line += f", size {size['norm']:.3g}{base}"
        if size["alone"] and len(facts.loras) > 1:
            line += f"; {size['alone']} of them it alone touches ({percent(size['alone'] / size['layers'])})"
    out = [line]
    if lora.outside:
        out.append(f"  kept outside the gate and every other mode, added as it is: {lora.outside}")
    if lora.patches:
        out.append(f"  {counted(lora.patches, 'layer')} as weight patches, not measured")
    return out + [f"  {note}" for note in lora.notes[:NOTES_SHOWN]]


def size_of(layers: Sequence[Layer], lora: int) -> dict[str, Any]:
    """``layers`` it touches, those it touches ``alone``, its ``norm`` over them, and ``over_base``: relative to the
    base's weights where these can be read, None where they can nowhere."""
    own = [layer for layer in layers if lora in layer.loras]
    known = [layer for layer in own if layer.base]
    base = sum(layer.base for layer in known)
    over = math.sqrt(sum(layer.energy(lora) for layer in known) / base) if base else None
    norm = math.sqrt(sum(layer.energy(lora) for layer in own))
    return {"layers": len(own), "alone": sum(len(one.loras) == 1 for one in own), "norm": norm, "over_base": over}


def _pair_line(facts: Facts, met: Meeting) -> str:
    who = f"- {facts.names[met.one]} + {facts.names[met.two]}"
    if not met.layers:
        return f"{who}: no layer in common"
    line = f"{who}: cosine {signed(met.cosine)} (±{met.spread:.1g}) over {counted(met.layers, 'layer')}"
    if met.spaces:
        s = met.spaces
        line += f"; inputs shared {s.read:.2f} (chance {s.read_chance:.2f})"
        line += f", outputs shared {s.write:.2f} (chance {s.write_chance:.2f})"
    strongest = sorted(facts.by_block[met.one, met.two].items(), key=lambda one: -abs(one[1].cosine))
    return line + "; most in " + listed(f"{name} {signed(one.cosine)}" for name, one in strongest[:3])


def report_data(facts: Facts) -> dict[str, Any]:
    """Everything as plain numbers, ready for JSON; LoRAs are told by their number, the place in ``loras``."""
    return _plain(
        {
            "format": FORMAT,
            "verdict": verdict(facts),
            "mode": {"asked": facts.mode, "became": facts.became, "why": facts.why, "numbers": facts.numbers,
                     "sampled": facts.sampled},
            "loras": [{**asdict(lora), **size_of(facts.layers, lora.number)} for lora in facts.loras],
            "pairs": [
                {**asdict(met), "blocks": {n: asdict(one) for n, one in facts.by_block[met.one, met.two].items()}}
                for met in facts.pairs
            ],
            "blocks": {
                name: {"layers": len(layers), "norms": {lora.number: size_of(layers, lora.number)["norm"]
                                                        for lora in facts.loras}}
                for name, layers in facts.blocks.items()
            },
            "layers": [_layer_data(layer) for layer in facts.layers],
            "warnings": facts.warnings,
            "notes": facts.notes,
        }
    )  # fmt: skip


def _layer_data(layer: Layer) -> dict[str, Any]:
    norms = {lora: math.sqrt(layer.energy(lora)) for lora in layer.loras}
    cosines = [
        [one, two, layer.product(one, two) / ((norms[one] * norms[two]) or 1.0)]
        for one, two in itertools.combinations(layer.loras, 2)
    ]
    base = math.sqrt(layer.base) if layer.base else None
    return {"module": layer.module, "norms": norms, "cosines": cosines, "base": base}


def _plain(value: Any) -> Any:
    """Tuples as lists, keys as text, no number that JSON does not know."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return shown(value) if isinstance(value, str) else value
