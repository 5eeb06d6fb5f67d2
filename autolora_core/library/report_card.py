"""What a card shows of a scan: the report's facts as plain JSON, for the page and for the API's history."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from ..wording import last_name
from .report import Summary, changes_of, file_notes, size_text

FORMAT = "autolora-cards/1"
# ComfyUI keeps what a node shows for every prompt of its history, so a card is some tens of kilobytes at most: lines
# of files, and kinds of problems. What more there is is counted.
MOST, MOST_KINDS = 200, 20
MAX_KIND, MAX_READ = 120, 400  # letters of a kind, and those of a problem that it is told by
ALL_OF_THEM = (
    "The library panel in ComfyUI's sidebar (LoRAs, Unreadable) lists them all; scripts ask /autolora/problems."
)
OTHERS = "other"
# What differs from file to file in a sentence about it: what is quoted or in brackets, and words that hold a digit or
# are names of layers and files.
_QUOTED = re.compile(r"“[^”]*”|(?<!\w)'[^']*'(?!\w)|\"[^\"]*\"|\([^()]*\)")
_OF_ONE_FILE = re.compile(r"\S*(?:\d|\w[._/\\]\w)\S*")


def encode_card(summary: Summary) -> dict[str, Any]:
    """``problems`` holds first the files whose weights are not encoded, then the other notes, the first ``MOST`` of
    them; ``problem_kinds`` counts all of them; ``problems_where`` says where the others are, empty when none is left
    out."""
    scan = summary.scan
    apart = [{"name": entry.name, "why": reason, "encoded": False} for entry, reason in summary.unencoded]
    apart += [{"name": name, "why": note, "encoded": True} for name, note in file_notes(summary)]
    return {
        "format": FORMAT,
        "kind": "encode",
        "library": last_name(summary.folder),
        "files": scan.files,
        "changes": changes_of(scan),
        "families": [vars(one) for one in summary.families],
        "problems": apart[:MOST],
        "problems_left_out": max(0, len(apart) - MOST),
        "problem_kinds": problem_kinds(one["why"] for one in apart),
        "problems_where": ALL_OF_THEM if len(apart) > MOST else "",
        "duplicates": {
            "identical": sum(len(group) - 1 for group in summary.copies),
            "near": sum(len(pairs) for pairs in summary.near.values()),
        },
        "waiting": sum(entry.by_header for entry in summary.entries),
        "offline": list(scan.offline),
        "speed": {
            "read": size_text(scan.bytes_read),
            "seconds": round(scan.seconds, 1),
            "per_second": size_text(scan.bytes_per_second),
            "encoded": scan.encoded,
        }
        if scan.bytes_read
        else None,
    }


def problem_kinds(problems: Iterable[str]) -> list[dict[str, Any]]:
    """``{"why", "count"}`` of each kind, the commonest first; what is beyond ``MOST_KINDS`` kinds is one of its own."""
    counts = Counter(map(kind_of, problems))
    told = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    kinds = told if len(told) <= MOST_KINDS else told[: MOST_KINDS - 1]
    rest = sum(counts.values()) - sum(count for _, count in kinds)
    return [{"why": why, "count": count} for why, count in [*kinds, *([(OTHERS, rest)] if rest else [])]]


def kind_of(problem: str) -> str:
    """The sentence without what is of one file alone, and without how to mend it: equal for problems of one kind."""
    what = problem[:MAX_READ].partition(" What to do: ")[0]
    for pattern in (_QUOTED, _QUOTED, _OF_ONE_FILE):  # twice: brackets inside brackets
        what = pattern.sub("…", what)
    what = re.sub(r"…(?:[\s,:;.]*…)+", "…", what).strip(" .")
    return what if len(what) <= MAX_KIND else what[: MAX_KIND - 1] + "…"
