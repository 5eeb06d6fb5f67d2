"""Proves that many LoRAs trained at once are the LoRAs one by one, and that every written format reads back as the same update."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from autolora_core.lora.file import LoraFile
from zoo.lora_export import FORMATS, write
from zoo.lora_plan import ATTENTION, CONTEXT, CREATORS, MLP, Creator, LoraSpec
from zoo.lora_variants import first_blocks, refactorised
from zoo.mmdit import MMDiT
from zoo.multi_lora import StackedAdam, StackedAdapters, target_layers

RECIPES = (
    Creator("one", 2, 1.0, 1e-2, 5, (ATTENTION, MLP, CONTEXT), "kohya", "float32"),
    Creator("two", 3, 0.5, 1e-2, 3, (ATTENTION,), "diffusers", "float32", "sign"),
)


def trained() -> tuple[MMDiT, StackedAdapters]:
    """Two adapters after five steps on a random objective."""
    model = MMDiT()
    for p in model.parameters():
        if p.abs().sum() == 0:
            torch.nn.init.normal_(p, std=0.05)
    model.requires_grad_(False)
    adapters = StackedAdapters(model, 2, 4)
    adapters.reset(RECIPES, (1, 2))
    optimiser = StackedAdam(adapters, RECIPES)
    for step in range(1, 6):
        model(*inputs(4)).square().mean().backward()
        optimiser.step(step)
    return model, adapters


def inputs(n: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(n, 16, 8, 8), torch.rand(n), torch.randn(n, 24, 384), torch.randn(n, 384)


@pytest.fixture(scope="module")
def both() -> tuple[MMDiT, StackedAdapters]:
    torch.manual_seed(0)
    return trained()


def spec(creator: Creator) -> LoraSpec:
    return LoraSpec("000", "otter", None, creator, "rich", "x.safetensors", 0)


def test_stacked_equals_each_lora_merged(both):
    model, adapters = both
    x, t, context, pooled = inputs(4)
    together = model(x, t, context, pooled)
    for k, creator in enumerate(RECIPES):
        alone = MMDiT()
        alone.load_state_dict(model.state_dict())
        for name, (down, up) in adapters.factors(k, creator).items():
            alone.get_submodule(name).weight.data += creator.alpha * up @ down
        mine = slice(2 * k, 2 * k + 2)
        assert (alone(x[mine], t[mine], context[mine], pooled[mine]) - together[mine]).abs().max() < 1e-4


def test_padding_and_absent_layers_stay_exactly_zero(both):
    model, adapters = both
    for name, kind in target_layers(model).items():
        key = name.replace(".", "/")
        assert not adapters.down[key][0, 2:].any() and not adapters.up[key][0, :, 2:].any()
        assert adapters.down[key][1].any() == (kind == ATTENTION)


def test_a_lora_stops_after_its_own_steps(both):
    _, adapters = both
    rates = StackedAdam(adapters, RECIPES).rates(4)
    assert rates[0] > 0 and rates[1] == 0


@pytest.mark.parametrize("keys", sorted(FORMATS))
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda c: c.name)
def test_every_format_reads_back_as_the_same_update(both, tmp_path, keys, recipe):
    factors = both[1].factors(RECIPES.index(recipe), recipe)
    path = write(factors, spec(replace(recipe, keys=keys)), tmp_path / "x.safetensors")
    file = LoraFile.open(path)
    assert file.family.name == "emoji" and not file.keys.unknown
    read = {u.module: u.delta() for u in file.updates()}
    for name, (down, up) in factors.items():
        wanted = recipe.alpha * up.double() @ down.double()
        parts = [read[m] for m in sorted(read, key=_start) if m.split("[")[0] == name]
        assert (torch.cat(parts) - wanted).abs().max() < 1e-6


def _start(module: str) -> tuple[str, int]:
    name, _, rest = module.partition("[")
    return name, int(rest.split(":")[0]) if rest else 0


def test_refactorised_is_the_same_update_in_other_numbers(both):
    factors = both[1].factors(0, RECIPES[0])
    for name, (down, up) in refactorised(factors).items():
        assert (down - factors[name][0]).abs().max() > 1e-3
        assert (up @ down - factors[name][1] @ factors[name][0]).abs().max() < 1e-5


def test_first_blocks_is_partial(both, tmp_path):
    factors = first_blocks(both[1].factors(0, RECIPES[0]))
    file = LoraFile.open(write(factors, spec(RECIPES[0]), tmp_path / "x.safetensors"))
    assert file.partial and "2 of 4" in file.partial


def test_creators_differ_in_recipe_and_format():
    assert {c.keys for c in CREATORS} == set(FORMATS)
    assert len({c.rank for c in CREATORS}) >= 5 and len({c.layers for c in CREATORS}) >= 4
