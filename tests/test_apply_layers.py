"""Proves that every kind of layer and adapter is applied exactly, or handed on, or refused by name.

The stock loader merges ΔW into the weight; a branch beside the layer must give the same output. Convolutions are
checked layer by layer against the merged weight in float64.
"""

from __future__ import annotations

import pytest
import tiny_models
import torch
from apply_world import World, difference, layer_calls, lora_delta, sd3_fixtures, untouched
from comfy_local import pack_module
from reference_fusion import gated_sum_ref, random_vectors
from safetensors.torch import load_file

EXACT = 1e-4
QKV = "joint_blocks.0.x_block.attn.qkv"
FC1 = "joint_blocks.0.x_block.mlp.fc1"


state, world = sd3_fixtures(128)


def normal(*shape: int, seed: int = 0, scale: float = 0.2) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def pair(rank: int = 4, out: int = 512, n_in: int = 128) -> dict[str, torch.Tensor]:
    return {"lora_down.weight": normal(rank, n_in), "lora_up.weight": normal(out, rank, seed=1)}


def same_as_stock(world: World, name: str, strength: float = 0.8) -> str:
    """Fused in sum mode equals the stock loader and changes the picture; returns the report."""
    model, _, report = world.apply((name, strength), mode="sum")
    fused = tiny_models.sample(model)
    assert difference(fused, tiny_models.sample(world.stock((name, strength)))) <= EXACT
    assert difference(fused, tiny_models.sample(world.model)) > 0.02
    return report


def with_prefix(tensors: dict[str, torch.Tensor], layer: str = FC1, prefix: str = "diffusion_model.") -> dict:
    return {f"{prefix}{layer}.{suffix}": value for suffix, value in tensors.items()}


LINEAR_ADAPTERS = {
    "loha": {"hada_w1_a": (512, 3), "hada_w1_b": (3, 128), "hada_w2_a": (512, 3), "hada_w2_b": (3, 128), "alpha": ()},
    "loha_of_full_rank": {
        "hada_w1_a": (512, 16),
        "hada_w1_b": (16, 128),
        "hada_w2_a": (512, 16),
        "hada_w2_b": (16, 128),
    },
    "lokr": {"lokr_w1": (8, 4), "lokr_w2": (64, 32)},
    "lokr_both_factored": {
        "lokr_w1_a": (8, 2),
        "lokr_w1_b": (2, 4),
        "lokr_w2_a": (64, 5),
        "lokr_w2_b": (5, 32),
        "alpha": (),
    },
    "lokr_right_factored": {"lokr_w1": (8, 4), "lokr_w2_a": (64, 5), "lokr_w2_b": (5, 32), "alpha": ()},
    "lora_without_alpha": {"lora_down.weight": (4, 128), "lora_up.weight": (512, 4)},
}


@pytest.mark.parametrize("kind", LINEAR_ADAPTERS)
def test_linear_adapters_equal_the_stock_loader(world, kind):
    shapes = LINEAR_ADAPTERS[kind].items()
    tensors = {suffix: normal(*shape, seed=n, scale=0.5) for n, (suffix, shape) in enumerate(shapes) if shape}
    if "alpha" in LINEAR_ADAPTERS[kind]:
        tensors["alpha"] = torch.tensor(2.0)
    report = same_as_stock(world, world.file("one.safetensors", with_prefix(tensors)))
    assert "1 of 1 layer" in report and "weight patches" not in report


def test_lokr_is_never_built_densely(world):
    layer = with_prefix({"lokr_w1": normal(8, 4), "lokr_w2": normal(64, 32, seed=1)})
    model = world.fused((world.file("lokr.safetensors", layer), 1.0))
    sizes = [parameter.numel() for parameter in model.get_additional_models()[0].model.parameters()]
    assert sorted(sizes) == [8 * 4, 64 * 32]


NOT_A_BRANCH = {
    "DoRA": {
        "lora_down.weight": normal(4, 128),
        "lora_up.weight": normal(512, 4, seed=1),
        "dora_scale": normal(512, 1) + 1,
    },
    "a full weight difference": {"diff": normal(512, 128)},
    "a replaced weight": {"set_weight": normal(512, 128)},
    "oft adapter": {"oft_blocks": normal(4, 128, 128)},
    "glora adapter": {
        "a1.weight": normal(4, 128),
        "a2.weight": normal(128, 4, seed=1),
        "b1.weight": normal(4, 128, seed=2),
        "b2.weight": normal(512, 4, seed=3),
    },
}


@pytest.mark.parametrize("kind", NOT_A_BRANCH)
def test_what_is_no_branch_goes_to_weight_patches_and_is_said(world, kind):
    """OFT and GLoRA depend on the base weight, so only ComfyUI's own merge is right for them."""
    name = world.file("odd.safetensors", with_prefix(NOT_A_BRANCH[kind]))
    model, _, report = world.apply((name, 0.7))
    assert kind in report and FC1 in report and "as weight patches" in report
    stock = tiny_models.sample(world.stock((name, 0.7)))
    assert tiny_models.sample(model).equal(stock)
    assert difference(stock, tiny_models.sample(world.model)) > 1e-3


def test_bias_and_norm_entries_are_forwarded_beside_the_branch(world):
    tensors = {
        "lora_down.weight": normal(4, 128),
        "lora_up.weight": normal(512, 4, seed=1),
        "diff_b": normal(512, seed=2),
    }
    report = same_as_stock(world, world.file("bias.safetensors", with_prefix(tensors)))
    assert "a bias" in report and "1 of 1 layer" in report


def test_a_control_lora_is_refused_by_name(world):
    tensors = {
        "lora_down.weight": normal(4, 256),
        "lora_up.weight": normal(512, 4),
        "reshape_weight": torch.tensor([512, 256]),
    }
    name = world.file("control.safetensors", with_prefix(tensors))
    errors = pack_module("autolora_core.errors")
    with pytest.raises(errors.UnsupportedAdapterError, match="control.safetensors.*"):
        world.apply((name, 1.0))


def test_wrong_size_is_another_base(world):
    errors = pack_module("autolora_core.errors")
    for tensors, why in (
        (pair(out=256, n_in=64), "width 64.*has width 128"),
        ({"lokr_w1": normal(2, 2), "lokr_w2": normal(64, 32)}, "width 64.*has width 128"),
        (pair(out=256, n_in=128), FC1),
        ({"lokr_w1": normal(2, 2), "lokr_w2": normal(60, 64)}, FC1),
    ):
        name = world.file("other.safetensors", with_prefix(tensors))
        with pytest.raises(errors.FamilyError, match=f"other.safetensors.*{why}"):
            world.apply((name, 1.0))


def test_adaln_swap_of_diffusers_files_is_undone(world):
    """diffusers stores scale and shift of the last modulation the other way round; ComfyUI swaps the rows of ΔW."""
    tensors = with_prefix(
        {"lora_A.weight": normal(4, 128), "lora_B.weight": normal(256, 4, seed=1)}, "norm_out.linear", "transformer."
    )
    same_as_stock(world, world.file("swap.safetensors", tensors))


def unfused_and_fused(world: World) -> tuple[str, str]:
    """The same update as three diffusers files entries (q, k, v) and as one fused ComfyUI entry (rank 3·r)."""
    split, ups, downs = {}, [], []
    for number, part in enumerate("qkv"):
        down, up = normal(3, 128, seed=number), normal(128, 3, seed=10 + number)
        split[f"transformer.transformer_blocks.0.attn.to_{part}.lora_A.weight"] = down
        split[f"transformer.transformer_blocks.0.attn.to_{part}.lora_B.weight"] = up
        downs.append(down)
        ups.append(up)
    fused = {"lora_down.weight": torch.cat(downs), "lora_up.weight": torch.block_diag(*ups)}
    return world.file("split.safetensors", split), world.file("fused.safetensors", with_prefix(fused, QKV))


def test_slices_in_sum_mode_equal_the_stock_loader(world):
    """q, k and v of one projection are one layer in the report, stored apart or not."""
    for name in unfused_and_fused(world):
        assert ": 1 of 1 layer" in same_as_stock(world, name)


@pytest.mark.parametrize("spans", [[(0, 384)], [(0, 128), (128, 256), (256, 384)]], ids=["whole", "slices"])
def test_fused_and_unfused_files_give_the_same_gated_output(world, spans):
    vectors = {span: random_vectors(span[1] - span[0], seed=n) for n, span in enumerate(spans)}
    names = {(0, 384): QKV}
    world.gate({names.get(span, f"{QKV}[{span[0]}:{span[1]}]"): one for span, one in vectors.items()}, k_range=(1, 4))
    split, fused = unfused_and_fused(world)
    one = layer_calls(world.fused((split, 0.9), mode="gate"), [QKV])[QKV]
    two = layer_calls(world.fused((fused, 0.9), mode="gate"), [QKV])[QKV]
    assert difference(one[1], two[1]) <= EXACT
    x = one[0].reshape(-1, 128)[:3].double()
    y0 = x @ world.state[f"{QKV}.weight"].double().T + world.state[f"{QKV}.bias"].double()
    y1 = 0.9 * torch.cat(
        [x @ (normal(128, 3, seed=10 + n) @ normal(3, 128, seed=n)).double().T for n in range(3)], dim=-1
    )
    expected = [gated_sum_ref(y0[:, a:b], [y1[:, a:b]], vectors[a, b]) for a, b in spans]
    assert difference(one[1].reshape(-1, 384)[:3].double(), torch.cat(expected, dim=-1)) <= EXACT


def test_a_partly_covered_slice_stays_ungated(world):
    """Only v is in the file; the gate knows q and k. Then v is summed and nothing is gated."""
    world.gate({f"{QKV}[0:256]": random_vectors(256, 0)}, k_range=(1, 4))
    key = "transformer.transformer_blocks.0.attn.to_v"
    tensors = {f"{key}.lora_A.weight": normal(3, 128), f"{key}.lora_B.weight": normal(128, 3, seed=1)}
    model, _, report = world.apply((world.file("v.safetensors", tensors), 1.0), mode="gate")
    assert "gate on 0 of 1 layer; the other is summed" in report and ": 1 of 1 layer\n" in f"{report}\n"
    stock = tiny_models.sample(world.stock(("v.safetensors", 1.0)))
    assert difference(tiny_models.sample(model), stock) <= EXACT


def test_different_ranks_on_one_module(world):
    one = world.file(
        "r1.safetensors", with_prefix({"lora_down.weight": normal(1, 128), "lora_up.weight": normal(512, 1)})
    )
    two = world.file(
        "r9.safetensors", with_prefix({"lora_down.weight": normal(9, 128), "lora_up.weight": normal(512, 9)})
    )
    fused = tiny_models.sample(world.fused((one, 1.0), (two, -0.4), mode="sum"))
    assert difference(fused, tiny_models.sample(world.stock((one, 1.0), (two, -0.4)))) <= EXACT


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_factors_keep_their_bits(world, dtype):
    name = world.file("half.safetensors", with_prefix({key: value.to(dtype) for key, value in pair().items()}))
    same_as_stock(world, name)
    (layer,) = world.fused((name, 1.0)).get_additional_models()[0].model.layers
    (down,) = [value for key, value in load_file(world.loras / name).items() if "down" in key]
    kept = layer.factors.down.weight
    assert kept.equal(down.to(kept.dtype)) and kept.dtype == torch.float32  # what this model computes in


def test_fp8_base_weights(world, state):
    """The merge rounds to fp8 again, the branch does not: compared with the layer's own output."""
    fp8 = tiny_models.load(state, dtype=torch.float8_e4m3fn)
    base = tiny_models.sample(fp8)
    name = world.file("x.safetensors", with_prefix(pair()))
    check_layer(fp8, world.apply((name, 1.0), model=fp8)[0], FC1)
    assert tiny_models.sample(fp8).equal(base) and untouched(fp8)


def test_mixed_precision_linear_is_no_nn_linear(world, state):
    """Quantised checkpoints bring a Linear class of their own; its layers are found by their attributes."""
    mixed = quantised_model(state, FC1)
    module = mixed.model.diffusion_model.get_submodule(FC1)
    assert not isinstance(module, torch.nn.Linear)
    base = tiny_models.sample(mixed)
    name = world.lora("all.safetensors")
    model, _, report = world.apply((name, 0.5), model=mixed)
    assert "17 of 17 layers" in report and "weight patches" not in report
    check_layer(mixed, model, FC1, 0.5, name, world)
    assert tiny_models.sample(mixed).equal(base) and untouched(mixed)


def quantised_model(state: dict, layer: str):
    """The tiny SD3 with one fp8 layer, declared as each ComfyUI wants it: in the metadata, or beside the weight."""
    import json

    scale = state[f"{layer}.weight"].abs().max() / 448
    stored = {f"{layer}.weight": (state[f"{layer}.weight"] / scale).to(torch.float8_e4m3fn)}
    quantised = {**state, **stored, f"{layer}.weight_scale": scale}
    metadata = {"_quantization_metadata": json.dumps({"layers": {layer: {"format": "float8_e4m3fn"}}})}
    return tiny_models.load(quantised, metadata)


def check_layer(base, fused, layer: str, strength: float = 1.0, name: str = "", world: World | None = None) -> None:
    """The fused layer puts out its own result plus the branch; ``base`` gives its own result on the same input."""
    x, out = layer_calls(fused, [layer])[layer]
    fused.detach()
    own = base.model.diffusion_model.get_submodule(layer)(x)
    if world is None:
        delta = pair()["lora_up.weight"].double() @ pair()["lora_down.weight"].double()
    else:
        delta = lora_delta(world.loras / name, "diffusion_model." + layer)
    branch = strength * x.double() @ delta.T
    assert out.dtype == x.dtype == own.dtype
    tolerance = 1e-5 if x.dtype == torch.float32 else 0.02
    assert difference(out.double(), own.double() + branch) <= tolerance * branch.abs().max()
    assert branch.abs().max() > 0.05
