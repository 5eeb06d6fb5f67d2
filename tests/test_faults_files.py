"""Proves that a file of ours is flushed before it gets its name, that a disk which is full or read-only is told in
words that help, that nothing is written over by chance, and that no file of ours is read through a map."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
import torch
from reference_fusion import random_vectors
from safetensors import SafetensorError
from safetensors.torch import save_file

from autolora_core import portable
from autolora_core.errors import AutoLoRAError, LoraError, NotWrittenError
from autolora_core.fusion.files import read_gate, replace_file, write_gate
from autolora_core.fusion.merged.writing import write_merged


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="what is flushed is asked of Linux")
def test_the_data_is_on_the_disk_before_the_name_is_and_the_name_before_it_returns(tmp_path, monkeypatch):
    """The order that a loss of power can see: data flushed, renamed, folder flushed."""
    path, did = tmp_path / "file", []
    real_sync, real_replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        at = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        did.append(("flushed", "folder" if at == tmp_path else at.read_bytes()))
        real_sync(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", lambda a, b: did.append(("named", Path(b).name)) or real_replace(a, b))
    portable.write_bytes(path, b"new")
    assert did == [("flushed", b"new"), ("named", "file"), ("flushed", "folder")]
    did.clear()
    portable.write_whole(tmp_path / "fresh", lambda name: Path(name).write_bytes(b"x") and None, fresh=True)
    assert did == [("flushed", b"x"), ("flushed", "folder")]


@pytest.mark.parametrize("error", [
    OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EFBIG, "File too large"),
    SafetensorError('Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "No space" })'),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
])  # fmt: skip
def test_a_full_disk_is_told_with_the_file_and_what_to_do(tmp_path, error):
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(b"old")

    def fail(temporary: str) -> None:
        Path(temporary).write_bytes(b"half of")
        raise error

    with pytest.raises(NotWrittenError, match=r"MB are free.*encoder\.safetensors.*make room on this drive") as caught:
        portable.write_whole(path, fail)
    assert isinstance(caught.value, OSError) and isinstance(caught.value, AutoLoRAError)
    assert caught.value.errno in portable.FULL and [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"old"


def test_a_folder_that_cannot_be_written_is_told_with_the_file(tmp_path, monkeypatch):
    def refuse(**_: object):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "/somewhere/.autolora-x.tmp")

    monkeypatch.setattr(portable.tempfile, "mkstemp", refuse)
    with pytest.raises(NotWrittenError, match=r"Read-only file system.*gate\.safetensors.*make its folder writable"):
        write_gate(tmp_path / "gate.safetensors", {"a": random_vectors(4, 0)}, family="emoji")


def test_two_that_save_under_one_name_both_have_a_file(tmp_path, monkeypatch):
    """The other one comes between the look for a free name and the writing."""
    path = tmp_path / "mix.safetensors"

    def metadata(taken: Path) -> dict[str, str]:
        if not path.exists():
            save_file({"x": torch.ones(2)}, path)  # the other one
        return {"title": taken.name}

    for links in (True, False):
        path.unlink(missing_ok=True)
        if not links:  # FAT: no hard links
            monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
        found = write_merged(path, {"x": torch.zeros(2)}, metadata, overwrite=False)
        assert found.name != path.name and portable.load_whole(path)[0]["x"].tolist() == [1, 1]
        assert portable.load_whole(found)[1] == {"title": found.name}
    assert write_merged(path, {"x": torch.zeros(2)}, metadata, overwrite=True) == path
    assert portable.load_whole(path)[0]["x"].tolist() == [0, 0]
    assert not list(tmp_path.glob("*.tmp"))
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(LoraError, match="was not saved"):
        write_merged(tmp_path / "folder.safetensors", {"x": torch.zeros(2)}, metadata, overwrite=True)


def test_what_a_killed_process_left_is_cleared_away_later(tmp_path):
    left, young, foreign = (tmp_path / name for name in (".autolora-a.tmp", ".autolora-b.tmp", ".other.tmp"))
    folder = tmp_path / ".autolora-c.tmp"
    folder.mkdir()
    for path in (left, young, foreign, folder / ".tmpAbC123"):
        path.write_bytes(b"half")
    for path in (left, foreign, folder):
        os.utime(path, (time.time() - 2 * portable.STALE,) * 2)
    replace_file(tmp_path / "a.safetensors", {"x": torch.zeros(1)}, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == [".autolora-b.tmp", ".other.tmp", "a.safetensors"]


def test_no_file_of_ours_is_mapped_while_it_is_read(tmp_path, monkeypatch):
    """A mapped file that somebody cuts off ends the whole program."""
    path = tmp_path / "gate.safetensors"
    write_gate(path, {"joint_blocks.0.x_block.mlp.fc1": random_vectors(512, 0)}, family="emoji", recipe="first")
    for name in ("safetensors.safe_open", "safetensors.torch.load_file", "safetensors.torch.safe_open"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("mapped"))
    assert read_gate(path).metadata["recipe"] == "first"
    assert portable.load_whole(path)[1]["family"] == "emoji"
    os.truncate(path, 300)
    with pytest.raises(AutoLoRAError, match="cannot be read"):
        read_gate(path)
