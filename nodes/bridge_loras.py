"""LoRA files, from a name in a stack to patches and branches for a given model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.utils
import folder_paths
from comfy.weight_adapter import WeightAdapterBase

from ..autolora_core.errors import FamilyError, NothingMatchesError, SelectionError, UnsupportedAdapterError
from ..autolora_core.fusion.branches import Branch
from ..autolora_core.fusion.file_names import ENDINGS, find_names, namesakes
from ..autolora_core.fusion.requests import Request
from ..autolora_core.library.hashes import stamp
from ..autolora_core.lora.base_match import mismatch
from ..autolora_core.lora.comfy_keys import comfy_stem, unreadable_kinds
from ..autolora_core.lora.families import Family
from ..autolora_core.lora.file import LoraFile
from ..autolora_core.lora.header import read_tensors
from ..autolora_core.portable import one_file
from ..autolora_core.wording import listed, shown
from .bridge_features import true_shape, weight_shape
from .bridge_layers import NotABranch, branch_of, describe_layer, target_parts
from .bridge_stock import ready

PREFIX = "diffusion_model."
# ComfyUI loses the name of a bias that belongs to some rows of a fused weight.
_PART_BIAS = "the bias of q, k or v alone"


@dataclass
class LoadedLora:
    """One file: what it says about itself, its tensors as stored, and under ComfyUI's keys where those differ.
    ``stamp``: of the file before it was read, () if unknown."""

    request: Request
    file: LoraFile
    stored: dict[str, Any]
    renamed: dict[str, Any] | None = None
    stamp: tuple = ()

    @property
    def name(self) -> str:
        return self.request.name


@dataclass
class ModelHalf:
    """What one LoRA does to the diffusion model. ``forwarded``: ComfyUI patches; ``reasons``: layer → why.

    ``matched`` names the layers found, without prefix; the updates of those in ``zero`` are exactly zero, so they get
    no branch. ``missing``: entries of the file that the model has no layer for.
    """

    branches: list[Branch] = field(default_factory=list)
    forwarded: dict[Any, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    channels: dict[str, int] = field(default_factory=dict)
    matched: set[str] = field(default_factory=set)
    zero: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)


def resolve(request: Request) -> str:
    """The file of a request. Raises ``SelectionError`` when there is none, and when there are several.

    Packs write names as they like: with the separators of another system, without folder or ending, as a whole path.
    A name that stands in the list, in whatever case, becomes the list's own: where the disk takes either case, two
    spellings would else be two files. A whole path outside the list must at least end as a LoRA file does: stacks,
    selections and texts come from other people.
    """
    known = find_names(request.name, folder_paths.get_filename_list("loras"), whole=True)
    swapped = request.name.replace("\\", "/").replace("/", os.sep)
    for name in dict.fromkeys((*(known if len(known) == 1 else ()), request.name, swapped)):
        path = folder_paths.get_full_path("loras", name)
        if path is not None:
            return os.path.abspath(path)
    for path in (request.path, request.name):
        if path and os.path.isabs(path) and path.lower().endswith(ENDINGS) and os.path.isfile(path):
            return os.path.abspath(path)
    return _found_by_name(request.name)


def resolved(requests: Iterable[Request]) -> Iterator[tuple[str, Request]]:
    """(file, request) of each; a name that is not the list's own becomes so, that reports tell which file was meant.

    One file has one path, the first: disks of Windows and Macs take a name in any case.
    """
    first: dict[Any, str] = {}
    for request in requests:
        path = resolve(request)
        path = first.setdefault(one_file(path), path)
        own = folder_paths.get_full_path("loras", request.name) is not None
        yield path, request if own else replace(request, name=told_name(path))


def _found_by_name(name: str) -> str:
    known = folder_paths.get_filename_list("loras")
    found = find_names(name, known)
    path = folder_paths.get_full_path("loras", found[0]) if len(found) == 1 else None
    if path is not None:
        return os.path.abspath(path)
    if len(found) > 1:
        raise SelectionError(
            f"{name} may be any of {listed(map(shown, found))}", key=name, fix="write the folder in front of the name"
        )
    near = namesakes(name, known)
    raise SelectionError(
        f"the LoRA file {name} is not in any of ComfyUI's loras folders"
        + (f"; of the same name there is {listed(map(shown, near))}" if near else ""),
        key=name,
        fix="correct the name or put the file back; if a selection names it, run Encode LoRA Library again so that "
        "the index forgets it",
    )


def listed_name(path: str) -> str | None:
    """The name under which ComfyUI's loras list has a file, or None where it lies outside its folders."""
    for folder in folder_paths.get_folder_paths("loras"):
        name = os.path.relpath(path, folder) if _same_drive(path, folder) else os.pardir
        if name.split(os.sep)[0] != os.pardir:
            return name
    return None


def told_name(path: str) -> str:
    """The name for reports and pictures, which go to other people: where the list has none, without folders."""
    return listed_name(path) or os.path.basename(path)


def _same_drive(path: str, folder: str) -> bool:
    return os.path.splitdrive(os.path.abspath(folder))[0].lower() == os.path.splitdrive(path)[0].lower()


def open_for(path: str, request: Request, family: Family) -> LoraFile:
    """Open a file by its header alone, for a model of ``family``. Raises ``FileFormatError``, and ``FamilyError`` for
    another base, so that nothing is read of a file that will not be used.

    With strength 0 for the model only its text encoders are asked for, and those several bases share.
    """
    file = LoraFile.open(path)
    # What nobody can apply to any base says that instead, when it is read.
    why = mismatch(file.family, family) if request.model and file.kind == "lora" else None
    if why:
        raise FamilyError(
            f"{request.name} does not fit this model: {why}",
            path=file.path,
            fix="choose a LoRA made for this base model; to use its text encoders alone, set its model strength to 0",
        )
    return file


def load(path: str, request: Request, file: LoraFile | None = None) -> LoadedLora:
    """Read a LoRA file, opened already or not. Raises ``FileFormatError`` or ``LoraError`` for files nobody can
    apply.

    Its values are copies: ComfyUI's own reader keeps the file mapped as long as the model holds the LoRA, and a trainer
    that writes over it meanwhile would end the whole process (SIGBUS), or on Windows not be let.
    """
    file = file or LoraFile.open(path)
    before = _stamp(path)
    file.check_values()
    if file.kind != "all_zero":
        file.require_usable()
    return LoadedLora(request, file, read_tensors(file.header, file.header.tensors), file.comfy_state_dict(), before)


def _stamp(path: str) -> tuple:
    try:
        return stamp(path)
    except OSError:  # a drive that went offline: reading says so
        return ()


def model_half(lora: LoadedLora, model: Any, key_map: Mapping[str, Any], lora_index: int) -> ModelHalf:
    """Sort the LoRA's updates of the diffusion model into branches and forwarded patches."""
    patches = _patches(lora, key_map)
    half = ModelHalf(matched={layer_name(target) for target in patches})
    if lora.file.kind == "all_zero":
        return half
    absent = []
    for target, patch in patches.items():
        weight, name = _weight_name(target), layer_name(target)
        if _parameter(model, weight) is None:  # ComfyUI maps a bias without looking whether the layer has one
            absent.append(_PART_BIAS if weight.startswith("()") else weight.removeprefix(PREFIX))
            continue
        try:
            layer = _layer_of(model, weight, name)
            branch = branch_of(patch, target, layer, lora_index, lora.request.model, lora.name)
        except NotABranch as reason:
            half.forwarded[target] = ready(patch, _patched_shape(model, target), name, lora.name)
            half.reasons[weight.removeprefix(PREFIX).removesuffix(".weight")] = str(reason)
        else:
            if branch is None:
                half.zero.add(name)
                continue
            half.branches.append(branch)
            half.channels[name] = layer.out
    half.zero -= half.channels.keys() | {layer_name(target) for target in half.forwarded}
    half.missing = [*_missing_layers(lora, patches), *dict.fromkeys(absent)]
    return half


def _patches(lora: LoadedLora, key_map: Mapping[str, Any]) -> dict[Any, Any]:
    """ComfyUI's reading of the file: of our renamed keys, or of the stored ones where it finds more under those."""
    states = [state for state in (lora.renamed, lora.stored) if state is not None]
    found = [
        comfy.lora.load_lora(comfy.lora_convert.convert_lora(state), dict(key_map), log_missing=False)
        for state in states
    ]
    return max(found, key=_count_updates)


def require_match(lora: LoadedLora, half: ModelHalf, model_family: Any) -> None:
    """Raise ``NothingMatchesError`` when the LoRA changes diffusion models, and not one layer of it exists in this one,
    ``UnsupportedAdapterError`` when it is made of what nobody can apply. Its text half may fit for all that, as several
    bases share text encoders."""
    if half.matched or "model" not in lora.file.halves or not lora.request.model:
        return
    family, nobody = lora.file.family, unreadable_kinds(lora.file)
    if nobody:
        raise UnsupportedAdapterError(
            f"{lora.name} is made of {' and '.join(nobody)}: ComfyUI has no way to apply that",
            path=lora.file.path,
            fix="convert it to a LoRA with the tool it was trained with",
        )
    alone = "; to use its text half alone, set its model strength to 0" if len(lora.file.halves) > 1 else ""
    raise NothingMatchesError(
        f"not one layer of {lora.name} exists in this model: the file is for {family.name} "
        f"({_evidence(family)}), the model is {model_family.name} ({_evidence(model_family)})",
        path=lora.file.path,
        fix=f"choose a LoRA made for this base model{alone}",
    )


def _evidence(family: Any) -> str:
    return " ".join(family.evidence) or "nothing tells which"


def _layer_of(model: Any, weight: str, name: str) -> Any:
    if not weight.endswith(".weight"):
        raise NotABranch("a bias or another parameter without a matrix")
    return describe_layer(name, comfy.utils.get_attr(model.model, PREFIX + name))


def _parameter(model: Any, name: str) -> Any:
    """None where the model has no such parameter, or has it as None, as layers without bias do."""
    try:
        return comfy.utils.get_attr(model.model, name)
    except AttributeError:
        return None


def _patched_shape(model: Any, target: Any) -> tuple[int, ...]:
    """Of the parameter, or the part of it, that a patch changes."""
    weight, offset = _weight_name(target), target_parts(target)[0]
    module, _, kind = weight.rpartition(".")
    own = weight_shape(comfy.utils.get_attr(model.model, module)) if kind == "weight" else None
    shape = true_shape(_parameter(model, weight)) if own is None else own
    return shape if offset is None else (*shape[: offset[0]], offset[2], *shape[offset[0] + 1 :])


def _weight_name(target: Any) -> str:
    """The parameter of a patch key, which may name a slice of it."""
    return target if isinstance(target, str) else target[0]


def layer_name(target: Any) -> str:
    """The layer of a patch key, without prefix."""
    return _weight_name(target).removesuffix(".weight").removesuffix(".bias").removeprefix(PREFIX)


def _count_updates(patches: Mapping[Any, Any]) -> int:
    """Weights and slices of weights that have an update; a bias belongs to its layer."""
    return len({(layer_name(target), None if isinstance(target, str) else target[1]) for target in patches})


def _missing_layers(lora: LoadedLora, patches: Mapping[Any, Any]) -> list[str]:
    """Layers of the file that ComfyUI found no place for. Every adapter shares one set of all keys used."""
    used = next((patch.loaded_keys for patch in patches.values() if isinstance(patch, WeightAdapterBase)), None)
    if used is None:
        return []
    stems = {key.rpartition(part)[0] for key in used for part in (".lora", ".hada_", ".lokr_", ".alpha", "_lora.")}
    return [
        name
        for name, entry in lora.file.modules.items()
        if entry.half == "model"
        and not any(key in used for key in entry.keys.values())
        and comfy_stem(entry, lora.file.family.name) not in stems
    ]
