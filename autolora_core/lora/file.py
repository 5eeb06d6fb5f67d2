"""A LoRA file: opened by its header alone, read module by module when asked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from ..errors import LoraError, NoUpdatesError, UnsupportedAdapterError
from . import adapters
from .adapters import Update
from .comfy_keys import comfy_state_dict
from .families import Family
from .header import Header, read_header, read_tensors
from .modules import KeyReport, ModuleEntry, Sorted, sort_modules
from .names import tells_partial
from .scales import configs_of
from .sniff import shown

_ALPHA_KINDS = ("lora", "loha", "lokr", "glora")
_FEATURE_KINDS = ("lora", "loha", "lokr", "diff")


class LoraFile:
    """One LoRA. Make it with :meth:`open`; nothing is cached but the header and the alphas."""

    def __init__(self, header: Header, found: Sorted, stock_scale: bool = False):
        self.header = header
        self.path = header.path
        self.metadata = header.metadata
        self.family: Family = found.family
        self.forms = found.forms
        self.keys: KeyReport = found.report
        self.problems: list[str] = list(found.problems)
        self._entries = found.entries
        self._stock_scale = stock_scale
        self._all_zero = False
        self._not_finite: list[str] = []
        self._alphas: Mapping[str, float | None] = {}

    @classmethod
    def open(cls, path: str | os.PathLike, stock_scale: bool = False) -> LoraFile:
        """Opens a safetensors file and names its modules; reads the header only. Raises FileFormatError.

        ``stock_scale``: fold in the factor ComfyUI's stock loader would use (it knows stored alphas only) instead of
        the trainer's own; they differ for PEFT files that carry their configuration.
        """
        header = read_header(path)
        return cls(header, sort_modules(header), stock_scale)

    @property
    def kind(self) -> str:
        """lora, text_encoder_only, control, all_zero (known after :meth:`check_values`) or not_a_lora."""
        if not self._entries:
            return "not_a_lora"
        if self._all_zero:
            return "all_zero"
        if self.control_signs:
            return "control"
        return "lora" if "model" in self.halves else "text_encoder_only"

    @property
    def control_signs(self) -> list[str]:
        """Why this is a LoRA that turns the base into a control model; empty when it is not."""
        signs = []
        if "lora_controlnet" in self.header.tensors:
            signs.append("it carries the key lora_controlnet")
        for entry in self._entries.values():
            if "reshape_weight" in entry.keys:
                signs.append(f"it enlarges {entry.name} (reshape_weight)")
            elif self.family.name == "flux" and entry.name == "img_in" and entry.shape[1:2] > (64,):
                signs.append(f"img_in takes {entry.shape[1]} inputs instead of 64")
        return signs

    @property
    def halves(self) -> set[str]:
        """What it changes: ``model``, ``clip_l``, ``clip_g``, ``clip_h``, ``t5xxl``, ``text_encoder``."""
        return {entry.half for entry in self._entries.values()}

    @property
    def partial(self) -> str | None:
        """Which blocks of the base have no update, in words; None when all have one or the depth is not known."""
        names = [entry.base_module for entry in self._entries.values() if entry.half == "model"]
        return tells_partial(self.family.name, self.family.variant, names) if names else None

    @property
    def rank(self) -> int | None:
        """The most common rank, the larger one in a tie; None when no module has one."""
        ranks = [entry.rank for entry in self._entries.values() if entry.rank is not None]
        return max(set(ranks), key=lambda rank: (ranks.count(rank), rank)) if ranks else None

    @cached_property
    def modules(self) -> dict[str, ModuleEntry]:
        """Base module name -> entry, in the order of the file, with alphas read and scales decided."""
        keys = [entry.keys["alpha"] for entry in self._entries.values() if "alpha" in entry.keys]
        unread = [key for key in keys if key not in self._alphas]
        read = read_tensors(self.header, unread) if unread else {}
        alphas = {**self._alphas, **{key: scalar(tensor) for key, tensor in read.items()}}
        configs = configs_of(self.path, self.metadata, "peft" in self.forms or "diffusers" in self.forms)
        noted: set[str] = set()
        result = {}
        for name, entry in self._entries.items():
            alpha = alphas.get(entry.keys.get("alpha", ""))
            stock = stock_scale(entry, alpha)
            config = configs.get("model" if entry.half == "model" else "text")
            scale = stock
            if config is not None and alpha is None and entry.kind == "lora" and entry.rank:
                scale = config.scale(entry.path, entry.rank)
                if scale != stock and config.source not in noted:
                    noted.add(config.source)
                    self.problems.append(
                        f"{config.source} sets scale {scale:g}; ComfyUI's stock loader would use {stock:g}"
                    )
            plain = alpha is None and scale == stock == 1.0
            result[name] = entry if plain else replace(entry, alpha=alpha, scale=scale, stock_scale=stock)
        return result

    @property
    def entries(self) -> dict[str, ModuleEntry]:
        """:attr:`modules` as the header alone tells them: alphas and scales are not read."""
        return self._entries

    def tensors(self, module: str) -> dict[str, Tensor]:
        """Role -> tensor of one module, as stored. Raises KeyError for a module the file does not have."""
        keys = self._entries[module].keys
        read = read_tensors(self.header, keys.values())
        return {role: read[key] for role, key in keys.items()}

    def update(self, module: str) -> Update:
        """The update of one module, scale folded in. Raises KeyError, or LoraError when its values are unusable."""
        entry = self.modules[module]
        return self.build(module, self.tensors(module), entry.stock_scale if self._stock_scale else entry.scale)

    def build(self, module: str, tensors: Mapping[str, Tensor], scale: float) -> Update:
        """The update that ``tensors`` (role → tensor) of one module and a scale make."""
        entry = self._entries[module]
        try:
            made = adapters.build(entry.name, entry.kind, tensors, scale, entry.shape, entry.dora)
            return adapters.swap_halves(made) if entry.swap_halves else made
        except RuntimeError as error:
            raise LoraError(f"its tensors do not fit together ({error})", path=shown(self.path), key=module) from error

    def updates(self) -> Iterator[Update]:
        """Every update, in the order of the file; one module is in memory at a time."""
        for module in self.modules:
            yield self.update(module)

    def check_values(self) -> list[str]:
        """Reads every value. Returns (and adds to ``problems``) tensors with NaN or Inf; learns whether all is zero."""
        seen = {}
        for entry in self._entries.values():
            read = read_tensors(self.header, entry.keys.values())
            seen[entry.name] = values_of(entry, {role: read[key] for role, key in entry.keys.items()})
        return self.take_values(seen)

    def take_values(self, seen: Mapping[str, tuple[list[str], bool]]) -> list[str]:
        """:meth:`check_values` by somebody who has read the tensors: :func:`values_of` every module, by name."""
        self._not_finite = [line for name in self._entries for line in seen[name][0]]
        self._all_zero = bool(self._entries) and all(seen[name][1] for name in self._entries)
        self.problems += [line for line in self._not_finite if line not in self.problems]
        return list(self._not_finite)

    def take_alphas(self, numbers: Mapping[str, float | None]) -> None:
        """Alphas (key → :func:`scalar`) that were read already; :attr:`modules` reads the others."""
        self._alphas = numbers

    def require_usable(self) -> None:
        """Raises NoUpdatesError, UnsupportedAdapterError or LoraError when the file cannot be applied as a LoRA."""
        where = shown(self.path)
        if self.kind == "not_a_lora":
            raise NoUpdatesError(f"{self._nothing()} ({self._sample()})", path=where,
                                 fix="check that it is a LoRA, and not a checkpoint, VAE or embedding.")  # fmt: skip
        if self.kind == "all_zero":
            raise NoUpdatesError("every update in this file is zero", path=where, fix="train it again, or remove it.")
        if self.kind == "control":
            raise UnsupportedAdapterError(f"this is a control LoRA: {self.control_signs[0]}", path=where,
                                          fix="load it with the stock loader and its control image.")  # fmt: skip
        if self._not_finite:
            raise LoraError(f"it has broken values: {self._not_finite[0]}", path=where, fix="download it again.")

    def comfy_state_dict(self) -> dict[str, Tensor] | None:
        """The tensors under keys that every ComfyUI from 0.3.75 reads; None when it reads the file as it is."""
        return comfy_state_dict(self)

    def _nothing(self) -> str:
        if self.forms:
            return f"not one of its layers has a name that is known for the family {self.family.name}"
        return "no tensor of this file is part of a LoRA"

    def _sample(self) -> str:
        names = sorted(self.keys.unknown or self.keys.ignored)[:3]
        return "it has " + ", ".join(repr(name) for name in names) if names else "it has no tensor at all"


def stock_scale(entry: ModuleEntry, alpha: float | None) -> float:
    """What the stored alpha alone makes of a module's product."""
    return alpha / entry.rank if alpha is not None and entry.rank and entry.kind in _ALPHA_KINDS else 1.0


def scalar(tensor: Tensor) -> float | None:
    """The number in a tensor of one number, None for others."""
    if tensor.numel() != 1:
        return None
    return float(tensor.real if tensor.is_complex() else tensor)


def _comparable(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype.is_floating_point and tensor.dtype.itemsize < 4 else tensor


def values_of(entry: ModuleEntry, tensors: Mapping[str, Tensor]) -> tuple[list[str], bool]:
    """A sentence for every tensor (role → tensor) with NaN or Inf, and whether the module changes nothing."""
    lines = []
    for role, tensor in tensors.items():
        bad = int((~torch.isfinite(_comparable(tensor))).sum())
        if bad:
            lines.append(f"{entry.keys[role]}: {bad} of {tensor.numel()} values of {role} are NaN or infinite")
    return lines, _is_zero(entry, tensors)


def _is_zero(entry: ModuleEntry, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a module changes nothing: one factor of its product is all zero, and nothing else is stored."""

    def zero(role: str) -> bool:
        return not bool(_comparable(tensors[role]).any())

    if entry.dora or entry.kind not in _FEATURE_KINDS:
        return False
    if any(not zero(role) for role in ("diff_b", "bias") if role in tensors):
        return False
    needed = [role for role in tensors if role not in ("alpha", "diff_b", "bias", "scalar", "reshape_weight")]
    return any(zero(role) for role in needed)
