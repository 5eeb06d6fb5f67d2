"""Which methods the fusion benchmark compares, by name: the node's modes, the shipped gate, the gates in training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from autolora_core.encode.towers import file_sha256
from autolora_core.errors import AutoLoRAError
from autolora_core.fusion.branches import Branch
from autolora_core.fusion.methods.ssr import RIDGE
from autolora_core.fusion.moment import Moment
from autolora_core.fusion.plan import by_module
from benchmarks.fusion_methods import MODES, Method, Workbench, gate, mode, routes
from benchmarks.fusion_network import Course
from zoo.cache import models_dir
from zoo.fused_layers import Gate
from zoo.train_fusion import RECIPES, folder


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
    shipped = models_dir() / "emoji_gate.safetensors"
    if shipped.exists():
        out["gate"] = Entry(gate(shipped), f"gate@{file_sha256(shipped)[:8]}", ours=True)
    return out | trained()


def trained() -> dict[str, Entry]:
    """The recipes of ``zoo.train_fusion``; none while its sample of LoRAs is not there."""
    try:
        shelf = folder()
    except AutoLoRAError:
        return {}
    paths = {name: shelf / f"{name}.safetensors" for name in RECIPES}
    return {
        name: Entry(recipe(name, path), f"{name}@{file_sha256(path)[:8]}", ours=True, asked=True)
        for name, path in paths.items()
        if path.exists()
    }


def recipe(name: str, path: Path) -> Method:
    """A gate as ``zoo.train_fusion`` trains it: on routed branches where the recipe says so."""
    own = RECIPES[name]

    def build(bench: Workbench, ids: Sequence[str]) -> Course:
        made = Gate(bench.network.layers, own.shared, own.timed, own.counted, own.noise)
        made.load_state_dict(load_file(str(path)))
        made.requires_grad_(False)
        routers = {module: router for module, (_, router) in routes(bench, ids).items()} if own.routed else {}
        hooks = {
            module: partial(_gated, made, module, parts, routers.get(module), len(ids), bench.network.dtype)
            for module, parts in by_module(bench.branches(ids)).items()
        }
        return Course(hooks=hooks)

    return build


def _gated(
    made: Gate, module: str, parts: Sequence[Branch], router: Tensor | None, count: int, dtype: torch.dtype,
    moment: Moment,
) -> Callable:  # fmt: skip
    """A forward hook: LoRA k says ``B_k (R A x)_k``, and the gate, which knows time and count, lets through a part."""
    down = torch.cat([part.down for part in parts]).float()
    down = (down if router is None else router @ down).to(dtype)  # (R A) x is R (A x)
    ups = [(part.up * part.scale).to(dtype) for part in parts]
    ranks, many = [up.shape[1] for up in ups], torch.tensor([float(count)])

    def hook(_: torch.nn.Module, args: tuple, out: Tensor) -> Tensor:
        heard = F.linear(args[0].to(dtype), down).split(ranks, -1)
        said = torch.stack([F.linear(h, up) for h, up in zip(heard, ups, strict=True)], 1)
        update = made.update(module, out, said, torch.tensor([moment.progress]), many)
        return out + update.to(out.dtype)

    return hook
