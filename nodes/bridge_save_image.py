"""Pictures written as PNG with what they were made of: ComfyUI's side of ``image_info``."""

from __future__ import annotations

import json
import ntpath
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import folder_paths
import numpy as np
from comfy.cli_args import args
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..autolora_core.errors import AutoLoRAError
from ..autolora_core.fusion.requests import Request
from ..autolora_core.image_info.graph import Facts, GraphLora
from ..autolora_core.image_info.parameters import HashedLora, parameters_text
from ..autolora_core.image_info.used import FORMAT, Used, UsedLora
from ..autolora_core.library.hashes import FileHashes, HashCache, stamp
from ..autolora_core.library.metadata import autov3
from ..autolora_core.lora.header import read_header
from ..autolora_core.wording import shown
from .bar import Bar
from .bridge_loras import resolve, told_name
from .bridge_paths import throw_if_interrupted
from .bridge_used import used_of
from .wires import is_clip, is_model, what_it_is

COMPRESSION = 4  # as ComfyUI's own Save Image
MODEL_FOLDERS = ("checkpoints", "diffusion_models")
_HASHES = HashCache()


@dataclass
class Told:
    """What goes into a picture: the ``parameters`` text and the ``autolora`` JSON; ``notes`` for the node's report."""

    parameters: str
    autolora: dict[str, Any]
    notes: list[str]


def tell(
    model: Any, clip: Any, facts: Facts, size: tuple[int, int], replaced: Mapping[str, str], hash_model: bool
) -> Told:
    """``model``: MODEL or None, ``clip``: CLIP or None, as they came out of Apply; ``size``: width, height in pixels;
    ``replaced``: settings typed by hand. Files are hashed once; Cancel is heeded."""
    patchers, notes = _patchers(model, clip)
    others = [_hashed_other(lora, notes) for lora in facts.loras]
    applied = used_of(patchers)
    ours = [[_hashed(lora, notes) for lora in used.loras] for used in applied]
    every = [*(hashed for hashed, _ in others), *(hashed for one in ours for hashed, _ in one)]
    model_hash = _model_hash(facts.model, notes) if hash_model else ""
    told = {
        "format": FORMAT,
        "applied": [_applied(used, one) for used, one in zip(applied, ours, strict=True)],
        "other_loras": [data for _, data in others],
    }
    notes += _not_in_the_graph(facts)
    if not every:
        notes.append("no LoRA is known: connect the model that Gated Multi-LoRA Apply gave")
    if "steps" not in {key.casefold() for key in replaced} and facts.steps is None:
        notes.append(
            "the number of steps is not in the graph, and readers of parameters look for it: write Steps: in settings"
        )
    return Told(parameters_text(facts, every, size, model_hash, replaced), told, notes)


def _patchers(model: Any, clip: Any) -> tuple[list[Any], list[str]]:
    """What may carry notes; of a wrong link a note in words: the picture is there, and is not lost for that."""
    found, notes = [], []
    for given, key, fits in ((model, "model", is_model), (clip, "clip", is_clip)):
        if given is not None and not fits(given):
            notes.append(f"the input {key} is {what_it_is(given)}, not a {key.upper()}: LoRAs on it are not told")
        elif given is not None:
            found.append(given if key == "model" else given.patcher)
    return found, notes


def _not_in_the_graph(facts: Facts) -> list[str]:
    """What else may have made the picture, and cannot be told."""
    said = [
        f"node {lora.node} loads {lora.name or 'a LoRA'}, and its name or a strength cannot be read from the graph: "
        "the picture does not tell it"
        for lora in facts.unknown_loras
    ]
    lost = [
        f"the model may come from any of several inputs of node {node}: its way from there is not known, and LoRAs on "
        "it are not told"
        for node in facts.lost_at
    ]
    return said + lost


def _applied(used: Used, loras: Iterable[tuple[HashedLora, dict[str, Any]]]) -> dict[str, Any]:
    gate = {"gate_sha256": _hashes(used.gate_path).sha256} if _is_file(used.gate_path) else {}
    return used.to_json() | gate | {"loras": [data for _, data in loras]}


def _hashed(lora: UsedLora, notes: list[str]) -> tuple[HashedLora, dict[str, Any]]:
    """A LoRA of Apply. A file that has changed since is not the one that was used: it gets no hash."""
    made, stated = FileHashes(""), ""
    if _is_file(lora.path) and stamp(lora.path)[1:] == lora.stamp:
        made, stated = _hashes(lora.path), lora.autov3
    else:
        notes.append(f"{lora.name} has changed since it was applied: its hash is not known")
    return _both(lora.name, lora.strength, lora.clip_strength, made, stated, lora.to_json())


def _hashed_other(lora: GraphLora, notes: list[str]) -> tuple[HashedLora, dict[str, Any]]:
    """A LoRA that another node loads; what it is called there is all that is known of it."""
    name, made, stated = _without_place(lora.name), FileHashes(""), ""
    try:
        path = resolve(Request(lora.name, lora.strength, lora.clip_strength))
        name, stated = told_name(path), _stated(path)
        made = _hashes(path)
    except (AutoLoRAError, OSError) as error:
        notes.append(f"{name}, which node {lora.node} loads, cannot be hashed: {error}")
    data = {"strength": lora.strength, "clip_strength": lora.clip_strength, "node": lora.node}
    data = {"name": name.replace("\\", "/")} | data
    return _both(name, lora.strength, lora.clip_strength, made, stated, data)


def _without_place(name: str) -> str:
    """A name as typed, without the folders of a whole path on any system."""
    whole = name.startswith(("/", "\\")) or ntpath.splitdrive(name)[0]
    return ntpath.basename(name) if whole else name


def _both(
    name: str, strength: float, clip: float, made: FileHashes, stated: str, data: dict[str, Any]
) -> tuple[HashedLora, dict[str, Any]]:
    """``stated``: AutoV3 by the header, for a file whose own cannot be reckoned."""
    hashes = {"sha256": made.sha256, "autov2": made.autov2, "autov3": made.autov3 or stated}
    told = data | {"hashes": {key: value for key, value in hashes.items() if value}}
    return HashedLora(name, strength, clip, hashes["autov2"], hashes["autov3"]), told


def _stated(path: str) -> str:
    """AutoV3 by the header. Raises ``FileFormatError`` for a safetensors file that is none: nobody hashes that."""
    return autov3(read_header(path).metadata) if path.lower().endswith((".safetensors", ".sft")) else ""


def _model_hash(name: str | None, notes: list[str]) -> str:
    path = next((path for path in (_model_path(folder, name) for folder in MODEL_FOLDERS) if path), None)
    if path is None:
        notes.append(f"the base model's file is not known{f' ({name})' if name else ''}: it has no hash")
        return ""
    return _hashes(path).autov2


def _model_path(folder: str, name: str | None) -> str | None:
    return folder_paths.get_full_path(folder, name) if name else None


def _hashes(path: str) -> FileHashes:
    bar, size, name = Bar(), os.path.getsize(path), os.path.basename(path)
    return _HASHES.of(path, lambda done: bar(done, size, name))


def _is_file(path: str) -> bool:
    return bool(path) and os.path.isfile(path)


def save_pictures(
    images: Any, prefix: str, told: Told, prompt: Any, extra: Mapping[str, Any] | None
) -> list[dict[str, str]]:
    """Write ``images`` (n, height, width, 3), 0 to 1, into the output folder as ComfyUI's Save Image does, and tell
    what it tells; nothing where ComfyUI runs with --disable-metadata."""
    height, width = images[0].shape[0], images[0].shape[1]
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory(), width, height
    )
    chunks = None if args.disable_metadata else _chunks(told, prompt, extra)
    saved = []
    for number, image in enumerate(images):
        throw_if_interrupted()
        pixels = np.clip(255.0 * image.cpu().numpy(), 0, 255).astype(np.uint8)
        file = f"{name.replace('%batch_num%', str(number))}_{counter + number:05}_.png"
        Image.fromarray(pixels).save(os.path.join(folder, file), pnginfo=chunks, compress_level=COMPRESSION)
        saved.append({"filename": file, "subfolder": subfolder, "type": "output"})
    return saved


def _chunks(told: Told, prompt: Any, extra: Mapping[str, Any] | None) -> PngInfo:
    chunks = PngInfo()
    chunks.add_text("parameters", shown(told.parameters))
    if prompt is not None:
        chunks.add_text("prompt", json.dumps(prompt))
    for key, value in (extra or {}).items():
        if key not in ("parameters", "prompt", "autolora"):
            chunks.add_text(key, json.dumps(value))
    chunks.add_text("autolora", json.dumps(told.autolora))
    return chunks


def with_texts(facts: Facts, positive: str | None, negative: str | None, seed: int | None) -> Facts:
    """The facts with what is connected to the node in place of what the graph says."""
    given = {"positive": positive, "negative": negative, "seed": seed}
    return replace(facts, **{key: value for key, value in given.items() if value is not None})
