"""Proves that the text half of a LoRA does exactly what ComfyUI's own merge would, and that no half is lost in silence.

``benchmarks.conformance_text`` measures every base, spelling and adapter; here are its verdict and the odd files.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from apply_world import clip_fixtures, sd3_fixtures
from comfy_local import pack_module
from conftest import real_loras

FC1 = "joint_blocks.0.x_block.mlp.fc1"
Q = "text_model.encoder.layers.0.self_attn.q_proj"
state, world = sd3_fixtures(64)
errors, clip = clip_fixtures()


def pair(stem: str, out: int, wide: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(4, wide, generator=generator), torch.randn(out, 4, generator=generator)
    return {f"{stem}.lora_down.weight": down * 0.3, f"{stem}.lora_up.weight": up * 0.3}


MODEL = pair(f"diffusion_model.{FC1}", 256, 64)
TE1 = pair("lora_te1_text_model_encoder_layers_0_mlp_fc1", 128, 64)
TE2 = pair("lora_te2_text_model_encoder_layers_0_mlp_fc1", 5120, 1280)
T5 = pair("lora_te3_encoder_block_0_layer_0_SelfAttention_q", 4096, 4096)


def apply(world, tensors, clip=None, strengths=(1.0, 1.0), name="a.safetensors"):
    stack = [(world.file(name, tensors), *strengths)]
    return pack_module("nodes.gated_apply").AutoLoRAGatedApply().apply(world.model, clip=clip, lora_stack=stack)


@pytest.fixture
def rows(comfy, caplog):
    """``benchmarks.conformance_text.measure``, without a line of the stock loader's for every key it does not know."""
    from benchmarks import conformance_text

    caplog.set_level("ERROR")
    return conformance_text.measure


@pytest.mark.slow
def test_no_base_spelling_or_adapter_is_wrong(rows):
    from benchmarks import text_encoders

    found = rows()
    assert {row["architecture"] for row in found} == set(text_encoders.known())
    assert {row["outcome"] for row in found} <= {"exact", "stock", "refused", "wrong"} and len(found) > 300
    assert [row for row in found if row["outcome"] == "wrong"] == []
    assert all(row["max_rel_error"] == 0 for row in found if row["outcome"] in ("exact", "stock"))


@pytest.mark.slow
def test_the_table_tells_when_layers_are_left_out_or_changed(rows, monkeypatch):
    """A table that could not say "wrong" would prove nothing."""
    assert {row["outcome"] for row in rows(["PixArt"])} == {"exact", "stock", "refused"}
    text = pack_module("nodes.bridge_text")
    right = text.text_tensors

    def without(part):
        return lambda *given: {name: value for name, value in right(*given).items() if part not in name}

    monkeypatch.setattr(text, "text_tensors", without(".alpha"))
    wrong = {row["adapter"] for row in rows(["PixArt"]) if row["outcome"] == "wrong"}
    assert "lora, alpha" in wrong and "lora" not in wrong
    monkeypatch.setattr(text, "text_tensors", without(".block.1.layer.0.SelfAttention.q."))
    assert {row["outcome"] for row in rows(["PixArt"])} == {"wrong", "refused"}


def test_a_file_without_text_half_leaves_the_clip_alone(world, clip):
    _, same, report = apply(world, MODEL, clip)
    assert same is clip and "text encoder" not in report


def test_a_text_half_without_clip_is_said_to_be_left_out(world):
    model, none, report = apply(world, MODEL | TE1)
    assert model is not world.model and none is None
    assert "its text half is left out, no CLIP is connected: clip_l 1 layer" in report


def test_a_text_half_that_nobody_wants_is_not_missed(world, clip):
    assert "text half" not in apply(world, MODEL | TE1, strengths=(1.0, 0.0))[2]
    _, same, report = apply(world, MODEL | TE1, clip, (1.0, 0.0))
    assert same is clip and "1 text encoder layer × 0" in report


def test_every_encoder_is_counted_and_an_absent_one_named(world, clip):
    _, fused, report = apply(world, MODEL | TE1 | TE2, clip)
    assert fused is not clip and "text encoders: clip_l 1 of 1 layer, clip_g 0 of 1 layer" in report
    assert "left out of the text encoders (this CLIP has clip_l): clip_g.text_model.encoder.layers.0.mlp.fc1" in report


@pytest.mark.parametrize(("tensors", "encoder"), [(TE2, "clip_g"), (T5, "t5xxl")])
def test_a_file_for_an_absent_encoder_alone_is_an_error(world, clip, errors, tensors, encoder):
    with pytest.raises(errors.NothingMatchesError, match=rf"changes text encoders only \({encoder}\)") as caught:
        apply(world, tensors, clip)
    assert "CLIP (clip_l)" in str(caught.value) and str(world.loras / "a.safetensors") in str(caught.value)


def test_the_same_half_beside_a_model_half_is_only_reported(world, clip):
    model, same, report = apply(world, MODEL | T5, clip)
    assert model is not world.model and same is clip and "text encoders: t5xxl 0 of 1 layer" in report


def test_a_text_file_at_strength_0_changes_nothing_and_says_so(world, clip):
    model, same, report = apply(world, TE1, clip, (1.0, 0.0))
    assert model is world.model and same is clip and "its strength there is 0: it changes nothing" in report


def test_names_that_nobody_knows_are_told(world, clip):
    strange = pair("lora_te1_encoder_layer_0_attention_self_query", 64, 64)
    _, _, report = apply(world, MODEL | TE1 | strange, clip)
    assert "clip_l 1 of 1 layer" in report and "unknown names 0 of 1 layer" in report
    assert "names that neither this pack nor ComfyUI knows" in report


def test_layers_of_another_size_are_left_out_not_tried(world, clip):
    """ComfyUI logs sizes that do not fit and goes on, and its patches would be counted as applied."""
    big = pair("text_encoders.clip_l.transformer." + Q, 768, 768)
    _, fused, report = apply(world, MODEL | TE1 | big, clip)
    assert "clip_l 1 of 2 layers" in report and "of another size than the layers of this CLIP's clip_l" in report
    assert len(fused.patcher.patches) == 1


def test_the_text_half_of_a_lora_for_another_model_goes_alone_when_asked(world, clip, errors):
    """Several bases share CLIP-L: the model half decides, unless its strength is 0."""
    other = pair("diffusion_model.some_other.layer", 32, 32)
    with pytest.raises(errors.FamilyError, match=r"a\.safetensors"):
        apply(world, other | TE1, clip)
    model, fused, report = apply(world, other | TE1, clip, (0.0, 1.0))
    assert model is world.model and fused is not clip and "clip_l 1 of 1 layer" in report


def test_the_conflict_report_tells_of_text_halves(world, clip):
    name = world.file("a.safetensors", MODEL | TE1 | TE2)
    node = pack_module("nodes.conflict_report").AutoLoRAConflictReport()
    found = node.report(world.model, clip=clip, lora_stack=[(name, 1.0, 1.0)])
    text, data = found["result"][0], json.loads(found["result"][2])
    assert "clip_g 0 of 1 layer" in text and any("clip_l 1 of 1" in note for note in data["loras"][0]["notes"])


@pytest.mark.parametrize("architecture", ["FLUX", "Wan", "HunyuanVideo"])
def test_a_merged_file_keeps_text_halves_of_every_encoder(world, architecture):
    """Written in OneTrainer's numbers, saved by Save Merged LoRA, read by the stock loader."""
    import comfy.sd
    import comfy.utils

    from benchmarks import conformance_text, text_encoders, text_spellings

    clip = text_encoders.text_encoders(architecture)
    bench = SimpleNamespace(layers=conformance_text._layers(clip))
    name = next(one for one in text_spellings.SPELLINGS[architecture] if one.startswith("OneTrainer"))
    tensors = text_spellings.file_of(bench.layers, text_spellings.SPELLINGS[architecture][name], "lora, alpha")
    save = pack_module("nodes.save_merged").AutoLoRASaveMerged()
    stack = [(world.file("a.safetensors", tensors), 0.0, 0.5)]
    saved = save.save(world.model, "merged", "sum", "float32", 1.0, clip=clip, lora_stack=stack)["result"][0]
    stored = comfy.utils.load_torch_file(str(world.loras / saved), safe_load=True)
    _, made = comfy.sd.load_lora_for_models(None, clip, stored, 0, 1)
    _, fused, _ = apply(world, tensors, clip, (0.0, 0.5))
    assert len(made.patcher.patches) == len(bench.layers)
    ours, stock = (text_encoders.encode(one, architecture) for one in (fused, made))
    assert all((ours[part] - stock[part]).abs().max() <= 1e-4 * stock[part].abs().max() for part in stock)


@pytest.fixture(scope="module")
def clip_l(comfy):
    """SD1.5's whole text encoder on the meta device: real names and sizes, no weights."""
    import comfy.sd1_clip

    with torch.device("meta"):
        model = comfy.sd1_clip.SD1ClipModel(device="meta", dtype=torch.float32)
    return SimpleNamespace(cond_stage_model=model)


@pytest.mark.parametrize("path", real_loras(), ids=lambda path: path.stem)
def test_text_halves_of_real_files(clip_l, path):
    import comfy.lora

    loras, requests = pack_module("nodes.bridge_loras"), pack_module("autolora_core.fusion.requests")
    text = pack_module("nodes.bridge_text")
    lora = loras.load(str(path), requests.Request(path.name, 1.0, 1.0))
    half = text.text_half(lora, text.TextEncoders(clip_l))
    total = sum(entry.half != "model" for entry in lora.file.modules.values())
    assert half.layers == ({"clip_l": (total, total)} if total else {}) and not half.missing
    assert len(half.patches) == total
    names = {name for name, entry in lora.file.modules.items() if entry.half != "model"}
    for name in sorted(names)[::9]:
        key = f"clip_l.transformer.{name.removeprefix('clip_l.')}.weight"
        wanted = lora.file.update(name).delta()
        made = comfy.lora.calculate_weight([(1.0, half.patches[key], 1.0, None, None)], torch.zeros(wanted.shape), key)
        assert (made.double() - wanted).abs().max() <= 1e-6 * max(float(wanted.abs().max()), 1e-6) + 1e-9
