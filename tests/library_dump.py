"""All that a library holds, to compare two of them."""

from __future__ import annotations

from autolora_core.library.index import Library

# Every table without the columns that say when and in what order.
TABLES = {
    "contents": "hash, size, family, variant, evidence, kind, partial, rank, halves, layout, keys, problems, reader",
    "layouts": "id, modules",
    "files": "root, name, path, size, mtime_ns, hash, sidecars, text, base_model, autov3, preview, problems, missing,"
    " shadowed",
    "features": "hash, sketch_id, layout, width, rows, log_norms, skipped, problem",
    "responses": "hash, response_id, spaces, rows, scale, problem",
    "encoders": "id, family, kind, schema_id, tower_id, inputs, info, current",
    "vectors": "hash, encoder_id, schema_id, tower_id, vector",
}


def dump(library: Library) -> dict[str, list]:
    """All that a library holds, in an order of its own."""
    return {
        table: sorted(library.store.db.execute(f"SELECT {columns} FROM {table}").fetchall(), key=repr)
        for table, columns in TABLES.items()
    }
