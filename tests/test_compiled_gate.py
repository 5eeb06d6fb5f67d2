"""Proves that the compiled pass is the gate, in every dtype it takes, however tokens are shared out, and that nothing
is lost where Numba is missing or fails."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_fast_gate import CHANNELS, EPS, RANKS, SCALES, TILTS, TOKENS, exact, knobs, side_by_side, world

from autolora_core.fusion.fast import choose, chunked, in_place
from autolora_core.fusion.fast.packed import coefficients, pack

numba = pytest.importorskip("numba")
from autolora_core.fusion.fast import compiled_gate  # noqa: E402

ROOM = {torch.float32: 2e-5 / 30, torch.bfloat16: 2**-8}  # of the largest: half a last place


@pytest.fixture(params=[1, 2, 3], ids=lambda count: f"{count} threads")
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def added(dtype, channels=CHANNELS, tilts=TILTS):
    """What the compiled pass makes of rows with gaps, what float64 makes of the same, and what lies in the gaps."""
    y0, hidden, ups, vectors = world()
    ups, y0 = [up[:channels] for up in ups], y0[:, :channels]
    vectors = type(vectors).from_named({name: value[:channels] for name, value in vectors.named().items()})
    packed = pack(ups)
    around = torch.full((TOKENS, channels + 8), 7.0, dtype=dtype)
    around[:, 3:-5] = y0
    start, hidden = around[:, 3:-5].clone(), side_by_side(hidden, packed).to(dtype)
    in_place.add_gated(around[:, 3:-5], hidden, packed, coefficients(vectors), knobs(tilts).tolist(), EPS)
    parts = [hidden[:, first : first + up.shape[1]] for (first, _), up in zip(packed.bounds, ups, strict=True)]
    gaps = torch.cat([around[:, :3], around[:, -5:]], 1)
    return around[:, 3:-5].double(), exact(start, parts, ups, vectors, tilts), gaps


@pytest.mark.parametrize("tilts", [None, TILTS], ids=["plain", "tilted"])
@pytest.mark.parametrize("channels", [200, 128, 100, 17])
@pytest.mark.parametrize("dtype", compiled_gate.DTYPES, ids=str)
def test_it_is_the_gate(threads, dtype, channels, tilts):
    out, wanted, gaps = added(dtype, channels, tilts)
    assert (out - wanted).abs().max() <= ROOM[dtype] * wanted.abs().max()
    assert gaps.eq(7).all()


def test_it_is_what_runs(monkeypatch):
    calls, real = [], compiled_gate.add_gated
    monkeypatch.setattr(compiled_gate, "add_gated", lambda *args: (calls.append(1), real(*args))[1])
    added(torch.float32)
    with choose.in_plain_torch():
        added(torch.float32)
    assert calls == [1]
    out, wanted, _ = added(torch.float16)
    assert calls == [1] and (out - wanted).abs().max() <= 2**-11 * wanted.abs().max()


def test_ranks_that_are_not_filled_up_go_the_other_way():
    """As in training, where a LoRA has as many columns as its rank."""
    y0, hidden, ups, vectors = world()
    packed = pack(ups)
    narrow, at = [], 0
    for rank in RANKS:
        narrow.append((at, at := at + rank))
    keep = [first + j for (first, _), rank in zip(packed.bounds, RANKS, strict=True) for j in range(rank)]
    tight = replace(packed, up=packed.up[:, keep], mean=packed.mean[keep], root=packed.root[keep], bounds=tuple(narrow))
    out = y0.clone()
    in_place.add_gated(out, torch.cat(hidden, 1), tight, coefficients(vectors), knobs(None).tolist(), EPS)
    wanted = exact(y0, hidden, ups, vectors)
    assert (out - wanted).abs().max() <= ROOM[torch.float32] * wanted.abs().max()


@pytest.mark.parametrize("wrong", ["ranks", "columns", "beyond", "channels"])
def test_sizes_that_do_not_fit_are_refused(wrong):
    """Before machine code reads what is not there."""
    sizes = {"hidden": (8, 16), "factors": (16, 32), "table": (5, 32), "norms": (1, 8), "bounds": ((0, 16),)}
    change = {
        "ranks": {"bounds": ((0, 4),)},
        "columns": {"hidden": (8, 4)},
        "beyond": {"bounds": ((0, 32),)},
        "channels": {"table": (5, 31)},
    }
    sizes |= change[wrong]
    made = [torch.zeros(sizes[name]) for name in ("hidden", "factors", "table", "norms", "norms")]
    with pytest.raises(ValueError, match="do not fit"):
        compiled_gate.add_gated(torch.zeros(8, 32), *made, [0.0], sizes["bounds"], EPS)


def test_threads_of_its_own_do_the_same(monkeypatch, threads):
    """Where Numba has only threads that cannot serve two callers."""
    together, _, _ = added(torch.float32)
    monkeypatch.setattr(numba.config, "THREADING_LAYER", "workqueue")
    compiled_gate._gate.cache_clear()
    try:
        assert compiled_gate._gate(torch.float32).func is compiled_gate._by_own_threads
        apart, _, _ = added(torch.float32)
    finally:
        compiled_gate._gate.cache_clear()
    assert apart.equal(together)


def test_the_caller_s_own_number_of_numba_s_threads_stays(threads):
    before = numba.get_num_threads()
    added(torch.float32)
    assert numba.get_num_threads() == before


@pytest.mark.parametrize("dtype", compiled_gate.DTYPES, ids=str)
def test_what_is_no_number_comes_out_and_harms_no_other_token(dtype):
    y0, hidden, ups, vectors = world()
    packed = pack(ups)
    hidden, table, strong = side_by_side(hidden, packed), coefficients(vectors), knobs(None).tolist()
    clean = y0.to(dtype)
    in_place.add_gated(clean, hidden, packed, table, strong, EPS)
    spoilt = y0.to(dtype)
    spoilt[3, 150], spoilt[9, 0], hidden[20, 2] = math.nan, math.inf, math.nan
    in_place.add_gated(spoilt, hidden, packed, table, strong, EPS)
    good = [row for row in range(TOKENS) if row not in (3, 9, 20)]
    assert spoilt[good].equal(clean[good])
    assert spoilt[3].isnan().any() and not spoilt[9, 0].isfinite() and spoilt[20].isnan().all()


def test_bfloat16_is_rounded_as_torch_does():
    dice = np.random.default_rng(0)
    bits = dice.integers(0, 2**32, 1 << 14, dtype=np.uint64).astype(np.uint32)
    bits[:6] = (0x7F800000, 0xFF800000, 0x7FFFFFFF, 0x7F7FFFFF, 0x3F808000, 0x3F818000)
    goal = np.zeros(len(bits), np.uint16)
    compiled_gate._write_bfloat(goal, bits.view(np.float32), bits)
    wanted, out = torch.from_numpy(bits.view(np.float32).copy()).bfloat16(), torch.from_numpy(goal).view(torch.bfloat16)
    assert torch.equal(out.isnan(), wanted.isnan())
    assert out[~out.isnan()].equal(wanted[~wanted.isnan()])


def test_the_sigmoid_is_right_to_the_seventh_place():
    z = torch.linspace(-30, 30, compiled_gate.PIECE * 40).view(40, -1)
    one, none = torch.ones(compiled_gate.PIECE), torch.zeros(compiled_gate.PIECE)
    for logits in z:
        update = torch.zeros(compiled_gate.PIECE)
        arrays = (array.numpy() for array in (update, one, logits.clone(), none))
        compiled_gate._pass(*arrays, np.float32(0), np.float32(0), np.float32(0))
        assert (update.double() - logits.double().sigmoid()).abs().max() < 3e-7


def test_a_wrong_table_is_noticed():
    """The measure itself: half of one row of the table moves the result far beyond the room above."""
    y0, hidden, ups, vectors = world()
    packed, table = pack(ups), coefficients(vectors)
    table[1] *= 0.5
    wrong = chunked.gated(y0, side_by_side(hidden, packed), packed, table, knobs(None), EPS)
    wanted = exact(y0, hidden, ups, vectors)
    assert (wrong.double() - wanted).abs().max() > 1e3 * ROOM[torch.float32] * wanted.abs().max()
    assert len(packed.bounds) == len(SCALES)


@pytest.mark.parametrize("broken", ["missing", "failing"])
def test_without_numba_it_is_plain_torch(monkeypatch, caplog, broken):
    monkeypatch.setattr(choose, "_told", set())
    monkeypatch.setattr(choose, "_not_compiled", [])
    if broken == "missing":
        monkeypatch.setattr(choose, "_has_numba", lambda: False)
    else:
        monkeypatch.delitem(sys.modules, "autolora_core.fusion.fast.compiled_gate")
        monkeypatch.delattr("autolora_core.fusion.fast.compiled_gate")
        monkeypatch.setitem(sys.modules, "numba", None)  # importing it fails
    for _ in range(2):
        out, wanted, _ = added(torch.float32)
        assert (out - wanted).abs().max() <= ROOM[torch.float32] * wanted.abs().max()
    told = [record for record in caplog.records if "Numba failed" in record.getMessage()]
    assert len(told) == (broken == "failing")
