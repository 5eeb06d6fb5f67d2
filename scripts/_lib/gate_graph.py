"""The graph that trains a fusion gate: model, LoRAs, node, and what it reports."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from .client import Graph
from .server import DEMO_MODELS

# Folders of a ComfyUI models folder → what ComfyUI calls them.
KINDS = {
    "checkpoints": "checkpoints", "diffusion_models": "diffusion_models", "unet": "diffusion_models", "vae": "vae",
    "text_encoders": "text_encoders", "clip": "text_encoders", "loras": "loras",
}  # fmt: skip
TRAIN, REPORT, PREVIEWS = "train", "report", "previews"
SETTINGS = ("steps", "most_together", "width", "height", "sampling_steps", "cfg", "seed", "gate_name")


def model_paths(models: Path | None) -> dict[str, list[Path]]:
    """What the server is to know: the demo's models, or a user's ``models`` folder."""
    if models is None:
        return DEMO_MODELS
    found: dict[str, list[Path]] = {}
    for folder, kind in KINDS.items():
        if (models / folder).is_dir():
            found.setdefault(kind, []).append(models / folder)
    return found


def build(options: Namespace) -> Graph:
    """The graph for a command line, see ``scripts/train_gate.py``."""
    graph = _model(options)
    graph["library"] = _node(
        "AutoLoRAEncodeLibrary", folder="all loras", name_filter=options.loras, library="train-gate", force=False
    )
    settings = {name: getattr(options, name) for name in SETTINGS}
    graph[TRAIN] = _node(
        "AutoLoRATrainFusionGate", model=graph.pop("model"), clip=graph.pop("clip"), vae=graph.pop("vae"),
        index=["library", 0], most_loras=options.most_loras, sampler_name="euler", scheduler="normal", **settings,
    )  # fmt: skip
    graph[REPORT] = _node("PreviewAny", source=[TRAIN, 1])
    graph[PREVIEWS] = _node("SaveImage", images=[TRAIN, 0], filename_prefix="train_gate")
    return graph


def _model(options: Namespace) -> dict[str, Any]:
    """Loaders, and under ``model``, ``clip`` and ``vae`` which outputs to take."""
    if options.checkpoint:
        loaders = {"checkpoint": _node("CheckpointLoaderSimple", ckpt_name=options.checkpoint)}
        return {**loaders, "model": ["checkpoint", 0], "clip": ["checkpoint", 1], "vae": ["checkpoint", 2]}
    if options.unet:
        clip = _text_encoder(options.clip, options.clip_type)
    else:
        clip = _node("AutoLoRAMiniLMCLIPLoader")
    unet, vae = options.unet or "emoji_mmdit.safetensors", options.vae or "emoji_vae.safetensors"
    loaders = {
        "unet": _node("UNETLoader", unet_name=unet, weight_dtype="default"),
        "vae_file": _node("VAELoader", vae_name=vae),
        "text": clip,
    }
    return {**loaders, "model": ["unet", 0], "clip": ["text", 0], "vae": ["vae_file", 0]}


def _text_encoder(names: list[str], kind: str) -> dict[str, Any]:
    if len(names) == 1:
        return _node("CLIPLoader", clip_name=names[0], type=kind)
    return _node("DualCLIPLoader", clip_name1=names[0], clip_name2=names[1], type=kind)


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}
