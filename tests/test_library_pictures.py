"""Proves that a picture finds the LoRA whose preview shows the same, that words of the same CLIP count as much, that
previews are read once, and that broken previews and blind CLIPs are named."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import emoji_factors, write_lora
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_clip import tiny_clip

from autolora_core.encode.open_clip_images import OpenClipImageTower
from autolora_core.errors import LibraryError
from autolora_core.library import pictures as pictures_module
from autolora_core.library.index import Library
from autolora_core.library.pictures import find_by_picture, read_picture
from autolora_core.previews.shelf import PreviewShelf, Record

COUNT = 12


def drawing(seed: int, side: int = 48) -> np.ndarray:
    """A picture with a pattern of its own, uint8 (side, side + 16, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side + 16, side), Image.Resampling.BICUBIC))


def tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture.astype(np.float32) / 255)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    tiny_clip(path)
    return path


@pytest.fixture
def world(tmp_path):
    """Twelve LoRAs with previews, the last with words only; an opened library and its folder."""
    loras = tmp_path / "loras"
    for seed in range(COUNT):
        tags = {"ss_tag_frequency": json.dumps({"t": {f"thing number {seed}": 9}})} if seed == COUNT - 1 else None
        write_lora(loras / f"lora_{seed:06d}.safetensors", emoji_factors(seed, 1, blocks=1), tags)
        if seed < COUNT - 1:
            ending = (".preview.png", ".png", ".jpg", ".webp")[seed % 4]
            Image.fromarray(drawing(seed)).save(loras / f"lora_{seed:06d}{ending}", quality=95)
    with Library.open(tmp_path / "library") as library:
        library.scan([loras], encode=False)
        yield library, loras


def test_the_preview_that_shows_the_same_is_first(world, clip):
    library, _ = world
    tower = OpenClipImageTower(clip)
    for seed in range(COUNT - 1):
        found = find_by_picture(library, [tensor(drawing(seed))], tower, top_k=3)
        assert found.hits[0].entry.name == f"lora_{seed:06d}.safetensors" and len(found.hits) == 3
        assert found.hits[0].picture > 0.98 and found.hits[0].score >= found.hits[1].score
    assert (found.searched, found.with_preview, found.with_words, found.notes) == (COUNT, COUNT - 1, 1, ())


def test_rendered_previews_stand_in_where_no_picture_lies_beside_a_file(world, clip):
    """Those beside the files are what their authors chose: they go first."""
    library, _ = world
    entries, tower = library.entries(), OpenClipImageTower(clip)
    record = Record("settings", {"latents": np.ones((1, 4), np.float32)})
    for entry, seed in ((entries[COUNT - 1], 70), (entries[0], 71)):
        PreviewShelf(library.folder).put(entry.hash, record, [Image.fromarray(drawing(seed))])
    found = find_by_picture(library, [tensor(drawing(70))], tower)
    assert found.with_preview == COUNT and found.hits[0].entry.name == entries[COUNT - 1].name
    assert found.hits[0].picture > 0.9
    (own,) = (hit for hit in find_by_picture(library, [tensor(drawing(0))], tower).hits if hit.entry == entries[0])
    assert own.picture > 0.98


def test_cosines_are_those_of_the_two_towers(world, clip):
    library, loras = world
    tower = OpenClipImageTower(clip)
    query = [tensor(drawing(50)), tensor(drawing(51))]
    mean = tower.encode(query).sum(axis=0)
    mean /= np.linalg.norm(mean)
    found = {hit.entry.name: hit for hit in find_by_picture(library, query, tower, top_k=COUNT).hits}
    preview = tower.encode([read_picture(str(loras / "lora_000003.webp"))])[0]
    assert found["lora_000003.safetensors"].picture == pytest.approx(float(preview @ mean), abs=1e-5)
    assert found["lora_000003.safetensors"].words is None
    last = found[f"lora_{COUNT - 1:06d}.safetensors"]
    assert last.caption == f"thing number {COUNT - 1}" and last.picture is None
    assert last.words == pytest.approx(float(tower.text.encode([last.caption])[0] @ mean), abs=1e-5)
    values = np.array([hit.picture for hit in found.values() if hit.picture is not None])
    spread = 1.4826 * np.median(np.abs(values - np.median(values)))
    expected = (found["lora_000003.safetensors"].picture - np.median(values)) / spread
    assert found["lora_000003.safetensors"].score == pytest.approx(float(expected), abs=1e-6)


def test_previews_are_read_once_until_they_change(world, clip, monkeypatch):
    library, loras = world
    tower = OpenClipImageTower(clip)
    query = [tensor(drawing(1))]
    first = find_by_picture(library, query, tower)
    monkeypatch.setattr(pictures_module, "read_picture", None)  # reading any preview would fail
    assert find_by_picture(library, query, tower) == first
    monkeypatch.undo()
    Image.fromarray(drawing(1, side=80)).save(loras / "lora_000004.preview.png")
    assert find_by_picture(library, query, tower) != first


def test_a_clip_without_words_says_so(world, clip, tmp_path):
    library, _ = world
    blind = {k: v for k, v in load_file(clip).items() if not k.startswith("text_")}
    save_file(blind, tmp_path / "vision.safetensors")
    found = find_by_picture(library, [tensor(drawing(2))], OpenClipImageTower(tmp_path / "vision.safetensors"))
    assert found.hits[0].entry.name == "lora_000002.safetensors" and found.with_words == 0
    assert any("no text half" in note for note in found.notes)


def test_broken_previews_are_notes(world, clip):
    library, loras = world
    (loras / "lora_000001.png").write_bytes(b"not a picture")
    whole = (loras / "lora_000005.png").read_bytes()
    (loras / "lora_000005.png").write_bytes(whole[: len(whole) // 2])
    found = find_by_picture(library, [tensor(drawing(2))], OpenClipImageTower(clip))
    assert found.with_preview == COUNT - 3 and len(found.notes) == 2
    assert all("cannot be read" in note and ".png" in note for note in found.notes)


def test_nothing_to_compare_says_what_to_do(tmp_path, clip):
    write_lora(tmp_path / "loras" / "a1b2c3d4.safetensors", emoji_factors(0, 1, blocks=1))
    with Library.open(tmp_path / "library") as library:
        library.scan([tmp_path / "loras"], encode=False)
        with pytest.raises(LibraryError, match="no LoRA here has a picture.*put a preview"):
            find_by_picture(library, [tensor(drawing(0))], OpenClipImageTower(clip))


def test_huge_and_transparent_previews(tmp_path, monkeypatch):
    clear = Image.new("RGBA", (2000, 20), (255, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    read = read_picture(str(tmp_path / "clear.png"))
    assert read.shape == (10, 1024, 3) and bool((read == 1).all())
    monkeypatch.setattr(pictures_module, "MAX_PIXELS", 1000)
    with pytest.raises(ValueError, match="pixels are too many"):
        read_picture(str(tmp_path / "clear.png"))


def test_interrupt(world, clip):
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_by_picture(world[0], [tensor(drawing(0))], OpenClipImageTower(clip), tick=stop)
