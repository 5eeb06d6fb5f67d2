"""Near families: which checkpoint line of its base a LoRA was trained on, and which one a loaded network shows.

Pony, Illustrious and NoobAI are all SDXL in names and sizes; FLUX dev and Krea do not differ in one shape. What tells
them apart is what trainers and sidecars say, seldom the network. So a lineage is a note and a filter, never a refusal.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .families import Layers
from .lineage_names import AXES, FOR_NAMES, OF_ARCHITECTURE, SILENT

# Written by trainers: the checkpoint's file, then the architecture's name.
_CHECKPOINT_KEYS = ("ss_sd_model_name", "baseModel", "base_model")
_ARCHITECTURE_KEYS = ("ss_base_model_version", "modelspec.architecture")
_SEPARATOR = "; "  # between the texts of a library entry's base_model


@dataclass(frozen=True)
class Lineage:
    """``parts``: one word an axis of the family (of Wan: version, task, noise), None where nothing says it."""

    parts: tuple[str | None, ...] = ()
    evidence: str = ""

    @property
    def name(self) -> str:
        """As people write it, ``"2.2 i2v high noise"``; empty when nothing is known."""
        return " ".join(part for part in self.parts if part)

    def differs(self, other: Lineage) -> bool:
        """Whether the two contradict each other; what one of them does not say contradicts nothing."""
        return any(mine and theirs and mine != theirs for mine, theirs in zip(self.parts, other.parts, strict=False))


def lineage(family: str, metadata: Mapping[str, str], base_model: str = "", file_name: str = "") -> Lineage:
    """What a file says of itself, the surest source first: ``base_model`` (a sidecar's text, or several with "; "
    between them), the checkpoint's name in its ``metadata``, the architecture there where trainers tell lineages by
    it, and last its own ``file_name``. Each axis is taken from the first source that tells it."""
    sources = [("base model", text) for text in base_model.split(_SEPARATOR)]
    sources += [(key, metadata.get(key, "")) for key in _CHECKPOINT_KEYS]
    if family not in SILENT:
        sources += [(key, metadata.get(key, "")) for key in _ARCHITECTURE_KEYS]
    sources.append(("file name", file_name))
    parts: list[str | None] = []
    evidence: list[str] = []
    for axis in AXES.get(family, ()):
        word, why = _first(axis, sources, family)
        parts.append(word)
        evidence += [why] if why and why not in evidence else []
    return Lineage(tuple(parts), ", ".join(evidence))


def _first(axis: Mapping[str, str], sources: Iterable[tuple[str, str]], family: str) -> tuple[str | None, str]:
    for where, text in sources:
        named = where == "file name"
        if named or where in _CHECKPOINT_KEYS:
            text = re.split(r"[\\/]", text)[-1]  # without the trainer's or the user's folders
        elif family in SILENT and re.match(OF_ARCHITECTURE, text.lower()):
            continue
        for word, pattern in axis.items():
            pattern = FOR_NAMES.get((family, word), pattern) if named else pattern
            if text and pattern and re.search(pattern, text.lower()):
                return word, f"{where} {text[:60]!r}" if named or where == "base model" else f"{where} = {text[:60]!r}"
    return None, ""


def lineage_of_network(family: str, layers: Layers) -> Lineage:
    """What the layers of a whole network show; mostly nothing, as checkpoints of one base differ in numbers only."""
    read = _NETWORKS.get(family)
    return read(layers) if read else Lineage()


def _flux(layers: Layers) -> Lineage:
    inputs = layers.width(r"^img_in$")
    if inputs == 384:
        return Lineage(("fill",), "its img_in takes 384 channels")
    if layers.example(r"^guidance_in_") is None:
        return Lineage(("schnell",), "it has no guidance_in layers")
    return Lineage()


def _wan(layers: Layers) -> Lineage:
    inputs = layers.width(r"^patch_embedding$")
    if inputs == 48 and layers.width(r"self_attn_q$") == 3072:
        return Lineage(("2.2", None, None), "its patch_embedding takes 48 channels")
    if inputs == 36:
        seen = layers.example(r"^img_emb_|cross_attn_k_img$")
        version, has = ("2.1", f"has {seen}") if seen else ("2.2", "has no layers of its own for an image")
        return Lineage((version, "i2v", None), f"its patch_embedding takes 36 channels, it {has}")
    return Lineage((None, "t2v", None), "its patch_embedding takes 16 channels") if inputs == 16 else Lineage()


def _sd3(layers: Layers) -> Lineage:
    width = layers.width(r"x_block_attn_qkv$")
    if width == 2432:
        return Lineage(("3.5 large",), "its width is 2432")
    if width != 1536:
        return Lineage()
    second = layers.example(r"x_block_attn2_qkv$")
    if second:
        return Lineage(("3.5 medium",), f"it has {second}")
    return Lineage(("3 medium",), "it has no second attention")


def _chroma(layers: Layers) -> Lineage:
    pixels = layers.example(r"^nerf_")
    return Lineage(("radiance",), f"it has {pixels}") if pixels else Lineage()


_NETWORKS = {"flux": _flux, "wan": _wan, "sd3": _sd3, "chroma": _chroma}


def lineage_note(family: str, file: Lineage, model: Lineage) -> str | None:
    """One line about a file on a model, both of ``family``; None when the file says nothing, or both say the same."""
    if not file.name:
        return None
    if file.differs(model):
        return (
            f"made for {family} {file.name} ({file.evidence}), this model is {family} {model.name} ({model.evidence}): "
            "it may look weaker or off"
        )
    if all(theirs or not mine for mine, theirs in zip(file.parts, model.parts, strict=False)) and model.parts:
        return None
    known = f"{family} {model.name}, more its layers do not show" if model.name else "not shown by its layers"
    return f"made for {family} {file.name} ({file.evidence}); which {family} this model is: {known}"


def mixed_note(names: Iterable[str]) -> str | None:
    """One line when LoRAs of several lineages are used together; ``names``: of each LoRA, empty when not known."""
    counts = Counter(name for name in names if name)
    if len(counts) < 2:
        return None
    groups = ", ".join(f"{name} ({count})" for name, count in counts.most_common())
    return f"LoRAs made for different checkpoint lines are used together: {groups}."


def choices(family: str) -> tuple[str, ...]:
    """The lineages of a family that a search can be restricted to: those of its first axis."""
    axes = AXES.get(family, ())
    return tuple(axes[0]) if axes else ()


def belongs(file: Lineage, wanted: str) -> bool:
    """Whether a file may be meant by ``wanted`` (of :func:`choices`): it says so, or it does not say."""
    return not file.differs(Lineage((wanted,)))
