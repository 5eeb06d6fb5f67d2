"""Proves that what gates are trained in is what the Apply node runs: the same gate, the same routers, each row of a
batch with its own LoRAs; and that time and number of LoRAs move only what they should."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autolora_core.fusion.branches import Branch
from autolora_core.fusion.gate import gated_update
from autolora_core.fusion.methods.ssr import merge, stack
from zoo import fused_layers
from zoo.base_probe import BaseProbe
from zoo.fused_layers import Factors, FusedLayers, Gate, Routers, padded, share_done
from zoo.fusion_sets import SLOTS, Drawer, Shelf
from zoo.lora_variants import of_rank
from zoo.mmdit import MMDiT
from zoo.train_fusion import RECIPES
from zoo.train_loras import load_base

QKV, FC1, CONTEXT = (
    f"joint_blocks.0.{part}" for part in ("x_block.attn.qkv", "x_block.mlp.fc1", "context_block.attn.qkv")
)
LORAS = ("a", "b", "c")


def made_up(tag: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(ord(tag))
    rank = 4 + ord(tag) % 3
    widths = {QKV: (256, 768), FC1: (256, 1024), CONTEXT: (256, 768)}
    return {
        name: (torch.randn(rank, i, generator=generator) / 16, torch.randn(o, rank, generator=generator) / 4)
        for name, (i, o) in widths.items()
    }


@pytest.fixture(scope="module")
def base() -> MMDiT:
    return load_base()


@pytest.fixture
def layers(monkeypatch) -> FusedLayers:
    monkeypatch.setattr(fused_layers.scale_data, "factors", made_up)
    return FusedLayers(Factors(load_base(), LORAS))


def branches_of(name: str, loras: str) -> list[Branch]:
    return [Branch(name, i, down=made_up(tag)[name][0], up=made_up(tag)[name][1]) for i, tag in enumerate(loras)]


def put(layers: FusedLayers, *sets: str) -> None:
    none = len(LORAS)
    layers.ids = torch.tensor([padded([LORAS.index(tag) for tag in one], none) for one in sets])
    layers.count = torch.tensor([float(len(one)) for one in sets])
    layers.u = torch.full((len(sets),), 0.25)
    layers.roles = torch.tensor([[int(tag == "b") for tag in one] + [0] * (SLOTS - len(one)) for one in sets])


@pytest.mark.parametrize("name", [QKV, FC1])
def test_every_row_has_its_own_loras(layers, base, name):
    x = torch.randn(2, 5, 256, generator=torch.Generator().manual_seed(0))
    put(layers, "ac", "b")
    with torch.no_grad():
        found, plain = layers.factors.layers[name](x), base.get_submodule(name)(x)
    for row, loras in enumerate(("ac", "b")):
        wanted = plain[row] + sum(x[row] @ b.down.T @ b.up.T for b in branches_of(name, loras))
        assert torch.allclose(found[row], wanted, atol=1e-4)


@pytest.mark.parametrize("shared", [False, True])
def test_a_gate_starts_as_the_plain_sum_and_is_the_product_s(layers, base, shared):
    gate = Gate(layers.factors.layers, shared, True, True, True, 0.0)
    x = torch.randn(1, 5, 256, generator=torch.Generator().manual_seed(0))
    put(layers, "abc")
    with torch.no_grad():
        plain = layers.factors.layers[FC1](x)
        layers.gate = gate
        assert torch.allclose(layers.factors.layers[FC1](x), plain, atol=1e-4)
        for parameter in gate.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        found = layers.factors.layers[FC1](x)
    vectors = gate.vectors()[FC1]
    tilts = [vectors.tilt(role, 3) for role in ("subject", "style", "subject")]
    assert len({tilt.gain for tilt in tilts}) == 2 and vectors.power != 0
    y0 = base.get_submodule(FC1)(x).detach()
    branches = [x @ b.down.T @ b.up.T for b in branches_of(FC1, "abc")]
    wanted = y0 + gated_update(y0, branches, vectors, tilts=tilts, u=0.25)
    assert torch.allclose(found, wanted, atol=1e-3)


def test_a_gate_that_knows_neither_roles_nor_time_is_the_published_one(layers):
    gate = Gate(layers.factors.layers, False, False, False, False, 1.0)
    for parameter in gate.roles.parameters():
        assert not parameter.requires_grad
    assert all(v.roles is None and v.power == 0 for v in gate.vectors().values())
    untimed = Gate(layers.factors.layers, False, True, False, True)
    with torch.no_grad():
        untimed.roles[untimed.key(FC1)].fill_(1.0)
    assert not untimed.vectors()[FC1].tilt("style").timed and untimed.vectors()[FC1].tilt("style").gain[0] == 1


def test_the_common_lora_is_the_best_of_its_rank():
    down, up = torch.randn(3, 4, 20), torch.randn(3, 15, 4)
    low, high = of_rank(down.flatten(0, 1), up.transpose(0, 1).flatten(1), 2)
    whole = torch.einsum("kor,kri->oi", up, down)
    u, s, vh = torch.linalg.svd(whole)
    assert torch.allclose(high @ low, (u[:, :2] * s[:2]) @ vh[:2], atol=1e-3)


def test_routed_branches_add_up_to_ssr_merge(layers):
    probe = BaseProbe(load_base())
    routers = Routers(layers.factors, ["an otter", "pixel art style", "a castle"], probe)
    routes = routers.of([0, 1])
    x = torch.randn(1, 5, 256, generator=torch.Generator().manual_seed(0))
    put(layers, "ab")
    with torch.no_grad():
        alone = layers.factors.layers[QKV].__class__.forward(layers.factors.layers[QKV], x)
        layers.routes = {name: r[None] for name, r in routes.items()}
        found = layers.factors.layers[QKV](x)
    stacked = stack(branches_of(QKV, "ab"), 768)
    rank = fused_layers.RANK
    kept = [slot * rank + i for slot, tag in enumerate("ab") for i in range(len(made_up(tag)[QKV][0]))]
    (merged,) = merge(stacked, routes[QKV][kept][:, kept])
    assert torch.allclose(found, alone + x @ merged.down.T @ merged.up.T, atol=1e-3)
    assert not torch.allclose(routes[QKV], torch.eye(SLOTS * rank), atol=0.05)
    assert torch.equal(routers.of([2])[QKV], torch.eye(SLOTS * rank)), "alone nothing is routed"


def test_time_is_the_share_of_the_sampling_that_is_done():
    done = np.linspace(0, 1, 7)
    t = 3 * (1 - done) / (1 + 2 * (1 - done))
    assert np.allclose(share_done(t), done)


def test_recipes_differ_in_one_thing_each():
    whole = vars(RECIPES["naming"])
    for name in ("naming-routed", "naming-unroled", "naming-untimed", "naming-uncounted"):
        assert sum(whole[key] != value for key, value in vars(RECIPES[name]).items()) == 1, name
    for beside, name in {
        "flow-contrast-routed": "flow-contrast",
        "scalar": "flow-contrast",
        "paper-global": "paper",
    }.items():
        one, other = vars(RECIPES[name]), vars(RECIPES[beside])
        assert sum(one[key] != value for key, value in other.items()) == 1, beside


class Pictures:
    """Every subject in every style."""

    index = {}
    images = np.zeros((1, 128, 128, 3), np.uint8)

    def __init__(self, subjects):
        from zoo.splits import DEFAULT_STYLE, Splits

        self.index = {(s, style): 0 for s in subjects for style in (DEFAULT_STYLE, *Splits.load().base_styles)}


def test_sets_show_what_is_asked_and_strangers_do_not():
    from zoo.scale_plan import plan
    from zoo.splits import Splits

    rows = [
        {
            "id": s.id,
            "kind": s.kind,
            "subject": s.subject,
            "style": s.style,
            "label": s.label,
            "part": s.part,
            "trigger": s.trigger,
        }
        for s in plan()
        if s.part == "train"
    ][:600]
    shelf = Shelf(rows)
    splits = Splits.load()
    drawer = Drawer(shelf, Pictures([*splits.lora_subjects, *splits.base_subjects]), np.random.default_rng(0))
    sets = [one for one in (drawer.draw() for _ in range(300)) if one is not None]
    assert {len(one.loras) for one in sets} >= {1, 2, 3, 4} and max(len(one.loras) for one in sets) <= SLOTS
    for one in sets:
        mine = [rows[i] for i in one.loras]
        assert not Splits.held_out_pair(one.subject, one.style) or not mine or one.style not in splits.lora_styles
        assert len({row["label"] for row in mine}) == len(mine) and one.texts
        for row in mine[2:]:
            assert row["subject"] != one.subject and row["style"] != one.style
        left = set(one.loras) - set(one.asked)
        assert all(not rows[i]["trigger"] and one.subject != rows[i]["subject"] for i in left), "it says what it is of"
        for subject, style in one.others:
            assert (subject == one.subject) != (style == one.style) and not Splits.held_out_pair(subject, style)
    assert any(one.others for one in sets) and any(one.asked != one.loras for one in sets)
