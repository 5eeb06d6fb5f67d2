"""Proves that a library finds what is like a LoRA: estimates near exact products, every planted copy and merge found
from either side, unread files named, and nothing opened twice."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import emoji_factors, write_lora
from similar_files import averaged, cut_to, drifted, mixed, scaled, summed

from autolora_core.errors import AutoLoRAError, FileFormatError, LibraryError, NoUpdatesError
from autolora_core.library import shelf, similar, versions
from autolora_core.library.grid import WIDTH, open_grid
from autolora_core.library.index import Library
from autolora_core.library.shelf import Shelf
from autolora_core.library.similar import find_like
from autolora_core.library.similar_words import found_report, versions_report
from autolora_core.library.versions import list_versions, near_pairs
from autolora_core.lora.file import LoraFile

RANK = 3


def factors(seed: int, rank: int = RANK):
    """Random factors with falling singular values, on the first block."""
    return {name: (down * 0.6 ** torch.arange(rank)[:, None], up)
            for name, (down, up) in emoji_factors(seed, rank, blocks=1).items()}  # fmt: skip


@pytest.fixture(scope="module")
def scanned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("similar")
    a, b, c = factors(1), factors(2), factors(3)

    def write(name: str, values, dtype=torch.float16) -> None:
        write_lora(folder / "loras" / f"{name}.safetensors", values, dtype=dtype)

    write("a", a)
    write("b", b)
    write("c", c)
    write("a resaved", a, torch.bfloat16)
    write("a louder", scaled(a, 2))
    write("a mixed", mixed(a))
    write("a small", cut_to(a, 2))
    write("a part", dict(list(a.items())[:5]))
    write("c later", drifted(c, 0.3))
    write("b and c", summed(b, 0.7, c, 0.3))
    write("b with c", averaged(b, 0.5, c, 0.5))
    for seed in range(10, 18):
        write(f"other {seed}", factors(seed))
    shutil.copy(folder / "loras" / "a.safetensors", folder / "loras" / "copy of a.safetensors")
    with Library.open(folder / "library") as opened:
        opened.scan([folder / "loras"])
    return folder


@pytest.fixture
def library(scanned, tmp_path):
    with Library.open(shutil.copytree(scanned / "library", tmp_path / "library")) as opened:
        yield opened


def like(library, scanned, name: str, **how) -> tuple[dict[str, str], object]:
    found = find_like(library, scanned / "loras" / f"{name}.safetensors", **how)
    return {hit.entry.name.split(".")[0]: hit.relation.kind for hit in found.hits}, found


@pytest.fixture(scope="module")
def exact(scanned):
    with Library.open(scanned / "library") as opened:
        return dense_cosines(opened)


def dense_cosines(library) -> tuple[list[str], np.ndarray]:
    """Hashes and their exact cosines, from dense float64 matrices."""
    entries = {entry.hash: entry for entry in library.entries()}
    rows = []
    for digest in sorted(entries):
        deltas = {u.base_module: u.delta().flatten() for u in LoraFile.open(entries[digest].path).updates()}
        rows.append(torch.cat([deltas.get(name, torch.zeros(n_out * n_in, dtype=torch.float64))
                               for name, (n_in, n_out) in _sizes().items()]))  # fmt: skip
    stacked = torch.stack(rows)
    stacked /= stacked.norm(dim=1, keepdim=True)
    return sorted(entries), (stacked @ stacked.T).numpy()


def _sizes() -> dict[str, tuple[int, int]]:
    return {name: (down.shape[1], up.shape[0]) for name, (down, up) in factors(0).items()}


def test_estimates_are_near_exact_products(library, exact):
    hashes, exact = exact
    grid = open_grid(library, "emoji")
    assert list(grid.hashes) == hashes and grid.rows.shape == (len(hashes), WIDTH)
    estimate = np.stack([grid.cosines(row) for row in grid.rows])
    assert np.abs(estimate - exact).max() < 0.25 and np.std(estimate - exact) < 0.06
    square = {digest: float(np.exp(2 * found.log_norms.astype(np.float64)).sum())
              for digest, found in library.module_features("emoji").items()}  # fmt: skip
    norms = np.linalg.norm(grid.rows, axis=1) / np.sqrt([square[digest] for digest in hashes])
    assert np.abs(norms - 1).max() < 0.3


def test_rows_are_computed_once_and_a_damaged_cache_is_made_again(library, monkeypatch):
    grid = open_grid(library, "emoji")
    monkeypatch.setattr("autolora_core.library.grid._signs", None)  # any new row would fail
    assert np.array_equal(open_grid(library, "emoji").rows, grid.rows)
    monkeypatch.undo()
    (path,) = library.folder.glob("grid-*.safetensors")
    whole = path.read_bytes()
    for broken in (b"", b"\0" * 100, whole[:-7] + b"\1" * 7):
        path.write_bytes(broken)
        assert np.array_equal(open_grid(library, "emoji").rows, grid.rows) and len(path.read_bytes()) == len(whole)


def test_every_copy_of_a_lora(library, scanned):
    kinds, found = like(library, scanned, "a", top_k=2)
    versions_of_a = {name: kind for name, kind in kinds.items() if kind not in ("alike", "unlike")}
    assert versions_of_a == {
        "a": "same_file", "a resaved": "resaved", "a louder": "rescaled", "a mixed": "refactorised",
        "a small": "truncated", "a part": "part",
    }  # fmt: skip
    assert len(kinds) == len(versions_of_a) + 2 and not found.merges
    assert found.hits[0].names == ("a.safetensors", "copy of a.safetensors")
    report = found_report(found)
    assert "a.safetensors = copy of a.safetensors: the same file, byte for byte" in report
    assert "a louder.safetensors: the same LoRA re-scaled: at strength 0.5 it is this one" in report
    assert "a small.safetensors: this one cut to a lower rank" in report


def test_cosines_equal_dense_ones(library, scanned, exact):
    hashes, exact = exact
    _, found = like(library, scanned, "b", top_k=30)
    row = exact[hashes.index(found.hash)]
    assert len(found.hits) == len(hashes) - 1
    for hit in found.hits:
        assert hit.cosine == pytest.approx(row[hashes.index(hit.entry.hash)], abs=1e-9)


def test_merges_from_either_side(library, scanned):
    for name in ("b and c", "b", "c"):
        _, found = like(library, scanned, name)
        sums = [one for one in found.merges if found.names[one.whole] == "b and c.safetensors"]
        assert len(sums) == 1 and sums[0].merge.how == "sum"
        by_name = dict(
            zip((found.names[sums[0].first], found.names[sums[0].second]), sums[0].merge.weights, strict=True)
        )
        assert by_name == {"b.safetensors": pytest.approx(0.7, rel=0.01), "c.safetensors": pytest.approx(0.3, rel=0.01)}
        assert "0.7 × b.safetensors" in found_report(found)
    kinds, found = like(library, scanned, "b with c")
    assert [one.merge.how for one in found.merges] == ["matrices"]
    assert kinds["b"] == kinds["c"] == "merged"


def test_a_file_outside_the_library(library, tmp_path):
    path = write_lora(tmp_path / "new.safetensors", scaled(factors(1), 0.5))
    found = find_like(library, path, top_k=1)
    assert found.name == "new.safetensors" and len(found.hits) == 7
    assert {hit.relation.kind for hit in found.hits} >= {"rescaled", "truncated", "part"}


def test_files_that_cannot_be_compared_are_named(library, scanned, tmp_path, tiny_lora):
    page = tmp_path / "page.safetensors"
    page.write_text("<!DOCTYPE html>")
    with pytest.raises(FileFormatError, match="page.safetensors"):
        find_like(library, page)
    empty = write_lora(tmp_path / "zero.safetensors", scaled(factors(1), 0))
    with pytest.raises(NoUpdatesError, match="zero.safetensors"):
        find_like(library, empty)
    sdxl = {"input_blocks.4.1.transformer_blocks.0.attn2.to_k": (torch.randn(2, 2048), torch.randn(640, 2))}
    with pytest.raises(LibraryError, match="no LoRA for sdxl"):
        find_like(library, write_lora(tmp_path / "sdxl.safetensors", sdxl))


def test_a_file_that_vanished_is_a_note(library, scanned, monkeypatch):
    real = LoraFile.open

    def gone(path, *rest):
        if str(path).endswith("a mixed.safetensors"):
            raise AutoLoRAError("gone", path=path)
        return real(path, *rest)

    monkeypatch.setattr(LoraFile, "open", gone)
    kinds, found = like(library, scanned, "a")
    assert "a mixed" not in kinds and found.notes == ("a mixed.safetensors could not be read: gone",)
    assert "could not be read" in found_report(found)


def test_only_near_files_are_opened(library, scanned, monkeypatch):
    monkeypatch.setattr(similar, "MAX_OPENED", 3)
    _, found = like(library, scanned, "a", top_k=2)
    assert found.searched == 18 and found.opened == 8  # itself, five versions and two others


def test_interrupt(library, scanned):
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        like(library, scanned, "a", tick=stop)


def test_versions_of_the_whole_library(library, monkeypatch):
    found = list_versions(library, "emoji")
    name = {digest: shown.split(".")[0] for digest, shown in found.names.items()}
    by_pair = {frozenset((name[p.a], name[p.b])): p.relation.kind for p in found.pairs}
    assert by_pair[frozenset(("a", "a louder"))] == "rescaled" and by_pair[frozenset(("c", "c later"))] == "epoch"
    family = {"a", "a resaved", "a louder", "a mixed", "a small", "a part"}
    assert [{name[digest] for digest in group} for group in found.groups] == [family, {"c", "c later"}]
    assert {name[one.whole] for one in found.merges} == {"b and c", "b with c"}
    assert found.copies == (("a.safetensors", "copy of a.safetensors"),)
    report = versions_report(found)
    assert "identical files" in report and "Merges (2)" in report and "other 1" not in report
    # A second look opens no file, and a damaged cache only costs time.
    monkeypatch.setattr(LoraFile, "open", None)
    assert list_versions(library, "emoji") == found
    monkeypatch.undo()
    (path,) = library.folder.glob("versions-*.json")
    for broken in ("{", "[]", json.dumps({"rules": "0"})):
        path.write_text(broken)
        assert list_versions(library, "emoji") == found


def test_pairs_come_once_whatever_the_block(library):
    grid = open_grid(library, "emoji")
    pairs = list(near_pairs(grid, 0.4))
    exact = np.stack([grid.cosines(row) for row in grid.rows])
    assert {(a, b) for a, b, _ in pairs} == {
        (grid.hashes[i], grid.hashes[j]) for i in range(len(exact)) for j in range(i + 1, len(exact))
        if abs(exact[i, j]) >= 0.4
    }  # fmt: skip


def test_an_empty_library_has_no_versions(tmp_path):
    with Library.open(tmp_path / "none") as library:
        assert "No duplicate" in versions_report(list_versions(library, "emoji"))


def test_shelf_keeps_few_files_in_memory(library, monkeypatch):
    monkeypatch.setattr(shelf, "HELD", 2)
    made = Shelf(library, "emoji")
    for digest in made.grid.hashes[:5]:
        made.weights(digest)
    assert len(made._held) == 2 and made.opened == 5
    assert versions.FIRSTS >= 1
