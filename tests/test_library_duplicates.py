"""Proves that one LoRA saved in many ways is seen to be one, and others are not, against dense float64 products."""

from __future__ import annotations

import shutil

import pytest
import torch
from conftest import emoji_factors, emoji_shapes, write_lora

from autolora_core.encode.features import size_for
from autolora_core.library.duplicates import compare, describe, is_near, pieces
from autolora_core.library.index import Library
from autolora_core.lora.adapters import Update
from autolora_core.lora.file import LoraFile


def dense(updates: list[Update]) -> dict[str, torch.Tensor]:
    """Base module → ΔW (out, in·k), float64, slices put where they belong. Naive on purpose."""
    out: dict[str, torch.Tensor] = {}
    for update in updates:
        delta = update.delta().flatten(1)
        start, stop = update.rows or (0, delta.shape[0])
        whole = out.setdefault(update.base_module, torch.zeros(0, delta.shape[1], dtype=torch.float64))
        if whole.shape[0] < stop:
            whole = torch.cat([whole, torch.zeros(stop - whole.shape[0], delta.shape[1], dtype=torch.float64)])
        whole[start:stop] += delta
        out[update.base_module] = whole
    return out


def reference(a: list[Update], b: list[Update]) -> tuple[float, float]:
    left, right = dense(a), dense(b)
    common = sorted(left.keys() & right.keys())
    x = torch.cat([left[name].flatten() for name in common])
    y = torch.cat([right[name].flatten() for name in common])
    return float(x @ y / (x.norm() * y.norm())), float(x @ y / (y @ y))


def lowrank(module: str, out: int, n_in: int, rank: int, seed: int, kernel: tuple[int, ...] = ()) -> Update:
    g = torch.Generator().manual_seed(seed)
    down, up = torch.randn(rank, n_in, *kernel, generator=g), torch.randn(out, rank, generator=g)
    return Update(module, "lowrank", down=down, up=up)


def test_products_equal_dense_ones_for_every_mixture():
    g = torch.Generator().manual_seed(0)
    tucker = Update(
        "conv2", "lowrank", down=torch.randn(2, 4, 1, 1, generator=g), up=torch.randn(8, 3, generator=g),
        mid=torch.randn(3, 2, 3, 3, generator=g),
    )  # fmt: skip
    a = [
        lowrank("fused", 12, 5, 3, 1), lowrank("conv", 6, 4, 2, 2, (3, 3)), tucker, lowrank("only_a", 3, 3, 1, 9),
        Update("dense", "dense", dense=torch.randn(6, 5, generator=g)),
        Update("both_dense", "dense", dense=torch.randn(4, 3, generator=g)),
    ]  # fmt: skip
    b = [
        lowrank("fused[0:4]", 4, 5, 2, 3), lowrank("fused[8:12]", 4, 5, 1, 4), lowrank("conv", 6, 4, 3, 5, (3, 3)),
        lowrank("conv2", 8, 4, 1, 6, (3, 3)), lowrank("dense", 6, 5, 2, 7), lowrank("only_b", 3, 3, 1, 9),
        Update("both_dense", "dense", dense=torch.randn(4, 3, generator=g)),
    ]  # fmt: skip
    pair = compare("a", pieces(a), "b", pieces(b))
    cosine, ratio = reference(a, b)
    assert pair.cosine == pytest.approx(cosine, abs=1e-12) and pair.ratio == pytest.approx(ratio, abs=1e-12)
    assert (pair.common, pair.only_a, pair.only_b) == (5, 1, 1)


def test_nothing_in_common():
    pair = compare("a", pieces([lowrank("x", 3, 3, 1, 0)]), "b", pieces([lowrank("y", 3, 3, 1, 0)]))
    assert (pair.cosine, pair.ratio, pair.common) == (0.0, 0.0, 0) and not is_near(pair)


def mixed(factors: dict) -> dict:
    """The same updates from other factors: A → RA, B → BR⁻¹."""
    out = {}
    for name, (down, up) in factors.items():
        mix = torch.randn(len(down), len(down)) + 2 * torch.eye(len(down))
        out[name] = (mix @ down, up @ torch.linalg.inv(mix))
    return out


@pytest.fixture(scope="module")
def scanned(tmp_path_factory):
    """A folder with one LoRA saved in many ways and four others, and a library that has read them."""
    folder = tmp_path_factory.mktemp("duplicates")
    torch.manual_seed(0)
    base = emoji_factors(1)

    def write(name: str, factors: dict, dtype: torch.dtype = torch.float32) -> None:
        write_lora(folder / "loras" / f"{name}.safetensors", factors, dtype=dtype)

    write("original", base)
    write("resaved", base, torch.float16)
    write("mixed", mixed(base))
    write("louder", {name: (down, 2 * up) for name, (down, up) in base.items()})
    write("later", {name: (down, up + 0.002 * torch.randn_like(up)) for name, (down, up) in base.items()})
    write("partial", {name: value for name, value in base.items() if "joint_blocks.0" not in name})
    write("quarter", dict(list(base.items())[: len(base) // 4]))
    for seed in range(2, 6):
        write(f"other{seed}", emoji_factors(seed))
    with Library.open(folder / "library") as opened:
        opened.scan([folder / "loras"])
    return folder / "library"


@pytest.fixture
def library(scanned, tmp_path):
    with Library.open(shutil.copytree(scanned, tmp_path / "library")) as opened:
        yield opened


def test_one_lora_saved_in_many_ways(library):
    assert library.near_duplicates("emoji") == []  # nothing compared yet
    pairs = library.compare_duplicates("emoji")
    names = {entry.hash: entry.name.split(".")[0] for entry in library.entries()}
    found = {frozenset((names[pair.hash_a], names[pair.hash_b])) for pair in pairs}
    family = ("original", "resaved", "mixed", "louder", "later", "partial")
    assert found == {frozenset((a, b)) for a in family for b in family if a < b}
    by_names = {(names[p.hash_a], names[p.hash_b]): p for p in pairs}
    by_names |= {(b, a): p for (a, b), p in by_names.items()}
    assert by_names["original", "mixed"].cosine > 0.9999999
    pair = by_names["original", "louder"]
    expected = 0.5 if names[pair.hash_a] == "original" else 2
    assert pair.cosine > 0.99999 and pair.ratio == pytest.approx(expected, rel=1e-3)
    assert "times as strong" in describe(pair) and "same weights" in describe(pair)
    assert by_names["original", "partial"].only_a + by_names["original", "partial"].only_b == 8
    assert 0.98 < by_names["original", "later"].cosine < 0.9999


def test_pairs_match_dense_reference(library):
    entries = {entry.hash: entry for entry in library.entries()}
    for pair in library.compare_duplicates("emoji")[::5]:
        a, b = (list(LoraFile.open(entries[h].path).updates()) for h in (pair.hash_a, pair.hash_b))
        cosine, ratio = reference(a, b)
        assert pair.cosine == pytest.approx(cosine, abs=1e-9) and pair.ratio == pytest.approx(ratio, rel=1e-9)


def test_pairs_are_compared_once_and_remembered(library, monkeypatch):
    first = library.compare_duplicates("emoji")
    generation = library.generation
    monkeypatch.setattr(LoraFile, "open", None)  # opening any file would fail
    assert library.compare_duplicates("emoji") == first and library.generation == generation
    assert sorted(library.near_duplicates("emoji")) == sorted((p.hash_a, p.hash_b) for p in first)
    assert library.near_duplicates("sdxl") == []


def test_interrupt_keeps_what_was_compared(library):
    def interrupt(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        library.compare_duplicates("emoji", interrupt)
    assert len(library.near_duplicates("emoji")) == 4
    assert len(library.compare_duplicates("emoji")) == 15


def test_shapes_of_the_demo_base_are_what_the_family_expects():
    assert len(emoji_shapes()) == 29 and size_for("emoji").product == 16
