"""Queued graphs (PROMPT), as Save Image with LoRA Info reads them: any JSON, with links in circles."""

from __future__ import annotations

import random
from pathlib import Path

from autolora_core.image_info.graph import GraphLora, facts_of
from autolora_core.image_info.parameters import HashedLora, parameters_text

from .. import mutate
from ..memory import MIB
from ..oracle import Wrong

CASES = 10_000


def _fresh() -> dict:
    def node(kind: str, **inputs: object) -> dict:
        return {"class_type": kind, "inputs": inputs}

    return {
        "1": node("UNETLoader", unet_name="sd3.safetensors", weight_dtype="default"),
        "2": node("CLIPTextEncode", clip=["9", 1], text="an otter"),
        "3": node("CLIPTextEncode", clip=["9", 1], text=["7", 0]),
        "4": node(
            "LoraLoader",
            model=["1", 0],
            clip=["9", 1],
            lora_name="otter.safetensors",
            strength_model=0.8,
            strength_clip=1.0,
        ),
        "5": node(
            "KSampler",
            model=["6", 0],
            positive=["2", 0],
            negative=["3", 0],
            seed=["8", 0],
            steps=20,
            cfg=4.5,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
            latent_image=["10", 0],
        ),
        "6": node(
            "Power Lora Loader (rgthree)",
            model=["4", 0],
            lora_1={"on": True, "lora": "fox.safetensors", "strength": 0.5},
        ),
        "7": node("StringConcatenate", string_a="blurry", string_b="bad", delimiter=", "),
        "8": node("PrimitiveInt", value=7),
        "9": node(
            "LoraManagerLoader", model=["4", 0], loras={"__value__": [{"name": "a", "strength": "0.5", "active": True}]}
        ),
        "11": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
        "12": node("AutoLoRASaveImage", images=["11", 0]),
    }


def bound(size: int) -> int:
    return 8 * MIB + 60 * size


def seeds(folder: Path) -> list[bytes]:
    return [mutate.dumped(_fresh())]


def make(rng: random.Random, parent: bytes) -> bytes:
    document = mutate.loaded(parent) if rng.random() < 0.5 else None
    document = mutate.changed(rng, document if isinstance(document, dict) else _fresh())
    if isinstance(document, dict) and rng.random() < 0.5:  # links anywhere: to itself, in circles, to nothing
        for _ in range(rng.choice((1, 2, 6))):
            body = rng.choice([one for one in document.values() if isinstance(one, dict)] or [{}])
            inputs = body.get("inputs")
            if isinstance(inputs, dict) and inputs:
                inputs[rng.choice(list(inputs))] = [
                    rng.choice([*document, "none"]),
                    rng.choice((0, 1, -1, 1e9, "0", None)),
                ]
    made = mutate.dumped(document)
    return made if len(made) <= mutate.MOST_BYTES else mutate.dumped(_fresh())


def run(data: bytes, folder: Path) -> None:
    for node_id in ("12", "5", None, 12):
        facts = facts_of(mutate.loaded(data), node_id)
        loras = [HashedLora(one.name, one.strength, one.clip_strength) for one in facts.loras]
        if not all(isinstance(one, GraphLora) and isinstance(one.name, str) for one in facts.loras):
            raise Wrong(f"a LoRA without a name: {facts.loras!r:.200}")
        text = parameters_text(facts, loras, (64, 64))
        last = text.rsplit("\n", 1)[-1]
        if "Size: 64x64" not in last:
            raise Wrong(f"the line of settings is {last!r:.200}")
