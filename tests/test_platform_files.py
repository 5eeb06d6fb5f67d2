"""Proves, on a disk that refuses as Windows does, that nothing of ours holds a file that we replace later, and that a
file which somebody else holds is waited for, then named."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import emoji_factors, write_lora
from reference_fusion import random_vectors
from retrieve_worlds import TopicTower
from safetensors.torch import load_file, save_file
from test_train_own import Options, small_network, train, world
from windows_disk import is_held, make_windows_disk

from autolora_core import portable
from autolora_core.encode.towers import LexicalTower
from autolora_core.errors import AutoLoRAError, FileInUseError, NotWrittenError
from autolora_core.fusion.files import read_gate, replace_file, write_gate
from autolora_core.fusion.methods import router_store
from autolora_core.fusion.training.parameters import GateParameters
from autolora_core.fusion.training.trainer import Training
from autolora_core.library.index import Library
from autolora_core.lora.file import LoraFile
from autolora_core.train.trainer import Trainer


@pytest.fixture
def refused(monkeypatch) -> list[str]:
    monkeypatch.setattr(portable, "WINDOWS", True)
    monkeypatch.setattr(portable, "WAITS", (0.01, 0.05, 0.1))
    return make_windows_disk(monkeypatch)


def test_the_disk_refuses_what_windows_refuses(refused, tmp_path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(4096)}, path)
    mapped = load_file(path)
    assert is_held(path)
    with pytest.raises(PermissionError):
        path.unlink()
    del mapped
    (tmp_path / "b").write_bytes(b"")
    os.replace(tmp_path / "b", path)
    with path.open("rb"), pytest.raises(PermissionError):
        os.replace(path, tmp_path / "c")
    assert refused == ["unlink a.safetensors", "replace a.safetensors"]


def test_a_file_held_for_a_moment_is_waited_for(refused, tmp_path) -> None:
    path = tmp_path / "library.json"
    path.write_bytes(b"old")
    scanner = path.open("rb")
    threading.Timer(0.04, scanner.close).start()
    portable.write_bytes(path, b"new")
    assert path.read_bytes() == b"new" and refused and not list(tmp_path.glob(".*"))


def test_a_file_that_stays_open_is_named_and_nothing_is_left_behind(refused, tmp_path) -> None:
    path = tmp_path / "library.json"
    path.write_bytes(b"old")
    said = r"library\.json.*What to do: close what uses it"
    with path.open("rb"), pytest.raises(FileInUseError, match=said) as caught:
        portable.write_bytes(path, b"new")
    assert isinstance(caught.value, PermissionError) and isinstance(caught.value, AutoLoRAError)
    assert path.read_bytes() == b"old" and [entry.name for entry in tmp_path.iterdir()] == ["library.json"]
    with path.open("rb"):
        assert portable.remove(path) is False
    assert portable.remove(path) is True and portable.remove(path) is True


def test_elsewhere_a_refusal_is_not_waited_for(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(portable, "WINDOWS", False)
    make_windows_disk(monkeypatch)
    path = tmp_path / "a"
    path.write_bytes(b"old")
    started = time.monotonic()
    with path.open("rb"), pytest.raises(NotWrittenError, match="make its folder writable") as caught:
        portable.write_bytes(path, b"new")
    assert not isinstance(caught.value, FileInUseError) and caught.value.errno == 13 and time.monotonic() - started < 1


def test_a_library_is_encoded_again_while_everything_of_it_is_in_use(refused, tmp_path) -> None:
    for seed, word in enumerate(("otter", "fox", "ink", "neon", "castle", "rocket")):
        write_lora(tmp_path / "loras" / f"{word}.safetensors", emoji_factors(seed, blocks=1))
    tower = LexicalTower()
    with Library.open(tmp_path / "library") as library, Library.open(tmp_path / "library") as reader:
        held = []
        for new in ("guitar", "cactus"):
            library.scan([tmp_path / "loras"])
            [report] = library.fit(tower).families
            for opened in (library, reader):
                held += [opened.encoder("emoji", tower.id), opened.vectors("emoji", report.encoder_id)]
                held += [opened.grid("emoji"), opened.compare_duplicates("emoji")]
            write_lora(tmp_path / "loras" / f"{new}.safetensors", emoji_factors(len(new) + 50, blocks=1))
        assert all(item is not None for item in held)
        library.scan([tmp_path / "loras"])
        library.fit(tower)
    assert refused == []


def test_a_lora_that_was_read_can_be_replaced_and_deleted(refused, tmp_path) -> None:
    path = write_lora(tmp_path / "a.safetensors", emoji_factors(1, blocks=1))
    file = LoraFile.open(path)
    file.check_values()
    held = [list(file.updates()), file.comfy_state_dict()]
    write_lora(tmp_path / "b.safetensors", emoji_factors(2, blocks=1))
    os.replace(tmp_path / "b.safetensors", path)
    path.unlink()
    assert refused == [] and held


def test_a_gate_is_saved_over_the_one_in_use(refused, tmp_path) -> None:
    path = tmp_path / "gate.safetensors"
    modules = {"joint_blocks.0.x_block.mlp.fc1": random_vectors(512, 0)}
    write_gate(path, modules, family="emoji")
    used = read_gate(path)
    write_gate(path, modules, family="emoji", recipe="second")
    assert read_gate(path).metadata["recipe"] == "second" and used.modules and refused == []


def test_routers_in_use_are_written_again(refused, tmp_path) -> None:
    key = "0" * 32
    router_store.write(tmp_path, key, {"a": torch.eye(64)})
    used = router_store.read(tmp_path, key)
    router_store.write(tmp_path, key, {"a": 2 * torch.eye(64)})
    assert router_store.read(tmp_path, key)["a"][0, 0] == 2 and used["a"][0, 0] == 1 and refused == []


def test_a_training_of_a_gate_goes_on_and_saves_again(refused, tmp_path) -> None:
    def training() -> Training:
        return Training(GateParameters({"fc1": 512}), [], 2, 2, tmp_path)

    first = training()
    for parameter in first.gate.parameters():
        parameter.grad = torch.ones_like(parameter)
    first.optimiser.step()
    first.save()
    second = training()
    assert second.resume()
    second.save()
    assert refused == []


def test_an_encoder_is_trained_anew_while_the_old_one_is_in_use(refused, tmp_path) -> None:
    files = world(tmp_path / "world")
    with Library.open(tmp_path / "mine") as library:
        library.scan({"loras": files})
        library.fit(TopicTower())
        used = []
        for epochs in (0, 2):
            [found], _ = train(library, tmp_path / "models", Options(epochs=epochs))
            assert found.path and Path(found.path).is_file()
            library.fit(TopicTower(), shipped={"emoji": _encoder(found.path)})
            used += [_encoder(found.path), library.encoder("emoji", TopicTower().id)]
    assert refused == [] and all(used)


def test_a_training_of_an_encoder_goes_on_and_saves_again(refused, tmp_path, monkeypatch) -> None:
    """Its best epoch and temperature come from the checkpoint, which the next epoch replaces."""
    small_network(monkeypatch)
    monkeypatch.setattr("autolora_core.train.contest.beats", lambda *_: True)
    keep, kept = Trainer._keep, []

    def interrupted(trainer: Trainer, checkpoint: Path, number: int) -> None:
        keep(trainer, checkpoint, number)
        kept.append(number)
        if len(kept) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_keep", interrupted)
    with Library.open(tmp_path / "mine") as library:
        library.scan({"loras": world(tmp_path / "world")})
        with pytest.raises(KeyboardInterrupt):
            train(library, tmp_path / "models", Options(epochs=4))
        train(library, tmp_path / "models", Options(epochs=4))
    assert kept[0] < kept[1] and refused == []  # it went on, and kept the next epoch in the same file


def _encoder(path: str):
    from autolora_core.encode.encoder_files import load_encoder_file

    return load_encoder_file(path)


def test_replacing_keeps_the_rights_of_a_file_others_may_read(tmp_path) -> None:
    replace_file(tmp_path / "a.safetensors", {"x": torch.zeros(2)}, {})
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o644
