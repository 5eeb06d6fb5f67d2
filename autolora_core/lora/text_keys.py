"""Where the text half of a file belongs in the text encoders that are there, and its tensors under their names.

Trainers number text encoders each in their own way: ``te2`` is CLIP-G for SDXL, T5 for FLUX, CLIP-L for HunyuanVideo.
So layers are placed by what they are (CLIP, T5 or a language model) and by their sizes; the number decides last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from .comfy_keys import under_stem
from .modules import ModuleEntry
from .names_text import find_text_module

Shape = tuple[int, ...]
ROOT = "text_encoders."
_BETWEEN = ".transformer."
# Kinds of adapters that ComfyUI's weight patches know; PEFT's own OFT is stored in another form than LyCORIS'.
_PATCHED = ("lora", "loha", "lokr", "glora", "diff", "bias", "norm", "set")


@dataclass
class Placement:
    """``placed``: entry's name → the weight it changes, without ``.weight``. ``missing``: entry's name → why not.

    ``layers``: encoder → (layers placed, layers of the file); encoders that are not there by the file's name for them.
    """

    placed: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    layers: dict[str, tuple[int, int]] = field(default_factory=dict)

    def count(self, encoder: str, found: bool) -> None:
        """One more layer of the file is for ``encoder``."""
        here, all_of_it = self.layers.get(encoder, (0, 0))
        self.layers[encoder] = (here + found, all_of_it + 1)


class _Encoder:
    """One text encoder: module by our name → (weight without ``.weight``, shape)."""

    def __init__(self, kind: str):
        self.kind, self.modules = kind, {}

    def fits(self, entries: Iterable[ModuleEntry]) -> bool:
        """Some layer is here, and every one that is here has the right size."""
        found = [_fits(entry, *self.modules[name]) for entry in entries if (name := _module(entry)) in self.modules]
        return bool(found) and all(found)


def place(entries: Iterable[ModuleEntry], weights: Mapping[str, Shape]) -> Placement:
    """Find a home for every entry of a text half. ``weights``: parameters of the text encoders → their shapes."""
    encoders, groups, result = _encoders(weights), {}, Placement()
    for entry in entries:
        groups.setdefault((entry.half, stated_encoder(entry)), []).append(entry)
    # Those that say where they belong come first: the others get what is left.
    for (half, stated), group in sorted(groups.items(), key=lambda item: (not item[0][1], item[0][0] not in encoders)):
        taken = {where.partition(_BETWEEN)[0] for where in result.placed.values()}
        name = _choose(half, stated, group, encoders, taken)
        for entry in group:
            why = _why_not(entry, name, encoders) or _unknown_kind(entry)
            if why is None:
                result.placed[entry.name] = encoders[name].modules[_module(entry)][0]
            else:
                result.missing[entry.name] = why
            result.count(name or stated or shown_half(half), why is None)
    return result


def text_tensors(
    placement: Placement, modules: Mapping[str, ModuleEntry], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The placed tensors under ComfyUI's generic names. ``tensors``: the file's, by its own keys."""
    result: dict[str, Tensor] = {}
    for name, where in placement.placed.items():
        result |= under_stem(ROOT + where, modules[name], tensors)
    return result


def stated_encoder(entry: ModuleEntry) -> str | None:
    """The encoder that ComfyUI's own spelling names: ``qwen25_7b`` of ``text_encoders.qwen25_7b.transformer.…``."""
    if not entry.stem.startswith(ROOT):
        return None
    name, between, _ = entry.stem.removeprefix(ROOT).partition(_BETWEEN)
    return name if between else None


def shown_half(half: str) -> str:
    """A half as a report names it."""
    return "language model" if half == "text_encoder" else half


def _encoders(weights: Mapping[str, Shape]) -> dict[str, _Encoder]:
    found: dict[str, _Encoder] = {}
    for name, shape in weights.items():
        encoder, between, path = name.removesuffix(".weight").partition(_BETWEEN)
        target = find_text_module(path, 0, shape) if between and name.endswith(".weight") else None
        if target is not None:
            known = found.setdefault(encoder, _Encoder(_kind(target[0])))
            known.modules[target[1]] = (name.removesuffix(".weight"), shape)
    return found


def _kind(half: str) -> str:
    return "clip" if half.startswith("clip_") else half


def _choose(
    half: str, stated: str | None, group: list[ModuleEntry], encoders: Mapping[str, _Encoder], taken: set[str]
) -> str | None:
    """The encoder that some entries of one half belong to; None when it is not here."""
    if stated is not None or half in encoders:
        name = stated or half
        return name if name in encoders else None
    kind = _kind(half)
    own = [name for name, encoder in encoders.items() if encoder.kind == kind and name not in taken]
    return next((name for name in own if encoders[name].fits(group)), own[0] if kind != "clip" and own else None)


def _why_not(entry: ModuleEntry, name: str | None, encoders: Mapping[str, _Encoder]) -> str | None:
    if name is None:
        here = ", ".join(encoders) or "no text encoder that LoRAs are made for"
        return f"this CLIP has {here}"
    found = encoders[name].modules.get(_module(entry))
    if found is None:
        return f"no such layer in this CLIP's {name}"
    return None if _fits(entry, *found) else f"of another size than the layers of this CLIP's {name}"


def _unknown_kind(entry: ModuleEntry) -> str | None:
    if entry.kind in _PATCHED or (entry.kind in ("oft", "boft") and "oft_blocks" in entry.keys):
        return None
    return f"ComfyUI's weight patches know no {entry.kind} of this form"


def _module(entry: ModuleEntry) -> str:
    return entry.base_module.removeprefix(f"{entry.half}.")


def _fits(entry: ModuleEntry, _: str, shape: Shape) -> bool:
    """A bias or a norm tells the outputs alone, some adapters nothing."""
    return entry.shape in ((), shape) or (len(entry.shape) == 1 and entry.shape[0] == shape[0])
