"""The library's database: bytes damaged, rows and schema that no version of the pack ever wrote."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

from autolora_core.library.index import Library
from autolora_core.library.versions import list_versions

from .. import library_world, mutate
from ..memory import MIB
from ..oracle import Wrong

CASES = 800
PAGE = 4096
COLUMNS = {
    "meta": ("key", "value"),
    "contents": (
        "hash",
        "size",
        "family",
        "variant",
        "evidence",
        "kind",
        "partial",
        "rank",
        "halves",
        "layout",
        "keys",
        "problems",
    ),
    "layouts": ("id", "modules"),
    "files": (
        "root",
        "name",
        "path",
        "size",
        "mtime_ns",
        "hash",
        "sidecars",
        "text",
        "base_model",
        "autov3",
        "preview",
        "problems",
        "missing",
        "shadowed",
    ),
    "features": ("hash", "sketch_id", "layout", "width", "rows", "log_norms", "skipped", "problem"),
    "responses": ("hash", "response_id", "spaces", "rows", "scale", "problem"),
    "encoders": ("id", "family", "kind", "schema_id", "tower_id", "inputs", "info", "current"),
    "vectors": ("hash", "encoder_id", "vector"),
    "pairs": ("hash_a", "hash_b", "cosine", "ratio"),
}
SCHEMES = (
    "DROP TABLE {table}",
    "DELETE FROM {table}",
    "ALTER TABLE {table} RENAME TO other",
    "PRAGMA user_version = 99",
    "PRAGMA user_version = -1",
    "PRAGMA user_version = 0",
    "PRAGMA user_version = 2",
    "CREATE TRIGGER t AFTER UPDATE ON meta BEGIN DELETE FROM files; END",
    "ALTER TABLE {table} RENAME TO real; CREATE VIEW {table} AS SELECT * FROM real",
    "DROP TABLE files; CREATE VIEW files AS WITH RECURSIVE c(x) AS"
    " (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x id, x root, x name,"
    " x path, x size, x mtime_ns, x hash, x sidecars, x text, x base_model, x autov3,"
    " x preview, x problems, 0 missing, 0 shadowed,"
    " x date FROM c",
    "ALTER TABLE {table} ADD COLUMN more TEXT",
    "CREATE TABLE surplus (a)",
    "INSERT INTO {table} SELECT * FROM {table}",
    "DELETE FROM meta WHERE key = 'generation'",
    "UPDATE meta SET value = 'x'",
)


def bound(size: int) -> int:
    return 96 * MIB + 40 * size


def seeds(folder: Path) -> list[bytes]:
    library_world.build(folder)
    return [mutate.dumped({"sql": [], "bytes": [], "cut": None})]


def make(rng: random.Random, parent: bytes) -> bytes:
    """``sql``: [statement, values], ``bytes``: [place as a share of the file, hex], ``cut``: share that is left."""
    made: dict = {"sql": [], "bytes": [], "cut": None}
    table = rng.choice(list(COLUMNS))
    kind = rng.random()
    if kind < 0.55:
        for _ in range(rng.choice((1, 1, 2))):
            column = rng.choice(COLUMNS[table])
            where = rng.choice(("", " WHERE rowid = (SELECT min(rowid) FROM {table})")).format(table=table)
            made["sql"].append([f"UPDATE OR IGNORE {table} SET {column} = ?{where}", [_value(rng)]])
    elif kind < 0.7:
        made["sql"].append([rng.choice(SCHEMES).format(table=table), []])
    elif kind < 0.97:
        for _ in range(rng.choice((1, 2, 8, 40))):
            made["bytes"].append([rng.random(), rng.randbytes(rng.choice((1, 4, 64, 512))).hex()])
    else:
        made["cut"] = rng.random()
    return mutate.dumped(made)


def _value(rng: random.Random) -> object:
    """A value of a column; bytes as {"hex": …}."""
    kind = rng.randrange(6)
    if kind == 0:
        return {"hex": rng.randbytes(rng.choice((0, 1, 3, 4, 64, 4096))).hex()}
    if kind == 1:
        return rng.choice((None, 0, -1, 1, 2**62, 1.5, 1e308))
    if kind == 2:
        return mutate.dumped(mutate.value(rng)).decode()
    if kind == 3:
        return rng.choice(
            (
                "[" * 5000,
                "{}",
                "[]",
                "null",
                "1",
                '"a"',
                "[[1]]",
                '{"title": 3, "tags": 7}',
                '{"tags": [3], "triggers": null}',
            )
        )
    return mutate.text(rng).encode("utf-8", "replace").decode()


def run(data: bytes, folder: Path) -> None:
    document = mutate.loaded(data)
    work = library_world.copy(folder)
    _damage(work / "library.sqlite", document if isinstance(document, dict) else {})
    with Library.open(work) as library:
        entries = library.entries()
        for entry in entries:
            texts = [
                entry.name,
                entry.path,
                entry.hash,
                entry.family,
                entry.kind,
                entry.root,
                entry.preview,
                entry.base_model,
            ]
            texts += [*entry.problems, *entry.text.captions, *entry.text.tags, *entry.text.triggers, *entry.halves]
            if not all(isinstance(one, str) for one in texts):
                raise Wrong(f"an entry of wrong types: {entry!r:.200}")
            library.modules(entry.hash)
        library.module_features("emoji")
        library.features("emoji")
        library.unencoded()
        library.exact_copies()
        library.near_duplicates("emoji")
        encoder = library.encoder("emoji")
        if encoder is not None:
            library.vectors("emoji", encoder.id).search(encoder.query(library_world.TOWER.encode(["otter"]))[0], 2)
        library.responses("emoji")
        if sum(data) % 4 == 0:  # the two slow ways
            library_world.ask(library)
        if sum(data) % 8 == 1:
            list_versions(library, "emoji")
            library.scan({"loras": folder / "loras"})
            library.fit(library_world.TOWER)
            library_world.ask(library)


def _damage(path: Path, document: dict) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    try:
        for statement, values in document.get("sql") or []:
            given = [mutate.unhex(one["hex"]) if isinstance(one, dict) else one for one in values]
            try:
                if given:
                    db.execute(statement, given)
                else:
                    db.executescript(statement)
            except sqlite3.Error:  # this cannot be said of this table
                continue
        db.execute("PRAGMA journal_mode = DELETE")
    finally:
        db.close()
    whole = bytearray(path.read_bytes())
    for share, pieces in document.get("bytes") or []:
        piece = mutate.unhex(pieces)
        at = int(share * max(len(whole) - len(piece), 0))
        whole[at : at + len(piece)] = piece
    if document.get("cut") is not None:
        del whole[int(document["cut"] * len(whole)) :]
    path.write_bytes(whole)
