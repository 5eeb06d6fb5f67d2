"""What :mod:`.similar` and :mod:`.versions` found, in sentences."""

from __future__ import annotations

from collections.abc import Mapping

from ..wording import shown
from .pictures import PictureFound, PictureHit
from .relations import Measured, Relation
from .shelf import MergeFound
from .similar import Found, Hit
from .versions import Versions

MAX_LINES = 60
HOW = {
    "sum": "the exact sum",
    "truncated": "the sum, cut to a lower rank",
    "matrices": "their matrices averaged one by one",
}


def relation_words(relation: Relation) -> str:
    """What b is to a, in one clause: "the same LoRA saved again"."""
    m = relation.measured
    words = {
        "same_file": "the same file, byte for byte",
        "resaved": "the same LoRA saved again",
        "rescaled": f"the same LoRA re-scaled{_strength(m)}",
        "refactorised": f"the same LoRA from other matrices (re-factorised){_strength(m) if _scaled(m) else ''}",
        "merged": "part of a merge, see below",
        "epoch": "the same training at another step, or one that went on from it",
        "alike": "alike in weights" if m.cosine > 0 else "its opposite in part",
        "unlike": "hardly alike",
    }
    if relation.kind == "part":
        said = _part_words(relation)
    elif relation.kind == "truncated":
        said = _truncated_words(relation)
    else:
        said = words[relation.kind]
    return said if relation.kind == "same_file" else f"{said} (cosine {m.cosine:.4f})"


def _scaled(m: Measured) -> bool:
    return abs(m.factor - 1) > 0.005


def _strength(m: Measured) -> str:
    low, high = m.factors
    if high - low > 0.01 * max(abs(low), abs(high)):
        return f", layer by layer: by strengths from {low:.3g} to {high:.3g} it becomes this one"
    return f": at strength {m.factor:.3g} it is this one"


def _part_words(relation: Relation) -> str:
    m = relation.measured
    scale = _strength(m) if _scaled(m) else ""
    if relation.smaller == "b":
        return f"a part of this one: the same weights in {m.shared} of {m.shared + m.only_a} layers{scale}"
    if relation.smaller == "a":
        return f"this one and {m.only_b} layers more{scale}"
    return f"the same weights in {m.shared} layers; {m.only_a + m.only_b} layers are in one of them only{scale}"


def _truncated_words(relation: Relation) -> str:
    m = relation.measured
    kept = f"which keeps {m.common_cosine**2:.0%} of its energy"
    scale = f"; at strength {m.factor:.3g}" if relation.smaller == "b" and _scaled(m) else ""
    if relation.smaller == "b":
        return f"this one cut to a lower rank, {kept}{scale}"
    return f"the one that this was cut from; the cut {kept.removeprefix('which ')}"


def merge_words(found: MergeFound, names: Mapping[str, str]) -> str:
    """``"x = 0.7 × a + 0.3 × b (the exact sum, 0.1 % left over)"``."""
    one, other = found.merge.weights
    sign = "+" if other >= 0 else "−"
    first, second = (shown(names.get(digest, digest[:10])) for digest in (found.first, found.second))
    sum_ = f"{one:.3g} × {first} {sign} {abs(other):.3g} × {second}"
    return f"{shown(names.get(found.whole, found.whole[:10]))} = {sum_} ({HOW[found.merge.how]}, " + (
        f"{found.merge.left_over:.1%} left over)"
    )


def hit_line(hit: Hit) -> str:
    """One line of a list."""
    others = hit.names[1:]
    also = f"; also as {', '.join(map(shown, others))}" if others and hit.relation.kind != "same_file" else ""
    name = " = ".join(map(shown, hit.names)) if hit.relation.kind == "same_file" else shown(hit.entry.name)
    return f"- {name}: {relation_words(hit.relation)}{also}"


def found_report(found: Found) -> str:
    """All that is like one LoRA: versions of it first, then merges, then others."""
    versions = [hit for hit in found.hits if hit.is_version]
    others = [hit for hit in found.hits if not hit.is_version]
    lines = [
        f"Like {shown(found.name)} (base model {found.family}): {found.searched} LoRAs searched by their weights, "
        f"{len(found.hits)} compared exactly."
    ]
    if versions:
        lines += ["", "The same LoRA over again:", *map(hit_line, versions)]
    else:
        lines += ["", "No copy and no other version of it is in the index."]
    if found.merges:
        lines += ["", "Merges:", *(f"- {merge_words(one, found.names)}" for one in found.merges)]
    if others:
        lines += ["", "Other LoRAs, most alike first:", *map(hit_line, others)]
    return "\n".join([*lines, *(["", *found.notes] if found.notes else [])])


def picture_report(found: PictureFound) -> str:
    """All that fits a picture."""
    lines = [
        f"Like the picture: {found.searched} LoRAs, {found.with_preview} with a preview picture beside them, "
        f"{found.with_words} with words.",
        "",
        *(f"- {shown(hit.entry.name)}: {_picture_words(hit)}" for hit in found.hits),
    ]
    return "\n".join([*lines, *(["", *found.notes] if found.notes else [])])


def _picture_words(hit: PictureHit) -> str:
    said = []
    if hit.picture is not None:
        said.append(f"preview {hit.picture:.2f}")
    if hit.words is not None:
        said.append(f"words {hit.words:.2f} (“{hit.caption[:60]}”)")
    return f"{', '.join(said)}; {hit.score:+.1f} deviations above what is usual here"


def versions_report(found: Versions) -> str:
    """Everything of one base model that is there more than once, or made of others."""
    lines = [f"{found.files} LoRAs for base model {found.family} compared by their weights."]
    same = [f"- {' = '.join(map(shown, group))}: identical files" for group in found.copies]
    for pair in found.pairs:
        a, b = (shown(found.names.get(digest, digest[:10])) for digest in (pair.a, pair.b))
        same.append(f"- {b}, beside {a}: {relation_words(pair.relation).replace('this one', a)}")
    lines += _section("There more than once", same)
    lines += _section("Merges", [f"- {merge_words(one, found.names)}" for one in found.merges])
    if len(lines) == 1:
        lines.append("No duplicate, no version and no merge among them.")
    return "\n".join([*lines, *(["", *found.notes] if found.notes else [])])


def _section(title: str, lines: list[str]) -> list[str]:
    if not lines:
        return []
    more = [f"- … and {len(lines) - MAX_LINES} more"] if len(lines) > MAX_LINES else []
    return ["", f"{title} ({len(lines)}):", *lines[:MAX_LINES], *more]
