"""What a card shows of a scan: the report's facts as plain JSON, for the page and for the API's history."""

from __future__ import annotations

from typing import Any

from ..wording import last_name
from .report import Summary, changes_of, file_notes, size_text

FORMAT = "autolora-cards/1"
MOST = 10_000  # lines of a list; what more there is is counted


def encode_card(summary: Summary) -> dict[str, Any]:
    """``problems`` holds first the files whose weights are not encoded, then the other notes."""
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
