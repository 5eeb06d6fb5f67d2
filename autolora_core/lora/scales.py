"""The factor in front of each product: alpha / rank, or what the trainer's configuration says where no alpha is stored.

kohya, LyCORIS and diffusers before 2025 store one ``alpha`` tensor a module. PEFT stores none: its alpha, patterns and
``use_rslora`` (scale alpha/√rank, arXiv 2312.03732) are in ``adapter_config.json`` beside the file, or, from
diffusers, as JSON in the metadata entry ``lora_adapter_metadata``. LyCORIS folds rs_lora into the alpha it stores.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_MAX_SIDECAR_BYTES = 1024 * 1024


@dataclass(frozen=True)
class AdapterConfig:
    """The part of a PEFT configuration that decides scales. ``source`` says where it was found."""

    source: str
    alpha: float | None = None
    rslora: bool = False
    alpha_pattern: dict[str, float] = field(default_factory=dict)

    def scale(self, path: str, rank: int) -> float:
        """The factor for one module, by its path in the file."""
        alpha = self.alpha
        for pattern, value in self.alpha_pattern.items():
            if path == pattern or path.endswith("." + pattern):
                alpha = value
        if alpha is None or rank < 1:
            return 1.0
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def configs_of(path: str | os.PathLike, metadata: Mapping[str, str], is_peft: bool) -> dict[str, AdapterConfig]:
    """``"model"`` and ``"text"`` -> configuration, from the metadata or, for a PEFT folder, from its sidecar."""
    found = _from_metadata(metadata)
    if not found and is_peft and os.path.basename(os.fspath(path)).startswith("adapter_model"):
        sidecar = os.path.join(os.path.dirname(os.fspath(path)), "adapter_config.json")
        config = _from_sidecar(sidecar)
        if config is not None:
            found = {"model": config, "text": config}
    return found


def _from_metadata(metadata: Mapping[str, str]) -> dict[str, AdapterConfig]:
    table = _load_object(metadata.get("lora_adapter_metadata", ""))
    parts: dict[str, dict[str, object]] = {}
    for key, value in table.items():
        component, dot, name = key.partition(".")
        if dot:
            parts.setdefault(component, {})[name] = value
    result = {}
    for component, values in parts.items():
        half = "text" if component.startswith("text_encoder") else "model"
        config = _config(values, "the metadata entry lora_adapter_metadata")
        if config is not None:
            result.setdefault(half, config)
    return result


def _from_sidecar(path: str) -> AdapterConfig | None:
    try:
        if os.path.getsize(path) > _MAX_SIDECAR_BYTES:
            return None
        with open(path, encoding="utf-8", errors="replace") as file:
            return _config(_load_object(file.read()), "adapter_config.json beside the file")
    except OSError:  # there is no sidecar: the usual case
        return None


def _load_object(text: str) -> dict[str, object]:
    try:
        value = json.loads(text) if text else {}
    except (ValueError, RecursionError):  # a note nobody can read changes nothing
        return {}
    return value if isinstance(value, dict) else {}


def _number(value: object) -> float | None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


def _config(values: Mapping[str, object], source: str) -> AdapterConfig | None:
    alpha = _number(values.get("lora_alpha"))
    if alpha is None:
        return None
    raw = values.get("alpha_pattern")
    pattern = {re.sub(r"^\^|\$$", "", k): _number(v) for k, v in raw.items()} if isinstance(raw, dict) else {}
    kept = {k: v for k, v in pattern.items() if v is not None}
    return AdapterConfig(source, alpha, values.get("use_rslora") is True, kept)
