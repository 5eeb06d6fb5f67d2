"""What a scan found, as text for people: counts, what is wrong and how to mend it, duplicates, speed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ..lora.lineage import lineage
from ..wording import counted, shown
from .duplicates import Pair, describe
from .entries import Entry, ScanReport
from .fit_report import FitReport
from .unencoded import KIND_NAMES

MAX_LINES = 20
MAX_COPIES = 8  # names in one line
# Each is a file the user has to do something about; more than this are better mended than read.
MAX_UNENCODED = 100


@dataclass(frozen=True)
class Summary:
    """Everything the report speaks of. ``near`` maps a family to its pairs of near-duplicates; ``unencoded`` are files
    without a vector and why (:func:`.unencoded.why_not_encoded`); ``searches`` maps a large family to how its weights
    are searched."""

    scan: ScanReport
    fit: FitReport
    entries: list[Entry]
    copies: list[list[Entry]] = field(default_factory=list)
    near: dict[str, list[Pair]] = field(default_factory=dict)
    folder: str = ""
    unencoded: list[tuple[Entry, str]] = field(default_factory=list)
    searches: dict[str, str] = field(default_factory=dict)

    @cached_property
    def families(self) -> list[FamilyCount]:
        """The largest first."""
        return _family_counts(self.entries)


def size_text(number: float) -> str:
    """Bytes as people write them: ``"1.3 GB"``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1000
    return ""


def encode_report(summary: Summary) -> str:
    """The report of Encode LoRA Library."""
    sections = [
        _counts(summary),
        _families(summary),
        [*_encoders(summary.fit), *(f"Search of weights for {name}: {how}" for name, how in summary.searches.items())],
        _unencoded(summary),
        _problems(summary),
        _markup(summary),
        _duplicates(summary),
        [f"Index: {summary.folder}"],
    ]
    return shown("\n\n".join("\n".join(section) for section in sections if section))


def changes_of(scan: ScanReport) -> dict[str, int]:
    """What became of the files, in words → how many; without those of which there are none."""
    counts = {
        "new": scan.added, "changed": scan.changed, "moved": scan.renamed, "back again": scan.returned,
        "unchanged": scan.unchanged, "missing now, kept in the index": scan.missing,
    }  # fmt: skip
    return {word: count for word, count in counts.items() if count}


def _counts(summary: Summary) -> list[str]:
    scan, changes = summary.scan, [f"{count} {word}" for word, count in changes_of(summary.scan).items()]
    files = f"{counted(scan.files, 'LoRA file')}: {', '.join(changes)}."
    lines = [files if changes else "No LoRA file in this folder, or none that name_filter lets through."]
    if scan.bytes_read:
        speed = f"{size_text(scan.bytes_read)} in {scan.seconds:.1f} s ({size_text(scan.bytes_per_second)}/s)"
        lines.append(f"Read {speed}; {scan.encoded} encoded, {scan.shared} known by their content already.")
    lines += weights_line(summary.entries)
    lines += [f"Folder not there now (a drive offline?), its files are kept: {root}" for root in scan.offline]
    return lines


def weights_line(entries: Sequence[Entry]) -> list[str]:
    """One line while some files are known by their headers alone."""
    waiting = sum(entry.by_header for entry in entries)
    if not waiting:
        return []
    return [
        f"{len(entries) - waiting:,} of {len(entries):,} files are read by their weights so far; the others are found"
        " by their words, and are read in the background while no prompt runs."
    ]


@dataclass(frozen=True)
class FamilyCount:
    """LoRAs of one base model: how many, how many of them have words, or lack layers; ``lines``: by checkpoint line,
    empty where no file says one."""

    family: str
    count: int
    worded: int
    partial: int
    lines: dict[str, int]


def _family_counts(entries: Sequence[Entry]) -> list[FamilyCount]:
    usable = [entry for entry in entries if entry.kind in ("lora", "text_encoder_only", "control", "all_zero")]
    counts, found = Counter(entry.family for entry in usable), []
    for family, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        mine = [entry for entry in usable if entry.family == family]
        worded = sum(bool(entry.text.title or entry.text.tags or entry.text.triggers) for entry in mine)
        partial = sum(entry.partial is not None for entry in mine)
        found.append(FamilyCount(family, count, worded, partial, _lineages(family, mine)))
    return found


def _families(summary: Summary) -> list[str]:
    lines = []
    for one in summary.families:
        extra = f", {one.partial} partial" if one.partial else ""
        made_for = ", ".join(f"{name}: {count}" for name, count in one.lines.items())
        made_for = made_for and f", made for {made_for}"
        lines.append(f"- {one.family}: {one.count} ({one.worded} with words that describe them{extra}){made_for}")
    return ["By base model:", *lines] if lines else []


def _lineages(family: str, entries: list[Entry]) -> dict[str, int]:
    """By what sidecars, headers and names say; empty where none of the files says it."""
    names = (lineage(family, {}, entry.base_model, entry.name).name or "not said" for entry in entries)
    counts = Counter(names)
    if not counts.keys() - {"not said"}:
        return {}
    return dict(sorted(counts.items(), key=lambda item: (item[0] == "not said", -item[1], item[0])))


def _encoders(fit: FitReport) -> list[str]:
    return [f"Weights encoder {line}" for line in fit.lines()] if fit.families else []


def _unencoded(summary: Summary) -> list[str]:
    lines = [f"- {shown(entry.name)}: {reason}" for entry, reason in summary.unencoded]
    return _bounded(f"{counted(len(lines), 'file')} whose weights are not encoded:", lines, MAX_UNENCODED)


def file_notes(summary: Summary) -> list[tuple[str, str]]:
    """(name, note) of what else is to be said of files (why one is not encoded is said apart), and of folders that
    cannot be read."""
    said = {entry.name: reason for entry, reason in summary.unencoded}
    found = []
    for entry in summary.entries:
        notes = list(entry.problems)
        if entry.kind in KIND_NAMES and not notes and entry.name not in said:
            notes = [KIND_NAMES[entry.kind]]
        found += [(entry.name, note) for note in notes if note not in said.get(entry.name, "")]
    names = {entry.name for entry in summary.entries}
    return found + [(name, problem) for name, problem in summary.scan.problems if name not in names]


def _problems(summary: Summary) -> list[str]:
    lines = [f"- {shown(name)}: {note}" for name, note in file_notes(summary)]
    return _bounded(f"{counted(len(lines), 'note')} on files:", lines)


def _markup(summary: Summary) -> list[str]:
    """Menus of ComfyUI's front end take names for markup, those of stock LoRA loaders too."""
    names = sorted(entry.name for entry in summary.entries if "<" in entry.name)
    if not names:
        return []
    head = (
        f"{counted(len(names), 'name')} with <, which menus of ComfyUI may take for markup and run: rename the files."
    )
    return _bounded(head, [f"- {shown(name)}" for name in names])


def _duplicates(summary: Summary) -> list[str]:
    names = {entry.hash: entry.name for entry in reversed(summary.entries)}
    lines = [f"- {_equal([shown(entry.name) for entry in group])}: identical files" for group in summary.copies]
    for pairs in summary.near.values():
        lines += [f"- {_name(names, p.hash_a)} ~ {_name(names, p.hash_b)}: {describe(p)}" for p in pairs]
    return _bounded(f"{counted(len(lines), 'duplicate')}:", lines)


def _equal(names: list[str]) -> str:
    more = [f"{len(names) - MAX_COPIES} more"] if len(names) > MAX_COPIES else []
    return " = ".join([*names[:MAX_COPIES], *more])


def _name(names: dict[str, str], digest: str) -> str:
    return shown(names.get(digest, digest[:10]))


def _bounded(title: str, lines: list[str], most: int = MAX_LINES) -> list[str]:
    more = [f"- … and {len(lines) - most} more"] if len(lines) > most else []
    return [title, *lines[:most], *more] if lines else []
