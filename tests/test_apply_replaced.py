"""Proves that Apply finds every layer while another clone's modules lie in the place of the model's own.

Object patches stay in the network as long as the clone that brought them is loaded; compile nodes replace whole blocks.
"""

from __future__ import annotations

import pytest
import tiny_models
import torch
from apply_world import difference, sd3_fixtures, two
from comfy_local import pack_module

state, world = sd3_fixtures(64)
BLOCK = "diffusion_model.joint_blocks.0"
LAYER = f"{BLOCK}.x_block.mlp.fc2"


class Louder(torch.nn.Module):
    """A layer × 1.25, with its sizes but not its parameters' names."""

    def __init__(self, held):
        super().__init__()
        self.held, self.in_features, self.out_features = held, held.in_features, held.out_features

    def forward(self, x):
        return self.held(x) * 1.25


def louder(model):
    model = model.clone()
    model.add_object_patch(LAYER, Louder(model.get_model_object(LAYER)))
    return model


def compiled_block(model):
    model = model.clone()
    model.add_object_patch(BLOCK, torch.compile(model.get_model_object(BLOCK), backend="eager"))
    return model


@pytest.mark.parametrize("replace", [louder, compiled_block])
def test_what_another_clone_has_loaded_makes_no_difference(world, replace):
    stack = two(world)
    expected, _, said = world.apply(*stack, mode="sum")
    expected = tiny_models.sample(expected)
    family = pack_module("nodes.bridge_paths").model_family(world.model).name
    tiny_models.sample(replace(world.model))
    there = world.model.model.get_submodule(LAYER if replace is louder else BLOCK)
    assert "held" in dict(there.named_children()) or "_orig_mod" in dict(there.named_children())
    assert pack_module("nodes.bridge_paths").model_family(world.model).name == family
    model, _, report = world.apply(*stack, mode="sum")
    assert report == said
    assert world.model.model.get_submodule(LAYER if replace is louder else BLOCK) is there
    assert tiny_models.sample(model).equal(expected)


def test_before_and_behind_a_replaced_layer(world):
    """Both orders, whatever was loaded before; the branch is beside what the other pack made of the layer."""
    stack = two(world)
    before = louder(world.fused(*stack, mode="sum"))
    one = tiny_models.sample(before)
    behind = world.fused(*stack, mode="sum", model=louder(world.model))
    assert tiny_models.sample(behind).equal(one) and tiny_models.sample(before).equal(one)
    base = tiny_models.sample(world.model)
    assert difference(one, base) > 0.05 and difference(one, tiny_models.sample(louder(world.model))) > 0.05
    assert difference(one, tiny_models.sample(world.fused(*stack, mode="sum"))) > 1e-3


def test_weight_patches_reach_their_layer_too(world):
    """What is no branch goes to ComfyUI's patches, which look layers up by name as well."""
    tensors = {f"{LAYER}.diff": torch.randn(64, 256, generator=torch.Generator().manual_seed(1)) * 0.3}
    stack = ((world.file("diff.safetensors", tensors), 1.0),)
    expected = tiny_models.sample(world.fused(*stack))
    base = tiny_models.sample(world.model)
    tiny_models.sample(louder(world.model))
    assert tiny_models.sample(world.fused(*stack)).equal(expected) and difference(expected, base) > 1e-3
