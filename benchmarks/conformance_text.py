"""Does the text half of a LoRA do what ComfyUI's own merge of a correctly spelled file does? A table of answers.

``python -m benchmarks.conformance_text rows.json`` runs in the ComfyUI of ``COMFYUI_PATH`` or the cache, on the CPU.
Each row builds the text encoders of a base with random weights, writes one small file in one trainer's spelling, gives
it to Gated Multi-LoRA Apply and compares every weight, and what the encoders make of a text, with the stock loader's.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from autolora_core.encode.threads import one_thread
from benchmarks import text_encoders, text_spellings
from benchmarks.text_spellings import ADAPTERS, BETWEEN, COMFY, OF_THE_BASE, Spelling, as_stock, comfy_spelling, file_of

STRENGTH = 0.7
# The first spelling of a base meets every adapter, the others these.
EVERYWHERE = ("lora", "lokr", "dora, PEFT")
Row = dict[str, Any]
Apply = Callable[[str, Any], tuple[Any, str]]


def measure(architectures: list[str] | None = None, progress: Callable[[str], None] = lambda name: None) -> list[Row]:
    """Rows of architecture, format, adapter, outcome (exact, stock, refused or wrong), max_rel_error and note.

    ``exact``: every weight is bit-equal to the stock loader's; ``stock``: so too, of adapters that need the base
    weight. Needs ``comfy``, ``folder_paths`` and the tests' helpers importable in this process.
    """
    rows: list[Row] = []
    # ComfyUI inverts OFT's blocks, and MKL's threaded LU inside torch's own threads was seen to spin for ever.
    with tempfile.TemporaryDirectory() as folder, _loras_in(folder), one_thread():
        apply = _node()
        for name in text_encoders.known():
            if architectures is None or name in architectures:
                progress(name)
                rows += _Bench(name, Path(folder), apply).rows()
    return rows


@contextmanager
def _loras_in(folder: str) -> Iterator[None]:
    """ComfyUI's loras folder is ``folder`` for a while; the listings it remembers go with it."""
    import folder_paths

    paths = folder_paths.folder_names_and_paths
    before, paths["loras"] = paths["loras"], ([folder], {".safetensors"})
    try:
        yield
    finally:
        paths["loras"] = before
        folder_paths.filename_list_cache.clear()


def _node() -> Apply:
    """Gated Multi-LoRA Apply beside a tiny diffusion model, whose strength is 0: the text half alone."""
    import folder_paths
    import tiny_models
    from comfy_local import pack_module

    model = tiny_models.load(tiny_models.sd3_state(64))
    node = pack_module("nodes.gated_apply").AutoLoRAGatedApply()

    def apply(file: str, clip: Any) -> tuple[Any, str]:
        # ComfyUI remembers a folder's listing by its time stamp, which a quick writer does not change.
        folder_paths.filename_list_cache.clear()
        _, new, report = node.apply(model, mode="sum", clip=clip, lora_stack=[(file, 0.0, STRENGTH)])
        return new, report

    return apply


class _Bench:
    """One architecture."""

    def __init__(self, architecture: str, folder: Path, apply: Apply):
        self.architecture, self.folder, self.apply = architecture, folder, apply
        self.clip = text_encoders.text_encoders(architecture)
        self.layers = _layers(self.clip)
        self.names = sorted({name.partition(BETWEEN)[0] for name in self.layers})
        self.base = text_encoders.encode(self.clip, architecture)

    def rows(self) -> Iterator[Row]:
        spellings = {COMFY: comfy_spelling(self.names), **text_spellings.SPELLINGS[self.architecture]}
        for number, (name, spelling) in enumerate(spellings.items()):
            for adapter in ADAPTERS if number == 1 else EVERYWHERE:
                layers = self._for(adapter)
                if layers:
                    yield self._row(name, spelling, adapter, layers)
        yield self._elsewhere()

    def _for(self, adapter: str) -> dict[str, tuple[int, int]]:
        if adapter != "diff and bias":
            return self.layers
        state = self.clip.cond_stage_model.state_dict()
        return {name: shape for name, shape in self.layers.items() if f"{name}.bias" in state}

    def _row(self, form: str, spelling: Spelling, adapter: str, layers: dict[str, tuple[int, int]]) -> Row:
        tensors = file_of(layers, spelling, adapter)
        right = as_stock(file_of(layers, comfy_spelling(self.names), adapter))
        row = {"architecture": self.architecture, "format": form, "adapter": adapter}
        theirs = _stock(self.clip, right)
        try:
            ours, report = self.apply(self._write(tensors), self.clip)
        except Exception as error:  # noqa: BLE001 (whatever it is, the table has to tell)
            return {**row, "outcome": "wrong", "max_rel_error": None, "note": f"{type(error).__name__}: {error}"[:300]}
        wrong = self._compare(ours, theirs, layers, report, adapter)
        error = _difference(self.clip, ours, theirs)
        alone = len(_stock(self.clip, tensors).patcher.patches)
        outcome = "wrong" if wrong or error else "stock" if adapter in OF_THE_BASE else "exact"
        lost = ", without their magnitudes" if adapter == "dora, PEFT" else ""
        note = wrong or f"{len(layers)} layers; the stock loader finds {alone} weights by itself{lost}"
        return {**row, "outcome": outcome, "max_rel_error": error, "note": note}

    def _compare(self, ours: Any, theirs: Any, layers: dict, report: str, adapter: str) -> str:
        """What is wrong, in words; empty when nothing is."""
        mine, stock = ours.patcher.patches, theirs.patcher.patches
        if mine.keys() != stock.keys():
            return f"{len(mine)} weights are patched, {len(stock)} should be"
        if {f"{name}.weight" for name in layers} - mine.keys():
            return "the reference itself misses layers"
        for name in self.names:
            count = sum(layer.startswith(name + BETWEEN) for layer in layers)
            if count and f"{name} {count} of {count} layer" not in report:
                return f"the report does not count {count} layers of {name}"
        if adapter != "lora":
            return ""
        made, wanted = (text_encoders.encode(clip, self.architecture) for clip in (ours, theirs))
        if not all(made[name].equal(wanted[name]) for name in wanted):
            return "the states of a text differ from the stock loader's"
        unchanged = all(made[name].equal(self.base[name]) for name in wanted)
        return "the states of a text do not change" if unchanged else ""

    def _elsewhere(self) -> Row:
        """A LoRA for an encoder that this base has not: to be refused by name."""
        absent = next(name for name in _FOREIGN if name not in self.names and self._lacks(name))
        file = _FOREIGN[absent]
        row = {"architecture": self.architecture, "format": f"of another base ({absent})", "adapter": "lora"}
        try:
            self.apply(self._write(file), self.clip)
        except Exception as error:  # noqa: BLE001 (any other error than ours is a wrong one)
            named = type(error).__name__ == "NothingMatchesError" and absent in str(error)
            return {**row, "outcome": "refused" if named else "wrong", "max_rel_error": None, "note": str(error)[:300]}
        return {**row, "outcome": "wrong", "max_rel_error": None, "note": "it was taken"}

    def _lacks(self, name: str) -> bool:
        """T5 of any size counts as T5."""
        return name != "t5xxl" or not any("t5" in mine for mine in self.names)

    def _write(self, tensors: dict[str, torch.Tensor]) -> str:
        save_file({name: value.contiguous() for name, value in tensors.items()}, self.folder / "row.safetensors")
        return "row.safetensors"


def _pair(stem: str, out: int, wide: int) -> dict[str, torch.Tensor]:
    return {f"{stem}.lora_down.weight": torch.ones(4, wide), f"{stem}.lora_up.weight": torch.ones(out, 4)}


_FOREIGN = {
    "clip_g": _pair("lora_te2_text_model_encoder_layers_0_self_attn_q_proj", 1280, 1280),
    "clip_l": _pair("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", 768, 768),
    "t5xxl": _pair("lora_te3_encoder_block_0_layer_0_SelfAttention_q", 4096, 4096),
    "clip_h": _pair("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", 1024, 1024),
}


def _layers(clip: Any) -> dict[str, tuple[int, int]]:
    """The matrices trainers change, of the first layer and the last: weight without ``.weight`` → shape."""
    found = {
        name.removesuffix(".weight"): tuple(value.shape)
        for name, value in clip.cond_stage_model.state_dict().items()
        if name.endswith(_TRAINED) and not any(part in name for part in _UNTRAINED)
    }
    numbers = {name: int(next(part for part in name.split(".") if part.isdigit())) for name in found}
    last: dict[str, int] = {}
    for name, number in numbers.items():
        encoder = name.partition(".")[0]
        last[encoder] = max(last.get(encoder, 0), number)
    return {name: shape for name, shape in found.items() if numbers[name] in (0, last[name.partition(".")[0]])}


_TRAINED = ("_proj.weight", ".fc1.weight", ".fc2.weight", *(f".{x}.weight" for x in ("q", "k", "v", "o", "wi_0", "wo")))
_UNTRAINED = (".visual.", "embedding")


def _stock(clip: Any, tensors: dict[str, torch.Tensor]) -> Any:
    import comfy.sd

    return comfy.sd.load_lora_for_models(None, clip, tensors, 0, STRENGTH)[1]


def _difference(clip: Any, ours: Any, theirs: Any) -> float:
    """The largest difference of two merged weights against the largest number there, over all that are patched.

    The same patch gives the same weight, bit for bit: only the first of each encoder, and those that differ, are made.
    """
    import comfy.lora

    state, worst, seen = clip.cond_stage_model.state_dict(), 0.0, set()
    for name, wanted in theirs.patcher.patches.items():
        own = ours.patcher.patches.get(name, [])
        encoder = name.partition(".")[0]
        if encoder in seen and _same(own, wanted):
            continue
        seen.add(encoder)
        mine, stock = (comfy.lora.calculate_weight(one, state[name].clone(), name) for one in (own, wanted))
        if stock.equal(state[name]):
            return float("inf")  # the patch did nothing: ComfyUI logs what it cannot do and goes on
        worst = max(worst, float((mine - stock).abs().max() / stock.abs().max()))
    return worst


def _same(one: Any, two: Any) -> bool:
    """Whether two patches hold the same numbers."""
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and one.dtype == two.dtype and one.equal(two)
    if isinstance(one, (list, tuple)):
        return type(one) is type(two) and len(one) == len(two) and all(map(_same, one, two))
    if hasattr(one, "weights"):
        return type(one) is type(two) and _same(one.weights, two.weights)
    return one == two


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conformance_text", description=__doc__)
    parser.add_argument("out", type=Path, help="the JSON file to write")
    parser.add_argument("--only", action="append", metavar="NAME", help="text encoders of this base, as its rows say")
    given = parser.parse_args(arguments)
    out = given.out
    from benchmarks import in_comfy

    in_comfy.start()
    logging.disable(logging.WARNING)  # the stock loader tells of every key that it does not know
    rows = measure(given.only, progress=lambda name: print(name, file=sys.stderr, flush=True))
    out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    counts = {kind: sum(row["outcome"] == kind for row in rows) for kind in ("exact", "stock", "refused", "wrong")}
    print(len(rows), "rows:", ", ".join(f"{count} {kind}" for kind, count in counts.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
