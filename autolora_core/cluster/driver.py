"""A scan whose files are read by workers: the driver lists, hands out, merges and commits; it opens no LoRA file.

What a shard gives is merged the moment it comes, so a driver that is stopped or killed goes on from there when it is
run again. A shard that is read twice gives the same rows twice. Only the driver writes the library.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from ..errors import LibraryError
from ..library.entries import EntryText, ScanReport
from ..library.index import Library
from ..library.metadata import Reading
from ..library.places import Known
from ..library.scan import Progress, Scanner
from ..library.walk import Found, Scope
from ..wording import shown
from .part import CONTENT_TABLES, Part, Place, read_part
from .paths import PathMap
from .rays import Lost
from .shards import ALONE, Ledger, Shard, plan
from .worker import request

AHEAD = 2  # shards a worker is given at a time, so that it has the next one while its last is merged
POLL_SECONDS = 0.5
HOPELESS = 3  # files given up before a single one was read: it is not the files


class Cluster(Protocol):
    """What the driver asks of a cluster; :class:`.rays.RayCluster` is one."""

    def workers(self) -> int: ...
    def start(self, request: bytes) -> Any: ...
    def wait(self, handles: list[Any], seconds: float) -> list[Any]: ...
    def result(self, handle: Any) -> bytes: ...


@dataclass
class ClusterReport:
    """Who read: files by host, kinds of machine, workers lost, files that were handed out again because of it."""

    hosts: Counter = field(default_factory=Counter)
    machines: set[str] = field(default_factory=set)
    shards: int = 0
    lost: int = 0
    again: int = 0
    given_up: list[str] = field(default_factory=list)


def scan_on_cluster(
    library: Library,
    scope: Scope,
    cluster: Cluster,
    *,
    paths: PathMap | None = None,
    force: bool = False,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> tuple[ScanReport, ClusterReport]:
    """:meth:`Library.scan` with the reading done by ``cluster``: the same rows, the same report."""
    report = ClusterReport()
    kind = partial(ClusterScanner, cluster, paths or PathMap(), report)
    how = {"force": force, "progress": progress, "should_stop": should_stop}
    return library.scan(scope, **how, kind=kind), report


class ClusterScanner(Scanner):
    """One such scan. The caller holds the writer lock."""

    def __init__(self, cluster: Cluster, paths: PathMap, report: ClusterReport, *what: Any, **how: Any):
        super().__init__(*what, **how)
        self.cluster, self.paths, self.cluster_report = cluster, paths, report
        self._held = set() if self.force else {row[0] for row in self.store.db.execute("SELECT hash FROM contents")}

    def _visit_all(self, arrivals: Iterator[list[Found]], known: dict[tuple[str, str], Known]) -> None:
        for found in arrivals:
            if found:
                self._visit_some(found, known)
            else:
                self._wait([])

    def _visit_some(self, found: list[Found], known: dict[tuple[str, str], Known]) -> None:
        """Here what needs no reading, on the workers all else."""
        to_read = []
        for item in found:
            row = known.get((item.root, item.name))
            if self._settled(item, row):
                continue
            if item.problem is None:
                to_read.append(item)
            else:
                self._visit(item, row)
        self._tick()
        self._done += len(found) - len(to_read)
        self.progress(self._done, self._total, "")
        self._read_all(to_read, known)

    # -- shards ----------------------------------------------------------------------------------------------------

    def _read_all(self, files: list[Found], known: dict[tuple[str, str], Known]) -> None:
        ledger = Ledger(plan([item.size for item in files], self.cluster.workers()))
        flying: dict[Any, Shard] = {}
        name = ""
        while ledger or flying:
            self._tick()
            while ledger and len(flying) < AHEAD * max(1, self.cluster.workers()):
                shard = ledger.take()
                flying[self.cluster.start(self._request(files, shard))] = shard
            for handle in self.cluster.wait(list(flying), POLL_SECONDS):
                shard = flying.pop(handle)
                self._done += self._ended(handle, shard, files, ledger, known)
                name = files[shard.files[-1]].name
            self.progress(self._done, self._total, name if self.cluster.workers() else "waiting for a worker")

    def _request(self, files: list[Found], shard: Shard) -> bytes:
        items = [files[number] for number in shard.files]
        roots = sorted({self.paths.there(item.root) for item in items})
        return request([replace(item, path=self.paths.there(item.path)) for item in items], roots, self.force)

    def _ended(self, handle: Any, shard: Shard, files: list[Found], ledger: Ledger, known) -> int:
        """Merge a shard, or see to it that it is tried again; how many files are done with."""
        try:
            data = self.cluster.result(handle)
        except Lost as why:
            self.cluster_report.lost += 1
            number = ledger.lost(shard)
            if number is None:
                self.cluster_report.again += len(shard.files)
                return 0
            self._give_up(files[number], why, known)
            return 1
        items = [files[number] for number in shard.files]
        self._merge(items, data, known)
        return len(items)

    def _give_up(self, item: Found, why: Lost, known: dict[tuple[str, str], Known]) -> None:
        """A row that says so; the next run tries it again."""
        self.cluster_report.given_up.append(item.name)
        if len(self.cluster_report.given_up) >= HOPELESS and not self.cluster_report.shards:
            raise LibraryError(
                f"every file ends the worker that reads it ({why})",
                path=item.path,
                fix="look into the workers' memory and into Ray's logs, then run this again",
            )
        problem = f"it was not read: {ALONE} workers in a row ended while they read this file alone ({why})"
        row = known.get((item.root, item.name))
        if not self._stays(item, row, [problem]):
            self._visit(replace(item, problem=problem), row)

    def _stays(self, item: Found, known: Known | None, problems: list[str]) -> bool:
        """Keep what is known of a file that did not change and cannot be read just now."""
        if known is None or not known.hash or (item.size, item.mtime_ns) != (known.size, known.mtime_ns):
            return False
        self._keep_unread(item, known, problems)
        return True

    # -- merging ---------------------------------------------------------------------------------------------------

    def _merge(self, items: list[Found], data: bytes, known: dict[tuple[str, str], Known]) -> None:
        part = read_part(data, self.store.folder)
        left_out = [item.path for item in items if (item.root, item.name) not in part.places]
        if left_out:
            raise LibraryError("a worker left this file out", path=left_out[0], fix="run this again")
        self.batch.begin()
        self.report.encoded += self._copy_contents(part)
        for item in items:
            place = item.root, item.name
            self._place(item, part.places[place], known.get(place))
        self.batch.commit()
        self.report.bytes_read += part.head["bytes_read"]
        self.cluster_report.hosts[part.head["host"]] += len(items)
        self.cluster_report.machines.add(part.head["machine"])
        self.cluster_report.shards += 1

    def _copy_contents(self, part: Part) -> int:
        """What the shard knows of contents; how many of them were encoded that the library did not have encoded."""
        made = {digest for digest, _ in part.ids("features")}
        encoded = sum(digest in made and self._is_new(digest, kind, family) for digest, kind, family in part.contents)
        for table in CONTENT_TABLES:
            for row in part.tables[table]:
                values = ",".join("?" * len(row))
                self.store.db.execute(f"INSERT OR REPLACE INTO {table} VALUES ({values})", row)
        self._sketched |= part.ids("features")
        self._answered |= part.ids("responses")
        for digest, _, _ in part.contents:
            self._contents.pop(digest, None)  # it may have been read anew
        return encoded

    def _is_new(self, digest: str, kind: str, family: str) -> bool:
        return (self.force and digest not in self._held) or self._is_lacking(digest, kind, family)

    def _place(self, item: Found, place: Place, known: Known | None) -> None:
        """One file's row, with the paths and times that the driver sees."""
        content, notes = self._row(place.hash) if place.hash else None, json.loads(place.problems)
        if content is None and self._stays(item, known, notes):
            return
        preview = os.path.join(os.path.dirname(item.path), os.path.basename(place.preview)) if place.preview else ""
        reading = Reading(EntryText.from_json(json.loads(place.text)), place.base_model, place.autov3, preview, [])
        if content is not None:
            self.report.shared += place.hash in self._held
            self._held.add(place.hash)
        self._write_file(item, known, content, reading, notes)
        self._count(item, known, content)


def cluster_lines(report: ClusterReport) -> list[str]:
    """What there is to say of the workers, for people."""
    lines = []
    if report.hosts:
        hosts = ", ".join(f"{host} {count}" for host, count in sorted(report.hosts.items()))
        lines.append(f"Files read by workers: {hosts}.")
    if report.lost:
        lines.append(f"Workers lost: {report.lost}; files handed out again for it: {report.again}.")
    if len(report.machines) > 1:
        kinds = "; ".join(sorted(report.machines))
        lines.append(f"The workers differ ({kinds}), so the last digits of what they computed may.")
    lines += [f"Not read, as its worker ended each time: {shown(name)}" for name in report.given_up]
    return lines
