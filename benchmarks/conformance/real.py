"""Files as people have them: real LoRAs of SD1.5, and layouts of real trainers' files filled with random values.

The layouts name every tensor and its shape; the base has the real widths, and one block of each kind, as its weights
take gigabytes. So a layout is cut down to the blocks that are there, and nothing else of it is changed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from .bases import BASES, Base
from .cells import Bench, Cell

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data"
_BLOCK = re.compile(r"^(?!lora_te|text_encoder)(.*?(?:blocks|layers))[._](\d+)[._]")


def _base(name: str, **config: object) -> Base:
    found = next(base for base in BASES if base.name == name)
    return replace(found, config={**found.config, **config}, scale=0.02)


def _full_unet() -> Base:
    depths = [1, 1, 1, 1, 1, 1, 0, 0]
    return _base(
        "SD1.5", num_res_blocks=[2] * 4, channel_mult=[1, 2, 4, 4], transformer_depth=depths,
        transformer_depth_output=[d for d in depths[::2] for _ in range(3)], transformer_depth_middle=1,
    )  # fmt: skip


# family → the base at its real widths; one block of each kind
_WIDE = {
    "flux": lambda: _base("FLUX.1", hidden_size=3072, num_heads=24, vec_in_dim=768, context_in_dim=4096),
    "qwen_image": lambda: _base("Qwen-Image", num_attention_heads=24, joint_attention_dim=3584),
    "krea2": lambda: _base("Krea 2", features=6144, heads=48, kvheads=12, txtlayers=12, txtdim=2560),
    "anima": lambda: _base(
        "Anima (Cosmos Predict2)", model_channels=2048, num_heads=16, crossattn_emb_channels=1024, adaln_lora_dim=256
    ),
}
_TEXT = {"flux": (4096, 768), "qwen_image": (3584, 32), "krea2": (12 * 2560, 32), "anima": (1024, 32)}


def real_cells(folder: Path) -> Iterator[Cell]:
    """One row a real file; nothing where the files are not beside the checkout."""
    files = sorted((FOLDER / "loras").glob("*.safetensors"))
    if not files:
        return
    bench = Bench(replace(_full_unet(), name="SD1.5, whole"), folder)
    for path in files:
        yield bench.file_cell("real file", path.stem, path)
    yield bench.clean_cell()


def layout_cells(folder: Path) -> Iterator[Cell]:
    """One row a layout whose base is here."""
    by_family: dict[str, list[Path]] = {}
    for path in sorted((FOLDER / "layouts").glob("*.json")):
        family = next((name for name in _WIDE if path.stem.startswith(name)), None)
        if family:
            by_family.setdefault(family, []).append(path)
    for family, paths in by_family.items():
        base = _WIDE[family]()
        if not base.available:
            continue
        text, pooled = _TEXT[family]
        bench = Bench(replace(base, name=f"{base.name}, real widths", text=text, pooled=pooled), folder)
        for path in paths:
            file = folder / f"{path.stem}.safetensors"
            kept, left = _fill(path, file)
            cell = bench.file_cell("real layout", path.stem, file)
            cell.note = cell.note or f"{kept} tensors; {left} of further blocks left out"
            yield cell
            file.unlink()
        yield bench.clean_cell()


def _fill(layout: Path, file: Path) -> tuple[int, int]:
    """Write the first blocks of a layout, as block 0, with random values; (tensors written, tensors left out)."""
    shapes = json.loads(layout.read_text(encoding="utf-8"))
    first: dict[str, int] = {}
    for key in shapes:
        if block := _BLOCK.search(key):
            kind, number = block.group(1), int(block.group(2))
            first[kind] = min(number, first.get(kind, number))
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, shape in shapes.items():
        block = _BLOCK.search(key)
        if block is None or int(block.group(2)) == first[block.group(1)]:
            name = key if block is None else key[: block.start(2)] + "0" + key[block.end(2) :]
            state[name] = torch.randn(shape, generator=generator) * 0.05 if shape else torch.tensor(4.0)
    save_file(state, file)
    return len(state), len(shapes) - len(state)
