"""What nodes are told may come over the network: no name, path or index leads out of ComfyUI's own folders."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from comfy_local import library_place, pack_module
from conftest import emoji_factors, write_lora

from autolora_core.errors import AutoLoRAError
from benchmarks.reliability.fuzzing import mutate, targets

NAMES = targets.load("names")


@pytest.mark.parametrize("text", mutate.TEXTS, ids=range(len(mutate.TEXTS)))
def test_no_name_leaves_its_folder_here_or_on_windows(tmp_path, text):
    """Libraries, encoders, gates and merged LoRAs; the name is refused, or its file lies inside."""
    for name in (text, f"a/{text}", f"{text}\\b", f"..{text}", f"{text}/../../x"):
        check(name.encode("utf-8", "surrogatepass"), tmp_path)


def test_nor_do_names_that_are_drawn(tmp_path):
    drawn = random.Random(1)
    for _ in range(300):
        check(NAMES.make(drawn, b"otter"), tmp_path)


def check(name: bytes, folder: Path) -> None:
    try:
        NAMES.run(name, folder)
    except AutoLoRAError as error:
        assert error.key is not None or error.path is not None


def test_the_check_sees_a_name_that_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(NAMES, "gate_path", lambda folder, family, name: folder / name)
    with pytest.raises(targets.load("header").Wrong, match="becomes"):
        NAMES.run(b"../x", tmp_path)
    with pytest.raises(targets.load("header").Wrong, match="on Windows"):
        NAMES.run(b"a\\..\\..\\x", tmp_path)


@pytest.fixture
def index(comfy, tmp_path):
    """The handle of a library where nodes look for it, of one LoRA."""
    write_lora(tmp_path / "loras" / "otter.safetensors", emoji_factors(0, blocks=1))
    place = library_place(comfy, tmp_path.name)
    with pack_module("autolora_core.library.index").Library.open(place) as library:
        library.scan({"loras": tmp_path / "loras"})
        return library.handle


def test_only_indexes_of_the_user_directory_are_opened(comfy, index, tmp_path):
    bridge, errors = pack_module("nodes.bridge_paths"), pack_module("autolora_core.errors")
    with bridge.open_index(index) as library:
        assert [entry.name for entry in library.entries()] == ["otter.safetensors"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "library.sqlite").write_bytes(b"")
    inside = Path(index["folder"])
    for folder in (
        elsewhere,
        inside / ".." / ".." / ".." / "elsewhere",
        inside.parent,
        "relative",
        "",
        "a\0b",
        7,
        None,
        [str(inside)],
    ):
        given = index | {"folder": folder if isinstance(folder, (int, list, type(None))) else str(folder)}
        with pytest.raises(errors.LibraryError):
            bridge.open_index(given)
    assert (elsewhere / "library.sqlite").read_bytes() == b"" and len(list(elsewhere.iterdir())) == 1, "it was touched"


@pytest.mark.parametrize("given", [None, 3, "text", [], {}, {"format": "autolora-index/1"}, {"format": ["x"]}])
def test_an_index_that_is_none_is_named_as_such(comfy, given):
    with pytest.raises(pack_module("autolora_core.errors").LibraryError):
        pack_module("nodes.bridge_paths").open_index(given)


def test_a_selections_path_reaches_lora_files_only(comfy, tmp_path, monkeypatch):
    errors, bridge = pack_module("autolora_core.errors"), pack_module("nodes.bridge_loras")
    request = pack_module("autolora_core.fusion.requests").Request
    secret, lora = tmp_path / "secret.txt", write_lora(tmp_path / "otter.safetensors", emoji_factors(0, blocks=1))
    secret.write_text("password")
    assert bridge.resolve(request("gone", 1.0, 1.0, path=str(lora))) == str(lora)
    with pytest.raises(errors.SelectionError) as caught:
        bridge.resolve(request("gone", 1.0, 1.0, path=str(secret)))
    assert "secret" not in str(caught.value)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.SelectionError):
        bridge.resolve(request("gone", 1.0, 1.0, path="otter.safetensors"))


def test_menus_show_no_markup(comfy, tmp_path, monkeypatch):
    """The front end's menus take entries for markup; a file so called is left out, and the report says so."""
    hostile = "<img src=x onerror=alert(1)>"
    for name in ("otter", hostile, f"{hostile}/fox"):
        write_lora(tmp_path / "loras" / f"{name}.safetensors", emoji_factors(0, blocks=1))
    monkeypatch.setitem(comfy.folder_names_and_paths, "loras", ([str(tmp_path / "loras")], {".safetensors"}))
    monkeypatch.setattr(comfy, "filename_list_cache", {})
    encode, similar = pack_module("nodes.encode_library"), pack_module("nodes.find_similar")
    for inputs in (encode.AutoLoRAEncodeLibrary.INPUT_TYPES(), similar.AutoLoRAFindSimilar.INPUT_TYPES()):
        menus = [spec[0] for group in inputs.values() for spec in group.values() if isinstance(spec[0], list)]
        assert menus and not [entry for menu in menus for entry in menu if "<" in entry]
    assert "otter.safetensors" in similar.AutoLoRAFindSimilar.INPUT_TYPES()["optional"]["lora"][0]
    monkeypatch.setattr(comfy, "get_user_directory", lambda: str(tmp_path / "user"))
    _, report = encode.AutoLoRAEncodeLibrary().encode("all loras", "", "default", False)["result"]
    assert (
        f"2 names with <, which menus of ComfyUI may take for markup and run: rename the files.\n- {hostile}" in report
    )


@pytest.mark.parametrize("prefix", ["../../evil", "/tmp/evil", "a/../../evil"])
def test_pictures_are_written_into_the_output_folder_only(comfy, tmp_path, monkeypatch, prefix):
    bridge = pack_module("nodes.bridge_save_image")
    monkeypatch.setattr(comfy, "get_output_directory", lambda: str(tmp_path / "output"))
    told = bridge.Told("", {}, [])
    with pytest.raises(Exception, match="outside the output folder"):
        bridge.save_pictures(torch.zeros(1, 8, 8, 3), prefix, told, None, None)
    assert not list(tmp_path.rglob("evil*"))
