"""Does the retriever find the shipped LoRAs, and does it know when none fits?

    python -m benchmarks.library

writes `benchmarks/results/library.json`. The shelf is `models/loras` as shipped: most files have a meaningless name
and no metadata. What each one really shows is in `zoo/loras.json`, which the retriever never reads. A prompt asks for
one LoRA's subject or style in plain words; right is any file that shows it. Files are counted apart by whether they
say what they are (`described`) or not (`bare`); a bare file can only be found by its weights. The weights part is
fitted on the described files alone, so every bare one shows something it never saw, unless a described second edition
exists (those are counted apart, as `sibling`).

Figures whose names begin with `response_` are those of the same prompts with the base model at hand (`--no-response`
leaves them out): the LoRAs are asked through it what they do to the words. `askable` bare files are those that change a
layer that a prompt reaches; the others have nothing to answer with.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from autolora_core.encode.towers import default_tower
from autolora_core.library.answers import StateSource
from autolora_core.library.index import Library
from autolora_core.retrieve.retrieve import retrieve
from benchmarks.demo_states import DemoStates
from benchmarks.results_file import REPO, write_results
from zoo.cache import read_json
from zoo.captions import STYLE_NAMES, plain_caption, with_article
from zoo.splits import Splits, unit

SEED, STRANGERS, KNOWN_SUBJECT = 0, 60, "otter"
SHELF = REPO / "models" / "loras"
BASE = REPO / "models" / "emoji_mmdit.safetensors"


def asked_for(row: dict[str, Any]) -> str:
    """The prompt that should find this file."""
    if row["subject"]:
        return plain_caption(row["subject"])
    return f"{with_article(KNOWN_SUBJECT)} in {STYLE_NAMES[row['style']]} style"


def strangers(rows: Sequence[dict[str, Any]], count: int = STRANGERS) -> list[str]:
    """Prompts for subjects that no file shows, by hash; words that a file's label shares are left out."""
    labels = {w for r in rows for w in r["label"].lower().replace("-", " ").split()}
    shown = {r["subject"] for r in rows}
    every = sorted(Splits.load().table["subjects"], key=lambda s: unit("stranger", s))
    picked = [s for s in every if s not in shown and not labels & set(s.split("-"))]
    return [plain_caption(s) for s in picked[:count]]


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Probability that a positive scores above a negative, ties half."""
    p, n = np.array(positive)[:, None], np.array(negative)[None]
    return float((p > n).mean() + 0.5 * (p == n).mean())


def ranked(library: Library, prompt: str, **options: Any) -> tuple[list[str], list[str], float]:
    """Names picked, names of picks and near misses in order of score, and the best score."""
    found = retrieve(library, prompt, family="emoji", **options)
    everyone = sorted([*found.picks, *found.misses], key=lambda p: -p.score)
    return [p.name for p in found.picks], [p.name for p in everyone], max((p.score for p in everyone), default=0.0)


def measure(
    library: Library, rows: Sequence[dict[str, Any]], base: StateSource | None = None
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    tower = default_tower()
    files = {entry.name.replace("\\", "/"): entry for entry in library.entries("emoji")}
    same = defaultdict(set)
    for row in rows:
        same[row["label"]].add(row["file"])
    described = {name for name, entry in files.items() if entry.text.title or entry.text.tags or entry.text.triggers}
    out, times, best_right = [], [], []
    for row in rows:
        kind = "described" if row["file"] in described else "bare"
        if kind == "bare" and same[row["label"]] & described:
            kind = "sibling"  # a described file of the same thing exists
        began = time.perf_counter()
        picks, near, best = ranked(library, asked_for(row), tower=tower, top_k=3, base=base)
        times.append(time.perf_counter() - began)
        right = same[row["label"]]
        best_right.append(best)
        out.append(
            {
                "file": row["file"], "label": row["label"], "kind": kind, "prompt": asked_for(row),
                "picked": bool(right & set(picks)), "picks": picks, "wrong_picks": len(set(picks) - right),
                "top1": bool(near) and near[0] in right, "top5": bool(right & set(near[:5])),
            }
        )  # fmt: skip
    noise = [ranked(library, prompt, tower=tower, top_k=3, base=base) for prompt in strangers(rows)]
    figures = {
        f"{kind}_{what}": share(out, kind, what) for kind in ("described", "bare") for what in ("picked", "top5")
    }
    figures |= {
        "files": float(len(rows)),
        "described_files": float(sum(r["kind"] == "described" for r in out)),
        "bare_files": float(sum(r["kind"] == "bare" for r in out)),
        "wrong_picks_a_prompt": float(np.mean([r["wrong_picks"] for r in out])),
        "none_false_pick_share": float(np.mean([bool(picks) for picks, _, _ in noise])),
        "none_auroc": auroc(best_right, [best for _, _, best in noise]),
        "query_ms_median": 1000 * float(np.median(times)),
    }
    return figures, out


def share(rows: Sequence[dict[str, Any]], kind: str, what: str) -> float:
    return float(np.mean([r[what] for r in rows if r["kind"] == kind]))


def measure_response(library: Library, rows: Sequence[dict[str, Any]]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The same prompts with the base at hand. The first one is asked of a base that the library never met."""
    base = DemoStates(BASE)
    began = time.perf_counter()
    ranked(library, KNOWN_SUBJECT, tower=default_tower(), base=base)
    first = time.perf_counter() - began
    figures, out = measure(library, rows, base)
    figures = {name: value for name, value in figures.items() if not name.endswith("files")}
    table = library.responses("emoji")
    able = {entry.name.replace("\\", "/") for entry in library.entries("emoji") if entry.hash in table.hashes}
    askable = [row for row in out if row["file"] in able]
    figures |= {f"bare_askable_{what}": share(askable, "bare", what) for what in ("picked", "top1", "top5")}
    figures |= {
        "bare_top1": share(out, "bare", "top1"),
        "bare_askable_files": float(sum(row["kind"] == "bare" for row in askable)),
        "first_prompt_seconds": first,
        "bytes_a_file": float(table.nbytes / max(len(table), 1)),
    }
    return {f"response_{name}": value for name, value in figures.items()}, out


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--no-response", action="store_true", help="leave out the figures that need the base model")
    options = parser.parse_args()
    rows = read_json(REPO / "zoo" / "loras.json")
    with tempfile.TemporaryDirectory() as folder, Library.open(folder) as library:
        began = time.perf_counter()
        library.scan({"loras": str(SHELF)})
        scanned = time.perf_counter()
        library.fit(default_tower())
        figures, out = measure(library, rows)
        figures |= {"scan_seconds": scanned - began}
        if not options.no_response:
            asked, again = measure_response(library, rows)
            figures |= asked
            for row, other in zip(out, again, strict=True):
                row |= {f"response_{what}": other[what] for what in ("picked", "picks", "wrong_picks", "top1", "top5")}
    write_results("library", "python -m benchmarks.library", SEED, figures, out)


if __name__ == "__main__":
    main()
