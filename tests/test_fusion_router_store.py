"""Proves that routers kept on disk never cost more than the next calibration, and nobody else's files."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors import SafetensorError

from autolora_core.errors import LibraryError
from autolora_core.fusion.methods import router_store
from autolora_core.library.folders import library_folder

ONE, TWO, THREE = ("1" * 32, "2" * 32, "3" * 32)


def routers(size: int = 6) -> dict[str, torch.Tensor]:
    return {"m": torch.eye(size) * 2}


def test_routers_come_back(tmp_path):
    router_store.write(tmp_path, ONE, routers())
    assert router_store.read(tmp_path, ONE)["m"].equal(routers()["m"]) and router_store.read(tmp_path, TWO) is None


def test_no_library_can_have_the_routers_folder(tmp_path):
    with pytest.raises(LibraryError):
        library_folder(".routers", tmp_path)


def test_only_routers_make_room(tmp_path, monkeypatch):
    """Those used longest ago go; a library's encoder in the same folder, however old, stays."""
    encoder = tmp_path / "encoder-abc.safetensors"
    encoder.write_bytes(b"x" * 4000)
    os.utime(encoder, (1, 1))
    router_store.write(tmp_path, ONE, routers())
    os.utime(tmp_path / f"{ONE}.safetensors", (2, 2))
    size = (tmp_path / f"{ONE}.safetensors").stat().st_size
    monkeypatch.setattr(router_store, "MAX_BYTES", int(2.5 * size))
    router_store.write(tmp_path, TWO, routers())
    os.utime(tmp_path / f"{TWO}.safetensors", (3, 3))
    router_store.write(tmp_path, THREE, routers())
    assert {path.name for path in tmp_path.iterdir()} == {encoder.name, f"{TWO}.safetensors", f"{THREE}.safetensors"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error: os error 28")])
def test_a_full_disk_costs_only_the_next_calibration(tmp_path, monkeypatch, caplog, error):
    """safetensors wraps what the system says in an error of its own."""

    def full(*_):
        raise error

    monkeypatch.setattr(router_store, "replace_file", full)
    router_store.write(tmp_path, ONE, routers())
    assert "not kept" in caplog.text and router_store.read(tmp_path, ONE) is None


def test_a_set_larger_than_the_folder_may_be_is_not_written(tmp_path, monkeypatch):
    """It would push all others out and stay beyond the bound."""
    router_store.write(tmp_path, ONE, routers())
    monkeypatch.setattr(router_store, "MAX_BYTES", 4 * 20 * 20 - 1)
    router_store.write(tmp_path, TWO, routers(20))
    assert [path.name for path in tmp_path.iterdir()] == [f"{ONE}.safetensors"]
