"""Proves that a LoRA that is applied does not stay mapped: a trainer that writes over its file would end ComfyUI."""

from __future__ import annotations

import os

import pytest
import tiny_models
from apply_world import difference, sd3_fixtures
from windows_disk import MAPS, is_held

state, world = sd3_fixtures(64)
pytestmark = pytest.mark.skipif(not MAPS.exists(), reason="what is mapped is asked of Linux")


@pytest.mark.parametrize("mode", ["sum", "ties", "np"])
def test_a_file_may_be_cut_off_while_its_lora_is_in_use(world, mode):
    stack = [(world.lora(f"{name}.safetensors", seed=seed), 0.8) for seed, name in enumerate("ab")]
    model = world.fused(*stack, mode=mode)
    assert not any(is_held(world.loras / name) for name, _ in stack)
    before = tiny_models.sample(model)
    for name, _ in stack:
        os.truncate(world.loras / name, 100)
    assert difference(tiny_models.sample(model.clone()), before) == 0
