"""Proves that the benchmark of applying LoRAs measures what it says: all ways of a layer give one result, its counting
of operations and bytes is right where it can be done by hand, and its page says what its results say."""

from __future__ import annotations

import copy
import re

import pytest
import torch

from benchmarks.apply import bounds, errors, gpu_kept, layers, memory, quality, turns, work
from benchmarks.apply.page import PAGE, page
from benchmarks.apply.shapes import MODELS, WIDEST, Shape
from benchmarks.apply.ways import Layer
from benchmarks.fusion_page_forms import digits
from benchmarks.results_file import read_results

SMALL = Shape("small", 12, 32, 48, 1)


@pytest.mark.parametrize("dtype", layers.DTYPES)
def test_all_ways_apply_the_same_loras(dtype):
    layer = Layer.make(SMALL, [4, 16], dtype, "cpu")
    exact = layer.exact()
    size = (exact - layer.base().double()).abs().max()
    close = 1e-4 if dtype == torch.float32 else 0.2
    for way in (layer.eager, layer.chunked):
        assert (way().double() - exact).abs().max() < close * size
    merged = torch.nn.functional.linear(layer.x, layers.merged_weight(layer), layer.bias).double()
    assert (merged - layer.bypass().double()).abs().max() < close * layer.bypass().double().abs().max()
    assert (merged - layer.base().double()).abs().max() > 0.1, "merging did something"


@pytest.mark.slow
def test_the_node_s_layer_is_the_gate(comfy):
    from benchmarks.apply.node_layer import NodeLayer, running

    for dtype, close in zip(layers.DTYPES, (1e-4, 0.2), strict=True):
        layer = Layer.make(SMALL, [4, 16, 3], dtype, "cpu")
        with running():
            out = NodeLayer(layer)().double()
        exact = layer.exact()
        assert (out - exact).abs().max() < close * (exact - layer.base().double()).abs().max()


def test_shapes_keep_their_text_when_pictures_get_smaller():
    at = {shape.name: shape.at(1 / 4).tokens for shape in MODELS["flux"]}
    assert (at["img.qkv"], at["txt.qkv"], at[WIDEST]) == (1024, 512, 1024 + 512)
    assert {shape.at(1 / 16).tokens for shape in MODELS["sdxl"] if shape.name.endswith("context")} == {77}
    assert [shape.at(1) for shape in MODELS["flux"]] == MODELS["flux"]


def test_operations_and_bytes_are_counted():
    """A linear layer by hand; and branches beside it, of which each reads and writes what the layer put out."""
    shape, size = Shape("hand", 256, 32, 48, 1), 4
    base = work.counted(shape, 2, 4, torch.float32, Layer.base)
    assert base.flops == 2 * 256 * 32 * 48
    assert base.bytes == size * (256 * 32 + 32 * 48 + 48 + 256 * 48)
    bypass = work.counted(shape, 2, 4, torch.float32, Layer.bypass)
    branch = 2 * 256 * 4 * (32 + 48) + 256 * 4 + 256 * 48  # products, strength, sum
    assert bypass.flops - base.flops == 2 * branch
    moved = 256 * (32 + 4 + 4 + 4 + 4 + 48 + 3 * 48) + 4 * (32 + 48)
    assert abs(bypass.bytes - base.bytes - 2 * size * moved) < 100  # the strength is a number
    assert work.counted(shape, 2, 4, torch.float32, Layer.eager).bytes > 3 * bypass.bytes


def test_allocations_are_counted():
    def run():
        first = torch.ones(1000)
        second = first + 1
        del first
        return torch.cat([second, second])

    assert memory.peak_bytes(run) == 3 * 4000
    rows = memory.training_rows(64, 96, 4, 3)
    assert rows[0]["way"] == "eager" and rows[0]["saved_over_output"] > 6 * rows[1]["saved_over_output"]


def test_turns_leave_out_the_first_and_what_comes_before():
    told = []
    taken = turns.in_turns({"a": lambda: told.append("a"), "b": lambda: told.append("b")}, 2, before=told.append)
    assert told == ["a", "a", "b", "b"] * 3 and set(taken) == {"a", "b"}


def test_a_set_is_its_layers_as_often_as_they_run():
    rows = [
        {"model": "sdxl", "dtype": "float32", "k": 3, "rank": 16, "share": 1.0, "count": count}
        | {f"{way}_ms": ms * (3 if way == "node" else 1) for way in layers.WAYS}
        for count, ms in ((1, 2.0), (10, 1.0))
    ]
    rows[1]["node_ms"] = 1.0
    found = layers.figures(rows)
    assert found["cpu_sdxl_k3_r16_over_base"] == pytest.approx((6 + 10) / (2 + 10))
    assert found["eager_over_ours_cpu"] == pytest.approx(12 / 16)


def test_the_card_s_figures_are_those_that_were_kept():
    kept, found = read_results("apply_gpu"), read_results("apply_speed")
    own = {name: value for name, value in found["figures"].items() if name.startswith("gpu_")}
    assert own == kept["figures"] | gpu_kept.widest(kept["rows"]) and own["gpu_bytes_over_limit"] > 1
    least = 2 * 2 * 4608 * 21504 / gpu_kept.PEAK * 1e3  # ms: the output read and written once
    layer = next(r for r in kept["rows"] if r.get("shape") == WIDEST and (r.get("k"), r.get("rank")) == (3, 16))
    assert own["gpu_widest_least_over_base"] == pytest.approx(1 + least / layer["base"])


@pytest.fixture(scope="module")
def results():
    """Results of every part: the card's as they are kept, the processor's made up."""
    kept = read_results("apply_speed")
    figures = {name: value for name, value in kept["figures"].items() if name.startswith("gpu_")}
    rows = [row for row in kept["rows"] if row["part"] == "gpu"]
    figures |= {"cpu_gb_per_s": 20.0, "cpu_gflops_float32": 200.0, "cpu_gflops_bfloat16": 2000.0}
    about = {"threads": 2, "turns": 1, "tokens": 64, "n_in": 8, "out": 8, "count": 2, "shape": "64.ff.0"}
    ms = {"base_ms": 1.0, "merged_ms": 1.01, "bypass_ms": 1.4, "eager_ms": 9.5, "node_ms": 1.23, "torch_ms": 1.3}
    for model, dtype in (("sd15", "float32"), ("sdxl", "float32"), ("sdxl", "bfloat16")):
        for k, rank, share in ((3, 16, 1.0), (3, 16, layers.SWEEP), (1, 64, layers.SWEEP)):
            rows.append({**about, "model": model, "dtype": dtype, "k": k, "rank": rank, "share": share, **ms})
    for way, amount in (("base", 1e8), ("bypass", 1e9), ("eager", 7e9), ("ours", 2e8)):
        rows.append({"what": "work", "on": "cpu", "shape": "64.ff.0", "dtype": "float32", "k": 3, "rank": 16,
                     "way": way, "flops": 2.7e10, "bytes": amount})  # fmt: skip
    rows += [{"what": "picture", "way": way, "ms": ms, "steps": 20, "side": 256} for way, ms in
             (("base", 500.0), ("gate_k3", 870.0))]  # fmt: skip
    rows += [{"what": "layer", "k": 3, "rank": 16, "dtype": "float32", "way": way, "branch_bytes": 4, "tokens": 1,
              "out": 1, "peak_extra_over_one_branch": 0.37} for way in ("node", "eager")]  # fmt: skip
    rows += memory.training_rows(32, 48, 4, 3)
    for path, value in (("eager", 0.5), ("node", 0.52), ("node less eager", 0.02)):
        rows.append({"what": "joint", "gate": "published_form", "path": path, "pairs": 7, "seeds": 2, "k": 3,
                     "value": value, "low": value - 0.01, "high": value + 0.01})  # fmt: skip
    rows += [{"what": "error", "dtype": "float16", "way": way, "max": most, "rms": most / 10}
             for way, most in (("eager", 0.3), ("node", 0.11), ("node", 0.2), ("torch", 0.1))]  # fmt: skip
    rows.append({"what": "apart", "gate": "shipped", "dtype": "float32", "max_latent": 1.5e-5, "max_pixel": 2,
                 "mean_pixel": 0.006})  # fmt: skip
    return {"command": "python -m made.up", "date": "3000-01-01T00:00", "machine": "a machine", "figures": figures,
            "rows": rows}  # fmt: skip


def test_the_page_is_made_from_the_results():
    found = read_results("apply_speed")
    assert found is not None and PAGE.read_text(encoding="utf-8") == page(found)


def test_the_page_says_what_was_found(results):
    text = page(results)
    for told in (
        "1.23",
        "9.50",
        "1.74",
        "0.37",
        "50.0% [49.0%, 51.0%]",
        "2.0% [1.0%, 3.0%]",
        "1.5e-05",
        "1.08",
        "2.0e-01",
    ):
        assert told in text, told
    figures = results["figures"]
    assert f"Found: {digits(2)(figures['gpu_flux_k3_r16_over_base'])}. It is **missed**." in text
    assert "not here yet" not in text
    changed = copy.deepcopy(results)
    changed["figures"]["gpu_flux_k3_r16_over_base"] = 1.05
    assert "It is met." in page(changed)


def test_the_worst_errors_are_the_figures(results):
    wrong = errors.figures_of([row for row in results["rows"] if row.get("what") == "error"])
    assert wrong["cpu_max_error_float16"] == 0.2
    found = quality.figures_of([row for row in results["rows"] if row.get("what") in ("joint", "apart")])
    assert found["quality_published_form_joint_node_less_eager"] == 0.02
    assert found["quality_shipped_max_pixel_float32"] == 2


def test_what_was_not_measured_is_not_on_the_page(results):
    bare = {**results, "rows": [], "figures": {}}
    assert "not here yet" in page(bare) and not re.search(r"^## (On a GPU|Memory|Do pictures)", page(bare), re.M)


def test_the_plot_is_drawn_and_small(results, tmp_path, monkeypatch):
    monkeypatch.setattr(bounds, "IMAGE", tmp_path / "images" / "plot.png")
    bounds.draw(results["figures"], results["rows"])
    assert 2_000 < bounds.IMAGE.stat().st_size < 60_000
