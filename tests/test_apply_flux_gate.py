"""Proves that the public FLUX gate, under the keys its publishers gave it, is their formula on FLUX's real shapes.

Slow: one double and one single block of ComfyUI's FLUX at hidden size 3072 with random weights, and a gate and two
LoRAs on all 13 layers. The node fuses them, the network runs once, and what each layer put out is compared with the
formula in float64 on what that layer was given. Fast: all 304 gates of a whole file arrive at their own layers.
"""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
from apply_world import World
from comfy_local import sizes_for
from reference_fusion import gated_sum_ref
from safetensors.torch import load_file, save_file
from test_fusion_files import public_file

from autolora_core.fusion.fast.packed import coefficients
from autolora_core.fusion.gate import VECTORS, GateVectors

HIDDEN, RANK = 3072, 4
SIZES = {
    "in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096, "hidden_size": HIDDEN,
    "mlp_ratio": 4.0, "num_heads": 24, "depth": 1, "depth_single_blocks": 1, "axes_dim": [16, 56, 56], "theta": 10_000,
    "patch_size": 2, "qkv_bias": True, "guidance_embed": True,
}  # fmt: skip
# ComfyUI's layer → the gate's name for it, and diffusers' names of its parts with their output channels, counted in
# hidden sizes. {} is the number of the block.
DOUBLE = {
    "double_blocks.{}.img_attn.qkv": ("attn___a_to_qkv", {"attn.to_q": 1, "attn.to_k": 1, "attn.to_v": 1}),
    "double_blocks.{}.img_attn.proj": ("attn___a_to_out", {"attn.to_out.0": 1}),
    "double_blocks.{}.img_mlp.0": ("ff_a___0", {"ff.net.0.proj": 4}),
    "double_blocks.{}.img_mlp.2": ("ff_a___2", {"ff.net.2": 1}),
    "double_blocks.{}.img_mod.lin": ("norm1_a___linear", {"norm1.linear": 6}),
    "double_blocks.{}.txt_attn.qkv": (
        "attn___b_to_qkv",
        {"attn.add_q_proj": 1, "attn.add_k_proj": 1, "attn.add_v_proj": 1},
    ),
    "double_blocks.{}.txt_attn.proj": ("attn___b_to_out", {"attn.to_add_out": 1}),
    "double_blocks.{}.txt_mlp.0": ("ff_b___0", {"ff_context.net.0.proj": 4}),
    "double_blocks.{}.txt_mlp.2": ("ff_b___2", {"ff_context.net.2": 1}),
    "double_blocks.{}.txt_mod.lin": ("norm1_b___linear", {"norm1_context.linear": 6}),
}
SINGLE = {
    "single_blocks.{}.linear1": ("to_qkv_mlp", {"attn.to_q": 1, "attn.to_k": 1, "attn.to_v": 1, "proj_mlp": 4}),
    "single_blocks.{}.linear2": ("proj_out", {"proj_out": 1}),
    "single_blocks.{}.modulation.lin": ("norm___linear", {"norm.linear": 3}),
}
WIDTHS = {9216, 3072, 12288, 18432, 21504}
TOKENS = 8  # of each layer's up to 80: the reference goes one number at a time
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.02}  # of the layer's largest output


def layers(double: int = 1, single: int = 1) -> dict[str, tuple[str, dict[str, int]]]:
    """Layer → (the gate's stem for it, diffusers' stem of each part → its share of the output in hidden sizes)."""
    kinds = [
        (DOUBLE, double, "blocks", "transformer_blocks"),
        (SINGLE, single, "single_blocks", "single_transformer_blocks"),
    ]
    found = {}
    for kind, blocks, public, theirs in kinds:
        for n in range(blocks):
            prefix = f"transformer.{theirs}.{n}."
            for name, (stem, parts) in kind.items():
                renamed = {prefix + part: units for part, units in parts.items()}
                found[name.format(n)] = (f"model_dict.{public}___{n}___{stem}", renamed)
    return found


# -- a model -----------------------------------------------------------------------------------------------------------


def flux_sizes(**more: Any) -> dict[str, Any]:
    from comfy.ldm.flux.model import FluxParams

    return {**sizes_for(FluxParams, SIZES), **more}


def random_weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """bfloat16 from the start, for memory's sake: scales of norms near 1, the rest so small that activations stay 1."""
    state = {}
    for name, value in network.state_dict().items():
        noise = torch.empty(value.shape, dtype=torch.bfloat16).normal_(0, 0.02)
        state[name] = noise + 1 if name.endswith("norm.scale") else noise
    return state


@pytest.fixture(scope="module")
def model(comfy) -> Any:
    """A MODEL of one double and one single block at full width, recognised and loaded by ComfyUI: 1.1 GB."""
    import comfy.ops
    from comfy.ldm.flux.model import Flux

    torch.manual_seed(tiny_models.SEED)
    operations = comfy.ops.disable_weight_init
    network = Flux(device="meta", dtype=torch.bfloat16, operations=operations, **flux_sizes())
    return tiny_models.load(random_weights(network), dtype=torch.bfloat16)


@pytest.fixture
def world(comfy, model, tmp_path, monkeypatch):
    import comfy.model_management

    yield World(tmp_path, {}, model, monkeypatch)
    comfy.model_management.unload_all_models()


def small_model() -> Any:
    """All 57 blocks of FLUX at hidden size 8, for names and plans only: its weights are never used."""
    import comfy.model_patcher
    import comfy.supported_models

    small = {"hidden_size": 8, "num_heads": 1, "axes_dim": [2, 2, 4], "vec_in_dim": 8, "context_in_dim": 8}
    sizes = flux_sizes(image_model="flux", depth=19, depth_single_blocks=38, **small)
    config = comfy.supported_models.Flux(sizes)
    config.set_inference_dtype(torch.float32, None)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(config.get_model({}, ""), load_device=cpu, offload_device=cpu)


# -- files -------------------------------------------------------------------------------------------------------------


def shape_of(model: Any, layer: str) -> tuple[int, int]:
    return tuple(model.model.diffusion_model.get_submodule(layer).weight.shape)


def write_gate_file(world: World, name: str) -> dict[str, GateVectors]:
    """A public file with a gate for every layer, all nine vectors random around the gate that changes nothing."""
    tensors, gates = {}, {}
    for layer, (stem, _) in layers().items():
        named = {vector: torch.randn(shape_of(world.model, layer)[0]) / 2 for vector in VECTORS}
        for vector, middle in {"norm_base.weight": 1, "norm_lora.weight": 1, "weight_out": 2}.items():
            named[vector] += middle
        tensors |= {f"{stem}.{vector}": value for vector, value in named.items()}
        gates[layer] = GateVectors.from_named(named, eps=1e-5)
    save_file(tensors, world.gates / name)
    return gates


def write_kohya(world: World, model: Any, name: str, double: int = 1, single: int = 1) -> str:
    """A LoRA on every layer in kohya's names: fused layers as they are, alpha half the rank."""
    shapes = {kohya(layer): shape_of(model, layer) for layer in layers(double, single)}
    tiny_models.save_lora(world.loras / name, shapes, RANK, seed=1, scale=0.08)
    return name


def kohya(layer: str) -> str:
    return "lora_unet_" + layer.replace(".", "_")


def write_diffusers(world: World, name: str) -> str:
    """A LoRA on every layer in diffusers' names: q, k, v and the MLP's part of fused layers each on their own."""
    tensors = {}
    for layer, (_, parts) in layers().items():
        out, n_in = shape_of(world.model, layer)
        assert sum(parts.values()) * HIDDEN == out
        for part, units in parts.items():
            tensors[f"{part}.lora_A.weight"] = torch.randn(RANK, n_in) * 0.08
            tensors[f"{part}.lora_B.weight"] = torch.randn(units * HIDDEN, RANK) * 0.04
    return world.file(name, tensors)


# -- running and the reference -----------------------------------------------------------------------------------------


def run_once(model: Any) -> dict[str, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Layer → (input, output) of every call in one evaluation on 8×8 image tokens and 16 words."""
    import comfy.sample

    calls: dict[str, list] = {layer: [] for layer in layers()}
    hooks = []
    for layer, seen in calls.items():

        def remember(_, inputs, output, seen=seen):
            seen.append((inputs[0].detach().clone(), output.detach().clone()))

        hooks.append(model.model.diffusion_model.get_submodule(layer).register_forward_hook(remember))
    noise, words = torch.randn(1, 16, 16, 16), [[torch.randn(1, 16, 4096), {"pooled_output": torch.randn(1, 768)}]]
    try:
        nothing = torch.zeros_like(noise)
        comfy.sample.sample(model, noise, 1, 1.0, "euler", "simple", words, words, nothing, seed=0, disable_pbar=True)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def some_tokens(x: torch.Tensor) -> torch.Tensor:
    """At most ``TOKENS`` rows from first to last."""
    rows = x.reshape(-1, x.shape[-1])
    return rows[torch.linspace(0, len(rows) - 1, min(TOKENS, len(rows))).long()].double()


def base_output(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The layer without LoRAs in float64, a part of its channels at a time to spare memory."""
    pairs = zip(module.weight.split(4096), module.bias.split(4096), strict=True)
    return torch.cat([x @ weight.double().T + bias.double() for weight, bias in pairs], dim=-1)


def kohya_branch(file: dict[str, torch.Tensor], layer: str, x: torch.Tensor) -> torch.Tensor:
    down, up, alpha = (
        file[f"{kohya(layer)}.{part}"].double() for part in ("lora_down.weight", "lora_up.weight", "alpha")
    )
    return alpha / RANK * (x @ down.T @ up.T)


def diffusers_branch(file: dict[str, torch.Tensor], layer: str, x: torch.Tensor) -> torch.Tensor:
    """The parts side by side, in the order of the fused layer."""
    pairs = [(file[f"{part}.lora_A.weight"], file[f"{part}.lora_B.weight"]) for part in layers()[layer][1]]
    return torch.cat([x @ down.double().T @ up.double().T for down, up in pairs], dim=-1)


# -- tests -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_every_layer_puts_out_the_published_formula(world, dtype, record_property):
    """Weights are bfloat16; computed in float32, as ComfyUI does on a CPU, and in bfloat16, as it does on a GPU.

    One LoRA brings q, k, v and the MLP's part as layers of their own: the gate's norms see them side by side.
    """
    gates = write_gate_file(world, "flux.safetensors")
    one, two = write_kohya(world, world.model, "one.safetensors"), write_diffusers(world, "two.safetensors")
    fused, _, report = world.apply((one, 0.9), (two, 1.2), mode="gate", gate="flux.safetensors")
    assert "mode: gate (flux.safetensors)" in report and "gate on 13 of 13 layers" in report
    assert report.count(": 13 of 13 layers") == 2 and "weight patches" not in report
    fused.set_model_compute_dtype(dtype)
    first, second = load_file(world.loras / one), load_file(world.loras / two)
    calls = run_once(fused)
    assert {layer: len(seen) for layer, seen in calls.items()} == dict.fromkeys(layers(), 1)
    assert {out.shape[-1] for ((_, out),) in calls.values()} == WIDTHS
    for layer, ((x, out),) in calls.items():
        assert x.dtype == out.dtype == dtype
        x, out = some_tokens(x), some_tokens(out)
        y0 = base_output(world.model.model.diffusion_model.get_submodule(layer), x)
        branches = [0.9 * kohya_branch(first, layer, x), 1.2 * diffusers_branch(second, layer, x)]
        size = out.abs().max()
        error = ((out - gated_sum_ref(y0, branches, gates[layer])).abs().max() / size).item()
        to_sum = ((out - y0 - sum(branches)).abs().max() / size).item()
        record_property(layer, f"error {error:.1e}, to the plain sum {to_sum:.2f}, size {size:.2f}")
        assert error <= TOLERANCE[dtype], layer
        assert to_sum > 5 * TOLERANCE[dtype], layer


def test_all_304_gates_of_a_whole_file_arrive_at_their_own_layers(comfy, tmp_path, monkeypatch):
    """Real names and number, at hidden size 8: 3,035,136 channels come down to that / 384."""
    small, named = small_model(), layers(19, 38)
    world = World(tmp_path, {}, small, monkeypatch)
    tensors = public_file(world.gates / "flux.safetensors", hidden=8)
    stack = [(write_kohya(world, small, name, 19, 38), 1.0) for name in ("a.safetensors", "b.safetensors")]
    fused, _, report = world.apply(*stack, mode="gate", gate="flux.safetensors")
    assert "gate on 304 of 304 layers" in report
    bank = fused.get_additional_models()[0].model
    assert len(bank.names) == len(named) == 304 and set(bank.names) == set(named)
    assert {name for name, _ in small.model.diffusion_model.named_modules() if name in named} == set(named)
    for name, layer in zip(bank.names, bank.layers, strict=True):
        own = GateVectors.from_named({vector: tensors[f"{named[name][0]}.{vector}"] for vector in VECTORS})
        arrived = layer.factors.vectors(0, torch.zeros(1))
        assert coefficients(GateVectors.from_named(arrived.named())).equal(coefficients(own))
    assert sum(layer.factors.spans[0].channels for layer in bank.layers) * 384 == 3_035_136


@pytest.mark.slow
def test_a_mask_finds_the_picture_behind_the_words(world, model):
    """In a single block's one row of 16 words and 8×8 places: words get the mask's mean, places the mask."""
    from comfy_local import pack_module

    name = write_kohya(world, model, "kohya.safetensors")
    mask = torch.zeros(64, 64)
    mask[:, 32:] = 1
    terms = pack_module("nodes.time_and_place").AutoLoRATimeAndPlace().say(mask=mask)[0]
    torch.manual_seed(3)
    fused = world.fused((name, 1.0), mode="sum", terms=terms)
    fused.set_model_compute_dtype(torch.float32)
    masked = run_once(fused)
    layer = "single_blocks.0.linear1"
    x, out = masked[layer][0]
    lora, prefix = load_file(world.loras / name), kohya(layer)
    down, up = (lora[f"{prefix}.lora_{side}.weight"].float() for side in ("down", "up"))
    added = float(lora[f"{prefix}.alpha"]) / RANK * (x[0].float() @ down.T @ up.T)
    base = model.model.diffusion_model.get_submodule(layer)
    y0 = torch.nn.functional.linear(x[0].float(), base.weight.float(), base.bias.float())
    wanted = torch.cat([torch.full((16,), 0.5), torch.tensor([0.0, 1.0]).repeat_interleave(4).repeat(8)])
    gap = (out[0].float() - y0 - wanted[:, None] * added).abs().max()
    assert gap <= 1e-4 * out.abs().max() < 0.1 * added.abs().max()
