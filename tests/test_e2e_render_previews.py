"""Encode → Render LoRA Previews → Retrieve on a real ComfyUI server with the demo model: a run that was limited goes
on, one that is complete is not repeated, and what was rendered can be asked."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_lora
from e2e_world import levels, need_demo_models, node, ran
from PIL import Image

from scripts._lib.server import DEMO_MODELS, PACK_NAME, REPO, ComfyServer

pytestmark = pytest.mark.slow

LORAS = ("bell-mellow", "blueprint-tern", "bug-lumen", "cherry-blossom-lumen", "emojione-monotone-juniper")
# Set to a folder to have the sheet, to look at it.
PICTURES = os.environ.get("AUTOLORA_SCREENSHOTS", "")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    need_demo_models()
    loras = tmp_path_factory.mktemp("models") / "loras"
    loras.mkdir()
    for name in LORAS:
        shutil.copy(DEMO_MODELS["loras"][0] / f"{name}.safetensors", loras)
    factors = {
        f"double_blocks.0.{part}.qkv": (torch.ones(2, 3072), torch.ones(9216, 2)) for part in ("img_attn", "txt_attn")
    }
    write_lora(loras / "for_flux.safetensors", factors)
    models = {**DEMO_MODELS, "loras": [loras]}
    with ComfyServer(tmp_path_factory.mktemp("e2e"), models=models, packs={PACK_NAME: REPO}) as server:
        yield server


def graph(**render):
    usual = {
        "prompts": "a picture\nan animal", "seed": 0, "steps": 6, "cfg": 4.0, "sampler_name": "euler",
        "scheduler": "simple", "width": 128, "height": 128, "strength": 1.0, "limit": 0, "images_kept": 2,
        "index": ["encode", 0], "model": ["unet", 0], "clip": ["clip", 0], "vae": ["vae", 0],
    }  # fmt: skip
    return {
        "unet": node("UNETLoader", unet_name="emoji_mmdit.safetensors", weight_dtype="default"),
        "clip": node("AutoLoRAMiniLMCLIPLoader"),
        "vae": node("VAELoader", vae_name="emoji_vae.safetensors"),
        "encode": node("AutoLoRAEncodeLibrary", folder="loras", name_filter="", library="seen", force=False),
        "render": node("AutoLoRARenderPreviews", **(usual | render)),
        "report": node("PreviewAny", source=["render", 2]),
        "sheet": node("SaveImage", images=["render", 1], filename_prefix="sheet"),
    }


def retrieval(previews: str) -> dict:
    inputs = {
        "index": ["render", 0], "prompt": "a bell", "family": "auto", "top_k": 3, "threshold": 0.5, "strength": 1.0,
        "pinned": "", "banned": "", "use_weights": True, "use_text": True, "model": ["unet", 0], "previews": previews,
    }  # fmt: skip
    return {"retrieve": node("AutoLoRARetrieve", **inputs), "told": node("PreviewAny", source=["retrieve", 3])}


def test_previews_on_the_demo_model(server):
    report = server.run(graph(limit=3)).text("report")
    assert "3 LoRAs rendered on 2 prompts (128 × 128" in report and "2 LoRAs left: queue it again" in report, report
    assert "for another base model: for_flux.safetensors" in report, report
    second = server.run(graph(limit=3))
    assert "2 LoRAs rendered" in second.text("report") and "render" in ran(second), "the same graph goes on"
    whole = server.run(graph())
    report = whole.text("report")
    assert "0 LoRAs rendered" in report and "5 had been rendered so before" in report, report
    again = server.run(graph())
    assert again.text("report") == report and "render" not in ran(again), "nothing is left to do"
    folder = server.base / "user" / "autolora" / "seen" / "previews"
    records = [path for path in folder.glob("*.safetensors") if not path.name.startswith("without-")]
    assert len(records) == 5 and all((folder / f"{path.stem}-2.webp").exists() for path in records)
    sheet = server.client.fetch(whole.images("sheet")[0])
    _keep(sheet)
    assert levels(sheet).std() > 20
    without = read(next(folder.glob("without-*[0-9a-f].webp")))
    apart = [np.abs(read(path.with_suffix(".webp")) - without).mean() for path in records]
    assert min(apart) > 2, f"every LoRA changes the picture: {apart}"
    asked = server.run(graph() | retrieval("learned"))
    told = asked.text("told")
    assert "Previews were not used: only" in told and "bell-mellow" in told, told
    assert "Previews" not in server.run(graph() | retrieval("off")).text("told")


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def _keep(sheet: bytes) -> None:
    if PICTURES:
        Path(PICTURES, "previews.png").write_bytes(sheet)
