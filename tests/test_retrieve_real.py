"""Proves that real files go through the same encoder, index and retrieval as made-up ones.

Five public LoRAs of one base family, two without a word of metadata. Nothing is expected of their weights (five files
cannot teach an encoder), but every one is read, sketched, compared, and found by what its words say.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from autolora_core.encode.canonical import canonical, has_linear_part, inner_product
from autolora_core.encode.features import FeatureSchema, module_features, size_for
from autolora_core.encode.sketch import sketch
from autolora_core.encode.towers import LexicalTower
from autolora_core.library.index import Library
from autolora_core.lora.file import LoraFile
from autolora_core.retrieve.retrieve import retrieve

SHARED = Path(os.environ.get("AUTOLORA_SHARED", Path(__file__).resolve().parents[2] / "shared"))
FILES = sorted((SHARED / "data" / "loras").glob("*.safetensors"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem[:20])
def test_canonical_and_sketch_of_real_modules(path):
    """Against the dense float64 ΔW, on the first, a middle and the last module."""
    updates = [update for update in LoraFile.open(path).updates() if has_linear_part(update)]
    for update in (updates[0], updates[len(updates) // 2], updates[-1]):
        delta = update.delta().flatten(1)
        form = canonical(update)
        if not delta.any():
            assert form.rank == 0 and sketch(update, size_for("sd15")) is None
            continue
        norm = delta.norm()
        torch.testing.assert_close((form.u * form.sigma) @ form.v.T, delta / norm, atol=1e-9, rtol=0)
        assert form.log_norm == pytest.approx(float(norm.log()), abs=1e-6)
        row, log_norm = sketch(update, size_for("sd15"))
        assert np.isfinite(row).all() and log_norm == pytest.approx(form.log_norm, abs=1e-4)
        assert inner_product(form, form) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("files", [FILES] if FILES else [])
def test_real_files_share_one_schema(files):
    sketches = [module_features(LoraFile.open(path).updates(), size_for("sd15")) for path in files]
    schema = FeatureSchema.learn("sd15", sketches)
    features = [schema.assemble(file) for file in sketches]
    present = [int(each.mask.sum()) for each in features]
    assert min(present) > 20 and len(schema.modules) <= 500, "names meet: the union is hardly longer than the longest"
    overlap = int((features[1].mask & features[3].mask).sum())
    assert overlap == min(present[1], present[3]), "two UNet LoRAs of different trainers meet on the same module names"
    assert all(np.isfinite(each.vector).all() and each.vector.any() for each in features)


@pytest.mark.parametrize("files", [FILES] if FILES else [])
def test_real_files_are_found_by_their_words(files, tmp_path):
    loras, tower = tmp_path / "loras", LexicalTower()
    loras.mkdir()
    for path in files:
        shutil.copyfile(path, loras / path.name)
    (loras / "smart_falcon_8_lokr.txt").write_text("smart falcon umamusume")
    (loras / "anime_style_sd15_text_encoder_only_peft.txt").write_text("manga screentone")
    with Library.open(tmp_path / "index") as library:
        library.scan([loras])
        library.fit(tower)
        found = retrieve(library, "smart falcon standing on a bridge", tower=tower)
        assert [pick.name for pick in found.picks] == ["smart_falcon_8_lokr.safetensors"]
        assert found.picks[0].parts.lexical > 0.5 and found.family == "sd15"
        nothing = retrieve(library, "a cosy cabin on a snowy mountain at dusk", tower=tower)
        assert nothing.picks == () and nothing.none_reason
        assert retrieve(library, "smart falcon standing on a bridge", tower=tower) == found
        (text_only,) = [entry.name for entry in library.entries() if entry.kind == "text_encoder_only"]
        pinned = retrieve(library, "x", family="sdxl", pinned=[text_only], tower=tower).picks[0]
        assert pinned.name == text_only and "text encoder only" in pinned.reason
        for family, expected in (("sd15", [text_only]), ("sdxl", [text_only]), ("sd2", [])):
            picks = retrieve(library, "a castle, manga screentone", family=family, tower=tower).picks
            assert [pick.name for pick in picks] == expected, family
