"""The finished LoRAs of the large zoo: a row for each, its factors, and its file as its creator would have written it.

Besides what was trained there are second copies, made from finished ones without training: saved again, louder, in
other factors, cut to a lower rank, or only some of the layers. They are marked, so that a benchmark can count or leave
out what is the same LoRA twice.

    python -m zoo.scale_data [--export FOLDER]      counts what is finished; writes the files
"""

from __future__ import annotations

import argparse
import logging
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from zoo.lora_export import write
from zoo.lora_variants import Factors, first_blocks, image_side, louder, of_rank, refactorised, unchanged
from zoo.pictures import Pictures
from zoo.raw_factors import read_raw
from zoo.scale_plan import KEYS, ScaleSpec, is_base_known, plan, style_family, unnamed
from zoo.scale_sets import captions
from zoo.splits import unit
from zoo.train_scale import finished, folder

log = logging.getLogger("zoo.scale_data")
COPY_SHARE = 0.045


def lower_rank(factors: Factors) -> Factors:
    """Each update cut to half its rank."""
    return {name: of_rank(down, up, max(1, down.shape[0] // 2)) for name, (down, up) in factors.items()}


COPIES = {
    "resaved": unchanged,
    "louder": louder,
    "refactorised": refactorised,
    "lower-rank": lower_rank,
    "first-blocks": first_blocks,
    "image-side": image_side,
}


@dataclass(frozen=True)
class FileSpec:
    """What ``lora_export`` needs to write a file: the creator's formats, and words that may be a mere trigger."""

    creator: Any
    subject: str | None
    style: str | None
    label: str
    metadata: str
    file_name: str


@cache
def _specs() -> dict[str, ScaleSpec]:
    return {s.id: s for s in plan()}


def copy_kind(spec: ScaleSpec) -> str | None:
    """Which second copy this LoRA has on the shelf, if any. Pieces need layers outside what is cut away."""
    u = unit("copy", spec.id) / COPY_SHARE
    if u >= 1:
        return None
    kind = tuple(COPIES)[int(u * len(COPIES))]
    partial = spec.creator.layer_set in ("image", "text", "early", "late")
    return "resaved" if kind in ("first-blocks", "image-side") and partial else kind


def split_id(name: str) -> tuple[ScaleSpec, str | None]:
    """The trained LoRA behind an id, and the kind of copy."""
    tag, _, kind = name.partition("-")
    return _specs()[tag], kind or None


def row(spec: ScaleSpec, pictures: Pictures, copied: str | None = None) -> dict[str, Any]:
    texts = captions(spec, pictures)
    creator = spec.creator
    return {
        "id": f"{spec.id}-{copied}" if copied else spec.id,
        "kind": spec.kind,
        "subject": spec.subject,
        "style": spec.style,
        "style_family": style_family(spec.style) if spec.style else None,
        "label": spec.label,
        "thing": spec.thing,
        "caption_kind": spec.caption_kind,
        "trigger": spec.trigger,
        "captions": sorted({t for group in texts for t in group}),
        "part": spec.part,
        "base_known": is_base_known(spec),
        "edition": spec.edition,
        "creator": creator.name,
        "rank": max(1, creator.rank // 2) if copied == "lower-rank" else creator.rank,
        "alpha": creator.alpha,
        "lr": creator.lr,
        "steps": creator.steps,
        "batch": creator.batch,
        "samples": creator.samples,
        "pictures": len(texts),
        "rule": creator.rule,
        "layer_set": creator.layer_set,
        "layers": list(creator.layers),
        "keys": file_spec(spec, copied).creator.keys,
        "dtype": creator.dtype,
        "quality": creator.quality,
        "metadata": file_spec(spec, copied).metadata,
        "file_name": file_spec(spec, copied).file_name,
        "copy_of": spec.id if copied else None,
        "copy_kind": copied,
    }


def rows(copies: bool = True, parts: Iterable[str] = ("train", "validation", "test")) -> list[dict[str, Any]]:
    """Every finished LoRA of ``parts`` in the plan's order, each followed by its second copy if it has one.

    ``captions``: all that it was trained with. ``label``: what it is of ('otter', 'pixel art', 'otter in pixel art
    style'); ``thing``: the same as a prompt ('an otter', 'pixel art style'). ``trigger``: its token, for captions that
    never name it. ``alpha`` is a multiple of the rank and already in the factors.
    """
    pictures, wanted, have, out = Pictures.load(), set(parts), set(os.listdir(folder())), []
    for spec in plan():
        if spec.part not in wanted or finished(spec).name not in have:
            continue
        out.append(row(spec, pictures))
        if copies and (kind := copy_kind(spec)):
            out.append(row(spec, pictures, kind))
    return out


def factors(name: str) -> Factors:
    """Module -> (down (r, in), up (out, r)) float32 of a LoRA or copy; the update is up @ down."""
    spec, kind = split_id(name)
    found = read_raw(finished(spec))
    return change({name: (down.float(), up.float()) for name, (down, up) in found.items()}, kind)


def change(trained: Factors, kind: str | None) -> Factors:
    return COPIES[kind](trained) if kind else trained


def file_spec(spec: ScaleSpec, copied: str | None = None) -> FileSpec:
    """How the file looks. A copy has another key format, a meaningless name and no words."""
    words = spec.trigger or spec.label
    if not copied:
        return FileSpec(spec.creator, spec.subject, spec.style, words, spec.metadata, spec.file_name)
    keys = KEYS[(KEYS.index(spec.creator.keys) + 1) % len(KEYS)]
    name = unnamed(spec.seed + 1, spec.id)
    return FileSpec(replace(spec.creator, keys=keys), spec.subject, spec.style, words, "none", name)


def write_file(name: str, path: Path) -> Path:
    """Write one LoRA as its creator would: key format, dtype, alpha, metadata."""
    spec, kind = split_id(name)
    return write_factors(factors(name), file_spec(spec, kind), path)


def write_factors(folded: Factors, spec: FileSpec, path: Path) -> Path:
    """``lora_export`` takes factors without the scale, and puts it where the format keeps it."""
    apart = {n: (down, up / spec.creator.alpha) for n, (down, up) in folded.items()}
    return write(apart, spec, path)


def export(target: Path, chosen: Iterable[dict[str, Any]] | None = None) -> list[Path]:
    """Files of ``chosen`` rows (default: all that are finished) in ``target``."""
    target.mkdir(parents=True, exist_ok=True)
    return [write_file(r["id"], target / r["file_name"]) for r in (rows() if chosen is None else chosen)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="write the files there")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    table = rows()
    log.info("%d of %d trained, %d second copies", sum(not r["copy_of"] for r in table), len(plan()),
             sum(bool(r["copy_of"]) for r in table))  # fmt: skip
    for field in ("part", "kind", "caption_kind", "layer_set", "quality"):
        log.info("%s: %s", field, dict(Counter(r[field] for r in table)))
    if args.export:
        log.info("wrote %d files", len(export(args.export, table)))


if __name__ == "__main__":
    main()
