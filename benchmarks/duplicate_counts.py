"""What Find LoRAs Like This said, against the truth about every two files: right, said, found and wanted, a kind."""

from __future__ import annotations

from collections import Counter
from typing import Any

from autolora_core.library.relations import VERSIONS
from autolora_core.library.shelf import MergeFound
from autolora_core.library.similar import Found
from benchmarks.duplicate_files import Origin, truth

KINDS = ("resaved", "rescaled", "refactorised", "truncated", "part", "epoch")
Figures, Rows = dict[str, float], list[dict[str, Any]]


def merge_is_true(found: MergeFound, origin: dict[str, Origin]) -> bool:
    """Whether the file was merged from those two runs, with those weights (to 5 %)."""
    whole, first, second = (origin[digest] for digest in (found.whole, found.first, found.second))
    if first.parts or second.parts or first.part or second.part or first.cut or second.cut:
        return False
    said = {run: weight for run, weight in ((first.run, found.merge.weights[0] * first.scale),
                                            (second.run, found.merge.weights[1] * second.scale))}  # fmt: skip
    return dict(whole.parts).keys() == said.keys() and all(
        abs(said[run] - weight) <= 0.05 * abs(weight) for run, weight in whole.parts
    )


class Count:
    """Hits that were right, hits in all, and files that should have been found, a kind."""

    def __init__(self) -> None:
        self.right, self.said, self.found, self.wanted = Counter(), Counter(), Counter(), Counter()
        self.wrong: Rows = []

    def pair(self, kind: str, a: Origin, b: Origin, cosine: float) -> None:
        """One relation that was reported."""
        self.said[kind] += 1
        if kind in truth(a, b):
            self.right[kind] += 1
        else:
            self.wrong.append({"kind": "wrong", "said": kind, "truth": sorted(truth(a, b)), "cosine": round(cosine, 4),
                               "a": describe(a), "b": describe(b)})  # fmt: skip

    def figures(self, head: str) -> Figures:
        """Precision and recall of every kind that there is, and of all together; names begin with ``head``."""
        out = {}
        for kind in (*KINDS, "merged"):
            if self.wanted[kind]:
                out[f"{head}{kind}_recall"] = self.found[kind] / self.wanted[kind]
            if self.said[kind]:
                out[f"{head}{kind}_precision"] = self.right[kind] / self.said[kind]
        said, wanted = sum(self.said.values()), sum(self.wanted.values())
        return out | {f"{head}precision": sum(self.right.values()) / max(said, 1),
                      f"{head}recall": sum(self.found.values()) / max(wanted, 1)}  # fmt: skip

    def rows(self, head: str) -> Rows:
        """The counts as a table, and the first forty mistakes."""
        table = [
            {"kind": head, "relation": kind, "wanted": self.wanted[kind], "found": self.found[kind],
             "said": self.said[kind], "right": self.right[kind]}
            for kind in (*KINDS, "merged")
        ]  # fmt: skip
        return [*table, *({**row, "where": head} for row in self.wrong[:40])]


def describe(origin: Origin) -> str:
    """A file in a row of the results: where it comes from and what was done to it."""
    parts = "+".join(f"{weight:g}·{run}" for run, weight in origin.parts)
    extra = [f"{name}={getattr(origin, name)}" for name in ("step", "scale", "form", "cut", "part", "how")
             if getattr(origin, name) not in (0, 1.0, "own", "")]  # fmt: skip
    return " ".join([origin.kind, parts or origin.run, *extra])


def judge(
    count: Count, found: Found, mine: Origin, origin: dict[str, Origin], factors: list[float], weights: list[float]
) -> None:
    """Count what one search found against the truth about the file asked for; errors of factors and merge weights are
    appended to ``factors`` and ``weights``."""
    expected = mine.kind
    count.wanted[expected] += 1
    got = False
    for hit in found.hits:
        theirs, kind = origin[hit.entry.hash], hit.relation.kind
        if kind in VERSIONS and kind != "same_file":
            count.pair(kind, mine, theirs, hit.cosine)
            source = theirs.run == mine.run and (theirs.kind == "original" or mine.kind == "epoch")
            got |= source and kind == expected
            if kind == expected == "rescaled" and theirs.kind == "original":
                factors.append(abs(hit.relation.measured.factor / mine.scale - 1))
    for one in found.merges:
        count.said["merged"] += 1
        if merge_is_true(one, origin):
            count.right["merged"] += 1
            if one.whole == found.hash:
                got |= expected == "merged"
                said = dict(zip((origin[one.first].run, origin[one.second].run), one.merge.weights, strict=True))
                scale = {origin[d].run: origin[d].scale for d in (one.first, one.second)}
                weights += [abs(said[run] * scale[run] / weight - 1) for run, weight in mine.parts]
        else:
            parts = [describe(origin[d]) for d in (one.whole, one.first, one.second)]
            count.wrong.append(
                {"kind": "wrong", "said": f"merged {one.merge}", "a": parts[0], "b": " + ".join(parts[1:])}
            )
    count.found[expected] += got
