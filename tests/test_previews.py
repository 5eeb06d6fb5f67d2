"""Proves that what pictures say of a LoRA is CARLoS's direction, strength and consistency; that previews are kept
whole, are not rendered twice, and that a run that was killed goes on with nothing half done."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autolora_core.errors import AutoLoRAError
from autolora_core.previews.difference import difference, latent_vector
from autolora_core.previews.run import Shot, Wanted, render
from autolora_core.previews.settings import Settings, read_prompts
from autolora_core.previews.sheet import contact_sheet
from autolora_core.previews.shelf import PreviewShelf, Record, preview_vectors, without_key
from autolora_core.previews.words import preview_report

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = Settings(("a picture", "a thing"), 3, 4, 1.0, "euler", "normal", 64, 64, 1.0, "base")
KEYS = [f"{number:064x}" for number in range(1, 5)]
WANTED = [Wanted(key, f"lora {number}", number) for number, key in enumerate(KEYS, 1)]


class Painter:
    """A camera of plain colours; its pictures' vectors are colour and prompt. ``bad`` numbers fail."""

    towers = {"latents": "latents"}

    def __init__(self, bad: tuple[int, ...] = (), stop_at: int | None = None, how=KeyboardInterrupt):
        self.bad, self.stop_at, self.how, self.now, self.taken = bad, stop_at, how, 0, 0

    def put_in(self, request):
        self.now = request or 0
        if self.now in self.bad:
            raise AutoLoRAError(f"number {self.now} is for another base")

    def shoot(self, number: int) -> Shot:
        self.taken += 1
        if self.taken == self.stop_at:
            self.how()
        colour = (40 * self.now, 90, 200 - 60 * number)
        return Shot(Image.new("RGB", (700, 350), colour), {"latents": np.array([self.now, number, 1.0], np.float32)})


def test_a_difference_is_that_of_the_lines():
    changes = np.random.default_rng(0).normal(size=(5, 7)) + 0.5
    found, mean = difference(changes), changes.mean(axis=0)
    unit = mean / np.sqrt((mean**2).sum())
    cosines = [row @ unit / np.sqrt((row**2).sum()) for row in changes]
    assert np.allclose(found.direction, unit) and found.consistency == pytest.approx(np.mean(cosines))
    assert found.strength == pytest.approx(np.mean([np.sqrt((row**2).sum()) for row in changes]))
    same = difference(np.tile([[0.0, 3.0, 4.0]], (3, 1)))
    assert (same.strength, same.consistency) == (pytest.approx(5.0), pytest.approx(1.0))
    nothing = difference(np.zeros((3, 4)))
    assert not nothing.direction.any() and nothing.strength == nothing.consistency == 0


def test_a_latent_of_any_size_and_kind_has_one_vector():
    small, generator = torch.zeros(1, 4, 16, 16), torch.Generator().manual_seed(1)
    small[0, 2, :8, :8] = 1
    wide = torch.nn.functional.interpolate(small, scale_factor=3)
    assert np.allclose(latent_vector(small), latent_vector(wide)) and latent_vector(small).shape == (4 * 64,)
    video = torch.rand(1, 4, 5, 16, 16, generator=generator)
    assert np.allclose(latent_vector(video), latent_vector(video.mean(dim=2)))
    assert not np.allclose(latent_vector(small), latent_vector(small.flip(-1)))


def test_settings_name_everything_a_picture_depends_on():
    for name, value in {
        "prompts": ("a picture",), "seed": 4, "steps": 5, "cfg": 2.0, "sampler": "heun", "scheduler": "simple",
        "width": 72, "height": 72, "base": "other", "tower": "clip-image-1",
    }.items():  # fmt: skip
        other = replace(SETTINGS, **{name: value})
        assert other.id != SETTINGS.id and other.without != SETTINGS.without, name
    stronger = replace(SETTINGS, strength=0.5)
    assert stronger.id != SETTINGS.id and stronger.without == SETTINGS.without
    assert SETTINGS.seed_of(1) == 4 and replace(SETTINGS, seed=2**64 - 1).seed_of(1) == 0


def test_prompts_are_lines():
    assert read_prompts(" a dog\n\n a dog \nan owl\n") == ("a dog", "an owl")
    for text in (" \n", "\n".join(map(str, range(65)))):
        with pytest.raises(AutoLoRAError, match="prompt.*What to do"):
            read_prompts(text)


def test_what_is_rendered_is_kept_and_not_rendered_again(tmp_path):
    shelf, painter = PreviewShelf(tmp_path), Painter()
    found = render(shelf, SETTINGS, WANTED, painter, kept=2)
    assert list(found.rendered) == [lora.name for lora in WANTED] and painter.taken == 2 + 2 * 4
    assert [path.name for path in shelf.pictures(KEYS[0])] == [f"{KEYS[0]}.webp", f"{KEYS[0]}-2.webp"]
    assert len(shelf.pictures(without_key(SETTINGS.without))) == 2 and list(shelf.rendered()) == KEYS
    with Image.open(shelf.picture(KEYS[1])) as picture:
        assert picture.size == (512, 256) and np.abs(np.array(picture.getpixel((9, 9))) - (80, 90, 200)).max() < 12
    assert np.allclose(shelf.record(KEYS[2]).vectors["latents"], [[3, 0, 0]] * 2)
    assert found.rendered["lora 3"].strength == pytest.approx(3) and found.rendered["lora 3"].consistency == 1
    state, again = shelf.state, Painter()
    assert render(shelf, SETTINGS, WANTED, again, kept=2).there == [lora.name for lora in WANTED]
    assert again.taken == 0 and shelf.state == state
    stronger = replace(SETTINGS, strength=2.0)
    assert len(render(shelf, stronger, WANTED[:1], again).rendered) == 1
    assert again.taken == 2 and shelf.state != state, "the pictures without a LoRA are there"
    assert len(shelf.pictures(KEYS[0])) == 1, "pictures of other settings do not stay beside the new one"


def test_a_limit_leaves_the_rest_for_the_next_run(tmp_path):
    shelf = PreviewShelf(tmp_path)
    first = render(shelf, SETTINGS, WANTED, Painter(), limit=3)
    assert (len(first.rendered), first.left) == (3, 1) and "1 LoRA left: queue it again" in preview_report(
        first, SETTINGS, ()
    )
    second = render(shelf, SETTINGS, WANTED, Painter(), limit=3)
    assert (list(second.rendered), second.left, len(second.there)) == (["lora 4"], 0, 3)


def test_those_that_fail_do_not_use_up_the_limit(tmp_path):
    shelf, told = PreviewShelf(tmp_path), []

    def tick(done, total, name):
        told.append((done, total))

    first = render(shelf, SETTINGS, WANTED, Painter(bad=(1, 2)), limit=1, tick=tick)
    assert (list(first.rendered), list(first.failed), first.left) == (["lora 3"], ["lora 1", "lora 2"], 1)
    assert told == [(0, 4), (1, 4), *[(2, 4)] * 3, (3, 4)], "each that fails can be cancelled at; no bar runs back"
    second = render(shelf, SETTINGS, WANTED, Painter(bad=(1, 2)), limit=1)
    assert (list(second.rendered), second.left) == (["lora 4"], 0)


def test_one_that_fails_is_named_and_the_others_go_on(tmp_path):
    found = render(PreviewShelf(tmp_path), SETTINGS, WANTED, Painter(bad=(2,)))
    assert list(found.rendered) == ["lora 1", "lora 3", "lora 4"]
    report = preview_report(found, SETTINGS, ["far.safetensors"])
    assert "- lora 2: number 2 is for another base" in report and "far.safetensors" in report
    assert "3 LoRAs rendered on 2 prompts (64 × 64, 4 steps, seed 3)" in report

    class Blank(Painter):
        def shoot(self, number):
            shot = super().shoot(number)
            return Shot(shot.picture, {"latents": shot.vectors["latents"] * (np.nan if self.now == 1 else 1)})

    found = render(PreviewShelf(tmp_path / "b"), SETTINGS, WANTED[:2], Blank())
    assert list(found.rendered) == ["lora 2"] and "not finite" in found.failed["lora 1"]


def test_an_interrupted_run_goes_on(tmp_path):
    shelf = PreviewShelf(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        render(shelf, SETTINGS, WANTED, Painter(stop_at=6, how=_interrupt))
    assert list(shelf.rendered()) == KEYS[:1]
    rest = Painter()
    assert list(render(shelf, SETTINGS, WANTED, rest).rendered) == ["lora 2", "lora 3", "lora 4"]
    assert rest.taken == 2 * 3
    ticks = []

    def tick(done, total, name):
        ticks.append((done, total, name))

    render(PreviewShelf(tmp_path / "other"), SETTINGS, WANTED[:2], Painter(), tick=tick)
    assert ticks == [(0, 6, "without a LoRA"), (1, 6, "without a LoRA"),
                     *((2 + at, 6, f"lora {1 + at // 2}") for at in range(4))]  # fmt: skip


def _interrupt():
    raise KeyboardInterrupt


KILLED = """
import os, signal, sys
sys.path[:0] = [{root!r}, {tests!r}]
import autolora_core.previews.shelf as shelves
from test_previews import SETTINGS, WANTED, Painter, PreviewShelf, render
writes, plain = [], shelves.write_bytes
def write_bytes(path, data):
    writes.append(path)
    if len(writes) == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    plain(path, data)
shelves.write_bytes = write_bytes
render(PreviewShelf({folder!r}), SETTINGS, WANTED, Painter(), kept=2)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_killed_between_a_picture_and_its_record(tmp_path):
    """The fifth write is the first LoRA's second picture (after two pictures and a record without a LoRA)."""
    script = KILLED.format(root=str(ROOT), tests=str(ROOT / "tests"), folder=str(tmp_path), at=5)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    shelf = PreviewShelf(tmp_path)
    assert shelf.picture(KEYS[0]) is not None and shelf.record(KEYS[0]) is None, "a picture alone is not a preview"
    painter = Painter()
    assert len(render(shelf, SETTINGS, WANTED, painter, kept=2).rendered) == 4 and painter.taken == 8
    assert all(shelf.holds(key, SETTINGS.id, 2) for key in KEYS)


def test_a_damaged_record_is_rendered_again(tmp_path):
    shelf = PreviewShelf(tmp_path)
    render(shelf, SETTINGS, WANTED[:1], Painter())
    path = shelf.folder / f"{KEYS[0]}.safetensors"
    whole = path.read_bytes()
    for data in (b"", whole[:-3], whole.replace(b"autolora-preview/1", b"autolora-preview/9")):
        path.write_bytes(data)
        assert shelf.record(KEYS[0]) is None
    assert list(render(shelf, SETTINGS, WANTED[:1], Painter()).rendered) == ["lora 1"]
    shelf.picture(KEYS[0]).unlink()
    assert list(render(shelf, SETTINGS, WANTED[:1], Painter()).rendered) == ["lora 1"]


def put(shelf: PreviewShelf, key: str, settings: str, rows, tower: str = "latents", space: str = "latents") -> None:
    shelf.put(key, Record(settings, {space: np.array(rows, np.float32)}, {space: tower}), [])


def test_directions_of_one_kind_are_given(tmp_path):
    """Those of other settings cannot be compared; one that changes nothing has none."""
    shelf = PreviewShelf(tmp_path)
    for number, key in enumerate(KEYS[:3]):
        put(shelf, key, "same", [[3.0, number], [5.0, number]])
    put(shelf, KEYS[3], "other", [[1.0, 0.0]])
    found = preview_vectors(shelf)
    assert found.hashes == tuple(KEYS[:3]) and found.tower == "latents"
    assert np.allclose(found.matrix[2], np.array([4, 2]) / np.sqrt(20))
    put(shelf, KEYS[1], "same", [[0.0, 0.0]])
    fewer = preview_vectors(shelf)
    assert fewer.hashes == (KEYS[0], KEYS[2]) and fewer.id != found.id
    put(shelf, KEYS[3], "seen", [[1.0, 0.0, 0.0]], "clip-image-1", "clip")
    assert preview_vectors(shelf, "clip-image-1").hashes == (KEYS[3],)
    assert preview_vectors(shelf, "clip-image-2").hashes == () == preview_vectors(PreviewShelf(tmp_path / "no")).hashes


def test_a_sheet_has_every_strip():
    red, blue = (Image.new("RGB", (40, 30), colour) for colour in ("red", "blue"))
    sheet = contact_sheet([("without a LoRA", [red]), ("b" * 200, [blue])], side=48)
    assert sheet.dtype == np.float32 and sheet.shape[2] == 3 and sheet.shape[1] > 2 * 48
    flat = (sheet * 255).round().reshape(-1, 3)
    assert (flat == (255, 0, 0)).all(axis=1).sum() == (flat == (0, 0, 255)).all(axis=1).sum() >= 40 * 30
    assert contact_sheet([]).ndim == 3
