"""Gate files: ours, and the one public FLUX gate.

Ours is a safetensors file. Keys are ``<module>.<vector>`` with the base model's own module names
(``joint_blocks.0.x_block.mlp.fc1.weight_out``), a slice of a fused layer as ``<module>[start:stop].<vector>``. A gate
that tells LoRAs apart (:class:`.gate.Tilt`) has ``roles`` (8 numbers) and ``power`` (1) besides.
Metadata: ``format=autolora-gate/1``, with roles or powers ``autolora-gate/2``, ``family``, and, when known, ``eps``,
``k_min``, ``k_max`` (how many LoRAs at once the gate was trained with), ``recipe``, and of the diffusion model it was
trained on ``base_sha256`` (its file) and ``base_fingerprint`` (JSON, see :mod:`.base_print`).
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..errors import FileFormatError, GateError
from ..lora.header import read_header, read_tensors
from ..portable import TEMPORARY, not_written, sweep, write_whole
from .flux_gate import PUBLIC_PREFIX, hidden_size, public_module
from .gate import EPS, VECTORS, GateVectors
from .gate_sign import FIX, FORMAT, FORMATS, NO_FAMILY, what_is_wrong
from .plan import split_slice

EXTRA = {"roles": 8, "power": 1}  # name → how many numbers
_BY_LENGTH = sorted([*VECTORS, *EXTRA], key=len, reverse=True)  # "norm_base.bias" must be tried before "bias"


@dataclass(frozen=True)
class GateFile:
    """A gate as read. ``modules``: module or ``module[start:stop]`` → vectors (float32).

    ``base_fingerprint``: what the file tells of the base it was trained on, see :mod:`.base_print`; empty when nothing.
    """

    path: str
    family: str
    modules: dict[str, GateVectors]
    metadata: dict[str, str] = field(default_factory=dict)
    base_fingerprint: dict[str, list[float]] = field(default_factory=dict)

    @property
    def k_range(self) -> tuple[int, int | None]:
        """Smallest and largest number of LoRAs seen in training; 2 and "not known" unless the file says."""
        return _whole(self, "k_min") or 2, _whole(self, "k_max")


def read_gate(path: str | os.PathLike) -> GateFile:
    """Read a gate file, of either kind. Every key must be understood, every vector finite and of one length.

    Raises ``GateError`` naming the file and the key.
    """
    tensors, metadata = _read(path)
    if any(key.startswith(PUBLIC_PREFIX) for key in tensors):
        return _public_flux(path, tensors, metadata)
    if metadata.get("format") not in FORMATS:
        raise GateError(f"not a gate file: its format is {metadata.get('format')!r}", path=path, fix=FIX)
    if not metadata.get("family"):
        raise GateError(NO_FAMILY, path=path, key="family", fix=FIX)
    modules = _vectors(path, tensors, _eps(path, metadata))
    return GateFile(os.fspath(path), metadata["family"], modules, metadata, _fingerprint(path, metadata))


def write_gate(
    path: str | os.PathLike,
    modules: Mapping[str, GateVectors],
    *,
    family: str,
    k_range: tuple[int, int] | None = None,
    recipe: str = "",
    base_sha256: str = "",
    base_fingerprint: Mapping[str, Sequence[float]] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a gate file, completely or not at all. Vectors are stored as float32."""
    tilted = any(vectors.roles is not None or vectors.power for vectors in modules.values())
    header = {"format": FORMATS[1] if tilted else FORMAT, "family": family, "recipe": recipe}
    header |= {"base_sha256": base_sha256, **(metadata or {})}
    eps = {vectors.eps for vectors in modules.values()}
    if len(eps) > 1:
        raise GateError(f"one file holds one eps, these vectors have {sorted(eps)}", path=path)
    header["eps"] = repr(eps.pop() if eps else EPS)
    if base_fingerprint:
        header["base_fingerprint"] = json.dumps(dict(base_fingerprint))
    if k_range:
        header["k_min"], header["k_max"] = str(k_range[0]), str(k_range[1])
    tensors = {
        f"{name}.{vector}": value.detach().float().cpu().clone()
        for name, vectors in modules.items()
        for vector, value in {**vectors.named(), **_extra(vectors)}.items()
    }
    _vectors(path, tensors, EPS)
    replace_file(Path(path), tensors, {key: value for key, value in header.items() if value})


def _extra(vectors: GateVectors) -> dict[str, Tensor]:
    """What tells LoRAs apart, as vectors under their file names."""
    roles = {} if vectors.roles is None else {"roles": vectors.roles.flatten()}
    return roles | ({"power": torch.tensor([vectors.power])} if vectors.power else {})


def replace_file(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], fresh: bool = False) -> None:
    """Write a safetensors file, completely or not at all; ``fresh``: FileExistsError where there is one.

    Raises ``NotWrittenError``, which names it and says what to do.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_written(path, error) from error
    sweep(path.parent)

    def write(temporary: str) -> None:
        # safetensors writes under a name of its own beside the one it is given: in a folder that sweeping knows.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=TEMPORARY, suffix=".tmp") as folder:
            save_file(tensors, os.path.join(folder, "file"), metadata)
            os.replace(os.path.join(folder, "file"), temporary)

    write_whole(path, write, fresh)


def _read(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Copies: a gate in use may be trained anew under its name. By our own reader, which takes no header that names a
    vector twice."""
    try:
        header = read_header(path)
        return read_tensors(header, header.tensors), dict(header.metadata)
    except FileFormatError as error:
        what, fix = what_is_wrong(path, error)
        raise GateError(f"the gate file cannot be read: {what}", path=path, fix=fix) from error


def _public_flux(path: str | os.PathLike, tensors: dict[str, Tensor], metadata: dict[str, str]) -> GateFile:
    renamed: dict[str, Tensor] = {}
    for key, value in tensors.items():
        stem, vector = _split_key(path, key)
        module = public_module(stem)
        if module is None:
            raise GateError("not a layer of the public FLUX gate", path=path, key=key, fix=FIX)
        renamed[f"{module}.{vector}"] = value
    modules = _vectors(path, renamed, EPS)
    sizes = {hidden_size(module, vectors.channels) for module, vectors in modules.items()}
    if len(sizes) > 1:
        raise GateError(f"the layers speak for different hidden sizes: {sorted(sizes)}", path=path, fix=FIX)
    return GateFile(os.fspath(path), "flux", modules, metadata)


def _split_key(path: str | os.PathLike, key: str) -> tuple[str, str]:
    vector = next((vector for vector in _BY_LENGTH if key.endswith("." + vector)), None)
    if vector is None or key == "." + vector:
        raise GateError("unknown key in a gate file", path=path, key=key, fix=FIX)
    return key[: -len(vector) - 1], vector


def _vectors(path: str | os.PathLike, tensors: Mapping[str, Tensor], eps: float) -> dict[str, GateVectors]:
    named: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        module, vector = _split_key(path, key)
        named.setdefault(module, {})[vector] = _checked(path, key, value)
    if not named:
        raise GateError("the gate file holds no layer", path=path, fix=FIX)
    for module, vectors in named.items():
        _check_module(path, module, vectors)
    return {module: _gate_vectors(vectors, eps) for module, vectors in named.items()}


def _gate_vectors(named: dict[str, Tensor], eps: float) -> GateVectors:
    roles, power = named.pop("roles", None), named.pop("power", None)
    found = GateVectors.from_named(named, eps)
    table = None if roles is None else roles.view(2, 2, 2)
    return replace(found, roles=table, power=0.0 if power is None else float(power))


def _checked(path: str | os.PathLike, key: str, value: Tensor) -> Tensor:
    if value.ndim != 1 or not value.is_floating_point():
        shape = tuple(value.shape)
        raise GateError(f"expected a vector of floats, found {value.dtype} {shape}", path=path, key=key, fix=FIX)
    value = value.float()
    if not torch.isfinite(value).all():
        raise GateError("the vector has values that are not finite", path=path, key=key, fix=FIX)
    return value


def _check_module(path: str | os.PathLike, module: str, vectors: dict[str, Tensor]) -> None:
    missing = _missing(vectors)
    if missing:
        raise GateError(f"vectors missing: {', '.join(missing)}", path=path, key=module, fix=FIX)
    for name, length in EXTRA.items():
        if name in vectors and len(vectors[name]) != length:
            raise GateError(f"{name} has {len(vectors[name])} numbers, not {length}", path=path, key=module, fix=FIX)
    lengths = {value.shape[0] for name, value in vectors.items() if name not in EXTRA}
    if len(lengths) > 1:
        raise GateError(f"vectors of different lengths: {sorted(lengths)}", path=path, key=module, fix=FIX)
    span = split_slice(module)[1]
    if span and span[1] - span[0] != lengths.pop():
        raise GateError("the vectors do not have the length of their slice", path=path, key=module, fix=FIX)


def _missing(vectors: Iterable[str]) -> list[str]:
    """The paper's own variant has no ``weight_base``; everything else must be there."""
    return [name for name in VECTORS if name not in vectors and name != "weight_base"]


def _eps(path: str | os.PathLike, metadata: dict[str, str]) -> float:
    text = metadata.get("eps", repr(EPS))
    try:
        eps = float(text)
    except ValueError as error:
        raise GateError(f"eps is not a number: {text!r}", path=path, key="eps", fix=FIX) from error
    if not 0 < eps < 1:
        raise GateError(f"eps must lie between 0 and 1, found {text}", path=path, key="eps", fix=FIX)
    return eps


def _fingerprint(path: str | os.PathLike, metadata: Mapping[str, str]) -> dict[str, list[float]]:
    text = metadata.get("base_fingerprint", "{}")
    try:
        found = {name: [float(value) for value in values] for name, values in json.loads(text).items()}
        if not all(math.isfinite(value) for values in found.values() for value in values):
            raise ValueError("a number is not finite")
        return found
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise GateError("base_fingerprint is not readable", path=path, key="base_fingerprint", fix=FIX) from error


def _whole(gate: GateFile, key: str) -> int | None:
    text = gate.metadata.get(key)
    if text is None:
        return None
    if not text.isdecimal() or len(text) > 9:
        raise GateError(f"{key} is not a whole number: {text[:80]!r}", path=gate.path, key=key, fix=FIX)
    return int(text)
