"""Proves that gate files are read strictly, written whole, and that the public FLUX gate fits ComfyUI's FLUX layers."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from comfy_local import sizes_for
from reference_fusion import random_vectors
from safetensors.torch import load_file, save_file

from autolora_core.errors import GateError
from autolora_core.fusion.base_print import VALUES, base_fingerprint, is_same_base
from autolora_core.fusion.files import read_gate, write_gate
from autolora_core.fusion.gate import VECTORS
from autolora_core.fusion.gate_sign import GateSign, gate_sign

MODULES = {
    "joint_blocks.0.x_block.mlp.fc1": random_vectors(8, 0),
    "joint_blocks.0.x_block.attn.qkv[0:4]": random_vectors(4, 1),
}


@pytest.fixture
def path(tmp_path):
    write_gate(tmp_path / "gate.safetensors", MODULES, family="emoji", k_range=(2, 5), recipe="r1", base_sha256="ab")
    return tmp_path / "gate.safetensors"


def test_write_and_read(path):
    gate = read_gate(path)
    assert gate.family == "emoji" and gate.k_range == (2, 5)
    assert gate.metadata["recipe"] == "r1" and gate.metadata["base_sha256"] == "ab"
    assert gate.modules.keys() == MODULES.keys()
    for name, vectors in MODULES.items():
        assert all(gate.modules[name].named()[key].equal(value) for key, value in vectors.named().items())
    assert gate_sign(path) == GateSign("emoji") and gate.base_fingerprint == {}
    assert os.listdir(path.parent) == ["gate.safetensors"]


def test_eps_travels(tmp_path):
    from dataclasses import replace

    write_gate(tmp_path / "e.safetensors", {"m": replace(random_vectors(3, 0), eps=1e-3)}, family="x")
    assert read_gate(tmp_path / "e.safetensors").modules["m"].eps == 1e-3


def test_without_base_weight(tmp_path):
    write_gate(tmp_path / "paper.safetensors", {"m": random_vectors(3, 0, with_base=False)}, family="x")
    assert read_gate(tmp_path / "paper.safetensors").modules["m"].weight_base is None


def base(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    vectors = {f"block.{n:02d}.bias": torch.randn(20, generator=generator) for n in range(30)}
    return {**vectors, "short": torch.ones(4), "same": torch.zeros(99), "matrix": torch.ones(9, 9)}


def test_fingerprint_of_a_base_travels_and_tells_bases_apart(tmp_path):
    taken = base_fingerprint(base(0))
    assert 8 <= len(taken) <= 12 and {len(values) for values in taken.values()} == {VALUES}
    write_gate(tmp_path / "g.safetensors", MODULES, family="x", base_fingerprint=taken)
    assert read_gate(tmp_path / "g.safetensors").base_fingerprint == taken
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        assert is_same_base(taken, {name: value.to(dtype) for name, value in base(0).items()}) is True
        assert is_same_base(taken, {name: value.to(dtype) for name, value in base(1).items()}) is False
    tuned = {name: value + 0.02 * base(2)[name] for name, value in base(0).items()}
    assert is_same_base(taken, tuned) is False
    assert is_same_base(taken, {}) is None and is_same_base({}, base(0)) is None


def damage(path, change, metadata=None):
    tensors = load_file(path)
    change(tensors)
    header = {"format": "autolora-gate/1", "family": "emoji"} if metadata is None else metadata
    save_file(tensors, path, header)


FC1 = "joint_blocks.0.x_block.mlp.fc1"
DAMAGES = {
    "unknown key": (lambda t: t.update({f"{FC1}.surprise": torch.ones(8)}), "surprise"),
    "no module": (lambda t: t.update({"bias": torch.ones(8)}), "bias"),
    "missing": (lambda t: t.pop(f"{FC1}.weight_cross"), "weight_cross"),
    "matrix": (lambda t: t.update({f"{FC1}.bias": torch.ones(8, 1)}), "vector of floats"),
    "integers": (lambda t: t.update({f"{FC1}.bias": torch.ones(8, dtype=torch.int64)}), "vector of floats"),
    "nan": (lambda t: t[f"{FC1}.bias"].fill_(float("nan")), "not finite"),
    "lengths": (lambda t: t.update({f"{FC1}.bias": torch.ones(7)}), "different lengths"),
    "empty": (lambda t: t.clear(), "no layer"),
}


def test_a_gate_that_tells_loras_apart_is_read_as_it_was_written(tmp_path):
    vectors = replace(random_vectors(8, 0), roles=torch.arange(8.0).view(2, 2, 2), power=0.25)
    write_gate(tmp_path / "g.safetensors", {"m": vectors, "n": random_vectors(4, 1)}, family="emoji")
    gate = read_gate(tmp_path / "g.safetensors")
    assert gate.metadata["format"] == "autolora-gate/2" and gate_sign(gate.path) == GateSign("emoji")
    assert gate.modules["m"].roles.equal(vectors.roles) and gate.modules["m"].power == 0.25
    assert gate.modules["n"].roles is None and gate.modules["n"].power == 0
    tensors = load_file(gate.path)
    save_file({**tensors, "m.roles": torch.zeros(7)}, tmp_path / "h.safetensors", gate.metadata)
    with pytest.raises(GateError, match="roles has 7 numbers, not 8"):
        read_gate(tmp_path / "h.safetensors")


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_refused_naming_the_key(path, name):
    change, word = DAMAGES[name]
    damage(path, change)
    with pytest.raises(GateError, match=f"{word}.*gate.safetensors|gate.safetensors.*{word}"):
        read_gate(path)


def test_slice_of_another_length(tmp_path):
    with pytest.raises(GateError, match="length of their slice"):
        write_gate(tmp_path / "g.safetensors", {"m[0:4]": random_vectors(5, 0)}, family="x")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("metadata", "word"),
    [({}, "not a gate"), ({"format": "autolora-gate/9"}, "not a gate"), ({"format": "autolora-gate/1"}, "family"),
     ({"format": "autolora-gate/1", "family": "x", "eps": "big"}, "eps"),
     ({"format": "autolora-gate/1", "family": "x", "eps": "7"}, "eps")],
)  # fmt: skip
def test_metadata_is_checked(path, metadata, word):
    damage(path, lambda t: None, metadata)
    with pytest.raises(GateError, match=word):
        read_gate(path)


def test_k_range_must_be_numbers(path):
    damage(path, lambda t: None, {"format": "autolora-gate/1", "family": "x", "k_min": "two"})
    with pytest.raises(GateError, match="k_min"):
        _ = read_gate(path).k_range


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"<html>", b"\xff" * 64])
def test_other_bytes_may_have_been_a_gate(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    assert gate_sign(path).family is None and gate_sign(path).problem
    with pytest.raises(GateError, match="x.safetensors"):
        read_gate(path)


# The public file's layout as its publishers wrote it down: layer name → output channels per hidden size.
PUBLIC_DOUBLE = {"attn___{}_to_qkv": 3, "attn___{}_to_out": 1, "ff_{}___0": 4, "ff_{}___2": 1, "norm1_{}___linear": 6}
PUBLIC_SINGLE = {"to_qkv_mlp": 7, "proj_out": 1, "norm___linear": 3}


def public_file(path, hidden: int, double: int = 19, single: int = 38):
    widths = {
        f"blocks___{block}___{name.format(stream)}": units * hidden
        for block in range(double)
        for stream in "ab"
        for name, units in PUBLIC_DOUBLE.items()
    }
    widths |= {
        f"single_blocks___{block}___{n}": u * hidden for block in range(single) for n, u in PUBLIC_SINGLE.items()
    }
    tensors = {f"model_dict.{layer}.{vector}": torch.rand(d) for layer, d in widths.items() for vector in VECTORS}
    save_file(tensors, path)
    return tensors


def test_public_flux_gate_has_every_layer(tmp_path):
    """304 gates, Σd = 3,035,136 at hidden 3072: the published figures, here scaled down by 3072/8."""
    tensors = public_file(tmp_path / "model.safetensors", hidden=8)
    gate = read_gate(tmp_path / "model.safetensors")
    assert gate.family == "flux" and len(gate.modules) == 304
    assert sum(vectors.channels for vectors in gate.modules.values()) * 384 == 3_035_136
    one = gate.modules["double_blocks.3.txt_mlp.2"]
    assert one.weight_out.equal(tensors["model_dict.blocks___3___ff_b___2.weight_out"])
    assert one.norm_base_bias.equal(tensors["model_dict.blocks___3___ff_b___2.norm_base.bias"])
    assert gate_sign(tmp_path / "model.safetensors") == GateSign("flux")


def test_public_layers_are_those_of_comfyui_and_as_wide(comfy, tmp_path):
    import comfy.ops
    from comfy.ldm.flux.model import Flux, FluxParams

    public_file(tmp_path / "m.safetensors", hidden=3072, double=1, single=1)
    gate = read_gate(tmp_path / "m.safetensors")
    sizes = {"in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096, "hidden_size": 3072}
    sizes |= {"mlp_ratio": 4.0, "num_heads": 24, "depth": 1, "depth_single_blocks": 1, "axes_dim": [16, 56, 56]}
    sizes |= {"theta": 10_000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True}
    how = {"device": "meta", "dtype": torch.float16, "operations": comfy.ops.disable_weight_init}
    network = Flux(**sizes_for(FluxParams, sizes), **how)
    blocks = {
        name: module.out_features
        for name, module in network.named_modules()
        if "blocks." in name and hasattr(module, "out_features")
    }
    assert blocks == {name: vectors.channels for name, vectors in gate.modules.items()}


def test_comfyui_reads_fused_flux_channels_in_the_gates_order(comfy):
    """The gate's channels are BFL's: q, k, v; q, k, v, mlp; shift, scale, gate. ComfyUI's modules must use the same."""
    import comfy.ops
    import comfy.utils
    from comfy.ldm.flux.layers import Modulation

    hidden = 4
    modulation = Modulation(hidden, double=True, dtype=torch.float32, operations=comfy.ops.manual_cast)
    torch.nn.init.zeros_(modulation.lin.weight)
    modulation.lin.bias.data = torch.arange(6 * hidden, dtype=torch.float32)
    first, second = modulation(torch.zeros(1, hidden))
    parts = [first.shift, first.scale, first.gate, second.shift, second.scale, second.gate]
    assert torch.cat([part.flatten() for part in parts]).equal(torch.arange(6.0 * hidden))

    config = {"hidden_size": 3072, "depth": 1, "depth_single_blocks": 1}
    places = comfy.utils.flux_to_diffusers(config, output_prefix="")
    for stream, names in {"img": ("to_q", "to_k", "to_v"), "txt": ("add_q_proj", "add_k_proj", "add_v_proj")}.items():
        for number, name in enumerate(names):
            target = places[f"transformer_blocks.0.attn.{name}.weight"]
            assert target == (f"double_blocks.0.{stream}_attn.qkv.weight", (0, number * 3072, 3072))
    order = ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"]
    spans = [places[f"single_transformer_blocks.0.{name}.weight"] for name in order]
    assert [name for name, _ in spans] == ["single_blocks.0.linear1.weight"] * 4
    assert [offset[1] for _, offset in spans] == [0, 3072, 6144, 9216] and spans[3][1][2] == 12288


def test_public_file_of_mixed_sizes_is_refused(tmp_path):
    tensors = public_file(tmp_path / "m.safetensors", hidden=8, double=1, single=0)
    for vector in VECTORS:
        tensors[f"model_dict.blocks___0___ff_a___2.{vector}"] = torch.rand(16)
    save_file(tensors, tmp_path / "m.safetensors")
    with pytest.raises(GateError, match="hidden sizes"):
        read_gate(tmp_path / "m.safetensors")


def test_public_file_with_an_unknown_layer_is_refused(tmp_path):
    save_file({"model_dict.blocks___0___ff_c___2.bias": torch.ones(3)}, tmp_path / "m.safetensors")
    with pytest.raises(GateError, match="ff_c"):
        read_gate(tmp_path / "m.safetensors")
