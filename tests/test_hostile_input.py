"""What fuzzing found, a test each: hostile files and inputs are refused by name, at once, and never taken halfway."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save
from safetensors.torch import load_file, save_file

from autolora_core.encode import encoder as encoder_module
from autolora_core.encode.encoder_files import load_encoder_file
from autolora_core.encode.features import FeatureSchema
from autolora_core.encode.open_clip_images import prepare
from autolora_core.encode.open_clip_tower import unit_rows
from autolora_core.encode.set_encoder import MODULES, SetEncoder, token_schema
from autolora_core.encode.set_network import SetConfig, SetNetwork
from autolora_core.encode.sketch import KINDS, SketchSize
from autolora_core.encode.tokens import TokenMap
from autolora_core.errors import FileFormatError, GateError, LibraryError, LoraError, SelectionError, TowerError
from autolora_core.fusion.files import read_gate
from autolora_core.fusion.gate import GateVectors
from autolora_core.fusion.gate_sign import gate_sign
from autolora_core.fusion.requests import requests_of
from autolora_core.fusion.terms import BlockFactors, Term
from autolora_core.image_info.graph import facts_of
from autolora_core.library import similar_words
from autolora_core.library.encoders import trained_for
from autolora_core.library.index import Library
from autolora_core.library.metadata import header_words
from autolora_core.library.pictures import read_picture
from autolora_core.library.texts import TextStore
from autolora_core.lora.file import LoraFile
from autolora_core.lora.header import read_header
from autolora_core.retrieve.selection import Selection
from autolora_core.wording import shown

NO_FLOAT = 10**400  # a whole number that JSON can say and no float can hold
SIZE, NAMES = SketchSize(2, 1, 1), ("a.0.b", "a.1.b")


def selection(**pick) -> dict:
    one = {"name": "otter.safetensors", "role": "subject", "strength": 1.0, **pick}
    return {"format": "autolora-selection/1", "prompt": "", "family": "sd3", "picks": [one]}


@pytest.mark.parametrize("pick", [{"path": {"": None}}, {"path": 3}, {"hash": [1]}, {"strength": NO_FLOAT}])
def test_a_pick_of_wrong_types_is_refused(pick):
    with pytest.raises(SelectionError):
        requests_of(selection(**pick), None)


def test_numbers_that_no_float_holds_are_refused():
    with pytest.raises(SelectionError, match="finite number"):
        Selection.from_json(selection(strength=NO_FLOAT))
    with pytest.raises(SelectionError, match="not a number"):
        requests_of(None, [("otter", NO_FLOAT, 1.0)])


def test_a_score_that_no_float_holds_is_no_score():
    (found,) = requests_of(selection(score=NO_FLOAT, parts={"text": 0.5}), None)
    assert found.asked == 1.0


def test_a_graph_whose_nodes_are_texts_tells_nothing():
    sampler = {"inputs": {"model": ["x", 0], "positive": ["x", 0], "seed": NO_FLOAT, "cfg": float("inf"), "steps": 20}}
    facts = facts_of({"x": "a text", "1": sampler, "2": {"inputs": {"images": ["1", 0]}}}, "2")
    assert (facts.positive, facts.seed, facts.cfg, facts.steps) == (None, None, None, 20)


def test_a_range_of_blocks_without_end_is_answered_at_once():
    start = time.process_time()
    factors = BlockFactors.parse("x.0-999999.proj: 0.5")
    assert factors.of("x.12.proj") == 0.5 and factors.of("y.12.proj") == 1.0
    assert BlockFactors.parse("*.0-999999.proj: 0.5").of("blocks.7.proj") == 0.5
    assert BlockFactors.parse("x.0-99999999999.proj: 0.5").of("x.1.proj") == 1.0, "so many digits are no range"
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize(
    ("pattern", "module"), [("*1-3.x", "block12.x"), ("a[0-9]b.1", "a5b.1"), ("b.1-12.q", "b.12.q")]
)
def test_ranges_mean_what_they_did(pattern, module):
    assert BlockFactors.parse(f"{pattern}: 0.5").of(module) == 0.5


def gate(path: Path, fingerprint: str) -> Path:
    tensors = {f"a.{name}": value for name, value in GateVectors.identity(4).named().items()}
    metadata = {"format": "autolora-gate/1", "family": "sd3", "base_fingerprint": fingerprint}
    save_file({name: value.clone() for name, value in tensors.items()}, path, metadata)
    return path


@pytest.mark.parametrize(
    "fingerprint", ['{"a": [1e999]}', '{"a": [NaN]}', '{"a": [1' + "0" * 400 + "]}", "[" * 100_000]
)
def test_a_gate_with_a_fingerprint_of_no_numbers_is_refused(tmp_path, fingerprint):
    with pytest.raises(GateError, match="base_fingerprint"):
        read_gate(gate(tmp_path / "gate.safetensors", fingerprint))
    assert read_gate(gate(tmp_path / "good.safetensors", '{"a": [1.0]}')).base_fingerprint == {"a": [1.0]}


def test_a_gate_that_names_a_vector_twice_is_refused(tmp_path):
    data = gate(tmp_path / "gate.safetensors", '{"a": [1.0]}').read_bytes()
    length = int.from_bytes(data[:8], "little")
    entry = data[8 : 8 + length].split(b'"a.norm_base.bias":')[1].split(b"}")[0] + b"}"
    header = data[8 : 8 + length].rstrip()[:-1] + b',"a.norm_base.bias":' + entry + b"}"
    (tmp_path / "gate.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    with pytest.raises(GateError, match="names a key twice"):
        read_gate(tmp_path / "gate.safetensors")


def test_the_menu_takes_only_texts_from_a_broken_gate(tmp_path):
    header = json.dumps({"__metadata__": {"format": "autolora-gate/1", "family": 0.5}, "a.bias": {}}).encode()
    (tmp_path / "gate.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    sign = gate_sign(tmp_path / "gate.safetensors")
    assert sign.family is None and sign.problem


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_the_menu_does_not_wait_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "gate.safetensors")
    assert gate_sign(tmp_path / "gate.safetensors") is None


def test_a_shape_beyond_all_numbers_is_named(tmp_path):
    entry = {"dtype": "F32", "shape": [NO_FLOAT], "data_offsets": [0, 4]}
    header = json.dumps({"a": entry}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    with pytest.raises(FileFormatError, match="more bytes than any file has"):
        read_header(tmp_path / "a.safetensors")


def set_encoder(**config) -> SetEncoder:
    """A small one; ``config`` is what its file states instead of the truth."""
    schema = token_schema("sd3", SIZE, NAMES)
    wide = np.zeros((2, SIZE.width), np.float32)
    tokens = TokenMap(
        schema, np.ones((2, 3, SIZE.width), np.float32), wide, np.ones((2, 3), np.float32), np.zeros(2, np.float32)
    )
    network = SetNetwork(SetConfig({MODULES: (2, 5)}, 4, width=4, heads=2, layers=1)).eval()
    for name, value in config.items():
        object.__setattr__(network.config, name, value)
    return SetEncoder(tokens, "tower", network, np.zeros(4, np.float32), np.eye(4, dtype=np.float32), {})


@pytest.mark.parametrize(
    "config",
    [{"layers": 10**9}, {"width": 2**40}, {"dim": 10**12}, {"heads": 0}, {"groups": {MODULES: (2**20, 2**20)}}],
)
def test_an_encoder_that_states_an_enormous_network_is_refused_before_it_is_made(tmp_path, config):
    path = set_encoder(**config).save(tmp_path / "big-encoder.safetensors")
    start = time.process_time()
    with pytest.raises(FileFormatError, match="config"):
        load_encoder_file(path)
    assert time.process_time() - start < 1


def test_an_encoder_of_nan_is_refused_although_its_id_is_right(tmp_path):
    made = set_encoder()
    assert load_encoder_file(made.save(tmp_path / "good-encoder.safetensors")).id == made.id
    made.text_map[0, 0] = np.nan
    with pytest.raises(FileFormatError, match="not finite"):
        load_encoder_file(
            SetEncoder(*(getattr(made, name) for name in made.__dataclass_fields__)).save(tmp_path / "e.safetensors")
        )


def test_a_ridge_encoder_whose_arrays_do_not_fit_together_is_refused(tmp_path):
    schema = FeatureSchema(
        "sd3", SIZE, NAMES, np.zeros((2, SIZE.width), np.float32), np.ones((2, len(KINDS)), np.float32)
    )
    drawn = np.random.default_rng(0)
    X = drawn.standard_normal((8, schema.width)).astype(np.float32)
    ridge = encoder_module.KernelRidge.fit(X, drawn.standard_normal((8, 6)))
    made = encoder_module.RidgeEncoder(
        schema, "tower", np.zeros(4, np.float32), ridge, tuple((str(n),) for n in range(8))
    )
    with pytest.raises(FileFormatError, match="incomplete"):
        load_encoder_file(made.save(tmp_path / "odd-encoder.safetensors"))


def test_an_encoder_whose_schema_is_a_bottomless_list_has_no_family(tmp_path):
    data = save(
        {"a": np.zeros(1, np.float32)}, {"format": "autolora-encoder/1", "kind": "ridge", "schema": "[" * 100_000}
    )
    (tmp_path / "x-encoder.safetensors").write_bytes(data)
    assert trained_for(tmp_path / "x-encoder.safetensors").family == ""
    with pytest.raises(FileFormatError):
        load_encoder_file(tmp_path / "x-encoder.safetensors")


def test_words_move_no_cursor_and_turn_no_text_around():
    words, _ = header_words(
        {"modelspec.title": "Ot\x1b[31mter \u202egnp.exe\0 one\x9b2J", "modelspec.tags": "a\0b,\u2066c"}
    )
    assert words.title == "Ot [31mter gnp.exe one 2J" and words.tags == ["a b", "c"]


def test_a_preview_starts_no_other_program(tmp_path, monkeypatch):
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    started = []
    monkeypatch.setattr("subprocess.Popen", lambda *args, **how: started.append(args))
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "EPS")
    path = tmp_path / "otter.preview.png"
    path.write_bytes(out.getvalue())
    with pytest.raises((OSError, ValueError)):
        read_picture(str(path))
    assert started == []


def test_a_picture_as_thin_as_a_thread_takes_no_more_memory(monkeypatch):
    made = []
    whole = torch.nn.functional.interpolate
    monkeypatch.setattr(
        "torch.nn.functional.interpolate",
        lambda image, size, **how: made.append(size) or whole(image, size=size, **how),
    )
    assert tuple(prepare(torch.rand(1, 4000, 3), 32).shape) == (3, 32, 32)
    assert made == [(32, 32 * 8)]


def test_a_clip_that_gives_nan_is_refused():
    with pytest.raises(TowerError, match="not finite"):
        unit_rows(torch.tensor([[float("inf"), 1.0]]), Path("clip.safetensors"))
    assert unit_rows(torch.tensor([[3.0, 4.0]]), Path("clip.safetensors")).tolist() == [
        [pytest.approx(0.6), pytest.approx(0.8)]
    ]


def library_of_one(folder: Path) -> Path:
    """A library with one entry, closed."""
    tensors = {"diffusion_model.joint_blocks.0.x_block.attn.qkv.lora_A.weight": torch.ones(1, 256)}
    tensors["diffusion_model.joint_blocks.0.x_block.attn.qkv.lora_B.weight"] = torch.ones(768, 1)
    (folder / "loras").mkdir()
    save_file(tensors, folder / "loras" / "otter.safetensors")
    with Library.open(folder / "library") as library:
        library.scan({"loras": folder / "loras"})
    return folder / "library"


def changed(folder: Path, statements: str) -> Path:
    db = sqlite3.connect(folder / "library.sqlite")
    db.executescript(statements)
    db.close()
    return folder


@pytest.mark.parametrize(
    ("statements", "said"),
    [
        ("CREATE TRIGGER t AFTER UPDATE ON meta BEGIN DELETE FROM files; END", "holds a trigger, 't'"),
        (
            "ALTER TABLE pairs RENAME TO real; CREATE VIEW pairs AS WITH RECURSIVE c(x) AS"
            " (SELECT 1 UNION ALL SELECT x FROM c)"
            " SELECT x FROM c",
            "holds a view, 'pairs'",
        ),
        ("UPDATE files SET path = '/etc/passwd'", "leads out of its folder"),
        ("UPDATE files SET path = root || '/../../etc/passwd'", "leads out of its folder"),
        ("UPDATE files SET preview = '/etc/passwd'", "leads out of its folder"),
        ("UPDATE files SET text = '[1]'", "damaged"),
        ("UPDATE files SET text = '{\"tags\": [3]}'", "damaged"),
        ("UPDATE files SET problems = '" + "[" * 5000 + "'", "damaged"),
        ("UPDATE files SET mtime_ns = 'yesterday'", "damaged"),
        ("UPDATE contents SET family = 7.5, rank = 'x'", "other types"),
        ("DROP TABLE files", "no such table"),
    ],
)
def test_rows_that_this_pack_never_wrote_are_an_error_of_the_library(tmp_path, statements, said):
    folder = changed(library_of_one(tmp_path), statements)
    with pytest.raises(LibraryError, match=said) as caught, Library.open(folder) as library:
        library.entries()
    assert caught.value.path == str(folder / "library.sqlite") and caught.value.fix


def test_a_database_of_random_bytes_is_an_error_of_the_library(tmp_path):
    folder = library_of_one(tmp_path)
    changed(folder, "PRAGMA journal_mode = DELETE")
    whole = bytearray((folder / "library.sqlite").read_bytes())
    whole[4096:] = np.random.default_rng(0).bytes(len(whole) - 4096)
    (folder / "library.sqlite").write_bytes(whole)
    with pytest.raises(LibraryError, match="damaged|cannot be used"), Library.open(folder) as library:
        library.entries()


@pytest.mark.parametrize(
    "wrong", [{"roots": None}, {"roots": [1]}, {"roots": {"a": 3}}, {"under": 3}, {"names": ["x"]}, {"folder": "a\0b"}]
)
def test_a_handle_that_nobody_made_here_is_refused(tmp_path, wrong):
    folder = library_of_one(tmp_path)
    with Library.open(folder) as library:
        handle = library.handle
    with Library.from_handle(handle) as library:
        assert len(library.entries()) == 1
    with pytest.raises(LibraryError):
        Library.from_handle(handle | wrong)


def test_a_text_vector_that_lost_a_bit_is_made_again(tmp_path):
    store = TextStore(tmp_path)
    store["tower\notter"] = b"12345678"
    store.close()
    with sqlite3.connect(tmp_path / "texts.sqlite") as db:
        db.execute(
            "UPDATE texts SET vector = ?", (b"12345679" + db.execute("SELECT vector FROM texts").fetchone()[0][8:],)
        )
    again = TextStore(tmp_path)
    assert "tower\notter" not in again
    again["tower\notter"] = b"12345678"
    again.close()
    assert TextStore(tmp_path)["tower\notter"] == b"12345678"


def test_names_in_reports_move_no_cursor_and_turn_no_text_around():
    assert shown("a\x1b[31m\u202eb\nc\td\udcff") == "a\ufffd[31m\ufffdb\nc\td\ufffd"
    assert similar_words.shown is shown


@pytest.mark.parametrize("alpha", [3e38, -3e38])
def test_a_scale_that_makes_values_infinite_is_refused_by_module(tmp_path, alpha):
    stem = "lora_unet_joint_blocks_0_x_block_attn_qkv"
    tensors = {f"{stem}.lora_down.weight": torch.ones(1, 64), f"{stem}.lora_up.weight": torch.full((192, 1), 9.0)}
    save_file({**tensors, f"{stem}.alpha": torch.tensor(alpha)}, tmp_path / "a.safetensors")
    lora = LoraFile.open(tmp_path / "a.safetensors")
    assert lora.check_values() == []
    with pytest.raises(LoraError, match="beyond what float32 holds") as caught:
        list(lora.updates())
    assert caught.value.key == "joint_blocks.0.x_block.attn.qkv"


def test_numbers_of_thousands_of_digits_are_names_or_refused(tmp_path):
    assert Term("9" * 5000).meant(["otter"]) == [] and Term("1").meant(["otter"]) == [0]
    path = gate(tmp_path / "gate.safetensors", '{"a": [1.0]}')
    tensors, metadata = load_file(path), {"format": "autolora-gate/1", "family": "sd3", "k_min": "9" * 5000}
    save_file(tensors, tmp_path / "long.safetensors", metadata)
    with pytest.raises(GateError, match="not a whole number"):
        _ = read_gate(tmp_path / "long.safetensors").k_range
