"""Text to LoRA from weights alone, zero-shot: our encoder and scores beside controls and baselines.

    python -m benchmarks.retrieval [--small] [--epochs 40] [--curves] [--ship]

writes ``benchmarks/results/retrieval.json`` (``--small``: into the cache, and no plots) from the pack of
``python -m zoo.features_pack``; the zoo itself is not needed. Subjects, styles and creators of the test part were seen
by nothing that is learnt; the candidates are all LoRAs of the test and training parts. Everything is chosen on the
validation part. ``--curves`` adds recall against pool size and number of training LoRAs, with plots in ``docs/images``;
``--ship`` puts the encoder into ``models/``.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from autolora_core.encode.set_encoder import MODULES, SetEncoder
from benchmarks.results_file import REPO, RESULTS, write_results
from benchmarks.retrieval_choose import Chooser
from benchmarks.retrieval_claims import (
    CHOSEN,
    WITNESSED,
    add_chosen,
    none_fits,
    none_fits_plain,
    plain_picks,
    set_figures,
)
from benchmarks.retrieval_curves import pool_curve, training_curve
from benchmarks.retrieval_measure import Asked, interval, ranks, shares
from benchmarks.retrieval_metadata import metadata_figures
from benchmarks.retrieval_plots import plot_curves, plot_methods
from benchmarks.retrieval_study import (
    DRAWN,
    DRAWN_LEARNT,
    ENCODER,
    FILE_ONLY,
    OURS,
    PROFILE,
    RESPONSE,
    RESPONSE_NODE,
    RESPONSE_TEXT,
    Study,
    add_published,
    add_untrained_and_baselines,
    begin,
    drawn_texts,
    part_of,
    phrases_needed,
)
from benchmarks.retrieval_texts import HEADLINE
from benchmarks.zoo_needed import zoo_needed
from zoo.cache import zoo_dir
from zoo.encoder_data import GROUPS
from zoo.features_pack import Pack, read
from zoo.text_side import TextReader, Texts
from zoo.train_encoder import texts_needed, train

log = logging.getLogger("benchmarks.retrieval")
SEED = 0
RIDGE = "ridge on our tokens, all"
CANDIDATES = (
    (RESPONSE, ENCODER), (RESPONSE, PROFILE, DRAWN), (RESPONSE, PROFILE, DRAWN, DRAWN_LEARNT),
    (RESPONSE, ENCODER, PROFILE, DRAWN, DRAWN_LEARNT), (RESPONSE, ENCODER, PROFILE, RIDGE, DRAWN, DRAWN_LEARNT, "draw"),
)  # fmt: skip
REPORTED = (
    "zs_name", "zs_sentence", "zs_paraphrase", "zs_keywords", "zs_all_captions", "zs_trigger_only", "zs_style",
    "zs_style_all_captions",
)  # fmt: skip


def cells(study: Study) -> dict[str, np.ndarray]:
    """Groups of test prompts that are reported apart."""
    asked = study.asked["test"]
    named, headline = ~asked.trigger_only, asked.of(*HEADLINE)
    return {
        "zs": headline & named,
        "zs_trigger_only": asked.of("name", *HEADLINE) & asked.trigger_only,
        "zs_all_captions": headline,
        "zs_name": asked.of("name") & named,
        "zs_sentence": asked.of("sentence") & named,
        "zs_paraphrase": asked.of("paraphrase") & named,
        "zs_keywords": asked.of("keywords") & named,
        "zs_style": asked.of("style") & named,
        "zs_style_all_captions": asked.of("style"),
    }


def method_row(study: Study, name: str, groups: dict[str, np.ndarray]) -> dict[str, Any]:
    """Recall of one method in every cell, with a bootstrap interval of the main one."""
    found = ranks(study.asking(name), study.asked["test"])
    row: dict[str, Any] = {"method": name}
    for cell, which in groups.items():
        row |= {f"{cell}_{k}": round(v, 4) for k, v in shares(found[which]).items() if which.any()}
    which = groups["zs"]
    if which.any():
        subjects = [p.subject for p, keep in zip(study.asked["test"].prompts, which, strict=True) if keep]
        row["zs_recall_at_5_interval"] = [round(x, 4) for x in interval(found[which] < 5, subjects)]
        row["zs_recall_at_1_interval"] = [round(x, 4) for x in interval(found[which] < 1, subjects)]
    return row


def choose_ours(study: Study) -> str:
    """The method or combination that is best on validation becomes "ours"; returns its parts."""
    asked = study.asked["validation"]
    which = asked.of("name", *HEADLINE, "style")
    best = (-1.0, "", RESPONSE)
    alone = [(name,) for name in (RESPONSE, CHOSEN, WITNESSED) if name == RESPONSE or (name, "test") in study.prompted]
    for number, names in enumerate((*alone, *CANDIDATES)):
        name = names[0] if len(names) == 1 else f"combination {number}"
        if len(names) > 1:
            study.combine(names, name)
        found = study.recall(name, "validation", which)
        value = found["recall_at_5"] + found["recall_at_1"]
        log.info("combination of %s: validation %s", names, found)
        if value > best[0]:
            best = (value, " + ".join(names), name)
    if best[2] in study.scores:
        study.scores[OURS] = study.scores[best[2]]
    else:
        study.prompted |= {(OURS, part): study.asking(best[2], part) for part in study.asked}
    return best[1]


def chosen_figures(study: Study, parts: str, choosers: dict[tuple[str, str], Chooser]) -> dict[str, float]:
    """Sets and "none fits" of ours, and under ``_plain`` names of the response by its largest scores."""
    plain = plain_picks(study, RESPONSE, study.asked["test"].pool)
    chooser = choosers.get((parts, "test"))
    mine = set_figures(study, "test", (lambda p: chooser.picks(p.text)) if chooser else plain)
    before = set_figures(study, "test", plain) | none_fits_plain(study, RESPONSE)
    return mine | none_fits(study, OURS) | {f"{name}_plain": value for name, value in before.items()}


def figures_of(study: Study, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The figures that the README quotes; ``_plain``: of the response as it was read before."""
    by = {row["method"]: row for row in rows}
    ours = by[OURS]
    out = {f"zs_{k}": ours[f"zs_{k}"] for k in ("recall_at_1", "recall_at_5", "mrr")}
    out |= {f"zs_{k}_plain": by[RESPONSE][f"zs_{k}"] for k in ("recall_at_1", "recall_at_5", "mrr")}
    out["zs_recall_at_5_no_drawing"] = by[CHOSEN]["zs_recall_at_5"]
    out["zs_recall_at_1_no_drawing"] = by[CHOSEN]["zs_recall_at_1"]
    for cell in REPORTED:
        key = f"{cell}_recall_at_5"
        if key in ours:
            out[key], out[f"{key}_plain"] = ours[key], by[RESPONSE][key]
    if "zs_trigger_only_recall_at_5" in out:
        out["zs_recall_at_5_trigger_only"] = out.pop("zs_trigger_only_recall_at_5")
    out["zs_recall_at_5_low"], out["zs_recall_at_5_high"] = ours["zs_recall_at_5_interval"]
    out["best_baseline_zs_recall_at_5"] = max(by[name]["zs_recall_at_5"] for name in study.baselines)
    out["autolora_zs_recall_at_5"] = by["AutoLoRA"]["zs_recall_at_5"]
    out["control_zs_recall_at_5"] = max(by[name]["zs_recall_at_5"] for name in study.controls)
    out["response_zs_recall_at_5"] = by[RESPONSE]["zs_recall_at_5"]
    out["response_text_side_zs_recall_at_5"] = by[RESPONSE_TEXT]["zs_recall_at_5"]
    out["retrieve_node_zs_recall_at_5"] = by[RESPONSE_NODE]["zs_recall_at_5"]
    out["encoder_zs_recall_at_5"] = by[ENCODER]["zs_recall_at_5"]
    out["encoder_file_only_zs_recall_at_5"] = by[FILE_ONLY]["zs_recall_at_5"]
    return out | metadata_figures(study)


def sizes(pack: Pack, asked: Asked) -> dict[str, float]:
    part, kind = pack.column("part"), pack.column("caption_kind")
    things = {name: {(r["subject"], r["style"]) for r in pack.rows if r["part"] == name} for name in set(part)}
    return {
        "loras": float(len(pack)), "pool": float(asked.pool.sum()), "test_prompts": float(len(asked.prompts)),
        "test_subjects": float(len({p.subject for p in asked.prompts if p.subject})),
        "test_styles": float(len({p.style for p in asked.prompts if p.kind == "style"})),
        "train_loras": float((part == "train").sum()), "train_things": float(len(things.get("train", ()))),
        "creators": float(len({r["creator"] for r in pack.rows})),
        "trigger_only_loras": float((kind == "trigger").sum()),
    }  # fmt: skip


def run(name: str, epochs: int, every: int = 1) -> tuple[Study, SetEncoder, str, dict[str, float]]:
    pack = read(name)
    if every > 1:
        pack = part_of(pack, np.arange(len(pack)) % every == 0)
    texts = texts_of_run(pack)
    study = begin(pack, texts)
    checkpoint = zoo_dir("encoder") / f"{name}-{pack.info['base']}-{len(pack)}-{epochs}.safetensors"
    encoder, _ = train(pack, texts, epochs, checkpoint)
    study.add_encoder(ENCODER, encoder, GROUPS)
    study.add_encoder(FILE_ONLY, encoder, (MODULES,))
    add_untrained_and_baselines(study)
    add_published(study, epochs)
    choosers = add_chosen(study)
    parts = choose_ours(study)
    return study, encoder, parts, chosen_figures(study, parts, choosers)


def texts_of_run(pack: Pack) -> Texts:
    """Everything that is read; prompts, their phrases and what the training part shows are drawn as well."""
    return TextReader(pack).read(phrases_needed(pack, texts_needed), drawn_texts(pack))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="the shipped LoRAs only: a first look")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every Nth LoRA only: nothing is published")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--curves", action="store_true")
    parser.add_argument("--ship", action="store_true", help="write models/emoji_encoder.safetensors")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    began, name = time.time(), "retrieval_small" if args.small else "retrieval"
    published = not args.small and args.every == 1
    study, encoder, parts, figures = run(name, args.epochs, args.every)
    groups = cells(study)
    methods = [OURS, WITNESSED, CHOSEN, RESPONSE, RESPONSE_TEXT, RESPONSE_NODE, DRAWN, DRAWN_LEARNT, PROFILE, "draw",
               *study.encoders, RIDGE, "ridge on our tokens, file only", *study.baselines, *study.controls]  # fmt: skip
    rows = [method_row(study, method, groups) for method in methods]
    figures |= figures_of(study, rows) | sizes(study.pack, study.asked["test"])
    rows.append({"method": "parts of ours", "names": parts})
    if published:
        plot_methods(rows, name)
        curves = pool_curve(study) + (training_curve(study, args.epochs) if args.curves else [])
        rows += curves
        plot_curves(curves, name)
    figures["seconds"] = time.time() - began
    kept = {k: v for k, v in figures.items() if np.isfinite(v)}
    folder = RESULTS if published else zoo_dir("retrieval")
    write_results(name, " ".join(["python -m benchmarks.retrieval", *sys.argv[1:]]), SEED, kept, rows, folder)
    if args.ship:
        held_out = next(row for row in rows if row["method"] == FILE_ONLY)
        figures = {**encoder.figures, "held_out_recall_at_1": held_out["zs_recall_at_1"],
                   "held_out_recall_at_5": held_out["zs_recall_at_5"]}  # fmt: skip
        path = replace(encoder, figures=figures).save(REPO / "models" / "emoji_encoder.safetensors")
        path.chmod(0o644)
        log.info("%s: %.1f MB", path, path.stat().st_size / 2**20)
    for key, value in sorted(kept.items()):
        log.info("%s %.4f", key, value)


if __name__ == "__main__":
    with zoo_needed("`python -m zoo build`, then `python -m zoo.features_pack --small`"):
        main()
