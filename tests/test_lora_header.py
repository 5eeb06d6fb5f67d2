"""Proves that a header which lies is refused by name, and that a good one reads back bit for bit."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from autolora_core.errors import FileFormatError
from autolora_core.lora import header as header_module
from autolora_core.lora.header import read_header, read_tensors


def raw(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """The bytes of a safetensors file with any header (JSON-able, or text as it is) and any claimed length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8), **more: object) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


EIGHT = b"\0" * 8
LIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "seven bytes": (b"\2\0\0\0\0\0\0", "only 7 bytes"),
    "git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 9\n", "Git LFS pointer"),
    "html page": (b"<!DOCTYPE html><html><body>Sign in</body></html>", "HTML"),
    "html after a blank line": (b"\n  <HTML lang=en>" + b" " * 40, "HTML"),
    "json answer": (b'{"error":"Entry not found"}', "JSON text"),
    "pickle": (pickle.dumps({"a": [1.0] * 50}), "pickle"),
    "gguf": (b"GGUF\3\0\0\0" + EIGHT * 4, "GGUF"),
    "zeros": (b"\0" * 4096, "zero bytes"),
    "noise": (bytes(range(1, 100)), "not a safetensors file"),
    "length beyond the file": (raw({"a": tensor()}, EIGHT, length=10**6), "truncated or it lies"),
    "length of 2**63": (raw({"a": tensor()}, EIGHT, length=2**63), "truncated or it lies"),
    "length too short": (raw({"a": tensor()}, EIGHT, length=20), "not valid JSON"),
    "not utf-8": (raw(b'{"\xff":1}'), "UTF-8"),
    "half a character": (raw(b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', EIGHT), "UTF-8"),
    "half a character in the metadata": (raw(b'{"__metadata__":{"a":"\\udfff"}}'), "UTF-8"),
    "millions of values": (raw(b'{"a":[' + b"[]," * 900_000 + b"[]]}"), "more values than 100,000 tensors have"),
    "millions of tables": (raw(b"{" + b'"a":{},' * 900_000 + b'"b":{}}'), "more values than 100,000 tensors have"),
    "not json": (raw(b"{nonsense}"), "JSON"),
    "nested too deep": (raw(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"), "JSON"),
    "nan in header": (raw(b'{"a":NaN}'), "JSON"),
    "number with 5000 digits": (raw(b'{"a":' + b"9" * 5000 + b"}"), "JSON"),
    "duplicate key": (raw(b'{"a":%s,"a":%s}' % ((json.dumps(tensor()).encode(),) * 2), EIGHT), "twice"),
    "metadata is a list": (raw({"__metadata__": ["x"]}), "metadata"),
    "metadata value is a number": (raw({"__metadata__": {"step": 3}}), "metadata 'step'"),
    "entry is a number": (raw({"a": 3}), "exactly dtype"),
    "entry lacks offsets": (raw({"a": {"dtype": "F32", "shape": [2]}}), "exactly dtype"),
    "entry with a further field": (raw({"a": tensor(order="C")}, EIGHT), "exactly dtype"),
    "unknown dtype": (raw({"a": tensor("F33")}, EIGHT), "unknown dtype 'F33'"),
    "dtype is a list": (raw({"a": tensor(["F32"])}, EIGHT), "unknown dtype"),
    "negative size": (raw({"a": tensor(shape=[-2])}, EIGHT), "list of"),
    "size is a float": (raw({"a": tensor(shape=[2.0])}, EIGHT), "list of"),
    "size is true": (raw({"a": tensor(shape=[True, 2])}, EIGHT), "list of"),
    "a thousand dimensions": (raw({"a": tensor(shape=[1] * 1000)}, EIGHT), "list of"),
    "sizes that overflow": (raw({"a": tensor(shape=[2**62, 2**62])}, EIGHT), "needs"),
    "shape larger than bytes": (raw({"a": tensor(shape=[3])}, EIGHT), "needs 12 bytes, the file gives 8"),
    "shape smaller than bytes": (raw({"a": tensor(shape=[1])}, EIGHT), "needs 4 bytes, the file gives 8"),
    "offsets backwards": (raw({"a": tensor(offsets=(8, 0))}, EIGHT), "outside the file"),
    "offsets beyond the file": (raw({"a": tensor(offsets=(0, 16), shape=[4])}, EIGHT), "outside the file"),
    "offsets negative": (raw({"a": tensor(offsets=(-8, 0))}, EIGHT), "byte positions"),
    "three offsets": (raw({"a": tensor(offsets=(0, 4, 8))}, EIGHT), "byte positions"),
    "truncated data": (raw({"a": tensor()}, EIGHT)[:-3], "outside the file"),
    "overlap": (raw({"a": tensor(), "b": tensor(offsets=(4, 12))}, EIGHT + b"\0" * 4), "overlaps"),
    "the same bytes twice": (raw({"a": tensor(), "b": tensor()}, EIGHT), "overlaps"),
    "hole": (raw({"a": tensor(), "b": tensor(offsets=(12, 20))}, b"\0" * 20), "hole"),
    "hole at the start": (raw({"a": tensor(offsets=(4, 12))}, b"\0" * 12), "hole"),
    "tail": (raw({"a": tensor()}, EIGHT + b"payload"), "7 bytes at the end"),
}


@pytest.mark.parametrize("name", LIES)
def test_every_lie_is_named(tmp_path: Path, name: str) -> None:
    content, expected = LIES[name]
    path = tmp_path / "liar.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileFormatError) as caught:
        read_header(path)
    assert expected in str(caught.value)
    assert "liar.safetensors" in str(caught.value) and caught.value.fix


def test_a_torch_zip_is_named_and_never_unpickled(tmp_path: Path) -> None:
    path, proof = tmp_path / "model.safetensors", tmp_path / "executed"

    class Bomb:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(proof),)

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb()))
    with pytest.raises(FileFormatError, match="zip archive"):
        read_header(path)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(FileFormatError):
        read_header(path)
    assert not proof.exists()


def test_a_huge_header_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "huge.safetensors"
    path.write_bytes(raw(b"{" + b" " * 5000 + b"}"))
    monkeypatch.setattr(header_module, "MAX_HEADER_BYTES", 4096)
    with pytest.raises(FileFormatError, match="not believable"):
        read_header(path)


def test_too_many_tensors_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "many.safetensors"
    path.write_bytes(raw({f"{n}": tensor(shape=[0], offsets=(0, 0)) for n in range(11)}))
    assert len(read_header(path).tensors) == 11
    monkeypatch.setattr(header_module, "MAX_TENSORS", 10)
    with pytest.raises(FileFormatError, match="11 tensors"):
        read_header(path)


def test_a_key_of_a_megabyte_is_not_printed_whole(tmp_path: Path) -> None:
    path = tmp_path / "long.safetensors"
    path.write_bytes(raw({"k" * 1_000_000: tensor("F33")}, EIGHT))
    with pytest.raises(FileFormatError) as caught:
        read_header(path)
    assert len(str(caught.value)) < 1000


def test_a_folder_a_pipe_and_a_missing_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(FileFormatError, match="folder"):
        read_header(tmp_path / "folder.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(FileFormatError, match="pipe"):  # and it does not wait for a writer
        read_header(tmp_path / "pipe.safetensors")
    for name in ("missing.safetensors", "x" * 300 + ".safetensors", "nul\0byte.safetensors"):
        with pytest.raises(FileFormatError, match="cannot be opened"):
            read_header(tmp_path / name)


ODD_NAMES = [b"caf\xe9.safetensors", b"x" * 240 + b".safetensors", "猫 🎨 \n.safetensors".encode()]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_file_names_work_and_can_be_printed(tmp_path: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(tmp_path), name)
    try:
        with open(path, "wb") as file:
            file.write(raw({"a": tensor()}, EIGHT))
    except OSError:
        return  # this file system cannot hold such a name, so nobody here can have one
    found = read_header(os.fsdecode(path))
    assert found.shapes == {"a": (2,)} and torch.equal(read_tensors(found, ["a"])["a"], torch.zeros(2))
    with open(path, "wb") as file:
        file.write(b"<html>" * 10)
    with pytest.raises(FileFormatError) as caught:
        read_header(os.fsdecode(path))
    str(caught.value).encode("utf-8")  # no lone surrogates in the message


def test_a_text_of_many_signs_is_no_sign_of_many_values(tmp_path):
    """Metadata may hold whole tables as text, a million commas long, with quotes and backslashes in it."""
    path, said = tmp_path / "talker.safetensors", '{"a\\\\": [1, 2], ' * 600_000
    path.write_bytes(raw({"__metadata__": {"ss_tag_frequency": said}, "a": tensor()}, EIGHT))
    assert read_header(path).metadata == {"ss_tag_frequency": said}


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.uint8, torch.int16]
DTYPES += [torch.int32, torch.int64, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_reads_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "good.safetensors"
    values = {"b": torch.randn(3, 5) * 3, "a": torch.ones(1), "s": torch.tensor(1)}
    save_file({key: value.to(dtype) for key, value in values.items()}, path)
    found, want = read_header(path), load_file(path)
    got = read_tensors(found, found.tensors)
    assert got.keys() == want.keys()
    for key, value in want.items():
        assert got[key].dtype == value.dtype and got[key].shape == value.shape
        assert torch.equal(got[key].reshape(-1).view(torch.uint8), value.reshape(-1).view(torch.uint8))


def test_empty_tensors_no_tensors_and_metadata_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "good.safetensors"
    save_file({"none": torch.zeros(0, 4), "one": torch.ones(1)}, path, {"ss_output_name": "otter é"})
    found = read_header(path)
    assert found.metadata == {"ss_output_name": "otter é"} and read_tensors(found, ["none"])["none"].shape == (0, 4)
    path.write_bytes(raw({"__metadata__": {}}))
    assert read_header(path).tensors == {}


def test_a_packed_dtype_is_accepted_but_its_values_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "f4.safetensors"
    path.write_bytes(raw({"a": tensor("F4", [16])}, EIGHT))
    with pytest.raises(FileFormatError, match="F4"):
        read_tensors(read_header(path), ["a"])


@pytest.mark.parametrize("change", [lambda b: b + b"x", lambda b: b[:-4]], ids=["grown", "shrunk"])
def test_a_file_that_changes_between_header_and_values_is_noticed(
    tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "moving.safetensors"
    path.write_bytes(raw({"a": tensor()}, EIGHT))
    found = read_header(path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(FileFormatError, match="changed"):
        read_tensors(found, ["a"])
