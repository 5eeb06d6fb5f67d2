"""Bring the database in line with the LoRA folders: what is new, changed, moved, gone, or back again.

A file whose path, size and modification time are known is not opened. Any other is read once (:mod:`.reading`), by a
few threads a drive ahead of this one, which alone writes; those of one drive in their order. A known hash means a known
content, however often and wherever it lies: what looks like a moved file is hashed first and not read again. Work is
committed every ``COMMIT_FILES`` files or ``COMMIT_SECONDS``, whichever is first: a scan that is stopped or killed goes
on from there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from operator import attrgetter
from typing import Any

from ..encode.signs import forget_signs
from ..errors import AutoLoRAError
from ..lora.header import read_header
from . import readers
from .ahead import POLL_SECONDS, ReadAhead
from .content import READER, Content
from .entries import ScanReport, is_unhashed
from .headers import read_headers
from .metadata import Reading, read_words
from .places import Known, follow_moves, forget_unhashed, known_places, mark_missing, mark_shadowed
from .reading import Read, read_file, words_of
from .roots import Roots
from .scan_rows import Rows
from .store import Batch, Store
from .walk import Found, Scope

log = logging.getLogger(__name__)
COMMIT_FILES, COMMIT_SECONDS = 64, 2.0
LONG_SECONDS, SAY_SECONDS = 10.0, 1.0  # without a file, after which the progress says what is awaited; how often

Progress = Callable[[int, int, str], None]
Job = Callable[[], tuple[Read, Reading | None]]


class _Stopped(Exception):
    """Raised inside a file when ``should_stop`` said so; never leaves this module."""


class Scanner(Rows):
    """One scan of ``scope`` into ``store``. The caller holds the writer lock. :meth:`run` does the work.

    ``encode`` off leaves the weights alone: contents are told by hash and header. With ``headers_only`` files are not
    hashed either: they have an id of their own (:mod:`.headers`) until a scan reads them. ``order`` is the key by which
    the files to be read are sorted; after ``limit`` of them the scan stops as if it was told to.
    """

    def __init__(
        self,
        store: Store,
        scope: Scope,
        *,
        force: bool = False,
        progress: Progress | None = None,
        should_stop: Callable[[], bool] | None = None,
        encode: bool = True,
        headers_only: bool = False,
        order: Callable[[Found], Any] | None = None,
        limit: int | None = None,
        workers: int | None = None,
        processes: int | None = None,
    ):
        # A header says less than what is known of a file that was read.
        super().__init__(store, Batch(store, COMMIT_FILES, COMMIT_SECONDS), force and not headers_only)
        self.scope, self.workers, self.limit = scope, workers, limit
        self.processes = processes
        self.headers_only, self.encode, self.order = headers_only, encode and not headers_only, order
        self.progress = progress or (lambda done, total, name: None)
        self.should_stop = should_stop or (lambda: False)
        self._done = self._total = 0
        self._cut = False  # whether ``limit`` left files out
        self._roots: Roots | None = None
        self._last, self._said = time.monotonic(), 0.0  # when a file was done, and when it was said what is awaited

    def run(self) -> ScanReport:
        """Scan; on any exception (an interrupt from ``progress``) what was done so far is committed first."""
        started = time.monotonic()
        try:
            self._run()
        except _Stopped:
            self.report.stopped = True
        finally:
            forget_signs()
            self.batch.commit()
            self.report.seconds = time.monotonic() - started
        return self.report

    def _run(self) -> None:
        known = known_places(self.store.db)
        seen: set[tuple[str, str]] = set()
        self._visit_all(self._noted(known, seen), known)
        self.batch.begin()
        self._places(seen, known)
        self.batch.commit()

    def _places(self, seen: set[tuple[str, str]], known: dict[tuple[str, str], Known]) -> None:
        """What the whole walk tells: files that went missing, those that only moved, and names that hide others."""
        db, changed, wanted = self.store.db, self.batch.changed, self.scope.predicate()
        roots, report = set(self.scope.roots.values()), self.report
        gone = [place for place in known.keys() - seen if place[0] in roots and wanted(place[1])]
        report.missing += len(gone)
        mark_missing(db, sorted(known[place].id for place in gone if not known[place].missing), changed)
        moved = follow_moves(db, self._new_places, report.offline)
        report.renamed, report.added = report.renamed + moved, max(0, report.added - moved)
        report.missing -= moved
        forget_unhashed(db, report.offline, changed)
        mark_shadowed(db, list(self.scope.roots.values()), changed)

    # -- finding ---------------------------------------------------------------------------------------------------

    def _noted(self, known: dict[tuple[str, str], Known], seen: set[tuple[str, str]]) -> Iterator[list[Found]]:
        """The files of the roots as they become known, put into ``seen``; an empty list when none came just now."""
        for arrived in self._arrivals(known):
            seen.update((item.root, item.name) for item in arrived)
            self._total += len(arrived)
            yield arrived

    def _arrivals(self, known: dict[tuple[str, str], Known]) -> Iterator[list[Found]]:
        """The files of the roots as their listings come in, each place once; an empty list when none came just now."""
        seen: set[str] = set()
        with Roots(self.scope) as roots:
            self._roots = roots
            while not roots.over:
                items = []
                for listing in roots.take():
                    self.report.problems += listing.troubles
                    # ComfyUI also lists folders that never existed; only a root that had files is worth a word.
                    if listing.offline and any(root == listing.root for root, _ in known):
                        self.report.offline.append(listing.root)
                    if listing.root not in seen:
                        items += listing.found
                    seen.add(listing.root)
                yield items

    # -- all files -------------------------------------------------------------------------------------------------

    def _visit_all(self, arrivals: Iterator[list[Found]], known: dict[tuple[str, str], Known]) -> None:
        whole = [row for row in known.values() if row.reader == READER and not is_unhashed(row.hash)]
        stamps, held = {(row.size, row.mtime_ns) for row in whole}, {row.hash for row in whole}
        with ReadAhead(self.workers) as ahead:
            work = partial(self._work, known, stamps, held.__contains__, ahead)
            # An order that was asked for is that of all files, whatever drive they lie on; one worker is one.
            drive = attrgetter("drive") if self.order is None and self.workers != 1 else lambda item: None
            for item, future in ahead.results(self._to_read(arrivals, known, ahead), work, drive, _cost, self._wait):
                self._visit(item, known.get((item.root, item.name)), future)
                self._done, self._last = self._done + 1, time.monotonic()
                self.progress(self._done, self._total, item.name)
        if self._cut:
            raise _Stopped

    def _to_read(
        self, arrivals: Iterator[list[Found]], known: dict[tuple[str, str], Known], ahead: ReadAhead
    ) -> Iterator[list[Found]]:
        """Of the files that arrive those to be read, until there are as many as are asked for."""
        room = self.limit
        for arrived in arrivals:
            if not arrived:
                yield arrived
                continue
            self._tick()
            self.progress(self._done, self._total, "")
            to_read = [item for item in arrived if not self._settled(item, known.get((item.root, item.name)))]
            if self.order is not None:
                to_read.sort(key=self.order)
            if len(to_read) < len(arrived):
                self._done += len(arrived) - len(to_read)
                self.progress(self._done, self._total, "")
            self._cut = room is not None and len(to_read) > room
            to_read, room = to_read[:room], None if room is None else max(0, room - len(to_read))
            ahead.enlist(self._processes(to_read))
            self._last = time.monotonic()
            yield to_read
            if self._cut:
                return

    def _wait(self, awaited: Sequence[Found] | None) -> None:
        """Called while the next file of each drive is ``awaited``, or without any a listing; between two files with
        None."""
        self._tick()
        if awaited is None:
            return
        self.batch.commit_late()
        now = time.monotonic()
        if now - self._said > SAY_SECONDS and (now - self._last > LONG_SECONDS or not awaited):
            roots = dict.fromkeys([*(item.root for item in awaited), *(self._roots.awaited if self._roots else ())])
            if roots:
                self._said = now
                self.progress(self._done, self._total, f"waiting for {', '.join(roots)}")
        if not awaited and self._roots is not None and not self._roots.over:
            self._roots.wait(POLL_SECONDS)

    def _processes(self, to_read: list[Found]) -> int:
        if self.headers_only:
            return 0
        return readers.wanted(to_read, self.workers) if self.processes is None else self.processes

    def _settled(self, item: Found, known: Known | None) -> bool:
        """Take note of a file that is as it was, and of which nothing is to be read."""
        if known is None or self.force or not self._is_told(item, known):
            return False
        if self.encode and self._is_lacking(known.hash, known.kind, known.family):
            return False
        self._keep(item, known)
        if not self.report.unchanged % 1024:
            self._tick()
        return True

    def _work(
        self, known, stamps, held, ahead: ReadAhead, item: Found
    ) -> Callable[[], tuple[Read, Reading | None]] | None:
        """What a reading thread is to do for a file, None when nothing is to be read."""
        row = known.get((item.root, item.name))
        if item.problem is not None:
            return None
        if self.headers_only:
            return partial(_read_headers, item)
        if row is not None and not self.force and self._is_told(item, row):
            return partial(_read, item, ahead, True, self._row(row.hash), None)
        moved = not self.force and (item.size, item.mtime_ns) in stamps
        return partial(_read, item, ahead, self.encode, None, held if moved else None)

    # -- one file --------------------------------------------------------------------------------------------------

    def _visit(self, item: Found, known: Known | None, future: Future | None = None) -> None:
        """Bring one file's row up to date; anything wrong with the file becomes its row's problem."""
        if known and not self.force and self._is_told(item, known):
            self._keep(item, known, future)
            return
        content, reading, encoded, problems = None, None, False, [item.problem] if item.problem else []
        if future is not None:
            try:
                content, reading, encoded = self._take(*future.result())
            except (OSError, AutoLoRAError) as error:
                problems.append(f"the file cannot be read: {getattr(error, 'strerror', None) or error}")
                if known and known.hash and (item.size, item.mtime_ns) == (known.size, known.mtime_ns):
                    self._keep_unread(item, known, problems)
                    return
        reading = reading or _words(item, content)
        self._write_file(item, known, content, reading, problems + reading.problems)
        self._count(item, known, content)
        self.report.encoded += encoded

    def _is_told(self, item: Found, known: Known) -> bool:
        """Whether all that this scan asks of a file, encoding apart, is known."""
        return self._unchanged(item, known) and (self.headers_only or not is_unhashed(known.hash))

    def _unchanged(self, item: Found, known: Known) -> bool:
        same_bytes = (item.size, item.mtime_ns) == (known.size, known.mtime_ns)
        return same_bytes and item.signature == known.sidecars and (known.reader == READER or item.problem is not None)

    def _keep(self, item: Found, known: Known, future: Future | None = None) -> None:
        if known.missing:
            self.batch.begin()
            self.store.db.execute("UPDATE files SET missing = 0 WHERE id = ?", (known.id,))
            self.batch.changed()
            self.report.returned += 1
        else:
            self.report.unchanged += 1
        self._tally_known(item.name, known)
        if future is None:
            return
        try:
            read, _ = future.result()
        except OSError as error:  # the next scan tries again
            self.report.problems.append((item.name, f"the file cannot be read: {error.strerror or error}"))
            return
        if self._store_encoded(self._row(known.hash), read.encoded):
            self.report.encoded += 1
            self.batch.changed()

    def _keep_unread(self, item: Found, known: Known, problems: list[str]) -> None:
        """A file that says it is the known one but cannot be read just now: what is known of it stays."""
        self.report.unchanged += 1
        self._tally(item.name, self._row(known.hash), problems)

    def _tick(self) -> None:
        if self.should_stop():
            raise _Stopped


def _cost(made: tuple[Read, Reading | None]) -> tuple[int, float]:
    read, _ = made
    return read.cost


def _read(item: Found, ahead: ReadAhead, encode: bool, known: Content | None, held) -> tuple[Read, Reading | None]:
    """In a reading thread: a file, and its words where they are not those of a content that was not opened."""
    if ahead.readers is None:
        return _read_here(item, ahead.tick, encode, known, held)
    if held is None:  # what only moved is hashed and looked up: that is for this process, which knows what there is
        made = ahead.readers.read(item, encode, known)
        if made is not None:
            return made
    with ahead.readers.here(item.drive):
        return _read_here(item, ahead.tick, encode, known, held)


def _read_here(item: Found, tick, encode: bool, known: Content | None, held) -> tuple[Read, Reading | None]:
    read = read_file(item, tick, encode=encode, known=known, held=held)
    return read, words_of(item, read, known)


def _read_headers(item: Found) -> tuple[Read, Reading | None]:
    """In a reading thread: a file's header and words."""
    read = read_headers(item)
    return read, read_words(item.path, read.metadata or {}, item.sidecars)


def _words(item: Found, content: Content | None) -> Reading:
    """The words of a file whose header was not read."""
    metadata: dict[str, str] = {}
    if content is not None and content.kind != "not_a_lora":
        try:
            metadata = read_header(item.path).metadata
        except AutoLoRAError as error:
            log.info("no header words for %r: %s", item.name, error)
    return read_words(item.path, metadata, item.sidecars)
