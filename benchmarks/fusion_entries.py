"""Which methods the fusion benchmark compares, by name: the node's modes, the shipped gate, the gates in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from safetensors.torch import load_file

from autolora_core.encode.towers import file_sha256
from autolora_core.errors import AutoLoRAError
from autolora_core.fusion.gate import GateVectors
from autolora_core.fusion.methods.ssr import RIDGE
from benchmarks.fusion_methods import MODES, Method, Workbench, gate, gate_vectors, gated, mode, summed
from benchmarks.fusion_network import Course, Network
from zoo.cache import models_dir
from zoo.train_fusion import PUBLISHED, RECIPES, folder, gate_of


@dataclass(frozen=True)
class Entry:
    """``key``: under which verdicts are stored; it changes with a gate's file. ``ours``: not a baseline.

    ``asked``: drawn only when named on the command line, as a gate still in training changes by the minute.
    """

    build: Method
    key: str
    ours: bool = False
    asked: bool = False


def entries() -> dict[str, Entry]:
    """Every method by name: the node's modes, the shipped gate, then the gates in training that are there."""
    out = {name: Entry(mode(name), name) for name in MODES}
    out["ssr"] = Entry(mode("ssr"), f"ssr@{RIDGE:g}")
    out["sum-asked"] = Entry(summed, "sum-covering", ours=True, asked=True)
    shipped = models_dir() / "emoji_gate.safetensors"
    if shipped.exists():
        key, vectors = file_sha256(shipped)[:8], partial(gate_vectors, shipped)
        out["ours"] = Entry(gate(shipped), f"ours-covering@{key}", ours=True)
        out["ours-unasked"] = Entry(
            lambda b, ids: gated(b, ids, vectors(), asked=False), f"ours-unasked@{key}", ours=True, asked=True
        )
        out["ours-unroled"] = Entry(
            lambda b, ids: gated(b, ids, vectors(), roled=False), f"ours-unroled-covering@{key}", ours=True, asked=True
        )
    return out | trained()


def trained() -> dict[str, Entry]:
    """The recipes of ``zoo.train_fusion``; none while its sample of LoRAs is not there."""
    try:
        shelf = folder()
    except AutoLoRAError:
        return {}
    paths = {name: shelf / f"{name}.safetensors" for name in RECIPES}
    return {
        name: Entry(recipe(name, path), f"{name}@{file_sha256(path)[:8]}", name not in PUBLISHED, asked=True)
        for name, path in paths.items()
        if path.exists()
    }


def recipe(name: str, path: Path) -> Method:
    """A gate as ``zoo.train_fusion`` trains it: on routed branches, and told who is asked for, where the recipe says
    so."""
    own = RECIPES[name]

    def build(bench: Workbench, ids: Sequence[str]) -> Course:
        return gated(bench, ids, _vectors(name, path, bench.network), own.asked, own.routed)

    return build


def _vectors(name: str, path: Path, network: Network) -> dict[str, GateVectors]:
    stamp = (path, path.stat().st_mtime_ns)
    if stamp not in _read:
        made = gate_of(RECIPES[name], network.layers)
        made.load_state_dict(load_file(str(path)))
        _read[stamp] = made.vectors()
    return _read[stamp]


_read: dict[tuple[Path, int], dict[str, GateVectors]] = {}
