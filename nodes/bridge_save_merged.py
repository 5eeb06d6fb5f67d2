"""A fusion written down as one LoRA file: ComfyUI's side of ``fusion.merged``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy.weight_adapter import WeightAdapterBase

from ..autolora_core.encode.towers import file_sha256
from ..autolora_core.errors import FamilyError, SelectionError, UnsupportedAdapterError
from ..autolora_core.fusion.branches import Branch
from ..autolora_core.fusion.merged import naming
from ..autolora_core.fusion.merged.pack import DTYPES, pack
from ..autolora_core.fusion.merged.report import Origin, Tally, merged_metadata, merged_report
from ..autolora_core.fusion.merged.still import check_mode, check_plan, still_branches
from ..autolora_core.fusion.merged.writing import write_merged
from ..autolora_core.fusion.methods.dense import DenseMerge
from ..autolora_core.fusion.methods.planner import Blend
from ..autolora_core.fusion.requests import Request
from ..autolora_core.library.metadata import header_words
from . import bridge_paths
from .bar import Bar
from .bridge import fuse_prepared
from .bridge_features import true_shape
from .bridge_gates import GateChoice
from .bridge_layers import NotABranch, branch_of, describe_layer, target_parts
from .bridge_loras import PREFIX, LoadedLora, layer_name
from .bridge_methods import Wishes
from .bridge_prepare import Prepared, prepare

TEXT = "text_encoders."
ADDITIVE = ("lora", "loha", "lokr")  # adapters that add to the weight, unless they are DoRA


@dataclass(frozen=True)
class Target:
    """The file that is wanted: its ``name`` in the loras folder, ``dtype`` and whether it may ``overwrite``."""

    name: str
    dtype: str = "float16"
    overwrite: bool = False


@dataclass(frozen=True)
class Patch:
    """One of ComfyUI's weight patches at a LoRA's strength; ``target`` is its key, a weight or a slice of it."""

    value: Any
    target: Any
    strength: float
    lora: LoadedLora


@dataclass
class Work:
    """Everything that is added to one parameter."""

    branches: list[Branch] = field(default_factory=list)
    dense: DenseMerge | None = None
    patches: list[Patch] = field(default_factory=list)


@dataclass
class Side:
    """Diffusion model or text encoders: the network, ComfyUI's names for its parameters, parameter → work."""

    root: str
    network: Any
    key_map: Mapping[str, Any]
    work: dict[str, Work] = field(default_factory=dict)

    def of(self, parameter: str) -> Work:
        return self.work.setdefault(parameter, Work())

    def shape(self, parameter: str) -> tuple[int, ...]:
        return true_shape(comfy.utils.get_attr(self.network, parameter))

    def key(self, parameter: str, suffix: str) -> str:
        """The key in a file under which stock ComfyUI finds ``parameter``."""
        stem, _, kind = parameter.rpartition(".")
        generic = self.root + stem
        if kind == "weight" and self.key_map.get(generic) == parameter:
            return f"{generic}.{suffix}"
        if kind == "bias" and self.key_map.get(generic) == f"{stem}.weight":
            return f"{generic}.diff_b"
        if self.key_map.get(self.root + parameter) == parameter:
            return f"{self.root}{parameter}.{suffix}"
        raise UnsupportedAdapterError(
            f"a LoRA file has no name for {parameter} that stock ComfyUI knows", key=parameter,
            fix="leave out the LoRA that changes it",
        )  # fmt: skip


def save_merged(model: Any, clip: Any, requests: Iterable[Request], wishes: Wishes, target: Target) -> tuple[str, str]:
    """Fuse LoRAs as the Apply node would and save the update; returns the file's name in the loras list and a report.

    Raises what ``apply_loras`` raises; ``SelectionError`` for a bad name, a mode that cannot be saved and nothing to
    save; ``GateError`` for a gate that is not flat; ``UnsupportedAdapterError`` for an update that depends on the base.
    """
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    path = naming.merged_path(folder, target.name)
    ready = prepare(model, clip, requests, wishes.terms)
    _check_terms(ready)
    check_mode(wishes.mode, len(ready.inside))
    if target.overwrite:
        naming.check_sources(path, {lora.name: lora.file.path for lora in ready.loras})
    chosen, made = fuse_prepared(model, clip, ready, wishes)
    check_plan(made.plan, chosen.gate and chosen.gate.path)
    sides = [_model_side(model, ready, made), *_text_side(clip, ready)]
    origin = _origin(chosen, made, wishes)
    tensors, tally = _packed(sides, DTYPES[target.dtype])
    bridge_paths.throw_if_interrupted()
    path = write_merged(path, tensors, lambda taken: _metadata(taken, ready, origin), target.overwrite)
    name = os.path.relpath(path, folder)
    size = path.stat().st_size / 1e6
    return name, merged_report(name, size, target.dtype, origin, ready.outcomes, ready.absent, tally)


def _model_side(model: Any, ready: Prepared, made: Blend) -> Side:
    """What ``attach_blend`` and ``add_patches`` would give the model."""
    side = Side("", model.model, comfy.lora.model_lora_keys_unet(model.model, {}))
    for name, plan in made.plan.modules.items():
        side.of(f"{PREFIX}{name}.weight").branches += still_branches(plan)
    for name, merge in made.dense.items():
        side.of(f"{PREFIX}{name}.weight").dense = merge
    for number in ready.live:
        lora = ready.loras[number]
        for target, value in ready.halves[number].forwarded.items():
            if factor := ready.factor(number, layer_name(target)):
                _add_patch(side, Patch(value, target, lora.request.model * factor, lora))
    return side


def _check_terms(ready: Prepared) -> None:
    for index in filter(ready.passing, ready.terms):
        raise SelectionError(
            f"{ready.loras[index].name} is on for a while or in a place only, and a LoRA file knows neither",
            key="terms",
            fix="leave schedule and mask empty in LoRA Time and Place; strengths by block can be saved",
        )


def _text_side(clip: Any, ready: Prepared) -> list[Side]:
    """The text encoders' half: always the plain sum. Its factors are kept where there are any."""
    if clip is None:
        return []
    side = Side(TEXT, clip.cond_stage_model, comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {}))
    for number, (lora, patches) in enumerate(zip(ready.loras, ready.clip_patches, strict=True)):
        for target, value in patches.items() if lora.request.clip else ():
            _add_text(side, Patch(value, target, lora.request.clip, lora), number)
    return [side]


def _add_text(side: Side, patch: Patch, number: int) -> None:
    parameter = _parameter(patch.target)
    try:
        if not parameter.endswith(".weight"):
            raise NotABranch("a bias")
        name = parameter.removesuffix(".weight")
        layer = describe_layer(name, comfy.utils.get_attr(side.network, name))
        branch = branch_of(patch.value, patch.target, layer, number, patch.strength, patch.lora.name)
    except NotABranch:
        _add_patch(side, patch)
    else:
        side.of(parameter).branches += [] if branch is None else [branch]


def _add_patch(side: Side, patch: Patch) -> None:
    what = _not_additive(patch.value)
    if what:
        raise _refusal(patch, what)
    side.of(_parameter(patch.target)).patches.append(patch)


def _not_additive(value: Any) -> str | None:
    """What kind of patch this is, when it does more than add a difference."""
    if isinstance(value, WeightAdapterBase):
        if value.name not in ADDITIVE:
            return f"a {value.name} adapter, which depends on the base weight"
        dora = value.weights[4] if value.name == "lora" else value.weights[-1]
        return None if dora is None else "DoRA, which depends on the base weight"
    if value[0] == "diff":
        return None if len(value[1]) == 1 else "an update that enlarges the weight"
    return "a replaced weight" if value[0] == "set" else f"a patch of kind {value[0]}"


def _refusal(patch: Patch, what: str) -> UnsupportedAdapterError:
    layer = _parameter(patch.target).removesuffix(".weight")
    return UnsupportedAdapterError(
        f"{patch.lora.name} cannot be part of a merged LoRA: at {layer} it has {what}, and a merged file only adds",
        path=patch.lora.file.path,
        key=layer,
        fix="leave it out here, and load it with a loader of its own beside the merged file",
    )


def _parameter(target: Any) -> str:
    return target if isinstance(target, str) else target[0]


def _packed(sides: list[Side], dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], Tally]:
    """One parameter at a time; only what is stored stays in memory."""
    tensors, tally, bar = {}, Tally(), Bar()
    total, done = sum(len(side.work) for side in sides), 0
    for side in sides:
        for parameter, work in side.work.items():
            bar(done, total, parameter)
            done += 1
            shape = side.shape(parameter)
            piece = pack(parameter, work.branches, shape, dtype, _extra(parameter, work, shape))
            if piece is None:
                continue
            tensors |= {side.key(parameter, suffix): value for suffix, value in piece.tensors.items()}
            tally.add((side.root + parameter).removeprefix(PREFIX), piece)
    if not tensors:
        raise SelectionError(
            "there is nothing to save: no LoRA that changes anything", key="lora_stack",
            fix="connect a selection or a LORA_STACK whose strengths are not 0",
        )  # fmt: skip
    bar.finish()
    return tensors, tally


def _extra(parameter: str, work: Work, shape: tuple[int, ...]) -> torch.Tensor | None:
    """What is no branch, as one dense update; None when there is none."""
    parts = [_difference(parameter, patch, shape) for patch in work.patches]
    if work.dense is not None:
        parts.append(work.dense.delta(comfy.model_management.get_torch_device()).cpu().reshape(shape))
    return sum(part.double() for part in parts) if parts else None


def _difference(parameter: str, patch: Patch, shape: tuple[int, ...]) -> torch.Tensor:
    """ComfyUI's own arithmetic on zeros, ``shape`` float32. It logs sizes that do not fit and goes on: we do not."""
    offset, function = target_parts(patch.target)
    given = (patch.strength, patch.value, 1.0, offset, function)
    made = comfy.lora.calculate_weight([given], torch.zeros(shape), parameter, intermediate_dtype=torch.float32)
    factors = patch.value.weights if isinstance(patch.value, WeightAdapterBase) else patch.value[1]
    silent = not made.any() and all(bool(part.any()) for part in factors if isinstance(part, torch.Tensor))
    if tuple(made.shape) != shape or silent:
        raise FamilyError(
            f"{patch.lora.name} does not fit this model: its update of {parameter} has another size than the model's "
            f"{'×'.join(map(str, shape))}",
            path=patch.lora.file.path,
            key=parameter,
            fix="choose a LoRA made for this base model",
        )
    return made


def _origin(chosen: GateChoice, made: Blend, wishes: Wishes) -> Origin:
    plan, gate = made.plan, chosen.gate
    settings = {key: value for key, value in asdict(wishes.settings).items() if key != "interval"}
    return Origin(
        plan.mode,
        chosen.why,
        {} if plan.mode in ("sum", "gate") else settings,
        made.notes,
        chosen.warnings,
        os.path.basename(gate.path) if gate else "",
        file_sha256(gate.path) if gate else "",
        plan.gated_modules,
        len(plan.modules),
    )


def _metadata(path: Path, ready: Prepared, origin: Origin) -> dict[str, str]:
    loras = [(lora.request, file_sha256(lora.file.path)) for lora in ready.loras]
    triggers = [word for lora in ready.loras for word in _triggers(lora)]
    return merged_metadata(path.name.removesuffix(naming.SUFFIX), loras, origin, triggers, ready.family.name)


def _triggers(lora: LoadedLora) -> tuple[str, ...]:
    """The pick's trigger words, else those that the file's header tells."""
    return lora.request.triggers or tuple(header_words(lora.file.metadata)[0].triggers)
