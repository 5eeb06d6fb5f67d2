"""Whether a LoRA file was made for the base that a model is of, as far as layers tell.

Names shared by chance are no match: SD1.5 and SDXL, FLUX and HunyuanVideo, Lumina 2 and Z-Image call many layers alike.
Metadata alone never refuses a file, and neither does what is not known: then the layers that fit decide.
"""

from __future__ import annotations

from .families import SIZES, Family

# Bases whose LoRAs people use on the other one, knowing that not all of a file fits: Chroma is FLUX.1 schnell without
# its modulation layers, and kept the names and sizes of the rest.
RELATED = frozenset({frozenset({"flux", "chroma"})})


def mismatch(file: Family, model: Family) -> str | None:
    """Why a file of the family ``file`` is not for a model of the family ``model``, with the evidence of both; None
    when it may be. A file that changes text encoders only states no base, so it never gets a reason."""
    if not file.among or not model.among:
        return None
    if not any(_fits(mine, theirs) for mine in file.among for theirs in model.among):
        return f"it is made for {_named(file)}, the model is {_named(model)}"
    if file.name == model.name and file.width and model.width and file.width != model.width:
        return (
            f"it is made for a {file.name} model of width {file.width}{_variant(file)}, this {model.name} model has "
            f"width {model.width}{_variant(model)} (width: input of the blocks' layers, in UNets of the text states)"
        )
    return None


def other_size(family: str, one: str, two: str) -> bool:
    """Whether two variants of a family (as :class:`Family` names them, empty when not known) are of other widths."""
    if family == "sdxl":
        return (one == "refiner") != (two == "refiner")
    width = {name: number for number, name in SIZES.get(family, {}).items()}
    width["3.5-medium"] = width.get("medium", 0)
    return one in width and two in width and width[one] != width[two]


def doubt(file: Family, model: Family) -> str | None:
    """What to tell of a file that is let through although its own family has another name; None when nothing."""
    if not file.among or not model.among or file.name == model.name:
        return None
    if model.name in file.among:
        return f"recognised as {file.name}, but its layers fit {model.name} as well, so it is used: {_evidence(file)}"
    return (
        f"made for {file.name}, used on {model.name}: most layers are the same, those that differ are left out, and it "
        "may look weaker or different"
    )


def related(one: str, two: str) -> bool:
    """Whether LoRAs of one base are used on the other, too."""
    return frozenset({one, two}) in RELATED


def _fits(mine: str, theirs: str) -> bool:
    return mine == theirs or related(mine, theirs)


def _named(family: Family) -> str:
    return f"{family.name}{_variant(family)} ({_evidence(family)})"


def _variant(family: Family) -> str:
    return f" {family.variant}" if family.variant else ""


def _evidence(family: Family) -> str:
    return " ".join(family.evidence) or "nothing tells which"
