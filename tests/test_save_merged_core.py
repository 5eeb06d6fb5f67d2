"""Proves that a merged LoRA's tensors are the update: flat gates in numbers, every kind of branch, rounding as told."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from fusion_loras import N_IN, OUT, dense, lokr, lora, normal, whole
from reference_fusion import random_vectors

from autolora_core.errors import GateError, LoraError, SelectionError
from autolora_core.fusion.branches import Branch
from autolora_core.fusion.eager import fuse
from autolora_core.fusion.gate import GateVectors
from autolora_core.fusion.merged.naming import check_sources, free_path, merged_path
from autolora_core.fusion.merged.pack import DTYPES, pack
from autolora_core.fusion.merged.report import Origin, Tally, merged_metadata
from autolora_core.fusion.merged.still import check_mode, check_plan, still_branches
from autolora_core.fusion.plan import Standing, build_plan
from autolora_core.fusion.requests import Request

FINE = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 1e-6}
dtypes = pytest.mark.parametrize("dtype", FINE)


def read(tensors: dict, shape: tuple[int, ...] = (OUT, N_IN)) -> torch.Tensor:
    """What stock ComfyUI makes of one parameter's tensors, float64."""
    if "diff" in tensors:
        return tensors["diff"].double()
    if "lokr_w1" in tensors:
        left, right = tensors["lokr_w1"].double(), tensors["lokr_w2"].double()
        return torch.kron(left.reshape(*left.shape, *[1] * (right.ndim - 2)), right).reshape(shape)
    up, down = tensors["lora_up.weight"].double(), tensors["lora_down.weight"].double()
    assert float(tensors["alpha"]) == down.shape[0] == up.shape[1]
    return (up.flatten(1) @ down.flatten(1)).reshape(shape)


def off(piece, exact: torch.Tensor) -> float:
    return float((read(piece.tensors, tuple(exact.shape)) - exact).norm() / exact.norm())


def told(piece) -> float:
    return (piece.wrong / piece.size) ** 0.5


def flat(channels: int, seed: int = 0, **more) -> GateVectors:
    zero = torch.zeros(channels)
    vectors = random_vectors(channels, seed)
    return replace(vectors, weight_lora=zero, weight_cross=zero, weight_base=zero, **more)


BRANCHES = {
    "two": lambda: [lora(0, 1), lora(1, 2, scale=-0.3)],
    "slices": lambda: [lora(0, 1, (0, 4)), lora(0, 1, (4, 8)), lora(1, 1, (8, 12))],
    "too many": lambda: [lora(0, 3), lora(1, 3)],
    "lokr": lambda: [lokr(1)],
    "lokr and more": lambda: [lokr(1), lora(0, 1)],
    "dense": lambda: [dense(0), lora(1, 1, (2, 6))],
}
FORMS = {"two": "lora_up.weight", "slices": "lora_up.weight", "lokr": "lokr_w1"}


@dtypes
@pytest.mark.parametrize("kind", BRANCHES)
def test_every_kind_is_stored_as_it_is(kind, dtype):
    branches = BRANCHES[kind]()
    piece = pack("m", branches, (OUT, N_IN), DTYPES[dtype])
    assert FORMS.get(kind, "diff") in piece.tensors
    exact = whole(branches)
    assert off(piece, exact) <= FINE[dtype]
    assert told(piece) == pytest.approx(off(piece, exact), rel=1e-3, abs=1e-9)
    assert piece.size == pytest.approx(float(exact.norm()) ** 2)
    stored = {value.dtype for key, value in piece.tensors.items() if key != "alpha"}
    assert stored == {DTYPES[dtype]} and all(value.is_contiguous() for value in piece.tensors.values())


@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (3,), (2, 3, 2)], ids=str)
def test_convolutions_of_every_dimension(kernel):
    plain = Branch("m", 0, down=normal(2, 5, *kernel), up=normal(16, 2, seed=1), scale=0.5)
    one = [1] * len(kernel)
    core = {"down": normal(2, 5, *one, seed=2), "mid": normal(2, 2, *kernel, seed=3)}
    tucker = Branch("m", 1, up=normal(16, 2, seed=4), **core)
    shape = (16, 5, *kernel)
    branches = [plain] if kernel == (1, 1) else [plain, tucker]
    piece = pack("m", branches, shape, torch.float32)
    exact = sum(branch.delta() for branch in branches)
    assert off(piece, exact) <= 1e-6
    if kernel == (3, 3):
        assert piece.tensors["lora_down.weight"].shape == (4, 5, 3, 3)
        assert piece.tensors["lora_up.weight"].shape == (16, 4, 1, 1)
    kron = Branch("m", 0, left=normal(4, 5), right=normal(4, 1, *kernel, seed=1), scale=0.5)
    piece = pack("m", [kron], shape, torch.float32)
    assert ("diff" in piece.tensors) == (len(kernel) != 2) and off(piece, kron.delta()) <= 1e-6


def test_factors_neither_overflow_nor_vanish():
    """A trainer may leave one factor tiny and the other huge; only their product counts."""
    branch = lora(0, 2)
    lopsided = replace(branch, up=branch.up.double() * 1e-9, down=branch.down.double() * 1e7)
    piece = pack("m", [lopsided], (OUT, N_IN), torch.float16)
    assert off(piece, lopsided.delta()) <= 1e-3
    norms = [piece.tensors[f"lora_{side}.weight"].float().norm() for side in ("up", "down")]
    assert 0.3 < norms[0] / norms[1] < 3


def test_half_precision_numbers_keep_their_bits():
    branch = Branch("m", 0, down=normal(2, N_IN).half(), up=normal(OUT, 2, seed=1).half(), scale=0.5)
    piece = pack("m", [branch], (OUT, N_IN), torch.float16)
    assert piece.wrong == 0 and read(piece.tensors).equal(branch.delta())


def test_what_a_dtype_cannot_hold_is_an_error():
    huge = Branch("m", 0, dense=normal(OUT, N_IN), scale=1e6)
    with pytest.raises(LoraError, match="m has numbers that float16 cannot hold.*bfloat16"):
        pack("m", [huge], (OUT, N_IN), torch.float16)
    assert pack("m", [huge], (OUT, N_IN), torch.bfloat16)


def test_nothing_is_nothing():
    silent = replace(lora(0, 2), up=torch.zeros(OUT, 2))
    assert pack("m", [silent], (OUT, N_IN), torch.float16) is None
    assert pack("m", [lora(0, 6), replace(lora(0, 6), scale=-0.7)], (OUT, N_IN), torch.float16) is None
    assert pack("m", [lora(0, 1), replace(lora(0, 1), scale=-0.7)], (OUT, N_IN), torch.float16) is None
    half = replace(lora(0, 2), up=torch.cat([torch.zeros(OUT, 1), normal(OUT, 1)], dim=1))
    assert pack("m", [half], (OUT, N_IN), torch.float16).rank == 1


def test_what_is_no_branch_is_added():
    extra = normal(OUT, N_IN, seed=9)
    piece = pack("m", [lora(0, 1)], (OUT, N_IN), torch.float32, extra)
    assert piece.dense and off(piece, whole([lora(0, 1)]) + extra.double()) <= 1e-6
    bias = normal(OUT)
    assert pack("m.bias", [], (OUT,), torch.float32, bias).tensors["diff"].equal(bias)


@pytest.mark.parametrize("spans", [[(0, 12)], [(0, 4), (8, 12)]], ids=["whole", "slices"])
@pytest.mark.parametrize("make", [lora, lokr, dense])
def test_a_flat_gate_is_a_factor_a_channel(make, spans):
    """Against the shipped gate itself, on inputs of every size, with roles, number and asked for."""
    roles = normal(2, 2, 2, seed=7)
    roles[..., 1] = 0
    gates = {f"m[{a}:{b}]": flat(b - a, a, roles=roles, power=0.7) for a, b in spans}
    branches = [make(0), lora(1), lora(2, span=(4, 8)), lora(5)]
    known = {0: Standing("subject"), 1: Standing("style", 0.4), 2: Standing()}
    plan = build_plan(branches, {"m": OUT}, gates, additive=[5], standings=known)
    check_plan(plan)
    own = plan.modules["m"]
    made = whole(still_branches(own))
    x, y0 = normal(3, N_IN, seed=1).double(), normal(3, OUT, seed=2).double()
    for loud in (0.01, 1.0, 50.0):
        given = loud * x
        out = fuse(y0, own, lambda i, given=given: _out(own.branches[i], given), lambda g: own.groups[g].vectors)
        assert (out - y0 - given @ made.T).abs().max() <= 1e-5 * loud
    assert (made - whole(branches)).norm() > 0.1


def test_slices_that_a_gate_cuts_keep_the_rank():
    gates = {f"m[{a}:{a + 4}]": flat(4, a) for a in (0, 4, 8)}
    own = build_plan([lora(0, 2), lora(1, 1)], {"m": OUT}, gates).modules["m"]
    branches = still_branches(own)
    piece = pack("m", branches, (OUT, N_IN), torch.float32)
    assert len(branches) == 6 and piece.rank == 3 and off(piece, whole(branches)) <= 1e-6


def _out(branch: Branch, x: torch.Tensor) -> torch.Tensor:
    return x @ branch.delta().T


@pytest.mark.parametrize("seen", ["weight_lora", "weight_cross", "weight_base"])
def test_a_gate_that_looks_is_refused(seen):
    vectors = replace(flat(OUT), **{seen: torch.eye(OUT)[3]})
    assert not vectors.flat and flat(OUT).flat and GateVectors.identity(OUT).flat
    plan = build_plan([lora(0), lora(1)], {"m": OUT}, {"m": vectors})
    with pytest.raises(GateError, match="at m it looks at the activations.*gate.safetensors.*mode 'sum'"):
        check_plan(plan, "gate.safetensors")


def test_a_gate_that_moves_is_refused():
    plan = build_plan([lora(0), lora(1)], {"m": OUT}, {"m": flat(OUT, roles=normal(2, 2, 2))})
    with pytest.raises(GateError, match="at m it moves with the sampling"):
        check_plan(plan)


@pytest.mark.parametrize("mode", ["energy", "klora", "switch", "composite"])
def test_moving_modes_are_refused_for_two(mode):
    with pytest.raises(SelectionError, match=f"mode '{mode}' cannot be saved.*sum, ties"):
        check_mode(mode, 2)
    check_mode(mode, 1)


@pytest.mark.parametrize("name", ["mix", " mix.safetensors ", "mix.SAFETENSORS", "./mix"])
def test_names(tmp_path, name):
    assert merged_path(tmp_path, name) == tmp_path / "mix.safetensors"


def test_names_with_folders_and_dots(tmp_path):
    assert merged_path(tmp_path, "a\\b//v1.5") == tmp_path / "a" / "b" / "v1.5.safetensors"


ESCAPES = ("../x", "a/../../x", "/x", "\\x", "C:\\x", "c:x", "..", "a\\..\\x", "x\0y", "x\ny")


@pytest.mark.parametrize("name", [*ESCAPES, "", "  ", ".", "a/", ".safetensors", "a/.safetensors"])
def test_names_that_are_refused(tmp_path, name):
    with pytest.raises(SelectionError, match="stay inside" if name in ESCAPES else "no name"):
        merged_path(tmp_path, name)


def test_a_name_too_long(tmp_path):
    assert merged_path(tmp_path, "x" * 200)
    with pytest.raises(SelectionError, match="too long"):
        merged_path(tmp_path, "a/" + "ä" * 101)


def test_a_taken_name_gets_a_number(tmp_path):
    path = tmp_path / "mix.safetensors"
    assert free_path(path) == path
    path.touch()
    (tmp_path / "mix_00001.safetensors").touch()
    assert free_path(path).name == "mix_00002.safetensors"


def test_a_source_is_never_overwritten(tmp_path):
    path = tmp_path / "a.safetensors"
    check_sources(path, {"a": str(tmp_path / "b")})
    path.touch()
    with pytest.raises(SelectionError, match="a.safetensors would be overwritten"):
        check_sources(path, {"a.safetensors": str(path)})


def test_metadata_and_rounding_in_words():
    request = Request("sub/a.safetensors", 0.5, 0.25)
    origin = Origin("ties", "asked for", {"density": 0.2})
    found = merged_metadata("mix", [(request, "abc")], origin, ["wet otter", "fox", "wet otter"], "sd3")
    made = json.loads(found["autolora.merged"])
    assert made["loras"] == [{"name": "sub/a.safetensors", "model": 0.5, "clip": 0.25, "asked": 1.0, "sha256": "abc"}]
    assert made["mode"] == "ties" and made["settings"] == {"density": 0.2} and "gate" not in made
    assert found["modelspec.title"] == "mix" and found["modelspec.trigger_phrase"] == "wet otter, fox"
    tally = Tally()
    tiny = replace(dense(0), scale=1e-7)
    for name, branch in (("a.weight", lora(0, 1)), ("b.weight", lokr(1)), ("c.weight", tiny)):
        tally.add(name, pack(name, [branch], (OUT, N_IN), torch.float16))
    text = "\n".join(tally.lines("float16"))
    assert "1 layer of low rank (1)" in text and "1 layer as LoKr: b" in text and "1 weight stored densely: c" in text
    assert "(c.weight)" in text and 0 < tally.error < 1e-3 and "warning" not in text
    alone = Tally()
    alone.add("c.weight", pack("c", [tiny], (OUT, N_IN), torch.float16))
    assert "choose dtype bfloat16 or float32" in alone.lines("float16")[-1]
