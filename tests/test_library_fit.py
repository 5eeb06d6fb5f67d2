"""Proves that the library fits one encoder a family as a function of its files alone, keeps it while nothing changes,
and never mixes vectors of different encoders, towers or families."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import emoji_factors, write_lora

from autolora_core.encode.encoder import RidgeEncoder
from autolora_core.encode.features import featurize
from autolora_core.encode.text_cache import CachedTower
from autolora_core.encode.towers import LexicalTower
from autolora_core.errors import EncoderMismatchError
from autolora_core.library.encoders import encoder_path, find_encoders
from autolora_core.library.index import Library
from autolora_core.library.texts import FILE_NAME, TextStore
from autolora_core.lora.file import LoraFile

WORDS = "otter fox ink neon castle rocket guitar cactus crown harbour".split()


class OtherTower(LexicalTower):
    """Another tower: the same words, mirrored."""

    id = "other-tower"

    def encode(self, texts):
        return super().encode(texts)[:, ::-1].copy()


@pytest.fixture
def loras(tmp_path):
    """Ten files with meaningful names and two without."""
    for seed, word in enumerate([*WORDS, "lora_000011", "lora_000012"]):
        write_lora(tmp_path / "loras" / f"{word}.safetensors", emoji_factors(seed, blocks=1))
    return tmp_path / "loras"


@pytest.fixture
def library(tmp_path, loras):
    with Library.open(tmp_path / "library") as opened:
        opened.scan([loras])
        yield opened


def test_fit_makes_vectors_for_all_files(library):
    report = library.fit(LexicalTower())
    [family] = report.families
    assert (family.family, family.files, family.captioned) == ("emoji", 12, 10)
    assert family.usable and family.refitted
    vectors = library.vectors("emoji", family.encoder_id)
    assert len(vectors.hashes) == 12 and list(vectors.hashes) == sorted(vectors.hashes)
    np.testing.assert_allclose(np.linalg.norm(vectors.matrix, axis=1), 1, atol=1e-5)
    assert "learnt from 10 of 12 files" in report.lines()[0]


def test_vectors_are_those_of_the_encoder_read_fresh_from_the_files(library):
    library.fit(LexicalTower())
    encoder = library.encoder("emoji", LexicalTower().id)
    vectors = library.vectors("emoji", encoder.id)
    for entry in library.entries("emoji"):
        fresh = encoder.encode(featurize(LoraFile.open(entry.path), encoder.schema))
        stored = vectors.matrix[vectors.hashes.index(entry.hash)]
        # The stored sketch is float16; a training row is matched to its leave-one-out row either way.
        assert float(fresh @ stored) > 0.999, entry.name


def test_nothing_new_means_nothing_done(library):
    first = library.fit(LexicalTower()).families[0]
    generation = library.generation
    again = library.fit(LexicalTower()).families[0]
    assert not again.refitted and again.encoder_id == first.encoder_id and library.generation == generation


def test_order_of_arrival_does_not_matter(library, loras, tmp_path):
    expected = library.fit(LexicalTower()).families[0].encoder_id
    files = sorted(loras.iterdir())
    with Library.open(tmp_path / "second") as second:
        late = [(path, path.read_bytes()) for path in files[:5]]
        for path, _ in late:
            path.unlink()
        second.scan([loras])
        assert second.fit(LexicalTower()).families[0].encoder_id != expected
        for path, content in reversed(late):
            path.write_bytes(content)
            second.scan([loras])
        assert second.fit(LexicalTower()).families[0].encoder_id == expected


def test_what_was_overwritten_teaches_nothing(library, loras, tmp_path):
    """A library that has seen older files of the same names has the encoder of one that has not."""
    before = library.fit(LexicalTower()).families[0].encoder_id
    for seed, word in enumerate(WORDS, 100):
        write_lora(loras / f"{word}.safetensors", emoji_factors(seed, blocks=1))
    library.scan([loras])
    [again] = library.fit(LexicalTower()).families
    with Library.open(tmp_path / "fresh") as fresh:
        fresh.scan([loras])
        [new] = fresh.fit(LexicalTower()).families
    assert again.encoder_id == new.encoder_id != before
    assert again.files == 12


def test_towers_and_encoders_never_mix(library, loras):
    first = library.fit(LexicalTower()).families[0].encoder_id
    other = library.fit(OtherTower()).families[0].encoder_id
    assert first != other
    assert library.encoder("emoji", LexicalTower().id).id == first
    assert library.encoder("emoji", OtherTower.id).id == other
    assert library.encoder("emoji", "unknown tower") is None and library.encoder("sdxl") is None
    a, b = library.vectors("emoji", first), library.vectors("emoji", other)
    assert np.abs(a.matrix - b.matrix).max() > 0.1
    query = "SELECT DISTINCT encoder_id, tower_id, schema_id, date != '' FROM vectors"
    rows = library.store.db.execute(query).fetchall()
    schema = library.encoder("emoji", OtherTower.id).schema.id
    assert sorted(rows) == sorted([(first, LexicalTower().id, schema, 1), (other, OtherTower.id, schema, 1)])
    with pytest.raises(EncoderMismatchError, match="not of sdxl"):
        library.vectors("sdxl", first)
    with pytest.raises(EncoderMismatchError, match="not an encoder of this library"):
        library.vectors("emoji", "ridge-000000000000")


def test_lost_or_damaged_encoder_is_fitted_again(library, monkeypatch):
    from autolora_core.library import encoders

    first = library.fit(LexicalTower()).families[0]
    path = encoder_path(library.folder, first.encoder_id)
    content = path.read_bytes()
    for damaged in (None, content[: len(content) // 2], b"\x80\x04pickle"):
        monkeypatch.setattr(encoders, "_loaded", {})
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        assert library.encoder("emoji") is None
        again = library.fit(LexicalTower()).families[0]
        assert (again.encoder_id, again.refitted) == (first.encoder_id, True)
        assert RidgeEncoder.load(path).id == first.encoder_id


def test_old_encoders_and_their_files_go(library, loras):
    seen = []
    for seed in range(20, 24):
        write_lora(loras / f"{WORDS[seed % 10]} {WORDS[seed % 7]}.safetensors", emoji_factors(seed, blocks=1))
        library.scan([loras])
        seen.append(library.fit(LexicalTower()).families[0].encoder_id)
        library.vectors("emoji", seen[-1])
    kept = {path.name.split("-", 1)[1].split(".")[0] for path in library.folder.glob("*-ridge-*")}
    assert len(set(seen)) == 4 and kept == set(seen[-2:])


def test_features_matrix(library):
    library.fit(LexicalTower())
    entries, matrix = library.features("emoji")
    encoder = library.encoder("emoji")
    assert matrix.shape == (12, encoder.schema.width) and len(entries) == 12
    expected = featurize(LoraFile.open(entries[3].path), encoder.schema).vector
    np.testing.assert_allclose(matrix[3], expected, atol=2e-3 * np.abs(expected).max())


def test_files_without_any_words(tmp_path):
    write_lora(tmp_path / "loras" / "lora_000001.safetensors", emoji_factors(1, blocks=1))
    with Library.open(tmp_path / "library") as library:
        library.scan([tmp_path / "loras"])
        report = library.fit(LexicalTower())
        assert report.families[0].encoder_id == "" and "no file has words" in report.lines()[0]
        assert library.encoder("emoji") is None


def test_shipped_encoder_is_extended_and_twins_are_not_learnt_twice(library, tmp_path, loras):
    library.fit(LexicalTower())
    shipped_folder = tmp_path / "shipped"
    shipped_folder.mkdir()
    library.encoder("emoji").save(shipped_folder / "emoji_encoder.safetensors")
    (shipped_folder / "not_an_encoder.safetensors").write_bytes(b"no")
    shipped = find_encoders([tmp_path / "nowhere", shipped_folder])
    assert list(shipped) == ["emoji"] and len(shipped["emoji"].texts) == 10
    write_lora(loras / "violin.safetensors", emoji_factors(50, blocks=1))
    with Library.open(tmp_path / "second") as second:
        second.scan([loras])
        [fitted] = second.fit(LexicalTower(), shipped=shipped).families
        assert fitted.captioned == 11 and fitted.files == 13
        extended = second.encoder("emoji")
        assert isinstance(extended, RidgeEncoder) and extended.schema.id == shipped["emoji"].schema.id


def test_text_vectors_are_kept_on_disk_bit_for_bit(tmp_path):
    tower, texts = LexicalTower(), ["an otter", "ink", "", "caf\udce9"]
    first = CachedTower(tower, TextStore(tmp_path)).encode(texts)
    np.testing.assert_array_equal(first, tower.encode(texts))

    class Silent(LexicalTower):
        def encode(self, texts):
            raise AssertionError("encoded again")

    store = TextStore(tmp_path)
    np.testing.assert_array_equal(CachedTower(Silent(), store).encode(texts), first)
    assert len(store) == 4
    store.close()
    (tmp_path / FILE_NAME).write_bytes(b"no database" * 1000)
    np.testing.assert_array_equal(CachedTower(tower, TextStore(tmp_path)).encode(texts), first)


def test_fit_can_be_interrupted_between_captions(library):
    class Interrupt(Exception):
        pass

    def interrupt(done: int, total: int, name: str) -> None:
        raise Interrupt

    with pytest.raises(Interrupt):
        library.fit(LexicalTower(), progress=interrupt)
    assert library.encoder("emoji") is None
    assert library.fit(LexicalTower()).families[0].usable


def test_stored_sketch_is_close_to_the_real_one(library):
    entry = library.entries("emoji")[0]
    stored = library.module_features("emoji")[entry.hash]
    from autolora_core.encode.features import module_features, size_for

    fresh = module_features(LoraFile.open(entry.path).updates(), size_for("emoji"))
    assert stored.modules == fresh.modules
    np.testing.assert_allclose(stored.rows, fresh.rows, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(stored.log_norms, fresh.log_norms, atol=1e-6)
    assert torch.isfinite(torch.from_numpy(stored.rows)).all()
