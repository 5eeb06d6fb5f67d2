"""Proves convolution branches and their gate: stride, dilation, padding, 1×1 and Tucker kernels, LN over dim 1."""

from __future__ import annotations

import pytest
import tiny_models
import torch
from apply_world import World, layer_calls
from comfy_local import pack_module
from reference_fusion import gated_sum_ref, random_vectors

CONV = "input_blocks.1.0.in_layers.2"  # 3×3, 320 → 320


def normal(*shape: int, seed: int = 0, scale: float = 0.2) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def branch_output(base: torch.nn.Module, x: torch.Tensor, vectors=None, **fields) -> torch.Tensor:
    """What a fused convolution adds or gates, through the shipped bank."""
    branches = pack_module("autolora_core.fusion.branches")
    plan_of = pack_module("autolora_core.fusion.plan").build_plan
    branch = branches.Branch("conv", 0, **fields)
    gates = None if vectors is None else {"conv": vectors}
    plan = plan_of([branch], {"conv": base.out_channels}, gates).modules["conv"]
    return pack_module("nodes.bridge_bank").FusionLayer(plan, base)(x, base(x))


LAYERS = {
    "plain": {"kernel_size": 3, "padding": 1},
    "stride": {"kernel_size": 3, "padding": 1, "stride": 2},
    "dilation": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "circular": {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    "oblong": {"kernel_size": (3, 1), "padding": (1, 0)},
}


@pytest.mark.parametrize("mid", [False, True], ids=["lowrank", "tucker"])
@pytest.mark.parametrize("name", LAYERS)
def test_branch_equals_the_merged_kernel(comfy, name, mid):
    base = torch.nn.Conv2d(6, 10, bias=True, **LAYERS[name])
    kernel, x = base.kernel_size, normal(2, 6, 9, 8, scale=1)
    fields = {"up": normal(10, 4, seed=1), "scale": 0.7}
    if mid:
        fields |= {"down": normal(4, 6, 1, 1, seed=2), "mid": normal(4, 4, *kernel, seed=3)}
        delta = torch.einsum("or,rskl,si->oikl", fields["up"], fields["mid"], fields["down"].flatten(1))
    else:
        fields |= {"down": normal(4, 6, *kernel, seed=2)}
        delta = torch.einsum("or,rikl->oikl", fields["up"], fields["down"])
    merged = base._conv_forward(x.double(), base.weight.double() + 0.7 * delta.double(), base.bias.double())
    assert (branch_output(base, x, **fields) - merged).abs().max() <= 1e-5
    dense = branch_output(base, x, dense=delta, scale=0.7)
    assert (dense - merged).abs().max() <= 1e-5


@pytest.mark.parametrize("name", LAYERS)
def test_kronecker_branch_equals_the_merged_kernel(comfy, name):
    base, x = torch.nn.Conv2d(6, 10, bias=True, **LAYERS[name]), normal(3, 6, 9, 8, scale=1)
    left, right = normal(5, 3), normal(2, 2, *base.kernel_size, seed=1)
    delta = torch.kron(left[..., None, None], right)
    merged = base._conv_forward(x.double(), base.weight.double() + 0.7 * delta.double(), base.bias.double())
    assert (branch_output(base, x, left=left, right=right, scale=0.7) - merged).abs().max() <= 1e-5


def test_tucker_lokr_is_read_by_its_definition(comfy):
    """right[c, d] = sum_ij t2[i, j]·w2_a[i, c]·w2_b[j, d] per kernel position, in loops."""
    layers = pack_module("nodes.bridge_layers")
    from comfy.weight_adapter import LoKrAdapter

    w1, w2a, w2b, t2 = normal(2, 3), normal(3, 4, seed=1), normal(2, 5, seed=2), normal(3, 2, 3, 3, seed=3)
    patch = LoKrAdapter(set(), (w1, None, 4.0, None, None, w2a, w2b, t2, None))
    branch = layers.branch_of(patch, "m.weight", layers.Layer("m", 8, 15, (3, 3)), 0, 0.5, "file")
    right = torch.zeros(4, 5, 3, 3, dtype=torch.float64)
    for c in range(4):
        for d in range(5):
            for i in range(3):
                for j in range(2):
                    right[c, d] += t2[i, j].double() * w2a[i, c].double() * w2b[j, d].double()
    expected = 0.5 * 4.0 / 2 * torch.kron(w1.double()[..., None, None], right)
    assert branch.kind == "kron" and (branch.delta() - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("rank", [1, 2, 3], ids=lambda rank: f"{rank}d")
def test_convolutions_of_every_dimension(comfy, rank):
    base = getattr(torch.nn, f"Conv{rank}d")(4, 6, 3, padding=1)
    x, fields = normal(1, 4, *[5] * rank, scale=1), {"down": normal(2, 4, *[3] * rank), "up": normal(6, 2, seed=1)}
    delta = torch.einsum("or,ri...->oi...", fields["up"], fields["down"])
    merged = base._conv_forward(x, base.weight + delta, base.bias)
    assert (branch_output(base, x, **fields) - merged).abs().max() <= 1e-5


def test_gate_normalises_over_channels(comfy):
    base, x = torch.nn.Conv2d(5, 8, 3, padding=1), normal(2, 5, 4, 3, scale=1)
    fields, vectors = {"down": normal(2, 5, 3, 3), "up": normal(8, 2, seed=1)}, random_vectors(8, 4)
    y1 = base._conv_forward(x, torch.einsum("or,rikl->oikl", fields["up"], fields["down"]), None)
    expected = gated_sum_ref(base(x), [y1], vectors, dim=1)
    assert (branch_output(base, x, vectors, **fields) - expected).abs().max() <= 2e-5


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (lambda: torch.nn.Conv2d(4, 4, 3, groups=2), "grouped"),
        (lambda: torch.nn.ConvTranspose2d(4, 4, 3), "transposed"),
        (lambda: torch.nn.Embedding(4, 4), "not a linear"),
        (lambda: type("CausalConv3d", (torch.nn.Conv3d,), {})(4, 4, 3), "padding rules"),
    ],
)
def test_layers_a_branch_cannot_stand_beside(comfy, module, reason):
    layers = pack_module("nodes.bridge_layers")
    with pytest.raises(layers.NotABranch, match=reason):
        layers.describe_layer("x", module())


def test_sd15_with_convolutions_in_real_comfyui(comfy, tmp_path, monkeypatch):
    """Linear and convolution layers, LoRA, Tucker LoCon and conv LoHa at once, against the stock loader."""
    state = tiny_models.sd15_state()
    world = World(tmp_path, state, tiny_models.load(state), monkeypatch)
    name = world.lora("a.safetensors", "input_blocks.1.", rank=2)
    key = f"lora_unet_{CONV.replace('.', '_')}"
    tucker = {"lora_down.weight": (3, 320, 1, 1), "lora_up.weight": (320, 3, 1, 1), "lora_mid.weight": (3, 3, 3, 3)}
    tensors = {f"{key}.{suffix}": normal(*shape, seed=n) for n, (suffix, shape) in enumerate(tucker.items())}
    out = "lora_unet_output_blocks_0_0_out_layers_3"
    hada = {"hada_w1_a": (320, 2), "hada_w1_b": (2, 2880), "hada_w2_a": (320, 2), "hada_w2_b": (2, 2880)}
    tensors |= {f"{out}.{suffix}": normal(*shape, seed=n, scale=0.4) for n, (suffix, shape) in enumerate(hada.items())}
    skip = "lora_unet_output_blocks_0_0_skip_connection"
    kron = {"lokr_w1": (8, 16), "lokr_w2_a": (40, 3), "lokr_w2_b": (3, 40), "alpha": ()}
    tensors |= {f"{skip}.{suffix}": normal(*shape, seed=n) for n, (suffix, shape) in enumerate(kron.items())}
    other = world.file("locon.safetensors", tensors)
    model, _, report = world.apply((name, 1.0), (other, 0.5), mode="sum")
    assert "weight patches" not in report and "3 of 3 layers" in report
    fused, stock = tiny_models.sample(model), tiny_models.sample(world.stock((name, 1.0), (other, 0.5)))
    base = tiny_models.sample(world.model)
    # Activations of this random network are of order 100.
    assert (fused - stock).abs().max() <= 1e-3 < 1 < (fused - base).abs().max()
    assert tiny_models.sample(world.model).equal(base)

    world.gate({CONV: random_vectors(320, 1)}, family="sd15", k_range=(1, 9))
    gated = world.fused((other, 0.5), mode="gate")
    x, y = layer_calls(gated, [CONV])[CONV]
    module = world.model.model.diffusion_model.get_submodule(CONV)
    stages = [tensors[f"{key}.{suffix}"].double() for suffix in tucker]
    h = torch.nn.functional.conv2d(torch.nn.functional.conv2d(x.double(), stages[0]), stages[2], padding=1)
    y1 = 0.5 * torch.nn.functional.conv2d(h, stages[1])
    y0 = torch.nn.functional.conv2d(x.double(), module.weight.double(), module.bias.double(), padding=1)
    expected = gated_sum_ref(y0[:1, :, :2, :2], [y1[:1, :, :2, :2]], random_vectors(320, 1), dim=1)
    assert (y[:1, :, :2, :2] - expected).abs().max() <= 1e-4
