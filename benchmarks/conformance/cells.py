"""One cell: a file of one kind in one spelling, through our node's sum mode, against ComfyUI's own weight merge.

The merge is ComfyUI's own loader on the file's twin: the same updates under the names ComfyUI itself knows. Both run a
real step of sampling. The error is the largest difference, over the largest change that the merge makes to the picture:
0 is the merge, 1 is a LoRA that does nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .bases import Base, forward, make
from .names import FORMS, KOHYA, Form, Place, places_of
from .updates import ALPHA, KINDS, RANK, Draw, Kind, Tensors, lora

TOLERANCE = 1e-3  # of the LoRA's own change; float32 through a network that may magnify its rounding
TOO_LITTLE = 1e-4  # of the picture: a smaller change would say nothing
EXACT, STOCK, REFUSED, WRONG = "exact", "stock", "refused", "wrong"
STRENGTH = 0.8
LOUDER = (STRENGTH, 8.0, 80.0)
NOTHING = "the merge changes nothing: this cell tests nothing"
COMPANY = 6
_BLOCK = re.compile(r"(blocks|layers)\.\d+\.")


@dataclass
class Cell:
    """``layers`` the file changes, ``stock_layers`` of them as ComfyUI's weight patches. ``comfy_reads``: whether the
    stock loader, given the very file, does what its twin does."""

    base: str
    form: str
    kind: str
    outcome: str
    layers: int = 0
    stock_layers: int = 0
    error: float | None = None
    comfy_reads: bool = False
    note: str = ""

    def row(self) -> dict[str, Any]:
        return asdict(self)


class Bench:
    """One base in this process: its MODEL, its picture without LoRA, and a loras folder to write files into."""

    def __init__(self, base: Base, folder: Path):
        import folder_paths

        self.base, self.folder, self.strength = base, folder, STRENGTH
        folder.mkdir(parents=True, exist_ok=True)
        folder_paths.folder_names_and_paths["loras"] = ([str(folder)], {".safetensors"})
        self.model, self.loaded = make(base)
        self.own, self.trainers = places_of(self.model, base.family)
        self.plain = forward(self.model, base)

    def forms(self) -> list[Form]:
        unet = self.base.family in ("sd15", "sd2", "sdxl")
        return [form for form in FORMS if form.unets in (None, unet)]

    def places(self, form: Form) -> list[Place]:
        return self.trainers if form.trainers else self.own

    def cell(self, form: Form, kind: Kind, seed: int = 0) -> Cell | None:
        """None where no layer of this base can carry the kind under such names."""
        if kind.name in form.lacks:
            return None
        draw = Draw(seed)
        made = [(place, parts) for place in self.places(form) if (parts := kind.make(place, draw)) is not None]
        if not made:
            return None
        count = len(made)
        made += self._company(form, [place for place, _ in made], draw) if kind.partial else []
        name = re.sub(r"\W+", "_", f"{form.name} {kind.name}") + ".safetensors"
        path = self.folder / name
        save_file(_state(form, kind, made), path, dict(kind.metadata or {}))
        try:
            cell = self._judge(Cell(self.base.name, form.name, kind.name, WRONG, count), path, form, kind, made)
        finally:
            path.unlink()
        return cell

    def _company(self, form: Form, taken: list[Place], draw: Draw) -> list[tuple[Place, Tensors]]:
        """A few plain updates beside kinds that few layers can carry: such files have them, and they tell the base."""
        modules = {place.module for place in taken}
        free = [place for place in self.places(form) if place.whole and place.module not in modules]
        inside = [place for place in free if _BLOCK.search(place.module) and len(place.shape) == 2]
        return [(place, lora(place, draw)) for place in inside[:: max(1, len(inside) // COMPANY)]]

    def _judge(self, cell: Cell, path: Path, form: Form, kind: Kind, made: Sequence[tuple[Place, Tensors]]) -> Cell:
        fused = self._fused(cell, path)
        if fused is None:
            return cell
        if kind.refused:
            cell.note = "nobody can apply it, and it was not refused"
            return cell
        return self._compare(cell, path, fused, _twin(form, kind, made))

    def file_cell(self, form: str, kind: str, path: Path) -> Cell:
        """A file as it is. Its twin is what our renaming makes of it, or the file itself where ComfyUI reads that.

        What was trained for real weights hardly shows among random ones, so the strength grows until it does.
        """
        for self.strength in LOUDER:
            cell = self._file_cell(form, kind, path)
            if cell.note != NOTHING:
                break
        if cell.outcome in (EXACT, STOCK) and self.strength != STRENGTH:
            cell.note = f"at strength {self.strength:g}"
        return cell

    def _file_cell(self, form: str, kind: str, path: Path) -> Cell:
        from .applied import open_file

        cell = Cell(self.base.name, form, kind, WRONG)
        (self.folder / path.name).write_bytes(path.read_bytes()) if path.parent != self.folder else None
        fused, file = self._fused(cell, path), open_file(path)
        cell.layers = sum(entry.half == "model" for entry in file.modules.values())
        return cell if fused is None else self._compare(cell, path, fused, file.comfy_state_dict() or _load(path))

    def _fused(self, cell: Cell, path: Path) -> tuple[Any, str, int] | None:
        """What our node makes of a file; None when it refused it, or failed: the cell then says so."""
        from .applied import LoraError, apply_sum

        try:
            return apply_sum(self.model, path.name, self.strength)
        except LoraError as error:
            cell.outcome = REFUSED if path.name in str(error) else WRONG
            cell.note = _named(str(error), path.name)
        except Exception as error:  # anything else is a fault of ours, and a row must say so
            cell.note = f"{type(error).__name__}: {error}"
        return None

    def _compare(self, cell: Cell, path: Path, fused: tuple[Any, str, int], state: Tensors) -> Cell:
        model, report, cell.stock_layers = fused
        ours, twin = forward(model, self.base), self._merged(state)
        effect = (twin - self.plain).abs().max().item()
        if effect < TOO_LITTLE * self.plain.abs().max().item():
            cell.note = NOTHING
            return cell
        cell.error = (ours - twin).abs().max().item() / effect
        itself = self._merged(_load(path))
        cell.comfy_reads = (itself - twin).abs().max().item() < TOLERANCE * effect
        good = cell.error <= TOLERANCE
        told = not cell.stock_layers or "as weight patches" in report
        cell.outcome = WRONG if not (good and told) else STOCK if cell.stock_layers else EXACT
        cell.note = "" if good else _first_lines(report)
        return cell

    def _merged(self, state: Tensors) -> torch.Tensor:
        """The picture of ComfyUI's own LoraLoader."""
        import comfy.sd

        merged, _ = comfy.sd.load_lora_for_models(self.model, None, state, self.strength, 0)
        return forward(merged, self.base)

    def clean_cell(self) -> Cell:
        """Whether the base, after everything, draws what it drew before, to the bit."""
        clean = torch.equal(forward(self.model, self.base), self.plain)
        outcome = EXACT if clean else WRONG
        return Cell(self.base.name, "no LoRA any more", f"base {self.loaded}", outcome, error=0.0, comfy_reads=True)


TWIN = Form("twin", str, KOHYA)


def _state(form: Form, kind: Kind, made: Sequence[tuple[Place, Tensors]]) -> Tensors:
    """The file's tensors."""
    named = ((form.spell(place.path if form.trainers else place.module), parts) for place, parts in made)
    return _written(form, kind, named)


def _twin(form: Form, kind: Kind, made: Sequence[tuple[Place, Tensors]]) -> Tensors:
    """The same updates under ComfyUI's own stems, in tensors its merge reads. PEFT's bias is one of the up factor, so
    it is scaled with it; ``diff_b`` is added as it stands."""
    scale = ALPHA / RANK if kind.alpha is not None and form.suffixes["bias"].startswith(".lora_B") else 1.0
    named = []
    for place, parts in made:
        kept = kind.twin(place, parts) if kind.twin else parts
        named.append((place.stem, {role: part * scale if role == "bias" else part for role, part in kept.items()}))
    return _written(TWIN, kind, named)


def _written(form: Form, kind: Kind, named: Iterable[tuple[str, Tensors]]) -> Tensors:
    state: Tensors = {}
    for stem, parts in named:
        for role, tensor in parts.items():
            ending = form.suffixes.get(role) or _ENDINGS.get(role, f".{role}")
            state[stem + ending] = tensor.reshape(-1) if "magnitude" in ending else tensor
        if kind.alpha is not None and "diff" not in parts:
            state[f"{stem}.alpha"] = torch.tensor(kind.alpha)
    return {key: value.contiguous() for key, value in state.items()}


_ENDINGS = {name: f".{name}.weight" for name in ("a1", "a2", "b1", "b2")}


def _load(path: Path) -> Tensors:
    import comfy.utils

    return comfy.utils.load_torch_file(str(path), safe_load=True)


def _named(text: str, name: str) -> str:
    return " ".join(re.sub(r"\[file: .*?\]", "", text).replace(name, "the file").split())[:240]


def _first_lines(report: str) -> str:
    return " / ".join(line.strip() for line in report.splitlines()[1:5])[:240]


def base_cells(base: Base, folder: Path, kinds: Sequence[Kind] = KINDS) -> Iterator[Cell]:
    """Every cell of one base; the last one says whether the base came out unharmed."""
    bench = Bench(base, folder)
    for form in bench.forms():
        for kind in kinds:
            cell = bench.cell(form, kind)
            if cell is not None:
                yield cell
    yield bench.clean_cell()
