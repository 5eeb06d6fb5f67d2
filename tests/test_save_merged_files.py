"""Proves that what cannot be saved is refused by name, and that a merged LoRA's file is whole, found, and its own."""

from __future__ import annotations

import hashlib
import json

import pytest
import tiny_models
from apply_world import clip_fixtures, difference, sd3_fixtures, two
from comfy_local import ROOT, pack_module
from merged_world import gap, layer, metadata, normal, patched, save
from methods_world import FC1, picked, selection

state, world = sd3_fixtures(64)
errors, clip_l = clip_fixtures()


NOT_ADDITIVE = {
    "DoRA": layer("{}", 256, 64) | {"{}.dora_scale": normal(256, 1) + 1},
    "replaced": {"{}.set_weight": normal(256, 64)},
    "oft": {"{}.oft_blocks": normal(4, 64, 64)},
}


@pytest.mark.parametrize("kind", NOT_ADDITIVE)
def test_what_depends_on_the_base_is_refused_by_name(world, errors, kind):
    file = {key.format(f"diffusion_model.{FC1}"): value for key, value in NOT_ADDITIVE[kind].items()}
    a, odd = world.lora("a.safetensors"), world.file("odd.safetensors", file)
    with pytest.raises(errors.UnsupportedAdapterError, match=f"odd.safetensors cannot.*{FC1}.*{kind}"):
        save(world, (a, 1.0), (odd, 1.0))
    for strengths in ((0.0, 0.0), (0.0, 1.0)):
        name, _ = save(world, lora_stack=[(a, 1.0, 1.0), (odd, *strengths)])
        assert gap(patched(world.stock((name, 1.0))), patched(world.stock((a, 1.0)))) <= 1e-6


def test_dora_of_the_text_encoder_is_refused(world, errors, clip_l):
    te = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    file = layer(te, 128, 64) | {f"{te}.dora_scale": normal(128, 1) + 1} | layer(f"diffusion_model.{FC1}", 256, 64)
    with pytest.raises(errors.UnsupportedAdapterError, match="dora.safetensors.*mlp.fc1.*DoRA"):
        save(world, (world.file("dora.safetensors", file), 1.0), clip=clip_l)


def test_a_difference_of_another_size_is_another_base(world, errors):
    name = world.file("wrong.safetensors", {f"diffusion_model.{FC1}.diff": normal(128, 64)})
    with pytest.raises(errors.FamilyError, match=f"wrong.safetensors.*{FC1}"):
        save(world, (name, 1.0))


def test_nothing_to_save(world, errors):
    a = world.lora("a.safetensors")
    for stack in ((), ((a, 0.0),), ((a, 1.0), (a, -1.0))):
        with pytest.raises(errors.SelectionError, match="nothing to save"):
            save(world, *stack)
    with pytest.raises(errors.SelectionError, match="nothing to save"):
        save(world, (a, 1.0), strength=0.0)


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/../../x", "C:\\x", ""])
def test_names_outside_the_folder_are_refused_before_any_work(world, errors, name, monkeypatch):
    monkeypatch.setattr(pack_module("nodes.bridge_save_merged"), "prepare", lambda *_: pytest.fail("work"))
    with pytest.raises(errors.SelectionError, match="name"):
        save(world, (world.lora("a.safetensors"), 1.0), name=name)


def test_nothing_is_overwritten_unless_asked(world, errors):
    a, b = world.lora("a.safetensors", seed=1), world.lora("b.safetensors", seed=2)
    first = save(world, (a, 1.0), name="a")[0]
    assert first == "a_00001.safetensors" and save(world, (b, 1.0), name="a")[0] == "a_00002.safetensors"
    before = (world.loras / first).read_bytes()
    assert save(world, (b, 0.5), name="a_00001", overwrite=True)[0] == first
    assert (world.loras / first).read_bytes() != before
    assert gap(patched(world.stock((first, 1.0))), patched(world.stock((b, 0.5)))) <= 1e-6
    with pytest.raises(errors.SelectionError, match="a.safetensors would be overwritten"):
        save(world, (a, 1.0), name="a", overwrite=True)


def test_an_interrupt_leaves_nothing(world, monkeypatch):
    stack, paths = two(world), pack_module("nodes.bridge_paths")
    before, calls = sorted(world.loras.rglob("*")), []

    class Stopped(Exception):
        pass

    def stop():
        calls.append(1)
        if len(calls) == 4:
            raise Stopped

    monkeypatch.setattr(paths, "throw_if_interrupted", stop)
    with pytest.raises(Stopped):
        save(world, *stack, name="mix")
    assert sorted(world.loras.rglob("*")) == before
    monkeypatch.setattr(paths, "throw_if_interrupted", lambda: None)
    for name in ("os.link", "os.replace"):  # a disk that knows links, and one that does not
        monkeypatch.setattr(name, lambda *_: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(pack_module("autolora_core.errors").LoraError, match="cannot be written: no space"):
        save(world, *stack, name="mix")
    assert sorted(world.loras.rglob("*")) == before


def test_the_file_tells_where_it_comes_from(world):
    (a, _), (b, _) = two(world)
    chosen = selection(picked(a, "subject", ("wet otter",)), picked(b, "style", ("rough paper",)))
    name, _ = save(world, mode="np", selection=chosen, lora_stack=None, mu=0.3, name="otters/Paper Otter")
    found = metadata(world, name)
    made = json.loads(found["autolora.merged"])
    assert [one["name"] for one in made["loras"]] == [a, b] and made["mode"] == "np" and made["settings"]["mu"] == 0.3
    assert made["loras"][0]["sha256"] == hashlib.sha256((world.loras / a).read_bytes()).hexdigest()
    assert found["modelspec.title"] == "Paper Otter"
    assert found["modelspec.trigger_phrase"] == "wet otter, rough paper"
    key = f"diffusion_model.{FC1}"
    c = world.file("c.safetensors", layer(key, 256, 64), {"modelspec.trigger_phrase": "fox"})
    assert metadata(world, save(world, (c, 1.0))[0])["modelspec.trigger_phrase"] == "fox"


def test_stock_comfyui_knows_every_key(world, caplog):
    """It warns of keys that it does not load, and of updates that find no weight."""
    (a, _), (b, _) = two(world)
    c = world.file("c.safetensors", {f"diffusion_model.{FC1}.diff_b": normal(256)})
    for mode in ("sum", "ties"):
        name, _ = save(world, (a, 1.0), (b, 1.0), (c, 1.0), mode=mode)
        caplog.clear()
        world.stock((name, 1.0))
        assert not [record for record in caplog.records if "loaded" in record.message.lower()]
    caplog.clear()
    world.stock((world.file("odd.safetensors", {"diffusion_model.nowhere.diff": normal(4)}), 1.0))
    assert "lora key not loaded" in caplog.text


def test_the_pack_reads_it_back(world):
    """As any LoRA: applied again, merged again, with the same update."""
    a, b = two(world)
    dense = save(world, a, b, mode="ties", name="dense")[0]
    again = save(world, (dense, 1.0), name="again")[0]
    assert gap(patched(world.stock((again, 1.0))), patched(world.stock((dense, 1.0)))) <= 1e-6
    first = save(world, a, b, name="first")[0]
    second = save(world, (first, 2.0), name="second")[0]
    assert gap(patched(world.stock((second, 0.5))), patched(world.stock(a, b))) <= 1e-6
    fused, _, report = world.apply((first, 1.0), mode="sum")
    assert "not in this model" not in report
    assert difference(tiny_models.sample(fused), tiny_models.sample(world.stock(a, b))) <= 1e-4


def test_the_model_is_not_touched(world):
    before = tiny_models.sample(world.model)
    save(world, *two(world), mode="ties")
    assert tiny_models.sample(world.model).equal(before) and not world.model.patches


def test_every_input_is_explained(world):
    node = pack_module("nodes.save_merged").AutoLoRASaveMerged
    page = (ROOT / "web" / "docs" / "AutoLoRASaveMerged.md").read_text("utf-8")
    for group in node.INPUT_TYPES().values():
        for name, spec in group.items():
            assert len(spec[1]["tooltip"]) > 20 and f"\n| {name} |" in page
    assert all(f"\n| {name} |" in page for name in node.RETURN_NAMES)
    assert node.DESCRIPTION and len(node.OUTPUT_TOOLTIPS) == len(node.RETURN_TYPES) and node.OUTPUT_NODE
