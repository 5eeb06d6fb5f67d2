"""LoRA files: names, kinds, families, values, updates, features. Every key is accounted for, no number is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from autolora_core.encode.features import module_features, size_for
from autolora_core.encode.response_factors import response_factors
from autolora_core.errors import AutoLoRAError
from autolora_core.library.reading import read_file
from autolora_core.library.walk import Found
from autolora_core.lora.file import LoraFile
from autolora_core.lora.header import read_header

from .. import lora_seeds
from ..memory import MIB
from ..oracle import Wrong

CASES = 6_000
LARGE = 1 << 22  # numbers of a claimed layer from which its matrix is not made here


def bound(size: int) -> int:
    """Updates are made one module at a time, in float64."""
    return 64 * MIB + 40 * size


seeds, make = lora_seeds.seeds, lora_seeds.make


def run(data: bytes, folder: Path) -> None:
    path = folder / "file.safetensors"
    path.write_bytes(data)
    read_header(path)  # refused here: the target "header" looks closer
    status = path.stat()
    read = read_file(Found(str(folder), path.name, str(path), len(data), status.st_mtime_ns, {}), lambda size: None)
    failed = [line for line in read.content.problems if line.startswith("the reader failed")]
    if read.encoded is not None:
        said = (read.encoded.features_problem, read.encoded.response_problem)
        failed += [one for one in said if one and one.startswith("encoding failed")]
    if failed:
        raise Wrong(failed[0])
    lora = LoraFile.open(path)
    report, every = lora.keys, set(lora.header.tensors)
    if report.used | set(report.ignored) | report.unknown != every:
        raise Wrong(f"keys without account: {sorted(every - report.used - set(report.ignored) - report.unknown)[:3]}")
    broken = lora.check_values()
    lora.require_usable()
    made = list(_updates(lora))
    for update in made:
        _check(update, broken)
    family = lora.family.name
    found = module_features(iter(made), size_for(family))
    if not (np.isfinite(found.rows).all() and np.isfinite(found.log_norms).all()):
        raise Wrong("features that are not finite")
    factors = response_factors(iter(made), family)
    if factors is not None and not all(np.isfinite(rows).all() for rows in factors.rows.values()):
        raise Wrong("response factors that are not finite")


def _updates(lora: LoraFile):
    """Those that can be made; what is refused names the module."""
    for name in lora.modules:
        try:
            yield lora.update(name)
        except AutoLoRAError as error:
            if error.key is None:
                raise Wrong(f"no module is named by: {error}") from error


def _check(update, broken: list[str]) -> None:
    parts = [part for part in (update.up, update.down, update.mid, update.dense, update.bias) if part is not None]
    if broken or update.kind == "not_additive" or any(part.numel() > LARGE for part in parts):
        return
    if not all(bool(torch.isfinite(part).all()) for part in parts):
        raise Wrong(f"{update.module!r} is accepted with values that are not finite")
    if update.shape is not None and int(np.prod(update.shape, dtype=object)) <= LARGE:
        if tuple(update.delta().shape) != update.shape:
            raise Wrong(f"{update.module!r} says {update.shape} and gives {tuple(update.delta().shape)}")
