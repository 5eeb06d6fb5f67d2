"""Proves that words come from the right source, that hostile words are harmless, and that names are judged well."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autolora_core.library.metadata import MAX_SIDECAR_BYTES, autov3, read_words, sidecar_names
from autolora_core.library.names import compile_filter, meaningful_name

SMART_FALCON = {
    "ss_output_name": "smart_falcon_8_lokr",
    "ss_training_comment": "trigger word is smart falcon \\(umamusume\\)",
    "ss_tag_frequency": json.dumps({"16_smf": {"hair bow": 40, "smile": 30}, "4_smf": {"hair bow": 3}}),
    "ss_base_model_version": "sd_v1",
}


def read(folder: Path, file: str, metadata: dict[str, str] | None = None):
    return read_words(str(folder / file), metadata or {}, [path.name for path in folder.iterdir()])


@pytest.mark.parametrize(
    ("stem", "words"),
    [
        ("Watercolour_Otter-v2", "watercolour otter"),
        ("hot-air-balloon", "hot air balloon"),
        ("PixelArtStyle_XL_v1.5", "pixel art style"),
        ("test-tube", "test tube"),
        ("3d_render", "3d render"),
        ("train_station", "train station"),
        ("水彩_v2", "水彩"),
        ("xk", None),
        ("lora_000123", None),
        ("pytorch_lora_weights", None),
        ("last-000010", None),
        ("adapter_model", None),
        ("a3f09bc2", None),
        ("my_lora_v3_1a2b", None),
        ("3f9c01aa-77be", None),
        ("9b772db5b66a262582d2824fb1b6e562", None),
        ("550e8400-e29b-41d4-a716-446655440000", None),
        ("final", None),
        ("epoch_10_step_2000", None),
        ("", None),
    ],
)
def test_meaningful_name(stem, words):
    assert meaningful_name(stem) == words


@pytest.mark.parametrize(
    ("pattern", "passing"),
    [
        ("", {"a/otter.safetensors", "b/Fox.safetensors", "b/fox_old.safetensors"}),
        ("fox", {"b/Fox.safetensors", "b/fox_old.safetensors"}),
        ("fox, -old", {"b/Fox.safetensors"}),
        ("a/*", {"a/otter.safetensors"}),
        ("b\\", {"b/Fox.safetensors", "b/fox_old.safetensors"}),
        ("-b/*", {"a/otter.safetensors"}),
        ("nothing", set()),
    ],
)
def test_name_filter(pattern, passing):
    names = ["a/otter.safetensors", "b/Fox.safetensors", "b/fox_old.safetensors"]
    assert set(filter(compile_filter(pattern), names)) == passing


def test_header_words(tmp_path):
    found = read(tmp_path, "x.safetensors", SMART_FALCON)
    assert found.text.title == "smart falcon"
    assert found.text.triggers == ("smart falcon \\(umamusume\\)",)
    assert found.text.tags == ("hair bow", "smile")  # summed over the training folders, commonest first
    assert found.base_model == "sd_v1"
    assert found.text.source == "header"


def test_constant_tag_is_a_trigger_only_when_under_every_picture(tmp_path):
    metadata = {
        "ss_dataset_dirs": json.dumps({"10_a": {"n_repeats": 10, "img_count": 20}}),
        "ss_tag_frequency": json.dumps({"10_a": {"1girl": 20, "ohwx": 20, "hat": 12}}),
    }
    assert read(tmp_path, "x.safetensors", metadata).text.triggers == ("ohwx",)
    metadata["ss_tag_frequency"] = json.dumps({"10_a": {"1girl": 20, "ohwx": 15, "hat": 12}})
    assert read(tmp_path, "x.safetensors", metadata).text.triggers == ()


def test_sidecars_win_in_order(tmp_path):
    manager = {
        "model_name": "Otter in Ink", "base_model": "SDXL 1.0", "tags": ["ink"], "notes": "use at 0.8",
        "civitai": {"trainedWords": ["inkotter", "inkotter, sitting"], "model": {"description": "<p>A &amp; B</p>"}},
    }  # fmt: skip
    info = {"baseModel": "Pony", "trainedWords": ["other"], "model": {"name": "Second", "tags": ["animal"]}}
    rgthree = {"name": "Third", "trainedWords": [{"word": "tag", "metadata": True}, {"word": "mine", "user": True}]}
    (tmp_path / "o.metadata.json").write_text(json.dumps(manager))
    (tmp_path / "o.civitai.info").write_text(json.dumps(info))
    (tmp_path / "o.safetensors.rgthree-info.json").write_text(json.dumps(rgthree))
    (tmp_path / "o.txt").write_text("an otter, drawn in ink")
    (tmp_path / "o.preview.png").write_bytes(b"")
    found = read(tmp_path, "o.safetensors", {"modelspec.title": "Fourth title", "modelspec.tags": "header, ink"})
    assert found.text.title == "Otter in Ink"
    assert found.text.triggers == ("inkotter", "inkotter, sitting")
    assert found.text.tags == ("ink", "animal", "header")
    assert found.text.description == "use at 0.8"
    assert found.base_model == "SDXL 1.0; Pony"  # all that is said, the surest first
    assert found.preview == str(tmp_path / "o.preview.png")
    (tmp_path / "o.metadata.json").unlink()
    found = read(tmp_path, "o.safetensors")
    assert (found.text.title, found.text.triggers, found.base_model) == ("Second", ("other",), "Pony")
    (tmp_path / "o.civitai.info").unlink()
    found = read(tmp_path, "o.safetensors")
    assert (found.text.title, found.text.triggers) == ("Third", ("mine",))  # a training tag is not a trigger
    assert found.text.description == "an otter, drawn in ink"


def test_only_files_that_are_there_are_read(tmp_path):
    names = sidecar_names("a.b.safetensors")
    assert names[:4] == ["a.b.metadata.json", "a.b.civitai.info", "a.b.safetensors.rgthree-info.json", "a.b.json"]
    assert read(tmp_path, "gone.safetensors").problems == []


@pytest.mark.parametrize(
    "content",
    [b"{not json", b"\xff\xfe\x00", b"[" * 200_000, b"", b" " * (MAX_SIDECAR_BYTES + 1)],
    ids=["broken", "not text", "deep", "empty", "huge"],
)
def test_broken_sidecar_is_a_note_and_the_rest_is_read(tmp_path, content):
    (tmp_path / "o.metadata.json").write_bytes(content)
    (tmp_path / "o.civitai.info").write_text(json.dumps({"model": {"name": "Otter"}}))
    found = read(tmp_path, "o.safetensors")
    assert found.text.title == "Otter"
    assert [problem for problem in found.problems if "o.metadata.json" in problem] or content == b""


@pytest.mark.parametrize("value", [None, 3, [], {}, [[["x"]]], {"a": 1}, True, "\ud800", "<b>" * 10_000, "x" * 10**6])
def test_any_type_anywhere_is_harmless(tmp_path, value):
    keys = ("model_name", "tags", "notes", "civitai", "base_model", "modelDescription")
    for file, data in (
        ("o.metadata.json", {key: value for key in keys}),
        ("o.civitai.info", {"model": value, "trainedWords": value, "baseModel": value}),
        ("o.safetensors.rgthree-info.json", {"raw": value, "trainedWords": [value], "userTags": value, "name": value}),
        ("o.json", value),
    ):
        (tmp_path / file).write_text(json.dumps(data))
    text = json.dumps(value)
    metadata = {"ss_tag_frequency": text, "ss_dataset_dirs": text, "modelspec.title": "\ud800 title of it"}
    found = read(tmp_path, "o.safetensors", metadata)
    everything = [found.text.title, found.text.description, found.base_model, *found.text.tags, *found.text.triggers]
    assert all(isinstance(word, str) and len(word) <= 1000 for word in everything)
    " ".join(everything).encode("utf-8")  # no lone surrogate is left


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"sshs_model_hash": "1383DE39158354915efccfc6"}, "1383de391583"),
        ({"modelspec.hash_sha256": "0x" + "ab" * 32}, "ab" * 6),
        ({"sshs_model_hash": "e3b0c44298fc1c149afbf4c8"}, ""),  # the hash of nothing
        ({"sshs_model_hash": "e3b0c44298fc1c149afbf4c8", "modelspec.hash_sha256": "12" * 32}, "12" * 6),
        ({"sshs_model_hash": "not a hash"}, ""),
        ({}, ""),
    ],
)
def test_autov3(metadata, expected):
    assert autov3(metadata) == expected
