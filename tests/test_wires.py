"""Proves that what arrives at MODEL, CLIP or VAE and is none is refused in words: which input, what it is, what to do;
and that a picture is saved all the same."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import tiny_models
import torch
from apply_world import sd3_fixtures, two
from comfy_local import library_place, pack_module
from conftest import emoji_factors, write_lora
from word_clip import WordClip

state, world = sd3_fixtures(64)
CLIP_VISION = SimpleNamespace(encode_image=len, model=torch.nn.Linear(2, 2))
WRONG = [
    (None, "nothing (None)"), (WordClip(), "a CLIP"), ({"samples": torch.zeros(1)}, "a LATENT"),
    (torch.zeros(1, 2, 2, 3), "a picture or mask"), ([[torch.zeros(1), {}]], "CONDITIONING"),
    (CLIP_VISION, "a CLIP_VISION"), ("model", "of the type str"), (torch.nn.Linear, "the class Linear"),
    (SimpleNamespace(decode=len, encode=len), "a VAE"),
]  # fmt: skip


@pytest.fixture
def errors(comfy):
    return pack_module("autolora_core.errors")


@pytest.mark.parametrize(("given", "what"), WRONG, ids=[what for _, what in WRONG])
def test_what_is_no_model_is_refused_by_every_node_that_takes_one(world, errors, given, what):
    stack = [(two(world)[0][0], 1.0, 1.0)]
    asked = {
        "gated_apply.AutoLoRAGatedApply": lambda node: node.run(model=given, lora_stack=stack),
        "conflict_report.AutoLoRAConflictReport": lambda node: getattr(node, node.FUNCTION)(
            model=given, lora_stack=stack, mode="sum", gate="auto", strength=1.0
        ),
        "save_merged.AutoLoRASaveMerged": lambda node: getattr(node, node.FUNCTION)(
            model=given, name="x", mode="sum", dtype="float16", strength=1.0, lora_stack=stack
        ),
        "heat_map.AutoLoRAGateHeatMap": lambda node: node.show(given, {}),
        "render_previews.AutoLoRARenderPreviews": lambda node: node.render({}, given, None, None, "a thing"),
        "train_gate.AutoLoRATrainFusionGate": lambda node: getattr(node, node.FUNCTION)(given, None, None),
    }
    for name, ask in asked.items():
        module, _, kind = name.partition(".")
        with pytest.raises(errors.InputError) as caught:
            ask(getattr(pack_module(f"nodes.{module}"), kind)())
        assert f"the input model needs a MODEL, but what arrives there is {what}" in str(caught.value), name
        assert "connect the MODEL of a loader" in caught.value.fix and caught.value.key == "model"


def test_retrieve_refuses_a_clip_in_the_place_of_a_model(comfy, errors, tmp_path):
    write_lora(tmp_path / "loras" / "otter.safetensors", emoji_factors(0, blocks=1))
    with pack_module("autolora_core.library.index").Library.open(library_place(comfy, tmp_path.name)) as library:
        library.scan({"loras": tmp_path / "loras"})
        index = library.handle
    node = pack_module("nodes.retrieve").AutoLoRARetrieve()
    inputs = (index, "an otter", "auto", 3, 0.5, 1.0, "", "", True, True)
    with pytest.raises(errors.InputError, match=r"the input model needs a MODEL, .* a CLIP\. What to do"):
        node.retrieve(*inputs, model=WordClip())
    assert node.retrieve(*inputs, model=None)["result"][0]["picks"], "an input that is left open is no wrong one"


def test_a_clip_and_a_vae_are_told_by_their_inputs(world, errors):
    (name, strength), _ = two(world)
    apply = pack_module("nodes.gated_apply").AutoLoRAGatedApply().apply
    with pytest.raises(errors.InputError, match="input clip needs a CLIP that takes LoRAs, .* is a MODEL"):
        apply(world.model, "sum", lora_stack=[(name, strength, strength)], clip=world.model)
    with pytest.raises(errors.InputError, match="input clip needs a CLIP, .* Load CLIP"):
        pack_module("nodes.clip_tower").ClipTower(CLIP_VISION)
    render = pack_module("nodes.render_previews").AutoLoRARenderPreviews().render
    with pytest.raises(errors.InputError, match="input vae needs a VAE, .* is a CLIP"):
        render({}, world.model, WordClip(), WordClip(), "a thing")


def test_a_patcher_without_a_diffusion_model_is_called_so(world, errors):
    """As a node of another pack may hand on a patcher of something else, under the name MODEL."""
    hollow = world.model.clone()
    hollow.model = copy.copy(hollow.model)
    hollow.model._modules = {}
    require = pack_module("nodes.wires").require_model
    with pytest.raises(errors.InputError, match="a ModelPatcher.* without a diffusion model"):
        require(hollow)
    require(world.model)


def test_a_model_of_no_known_base_is_refused_by_what_does_not_fit(world, errors):
    (name, strength), _ = two(world)
    strange = world.model.clone()
    strange.model = copy.copy(strange.model)
    strange.model._modules = {**strange.model._modules, "diffusion_model": torch.nn.Sequential(torch.nn.Linear(4, 4))}
    apply = pack_module("nodes.gated_apply").AutoLoRAGatedApply().apply
    with pytest.raises(errors.AutoLoRAError) as caught:
        apply(strange, "sum", lora_stack=[(name, strength, strength)])
    assert name in str(caught.value) and caught.value.fix


def test_a_picture_is_saved_whatever_arrives_at_model(world):
    """It has been sampled: what was wrong is said beside it."""
    told = pack_module("nodes.bridge_save_image")
    facts = pack_module("autolora_core.image_info.graph").facts_of({}, None)
    found = told.tell(WordClip(), world.model, facts, (8, 8), {}, False)
    assert "Size: 8x8" in found.parameters
    for words in ("the input model is a CLIP, not a MODEL", "the input clip is a MODEL, not a CLIP"):
        assert any(words in note for note in found.notes), found.notes


def test_real_things_are_what_they_are(world):
    wires = pack_module("nodes.wires")
    assert wires.is_model(world.model) and not wires.is_clip(world.model) and not wires.is_vae(world.model)
    assert not wires.is_model(tiny_models) and wires.what_it_is(world.model) == "a MODEL"
