"""Proves that Render LoRA Previews works inside real ComfyUI, on a small model: pictures with each LoRA beside those
without, nothing rendered twice, and what cannot be rendered named."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_models
import torch
from apply_world import World, untouched
from comfy_local import pack_module
from test_train_gate_comfy import Halves, clip_for
from windows_disk import make_windows_disk

LAYERS, PROMPTS = "x_block", "a picture\na thing"


@pytest.fixture(scope="module")
def small(comfy, tmp_path_factory):
    """Model, LoRAs and their index, once."""
    import comfy.model_management
    import folder_paths

    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():  # as ComfyUI runs nodes
        folder, state = tmp_path_factory.mktemp("previews"), tiny_models.sd3_state(64)
        made = World(folder, state, tiny_models.load(state), patch)
        made.clip, made.vae = clip_for("sd3"), Halves()
        patch.setattr(folder_paths, "get_user_directory", lambda: str(folder / "user"))
        folder_paths.filename_list_cache.clear()
        for seed, name in enumerate(("otter", "paper", "castle")):
            made.lora(f"{name}.safetensors", LAYERS, seed=seed, scale=0.4)
        parts = ("x_block", "context_block")
        wide = {f"diffusion_model.joint_blocks.0.{part}.attn.qkv": (7296, 2432) for part in parts}
        tiny_models.save_lora(made.loras / "large.safetensors", wide, 2)
        made.index = indexed()
        yield made
    comfy.model_management.unload_all_models()
    folder_paths.filename_list_cache.clear()


@pytest.fixture
def world(small, monkeypatch):
    import comfy.sample

    plain, small.sampled = comfy.sample.sample, []
    monkeypatch.setattr(comfy.sample, "sample", lambda *args, **how: small.sampled.append(1) or plain(*args, **how))
    shutil.rmtree(shelf(small).folder, ignore_errors=True)
    return small


def indexed() -> dict:
    node = pack_module("nodes.encode_library").AutoLoRAEncodeLibrary()
    return node.encode(folder="loras", name_filter="", library="small", force=False)["result"][0]


def render(world: World, **more):
    node = pack_module("nodes.render_previews").AutoLoRARenderPreviews()
    small = {"prompts": PROMPTS, "steps": 2, "cfg": 1.0, "width": 32, "height": 32, "names": "-large"}
    with torch.inference_mode():
        return node.render(world.index, world.model, world.clip, world.vae, **(small | more))["result"]


def shelf(world: World):
    return pack_module("autolora_core.previews.shelf").PreviewShelf(world.index["folder"])


def changed(world: World):
    return pack_module("nodes.render_previews").AutoLoRARenderPreviews.IS_CHANGED(seed=1)


def test_every_lora_is_rendered_once(world):
    before, state = tiny_models.sample(world.model), changed(world)
    world.sampled.clear()
    index, sheet, report = render(world, images_kept=2)
    assert len(world.sampled) == 2 + 3 * 2 and "3 LoRAs rendered on 2 prompts" in report, report
    assert index["folder"] == world.index["folder"] and sheet.shape[0] == 1 and sheet.shape[3] == 3
    assert untouched(world.model) and tiny_models.sample(world.model).equal(before)
    kept = shelf(world)
    keys = list(kept.rendered())
    assert len(keys) == 3 and all(len(kept.pictures(key)) == 2 for key in keys)
    directions = pack_module("autolora_core.previews.shelf").preview_vectors(kept).matrix
    assert directions.shape == (3, 16 * 64) and np.abs(directions @ directions.T - np.eye(3)).max() < 0.9
    assert changed(world) != state, "ComfyUI asks again after a run that rendered something"
    world.sampled.clear()
    again = render(world, images_kept=2)
    assert not world.sampled and "3 had been rendered so before" in again[2] and again[1].equal(sheet)
    assert len(render(world, seed=1)[2]) and len(world.sampled) == 8, "another seed is another preview"


def test_the_picture_is_that_of_the_sampler(world):
    """With a stock loader's LoRA the same picture comes out."""
    render(world, names="otter", prompts="a picture")
    record = shelf(world).record(next(shelf(world).rendered()))
    vectors = []
    latent = torch.zeros(1, 16, 4, 4)
    import comfy.sample

    for model in (world.model, world.stock(("otter.safetensors", 1.0))):
        cond = [world.clip.encode_from_tokens_scheduled(world.clip.tokenize(text)) for text in ("a picture", "")]
        with torch.inference_mode():
            noise = comfy.sample.prepare_noise(latent, 0, None)
            out = comfy.sample.sample(
                model, noise, 2, 1.0, "euler", "normal", *cond, latent, disable_pbar=True, seed=0
            )  # fmt: skip
            scaled = world.model.model.process_latent_in(out.float())
        vectors.append(pack_module("autolora_core.previews.difference").latent_vector(scaled))
    change = vectors[1] - vectors[0]
    assert np.linalg.norm(change) > 1e-3
    assert np.abs(record.vectors["latents"][0] - change).max() < 1e-3 * np.abs(change).max()


def test_what_cannot_be_rendered_is_named_and_the_rest_goes_on(world):
    world.file("broken.safetensors", {"lora.weight": torch.zeros(1)})
    names = ("large.safetensors", "otter.safetensors", "gone.safetensors", "broken.safetensors")
    _, _, report = render(world, lora_stack=[(name, 1.0, 1.0) for name in names])
    assert "1 LoRA rendered" in report, report
    refused = next(line for line in report.splitlines() if line.startswith("- large.safetensors"))
    assert "does not fit this model" in refused and "width" in refused, report
    assert "- gone.safetensors: the LoRA file gone.safetensors is not in any" in report
    assert any(line.startswith("- broken.safetensors: ") for line in report.splitlines()), report


def test_a_lora_that_cannot_be_sampled_ends_nothing(world, monkeypatch):
    camera = pack_module("nodes.bridge_previews").ModelCamera
    plain = camera._decoded

    def decoded(self, latent):
        if self.model is not self.base[0] and len(world.sampled) == 3:
            raise RuntimeError("mat1 and mat2 cannot be multiplied")
        return plain(self, latent)

    monkeypatch.setattr(camera, "_decoded", decoded)
    _, _, report = render(world)
    assert "2 LoRAs rendered" in report and "it could not be sampled (mat1 and mat2" in report, report


def test_cancelling_keeps_what_is_finished(world, monkeypatch):
    import comfy.model_management

    stopped = comfy.model_management.InterruptProcessingException

    def ask():
        if len(world.sampled) >= 5:
            raise stopped

    monkeypatch.setattr(pack_module("nodes.bridge_paths"), "throw_if_interrupted", ask)
    with pytest.raises(stopped):
        render(world)
    assert len(list(shelf(world).rendered())) == 1
    monkeypatch.undo()


def test_nothing_to_render_is_an_error(world):
    fix = "What to do: connect an index"
    with pytest.raises(Exception, match=f"no LoRA to render: the selection and the stack are empty.*{fix}"):
        render(world, lora_stack=[("None", 1.0, 1.0)])
    with pytest.raises(Exception, match=f"none for sd3 whose name passes “nobody”.*{fix}"):
        render(world, names="nobody")
    with pytest.raises(Exception, match="no prompt to render"):
        render(world, prompts=" \n")
    with pytest.raises(Exception, match="strength 0 shows no LoRA"):
        render(world, strength=0.0)


def test_a_clip_looks_at_the_pictures(world, monkeypatch):
    looked = []

    def encode(pictures):
        looked.extend(pictures)
        return np.stack([np.array([float(p.mean()), 1.0], np.float32) for p in pictures])

    tower = SimpleNamespace(id="clip-image-small", encode=encode)
    monkeypatch.setattr(pack_module("nodes.render_previews"), "clip_tower", lambda choice, key: tower)
    render(world, names="otter", image_clip="clip_vision/small.safetensors")
    assert len(looked) == 4 and looked[0].shape == (32, 32, 3) and 0 <= float(looked[0].min())
    record = shelf(world).record(next(shelf(world).rendered()))
    assert record.towers == {"clip": "clip-image-small", "latents": "latents"}
    assert np.abs(record.vectors["clip"][0, 0] - float(looked[2].mean() - looked[0].mean())) < 1e-6


def test_a_run_that_an_open_file_cut_short_goes_on_when_queued_again(world, monkeypatch):
    render(world)
    kept, portable = shelf(world), pack_module("autolora_core.portable")
    first = {key: kept.record(key).settings for key in kept.rendered()}
    render(world, strength=0.5, limit=2)
    (last,) = [key for key in kept.rendered() if kept.record(key).settings == first[key]]
    monkeypatch.setattr(portable, "WINDOWS", True)
    monkeypatch.setattr(portable, "WAITS", (0.001,) * 3)
    make_windows_disk(monkeypatch)
    state, before = kept.state, changed(world)
    with open(kept.folder / f"{last}.safetensors", "rb"):
        report = render(world, strength=0.5)[2]
    assert "Not rendered:" in report and "close it there, then queue this again" in report
    assert kept.state == state and changed(world) != before, "ComfyUI would not run it again"
    assert "1 LoRA rendered" in render(world, strength=0.5)[2] and kept.record(last).settings != first[last]
