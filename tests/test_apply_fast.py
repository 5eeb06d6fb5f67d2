"""Proves that the fast way of fused layers is the gate, that it is taken wherever it can be, and nowhere else."""

from __future__ import annotations

import logging

import fast_layers as fl
import pytest
import torch
from comfy_local import pack_module
from reference_fusion import gated_sum_ref
from triton_interpreter import needs_triton, passed

TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}  # of the largest thing added


@pytest.fixture
def ran(comfy, monkeypatch):
    """A list with an entry for every call of the fused form."""
    return fl.count_calls(monkeypatch)


def close(layer, given, dtype=torch.float32):
    """The fast way against the written-out one of the same layer; what it put out."""
    with torch.inference_mode():
        fast, slow = layer(given.x, given.y0), layer.written_out(given.x, given.y0)
    size = (slow.float() - given.y0.float()).abs().max()
    assert (fast.float() - slow.float()).abs().max() <= TOLERANCE[dtype] * size and size > 0.1
    return fast


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_it_is_the_gate_in_every_dtype(ran, dtype):
    """Ragged ranks, against float64 of the factors as they are rounded, and against the written-out way."""
    given, vectors, loras = fl.inputs(dtype), fl.gate(), fl.three()
    fast = close(fl.layer(loras, {"layer": vectors}, dtype), given, dtype)
    assert len(ran) == 1 and fast.dtype == dtype
    x, y0 = given.x.double(), given.y0.double()
    outputs = [one.scale * x @ one.down.to(dtype).double().T @ one.up.to(dtype).double().T for one in loras]
    wanted = gated_sum_ref(y0, outputs, vectors)
    assert (fast.double() - wanted).abs().max() <= TOLERANCE[dtype] * (wanted - y0).abs().max()


def test_slices_of_a_fused_file_share_their_hidden_part(ran):
    """A gate for q and for v: k is summed. One stacked down factor of the one LoRA's rank, read by all three."""
    given = fl.inputs()
    gates = {f"layer[{a}:{b}]": fl.gate(b - a, a) for a, b in (fl.PARTS[0], fl.PARTS[2])}
    layer = fl.layer([fl.branch(0, 16, 1.5), fl.branch(1, 16, 0.5)], gates)
    close(layer, given)
    assert len(ran) == 2 and layer.factors.down.weight.shape == (32, fl.N_IN)


def test_slices_of_an_unfused_file_with_alphas_of_their_own(ran):
    """They are one LoRA to a gate of the whole layer; a fused file of the same LoRA gives the same."""
    given = fl.inputs()
    parts = [fl.branch(0, 4, 0.3 + n, span, seed=n) for n, span in enumerate(fl.PARTS)]
    unfused = close(fl.layer([*parts, fl.branch(1, 8)], {"layer": fl.gate()}), given)
    up = torch.zeros(fl.OUT, 12)
    for n, (one, (start, stop)) in enumerate(zip(parts, fl.PARTS, strict=True)):
        up[start:stop, 4 * n : 4 * n + 4] = one.scale * one.up
    whole = fl.branch(0, 12, down=torch.cat([one.down for one in parts]), up=up)
    fused = close(fl.layer([whole, fl.branch(1, 8)], {"layer": fl.gate()}), given)
    assert (fused - unfused).abs().max() < 2e-5 and len(ran) == 2


def test_loras_outside_the_gate_are_added_beside_it(ran):
    given = fl.inputs()
    with_one = close(fl.layer(fl.three(), {"layer": fl.gate()}, additive=[1]), given)
    assert len(ran) == 1
    assert (with_one - close(fl.layer(fl.three(), {"layer": fl.gate()}), given)).abs().max() > 0.1


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_plain_sum_needs_no_gate(ran, dtype):
    """Slices too: written beside one another."""
    given, parts = fl.inputs(dtype), [fl.branch(n, 4, span=span) for n, span in enumerate(fl.PARTS)]
    for loras in (fl.three(), parts):
        layer = fl.layer(loras, None, dtype)
        out = close(layer, given, dtype).double()
        wanted = given.y0.double()
        for one in loras:
            wanted[..., slice(*one.span(fl.OUT))] += given.x.double() @ one.delta().T
        assert (out - wanted).abs().max() < 2 * TOLERANCE[dtype] * (wanted - given.y0.double()).abs().max()
        assert layer.factors is not None and not ran


def test_gates_that_tell_loras_apart_and_move(ran):
    moment = pack_module("autolora_core.fusion.moment").Moment()
    plan = pack_module("autolora_core.fusion.plan")
    roles = torch.randn(2, 2, 2, generator=torch.Generator().manual_seed(1))
    standings = {0: plan.Standing("subject"), 1: plan.Standing("style", 0.6)}
    layer = fl.layer(fl.three(), {"layer": fl.gate(roles=roles, power=0.7)}, moment=moment, standings=standings)
    outs = []
    for step in (0, 7, 9):
        moment.go(step, 10)
        outs.append(close(layer, fl.inputs()))
    assert len(ran) == 3 and (outs[0] - outs[1]).abs().max() > 0.01


@pytest.mark.parametrize("gates", [True, False])
def test_schedules_and_masks(comfy, gates):
    terms, area, presence = (pack_module(f"autolora_core.fusion.{n}") for n in ("terms", "area", "presence"))
    moment = pack_module("autolora_core.fusion.moment").Moment()
    mask = torch.zeros(8, 8)
    mask[:, 3:] = 1
    loud = terms.Schedule.parse("0: 0.4, 1: 0.4")
    moment.presences[0] = presence.Presence(terms.Term("a", None, None, mask))
    moment.presences[2] = presence.Presence(terms.Term("c", loud, None, None))
    for one in moment.presences.values():
        one.go(0.5, (8, 8), area.Layout(patch=1), "cpu")
    layer = fl.layer(fl.three(), {"layer": fl.gate()} if gates else None, moment=moment)
    here = close(layer, fl.inputs(tokens=64))
    moment.presences.clear()
    apart = (here - close(layer, fl.inputs(tokens=64))).abs().amax((0, 2)).view(8, 8)
    assert (apart > 0.01).all()


def test_a_lora_that_is_absent_now_is_exactly_absent(comfy):
    moment = pack_module("autolora_core.fusion.moment").Moment()
    terms, presence = (pack_module(f"autolora_core.fusion.{n}") for n in ("terms", "presence"))
    layer = fl.layer(fl.three(), {"layer": fl.gate()}, moment=moment)
    off = terms.Schedule.parse("0: 0, 1: 0")
    for lora in range(3):
        moment.presences[lora] = presence.Presence(terms.Term("x", off, None, None))
        moment.presences[lora].go(0.5, None, None, "cpu")
    given = fl.inputs()
    with torch.inference_mode():
        assert layer(given.x, given.y0).equal(given.y0)


def kinds(name: str):
    kron = {"left": fl.random(12, 6, seed=5), "right": fl.random(8, 8, seed=6)}
    return {
        "kron": [fl.branch(0, 4), fl.branch(1, 0, **kron)],
        "dense": [fl.branch(0, 4), fl.branch(1, 0, dense=fl.random(fl.OUT, fl.N_IN, seed=7))],
    }[name]


@pytest.mark.parametrize("name", ["kron", "dense"])
def test_other_kinds_of_update_are_written_out(ran, name):
    layer, given = fl.layer(kinds(name), {"layer": fl.gate()}), fl.inputs()
    with torch.inference_mode():
        assert layer(given.x, given.y0).equal(layer.written_out(given.x, given.y0))
    assert not ran and layer.factors is None


def test_other_rules_are_written_out(ran):
    rule = pack_module("autolora_core.fusion.rules").Energy()
    layer = fl.layer(fl.three(), None, rules={"layer": rule})
    given = fl.inputs()
    assert layer.factors is None and (layer(given.x, given.y0) - given.y0).abs().max() > 0.1


def test_who_watches_sees_every_branch(ran):
    moment = pack_module("autolora_core.fusion.moment").Moment()
    moment.recorder = pack_module("autolora_core.fusion.record").Recorder(["a", "b", "c"], ["layer"])
    layer, given = fl.layer(fl.three(), {"layer": fl.gate()}, moment=moment), fl.inputs()
    moment.recorder.begin(None, 0, "cpu")
    watched = layer(given.x, given.y0)
    assert not ran and (moment.recorder.now > 0).all()
    moment.recorder = None
    assert (layer(given.x, given.y0) - watched).abs().max() < 1e-4 and len(ran) == 1


def test_gradients_pass_the_gate_as_it_is_written(ran):
    layer, given = fl.layer(fl.three(), {"layer": fl.gate()}), fl.inputs()
    layer(given.x.requires_grad_(), given.y0).sum().backward()
    assert given.x.grad.abs().max() > 0 and not ran


def test_float64_is_written_out(ran):
    layer, given = fl.layer(fl.three(), {"layer": fl.gate()}), fl.inputs(torch.float64)
    with torch.inference_mode():
        assert layer(given.x, given.y0).dtype == torch.float64
    assert not ran


def test_a_card_without_its_kernel_says_so_once(ran, monkeypatch, caplog):
    """The same layer as where a card was meant: Triton missing."""
    packed, choose = pack_module("nodes.bridge_packed"), pack_module("autolora_core.fusion.fast.choose")
    monkeypatch.setattr(choose, "_told", set())
    monkeypatch.setattr(packed, "why_no_kernel", lambda device, sections: "Triton is not installed")
    layer, given = fl.layer(fl.three(), {"layer": fl.gate()}), fl.inputs()
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        outs = [layer(given.x, given.y0) for _ in range(3)]
        assert outs[0].equal(layer.written_out(given.x, given.y0))
    assert not ran and len([r for r in caplog.records if "Triton is not installed" in r.getMessage()]) == 1
    plain = fl.layer(fl.three(), None)  # has no use for a kernel
    assert plain.factors.runs_fast(given.x, given.y0)


def test_reasons_to_do_without_the_kernel(comfy, monkeypatch):
    choose = pack_module("autolora_core.fusion.fast.choose")
    monkeypatch.setattr(choose, "_broken", [])
    monkeypatch.setattr(choose, "_has_triton", lambda: True)
    card = torch.device("cuda")

    def why(branches, device=card):
        return choose.why_no_kernel(device, fl.layer(branches, {"layer": fl.gate()}).factors.layout.sections)

    assert why(fl.three()) is None and why(fl.three(), torch.device("cpu")) is None
    assert why([fl.branch(n, 1) for n in range(16)]) is None
    assert why([fl.branch(n, 1) for n in range(17)]) == "more than 16 LoRAs meet at a layer"
    assert why([fl.branch(0, 257)]) == "a LoRA's rank is above 256"
    assert why(fl.three(), torch.device("mps")) == "there is no kernel for mps"
    choose.give_up(RuntimeError("no compiler\nhere"))
    assert why(fl.three()) == "Triton failed: RuntimeError: no compiler"
    monkeypatch.setattr(choose, "_broken", [])
    monkeypatch.setattr(choose, "_has_triton", lambda: False)
    assert why(fl.three()) == "Triton is not installed"


def test_a_kernel_that_fails_leaves_the_result_right(comfy, monkeypatch):
    packed = pack_module("nodes.bridge_packed")
    monkeypatch.setattr(packed.Span, "add", lambda *_: False)
    layer, given = fl.layer(fl.three(), {"layer": fl.gate()}), fl.inputs()
    with torch.inference_mode():
        wanted = layer.written_out(given.x, given.y0)
        assert layer(given.x, given.y0, True).equal(wanted) and (wanted - given.y0).abs().max() > 0.1


@pytest.mark.slow
@needs_triton
def test_the_layers_kernel_in_the_interpreter(comfy):
    """What a card would run, in place and on a slice, in a process of its own."""
    assert passed("triton_layer_side.py") == 3
