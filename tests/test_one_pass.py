"""Proves that a file read once gives what reading it module by module gives, whatever the order of its tensors, that
every byte is read once, that memory is bounded, and that reading side by side changes nothing in the library."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import emoji_factors, real_loras, write_lora
from library_dump import dump
from safetensors.torch import load_file, save_file

from autolora_core.encode.factor_table import quantised
from autolora_core.encode.features import file_features
from autolora_core.encode.response_factors import response_factors
from autolora_core.encode.signs import all_signs
from autolora_core.encode.whole_file import WholeFile
from autolora_core.library import one_pass, reading
from autolora_core.library.content import describe
from autolora_core.library.index import Library
from autolora_core.library.reading import Read, read_file
from autolora_core.library.walk import walk
from autolora_core.lora.file import LoraFile
from benchmarks.scale.lora_files import tensors

QUIET = {"tick": lambda size: None}


def read(path: Path, **how) -> Read:
    [item] = [item for item in walk(str(path.parent), lambda name: True, print) if item.path == str(path)]
    return read_file(item, **{**QUIET, **how})


def assert_as_module_by_module(path: Path) -> Read:
    """Content, sketches and response factors: equal, the numbers to the rounding they are stored with."""
    found, lora = read(path), LoraFile.open(path)
    lora.check_values()
    assert found.content == describe(lora, found.digest, path.stat().st_size)
    assert found.bytes_read == path.stat().st_size
    if lora.family.name == "unknown":
        assert found.encoded is None
        return found
    wanted = file_features(lora)
    made = found.encoded.features
    assert made.modules == wanted.modules and made.skipped == wanted.skipped
    np.testing.assert_allclose(made.log_norms, wanted.log_norms, atol=1e-5)
    loud = np.abs(wanted.rows).max(axis=1, keepdims=True)
    assert (np.abs(made.rows - wanted.rows) / loud).max() < 2e-5
    stored, other = made.rows.astype("<f2"), wanted.rows.astype("<f2")
    assert (np.abs(stored.astype(float) - other) <= np.spacing(np.abs(other)) + 2e-5 * loud).all()
    responses, made = response_factors(lora.updates(), lora.family.name), found.encoded.response
    assert (made is None) == (responses is None)
    for name, rows in responses.rows.items() if responses else ():
        assert made.rows[name].shape == rows.shape
        stored, other = quantised(made.rows[name])[0].astype(int), quantised(rows)[0].astype(int)
        assert np.abs(stored - other).max() <= 1 and (stored == other).mean() > 0.99
    return found


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("family, layers, rank", [("sdxl", 24, 16), ("flux", 11, 8), ("sdxl", 12, 1)])
def test_as_module_by_module(tmp_path, family, layers, rank, dtype):
    path = tmp_path / "a.safetensors"
    save_file(tensors(family, rank, dtype, 1, layers), path)
    assert_as_module_by_module(path)


def test_a_stack_of_many_layers_is_iterated_as_before(tmp_path):
    """All of SDXL's text layers: more rows than are decomposed exactly."""
    path = tmp_path / "a.safetensors"
    save_file(tensors("sdxl", 16, torch.float16, 3), path)
    kept = {key: value for key, value in load_file(path).items() if "attn2_to_k" in key or "attn2_to_v" in key}
    save_file(kept, path)
    assert len(kept) == 3 * 140
    assert_as_module_by_module(path)


@pytest.mark.parametrize("real", real_loras(), ids=lambda path: path.stem)
def test_real_files(tmp_path, real):
    path = tmp_path / "a.safetensors"
    shutil.copyfile(real, path)
    assert_as_module_by_module(path)


def test_directions_that_are_nearly_one_are_not_blurred(tmp_path):
    """float32 products cannot tell such factors' small singular values; they are taken again in float64."""
    generator, made = torch.Generator().manual_seed(0), tensors("sdxl", 8, torch.float32, 1, 4)
    for key in [key for key in made if key.endswith("up.weight")]:
        one = torch.randn(made[key].shape[0], 1, generator=generator)
        made[key] = one + 1e-4 * torch.randn(made[key].shape, generator=generator)
    path = tmp_path / "a.safetensors"
    save_file(made, path)
    assert_as_module_by_module(path)


def odd_files() -> dict[str, dict]:
    plain = emoji_factors(1, blocks=1)
    broken = {name: (down.clone(), up.clone()) for name, (down, up) in plain.items()}
    next(iter(broken.values()))[1][0, 0] = float("inf")
    mute = {name: (down, up * (number % 2)) for number, (name, (down, up)) in enumerate(plain.items())}
    silent = {name: (down * 0, up) for name, (down, up) in plain.items()}
    return {"plain": plain, "broken": broken, "mute": mute, "silent": silent}


@pytest.mark.parametrize("kind", odd_files())
def test_values_are_judged_as_when_read_one_by_one(tmp_path, kind):
    path = write_lora(tmp_path / "a.safetensors", odd_files()[kind], dtype=torch.float32)
    found, lora = read(path), LoraFile.open(path)
    lora.check_values()
    assert found.content == describe(lora, found.digest, path.stat().st_size)
    if found.encoded is not None:
        wanted = file_features(lora)
        assert found.encoded.features.modules == wanted.modules
        assert found.encoded.features.skipped == wanted.skipped


def test_negative_and_stored_scales(tmp_path):
    made = tensors("flux", 4, torch.float32, 1, 6)
    for number, key in enumerate([key for key in made if key.endswith("alpha")]):
        made[key] = torch.tensor((-1.0, 0.25, 64.0)[number % 3])
    path = tmp_path / "a.safetensors"
    save_file(made, path)
    assert_as_module_by_module(path)


def far_apart(path: Path) -> Path:
    """All of one factor before all of the other: what a writer that sorts by the ends of keys leaves."""
    made = tensors("sdxl", 8, torch.float16, 1, 12)
    order = sorted(made, key=lambda key: (key.rpartition("lora_")[2], key))
    header, data = {}, b""
    for key in order:
        own = made[key].numpy().tobytes()
        offsets = [len(data), len(data) + len(own)]
        header[key] = {"dtype": "F16", "shape": list(made[key].shape), "data_offsets": offsets}
        data += own
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize("held", [1 << 30, 100_000, 0])
def test_what_waits_for_its_partner_is_bounded(tmp_path, monkeypatch, held):
    path = far_apart(tmp_path / "a.safetensors")
    wanted = read(path)
    monkeypatch.setattr(one_pass, "HELD_BYTES", held)
    monkeypatch.setattr(one_pass, "PORTION", 64 << 10)
    most, real = [0], one_pass.Gathering._wait

    def watched(self, *what):
        real(self, *what)
        most[0] = max(most[0], self._bytes)

    monkeypatch.setattr(one_pass.Gathering, "_wait", watched)
    found = assert_as_module_by_module(path)
    assert most[0] <= held
    assert found.digest == wanted.digest and found.encoded.features.modules == wanted.encoded.features.modules
    np.testing.assert_allclose(found.encoded.features.rows, wanted.encoded.features.rows, atol=1e-5)


class Counting:
    """A stream that counts what is read of it."""

    read_bytes = 0

    def __init__(self, stream):
        self._stream = stream

    def read(self, count=-1):
        data = self._stream.read(count)
        Counting.read_bytes += len(data)
        return data

    def readinto(self, buffer):
        count = self._stream.readinto(buffer)
        Counting.read_bytes += count
        return count

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stream.close()


def test_every_byte_is_read_once(tmp_path, monkeypatch):
    for number in range(3):
        save_file(tensors("sdxl", 4, torch.float16, number, 12), tmp_path / f"{number}.safetensors")
    (tmp_path / "page.safetensors").write_bytes(b"<!DOCTYPE html>" * 100)
    size = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    monkeypatch.setattr(one_pass, "open", lambda *what, **how: Counting(open(*what, **how)), raising=False)
    monkeypatch.setattr("autolora_core.lora.header._open_regular", lambda path: pytest.fail(f"{path} is opened again"))
    Counting.read_bytes = 0
    with Library.open(tmp_path / "library") as library:
        report = library.scan([tmp_path])
    assert (report.encoded, report.bytes_read) == (3, size) and Counting.read_bytes == size


def test_nothing_is_held_for_a_next_file_after_the_last(tmp_path):
    write_lora(tmp_path / "loras" / "a.safetensors", emoji_factors(1, blocks=1))
    with Library.open(tmp_path / "library") as library:
        assert library.scan([tmp_path / "loras"]).encoded == 1
    assert not all_signs._kept


def test_side_by_side_is_as_one_after_the_other(tmp_path):
    for number in range(9):
        write_lora(tmp_path / "loras" / f"{number}.safetensors", emoji_factors(number % 7, blocks=1))
    dumps = []
    for workers in (1, 4):
        with Library.open(tmp_path / str(workers)) as library:
            library.scan({"loras": tmp_path / "loras"}, workers=workers)
            ids = library.store.db.execute("SELECT id, name, hash FROM files ORDER BY id").fetchall()
            dumps.append((dump(library), ids))
    assert dumps[0] == dumps[1]


def test_a_moved_file_is_hashed_and_not_read_again(tmp_path, monkeypatch):
    for number in range(2):
        write_lora(tmp_path / "loras" / f"{number}.safetensors", emoji_factors(number, blocks=1))
    with Library.open(tmp_path / "library") as library:
        library.scan({"loras": tmp_path / "loras"})
        os.rename(tmp_path / "loras" / "0.safetensors", tmp_path / "loras" / "moved.safetensors")
        monkeypatch.setattr(one_pass.Pass, "tensors", lambda *_: pytest.fail("its tensors are read again"))
        report = library.scan({"loras": tmp_path / "loras"})
    assert (report.renamed, report.shared, report.encoded) == (1, 1, 0)


def not_sketched(path: Path) -> list[str]:
    """Keys of the up factors of layers that are neither sketched nor read for the response."""
    lora = LoraFile.open(path)
    needed = WholeFile(lora.family.name, reading._widths(lora)).needed
    return [entry.keys["up"] for name, entry in lora.entries.items() if name not in needed]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_broken_values_are_found_in_layers_that_are_not_sketched(tmp_path, dtype, value):
    path = tmp_path / "a.safetensors"
    made = tensors("sdxl", 4, dtype, 1, 60)
    save_file(made, path)
    key = not_sketched(path)[3]
    made[key][-1, -1] = value
    save_file(made, path)
    found = assert_as_module_by_module(path)
    assert any(key in problem for problem in found.content.problems)


def test_a_file_is_zero_only_when_every_layer_is(tmp_path):
    path = tmp_path / "a.safetensors"
    made = tensors("sdxl", 4, torch.float16, 1, 60)
    save_file(made, path)
    last = not_sketched(path)[-1]
    for key in made:
        made[key] = made[key] * 0 if key.endswith("up.weight") and key != last else made[key]
    save_file(made, path)
    found = assert_as_module_by_module(path)
    assert found.content.kind == "lora" and len(found.encoded.features.modules) == 1
    save_file({**made, last: made[last] * 0}, path)
    assert read(path).content.kind == "all_zero"


def test_large_values_that_overflow_a_sum_are_no_fault(tmp_path):
    path = tmp_path / "a.safetensors"
    made = tensors("sdxl", 4, torch.float16, 1, 60)
    save_file(made, path)
    key = not_sketched(path)[0]
    made[key] = torch.full_like(made[key], 60000.0)
    save_file(made, path)
    assert not assert_as_module_by_module(path).content.problems


def test_layers_of_one_input_that_do_not_fit_together_are_no_failure(tmp_path):
    """Of keys and values that read one text, one is of another width: a damaged file; the others are read."""
    path = tmp_path / "a.safetensors"
    made = {key: value for key, value in tensors("sdxl", 4, torch.float16, 1, 24).items() if "attn2_to_" in key}
    odd = next(key for key in made if "attn2_to_v.lora_down" in key)
    made[odd] = made[odd][:, :100].clone()
    save_file(made, path)
    found = assert_as_module_by_module(path)
    assert found.encoded.response_problem is None and found.encoded.response.rows["context"].shape[1] == 2048
