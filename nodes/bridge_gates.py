"""Gate files on this machine, and which of them serves a model."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..autolora_core.errors import GateError
from ..autolora_core.fusion.base_print import is_same_base
from ..autolora_core.fusion.files import GateFile, read_gate
from ..autolora_core.fusion.gate_sign import GateSign, gate_sign
from ..autolora_core.fusion.plan import split_slice
from . import bridge_paths

log = logging.getLogger(__name__)
AUTO = "auto"
PACK_MODELS = Path(__file__).resolve().parents[1] / "models"
OTHER_BASE = "{} was trained on another base model of the same shape: it may hurt; compare with mode 'sum'"
# (path, mtime, size) → what its header says, and → the gate read last: menus are built often, gates can be 100 MB.
_signs: dict[tuple, GateSign | None] = {}
_latest: dict[tuple, GateFile] = {}


@dataclass(frozen=True)
class GateChoice:
    """The gate to use, if any, one sentence saying why, and what its user should know besides."""

    gate: GateFile | None
    why: str
    warnings: tuple[str, ...] = ()


def gate_folders() -> list[str]:
    """Where gates are looked for, in this order: ComfyUI's ``models/autolora``, then the pack's ``models``."""
    return [*bridge_paths.model_folders(), str(PACK_MODELS)]


def gate_files() -> dict[str, str]:
    """Menu name → path of every gate file; of two files with one name the first folder wins.

    Files that cannot be read are in it too: choosing one is an error that says what to do.
    """
    found: dict[str, str] = {}
    for folder in gate_folders():
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
            path = os.path.join(folder, name)
            if name.endswith(".safetensors") and name not in found and not os.path.isdir(path) and _sign(path):
                found[name] = path
    return found


def choose_gate(choice: str, mode: str, model: Any, family: str, loras: int) -> GateChoice:
    """The gate for ``loras`` LoRAs on ``model`` (MODEL, of ``family``), by the node's ``mode`` and ``gate`` inputs.

    Raises ``GateError`` when a gate is asked for and there is none, when it is for another family, or when its layers
    are not the model's. A gate trained on another base of the same shape is used, with a warning.
    """
    if mode not in (AUTO, "gate"):
        return GateChoice(None, "asked for")
    files = gate_files()
    if choice == AUTO:
        return _automatic(files, mode, model, family, loras)
    if choice not in files:
        raise GateError(f"the gate file {choice} is not there", key="gate", fix=f"put it into {gate_folders()[0]}")
    gate = _read(files[choice])
    if gate.family != family:
        raise GateError(
            f"the gate is for {gate.family}, the model is {family}", path=gate.path, key="gate",
            fix="choose gate 'auto'",
        )  # fmt: skip
    return _fitting(_within_range(gate, mode, loras), model)


def _automatic(files: Mapping[str, str], mode: str, model: Any, family: str, loras: int) -> GateChoice:
    """The first whole gate for the family whose layers are the model's."""
    signs = {name: (path, _sign(path)) for name, path in files.items()}
    unfit = None
    for path in (path for path, sign in signs.values() if sign.family == family and not sign.problem):
        try:
            return _fitting(_within_range(_read(path), mode, loras), model)
        except GateError as error:
            unfit = unfit or error
    if unfit is not None:
        raise unfit
    broken = tuple(
        f"{name} was passed over: {sign.problem}"
        for name, (_, sign) in signs.items()
        if sign.problem and sign.family in (None, family)
    )
    if mode == "gate":
        raise GateError(
            "; ".join([f"there is no gate for a model of family {family}", *broken]),
            key="gate",
            fix=f"put a gate file into {gate_folders()[0]}, or choose mode 'auto' or 'sum'",
        )
    return GateChoice(None, f"no gate for a model of family {family}", broken)


def _within_range(gate: GateFile, mode: str, loras: int) -> GateChoice:
    low, high = gate.k_range
    name = os.path.basename(gate.path)
    if mode == AUTO and loras < low:
        return GateChoice(None, f"{loras} LoRA to fuse; {name} is for {low} or more")
    beyond = f", though it was trained with at most {high} at once" if high is not None and loras > high else ""
    return GateChoice(gate, f"{name}{beyond}")


def _fitting(chosen: GateChoice, model: Any) -> GateChoice:
    """The choice itself, with a warning when its gate comes from another base; ``GateError`` when it cannot be used."""
    gate = chosen.gate
    if gate is None:
        return chosen
    network = model.model.diffusion_model
    for key, vectors in gate.modules.items():
        _check_layer(gate, key, vectors.channels, network)
    if gate.base_fingerprint and is_same_base(gate.base_fingerprint, network.state_dict()) is False:
        return GateChoice(gate, chosen.why, (OTHER_BASE.format(os.path.basename(gate.path)),))
    return chosen


def _check_layer(gate: GateFile, key: str, channels: int, network: Any) -> None:
    name, span = split_slice(key)
    try:
        layer = network.get_submodule(name)
    except AttributeError:
        layer = None
    out = getattr(layer, "out_features", None) or getattr(layer, "out_channels", None)
    if out is not None and (channels == out if span is None else span[1] <= out):
        return
    found = f"has {out} output channels there" if out else "has no such layer"
    wanted = f"{channels} channels for {key}" if span is None else f"channels {span[0]} to {span[1]} of {name}"
    raise GateError(
        f"the gate does not fit this model: it speaks of {wanted}, the model {found}",
        path=gate.path,
        key=key,
        fix="choose a gate made for this base model, or mode 'sum'",
    )


def _stamp(path: str) -> tuple:
    try:
        status = os.stat(path)
    except OSError as error:  # a dangling link, a drive that went offline
        return path, error.errno, -1
    return path, status.st_mtime_ns, status.st_size


def gates_fingerprint() -> str:
    """Changes when a gate file comes, goes or changes."""
    return repr([_stamp(path) for path in gate_files().values()])


def _sign(path: str) -> GateSign | None:
    """What the header says, read once for each state of the file; trouble is logged as often."""
    stamp = _stamp(path)
    if stamp not in _signs:
        if len(_signs) > 1000:
            _signs.clear()
        sign = _signs[stamp] = gate_sign(path)
        if sign is not None and sign.problem:
            log.warning("%s cannot be used as a gate: %s", path, sign.problem)
    return _signs[stamp]


def _read(path: str) -> GateFile:
    stamp = _stamp(path)
    if stamp not in _latest:
        _latest.clear()
        _latest[stamp] = read_gate(path)
    return _latest[stamp]
