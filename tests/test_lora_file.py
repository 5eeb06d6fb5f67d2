"""Proves what a LoRA file says of itself: kind, halves, values, and the change it makes, on real and broken files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import SHARED
from safetensors.torch import load_file, save_file

from autolora_core.errors import LoraError, NoUpdatesError, UnsupportedAdapterError
from autolora_core.lora.file import LoraFile

LORAS = {path.stem: path for path in sorted((SHARED / "data" / "loras").glob("*.safetensors"))}
QKV = "lora_unet_joint_blocks_0_x_block_attn_qkv"


def emoji(path: Path, stem: str = QKV, out: int = 768, wide: int = 256, **extra: torch.Tensor) -> Path:
    """A LoRA of one module of the demo base; ``extra`` replaces or adds tensors by suffix (dots as ``__``)."""
    tensors = {"lora_down.weight": torch.randn(2, wide), "lora_up.weight": torch.randn(out, 2)}
    tensors |= {name.replace("__", "."): value for name, value in extra.items()}
    save_file({f"{stem}.{end}": value for end, value in tensors.items()}, path)
    return path


REAL = {
    # file -> family, halves, spelling, modules, rank, kind
    "analog_film_sd15_cloneofsimo": ("sd15", {"model", "clip_l"}, "cloneofsimo", 192, 4, "lora"),
    "animal_sculptures_sd15_oldest_diffusers": ("sd15", {"model"}, "bare", 128, 4, "lora"),
    "anime_style_sd15_text_encoder_only_peft": ("unknown", {"clip_l"}, "peft", 24, 8, "text_encoder_only"),
    "skin_lesions_sd14_peft": ("sd15", {"model"}, "peft", 128, 4, "lora"),
    "smart_falcon_8_lokr": ("sd15", {"model", "clip_l"}, "kohya", 350, 8, "lora"),
}


@pytest.mark.parametrize("name", sorted(set(REAL) & set(LORAS)))
def test_real_files_are_read_whole(name: str) -> None:
    lora = LoraFile.open(LORAS[name])
    found = (lora.family.name, lora.halves, lora.forms[0], len(lora.modules), lora.rank, lora.kind)
    assert found == REAL[name]
    assert lora.keys.used == set(lora.header.tensors) and not lora.problems
    assert lora.partial is None and lora.check_values() == []
    lora.require_usable()
    assert all(torch.isfinite(update.up).all() for update in lora.updates())


# number in the file -> module it must be, checked against the shapes of SD1.5's own layers
NUMBERED = {
    "unet:7": "input_blocks.1.1.transformer_blocks.0.attn2.to_v",
    "unet:13": "input_blocks.2.1.transformer_blocks.0.ff.net.0.proj",
    "unet:54": "output_blocks.3.1.transformer_blocks.0.attn1.to_q",
    "unet:143": "middle_block.1.transformer_blocks.0.attn2.to_out.0",
    "text_encoder:5": "clip_l.text_model.encoder.layers.1.self_attn.v_proj",
}


@pytest.mark.parametrize("number", NUMBERED if "analog_film_sd15_cloneofsimo" in LORAS else [])
def test_numbered_layers_get_their_names_and_values(number: str) -> None:
    path = LORAS["analog_film_sd15_cloneofsimo"]
    raw = load_file(path)
    want = raw[f"{number}:up"].double() @ raw[f"{number}:down"].double()
    assert torch.equal(LoraFile.open(path).update(NUMBERED[number]).delta(), want)


@pytest.mark.parametrize("name", sorted(set(LORAS) & {"smart_falcon_8_lokr"}))
def test_a_flattened_convolution_of_a_real_lokr(name: str) -> None:
    raw, stem = load_file(LORAS[name]), "lora_unet_down_blocks_0_resnets_1_conv2"
    part = {end: raw[f"{stem}.lokr_{end}"].double() for end in ("w1_a", "w1_b", "w2_a", "w2_b")}
    scale = raw[f"{stem}.alpha"].double() / part["w2_b"].shape[0]
    want = torch.kron(part["w1_a"] @ part["w1_b"], part["w2_a"] @ part["w2_b"]).reshape(320, 320, 3, 3) * scale
    got = LoraFile.open(LORAS[name]).update("input_blocks.2.0.out_layers.3").delta()
    assert (got - want).norm() < 1e-6 * want.norm()


def test_opening_reads_the_header_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = emoji(tmp_path / "x.safetensors")
    monkeypatch.setattr("autolora_core.lora.file.read_tensors", lambda *_: pytest.fail("values were read"))
    lora = LoraFile.open(path)
    assert (lora.family.name, lora.kind, lora.halves) == ("emoji", "lora", {"model"})
    assert lora.partial == "1 of 4 joint_blocks (missing 1-3)"


def test_split_and_fused_qkv_of_the_same_lora_agree(tmp_path: Path) -> None:
    down, ups = torch.randn(2, 256), torch.randn(3, 256, 2)
    stem = "transformer.transformer_blocks.0.attn.to_"
    parts = {f"{stem}{x}.lora_A.weight": down for x in "qkv"}
    parts |= {f"{stem}{x}.lora_B.weight": up for x, up in zip("qkv", ups, strict=True)}
    save_file({key: value.clone() for key, value in parts.items()}, tmp_path / "split.safetensors")
    emoji(tmp_path / "fused.safetensors", lora_down__weight=down, lora_up__weight=ups.reshape(768, 2).clone())
    split, fused = LoraFile.open(tmp_path / "split.safetensors"), LoraFile.open(tmp_path / "fused.safetensors")
    assert list(fused.modules) == ["joint_blocks.0.x_block.attn.qkv"]
    whole = fused.update("joint_blocks.0.x_block.attn.qkv").delta()
    for start in (0, 256, 512):
        update = split.update(f"joint_blocks.0.x_block.attn.qkv[{start}:{start + 256}]")
        assert torch.equal(update.delta(), whole[start : start + 256]) and update.rows == (start, start + 256)


def test_every_module_has_its_own_alpha(tmp_path: Path) -> None:
    path, tensors = tmp_path / "x.safetensors", {}
    for block, alpha in ((0, 1.0), (1, 4.0), (2, None)):
        stem = f"lora_unet_joint_blocks_{block}_x_block_attn_proj"
        tensors |= {f"{stem}.lora_down.weight": torch.ones(2, 256), f"{stem}.lora_up.weight": torch.ones(256, 2)}
        if alpha is not None:
            tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path)
    lora = LoraFile.open(path)
    assert [(e.alpha, e.scale) for e in lora.modules.values()] == [(1.0, 0.5), (4.0, 2.0), (None, 1.0)]
    assert [update.delta()[0, 0].item() for update in lora.updates()] == [1.0, 4.0, 2.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float8_e5m2], ids=str)
def test_broken_values_are_found_and_named(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    up = torch.randn(768, 2)
    up[3, 1] = value
    lora = LoraFile.open(emoji(tmp_path / "x.safetensors", lora_up__weight=up.to(dtype)))
    lora.require_usable()  # nothing is known yet
    (line,) = lora.check_values()
    assert f"{QKV}.lora_up.weight" in line and line in lora.problems
    with pytest.raises(LoraError, match="broken values"):
        lora.require_usable()
    assert lora.check_values() == [line] and lora.problems.count(line) == 1


ZEROS = {
    "lora_up__weight": torch.zeros(768, 2),
    "lora_down__weight": torch.zeros(2, 256),
}


@pytest.mark.parametrize("name", ZEROS)
def test_a_lora_that_does_nothing_says_so(tmp_path: Path, name: str) -> None:
    lora = LoraFile.open(emoji(tmp_path / "x.safetensors", **{name: ZEROS[name]}))
    assert lora.kind == "lora"
    assert lora.check_values() == [] and lora.kind == "all_zero"
    with pytest.raises(NoUpdatesError, match="zero"):
        lora.require_usable()


def test_a_zero_lora_with_a_bias_does_something(tmp_path: Path) -> None:
    lora = LoraFile.open(emoji(tmp_path / "x.safetensors", **ZEROS, diff_b=torch.ones(768)))
    assert lora.check_values() == [] and lora.kind == "lora"


NOT_LORAS = {
    "a checkpoint": {"model.diffusion_model.input_blocks.0.0.weight": (4, 4), "first_stage_model.decoder.bias": (4,)},
    "an embedding": {"emb_params": (2, 768)},
    "nothing at all": {},
    "half a lora": {f"{QKV}.lora_up.weight": (768, 2)},
    "unknown layers": {"lora_unet_wobble.lora_down.weight": (2, 4), "lora_unet_wobble.lora_up.weight": (4, 2)},
}


@pytest.mark.parametrize("name", NOT_LORAS)
def test_what_is_not_a_lora_is_refused_with_an_example(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.safetensors"
    save_file({key: torch.ones(shape) for key, shape in NOT_LORAS[name].items()}, path)
    lora = LoraFile.open(path)
    assert lora.kind == "not_a_lora" and not lora.modules
    with pytest.raises(NoUpdatesError) as caught:
        lora.require_usable()
    assert str(path) in str(caught.value) and (not lora.header.tensors or "it has '" in str(caught.value))


CONTROLS = {
    "marked": {"lora_controlnet": (1,), f"{QKV}.lora_down.weight": (2, 256), f"{QKV}.lora_up.weight": (768, 2)},
    "reshaped": {"diffusion_model.img_in.lora_A.weight": (2, 64), "diffusion_model.img_in.lora_B.weight": (3072, 2),
                 "diffusion_model.img_in.reshape_weight": (2,), "diffusion_model.single_blocks.0.linear1.diff_b": (9,)},
    "flux": {"img_in.lora_A.weight": (2, 128), "img_in.lora_B.weight": (3072, 2), "img_in.lora_B.bias": (3072,),
             "single_blocks.0.norm.key_norm.scale": (128,)},
}  # fmt: skip


@pytest.mark.parametrize("name", CONTROLS)
def test_control_loras_are_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.safetensors"
    save_file({key: torch.ones(shape) for key, shape in CONTROLS[name].items()}, path)
    lora = LoraFile.open(path)
    assert lora.kind == "control" and lora.control_signs
    with pytest.raises(UnsupportedAdapterError, match="control LoRA"):
        lora.require_usable()
    assert lora.comfy_state_dict() is None


def test_renamed_keys_hold_the_same_tensors_and_read_back_the_same(tmp_path: Path) -> None:
    path = tmp_path / "peft.safetensors"
    stem = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    save_file({f"{stem}.lora_A.weight": torch.randn(2, 768), f"{stem}.lora_B.weight": torch.randn(320, 2)}, path)
    lora = LoraFile.open(path)
    renamed = lora.comfy_state_dict()
    new = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    assert sorted(renamed) == [f"{new}.lora_down.weight", f"{new}.lora_up.weight"]
    save_file(renamed, tmp_path / "renamed.safetensors")
    again = LoraFile.open(tmp_path / "renamed.safetensors")
    assert again.comfy_state_dict() is None and list(again.modules) == list(lora.modules)
    assert torch.equal(next(again.updates()).delta(), next(lora.updates()).delta())


@pytest.mark.parametrize("name", sorted(LORAS))
def test_renaming_a_real_file_changes_no_update(tmp_path: Path, name: str) -> None:
    lora = LoraFile.open(LORAS[name])
    renamed = lora.comfy_state_dict()
    assert (renamed is None) == (name in ("animal_sculptures_sd15_oldest_diffusers", "smart_falcon_8_lokr"))
    if renamed is not None:
        save_file({key: value.contiguous() for key, value in renamed.items()}, tmp_path / "x.safetensors")
        again = LoraFile.open(tmp_path / "x.safetensors")
        assert set(again.modules) == set(lora.modules) and not again.keys.unknown
        for update in list(lora.updates())[::20]:
            assert torch.equal(again.update(update.module).delta(), update.delta())


def test_only_the_first_named_peft_adapter_is_used(tmp_path: Path) -> None:
    path, stem = tmp_path / "x.safetensors", "transformer.transformer_blocks.0.ff.net.2"
    tensors = {}
    for adapter in ("a", "b"):
        tensors |= {f"{stem}.lora_A.{adapter}.weight": torch.randn(2, 1024)}
        tensors |= {f"{stem}.lora_B.{adapter}.weight": torch.randn(256, 2)}
    save_file(tensors, path)
    lora = LoraFile.open(path)
    assert len(lora.keys.ignored) == 2 and len(lora.keys.used) == 2
    (entry,) = lora.modules.values()
    assert {key.split(".")[-2] for key in entry.keys.values()} in ({"a"}, {"b"})  # never one factor of each


def test_a_table_of_tensors_that_was_seen_before_is_read_the_same(tmp_path: Path) -> None:
    """What one file's table said is kept for the next one: with its own metadata, and nobody's changes."""
    made = {f"lora_unet_double_blocks_0_img_attn_proj.lora_{side}.weight": torch.ones(shape)
            for side, shape in (("down", (2, 3072)), ("up", (3072, 2)))}  # fmt: skip
    for name, metadata in (("a", {}), ("b", {"ss_base_model_version": "flux1"}), ("c", {})):
        save_file(made, tmp_path / f"{name}.safetensors", metadata=metadata)
    first = LoraFile.open(tmp_path / "a.safetensors")
    said = list(first.family.evidence), set(first.keys.used), list(first.problems)
    first.family.evidence.append("x"), first.keys.used.clear(), first.problems.append("x"), first.entries.clear()
    told, again = (LoraFile.open(tmp_path / f"{name}.safetensors") for name in "bc")
    assert (list(again.family.evidence), set(again.keys.used), list(again.problems)) == said and again.entries
    assert len(told.family.evidence) == len(said[0]) + 1
