"""Proves that the node Find LoRAs Like This hands on what the searches by weights and by picture find, never the LoRA
asked for, lists the library when asked for nothing, and names what it lacks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from comfy_local import library_place, pack_module
from conftest import ROOT, emoji_factors, write_lora
from PIL import Image
from similar_files import cut_to, drifted, scaled, summed
from tiny_clip import tiny_clip


def factors(seed: int, rank: int = 3):
    """Falling singular values, on the first block."""
    made = emoji_factors(seed, rank, blocks=1)
    return {name: (down * 0.6 ** torch.arange(rank)[:, None], up) for name, (down, up) in made.items()}


def drawing(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((64, 48), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def indexed(comfy, tmp_path_factory):
    """An index of LoRAs with relations known, pictures beside some; a CLIP; ComfyUI's folders point at them."""
    base = tmp_path_factory.mktemp("like")
    a, b = factors(1), factors(2)
    related = {name: (torch.cat([d, a[name][0]]), torch.cat([u, 0.7 * a[name][1]], 1)) for name, (d, u) in b.items()}
    for name, values in {
        "a": a, "sub/a louder": scaled(a, 2), "a small": cut_to(a, 2), "a later": drifted(a, 0.2), "b": b,
        "related": drifted(related, 0.5), "a and b": summed(a, 0.6, b, 0.4),
        **{f"lora_{i:06d}": factors(i) for i in range(10, 18)},
    }.items():  # fmt: skip
        write_lora(base / "loras" / f"{name}.safetensors", values)
    for i in range(10, 18):
        Image.fromarray(drawing(i)).save(base / "loras" / f"lora_{i:06d}.preview.png")
    (base / "clip_vision").mkdir()
    tiny_clip(base / "clip_vision" / "tiny.safetensors")
    (base / "text").mkdir()
    write_lora(base / "text" / "clip_l.safetensors", {})
    with pack_module("autolora_core.library.index").Library.open(library_place(comfy, base.name)) as opened:
        opened.scan({"loras": base / "loras"})
        return json.loads(json.dumps(opened.handle)), base


@pytest.fixture
def run(comfy, indexed, monkeypatch):
    index, base = indexed
    for kind, folder in (("loras", "loras"), ("clip_vision", "clip_vision"), ("text_encoders", "text")):
        extensions = comfy.folder_names_and_paths[kind][1]
        monkeypatch.setitem(comfy.folder_names_and_paths, kind, ([str(base / folder)], extensions))
    monkeypatch.setattr(comfy, "filename_list_cache", {})
    node = pack_module("nodes.find_similar").AutoLoRAFindSimilar

    def call(**inputs):
        out = node().find(**{"index": index, **inputs})
        selection, stack, report = out["result"]
        assert out["ui"] == {"text": [report]} and json.loads(json.dumps(selection)) == selection
        pack_module("autolora_core.retrieve.selection").Selection.from_json(selection)
        assert stack == [(pick["name"], pick["strength"], pick["strength"]) for pick in selection["picks"]]
        return selection, report

    call.node = node
    return call


def names(selection: dict) -> list[str]:
    return [pick["name"].removesuffix(".safetensors") for pick in selection["picks"]]


def image(*seeds: int) -> torch.Tensor:
    return torch.stack([torch.from_numpy(drawing(seed).astype(np.float32) / 255) for seed in seeds])


def test_every_input_and_output_is_explained(run):
    groups = run.node.INPUT_TYPES()
    page = (ROOT / "web" / "docs" / "AutoLoRAFindSimilar.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {run.node.TITLE}\n") and run.node.TITLE == "Find LoRAs Like This"
    assert list(groups["required"]) == ["index"]
    for group in groups.values():
        for name, spec in group.items():
            assert len(spec[1]["tooltip"]) > 20 and f"\n| {name} |" in page
    assert all(f"\n| {name} |" in page for name in run.node.RETURN_NAMES)
    assert len(run.node.RETURN_TYPES) == len(run.node.RETURN_NAMES) == len(run.node.OUTPUT_TOOLTIPS) == 3
    assert run.node.OUTPUT_NODE and run.node.CATEGORY == "AutoLoRA" and run.node.DESCRIPTION


def test_menus_show_loras_and_clips(run):
    menus = run.node.INPUT_TYPES()["optional"]
    assert {"none", "a.safetensors"} <= set(menus["lora"][0]) and any("louder" in name for name in menus["lora"][0])
    assert menus["clip"][0] == ["none", "clip_vision/tiny.safetensors", "text_encoders/clip_l.safetensors"]


def test_other_loras_that_are_alike(run):
    selection, report = run(lora="a.safetensors")
    assert names(selection) == ["a and b", "related"] and {p["role"] for p in selection["picks"]} == {"alike"}
    assert selection["family"] == "emoji" and selection["none_reason"] is None
    assert "a small.safetensors: this one cut to a lower rank" in report
    assert "a and b.safetensors = 0.6 × a.safetensors + 0.4 × b.safetensors" in report


def test_versions_are_handed_on_when_asked_for(run):
    selection, _ = run(lora="a.safetensors", versions=True, strength=0.8, top_k=10)
    strengths = {pick["name"].split("/")[-1]: pick["strength"] for pick in selection["picks"]}
    assert "a.safetensors" not in strengths and len(strengths) == 5
    assert strengths["a louder.safetensors"] == pytest.approx(0.4, rel=1e-3)
    assert strengths["a later.safetensors"] == strengths["related.safetensors"] == 0.8
    assert len(run(lora="a.safetensors", versions=True, top_k=2)[0]["picks"]) == 2


def test_a_lora_like_no_other(run):
    selection, report = run(lora="lora_000011.safetensors")
    assert selection["picks"] == [] and selection["none_reason"] == "No other LoRA in the index is alike."
    assert "No copy and no other version" in report and "hardly alike" in report


def test_by_picture(run):
    selection, report = run(image=image(13), clip="clip_vision/tiny.safetensors", top_k=3, strength=0.5)
    assert names(selection)[0] == "lora_000013" and len(selection["picks"]) == 3
    assert selection["picks"][0]["strength"] == 0.5 and "preview is like the picture" in selection["picks"][0]["reason"]
    assert "8 with a preview picture" in report


def test_by_both(run):
    selection, report = run(lora="a.safetensors", image=image(12), clip="clip_vision/tiny.safetensors", top_k=4)
    assert {"a and b", "lora_000012"} <= set(names(selection)) and len(selection["picks"]) == 4
    assert "Like a.safetensors" in report and "Like the picture" in report


def test_with_neither_it_lists_the_library(run):
    selection, report = run()
    assert selection["picks"] == [] and "No LoRA and no picture" in selection["none_reason"]
    assert "There more than once" in report and "Merges (1):" in report and "lora_000010" not in report
    assert run(family="sdxl")[1] == "The index holds no LoRA of a known base model sdxl."


def test_what_is_missing_is_named(run):
    with pytest.raises(Exception, match="needs a CLIP with an image tower.*clip_vision"):
        run(image=image(1))
    with pytest.raises(Exception, match="gone.safetensors is gone"):
        run(image=image(1), clip="clip_vision/gone.safetensors")
    with pytest.raises(Exception, match="no image tower.*clip_l.safetensors"):
        run(image=image(1), clip="text_encoders/clip_l.safetensors")
    with pytest.raises(Exception, match="gone.safetensors is not in any"):
        run(lora="gone.safetensors")


def test_runs_again_when_a_named_file_changes(run, indexed):
    same = run.node.IS_CHANGED(index=None, lora="b.safetensors", clip="none", top_k=5)
    assert same == run.node.IS_CHANGED(index=None, lora="b.safetensors", clip="none", top_k=5)
    assert same != run.node.IS_CHANGED(index=None, lora="a.safetensors", clip="none")
    assert run.node.IS_CHANGED(index=None) == run.node.IS_CHANGED(index=None, lora=None, clip="none")


def test_cancel(run, monkeypatch):
    bridge = pack_module("nodes.bridge_paths")

    def stop() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bridge, "throw_if_interrupted", stop)
    with pytest.raises(KeyboardInterrupt):
        run(lora="a.safetensors")
