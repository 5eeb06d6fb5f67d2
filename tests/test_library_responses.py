"""Proves that a scan stores what each file does to text: once a content, also in a library made before this existed,
and without hashing a file again."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import emoji_factors, real_loras, write_lora

from autolora_core.encode.response import response_factors
from autolora_core.encode.text_fed import space_of
from autolora_core.library import index as library_index
from autolora_core.library.index import Library
from autolora_core.library.responses import NOT_TEXT_FED, read_responses, response_id
from autolora_core.library.store import SCHEMA_VERSION, Store
from autolora_core.library.walk import Scope
from autolora_core.lora.file import LoraFile


@pytest.fixture
def roots(tmp_path):
    """Two files, one of which changes no layer that reads text."""
    root = tmp_path / "loras"
    write_lora(root / "whole.safetensors", emoji_factors(1))
    picture = {name: factors for name, factors in emoji_factors(2).items() if "x_block" in name}
    write_lora(root / "picture.safetensors", picture)
    return {"loras": root}


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """Hashes of the contents whose response was computed, in order."""
    seen, real = [], library_index.compute_response
    monkeypatch.setattr(library_index, "compute_response", lambda db, h, lora: (seen.append(h), real(db, h, lora))[1])
    return seen


def rows(library: Library) -> dict[str, tuple]:
    return {row[0]: row[1:] for row in library.store.db.execute("SELECT hash, response_id, problem FROM responses")}


def test_a_scan_stores_factors_beside_the_sketches(tmp_path, roots, asked):
    with Library.open(tmp_path / "library") as library:
        library.scan(roots)
        by_name = {entry.name: entry for entry in library.entries()}
        table = library.responses("emoji")
        assert table.hashes == (by_name["whole.safetensors"].hash,)
        stored = rows(library)
        assert stored[by_name["picture.safetensors"].hash] == (response_id("emoji"), NOT_TEXT_FED)
        lora = LoraFile.open(by_name["whole.safetensors"].path)
        wanted = response_factors(lora.updates(), "emoji")
        assert tuple(table.spaces[i] for i in table.place[0]) == wanted.spaces
        assert np.abs(table.rows[0] * table.scale[0, ..., None] - wanted.rows).max() <= table.scale.max()
        assert len(asked) == 2 and library.scan(roots).encoded == 0 and len(asked) == 2
        assert library.responses("emoji") is table, "one table for all who ask"
        library.scan(roots, force=True)
        assert len(asked) == 4 and len(library.responses("emoji")) == 1


def test_an_older_library_gets_them_without_hashing_again(tmp_path, roots, asked):
    with Library.open(tmp_path / "library") as library:
        library.scan(roots)
        library.store.db.execute("DROP TABLE responses")
        library.store.db.execute("PRAGMA user_version=1")
    asked.clear()
    with Library.open(tmp_path / "library") as library:
        before = library.generation
        assert library.store.db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        assert len(library.responses("emoji")) == 0
        report = library.scan(roots)
        assert (report.encoded, report.bytes_read, report.unchanged) == (2, 0, 2)
        assert len(asked) == 2 and len(library.responses("emoji")) == 1
        assert library.generation > before, "what a prompt finds may change"


def test_every_way_to_the_newest_format_ends_in_the_same_tables(tmp_path):
    def tables(store: Store) -> list[tuple]:
        return sorted(store.db.execute("SELECT name, sql FROM sqlite_master WHERE type IN ('table', 'index')"))

    with Store(tmp_path / "new") as store:
        new = tables(store)
    with Store(tmp_path / "old") as store:
        store.db.execute("DROP TABLE responses")
        store.db.execute("PRAGMA user_version=1")
    with Store(tmp_path / "old") as store:
        assert tables(store) == new


def test_one_table_holds_one_width(tmp_path, roots):
    narrow = {name: (down[:, :64], up) for name, (down, up) in emoji_factors(3, blocks=1).items()}
    with Library.open(tmp_path / "library") as library:
        library.scan(roots)
        (digest,) = library.responses("emoji").hashes
        path = write_lora(tmp_path / "narrow.safetensors", narrow)
        lora = LoraFile.open(path)
        lora.family = type(lora.family)("emoji", None, [])
        library_index.compute_response(library.store.db, "f" * 64, lora)
        read = read_responses
        both = [digest, "f" * 64]
        assert read(library.store.db, both, "emoji", 64).hashes == ("f" * 64,)
        assert read(library.store.db, both, "emoji", 256).hashes == (digest,)
        assert read(library.store.db, both, "emoji", 128).hashes == ()
        assert len(read(library.store.db, both, "emoji")) == 1


@pytest.mark.parametrize("path", real_loras(), ids=lambda path: path.stem)
def test_real_files(path, tmp_path):
    with Library.open(tmp_path / "library") as library:
        library.scan(Scope.of({"loras": path.parent}, "", path.name))
        entry = next(entry for entry in library.entries() if entry.path == str(path))
        lora = LoraFile.open(path)
        fed = [name for name in lora.modules if space_of(lora.family.name, name.partition("[")[0])]
        table = library.responses(entry.family)
        assert (entry.hash in table.hashes) == bool(fed and entry.kind == "lora")
        if entry.hash in table.hashes:
            size = library.store.db.execute(
                "SELECT length(rows) + length(scale) FROM responses WHERE hash = ?", (entry.hash,)
            ).fetchone()[0]
            assert size <= 41_000
