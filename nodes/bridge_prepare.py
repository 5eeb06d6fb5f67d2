"""From requests to LoRAs read, matched against a model and described: what every node with LoRAs begins with."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.lora

from ..autolora_core.fusion.branches import Branch
from ..autolora_core.fusion.kinds import few_step_reason, norms_reason
from ..autolora_core.fusion.methods.planner import STATIC
from ..autolora_core.fusion.report import LoraOutcome
from ..autolora_core.fusion.requests import Request, merge_same_files
from ..autolora_core.fusion.terms import Term, terms_by_lora
from ..autolora_core.lora.base_match import doubt
from ..autolora_core.lora.families import Family
from ..autolora_core.lora.lineage import lineage, lineage_note, mixed_note
from ..autolora_core.wording import counted, listed
from . import bridge_loras
from .bridge_loras import LoadedLora, ModelHalf
from .bridge_paths import model_family, model_lineage, throw_if_interrupted
from .bridge_place import require_places
from .bridge_plain import plain_layers
from .bridge_text import TextEncoders, fill_in, require_text_match, text_half
from .wires import require_model, require_patchable_clip


@dataclass
class Prepared:
    """One entry a LoRA in ``loras``, ``halves`` (diffusion model), ``clip_patches`` (ComfyUI's, for the text encoders)
    and ``outcomes``; the number of a LoRA is its place in them. ``absent``: requests of strength 0. ``terms``: number →
    when, where and in which blocks it is on; factors of blocks are in the branches already."""

    family: Family
    loras: list[LoadedLora]
    halves: list[ModelHalf]
    clip_patches: list[dict[Any, Any]]
    outcomes: list[LoraOutcome]
    absent: list[Request]
    terms: dict[int, Term] = field(default_factory=dict)

    def factor(self, index: int, module: str) -> float:
        """What a LoRA's strength is multiplied by at a module, without prefix."""
        blocks = self.terms[index].blocks if index in self.terms else None
        return 1.0 if blocks is None else blocks.of(module)

    def passing(self, index: int) -> bool:
        """Whether a LoRA is on for a while or in a place only."""
        return index in self.terms and self.terms[index].passing

    @property
    def live(self) -> list[int]:
        """Numbers of the LoRAs that change the diffusion model."""
        return [index for index, lora in enumerate(self.loras) if lora.request.model]

    @property
    def inside(self) -> list[int]:
        """Numbers of those that a gate or a mode may fuse."""
        return [i for i in self.live if self.halves[i].branches and not self.outcomes[i].outside_gate]

    def members(self, mode: str) -> list[int]:
        """Numbers of those that ``mode`` fuses: a mode that makes one update before sampling has none that come and
        go."""
        return [index for index in self.inside if not (mode in STATIC and self.passing(index))]

    @property
    def branches(self) -> list[Branch]:
        return [branch for index in self.live for branch in self.halves[index].branches]

    @property
    def channels(self) -> dict[str, int]:
        """Module → its output channels."""
        return {name: width for half in self.halves for name, width in half.channels.items()}


def prepare(model: Any, clip: Any, requests: Iterable[Request], terms: Sequence[Term] = ()) -> Prepared:
    """Read the files and match them with ``model`` (MODEL) and ``clip`` (CLIP or None); nothing is changed.

    Raises ``SelectionError`` for a missing file and for terms that mean no LoRA or no block, ``NothingMatchesError``
    and ``FamilyError`` for a LoRA of another base, ``InputError`` for what is no MODEL or CLIP.
    """
    require_model(model)
    if clip is not None:
        require_patchable_clip(clip)
    with plain_layers(model):
        return _prepare(model, clip, requests, terms)


def _prepare(model: Any, clip: Any, requests: Iterable[Request], terms: Sequence[Term]) -> Prepared:
    merged = merge_same_files(bridge_loras.resolved(requests))
    family = model_family(model)
    loras = _load(merged, family)
    outcomes = [_outcome(lora) for lora in loras]
    _tell_bases(loras, outcomes, model, family)
    patches = _clip_patches(clip, loras, outcomes)
    halves = _model_halves(model, loras, outcomes, family)
    for lora, half in zip(loras, halves, strict=True):
        bridge_loras.require_match(lora, half, family)
    absent = [request for _, request in merged if request.absent]
    ready = Prepared(family, loras, halves, patches, outcomes, absent, _terms(terms, [one for _, one in merged]))
    _heed(ready, model)
    return ready


def _terms(terms: Sequence[Term], requests: Sequence[Request]) -> dict[int, Term]:
    """By the numbers of the LoRAs that are not absent: those come first, as in the report."""
    if not terms:
        return {}
    live = [request.name for request in requests if not request.absent]
    absent = [request.name for request in requests if request.absent]
    # A term may name a file by its whole path, as stacks do; requests go by the name that is told.
    terms = [replace(one, lora=bridge_loras.told_name(one.lora)) if os.path.isfile(one.lora) else one for one in terms]
    return {number: term for number, term in terms_by_lora(terms, [*live, *absent]).items() if number < len(live)}


def _heed(ready: Prepared, model: Any) -> None:
    """Bring the factors of blocks into the branches, and say what was asked for."""
    modules = [name for name, _ in model.model.diffusion_model.named_modules() if name] if ready.terms else []
    for index, term in ready.terms.items():
        half, notes = ready.halves[index], ready.outcomes[index].notes
        if term.blocks is not None:
            term.blocks.check(modules)
            scaled = ((branch, ready.factor(index, branch.module)) for branch in half.branches)
            half.branches = [replace(branch, scale=branch.scale * by) for branch, by in scaled if by]
            notes.append(f"strength by block: {term.blocks}")
        if term.schedule is not None:
            notes.append(f"strength along the sampling: {term.schedule}")
        if term.mask is not None:
            require_places(model, ready.family)
            share = float(term.mask.mean())
            notes.append(f"in {share:.0%} of the picture; layers without places, as of text, × {share:.2f}")
        if term.passing and half.forwarded:
            notes.append("its weight patches know neither time nor place: they are on always and everywhere")


def _load(merged: Sequence[tuple[str, Request]], family: Family) -> list[LoadedLora]:
    """All headers first: a LoRA of another base is refused before a tensor of any is read."""
    opened = [(path, one, bridge_loras.open_for(path, one, family)) for path, one in merged if not one.absent]
    loras = []
    for path, request, file in opened:
        throw_if_interrupted()
        loras.append(bridge_loras.load(path, request, file))
    return loras


def _tell_bases(loras: list[LoadedLora], outcomes: list[LoraOutcome], model: Any, family: Family) -> None:
    """Notes on near families: they never stop anything."""
    of_model = model_lineage(model, family.name) if loras else None
    said = []
    for lora, outcome in zip(loras, outcomes, strict=True):
        file = lora.file
        own = file.family.name if "model" in file.halves else family.name
        line = lineage(own, file.metadata, file_name=os.path.basename(file.path))
        said.append(line.name if lora.request.model and own == family.name else "")
        note = lineage_note(family.name, line, of_model) if own == family.name else doubt(file.family, family)
        outcome.notes += [note] if note else []
    mixed = mixed_note(said)
    if mixed:
        outcomes[0].notes.append(mixed)


def _outcome(lora: LoadedLora) -> LoraOutcome:
    request, file = lora.request, lora.file
    outcome = LoraOutcome(request.name, request.model, request.clip, request.origin)
    outcome.total = len({entry.base_module for entry in file.modules.values() if entry.half == "model"})
    outcome.outside_gate = few_step_reason(request.name, file.metadata)
    partial = [f"partial file: {file.partial}"] if file.partial else []
    outcome.notes = [*request.notes, *partial, *file.problems]
    if file.keys.unknown:
        keys = listed(sorted(file.keys.unknown), 2)
        outcome.notes.append(f"{counted(len(file.keys.unknown), 'key')} not understood: {keys}")
    if file.kind == "all_zero":
        outcome.notes.append("every update in the file is zero: it changes nothing")
    return outcome


def _model_halves(model: Any, loras: list[LoadedLora], outcomes: list[LoraOutcome], family: Family) -> list[ModelHalf]:
    """Also counts, per LoRA, what matched. A fresh dict: ComfyUI's default argument is shared and grows."""
    key_map = comfy.lora.model_lora_keys_unet(model.model, {}) if loras else {}
    halves = []
    for index, (lora, outcome) in enumerate(zip(loras, outcomes, strict=True)):
        throw_if_interrupted()
        half = bridge_loras.model_half(lora, model, key_map, index)
        outcome.matched, outcome.missing = len(half.matched), half.missing
        outcome.total = max(outcome.total, outcome.matched)
        if half.zero:
            outcome.notes.append(f"the update is zero in {counted(len(half.zero), 'layer')}")
        outcome.forwarded = half.reasons if lora.request.model else {}
        _look_at_norms(outcome, half, family)
        halves.append(half)
    return halves


def _look_at_norms(outcome: LoraOutcome, half: ModelHalf, family: Family) -> None:
    if outcome.outside_gate is None:
        outcome.outside_gate, hint = norms_reason(outcome.name, family.name, half.branches, half.channels)
        outcome.notes += [hint] if hint else []


def _clip_patches(clip: Any, loras: list[LoadedLora], outcomes: list[LoraOutcome]) -> list[dict[Any, Any]]:
    """Also counts, per LoRA and text encoder, what was found."""
    encoders = TextEncoders(clip) if clip is not None and loras else None
    halves = [text_half(lora, encoders) for lora in loras]
    for lora, half, outcome in zip(loras, halves, outcomes, strict=True):
        fill_in(outcome, half, encoders is not None)
        require_text_match(lora, outcome, encoders)
    return [half.patches for half in halves]
