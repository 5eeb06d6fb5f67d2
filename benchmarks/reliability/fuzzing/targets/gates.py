"""Gate files of both kinds, their signs for the menu, and routers kept on disk."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from safetensors.torch import save

from autolora_core.fusion.files import read_gate, write_gate
from autolora_core.fusion.flux_gate import PUBLIC_PREFIX
from autolora_core.fusion.gate import VECTORS, GateVectors
from autolora_core.fusion.gate_sign import gate_sign
from autolora_core.fusion.methods import router_store

from .. import document
from ..memory import MIB
from ..oracle import Wrong

CASES = 5_000
KEY = "0" * 32
KEYS = tuple(
    f"{module}.{vector}"
    for module in (
        "joint_blocks.0.x_block.mlp.fc1",
        "joint_blocks.0.x_block.attn.qkv[0:4]",
        "x[4:2]",
        "x[-1:3]",
        "x[0:99999999999]",
        "x[",
    )
    for vector in (*VECTORS, "roles", "power", "unknown")
) + tuple(
    f"{PUBLIC_PREFIX}.{tail}"
    for tail in ("double_blocks.0.img_attn.proj.weight_out", "single_blocks.0.linear1.bias", "")
)
METADATA = ("format", "family", "eps", "k_min", "k_max", "recipe", "base_sha256", "base_fingerprint")


def bound(size: int) -> int:
    return 16 * MIB + 40 * size


def seeds(folder: Path) -> list[bytes]:
    found = []
    for number, module in enumerate(("joint_blocks.0.x_block.mlp.fc1", "joint_blocks.0.x_block.attn.qkv[0:4]")):
        path, vectors = folder / "seed.safetensors", GateVectors.identity(4)
        write_gate(
            path,
            {module: vectors},
            family="sd3",
            k_range=(2, 4),
            base_fingerprint={"a": [1.0, 2.0]} if number else None,
        )
        found.append(path.read_bytes())
    found.append(save({"a": torch.eye(3), "b": torch.eye(2)}, {"format": "autolora-routers/1"}))
    return found


def make(rng: random.Random, parent: bytes) -> bytes:
    return document.lie(rng, parent, KEYS, METADATA)


def run(data: bytes, folder: Path) -> None:
    path = folder / f"{KEY}.safetensors"
    path.write_bytes(data)
    sign = gate_sign(path)
    if sign is not None and not (
        isinstance(sign.family, (str, type(None))) and isinstance(sign.problem, (str, type(None)))
    ):
        raise Wrong(f"a sign of wrong types: {sign!r:.200}")
    routers = router_store.read(folder, KEY)
    if routers is not None:
        if not all(one.ndim == 2 and one.shape[0] == one.shape[1] and one.isfinite().all() for one in routers.values()):
            raise Wrong("routers that are none")
        if routers and not any(key.endswith(VECTORS) for key in routers):
            return  # a file of routers, and no gate
    gate = read_gate(path)
    low, high = gate.k_range
    if sign is None or sign.problem:
        raise Wrong(f"a gate that the menu does not take for one: {sign!r:.200}")
    if gate.family != sign.family or low < 0 or (high is not None and high < 0):
        raise Wrong(f"family {gate.family!r} and {sign.family!r}, range {low} to {high}")
    for name, vectors in gate.modules.items():
        parts = [value for value in vectors.named().values() if value is not None]
        if not parts or any(len(value) != vectors.channels or not value.isfinite().all() for value in parts):
            raise Wrong(f"the vectors of {name!r} are not whole")
    for values in gate.base_fingerprint.values():
        if not torch.tensor(values, dtype=torch.float64).isfinite().all():
            raise Wrong("a fingerprint that is not finite")
