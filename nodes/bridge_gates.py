"""Gate files on this machine, and which of them serves a model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..autolora_core.errors import GateError
from ..autolora_core.fusion.files import GateFile, gate_family, read_gate
from . import bridge_paths

AUTO = "auto"
PACK_MODELS = Path(__file__).resolve().parents[1] / "models"
# (path, mtime, size) → family or None, and → the gate read last: menus are built often, gates can be 100 MB.
_families: dict[tuple, str | None] = {}
_latest: dict[tuple, GateFile] = {}


@dataclass(frozen=True)
class GateChoice:
    """The gate to use, if any, and one sentence saying why."""

    gate: GateFile | None
    why: str


def gate_folders() -> list[str]:
    """Where gates are looked for, in this order: ComfyUI's ``models/autolora``, then the pack's ``models``."""
    return [*bridge_paths.model_folders(), str(PACK_MODELS)]


def gate_files() -> dict[str, str]:
    """Menu name → path of every gate file; of two files with one name the first folder wins."""
    found: dict[str, str] = {}
    for folder in gate_folders():
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
            path = os.path.join(folder, name)
            if name.endswith(".safetensors") and name not in found and _family(path) is not None:
                found[name] = path
    return found


def choose_gate(choice: str, mode: str, family: str, loras: int) -> GateChoice:
    """The gate for ``loras`` LoRAs on a model of ``family``, by the node's ``mode`` and ``gate`` inputs.

    Raises ``GateError`` when a gate is asked for and there is none, or it is for another family.
    """
    if mode == "sum":
        return GateChoice(None, "asked for")
    path = _find(choice, family)
    if path is None:
        if mode == "gate":
            raise GateError(
                f"there is no gate for a model of family {family}",
                key="gate",
                fix=f"put a gate file into {gate_folders()[0]}, or choose mode 'auto' or 'sum'",
            )
        return GateChoice(None, f"no gate for a model of family {family}")
    gate = _read(path)
    if gate.family != family:
        raise GateError(
            f"the gate is for {gate.family}, the model is {family}", path=path, key="gate", fix="choose gate 'auto'"
        )
    return _within_range(gate, mode, loras)


def _within_range(gate: GateFile, mode: str, loras: int) -> GateChoice:
    low, high = gate.k_range
    name = os.path.basename(gate.path)
    if mode == AUTO and loras < low:
        return GateChoice(None, f"{loras} LoRA to fuse; {name} is for {low} or more")
    beyond = f", though it was trained with at most {high} at once" if high is not None and loras > high else ""
    return GateChoice(gate, f"{name}{beyond}")


def _find(choice: str, family: str) -> str | None:
    files = gate_files()
    if choice == AUTO:
        return next((path for path in files.values() if _family(path) == family), None)
    if choice not in files:
        raise GateError(f"the gate file {choice} is not there", key="gate", fix=f"put it into {gate_folders()[0]}")
    return files[choice]


def _stamp(path: str) -> tuple:
    status = os.stat(path)
    return path, status.st_mtime_ns, status.st_size


def gates_fingerprint() -> str:
    """Changes when a gate file comes, goes or changes."""
    return repr([_stamp(path) for path in gate_files().values()])


def _family(path: str) -> str | None:
    stamp = _stamp(path)
    if stamp not in _families:
        if len(_families) > 1000:
            _families.clear()
        _families[stamp] = gate_family(path)
    return _families[stamp]


def _read(path: str) -> GateFile:
    stamp = _stamp(path)
    if stamp not in _latest:
        _latest.clear()
        _latest[stamp] = read_gate(path)
    return _latest[stamp]
