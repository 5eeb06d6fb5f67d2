"""What a scan writes: rows of contents, of their weights and of places, and the report's counts of them."""

from __future__ import annotations

import json
import os
from dataclasses import replace

from .content import READER, Content, content_row, store_content
from .entries import ScanReport, is_unhashed
from .metadata import Reading
from .places import Known
from .reading import Encoded, Read
from .responses import answered, has_response, response_id, store_response
from .sketches import ENCODABLE_KINDS, sketch_id, sketched, store_sketch
from .store import Batch, Store, now
from .walk import Found


class Rows:
    """The writing half of a scan. ``force``: contents are written anew, each once."""

    def __init__(self, store: Store, batch: Batch, force: bool):
        self.store, self.batch, self.force = store, batch, force
        self.report = ScanReport()
        self._fresh: set[str] = set()  # contents read again in this scan, for force
        self._contents: dict[str, Content] = {}
        self._new_places: list[tuple[int, str]] = []
        self._sketched, self._answered = sketched(store.db), answered(store.db)

    # -- contents --------------------------------------------------------------------------------------------------

    def _is_lacking(self, digest: str, kind: str | None, family: str | None) -> bool:
        """Whether a content has something to encode that is not encoded yet."""
        if kind not in ENCODABLE_KINDS or family == "unknown":
            return False
        if (digest, sketch_id(family)) not in self._sketched:
            return True
        return has_response(family) and (digest, response_id(family)) not in self._answered

    def _take(self, read: Read, reading: Reading | None) -> tuple[Content, Reading | None, bool]:
        """Store what was read of a file, unless its content is known."""
        self.report.bytes_read += read.bytes_read
        known = self._row(read.digest)
        if known is not None and known.reader == READER and (not self.force or read.digest in self._fresh):
            self.report.shared += 1
        elif read.content is not None:
            known = replace(read.content, modules=())  # module lists of ten thousand files are too much
            self.batch.begin()
            store_content(self.store.db, read.content)
            self._contents[read.digest] = known
        encoded = self._store_encoded(known, read.encoded)
        self._fresh.add(read.digest)
        return known, reading, encoded

    def _store_encoded(self, content: Content, encoded: Encoded | None) -> bool:
        """Store what is kept of a content's weights; True when it was not there, or is there anew."""
        digest, family = content.hash, content.family
        again = self.force and digest not in self._fresh
        if encoded is None or not (again or self._is_lacking(digest, content.kind, family)):
            return False
        self.batch.begin()
        if again or (digest, sketch_id(family)) not in self._sketched:
            store_sketch(self.store.db, digest, family, encoded.features, encoded.features_problem)
            self._sketched.add((digest, sketch_id(family)))
        if has_response(family) and (again or (digest, response_id(family)) not in self._answered):
            store_response(self.store.db, digest, family, encoded.response, encoded.response_problem)
            self._answered.add((digest, response_id(family)))
        return True

    # -- places ----------------------------------------------------------------------------------------------------

    def _write_file(self, item: Found, known: Known | None, content, reading: Reading, problems: list[str]) -> None:
        self.batch.begin()
        values = (
            os.fsencode(item.path), item.size, item.mtime_ns, content.hash if content else None, item.signature,
            json.dumps(reading.text.to_json()), reading.base_model, reading.autov3, os.fsencode(reading.preview),
            json.dumps(problems), now(),
        )  # fmt: skip
        cursor = self.store.db.execute(
            "INSERT INTO files (root, name, path, size, mtime_ns, hash, sidecars, text, base_model, autov3, preview,"
            " problems, date) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT (root, name) DO UPDATE SET"
            " path=excluded.path, size=excluded.size, mtime_ns=excluded.mtime_ns, hash=excluded.hash,"
            " sidecars=excluded.sidecars, text=excluded.text, base_model=excluded.base_model, autov3=excluded.autov3,"
            " preview=excluded.preview, problems=excluded.problems, date=excluded.date, missing=0 RETURNING id",
            (os.fsencode(item.root), os.fsencode(item.name), *values),
        )
        (row_id,) = cursor.fetchone()
        if content is not None and (known is None or is_unhashed(known.hash)):
            self._new_places.append((row_id, content.hash))
        self.batch.changed()
        self._tally(item.name, content, problems)

    def _row(self, digest: str) -> Content | None:
        """The stored content, each read from the database once."""
        if digest not in self._contents:
            row = content_row(self.store.db, digest)
            if row is None:
                return None
            self._contents[digest] = row
        return self._contents[digest]

    # -- counting --------------------------------------------------------------------------------------------------

    def _count(self, item: Found, known: Known | None, content: Content | None) -> None:
        if known is None:
            self.report.added += 1
        elif content is not None and (content.hash == known.hash or self._was_unhashed(item, known)):
            self.report.unchanged += 1
        else:
            self.report.changed += 1

    def _was_unhashed(self, item: Found, known: Known) -> bool:
        return is_unhashed(known.hash) and (item.size, item.mtime_ns) == (known.size, known.mtime_ns)

    def _tally(self, name: str, content: Content | None, problems: list[str]) -> None:
        self.report.kinds[content.kind if content else "unreadable"] += 1
        if content is not None and content.kind != "not_a_lora":
            self.report.families[content.family] += 1
        self.report.problems += [(name, problem) for problem in [*problems, *(content.problems if content else ())]]

    def _tally_known(self, name: str, known: Known) -> None:
        """:meth:`_tally` of a file that was not looked into."""
        self.report.kinds[known.kind or "unreadable"] += 1
        if known.kind is not None and known.kind != "not_a_lora":
            self.report.families[known.family] += 1
        for listed in (known.problems, known.content_problems):
            if listed and listed != "[]":
                self.report.problems += [(name, problem) for problem in json.loads(listed)]
