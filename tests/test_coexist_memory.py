"""Our Apply on bases that are stored in unusual ways and in little memory, on a real server.

A base of rounded weights has a twin here: a file that holds the very numbers that come out of the rounding, as plain
floats. Stock loaders on the twin are the measure, because on the rounded base they round again and ours do not.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch
from coexist_world import ALIKE, CHANGED, STACK, Scene, gap, seen, stage_fixtures
from e2e_world import forget
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.slow
FP8 = torch.float8_e4m3fn
GGUF_PACK = os.environ.get("AUTOLORA_GGUF_PACK", "")
QUANTISED = ("x_block.mlp.fc1", "x_block.attn.qkv", "context_block.mlp.fc2")


def matrices(state):
    return [name for name, value in state.items() if name.endswith(".weight") and value.ndim == 2]


def write_bases(models, _request):
    """The demo base in fp8, with fp8 layers as quantised checkpoints have them, and packed; and the twin of each."""
    state = {name: value.float() for name, value in load_file(models.root / "emoji_mmdit.safetensors").items()}
    save_file({name: value.to(FP8).float() for name, value in state.items()}, models.root / "twin_fp8.safetensors")
    write_quantised(models.root, state)
    rows = {}
    for name in matrices(state):
        scale = state[name].abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
        rows[name] = (state[name] / scale).round().to(torch.int8).float() * scale
    save_file({**state, **rows}, models.root / "twin_packed.safetensors")
    if GGUF_PACK:
        write_gguf(models.root / "emoji.gguf", state)


def write_quantised(folder, state):
    layers = [name for name in matrices(state) if name.removesuffix(".weight").endswith(QUANTISED)]
    stored, twin = dict(state), dict(state)
    for name in layers:
        scale = state[name].abs().max() / 448
        stored[name] = (state[name] / scale).to(FP8)
        stored[name.removesuffix("weight") + "weight_scale"] = scale
        twin[name] = stored[name].float() * scale
    told = {name.removesuffix(".weight"): {"format": "float8_e4m3fn"} for name in layers}
    save_file(stored, folder / "quantised.safetensors", {"_quantization_metadata": json.dumps({"layers": told})})
    save_file(twin, folder / "twin_quantised.safetensors")


def write_gguf(path, state):
    import gguf

    writer = gguf.GGUFWriter(path, "sd3")
    for name, value in state.items():
        kind = gguf.GGMLQuantizationType.Q8_0 if name in matrices(state) else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(value.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


stage, base_stays = stage_fixtures(write_bases, packs={"gguf": Path(GGUF_PACK)} if GGUF_PACK else {})


def unet(name, dtype="default"):
    return {"class_type": "UNETLoader", "unet_name": name, "weight_dtype": dtype}


class OnBase(Scene):
    """The demo base's graph with another loader."""

    def __init__(self, loader=None):
        self.loader = loader or Scene.loader
        super().__init__()


BASES = {
    "fp8": (unet("emoji_mmdit.safetensors", "fp8_e4m3fn"), unet("twin_fp8.safetensors")),
    "mixed precision": (unet("quantised.safetensors"), unet("twin_quantised.safetensors")),
    "packed": ({"class_type": "LoadPacked", "unet_name": "emoji_mmdit.safetensors"}, unet("twin_packed.safetensors")),
}


@pytest.mark.parametrize("base", BASES)
def test_rounded_weights(stage, base):
    rounded, twin = (OnBase(loader) for loader in BASES[base])
    for scene in (rounded, twin):
        scene.sample(scene.model)
    rounded.sample(rounded.ours(rounded.model, *STACK))
    rounded.sample(rounded.ours(rounded.ours(rounded.model, *STACK[:2]), STACK[2]))
    twin.sample(twin.stock(twin.model, *STACK))
    (base, one, two), (twin_base, stock) = stage.run(rounded), stage.run(twin)
    assert gap(base, twin_base) < ALIKE and gap(one, stock) < ALIKE and gap(two, stock) < ALIKE
    assert gap(one, base) > CHANGED


@pytest.mark.parametrize("base", BASES)
def test_gate_on_rounded_weights(stage, base):
    rounded, twin = (OnBase(loader) for loader in BASES[base])
    for scene in (rounded, twin):
        scene.sample(scene.ours(scene.model, *STACK, mode="gate", gate="emoji_gate.safetensors"))
    assert gap(stage.one(rounded), stage.one(twin)) < ALIKE


@pytest.mark.skipif(not GGUF_PACK, reason="AUTOLORA_GGUF_PACK does not name a folder with the GGUF loader pack")
@pytest.mark.skipif(not importlib.util.find_spec("gguf"), reason="the GGUF pack needs the package gguf")
def test_the_real_gguf_loader(stage):
    """city96's pack: it adds stock LoRAs to the unpacked weight in every forward, so both must agree on one base."""
    scene = OnBase({"class_type": "UnetLoaderGGUF", "unet_name": "emoji.gguf"})
    a, b, c = STACK
    scene.sample(scene.model)
    scene.sample(scene.ours(scene.model, *STACK))
    scene.sample(scene.stock(scene.model, *STACK))
    scene.sample(scene.ours(scene.stock(scene.model, c), a, b))
    scene.sample(scene.stock(scene.ours(scene.model, a, b), c))
    base, ours, stock, behind, before = stage.run(scene)
    assert gap(ours, stock) < ALIKE and gap(before, stock) < ALIKE and before.tobytes() == behind.tobytes()
    assert gap(ours, base) > CHANGED


LOADS = {
    "alone": (lambda s: s.ours(s.model, *STACK), 0),
    "behind a stock LoRA": (lambda s: s.ours(s.stock(s.model, STACK[2]), *STACK[:2]), 1),
    "gated, before a stock LoRA": (
        lambda s: s.stock(s.ours(s.model, *STACK[:2], mode="gate", gate="emoji_gate.safetensors"), STACK[2]),
        1,
    ),
    "two of ours": (lambda s: s.ours(s.ours(s.model, *STACK[:2]), STACK[2]), 0),
}


@pytest.mark.parametrize("case", LOADS)
def test_partial_load(stage, case):
    """Base and factors are streamed layer by layer; stock patches are put off until their layer is used."""
    build, patched = LOADS[case]
    scene = Scene()
    scene.sample(build(scene))
    ample = stage.one(scene)
    scene = Scene()
    (shown, _) = scene.add("SeeMemory", after=scene.sample(scene.add("LittleMemory", model=build(scene))))
    stage.know(scene)
    result = stage.server.run(scene.graph)
    told = json.loads(result.text(shown))
    assert told["streamed"] >= 2 and (told["patched"] > 0) == bool(patched)
    assert gap(seen(scene.graph, result.outputs)[0], ample) < ALIKE


@pytest.mark.parametrize("how", ["unload_all_models", "free_memory"])
def test_unloaded_between_two_samplers(stage, how):
    def twice(between):
        scene = Scene()
        model = scene.ours(scene.stock(scene.model, STACK[2]), *STACK[:2])
        first = scene.sample(model)
        samples = scene.add("UnloadAll", samples=first, how=how) if between else first
        scene.sample(model, latent_image=samples, denoise=0.6, seed=8)
        return stage.run(scene)

    undisturbed = twice(False)
    disturbed = twice(True)
    assert [one.tobytes() for one in disturbed] == [one.tobytes() for one in undisturbed]
    assert gap(disturbed[1], disturbed[0]) > CHANGED


def test_everything_freed_between_two_runs(stage):
    """POST /free drops models and results; the same graph draws the same."""

    def fused():
        scene = Scene()
        scene.sample(scene.ours(scene.model, *STACK, mode="gate", gate="emoji_gate.safetensors"))
        return stage.one(scene)

    before = fused()
    forget(stage.server)
    assert fused().tobytes() == before.tobytes()
