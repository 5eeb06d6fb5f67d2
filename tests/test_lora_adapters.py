"""Proves that ``Update.delta()`` is the ΔW of the adapter's definition, computed here element by element in float64.

The references follow the papers: LoRA (2106.09685), LyCORIS (2309.14859) for LoCon, Tucker, LoHa and LoKr. They share
nothing with the code under test: no factorisation, no Khatri-Rao, no mixed products.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from autolora_core.errors import LoraError, UnsupportedAdapterError
from autolora_core.lora import adapters
from autolora_core.lora.adapters import Update, split_qkv, swap_halves
from autolora_core.lora.file import LoraFile
from autolora_core.lora.shapes import describe

NAME = "diffusion_model.joint_blocks.0.x_block.mlp.fc1"  # any dotted name is read as it stands
CONV = "diffusion_model.middle_block.0.in_layers.2"
TOLERANCE = {torch.float64: 1e-14, torch.float32: 2e-7, torch.float16: 2e-7, torch.bfloat16: 2e-7}


def one(path: Path, stem: str, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Update:
    """The only update of a file with these tensors (suffix -> tensor) on one module."""
    save_file({f"{stem}.{end}": value.contiguous() for end, value in tensors.items()}, path, metadata)
    lora = LoraFile.open(path)
    assert len(lora.modules) == 1 and not lora.keys.unknown and not lora.keys.ignored
    return next(lora.updates())


def f64(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().numpy()


def close(update: Update, want: np.ndarray, dtype: torch.dtype = torch.float32) -> None:
    got = update.delta()
    assert got.dtype == torch.float64 and got.shape == want.shape
    assert np.abs(got.numpy() - want).max() <= TOLERANCE[dtype] * np.abs(want).max() * 4


def tucker(core: np.ndarray, wa: np.ndarray, wb: np.ndarray) -> np.ndarray:
    """LyCORIS' rebuild: W[p, q, s, t] = Σ_i Σ_j core[i, j, s, t]·wa[i, p]·wb[j, q], in plain loops."""
    out = np.zeros((wa.shape[1], wb.shape[1], *core.shape[2:]))
    for i in range(core.shape[0]):
        for j in range(core.shape[1]):
            for p in range(wa.shape[1]):
                for q in range(wb.shape[1]):
                    out[p, q] += core[i, j] * wa[i, p] * wb[j, q]
    return out


def kronecker(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(a, b) ⊗ (c, d, *k) -> (a·c, b·d, *k), block by block."""
    (a, b), (c, d) = left.shape, right.shape[:2]
    out = np.zeros((a * c, b * d, *right.shape[2:]))
    for i in range(a):
        for j in range(b):
            out[i * c : (i + 1) * c, j * d : (j + 1) * d] = left[i, j] * right
    return out


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("alpha", [None, 0.0, 1.0, 2.7, 16.0])
def test_lora_is_alpha_over_rank_times_up_down(tmp_path: Path, dtype: torch.dtype, alpha: float | None) -> None:
    down, up = torch.randn(3, 7).to(dtype), torch.randn(5, 3).to(dtype)
    tensors = {"lora_down.weight": down, "lora_up.weight": up}
    if alpha is not None:
        tensors["alpha"] = torch.tensor(alpha, dtype=torch.float64)
    update = one(tmp_path / "x.safetensors", NAME, tensors)
    want = (1.0 if alpha is None else alpha / 3) * f64(up) @ f64(down)
    assert update.kind == "lowrank" and update.rank == 3
    close(update, want, dtype) if alpha != 0 else np.testing.assert_array_equal(update.delta().numpy(), 0 * want)


@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (5,), (2, 3, 3)], ids=str)
def test_a_convolution_keeps_its_kernel(tmp_path: Path, kernel: tuple[int, ...]) -> None:
    down, up = torch.randn(2, 4, *kernel), torch.randn(6, 2, *[1] * len(kernel))
    update = one(tmp_path / "x.safetensors", NAME, {"lora_down.weight": down, "lora_up.weight": up})
    want = np.zeros((6, 4, *kernel))
    for o in range(6):
        for r in range(2):
            want[o] += f64(up).reshape(6, 2)[o, r] * f64(down)[r]
    assert update.shape == (6, 4, *kernel)
    close(update, want)


def test_a_flattened_three_by_three_of_a_unet_gets_its_kernel_back(tmp_path: Path) -> None:
    down, up = torch.randn(2, 4 * 9), torch.randn(6, 2)
    update = one(tmp_path / "x.safetensors", CONV, {"lora_down.weight": down, "lora_up.weight": up})
    close(update, (f64(up) @ f64(down)).reshape(6, 4, 3, 3))


def test_locon_with_tucker_core(tmp_path: Path) -> None:
    down, mid, up = torch.randn(3, 4, 1, 1), torch.randn(2, 3, 3, 3), torch.randn(6, 2, 1, 1)
    tensors = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up, "alpha": torch.tensor(1.5)}
    update = one(tmp_path / "x.safetensors", NAME, tensors)
    want = tucker(f64(mid), f64(up).reshape(6, 2).T, f64(down).reshape(3, 4)) * 1.5 / 3
    assert update.mid is not None and update.shape == (6, 4, 3, 3)
    close(update, want)


LOHA_SIZES = [(40, 50, 2), (5, 6, 3)]  # the product as factors is cheaper, or is not


@pytest.mark.parametrize("size", LOHA_SIZES, ids=["lowrank", "dense"])
@pytest.mark.parametrize("core", [False, True], ids=["matrix", "tucker"])
def test_loha_is_the_elementwise_product(tmp_path: Path, size: tuple[int, int, int], core: bool) -> None:
    out, wide, r = size
    halves, tensors = [], {"alpha": torch.tensor(1.1)}
    for n in (1, 2):
        wa, wb = (torch.randn(r, out) if core else torch.randn(out, r)), torch.randn(r, wide)
        tensors |= {f"hada_w{n}_a": wa, f"hada_w{n}_b": wb}
        if core:
            tensors[f"hada_t{n}"] = t = torch.randn(r, r, 3, 3)
            halves.append(tucker(f64(t), f64(wa), f64(wb)))
        else:
            halves.append(f64(wa) @ f64(wb))
    update = one(tmp_path / "x.safetensors", NAME, tensors)
    assert update.kind == ("lowrank" if size == LOHA_SIZES[0] else "dense")
    close(update, halves[0] * halves[1] * np.float32(1.1) / r)


LOKR_PARTS = {
    "full, full": ({"lokr_w1": (2, 3)}, {"lokr_w2": (20, 30)}),
    "full, factored": ({"lokr_w1": (2, 3)}, {"lokr_w2_a": (20, 2), "lokr_w2_b": (2, 30)}),
    "factored, full": ({"lokr_w1_a": (20, 2), "lokr_w1_b": (2, 30)}, {"lokr_w2": (3, 2)}),
    "factored, factored": ({"lokr_w1_a": (20, 1), "lokr_w1_b": (1, 30)}, {"lokr_w2_a": (3, 2), "lokr_w2_b": (2, 3)}),
    "conv, full": ({"lokr_w1": (2, 3)}, {"lokr_w2": (4, 5, 3, 3)}),
    "conv, tall": ({"lokr_w1": (3, 2)}, {"lokr_w2": (40, 2, 3, 3)}),
    "conv, tucker": ({"lokr_w1": (2, 3)}, {"lokr_t2": (2, 3, 3, 3), "lokr_w2_a": (2, 8), "lokr_w2_b": (3, 9)}),
    "tiny": ({"lokr_w1": (2, 2)}, {"lokr_w2": (3, 3)}),
}


@pytest.mark.parametrize("name", LOKR_PARTS)
def test_lokr_is_the_kronecker_product(tmp_path: Path, name: str) -> None:
    tensors = {key: torch.randn(shape) for part in LOKR_PARTS[name] for key, shape in part.items()}
    values = {key: f64(value) for key, value in tensors.items()}
    left = values["lokr_w1"] if "lokr_w1" in values else values["lokr_w1_a"] @ values["lokr_w1_b"]
    if "lokr_t2" in values:
        right = tucker(values["lokr_t2"], values["lokr_w2_a"], values["lokr_w2_b"])
    else:
        right = values["lokr_w2"] if "lokr_w2" in values else values["lokr_w2_a"] @ values["lokr_w2_b"]
    ranked = values.get("lokr_w2_b", values.get("lokr_w1_b"))
    scale = 1.0 if ranked is None else 4.0 / ranked.shape[0]  # two full factors: alpha does not count
    update = one(tmp_path / "x.safetensors", NAME, {**tensors, "alpha": torch.tensor(4.0)})
    close(update, kronecker(left, right) * scale)


def test_a_diff_and_its_bias_are_taken_as_they_are(tmp_path: Path) -> None:
    diff, bias = torch.randn(4, 3), torch.randn(4)
    update = one(tmp_path / "x.safetensors", NAME, {"diff": diff, "diff_b": bias, "alpha": torch.tensor(9.0)})
    close(update, f64(diff))
    assert torch.equal(update.bias, bias)


def test_a_lora_with_a_bias_keeps_both(tmp_path: Path) -> None:
    tensors = {"lora_A.weight": torch.randn(2, 3), "lora_B.weight": torch.randn(4, 2), "lora_B.bias": torch.randn(4)}
    update = one(tmp_path / "x.safetensors", NAME, tensors)
    assert update.kind == "lowrank" and torch.equal(update.bias, tensors["lora_B.bias"])


PAIR = {"lora_down.weight": torch.ones(2, 3), "lora_up.weight": torch.ones(4, 2)}
NOT_ADDITIVE = {
    "dora": {**PAIR, "dora_scale": torch.ones(4, 1)},
    "dora of a loha": {f"hada_w{n}_{s}": torch.ones((4, 2) if s == "a" else (2, 3)) for n in (1, 2) for s in "ab"}
    | {"dora_scale": torch.ones(1, 3)},
    "peft dora": {"lora_A.weight": torch.ones(2, 3), "lora_B.weight": torch.ones(4, 2)}
    | {"lora_magnitude_vector": torch.ones(4)},
    "oft": {"oft_blocks": torch.zeros(2, 2, 2), "alpha": torch.tensor(1.0)},
    "boft": {"oft_blocks": torch.zeros(1, 2, 2, 2), "rescale": torch.ones(4, 1)},
    "glora": {"a1.weight": torch.ones(3, 2), "a2.weight": torch.ones(2, 3)}
    | {"b1.weight": torch.ones(4, 2), "b2.weight": torch.ones(2, 3)},
    "ia3": {"ia3_l": torch.ones(4, 1)},
    "set": {"set_weight": torch.ones(4, 3)},
    "norm": {"w_norm": torch.ones(4), "b_norm": torch.ones(4)},
    "bias": {"diff_b": torch.ones(4)},
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_ADDITIVE)
def test_what_is_not_additive_says_so_by_name(tmp_path: Path, name: str) -> None:
    update = one(tmp_path / "x.safetensors", NAME, NOT_ADDITIVE[name])
    rule = {"dora of a loha": "dora", "peft dora": "dora"}.get(name, name)
    assert update.kind == "not_additive" and update.rule == rule
    with pytest.raises(UnsupportedAdapterError, match=rule):
        update.delta()


def test_a_dora_keeps_its_direction_and_its_magnitude(tmp_path: Path) -> None:
    update = one(tmp_path / "x.safetensors", NAME, {**NOT_ADDITIVE["dora"], "alpha": torch.tensor(1.0)})
    assert torch.equal(update.extra["dora_scale"], torch.ones(4, 1))
    assert torch.equal(update.up @ update.down, torch.ones(4, 3))  # two ranks of ones, times alpha/rank = 1/2


def test_halves_are_swapped_for_factors_dense_and_bias() -> None:
    up, down = torch.randn(6, 2), torch.randn(2, 3)
    swapped = swap_halves(Update("m", "lowrank", up=up, down=down, bias=torch.arange(6.0)))
    order = [3, 4, 5, 0, 1, 2]
    assert torch.equal(swapped.delta(), (up.double() @ down.double())[order])
    assert swapped.bias.tolist() == order
    dense = Update("m", "dense", dense=torch.randn(6, 3))
    assert torch.equal(swap_halves(dense).dense, dense.dense[order])


SPLITS = {
    "joint_blocks.0.x_block.attn.qkv": (24, 8, [(0, 8), (8, 16), (16, 24)]),
    "layers.0.attention.qkv": (16, 8, [(0, 8), (8, 12), (12, 16)]),  # grouped-query attention
    "single_blocks.3.linear1": (56, 8, [(0, 8), (8, 16), (16, 24), (24, 56)]),
    "single_blocks.3.linear1[0:24]": (24, 8, [(0, 8), (8, 16), (16, 24)]),  # XLabs trains q, k, v only
    "blocks.1.cross_attn.kv_linear": (16, 8, [(0, 8), (8, 16)]),
    "joint_blocks.0.x_block.mlp.fc1": (32, 8, None),
    "x_block.attn.qkv[8:16]": (8, 8, None),
}


@pytest.mark.parametrize("module", SPLITS)
def test_fused_updates_split_into_their_rows(module: str) -> None:
    out, wide, edges = SPLITS[module]
    update = Update(module, "lowrank", up=torch.randn(out, 2), down=torch.randn(2, wide), bias=torch.arange(float(out)))
    parts = split_qkv(update)
    if edges is None:
        assert parts == (update,)
        return
    assert [part.rows for part in parts] == edges
    assert all(part.base_module == update.base_module for part in parts)
    assert torch.equal(torch.cat([part.delta() for part in parts]), update.delta())
    assert torch.equal(torch.cat([part.bias for part in parts]), update.bias)


def test_small_tensors_that_claim_a_huge_layer_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "MAX_DENSE", 1000)
    with pytest.raises(LoraError, match="claim a layer"):
        one(tmp_path / "x.safetensors", NAME, {"lokr_w1": torch.ones(9, 9), "lokr_w2": torch.ones(9, 9)})


def test_rslora_and_alpha_of_the_configuration_are_honoured_and_reported(tmp_path: Path) -> None:
    down, up = torch.randn(4, 3), torch.randn(5, 4)
    stem = "transformer.transformer_blocks.0.ff.net.0.proj"
    note = '{"transformer.r": 4, "transformer.lora_alpha": 6, "transformer.use_rslora": true}'
    tensors = {"lora_A.weight": down, "lora_B.weight": up}
    path = tmp_path / "x.safetensors"
    update = one(path, stem, tensors, {"lora_adapter_metadata": note})
    close(update, f64(up) @ f64(down) * 6 / np.sqrt(4))
    lora = LoraFile.open(path)
    (entry,) = lora.modules.values()
    assert (entry.scale, entry.stock_scale) == (3.0, 1.0) and "lora_adapter_metadata" in lora.problems[0]
    stock = next(LoraFile.open(path, stock_scale=True).updates())
    close(stock, f64(up) @ f64(down))


def test_the_configuration_beside_a_peft_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 8, "alpha_pattern": {"fc2": 2}}')
    tensors = {}
    for name in ("fc1", "fc2"):
        stem = f"base_model.model.joint_blocks.0.x_block.mlp.{name}"
        tensors |= {f"{stem}.lora_A.weight": torch.ones(2, 256), f"{stem}.lora_B.weight": torch.ones(256, 2)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    scales = [entry.scale for entry in LoraFile.open(tmp_path / "adapter_model.safetensors").modules.values()]
    assert scales == [4.0, 1.0]
    save_file(tensors, tmp_path / "renamed.safetensors")  # no longer the file the configuration belongs to
    assert {entry.scale for entry in LoraFile.open(tmp_path / "renamed.safetensors").modules.values()} == {1.0}


@pytest.mark.parametrize(("out", "wide"), [(64, 64), (96, 64), (64, 96)])
def test_the_layer_of_a_glora_is_read_off_either_form(out, wide):
    """LyCORIS turned its factors round in 2024; on a square layer both readings fit, and one of them is 4 × 4."""
    old = {"a1": (4, wide), "a2": (wide, 4), "b1": (4, wide), "b2": (out, 4)}
    new = {"a1": (wide, 4), "a2": (4, wide), "b1": (out, 4), "b2": (4, wide)}
    assert describe(old).shape == describe(new).shape == (out, wide)
