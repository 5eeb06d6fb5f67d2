"""Bring the database in line with the LoRA folders: what is new, changed, moved, gone, or back again.

A file whose path, size and modification time are known is not opened. Any other is hashed; a known hash means a known
content, however often and wherever it lies, so moved and copied files are never read again. Work is committed every
``COMMIT_FILES`` files or ``COMMIT_SECONDS``, whichever is first: a scan that is stopped or killed goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..errors import AutoLoRAError
from ..lora.file import LoraFile
from ..lora.header import read_header
from ..portable import openable
from .content import READER, Content, content_row, read_content, store_content
from .entries import ScanReport
from .metadata import Reading, read_words
from .places import Known, follow_moves, known_places, mark_missing, mark_shadowed
from .sketches import forget_encoding
from .store import Batch, Store, now
from .walk import Found, Scope, walk

log = logging.getLogger(__name__)
COMMIT_FILES, COMMIT_SECONDS = 64, 2.0
HASH_BLOCK = 4 << 20
BEING_WRITTEN = "it is being written just now; scan again later"

Progress = Callable[[int, int, str], None]


class _Stopped(Exception):
    """Raised inside a file when ``should_stop`` said so; never leaves this module."""


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    """Size, time of change and, outside Windows, time of any change: a file put in its place has another one."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


class Scanner:
    """One scan of ``scope`` into ``store``. The caller holds the writer lock. :meth:`run` does the work.

    ``features(content, path, lora)`` is called for every readable content that is present, to encode it when needed;
    it returns True when it did. ``lora`` is the open file, or None when it was not opened in this scan.
    """

    def __init__(
        self,
        store: Store,
        scope: Scope,
        *,
        force: bool = False,
        progress: Progress | None = None,
        should_stop: Callable[[], bool] | None = None,
        features: Callable[[Content, str, LoraFile | None], bool] | None = None,
    ):
        self.store, self.scope, self.force = store, scope, force
        self.progress = progress or (lambda done, total, name: None)
        self.should_stop = should_stop or (lambda: False)
        self.features = features or (lambda content, path, lora: False)
        self.report = ScanReport()
        self.batch = Batch(store, COMMIT_FILES, COMMIT_SECONDS)
        self._fresh: set[str] = set()  # contents read again in this scan, for force
        self._contents: dict[str, Content] = {}
        self._new_places: list[tuple[int, str]] = []

    def run(self) -> ScanReport:
        """Scan; on any exception (an interrupt from ``progress``) what was done so far is committed first."""
        started = time.monotonic()
        try:
            self._run()
        except _Stopped:
            self.report.stopped = True
        finally:
            self.batch.commit()
            self.report.seconds = time.monotonic() - started
        return self.report

    def _run(self) -> None:
        known = known_places(self.store.db)
        found = self._find(known)
        self.progress(0, len(found), "")
        for index, item in enumerate(found):
            self._tick()
            self._visit(item, known.get((item.root, item.name)))
            self.progress(index + 1, len(found), item.name)
        self.batch.begin()
        self._places({(item.root, item.name) for item in found}, known)
        self.batch.commit()

    def _places(self, seen: set[tuple[str, str]], known: dict[tuple[str, str], Known]) -> None:
        """What the whole walk tells: files that went missing, those that only moved, and names that hide others."""
        db, changed, wanted = self.store.db, self.batch.changed, self.scope.predicate()
        roots, report = set(self.scope.roots.values()), self.report
        gone = {place: row.id for place, row in known.items()
                if place[0] in roots and place not in seen and wanted(place[1])}  # fmt: skip
        report.missing += len(gone)
        mark_missing(db, [row_id for place, row_id in gone.items() if not known[place].missing], changed)
        moved = follow_moves(db, self._new_places, report.offline)
        report.renamed, report.added = report.renamed + moved, report.added - moved
        report.missing -= moved
        mark_shadowed(db, list(self.scope.roots.values()), changed)

    # -- finding ---------------------------------------------------------------------------------------------------

    def _find(self, known: dict[tuple[str, str], Known]) -> list[Found]:
        found, seen = [], set()
        wanted = self.scope.predicate()
        for root in self.scope.roots.values():
            if not Path(root).is_dir():
                # ComfyUI also lists folders that never existed; only a root that had files is worth a word.
                if any(known_root == root for known_root, _ in known):
                    self.report.offline.append(root)
                continue
            for item in walk(root, wanted, lambda path, why: self.report.problems.append((path, why))):
                self._tick()
                if (item.root, item.name) not in seen:
                    seen.add((item.root, item.name))
                    found.append(item)
        return found

    # -- one file --------------------------------------------------------------------------------------------------

    def _visit(self, item: Found, known: Known | None) -> None:
        """Bring one file's row up to date; anything wrong with the file becomes its row's problem."""
        if known and not self.force and self._unchanged(item, known):
            self._keep(item, known)
            return
        content, lora, encoded, problems = None, None, False, [item.problem] if item.problem else []
        if not problems:
            try:
                content, lora, encoded = self._read(item)
            except (OSError, AutoLoRAError) as error:
                problems.append(f"the file cannot be read: {getattr(error, 'strerror', None) or error}")
                if known and known.hash and (item.size, item.mtime_ns) == (known.size, known.mtime_ns):
                    self._keep_unread(item, known, problems)
                    return
        reading = self._words(item, lora, content)
        self._write_file(item, known, content, reading, problems + reading.problems)
        self._count(item, known, content)
        self.report.encoded += encoded

    def _read(self, item: Found) -> tuple[Content, LoraFile | None, bool]:
        """Hash a file, read its content and encode it (or not): of one and the same file, or nothing is stored.

        Raises OSError for a file that was written or went away meanwhile, whatever reading it had come to by then.
        """
        digest, stamp = self._hash(item)
        self.batch.begin()
        self.store.db.execute("SAVEPOINT file")
        try:
            content, lora = self._content(item, digest)
            encoded = self.features(content, item.path, lora)
            if _stamp(os.stat(openable(item.path))) != stamp:
                raise OSError(BEING_WRITTEN)
        except BaseException:
            self._contents.pop(digest, None)
            self._fresh.discard(digest)
            # A full disk ends the whole transaction, and the savepoint with it.
            if self.store.db.in_transaction:
                self.store.db.execute("ROLLBACK TO file")
                self.store.db.execute("RELEASE file")
            raise
        self.store.db.execute("RELEASE file")
        return content, lora, encoded

    def _keep_unread(self, item: Found, known: Known, problems: list[str]) -> None:
        """A file that says it is the known one but cannot be read just now: what is known of it stays."""
        self.report.unchanged += 1
        self._tally(item.name, self._row(known.hash), problems)

    def _unchanged(self, item: Found, known: Known) -> bool:
        same_bytes = (item.size, item.mtime_ns) == (known.size, known.mtime_ns)
        return same_bytes and item.signature == known.sidecars and (known.reader == READER or item.problem is not None)

    def _keep(self, item: Found, known: Known) -> None:
        if known.missing:
            self.batch.begin()
            self.store.db.execute("UPDATE files SET missing = 0 WHERE id = ?", (known.id,))
            self.batch.changed()
            self.report.returned += 1
        else:
            self.report.unchanged += 1
        content = self._row(known.hash) if known.hash else None
        self._tally(item.name, content, json.loads(known.problems))
        if content is not None:
            self._encode(content, item, None)

    def _hash(self, item: Found) -> tuple[str, tuple[int, int, int]]:
        """SHA-256 of the content, and the :func:`_stamp` of the file that has it. Raises OSError when the file changed
        meanwhile (a download still running)."""
        digest = hashlib.sha256()
        with open(openable(item.path), "rb") as stream:
            before = os.fstat(stream.fileno())
            while block := stream.read(HASH_BLOCK):
                digest.update(block)
                self.report.bytes_read += len(block)
                self._tick()
            after = os.fstat(stream.fileno())
            if not item.steady(before, after) or _stamp(before) != _stamp(after):
                raise OSError(BEING_WRITTEN)
        return digest.hexdigest(), _stamp(after)

    def _content(self, item: Found, digest: str) -> tuple[Content, LoraFile | None]:
        known = self._row(digest)
        if known is not None and known.reader == READER and (not self.force or digest in self._fresh):
            self.report.shared += 1
            return known, None
        content, lora = read_content(item.path, digest, item.size)
        self.batch.begin()
        store_content(self.store.db, content)
        self._contents[digest] = replace(content, modules=())  # module lists of ten thousand files are too much
        self._fresh.add(digest)
        return content, lora

    def _words(self, item: Found, lora: LoraFile | None, content: Content | None) -> Reading:
        metadata: dict[str, str] = {}
        if lora is not None:
            metadata = lora.metadata
        elif content is not None and content.kind != "not_a_lora":
            try:
                metadata = read_header(item.path).metadata
            except AutoLoRAError as error:
                log.info("no header words for %r: %s", item.name, error)
        return read_words(item.path, metadata, item.sidecars)

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
        if known is None and content is not None:
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

    def _encode(self, content: Content, item: Found, lora: LoraFile | None) -> None:
        self.batch.begin()
        if self.features(content, item.path, lora):
            if self._changed_since(item):
                forget_encoding(self.store.db, content.hash)  # of other bytes: the next scan reads the file again
                return
            self.report.encoded += 1
            self.batch.changed()

    def _changed_since(self, item: Found) -> bool:
        try:
            status = os.stat(openable(item.path))
        except OSError:
            return True
        return not item.steady(status, status)

    # -- counting --------------------------------------------------------------------------------------------------

    def _count(self, item: Found, known: Known | None, content: Content | None) -> None:
        if known is None:
            self.report.added += 1
        elif content is not None and content.hash == known.hash:
            self.report.unchanged += 1
        else:
            self.report.changed += 1

    def _tally(self, name: str, content: Content | None, problems: list[str]) -> None:
        self.report.kinds[content.kind if content else "unreadable"] += 1
        if content is not None and content.kind != "not_a_lora":
            self.report.families[content.family] += 1
        self.report.problems += [(name, problem) for problem in [*problems, *(content.problems if content else ())]]

    def _tick(self) -> None:
        if self.should_stop():
            raise _Stopped
