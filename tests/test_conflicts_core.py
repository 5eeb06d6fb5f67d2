"""Proves that the conflict report's measures are those of the dense updates, that its chance values are what random
LoRAs have, that every mode's numbers are true, and that the words and the JSON say the same."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from fusion_loras import KINDS, N_IN, OUT, dense, lokr, lora, members, normal, whole
from reference_methods import np_ref, ties_ref

from autolora_core.fusion import conflict_modes as modes
from autolora_core.fusion.blocks import block_of, in_order
from autolora_core.fusion.branches import Branch
from autolora_core.fusion.conflict_mode_words import mode_lines
from autolora_core.fusion.conflict_picture import PAIRS, draw
from autolora_core.fusion.conflict_words import Facts, Lora, letter, report_data, report_text, signed, verdict
from autolora_core.fusion.conflicts import inner_product, measure, meet
from autolora_core.fusion.gate import GateVectors
from autolora_core.fusion.methods.planner import Settings, blend
from autolora_core.fusion.methods.rows import Part
from autolora_core.fusion.plan import Standing, build_plan

CHANNELS = {"m": OUT}
NAMES = {0: "cat", 1: "ink", 2: "fox"}


def one_layer(*branches: Branch, **how):
    (layer,) = measure(branches, CHANNELS, **how)
    return layer


def close(found: float, expected: float) -> None:
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)


def conv(index: int, tucker: bool = False) -> Branch:
    fields = {"up": normal(6, 3, seed=index), "down": normal(3, 4, *((1, 1) if tucker else (3, 3)), seed=index + 50)}
    if tucker:
        fields["mid"] = normal(3, 3, 3, 3, seed=index + 70)
    return Branch("c", index, scale=0.3, **fields)


def conv_kron(index: int) -> Branch:
    return Branch("c", index, left=normal(2, 2, seed=index), right=normal(3, 2, 3, 3, seed=index + 9), scale=0.5)


def padded(branch: Branch, channels: int) -> torch.Tensor:
    out = torch.zeros(channels, branch.columns, dtype=torch.float64)
    start, stop = branch.span(channels)
    out[start:stop] = branch.delta().flatten(1)
    return out


def reference_spaces(one: torch.Tensor, two: torch.Tensor) -> tuple[float, float]:
    """Through SVDs of the dense updates."""
    found = []
    for a, b in ((one.T, two.T), (one, two)):
        bases = []
        for matrix in (a, b):
            u, s, _ = torch.linalg.svd(matrix, full_matrices=False)
            bases.append(u[:, s > 1e-5 * s.max()])
        overlap = float((bases[0].T @ bases[1]).square().sum())
        found.append(overlap / min(basis.shape[1] for basis in bases))
    return found[0], found[1]


LINEAR = [lora(0), lora(1), lora(2, 2, (0, 4)), lora(3, 1, (3, 9)), lokr(4), lokr(5), dense(6)]
CONVS = [conv(0), conv(1, tucker=True), conv_kron(2), conv_kron(3), Branch("c", 4, dense=normal(6, 4, 3, 3, seed=4))]


@pytest.mark.parametrize("pair", list(itertools.combinations_with_replacement(range(len(LINEAR)), 2)))
def test_linear_measures_are_those_of_dense_matrices(pair):
    check_pair(*(replace(LINEAR[k], lora_index=place) for place, k in enumerate(pair)), OUT)


@pytest.mark.parametrize("pair", list(itertools.combinations_with_replacement(range(len(CONVS)), 2)))
def test_convolution_measures_are_those_of_dense_matrices(pair):
    check_pair(*(replace(CONVS[k], lora_index=place) for place, k in enumerate(pair)), 6)


def check_pair(a: Branch, b: Branch, channels: int) -> None:
    (layer,) = measure([a, b], {a.module: channels})
    one, two = padded(a, channels), padded(b, channels)
    close(layer.product(0, 1), float((one * two).sum()))
    close(layer.energy(0), float(one.square().sum()))
    close(inner_product(Part(0, (a,)), Part(1, (b,)), channels), float((one * two).sum()))
    spaces = layer.spaces[0, 1]
    read, write = reference_spaces(one, two)
    assert spaces.read == pytest.approx(read, abs=1e-5) and spaces.write == pytest.approx(write, abs=1e-5)


def test_the_slices_of_one_lora_are_one_update():
    parts = [lora(0, 2, (0, 4)), lora(0, 2, (4, 8)), lora(0, 2, (8, 12)), lora(1)]
    layer = one_layer(*parts)
    close(layer.product(0, 1), float((whole(parts[:3]) * whole(parts[3:])).sum()))
    read, write = reference_spaces(whole(parts[:3]), whole(parts[3:]))
    assert layer.spaces[0, 1].read == pytest.approx(read) and layer.spaces[0, 1].write == pytest.approx(write)


def test_directions_that_never_run_do_not_count():
    """q, k and v with one down have its rank, and a row of down that up drops is not read."""
    down = normal(2, N_IN, seed=1)
    split = [Branch("m", 0, down=down, up=normal(4, 2, seed=k), slice=(4 * k, 4 * k + 4)) for k in range(3)]
    idle = replace(lora(1), up=torch.cat([normal(OUT, 2, seed=8), torch.zeros(OUT, 1)], 1))
    layer = one_layer(*split, idle)
    read, write = reference_spaces(whole(split), whole([idle]))
    assert layer.spaces[0, 1].read == pytest.approx(read) and layer.spaces[0, 1].write == pytest.approx(write)


def test_the_same_lora_and_its_negative():
    same = one_layer(lora(0), replace(lora(0), lora_index=1))
    met = meet([same], 0, 1)
    close(met.cosine, 1), close(met.spaces.read, 1), close(met.spaces.write, 1)
    opposite = one_layer(lora(0), replace(lora(0, scale=-0.2), lora_index=1))
    close(meet([opposite], 0, 1).cosine, -1)
    close(opposite.energy(1), float(padded(lora(0, scale=0.2), OUT).square().sum()))


def test_spaces_apart_have_no_overlap():
    a, b = lora(0, span=(0, 6)), lora(1, span=(6, 12))
    met = meet([one_layer(a, b)], 0, 1)
    assert met.cosine == 0 and met.spread == 0 and met.spaces.write == 0 and met.spaces.write_chance == 0


@pytest.mark.parametrize("spans", [((0, 48), (0, 48)), ((0, 24), (0, 48)), ((0, 32), (16, 48))])
def test_chance_is_what_random_loras_have(spans):
    """Mean of 200 draws: cosines scatter by ``spread``, overlaps have the chance value."""
    cosines, found, expected = [], [], []
    for draw_ in range(200):
        pair = [
            Branch("m", k, down=normal(r, 40, seed=1000 * draw_ + k), up=normal(hi - lo, r, seed=1000 * draw_ + 10 + k),
                   slice=(lo, hi))
            for k, (r, (lo, hi)) in enumerate(zip((3, 5), spans, strict=True))
        ]  # fmt: skip
        met = meet(measure(pair, {"m": 48}), 0, 1)
        cosines.append(met.cosine / met.spread)
        found.append((met.spaces.read, met.spaces.write))
        expected.append((met.spaces.read_chance, met.spaces.write_chance))
    assert np.std(cosines) == pytest.approx(1, abs=0.15) and abs(np.mean(cosines)) < 0.25
    assert np.mean(found, 0) == pytest.approx(np.mean(expected, 0), rel=0.1)


def test_a_block_is_its_layers_end_to_end():
    pairs = [[replace(one, module=f"b.0.{n}") for one in (lora(2 * n), lora(2 * n + 1, scale=n + 1))] for n in range(3)]
    branches = [replace(one, lora_index=k) for pair in pairs for k, one in enumerate(pair)]
    alone = replace(lora(9), module="b.0.9", lora_index=0)
    layers = measure([*branches, alone], dict.fromkeys((one.module for one in [*branches, alone]), OUT))
    met = meet(layers, 0, 1)
    ends = [torch.cat([padded(pair[k], OUT) for pair in pairs]).flatten() for k in (0, 1)]
    close(met.cosine, float(torch.nn.functional.cosine_similarity(*ends, dim=0)))
    assert met.layers == 3 and meet(layers, 1, 0).spaces == met.spaces


@pytest.mark.parametrize(
    ("module", "block"),
    [
        ("joint_blocks.2.x_block.attn.qkv", "joint_blocks.2"),
        ("double_blocks.7.img_attn.proj", "double_blocks.7"),
        ("single_blocks.12.linear1", "single_blocks.12"),
        ("input_blocks.4.1.transformer_blocks.0.attn1.to_q", "input_blocks.4"),
        ("middle_block.1.transformer_blocks.0.ff.net.2", "middle_block"),
        ("output_blocks.3.0.in_layers.2", "output_blocks.3"),
        ("blocks.5.self_attn.q", "blocks.5"),
        ("transformer_blocks.8.attn.to_out.0", "transformer_blocks.8"),
        ("layers.3.attention.qkv", "layers.3"),
        ("x_embedder.proj", "x_embedder"),
        ("context_embedder", "context_embedder"),
    ],
)
def test_block_names_of_all_families(module, block):
    assert block_of(module) == block


def test_blocks_come_in_the_models_order():
    names = ["output_blocks.0", "blocks.10", "middle_block", "blocks.2", "input_blocks.1", "blocks.2"]
    assert in_order(names) == ["blocks.2", "blocks.10", "input_blocks.1", "middle_block", "output_blocks.0"]


# ---- modes ----

SET = [lora(0), lora(1), lokr(2)]


def deltas() -> list[torch.Tensor]:
    return [whole([one]) for one in SET]


def blended(method: str, **settings):
    return blend(method, SET, CHANNELS, members(0, 1, 2), Settings(**settings))


def said(mode: str, numbers: dict) -> str:
    return " ".join(mode_lines(mode, numbers, NAMES))


@pytest.mark.parametrize("asked", [{}, {1: 0.4}])
def test_sum_is_told_with_true_sizes(asked):
    layer = one_layer(*SET, base=lambda name: 400.0)
    loud = [asked.get(k, 1.0) * one for k, one in enumerate(deltas())]
    numbers = modes.sum_numbers([layer], [0, 1, 2], asked)
    total, independent = float(sum(loud).norm()), math.sqrt(sum(float(one.norm()) ** 2 for one in loud))
    close(numbers["total"], total), close(numbers["over_base"], total / 20), close(numbers["independent"], independent)
    text = said("sum", {**numbers, "loras": [0, 1, 2], "asked": asked})
    assert f"{total / max(float(one.norm()) for one in loud):.2f} × the largest" in text
    assert ("adds" in text) == (total >= independent) and ("ink is hardly asked for" in text) == bool(asked)


def test_energy_is_told_for_unknown_inputs():
    layer = one_layer(*SET)
    total, largest = float(sum(deltas()).norm()), max(float(one.norm()) for one in deltas())
    numbers = modes.energy_numbers([layer], [0, 1, 2])
    close(numbers["factor"], min(1.0, largest / total))
    assert numbers["turned_down"] == int(total > largest)
    assert f"× {numbers['factor']:.2f}" in said("energy", numbers)
    assert modes.energy_numbers([one_layer(lora(0))], [0]) == {"factor": 1.0, "turned_down": 0, "layers": 1}


def test_a_flat_gate_is_told_by_its_factors():
    roles = torch.zeros(2, 2, 2)
    roles[0, 1, 0], roles[1, 1] = math.log(1.5), torch.tensor([0.0, math.log(2)])
    gate = replace(GateVectors.identity(OUT), roles=roles)
    plan = build_plan(SET[:2], CHANNELS, {"m": gate}, standings={0: Standing("subject"), 1: Standing("style")})
    numbers = modes.gate_numbers(plan)
    close(numbers["factors"][0]["start"], 1.5), close(numbers["factors"][1]["start"], 0.5)
    close(numbers["factors"][1]["end"], 2.0)
    assert numbers["flat"] and numbers["gated"] == numbers["layers"] == 1
    text = said("gate", {**numbers, "roles": {0: "subject", 1: "style"}})
    assert "cat (subject) passes × 1.50 on average." in text and "× 0.50 at the start, × 2.00 at the end" in text


def test_a_gate_that_listens_is_told_at_rest():
    gate = replace(GateVectors.identity(6), weight_lora=torch.ones(6), bias=torch.full((6,), 1.0))
    numbers = modes.gate_numbers(build_plan([lora(0), lora(1)], CHANNELS, {"m[0:6]": gate}))
    close(numbers["factors"][0]["start"], 2 * torch.sigmoid(torch.tensor(1.0)).item())
    assert not numbers["flat"] and "at rest" in said("gate", numbers) and "at most × 2.00" in said("gate", numbers)


@pytest.mark.parametrize("method", ["ties", "dare", "magnitude"])
@pytest.mark.parametrize("density", [0.3, 1.0])
def test_dense_methods_are_told_by_what_they_keep(method, density):
    made = blended(method, density=density)
    numbers = modes.dense_numbers(made.dense)
    merged = ties_ref(deltas(), density) if method == "ties" else made.dense["m"].delta().double()
    assert numbers["size"] == pytest.approx(float(merged.norm() / sum(deltas()).norm()), rel=1e-5)
    if method != "dare" or density == 1:
        kept = []
        for delta in deltas():
            limit = delta.abs().flatten().sort(descending=True).values[round(density * delta.numel()) - 1]
            kept.append(torch.where(delta.abs() >= limit * (1 - 1e-9), delta, 0))
        share = sum(float(one.square().sum()) for one in kept) / sum(float(one.square().sum()) for one in deltas())
        assert numbers["energy_kept"] == pytest.approx(share, rel=1e-5)
        sign, alive = torch.sign(sum(kept)), sum(int((one != 0).sum()) for one in kept)
        against = sum(int(((one != 0) & (torch.sign(one) != sign)).sum()) for one in kept)
        close(numbers["disagree"], against / alive)
    text = said(method, numbers)
    assert f"{numbers['size']:.2f} × the size of the plain sum" in text and f"{100 * density:.0f} %" in text


def test_klora_is_told_by_who_speaks():
    made = blended("klora")
    rule = made.plan.modules["m"].groups[0].rule
    numbers = modes.klora_numbers(made.plan, [0, 1, 2])
    first = rule.early if rule.after >= 0 else rule.late
    last = rule.late if rule.after < 1 else rule.early
    assert numbers["early"][first] == numbers["late"][last] == 1 and sum(numbers["early"].values()) == 1
    assert f"{NAMES[first]} in 1 early" in said("klora", numbers)
    changing = {"layers": 3, "early": {0: 3}, "late": {0: 1}, "changes": 2, "after": 0.25}
    assert "2 of them change on the way, the middle one at 25 % of the steps." in said("klora", changing)


def test_np_is_told_by_what_is_taken_away():
    pair = [lora(0), lora(1)]
    made = blend("np", pair, CHANNELS, members(0, 1), Settings(mu=0.5))
    numbers = modes.np_numbers(made.plan, pair, CHANNELS, [0])
    left = np_ref(*(whole([one]) for one in pair), pair[1].down.double(), 0.5) - whole(pair[1:])
    share = 1 - float(left.square().sum() / whole(pair[:1]).square().sum())
    assert numbers["taken"][0] == pytest.approx(share, rel=1e-5) and share > 0.01
    assert f"{100 * share:.2g} % of cat's energy" in said("np", numbers)


def test_modes_without_sums_are_told():
    assert "2 steps each, in this order: fox, cat" in said("switch", {"order": [2, 0], "interval": 2})
    assert "3 evaluations a step" in said("composite", {"passes": 3}) and "3 times as slow" in said(
        "composite", {"passes": 3}
    )
    assert "none is connected" in said("ssr", {"loras": 2, "clip": False})
    assert "none is connected" not in said("ssr", {"loras": 2, "clip": True})
    assert mode_lines("sum", {}, NAMES) == []


def test_a_sample_has_every_lora_and_all_of_a_small_model():
    branches = [replace(lora(k), module=f"b.{n}.m") for n in range(40) for k in (0, 1)]
    branches.append(replace(lora(2), module="b.40.m"))
    channels = {one.module: OUT for one in branches}
    assert modes.sample(branches, channels) == set(channels)
    taken = modes.sample(branches, channels, 10 * OUT * N_IN)
    assert 8 <= len(taken) <= 12 and "b.40.m" in taken
    assert max(int(name.split(".")[1]) for name in taken - {"b.40.m"}) > 30


# ---- words, JSON, picture ----


def facts(count: int = 2, blocks: int = 3, **how) -> Facts:
    branches = [replace(lora(k + 10 * n), lora_index=k, module=f"b.{n}.m") for n in range(blocks) for k in range(count)]
    layers = measure(branches, {one.module: OUT for one in branches}, lambda name: 100.0)
    numbers = {**modes.sum_numbers(layers, range(count)), "loras": list(range(count)), "asked": {}}
    loras = [Lora(k, f"folder/lora {k}.safetensors", 0.8, "subject") for k in range(count)]
    return Facts(loras, layers, numbers=numbers, why="asked for", **how)


def test_the_verdict_names_the_worst_pair_and_block():
    made = facts()
    opposite = [replace(lora(0), module="b.1.m"), replace(lora(0, scale=-0.7), lora_index=1, module="b.1.m")]
    made.layers = [made.layers[0], *measure(opposite, {"b.1.m": OUT}), made.layers[2]]
    text = verdict(made)
    assert text.startswith("1 pair: cosine −0.") and "lora 0 and lora 1 pull against each other most in b.1" in text
    assert "cosine −1.00" in text and "smaller than at right angles" in text


def test_a_pair_within_chance_is_called_that():
    made = facts(blocks=1)
    made.layers = measure([replace(lora(0), up=torch.eye(OUT)[:, :3]),
                           replace(lora(1), up=torch.eye(OUT)[:, 3:6])], CHANNELS)  # fmt: skip
    assert "1 of 1 pair no further from independent than chance would have it" in verdict(made)
    assert "pull" not in verdict(made) and "double up" not in verdict(made)


def test_no_pair_no_verdict():
    assert "No pairs: lora 0 is the only LoRA" in verdict(facts(1))
    made = facts()
    made.layers = measure([replace(lora(k), module=f"b.{k}.m") for k in (0, 1)], {"b.0.m": OUT, "b.1.m": OUT})
    assert "no layer in common" in verdict(made) and "no layer in common" in report_text(made)
    made = facts()
    made.layers = []
    assert verdict(made).startswith("Nothing to compare") and draw(made).shape[2] == 3


def test_words_and_json_say_the_same():
    made = facts(3, sampled=(2, 3), notes=["a note"], warnings=["careful"])
    text, data = report_text(made), report_data(made)
    assert json.loads(json.dumps(data, allow_nan=False)) == data and data["format"] == "autolora-conflicts/1"
    assert len(data["pairs"]) == 3 and set(data["pairs"][0]["blocks"]) == {"b.0", "b.1", "b.2"}
    for met in data["pairs"]:
        assert f"cosine {signed(met['cosine'])} (±{met['spread']:.1g}) over 3 layers" in text
        assert f"inputs shared {met['spaces']['read']:.2f} (chance {met['spaces']['read_chance']:.2f})" in text
    assert "told by 2 of 3 layers" in text and "warning: careful" in text and "a note" in text
    size = data["loras"][0]
    assert f"lora 0 × 0.8 (subject): 3 layers, size {size['norm']:.3g}, {100 * size['over_base']:.0f} %" in text
    assert [abs(one["cosine"]) for one in data["pairs"]] == sorted(abs(o["cosine"]) for o in data["pairs"])[::-1]


def test_names_stay_apart():
    made = facts()
    made.loras = [Lora(0, "a/x.safetensors", 1.0), Lora(1, "b/x.safetensors", 1.0)]
    assert list(made.names.values()) == ["a/x.safetensors", "b/x.safetensors"]


def test_many_pairs_are_cut_in_words_and_picture_not_in_json():
    made = facts(6, 2)
    assert "and 5 more pairs" in report_text(made) and len(report_data(made)["pairs"]) == 15
    assert draw(made).shape == draw(facts(6, 2)).shape and PAIRS < 15
    assert draw(made).shape[1] < draw(facts(5, 2)).shape[1] * 1.4


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_picture_is_a_picture(count):
    image = draw(facts(count))
    assert image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.float32
    assert image.min() >= 0 and image.max() == 1 and len(np.unique(image.reshape(-1, 3), axis=0)) > 5


def test_letters_never_end():
    assert [letter(k) for k in (0, 25, 26, 52)] == ["A", "Z", "A1", "A2"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_of_no_strength_measures_as_nothing(kind):
    layer = one_layer(replace(KINDS[kind](0), scale=0.0), lora(1))
    met = meet([layer], 0, 1)
    assert layer.energy(0) == 0 and met.cosine == 0 and met.spaces is None
