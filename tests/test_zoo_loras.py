"""Proves that many LoRAs trained at once are the LoRAs one by one, whoever they are trained beside, and that every
written format reads back as the same update.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from autolora_core.lora.file import LoraFile
from zoo import cache, train_loras
from zoo.lora_data import LoraData
from zoo.lora_export import FORMATS, write
from zoo.lora_plan import ATTENTION, CONTEXT, CREATORS, MLP, Creator, LoraSpec
from zoo.lora_variants import first_blocks, refactorised, variants
from zoo.mmdit import MMDiT, MMDiTConfig
from zoo.multi_lora import StackedAdam, StackedAdapters, target_layers
from zoo.text_bank import TextBank

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


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """Models and working folder of the zoo, away from this repository's own."""
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "zoo"))
    monkeypatch.setenv(cache.MODELS, str(tmp_path / "models"))
    monkeypatch.setattr(train_loras, "base_tag", lambda: "base-0")
    return tmp_path


def small_training(specs: list[LoraSpec], sets: list[LoraData], bank: TextBank) -> dict[str, dict]:
    """Train on a base of one block; id → factors as stored."""
    torch.manual_seed(0)
    model = MMDiT(MMDiTConfig(depth=1)).requires_grad_(False)
    for p in model.parameters():
        if p.abs().sum() == 0:
            torch.nn.init.normal_(p, std=0.05)
    adapters = StackedAdapters(model, len(specs), 4)
    train_loras.Group(adapters, model, bank).run(specs, sets, lambda *_: None)
    return {s.id: train_loras.raw_factors(s) for s in specs}


def test_a_lora_is_the_same_whoever_it_is_trained_beside(elsewhere):
    """So a run that is stopped, and then groups what is left anew, ends with the same LoRAs."""
    rng = np.random.default_rng(0)
    texts = ["", "an otter", "a fox"]
    bank = TextBank(texts, rng.normal(size=(3, 24, 384)).astype(np.float16), rng.normal(size=(3, 384)).astype("f2"))
    sets = [LoraData(rng.normal(size=(3, 16, 16, 16)).astype(np.float16), [texts[1:]] * 3) for _ in range(2)]
    specs = [replace(spec(replace(c, rule="adam")), id=f"00{i}", seed=5 + i) for i, c in enumerate(RECIPES)]
    together = small_training(specs, sets, bank)
    alone = small_training(specs[1:], sets[1:], bank)["001"]
    other = small_training([replace(specs[1], seed=9)], sets[1:], bank)["001"]
    assert alone
    for name, (_, up) in together["001"].items():
        scale = up.norm()
        assert (up - alone[name][1]).norm() < 0.1 * scale  # bf16 products in batches of another size
        assert (up - other[name][1]).norm() > 0.5 * scale > 0


def test_exporting_replaces_its_own_files_and_no_others(both, elsewhere, monkeypatch):
    """The folder may be a user's."""
    folder = train_loras.lora_folder()
    for name in ("theirs.safetensors", "old.safetensors"):
        cache.write_atomic(folder / name, lambda tmp: tmp.write_bytes(b"x"))
    cache.write_json(cache.shelf_table(), [{"file": "old.safetensors"}])
    specs = [replace(spec(c), id=f"00{i}", file_name=f"{i}.safetensors") for i, c in enumerate(RECIPES)]
    monkeypatch.setattr(train_loras, "plan", lambda: specs)
    group = train_loras.Group(both[1], both[0], None)
    for k, one in enumerate(specs):
        group.store(k, one)
    paths = train_loras.export()
    assert {p.name for p in folder.iterdir()} == {p.name for p in paths} | {"theirs.safetensors"}
    assert [row["file"] for row in cache.read_json(cache.shelf_table())] == [p.name for p in paths]
    assert train_loras.groups_of(specs) == []


def test_a_part_of_the_shelf_has_subjects_and_styles_and_is_shared_between_the_processes(monkeypatch, elsewhere):
    specs = [replace(spec(CREATORS[i % len(CREATORS)]), id=f"{i:03d}", seed=i) for i in range(40)]
    specs = [replace(s, subject=None, style="blueprint") if i >= 25 else s for i, s in enumerate(specs)]
    monkeypatch.setattr(train_loras, "plan", lambda: specs)
    some = train_loras.shelf(6)
    assert [bool(s.subject) for s in some] == [True] * 3 + [False] * 3 and train_loras.shelf() == specs
    assert max(s.creator.steps for s in some) <= sorted(s.creator.steps for s in specs)[20]
    assert [len(g) for g in train_loras.groups_of(some)] == [3, 3]
    assert [len(g) for g in train_loras.groups_of(specs)] == [18, 18, 4]


def test_pieces_need_a_source_with_attention():
    assert variants([]) == [] and variants([spec(replace(CREATORS[0], layers=(MLP,)))]) == []
    assert len(variants([spec(CREATORS[0])])) == 7
