"""Training an encoder for a library that its owner captioned in part: the zoo's LoRAs as an unknown user's.

    python -m benchmarks.train_own [--share 0.3] [--minutes 10] [--most 5000]

writes `benchmarks/results/train_own.json`. The files of the large zoo (of the shipped LoRAs, where there is none) are
scanned into a fresh library, whose own words are struck out; LoRAs of a `share` of the things they show get captions
from a table. Beside the report's own figures, every LoRA of another thing is asked for by its true name with weights
alone: the report promises for those what it measured on hidden ones. Peak memory is the process's.
"""

from __future__ import annotations

import argparse
import logging
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autolora_core.encode.generic import GENERIC_PROMPTS
from autolora_core.encode.towers import default_tower
from autolora_core.library.encoders import find_encoders
from autolora_core.library.index import Library
from autolora_core.train.captions import Row
from autolora_core.train.figures import chance, figures_of, ranks_of, scores_of
from autolora_core.train.outcome import Options, Outcome
from autolora_core.train.own import train_library
from autolora_core.train.report import training_report
from benchmarks.results_file import REPO, write_results
from zoo.cache import read_json
from zoo.splits import unit

log = logging.getLogger("benchmarks.train_own")
SEED = 0


def shelf(folder: Path, most: int) -> tuple[str, dict[str, str]]:
    """Where the files lie and what each shows, by file name; the large zoo goes under names without meaning."""
    from zoo import scale_data, train_scale

    if not any(train_scale.folder().glob("*.safetensors")):
        rows = read_json(REPO / "zoo" / "loras.json")
        for row in rows[:most]:
            shutil.copyfile(REPO / "models" / "loras" / row["file"], folder / row["file"])
        return "the shipped LoRAs", {row["file"]: row["label"] for row in rows[:most]}
    labels = {}
    for row in scale_data.rows(copies=True)[:most]:
        name = f"{int(unit('train-own', row['id']) * 16**10):010x}.safetensors"
        scale_data.write_file(row["id"], folder / name)
        labels[name] = row["thing"]
    return "the large zoo", labels


def asked_by_name(
    library: Library, labels: dict[str, str], taught: set[str], encoder: Any, tower: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks (q,) of the files of things without a caption, asked for by what they show, and which files are right
    (q, n): all of the same thing."""
    vectors = library.vectors("emoji", encoder.id)
    names = {entry.hash: Path(entry.name).name for entry in library.entries("emoji")}
    shown = [labels[names[digest]] for digest in vectors.hashes]
    fresh = [i for i, digest in enumerate(vectors.hashes) if names[digest] not in taught]
    fresh = [i for i in fresh if shown[i] not in {labels[name] for name in taught}]
    right = np.array([[shown[j] == shown[i] for j in range(len(shown))] for i in fresh])
    queries = encoder.query(tower.encode([shown[i] for i in fresh]))
    return ranks_of(scores_of(vectors.matrix, queries, encoder.query(tower.encode(GENERIC_PROMPTS))), right), right


def measured(prefix: str, ranks: np.ndarray) -> dict[str, float]:
    found = figures_of(ranks)
    return {f"{prefix}_recall_at_1": found.recall_at_1, f"{prefix}_recall_at_5": found.recall_at_5,
            f"{prefix}_mrr": found.mrr}  # fmt: skip


def run(share: float, minutes: float, most: int) -> tuple[dict[str, float], list[dict[str, Any]], str]:
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        (base / "loras").mkdir()
        source, labels = shelf(base / "loras", most)
        taught = {name for name in labels if unit("captioned", labels[name]) < share}
        rows = tuple(Row(i, name, (labels[name],)) for i, name in enumerate(sorted(taught), 1))
        tower = default_tower([REPO / "models"])
        with Library.open(base / "mine") as library:
            began = time.monotonic()
            library.scan({"loras": base / "loras"})
            scanned = time.monotonic() - began
            # Their makers' own words would be captions too: here only the table speaks.
            library.store.db.execute("UPDATE files SET text = '{}'")
            began = time.monotonic()
            [outcome], _ = train_library(library, tower, base / "models", ["emoji"], Options(rows, minutes=minutes))
            trained = time.monotonic() - began
            report = training_report([outcome])
            figures = summary(outcome) | {"scan_seconds": scanned, "train_seconds": trained, "minutes_allowed": minutes}
            table = [{"method": name, **found.to_json()} for name, found in outcome.figures.items()]
            if outcome.path:
                library.fit(tower, shipped=find_encoders([base / "models"], "mine"))
                encoder = library.encoder("emoji")
                ranks, right = asked_by_name(library, labels, taught, encoder, library.text_tower(tower))
                figures |= measured("uncaptioned", ranks)
                lots = chance(right.sum(axis=1), right.shape[1])
                figures |= {"uncaptioned_asks": len(ranks), "uncaptioned_chance_recall_at_5": lots[1]}
            figures["peak_memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return figures, [{"source": source, "kind": outcome.kind, "epochs": outcome.epochs}, *table], report


def summary(outcome: Outcome) -> dict[str, float]:
    figures: dict[str, float] = {"files": outcome.files, "captioned": outcome.captioned, "distinct": outcome.distinct}
    figures |= {"knows": float(outcome.verdict.knows), "chance_recall_at_1": outcome.chance[0],
                "chance_recall_at_5": outcome.chance[1], "chance_mrr": outcome.chance[2]}  # fmt: skip
    for name, found in outcome.figures.items():
        figures |= {f"{name}_recall_at_1": found.recall_at_1, f"{name}_recall_at_5": found.recall_at_5,
                    f"{name}_mrr": found.mrr, f"{name}_mrr_low": found.mrr_interval[0]}  # fmt: skip
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--most", type=int, default=5000)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    figures, rows, report = run(args.share, args.minutes, args.most)
    log.info("%s", report)
    command = f"python -m benchmarks.train_own --share {args.share:g} --minutes {args.minutes:g} --most {args.most}"
    log.info("%s", write_results("train_own", command, SEED, figures, rows))


if __name__ == "__main__":
    main()
