"""Proves that a scan stores what each file does to text: once a content, also in a library made before this existed,
and without hashing a file again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import emoji_factors, real_loras, write_lora

from autolora_core.encode.response_factors import MAX_BYTES, response_factors
from autolora_core.encode.spaces import space_of
from autolora_core.library import scan_rows
from autolora_core.library.index import Library
from autolora_core.library.responses import NOT_REACHED, response_id
from autolora_core.library.store import SCHEMA_VERSION, Store
from autolora_core.library.walk import Scope
from autolora_core.lora.file import LoraFile


@pytest.fixture
def roots(tmp_path):
    """Two files, one of which changes no layer that a prompt reaches."""
    root = tmp_path / "loras"
    write_lora(root / "whole.safetensors", emoji_factors(1))
    down, up = torch.randn(2, 256), torch.randn(1536, 2)
    layers = [f"joint_blocks.{n}.x_block.adaLN_modulation.1" for n in range(4)]
    write_lora(root / "last.safetensors", dict.fromkeys(layers, (down, up)))
    return {"loras": root}


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """Hashes of the contents whose response was computed, in order."""
    seen, real = [], scan_rows.store_response
    monkeypatch.setattr(scan_rows, "store_response", lambda db, h, *rest: (seen.append(h), real(db, h, *rest))[1])
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
        assert stored[by_name["last.safetensors"].hash] == (response_id("emoji"), NOT_REACHED)
        lora = LoraFile.open(by_name["whole.safetensors"].path)
        wanted = response_factors(lora.updates(), "emoji")
        assert {name for name, _ in table.spaces} == set(wanted.rows)
        for (name, _), own in table.spaces.items():
            assert np.abs(own.rows[0] * own.scale[0, :, None] - wanted.rows[name]).max() <= own.scale.max()
        assert len(asked) == 2 and library.scan(roots).encoded == 0 and len(asked) == 2
        assert library.responses("emoji") is table, "one table for all who ask"
        library.scan(roots, force=True)
        assert len(asked) == 4 and len(library.responses("emoji")) == 1


def make_older(store: Store, version: int) -> None:
    """Version 1 kept no responses, version 2 those of text layers alone, in another form."""
    store.db.execute("DROP TABLE responses")
    if version == 2:
        store.db.execute("CREATE TABLE responses (hash TEXT, response_id TEXT, spaces TEXT, depth INTEGER, rows BLOB)")
    store.db.execute(f"PRAGMA user_version={version}")


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_library_gets_them_without_hashing_again(tmp_path, roots, asked, version):
    with Library.open(tmp_path / "library") as library:
        library.scan(roots)
        make_older(library.store, version)
    asked.clear()
    with Library.open(tmp_path / "library") as library:
        before = library.generation
        assert library.store.db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        assert len(library.responses("emoji")) == 0
        report = library.scan(roots)
        assert (report.encoded, report.bytes_read, report.unchanged) == (2, 0, 2)
        assert len(asked) == 2 and len(library.responses("emoji")) == 1
        assert library.generation > before, "what a prompt finds may change"


@pytest.mark.parametrize("version", [1, 2])
def test_every_way_to_the_newest_format_ends_in_the_same_tables(tmp_path, version):
    def tables(store: Store) -> list[tuple]:
        return sorted(store.db.execute("SELECT name, sql FROM sqlite_master WHERE type IN ('table', 'index')"))

    with Store(tmp_path / "new") as store:
        new = tables(store)
    with Store(tmp_path / "old") as store:
        make_older(store, version)
    with Store(tmp_path / "old") as store:
        assert tables(store) == new


@pytest.mark.parametrize("path", real_loras(), ids=lambda path: path.stem)
def test_real_files(path, tmp_path):
    with Library.open(tmp_path / "library") as library:
        library.scan(Scope.of({"loras": path.parent}, "", path.name))
        entry = next(entry for entry in library.entries() if entry.path == str(path))
        lora = LoraFile.open(path)
        reached = [name for name in lora.modules if space_of(lora.family.name, name.partition("[")[0])]
        table = library.responses(entry.family)
        assert (entry.hash in table.hashes) == bool(reached and entry.kind == "lora")
        if entry.hash in table.hashes:
            size = library.store.db.execute("SELECT length(rows) FROM responses WHERE hash = ?", (entry.hash,))
            assert 0 < size.fetchone()[0] <= MAX_BYTES
