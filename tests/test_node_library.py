"""Proves that the Encode node, inside the real ComfyUI, indexes what its lora menus show, reports, can be cancelled,
and runs again exactly when files have changed."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_models
import torch
from comfy_local import as_model, every_progress_message, pack_module, sizes_for
from conftest import emoji_factors, write_lora

EMPTY = {"folder": "all loras", "name_filter": "", "library": "default", "force": False, "weights": "now"}


@pytest.fixture
def encode_module(comfy, tmp_path, monkeypatch):
    """The node's module; ComfyUI has two loras roots in tmp_path and a fresh user directory; the tower is lexical."""
    module = pack_module("nodes.encode_library")
    towers = pack_module("autolora_core.encode.towers")
    monkeypatch.setattr(module, "shared_tower", lambda folders=(): towers.LexicalTower())
    roots = [str(tmp_path / "loras"), str(tmp_path / "drive" / "loras"), str(tmp_path / "output" / "loras")]
    extensions = comfy.folder_names_and_paths["loras"][1]
    monkeypatch.setitem(comfy.folder_names_and_paths, "loras", (roots, extensions))
    monkeypatch.setattr(comfy, "filename_list_cache", {})
    comfy.set_user_directory(str(tmp_path / "user"))
    for seed, name in enumerate(("otter", "fox", "styles/ink", "styles/old/neon")):
        write_lora(tmp_path / "loras" / f"{name}.safetensors", emoji_factors(seed, blocks=1))
    write_lora(tmp_path / "drive" / "loras" / "castle.safetensors", emoji_factors(9, blocks=1))
    return module


@pytest.fixture
def node(encode_module):
    return encode_module.AutoLoRAEncodeLibrary()


def run(node, **inputs):
    out = node.encode(**{**EMPTY, **inputs})
    (index, report), ui = out["result"], out["ui"]
    assert ui["text"] == [report] and json.loads(json.dumps(ui["autolora"])) == ui["autolora"]
    assert json.loads(json.dumps(index)) == index
    return index, report


def entries(index: dict) -> list:
    library = pack_module("autolora_core.library.index").Library
    with library.from_handle(index) as opened:
        return opened.entries()


def test_every_input_and_output_is_explained(encode_module):
    node = encode_module.AutoLoRAEncodeLibrary
    inputs = {name: spec for group in node.INPUT_TYPES().values() for name, spec in group.items()}
    assert list(inputs) == list(EMPTY)
    assert all(len(spec[1]["tooltip"]) > 20 for spec in inputs.values())
    assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) == len(node.OUTPUT_TOOLTIPS) == 2
    assert node.OUTPUT_NODE and node.CATEGORY == "AutoLoRA" and node.DESCRIPTION and node.TITLE == "Encode LoRA Library"


def test_names_are_those_of_comfyuis_own_menu(comfy, node):
    index, _ = run(node)
    assert [entry.name for entry in entries(index)] == sorted(comfy.get_filename_list("loras"))
    for entry in entries(index):
        assert entry.path == comfy.get_full_path("loras", entry.name)


def test_folder_menu(encode_module, node, tmp_path):
    choices = node.INPUT_TYPES()["required"]["folder"][0]
    assert choices == ["all loras", "loras", "drive/loras", "loras/styles"]
    assert [e.name for e in entries(run(node, folder="drive/loras")[0])] == ["castle.safetensors"]
    below = [os.path.join("styles", "ink.safetensors"), os.path.join("styles", "old", "neon.safetensors")]
    assert [e.name for e in entries(run(node, folder="loras/styles")[0])] == below
    assert [e.name for e in entries(run(node, folder="loras", name_filter="*o*, -styles")[0])] == [
        "fox.safetensors", "otter.safetensors"
    ]  # fmt: skip
    with pytest.raises(Exception, match="no such loras folder.*gone.*What to do"):
        run(node, folder="gone")


def test_a_menu_of_thousands_keeps_every_root_and_says_what_it_leaves_out(encode_module, node, tmp_path, monkeypatch):
    monkeypatch.setattr(encode_module, "MAX_FOLDERS", 20)
    for number in range(30):
        (tmp_path / "loras" / f"many {number:02d}").mkdir()
    choices, how = node.INPUT_TYPES()["required"]["folder"]
    assert choices[:3] == ["all loras", "loras", "drive/loras"] and len(choices) == 3 + 20
    assert "11 more folders are not listed." in how["tooltip"] and "name_filter" in how["tooltip"]
    monkeypatch.undo()
    assert encode_module.MAX_FOLDERS >= 2000


def test_a_folder_beyond_the_menu_can_be_named(encode_module, node, tmp_path, monkeypatch):
    """Deeper down, or past its end; what is not there is refused before anything runs."""
    monkeypatch.setattr(encode_module, "MAX_FOLDERS", 0)
    check = encode_module.AutoLoRAEncodeLibrary.VALIDATE_INPUTS
    assert all(check(folder=name) is True for name in (None, "all loras", "loras", "loras/styles", "loras/styles/old"))
    deep = os.path.join("styles", "old", "neon.safetensors")
    assert [entry.name for entry in entries(run(node, folder="loras/styles/old")[0])] == [deep]
    assert [entry.name for entry in entries(run(node, name_filter="styles/old/*")[0])] == [deep]
    for name in ("gone", "loras/gone", "loras/..", "loras/styles/../../..", "loras/fox.safetensors"):
        assert "folder" in check(folder=name), name


def test_a_root_that_cannot_be_listed_keeps_the_node(encode_module, node, tmp_path, monkeypatch, caplog):
    real = os.scandir

    def refuse(path):
        if str(path) == str(tmp_path / "drive" / "loras"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert node.INPUT_TYPES()["required"]["folder"][0] == ["all loras", "loras", "drive/loras", "loras/styles"]
    assert "cannot be listed" in caplog.text


def test_index_lies_in_the_user_directory_and_nowhere_else(node, tmp_path):
    before = sorted(path.name for path in (tmp_path / "loras").rglob("*"))
    index, _ = run(node, library="my index")
    assert Path(index["folder"]) == tmp_path / "user" / "autolora" / "my index"
    assert (tmp_path / "user" / "autolora" / "my index" / "library.sqlite").is_file()
    assert sorted(path.name for path in (tmp_path / "loras").rglob("*")) == before


@pytest.mark.parametrize("name", ["../up", "a/b", "a\\b", ".", "..", "x" * 65, "a:b", "nul\0", "end."])
def test_library_names_that_are_paths_are_refused(node, name):
    with pytest.raises(Exception, match="library name"):
        run(node, library=name)


def test_report_says_what_matters(node, tmp_path):
    (tmp_path / "loras" / "page.safetensors").write_bytes(b"<!DOCTYPE html><html></html>")
    otter = emoji_factors(0, blocks=1)
    write_lora(tmp_path / "loras" / "otter again.safetensors", {n: (d * 2, u) for n, (d, u) in otter.items()})
    (tmp_path / "loras" / "fox copy.safetensors").write_bytes((tmp_path / "loras" / "fox.safetensors").read_bytes())
    _, report = run(node)
    assert "8 LoRA files: 8 new." in report and "emoji: 7" in report
    assert "page.safetensors" in report and "HTML" in report
    assert "fox copy.safetensors = fox.safetensors: identical files" in report
    assert "otter again.safetensors ~ otter.safetensors" in report.replace(
        "otter.safetensors ~ otter again.safetensors", "otter again.safetensors ~ otter.safetensors"
    )
    assert "kB in" in report and "/s)" in report
    _, report = run(node)
    assert "8 unchanged" in report and "kB in" not in report


def test_runs_again_exactly_when_files_changed(encode_module, tmp_path):
    node = encode_module.AutoLoRAEncodeLibrary
    state = node.IS_CHANGED(**EMPTY)
    run(node())
    assert node.IS_CHANGED(**EMPTY) == state == node.IS_CHANGED(**EMPTY)
    write_lora(tmp_path / "loras" / "new.safetensors", emoji_factors(20, blocks=1))
    assert node.IS_CHANGED(**EMPTY) != state
    (tmp_path / "loras" / "new.safetensors").unlink()
    assert node.IS_CHANGED(**EMPTY) == state
    assert node.IS_CHANGED(**{**EMPTY, "folder": "loras/styles"}) != state
    assert node.IS_CHANGED(folder=None, name_filter=None, library=None, force=False) == state  # linked inputs
    assert node.IS_CHANGED(**{**EMPTY, "force": True}) != node.IS_CHANGED(**{**EMPTY, "force": True})


def test_deleted_library_runs_the_node_again(encode_module, tmp_path):
    import shutil

    node = encode_module.AutoLoRAEncodeLibrary
    state = node.IS_CHANGED(**EMPTY)
    run(node())
    shutil.rmtree(tmp_path / "user" / "autolora")
    after = node.IS_CHANGED(**EMPTY)
    assert after != state
    run(node())
    assert node.IS_CHANGED(**EMPTY) == after


def test_what_the_first_prompt_needs_is_encoded_already(encode_module, node, tmp_path, monkeypatch):
    """The words of the library and the generic prompts lie in its text store: no prompt waits for them."""

    class Counting(pack_module("autolora_core.encode.towers").LexicalTower):
        asked: list[str] = []

        def encode(self, texts):
            self.asked.extend(texts)
            return super().encode(texts)

    metadata = {"modelspec.title": "An otter", "modelspec.tags": "animal, river"}
    write_lora(tmp_path / "loras" / "x.safetensors", emoji_factors(30, blocks=1), metadata)
    monkeypatch.setattr(encode_module, "shared_tower", lambda folders=(): Counting())
    index, _ = run(node)
    assert {"An otter", "animal", "river"} <= set(Counting.asked)
    Counting.asked.clear()
    retrieve = pack_module("autolora_core.retrieve.retrieve").retrieve
    with pack_module("autolora_core.library.index").Library.from_handle(index) as library:
        found = retrieve(library, "an otter at sea", family="emoji", tower=Counting())
    assert found.picks and all("otter" in text or "sea" in text for text in Counting.asked)
    assert "An otter" not in Counting.asked


def test_cancel_stops_it_and_the_next_run_goes_on(comfy, node, monkeypatch):
    import comfy.model_management as management
    import comfy.utils

    seen = []

    def hook(value, total, preview, node_id=None):
        seen.append(value)
        if len(seen) == 2:
            management.interrupt_current_processing(True)

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    every_progress_message(monkeypatch)
    monkeypatch.setattr(pack_module("nodes.bar").Bar, "INTERVAL", 0.0)
    with pytest.raises(management.InterruptProcessingException):
        run(node)
    assert not management.processing_interrupted()
    _, report = run(node)
    assert "1 unchanged" in report and "4 new" in report
    assert seen == sorted(seen[:2]) + sorted(seen[2:]) and seen[-1] == 1000


def unet(context: int, depth: list[int]):
    """ComfyUI's own UNet, shapes only."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    return UNetModel(
        image_size=32, in_channels=4, out_channels=4, model_channels=320, num_res_blocks=[1] * len(depth),
        channel_mult=list(range(1, len(depth) + 1)), transformer_depth=depth, transformer_depth_output=depth * 2,
        context_dim=context, num_head_channels=64, use_spatial_transformer=True, use_linear_in_transformer=True,
        transformer_depth_middle=-2, device="meta", dtype=torch.float16, operations=comfy.ops.disable_weight_init,
    )  # fmt: skip


def flux():
    import comfy.ops
    from comfy.ldm.flux.model import Flux, FluxParams

    sizes = {
        "in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096, "hidden_size": 3072,
        "mlp_ratio": 4.0, "num_heads": 24, "depth": 1, "depth_single_blocks": 1, "axes_dim": [16, 56, 56],
        "theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True,
    }  # fmt: skip
    how = {"device": "meta", "dtype": torch.float16, "operations": comfy.ops.disable_weight_init}
    return Flux(**sizes_for(FluxParams, sizes), **how)


@pytest.mark.parametrize(
    ("build", "expected"),
    [(lambda: unet(768, [1]), "sd15"), (lambda: unet(2048, [0, 2]), "sdxl"), (flux, "flux")],
    ids=["sd15", "sdxl", "flux"],
)
def test_family_of_a_model_by_its_layers(comfy, build, expected):
    assert pack_module("nodes.bridge_paths").model_family(as_model(build())).name == expected


def test_tower_is_shared_until_its_file_changes(comfy, tmp_path, monkeypatch):
    module = pack_module("nodes.tower")
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes(b"one")
    monkeypatch.setenv("AUTOLORA_MINILM", str(tmp_path))
    first = module.shared_tower()
    assert first is module.shared_tower() and first.folder == tmp_path
    state = module.tower_state()
    (tmp_path / "model.safetensors").write_bytes(b"another")
    assert module.tower_state() != state and module.shared_tower() is not first


@pytest.mark.parametrize(("hidden", "expected"), [(128, "sd3"), (256, "emoji")])
def test_family_of_a_loaded_model(comfy, hidden, expected):
    model = tiny_models.load(tiny_models.sd3_state(hidden=hidden))
    before = {name: (value.data_ptr(), value.device) for name, value in model.model.state_dict().items()}
    family = pack_module("nodes.bridge_paths").model_family(model)
    assert family.name == expected and family.evidence
    assert {name: (value.data_ptr(), value.device) for name, value in model.model.state_dict().items()} == before


def test_weights_later(encode_module, node, tmp_path, monkeypatch):
    """Done by headers at once, found by words, read while no prompt runs, and the node runs again when all is read."""
    later, idle = pack_module("nodes.later"), pack_module("nodes.bridge_idle")
    towers = pack_module("autolora_core.encode.towers")
    monkeypatch.setattr(later, "shared_tower", lambda folders=(): towers.LexicalTower())
    monkeypatch.setattr(pack_module("autolora_core.library.later"), "PAUSE_SECONDS", 0.02)
    queue = SimpleNamespace(running=1)
    queue.get_tasks_remaining = lambda: queue.running
    server = SimpleNamespace(PromptServer=SimpleNamespace(instance=SimpleNamespace(prompt_queue=queue)))
    monkeypatch.setitem(sys.modules, "server", server)
    assert idle.prompts_waiting()
    inputs = {**EMPTY, "library": "put off", "weights": "later"}
    index, report = run(node, **inputs)
    assert "0 of 5 files are read by their weights so far" in report and "5 new" in report
    assert all(entry.by_header for entry in entries(index))
    before = encode_module.AutoLoRAEncodeLibrary.IS_CHANGED(**inputs)
    retrieve = pack_module("nodes.retrieve")
    monkeypatch.setattr(retrieve, "shared_tower", lambda folders=(): towers.LexicalTower())
    asked = {"family": "auto", "top_k": 1, "threshold": 0.5, "strength": 1.0, "pinned": "", "banned": ""}
    asked |= {"use_weights": True, "use_text": True}
    found = retrieve.AutoLoRARetrieve().retrieve(index, "an otter", **asked)["result"]
    assert [pick["name"] for pick in found[0]["picks"]] == ["otter.safetensors"]
    assert "0 of 5 files" in found[3] and "by their letters for now" in found[3]
    [reader] = [reader for folder, reader in later._readers.items() if folder.endswith("put off")]
    assert reader.order(SimpleNamespace(name="otter.safetensors", mtime_ns=0))[0] < 0
    assert all(entry.by_header for entry in entries(index)), "read while a prompt runs"
    queue.running = 0
    began = time.monotonic()
    while reader.running:
        assert time.monotonic() - began < 30
        time.sleep(0.02)
    assert not any(entry.by_header for entry in entries(index))
    assert encode_module.AutoLoRAEncodeLibrary.IS_CHANGED(**inputs) != before
    assert "so far" not in run(node, **inputs)[1]
