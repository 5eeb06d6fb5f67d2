"""What a mode does with a set of LoRAs, in numbers: plain dicts that go into the report's JSON as they are.

What is counted on weights is exact. Where a mode acts on activations (energy, a gate that listens), the number is the
one for inputs of which nothing is known, and its name or the words made of it say so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from .branches import Branch
from .conflicts import Layer, Tick, energy
from .gate import Tilt
from .methods.dense import DenseMerge, keep_mask, threshold
from .methods.rows import Part, blocks, dense_rows
from .moment import Moment
from .plan import FusionPlan, Group, ModulePlan, by_module
from .rules import Timed

NUMBERS = 1 << 24  # of dense updates that are looked at; beyond, layers are sampled
Numbers = dict[str, Any]
Asked = Mapping[int, float]


def silent(module: str) -> None:
    """A tick that does nothing."""


def sum_numbers(layers: Iterable[Layer], loras: Sequence[int], asked: Asked | None = None) -> Numbers:
    """Sizes (Frobenius norms over all layers) of the sum: ``total``, ``largest`` single LoRA, ``independent`` (what
    LoRAs of these sizes at right angles would give) and ``over_base`` (of the weights below, None if none is known).
    ``asked``: LoRA → its share, 1 if missing."""
    loud = {lora: (asked or {}).get(lora, 1.0) for lora in loras}
    sizes = dict.fromkeys(loras, 0.0)
    total = known = below = 0.0
    for layer in layers:
        here = sum(loud[a] * loud[b] * layer.product(a, b) for a in loras for b in loras)
        total += here
        for lora in loras:
            sizes[lora] += loud[lora] ** 2 * layer.energy(lora)
        if layer.base and any(lora in layer.loras for lora in loras):
            known, below = known + here, below + layer.base
    return {
        "total": math.sqrt(max(total, 0.0)),
        "largest": math.sqrt(max(sizes.values(), default=0.0)),
        "independent": math.sqrt(sum(sizes.values())),
        "over_base": math.sqrt(max(known, 0.0) / below) if below else None,
    }


def energy_numbers(layers: Iterable[Layer], loras: Sequence[int]) -> Numbers:
    """``factor``: by how much the sum shrinks, over all layers; ``turned_down`` of ``layers``. For inputs of which
    nothing is known a layer's lengths are the sizes of its updates."""
    before = after = 0.0
    turned = count = 0
    for layer in layers:
        here = [lora for lora in loras if lora in layer.loras]
        total = sum(layer.product(a, b) for a in here for b in here)
        largest = max((layer.energy(lora) for lora in here), default=0.0)
        before, after = before + total, after + min(total, largest)
        turned, count = turned + (total > largest * (1 + 1e-9)), count + bool(here)
    factor = math.sqrt(max(after, 0.0) / before) if before > 0 else 1.0
    return {"factor": factor, "turned_down": turned, "layers": count}


def gate_numbers(plan: FusionPlan, tick: Tick = silent) -> Numbers:
    """``gated`` of ``layers``, ``flat`` (whether factors do not depend on what the model computes), and per LoRA the
    ``factor`` at the ``start`` and the ``end`` of sampling and the ``most`` it can be: means over channels, each layer
    counted by the energy of the LoRA there. A gate that is not flat is told at rest, all of its layer norms at 0.
    """
    sums: dict[int, list[float]] = {}
    flat = True
    for module in plan.modules.values():
        tick(module.name)
        for group in module.groups:
            if group.vectors is None:
                continue
            flat = flat and group.vectors.flat
            _add_factors(sums, module, group)
    factors = {
        lora: dict(zip(("start", "end", "most"), (v / total if total else 0.0 for v in values), strict=True))
        for lora, (total, *values) in sums.items()
    }
    return {"gated": plan.gated_modules, "layers": len(plan.modules), "flat": flat, "factors": factors}


def _add_factors(sums: dict[int, list[float]], module: ModulePlan, group: Group) -> None:
    for number, places in enumerate(group.loras):
        pieces = [module.branches[place] for place in places]
        weight = energy(pieces, module.channels)
        tilt = group.tilts[number] if group.tilts else Tilt()
        start, end = (float(group.vectors.rest(tilt, u).mean()) for u in (0.0, 1.0))
        most = max(_gain(tilt, u) for u in (0.0, 1.0)) * float(group.vectors.weight_out.float().mean())
        one = sums.setdefault(pieces[0].lora_index, [0.0] * 4)
        for place, value in enumerate((1.0, start, end, most)):
            one[place] += weight * value


def _gain(tilt: Tilt, u: float) -> float:
    return math.exp(tilt.gain[0] + tilt.gain[1] * (2 * u - 1))


def klora_numbers(plan: FusionPlan, loras: Sequence[int]) -> Numbers:
    """In how many layers each LoRA speaks when sampling begins (``early``) and when it ends (``late``); ``changes``:
    layers that change their mind on the way, ``after``: the middle one's share of the sampling when it does."""
    rules = [group.rule for module in plan.modules.values() for group in module.groups if isinstance(group.rule, Timed)]
    early, late = (dict.fromkeys(loras, 0) for _ in range(2))
    moments = []
    for rule in rules:
        first, last = (rule.live(Moment(step, 1)) for step in (0, 1))
        early[first], late[last] = early[first] + 1, late[last] + 1
        if first != last:
            moments.append(rule.after)
    after = sorted(moments)[len(moments) // 2] if moments else None
    return {"layers": len(rules), "early": early, "late": late, "changes": len(moments), "after": after}


def np_numbers(
    plan: FusionPlan, branches: Iterable[Branch], channels: Mapping[str, int], subjects: Sequence[int],
    tick: Tick = silent,
) -> Numbers:  # fmt: skip
    """``taken``: subject → the share of its energy that the projection takes away, over the layers of ``branches``
    (those that were given to the method)."""
    whole, left = (dict.fromkeys(subjects, 0.0) for _ in range(2))
    for name, found in by_module(branches).items():
        tick(name)
        for lora in subjects:
            for sizes, parts in ((whole, found), (left, plan.modules[name].branches)):
                sizes[lora] += energy([part for part in parts if part.lora_index == lora], channels[name])
    return {"taken": {lora: 1 - left[lora] / whole[lora] if whole[lora] else 0.0 for lora in subjects}}


def dense_numbers(merges: Mapping[str, DenseMerge], tick: Tick = silent) -> Numbers:
    """Of ties, dare and magnitude over the layers given: ``size`` of the result relative to the plain sum,
    ``energy_kept``: share of the LoRAs' energy in the numbers that survive the first cut, ``disagree``: share of these
    numbers whose sign loses (only ties drops them)."""
    total = summed = merged = kept = survive = against = 0.0
    for name, merge in merges.items():
        tick(name)
        for rows, cut in _pieces(merge):
            sign = torch.sign(sum(cut))
            losing = [(torch.sign(one) != sign) & (one != 0) for one in cut]
            left = [one.masked_fill(lost, 0) for one, lost in zip(cut, losing, strict=True)]
            summed, merged = (
                summed + _squares(sum(rows)),
                merged + _squares(sum(left if merge.method == "ties" else cut)),
            )
            for one, two, lost in zip(rows, cut, losing, strict=True):
                alive = two != 0
                total, kept = total + _squares(one), kept + _squares(one[alive])
                survive, against = survive + int(alive.sum()), against + int(lost.sum())
    return {
        "density": next(iter(merges.values())).density if merges else 1.0,
        "size": math.sqrt(merged / summed) if summed else 0.0,
        "energy_kept": kept / total if total else 0.0,
        "disagree": against / survive if survive else 0.0,
        "layers": len(merges),
    }


def _squares(numbers: torch.Tensor) -> float:
    return float(numbers.square().sum(dtype=torch.float64))


def _pieces(merge: DenseMerge) -> Iterable[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """Rows of every LoRA's update, and what the first cut leaves of them; block by block."""
    dare, whole = merge.method == "dare", merge.density >= 1
    limits = [0.0 if dare or whole else threshold(part, merge.channels, merge.density) for part in merge.parts]
    for start, stop in blocks(merge.channels, merge.parts[0].branches[0].columns):
        rows = [dense_rows(part, start, stop, merge.channels) for part in merge.parts]
        if dare and not whole:
            kept = [_drawn(part, one, start, merge.density) for part, one in zip(merge.parts, rows, strict=True)]
        else:
            kept = [torch.where(one.abs() >= limit, one, 0.0) for one, limit in zip(rows, limits, strict=True)]
        yield rows, kept


def _drawn(part: Part, rows: torch.Tensor, start: int, density: float) -> torch.Tensor:
    keep = keep_mask(part.seed, start * rows.shape[1], rows.numel(), density)
    return torch.where(keep.view_as(rows), rows / density, 0.0)


def sample(branches: Iterable[Branch], channels: Mapping[str, int], most: int = NUMBERS) -> set[str]:
    """Modules to look at when looking at all would take long: evenly spaced, together about ``most`` numbers a LoRA,
    and at least one of every LoRA. All of them where they are few."""
    found = by_module(branches)
    size = sum(channels[name] * parts[0].columns for name, parts in found.items())
    met = [name for name, parts in found.items() if len({part.lora_index for part in parts}) > 1] or list(found)
    if size <= most:
        return set(found)
    count = min(len(met), max(1, int(len(found) * most / size)))
    taken = {met[int((place + 0.5) * len(met) / count)] for place in range(count)}
    seen = {part.lora_index for name in taken for part in found[name]}
    for name, parts in found.items():
        if any(part.lora_index not in seen for part in parts):
            taken.add(name)
            seen |= {part.lora_index for part in parts}
    return taken
