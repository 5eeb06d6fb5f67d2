"""Proves that the node Train LoRA Encoder learns inside the real ComfyUI (in inference mode), saves where Encode looks,
hands on the new generation, can be cancelled, and says what it cannot do."""

from __future__ import annotations

import json

import pytest
import torch
from comfy_local import pack_module
from conftest import ROOT
from retrieve_worlds import TopicTower
from train_worlds import topic, world

from autolora_core.library.index import Library


@pytest.fixture
def node(comfy, tmp_path, monkeypatch):
    module = pack_module("nodes.train_encoder")
    monkeypatch.setattr(module, "shared_tower", lambda folders=(): TopicTower())
    monkeypatch.setattr(comfy, "models_dir", str(tmp_path / "models"))
    monkeypatch.setattr(comfy, "get_user_directory", lambda: str(tmp_path / "user"))
    monkeypatch.setattr(comfy, "get_input_directory", lambda: str(tmp_path / "input"))
    monkeypatch.setattr(module, "PACK_MODELS", tmp_path / "pack")
    return module.AutoLoRATrainEncoder


@pytest.fixture
def index(tmp_path):
    with Library.open(tmp_path / "user" / "autolora" / "mine") as library:
        library.scan({"loras": world(tmp_path)})
        library.fit(TopicTower())
        return json.loads(json.dumps(library.handle))


def run(node, index, **inputs):
    with torch.inference_mode():
        out = node().train(index=index, **inputs)
    handle, report = out["result"]
    assert out["ui"] == {"text": [report]} and json.loads(json.dumps(handle)) == handle
    return handle, report


def test_it_learns_saves_and_hands_on_a_new_generation(node, index, tmp_path):
    before, seed = node.IS_CHANGED(), torch.get_rng_state()
    handle, report = run(node, index, epochs=0, captions_csv=f"file,caption\n0028ab00cd,{topic(40)}\nnone,x\n")
    assert torch.equal(torch.get_rng_state(), seed)
    assert "knows something" in report and "41 of 50" in report and "line 3 (none)" in report
    assert (tmp_path / "models" / "autolora" / "emoji-mine-encoder.safetensors").is_file()
    assert handle["generation"] > index["generation"] and node.IS_CHANGED() != before
    with Library.from_handle(handle) as library:
        assert len(library.encoder("emoji").texts) == 41
    again, report = run(node, handle, epochs=0, captions_csv=f"file,caption\n0028ab00cd,{topic(40)}\nnone,x\n")
    assert again == handle and "Nothing had changed" in report


def test_the_set_transformer_trains_in_inference_mode(node, index, monkeypatch):
    own = pack_module("autolora_core.train.own")
    monkeypatch.setattr(own, "MIN_FOR_SET", 20)
    monkeypatch.setattr(own._Job, "_seconds_an_epoch", lambda *_: 0.01)
    _, report = run(node, index, epochs=4, encoder_name="my encoder")
    assert "set transformer  " in report and "my-encoder-encoder.safetensors" in report


def test_a_changed_table_in_the_input_folder_is_noticed_and_read(node, index, tmp_path):
    before = node.IS_CHANGED(captions_csv="captions.csv")
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "captions.csv").write_text("nobody,an otter\n")
    assert node.IS_CHANGED(captions_csv="captions.csv") != before
    assert "nobody" in run(node, index, epochs=0, captions_csv="captions.csv")[1]
    with pytest.raises(pack_module("autolora_core.errors").LibraryError, match="cannot be read"):
        run(node, index, epochs=0, captions_csv="~nobody-here.csv")


OUTSIDE = ("{}/secret.csv", "../secret.csv", "~/secret.csv", "{}/input/link.csv", "{}/input/../secret.csv", "a\0b.csv")


@pytest.mark.parametrize("given", OUTSIDE)
def test_a_table_outside_comfyuis_folders_is_not_read(node, index, tmp_path, monkeypatch, given):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "input").mkdir()
    (tmp_path / "secret.csv").write_text("user,password\n")
    (tmp_path / "input" / "link.csv").symlink_to(tmp_path / "secret.csv")
    given = given.format(tmp_path)
    same = node.IS_CHANGED(captions_csv=given)
    with pytest.raises(pack_module("autolora_core.errors").LibraryError, match="own folders only") as caught:
        run(node, index, epochs=0, captions_csv=given)
    (tmp_path / "secret.csv").write_text("user,another password\n")
    assert "password" not in str(caught.value) and node.IS_CHANGED(captions_csv=given) == same


def test_cancel(node, index, monkeypatch):
    import comfy.model_management as management

    def interrupt():
        management.interrupt_current_processing()
        management.throw_exception_if_processing_interrupted()

    monkeypatch.setattr(pack_module("nodes.bridge_paths"), "throw_if_interrupted", interrupt)
    with pytest.raises(management.InterruptProcessingException):
        run(node, index, epochs=0)


def test_the_help_page_names_every_input_and_output(node):
    page = (ROOT / "web" / "docs" / "AutoLoRATrainEncoder.md").read_text(encoding="utf-8")
    inputs = [name for group in node.INPUT_TYPES().values() for name in group]
    assert all(f"\n| {name} |" in page for name in (*inputs, *node.RETURN_NAMES))


def test_every_command_of_the_page_is_understood():
    from autolora_core.train.__main__ import parse

    lines = (ROOT / "docs" / "train_encoder.md").read_text(encoding="utf-8").splitlines()
    commands = [line.split()[3:] for line in lines if line.startswith("python -m autolora_core.train ")]
    assert len(commands) == 3 and all(parse(command).index.name == "INDEX_FOLDER" for command in commands)
    assert parse(commands[1]).family == "sdxl" and parse(commands[1]).minutes == 10 and parse(commands[2]).epochs == 0
