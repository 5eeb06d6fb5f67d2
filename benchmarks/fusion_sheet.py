"""A fair sheet of pictures: cases drawn by a fixed seed, failures included, every method in a column."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.fusion_cases import Case
from benchmarks.fusion_entries import Entry
from benchmarks.fusion_methods import Workbench, single
from benchmarks.fusion_network import Network, Painter
from benchmarks.fusion_shelf import TEST, Shelf
from benchmarks.results_file import written
from zoo.cache import REPO, write_atomic, zoo_dir
from zoo.captions import STYLE_NAMES, subject_name
from zoo.evaluate import load_autoencoder
from zoo.lora_data import true_picture
from zoo.pictures import Pictures
from zoo.train_loras import load_base

ROWS, SEED, SIDE, GAP, HEAD, LEFT = 10, 5, 72, 4, 16, 92
LARGEST = 400 << 10


def write_sheet(shelf: Shelf, cases: Sequence[Case], methods: Mapping[str, Entry], args: argparse.Namespace) -> Path:
    """One sheet for the smallest and one for the largest K of ``args.k``, one above the other."""
    rng = np.random.default_rng(SEED)
    whole = [case for case in cases if all(map(shelf.ready, case.loras(max(args.k))))]
    some = [whole[i] for i in sorted(rng.permutation(len(whole))[:ROWS])]
    ks = sorted({min(args.k), max(args.k)})
    names = ["real", "subject", "style", *methods]
    sheet = Image.new("RGB", (LEFT + len(names) * (SIDE + GAP), len(ks) * (HEAD + len(some) * (SIDE + GAP))), "white")
    pen, network = ImageDraw.Draw(sheet), Network(load_base(), compiled=not args.no_compile)
    painter, bench, pictures = (
        Painter(network, load_autoencoder()[0], args.steps),
        Workbench(shelf, network),
        Pictures.load(),
    )
    for row, case in enumerate(some):
        bench.clear()
        bench.phrases = case.phrases
        for block, k in enumerate(ks):
            top = block * (HEAD + len(some) * (SIDE + GAP)) + HEAD + row * (SIDE + GAP)
            for line, text in enumerate((subject_name(case.subject), STYLE_NAMES[case.style], f"K = {k}")):
                pen.text((2, top + 4 + 12 * line), text[:15], fill="black")
            for place, image in enumerate(_row(case, k, painter, bench, methods, pictures)):
                small = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
                sheet.paste(small, (LEFT + place * (SIDE + GAP), top))
    for block in range(len(ks)):
        for place, name in enumerate(names):
            pen.text(
                (LEFT + place * (SIDE + GAP), block * (HEAD + len(some) * (SIDE + GAP)) + 2), name[:12], fill="black"
            )
    published = args.shelf != "shipped" and args.part == TEST
    folder = REPO / "docs" / "images" if published else zoo_dir("fusion")
    name = "fusion_sheet.png" if published else f"sheet-{args.shelf}-{args.part}.png"
    return write_atomic(written(folder / name), lambda tmp: _save(sheet, tmp))


def _save(sheet: Image.Image, path: Path) -> None:
    """With as many colours as fit."""
    for colours in (256, 128, 64, 32):
        sheet.quantize(colours).save(path, format="PNG", optimize=True)
        if path.stat().st_size <= LARGEST:
            return


def _row(
    case: Case, k: int, painter: Painter, bench: Workbench, methods: Mapping[str, Entry], pictures: Pictures
) -> Iterator[np.ndarray]:
    """The real picture, each wanted LoRA alone, every method; all from the noise of seed 0."""
    real = true_picture(pictures, case.subject, case.style)
    yield real if real is not None else np.full((128, 128, 3), 255, np.uint8)
    for lora in case.wanted:
        yield painter.draw(single(bench, [lora]), case.prompts[:1], case.noise)[0]
    for entry in methods.values():
        yield painter.draw(entry.build(bench, case.loras(k)), case.prompts[:1], case.noise)[0]
