"""Proves that the embedded world is fixed (splits), deterministic (transforms, captions) and loads in ComfyUI
(autoencoder layout).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from zoo.autoencoder import Autoencoder, decode_latents, encode_pictures
from zoo.cache import read_json, zoo_dir
from zoo.captions import STYLE_NAMES, caption, captions, plain_caption, subject_name, with_article
from zoo.cpu_training import FastConv
from zoo.pictures import STYLES, Pictures
from zoo.splits import BASE_STYLES, PATH, Splits, make_splits, stem
from zoo.transforms import TRANSFORMS


def drawing() -> np.ndarray:
    """A shaded disc and a bar on white, uint8 (128, 128, 3)."""
    r, c = np.mgrid[0:128, 0:128]
    image = np.full((128, 128, 3), 255, np.uint8)
    disc = np.hypot(r - 60, c - 56) < 40
    image[disc] = np.stack([200 - r, 60 + c // 2, 40 + 0 * r], -1)[disc].astype(np.uint8)
    image[90:110, 60:120] = (30, 40, 160)
    return image


# The real pictures where `python -m zoo.pictures` has made them.
THERE = [zoo_dir()] if (zoo_dir() / "pictures.json").exists() else []


def test_splits_regenerate_identically() -> None:
    table = read_json(PATH)
    again = make_splits(table["subjects"], [s for s in table["styles"] if s not in STYLES])
    assert again == table
    assert list(table["subjects"]) == sorted(table["subjects"])
    assert set(table["styles"]) == {*STYLES, *TRANSFORMS}


def test_splits_have_the_promised_sizes_and_keep_variants_together() -> None:
    splits = Splits.load()
    total = len(splits.subjects())
    assert 850 <= len(splits.base_subjects) <= 950
    assert splits.base_subjects | splits.lora_subjects == set(splits.subjects())
    assert splits.base_styles == set(BASE_STYLES)
    for part, share in (("train", 0.7), ("validation", 0.1), ("test", 0.2)):
        assert abs(len(splits.subjects(encoder=part)) / total - share) < 0.04
    by_stem: dict[str, set[tuple[bool, str]]] = {}
    for s in splits.subjects():
        by_stem.setdefault(stem(s), set()).add((s in splits.base_subjects, splits.encoder_part(s)))
    assert all(len(v) == 1 for v in by_stem.values())
    assert stem("woman-artist") == stem("artist") and stem("cat-face") == "cat" and stem("man") == "man"


def test_pair_splits_are_fixed_shares() -> None:
    splits = Splits.load()
    pairs = [(a, b) for a in splits.subjects() for b in STYLES]
    assert abs(np.mean([splits.held_out_pair(*p) for p in pairs]) - 0.15) < 0.01
    assert abs(np.mean([splits.judge_test(*p) for p in pairs]) - 0.10) < 0.01
    assert splits.held_out_pair("otter", "noto") is splits.held_out_pair("otter", "noto")


def test_transforms_are_deterministic_and_differ_from_each_other() -> None:
    image = drawing()
    out = {k: t(image) for k, t in TRANSFORMS.items()}
    assert len(out) >= 24
    for key, result in out.items():
        assert result.shape == image.shape and result.dtype == np.uint8, key
        assert np.array_equal(result, TRANSFORMS[key](image.copy())), key
    small = {k: v.reshape(16, 8, 16, 8, 3).mean((1, 3)) for k, v in out.items()} | {
        "none": image.reshape(16, 8, 16, 8, 3).mean((1, 3))
    }
    fine = {k: v.astype(float) for k, v in out.items()} | {"none": image.astype(float)}
    names = list(small)
    for i, a in enumerate(names):
        for b in names[:i]:
            assert np.abs(small[a] - small[b]).mean() > 2 or np.abs(fine[a] - fine[b]).mean() > 10, (a, b)


def test_transforms_work_at_other_sizes() -> None:
    image = np.ascontiguousarray(drawing()[::2, ::2])
    assert all(t(image).shape == image.shape for t in TRANSFORMS.values())


def test_names_read_well() -> None:
    assert subject_name("hot-air-balloon") == "hot air balloon"
    assert subject_name("womans-hat") == "woman's hat"
    assert with_article("otter") == "an otter" and with_article("unicorn") == "a unicorn"
    assert with_article("grapes") == "grapes" and with_article("cactus") == "a cactus"
    assert with_article("grinning face with smiling eyes") == "a grinning face with smiling eyes"
    assert plain_caption("fox", "twemoji") == "a fox in flat vector style"
    assert len(set(STYLE_NAMES.values())) == len(STYLE_NAMES)


def test_only_the_default_style_goes_unnamed() -> None:
    for style, look in STYLE_NAMES.items():
        texts, weights = zip(*captions("otter", style), strict=True)
        assert abs(sum(weights) - 1) < 1e-9
        assert all("otter" in t for t in texts)
        assert all(look in t for t in texts) == (style != "noto"), style
    drawn = [caption("otter", "noto", np.random.default_rng(i)) for i in range(50)]
    assert {"shaded cartoon" in t for t in drawn} == {True, False}


@pytest.mark.parametrize("folder", THERE, ids=["cache"][: len(THERE)])
def test_pictures_table(folder: Path) -> None:
    pictures = Pictures.load()
    assert pictures.images.shape == (len(pictures.rows), 128, 128, 3) and pictures.images.dtype == np.uint8
    assert len(pictures.subjects) > 1400 and {r["style"] for r in pictures.rows} == set(STYLES)
    row = pictures.index["otter", "fluent-emoji-3d"]
    assert pictures.rows[row] == {"row": row, "subject": "otter", "style": "fluent-emoji-3d"}
    assert "fishing" in pictures.keywords["otter"] and pictures.categories["otter"] == "Animals & Nature"
    assert pictures.subjects == Splits.load().subjects()
    assert not any(
        s.startswith(("keycap", "flag-for")) or s.endswith("-oclock") or "skin-tone" in s for s in pictures.subjects
    )
    blank = [r for r in range(0, len(pictures.rows), 97) if pictures.images[r].min() > 250]
    assert not blank


def test_autoencoder_has_the_layout_comfyui_looks_for(tmp_path: Path) -> None:
    path = Autoencoder().save(tmp_path / "vae.safetensors")
    state = load_file(str(path))
    assert state["taesd_decoder.1.weight"].shape == (64, 16, 3, 3)
    assert state["taesd_encoder.14.weight"].shape == (16, 64, 3, 3)
    assert state["taesd_decoder.19.weight"].shape == (3, 64, 3, 3)
    assert {k.split(".")[0] for k in state} == {"taesd_encoder", "taesd_decoder", "vae_scale", "vae_shift"}
    model = Autoencoder.load(path)
    encoded = torch.randn(2, 16, 4, 4)
    stored = encoded / state["vae_scale"] + state["vae_shift"]  # what ComfyUI's TAESD.encode returns
    assert torch.allclose(
        (stored - 0.0609) * 1.5305, encoded, atol=1e-6
    )  # what its SD3 latent format hands to the model
    z = encode_pictures(drawing()[None], model)
    assert z.shape == (1, 16, 16, 16) and z.dtype == np.float16
    assert decode_latents(z, model).shape == (1, 128, 128, 3)


@pytest.mark.parametrize("stride", [1, 2])
def test_fast_convolution_has_the_gradients_of_the_plain_one(stride: int) -> None:
    torch.manual_seed(0)
    x, w, b = torch.randn(2, 5, 12, 10), torch.randn(7, 5, 3, 3) / 6, torch.randn(7)
    leaves = [[t.clone().requires_grad_() for t in (x, w, b)] for _ in range(2)]
    fast = FastConv.apply(leaves[0][0].bfloat16(), leaves[0][1], leaves[0][2], stride).float()
    plain = torch.nn.functional.conv2d(*leaves[1], stride, 1)
    seed = torch.randn_like(plain)
    for out in (fast, plain):
        (out * seed).sum().backward()
    assert torch.allclose(fast, plain, atol=0.05)
    for a, c in zip(*leaves, strict=True):
        assert (a.grad - c.grad).norm() < 0.02 * c.grad.norm()
