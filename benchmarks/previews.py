"""What previews add to retrieval without words, on the demo world: weights, pictures, and both.

    python -m benchmarks.previews [--train 150] [--prompts 2]

writes ``benchmarks/results/previews.json``. Every trained LoRA of the large zoo (``python -m zoo.train_scale``) that
the retrieval benchmark knows is rendered on four neutral prompts, with and without it (:mod:`.previews_render`, about
ten minutes on one quiet core; a run that was stopped goes on). ``--train`` takes only so many of the training part, the
first in the plan's order, which is by hash, ``--prompts`` only the first prompts. Splits, prompts, pools and measures
are those of :mod:`.retrieval`: subjects, styles and creators of the test part were seen by nothing that is learnt,
combinations are fitted on the validation part, second copies are left out.

Pictures have two ways to words, as in the product. *Learned*: kernel ridge on directions of the training part's
differences, embedded as pooled latents (what the node does without a CLIP) or by the judge. *Judge's own words*: its
text half, the place of a user's CLIP. The judge is a picture model of this very world and was trained on real pictures
of the test subjects; the product does not ship it as a tower.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from autolora_core.encode.calibrate import fit_logistic
from autolora_core.encode.generic import GENERIC_PROMPTS
from autolora_core.encode.set_encoder import MODULES
from autolora_core.errors import AutoLoRAError
from autolora_core.previews.difference import Difference, difference, latent_vector
from autolora_core.previews.settings import NEUTRAL_PROMPTS
from autolora_core.retrieve.odds import WEIGHT_PRIOR, among, bounded
from autolora_core.train.steps import joined
from benchmarks.previews_render import Rendering, chosen, rendered, seen_by_judge
from benchmarks.results_file import write_results
from benchmarks.retrieval import texts_of_run
from benchmarks.retrieval_measure import ABSENT, Asked, Combination, by_prompt, interval, ranks, shares
from benchmarks.retrieval_methods import Learner, controls, standardised
from benchmarks.retrieval_study import ask, part_of, prompts_of
from benchmarks.retrieval_texts import HEADLINE
from benchmarks.zoo_needed import zoo_needed
from zoo.encoder_data import encoder_data
from zoo.features_pack import Pack, read
from zoo.judge import Judge
from zoo.responses_pack import read_responses
from zoo.scale_data import rows
from zoo.text_side import unit_rows, z_scores

log = logging.getLogger("benchmarks.previews")
SEED = 0
RESPONSE, FILE = "weights: what the layers answer", "weights: the file alone"
WEIGHTS = "weights: both"
CELLS = ("zs", "zs_trigger_only", "zs_all", "zs_style")
LATENT, JUDGED, NAMED = "pictures: latents, learned", "pictures: judge, learned", "pictures: judge's own words"
SUM = ", fitted sum"
SHUFFLED = "control: pictures of other LoRAs, learned"


class Study:
    """Scores of every method: name → (texts, n), and what is asked of each part."""

    def __init__(self, whole: Pack, kept: np.ndarray):
        self.pack = part_of(whole, kept)
        single = {part: [p for p in prompts_of(self.pack, part) if p.kind != "set"] for part in ("validation", "test")}
        self.asked = {part: ask(self.pack, part, prompts) for part, prompts in single.items()}
        self.texts = texts_of_run(whole)  # what the retrieval benchmark reads, too: kept in the cache
        self.generic = self.texts.rows(GENERIC_PROMPTS)
        data = encoder_data(self.pack, np.full((len(self.pack), 1), np.nan))
        self.train = data.train
        self.learner = Learner(self.pack, self.texts, data.texts, data.train)
        answers = read_responses(whole, self.texts.texts)[:, kept]
        self.scores = {RESPONSE: answers, FILE: self.z(self.learner.ridge(joined(data.groups, (MODULES,))))}
        for name, x in controls(self.pack, self.train).items():
            self.scores[name] = self.z(self.learner.ridge(standardised(x, self.train)))

    def z(self, vectors: np.ndarray) -> np.ndarray:
        cosines = self.learner.cosine(vectors)
        return z_scores(cosines, cosines[self.generic])

    def asking(self, name: str, part: str) -> np.ndarray:
        return by_prompt(self.scores[name], self.asked[part], self.texts)

    def add_up(self, names: Sequence[str], out: str) -> None:
        """As Retrieve adds its parts up: each a probability of its own, bounded by how often it is right on the
        validation part, and p = 1 − Π(1 − p_part)."""
        miss = np.prod([1 - np.nan_to_num(self._probability(name)) for name in names], axis=0)
        self.scores[out] = -np.log(miss)

    def _probability(self, name: str) -> np.ndarray:
        asked = self.asked["validation"]
        which = asked.of("name", *HEADLINE, "style")
        own, z = asked.part(which), self.asking(name, "validation")[which]
        heard = own.pool & (z > ABSENT / 2)
        model = fit_logistic(z[heard & own.right][:, None], z[heard & ~own.right][:, None], WEIGHT_PRIOR)
        right = int((ranks(z, own) < 1).sum())
        model = among(model, int(self.asked["test"].pool.sum()))
        return bounded(model.probability(self.scores[name][..., None]), (right + 1) / (len(z) + 2))

    def fit_sum(self, names: Sequence[str], out: str) -> None:
        """Log odds of the parts together, by one logistic of all z-scores, fitted on the validation part."""
        asked = self.asked["validation"]
        which = asked.of("name", *HEADLINE, "style")
        seen = {name: self.asking(name, "validation")[which] for name in names}
        fitted = Combination.fit(seen, names, asked.part(which))
        self.scores[out] = fitted.logits({name: np.nan_to_num(self.scores[name], nan=ABSENT) for name in names})


def directions(changes: np.ndarray) -> tuple[np.ndarray, list[Difference]]:
    """(n, d) of changes (n, prompts, d), and all that they say."""
    found = [difference(own) for own in changes]
    return np.stack([one.direction for one in found]).astype(np.float32), found


def add_pictures(study: Study, rendering: Rendering) -> list[Difference]:
    """Scores of every way from pictures to words; returns what the latents say of each LoRA."""
    ids = list(study.pack.column("id"))
    plain, latents = rendered(ids, rendering)
    pooled = np.stack([[latent_vector(torch.from_numpy(x)[None]) for x in own] for own in [plain, *latents]])
    seen, said = directions(pooled[1:] - pooled[0])
    study.scores[LATENT] = study.z(study.learner.ridge(seen))
    strangers = np.random.default_rng(SEED).permutation(len(seen))
    study.scores[SHUFFLED] = study.z(study.learner.ridge(seen[strangers]))
    without, found = seen_by_judge(ids, rendering)
    seen, _ = directions(found - without)
    study.scores[JUDGED] = study.z(study.learner.ridge(seen))
    words = Judge.load().text_embeddings(study.texts.texts).numpy()
    cosines = unit_rows(words - words[study.generic].mean(axis=0)) @ seen.T
    study.scores[NAMED] = z_scores(cosines, cosines[study.generic])
    return said


def cells(asked: Asked) -> dict[str, np.ndarray]:
    """Groups of prompts: subjects that some caption named, those whose LoRAs know a mere trigger, styles."""
    headline = asked.of(*HEADLINE)
    groups = {"zs": headline & ~asked.trigger_only, "zs_trigger_only": headline & asked.trigger_only,
              "zs_all": headline, "zs_style": asked.of("style")}  # fmt: skip
    return {name: which for name, which in groups.items() if which.any()}


def clusters(asked: Asked, which: np.ndarray) -> list[str]:
    return [str(p.subject or p.style) for p, keep in zip(asked.prompts, which, strict=True) if keep]


def row_of(study: Study, name: str, against: str | None) -> dict[str, Any]:
    """Recall of one method, with bootstrap intervals; ``against``: and how much more than another's, paired."""
    asked = study.asked["test"]
    found, row = ranks(study.asking(name, "test"), asked), {"method": name}
    other = None if against is None else ranks(study.asking(against, "test"), asked)
    for cell, which in cells(asked).items():
        row |= {f"{cell}_{k}": round(v, 4) for k, v in shares(found[which]).items()}
        groups = clusters(asked, which)
        for k in (1, 5):
            low, high = interval(found[which] < k, groups)
            row[f"{cell}_recall_at_{k}_interval"] = [round(low, 4), round(high, 4)]
            if other is not None:
                gain = (found[which] < k).astype(float) - (other[which] < k)
                low, high = interval(gain, groups)
                row[f"{cell}_gain_at_{k}"] = [round(x, 4) for x in (float(gain.mean()), low, high)]
    return row | ({"against": against} if against else {})


def methods_of(study: Study) -> list[tuple[str, str | None]]:
    """Every method and what it is to be compared with; they are put together here."""
    study.add_up((RESPONSE, FILE), WEIGHTS)
    study.fit_sum((RESPONSE, FILE), f"{WEIGHTS}{SUM}")
    pictures = (LATENT, JUDGED, NAMED, SHUFFLED)
    out: list[tuple[str, str | None]] = [(name, None) for name in (RESPONSE, FILE, WEIGHTS, *pictures)]
    for name in pictures:
        for base, parts in ((FILE, (FILE,)), (WEIGHTS, (RESPONSE, FILE))):
            study.add_up((*parts, name), f"{base} + {name}")
            out.append((f"{base} + {name}", base))
        study.fit_sum((RESPONSE, FILE, name), f"{WEIGHTS} + {name}{SUM}")
        out.append((f"{WEIGHTS} + {name}{SUM}", f"{WEIGHTS}{SUM}"))
    return [*out, (f"{WEIGHTS}{SUM}", None), *((name, None) for name in study.scores if name.startswith("control "))]


def figures_of(table: dict[str, dict], said: Sequence[Difference], pack: Pack) -> dict[str, float]:
    """What the README and docs quote."""
    out: dict[str, float] = {}
    names = {"answers": RESPONSE, "file": FILE, "weights": WEIGHTS, "latents": LATENT, "judge": JUDGED, "words": NAMED,
             "shuffled": SHUFFLED}  # fmt: skip
    ways = ("latents", "judge", "words", "shuffled")
    names |= {f"{w}_and_{p}": f"{names[w]} + {names[p]}" for w in ("file", "weights") for p in ways}
    for short, name in names.items():
        for key in (f"{cell}_recall_at_{k}" for cell in CELLS for k in (1, 5)):
            if name in table and key in table[name]:
                out[f"{short}_{key}"] = table[name][key]
    kinds = pack.column("kind")
    for kind in ("subject", "style"):
        mine = [one for one, k in zip(said, kinds, strict=True) if k == kind]
        out[f"{kind}_strength"] = float(np.mean([one.strength for one in mine]))
        out[f"{kind}_consistency"] = float(np.mean([one.consistency for one in mine]))
    return {name: round(value, 4) for name, value in out.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--train", type=int, help="LoRAs of the training part; default: all")
    parser.add_argument("--prompts", type=int, default=len(NEUTRAL_PROMPTS), help="how many of the neutral prompts")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    whole, trained = read("retrieval"), chosen(rows(copies=False), args.train)
    if not trained:
        raise AutoLoRAError("the large zoo is not trained", fix="run `python -m zoo.train_scale` first")
    rendering = Rendering(prompts=NEUTRAL_PROMPTS[: args.prompts])
    rendered(trained, rendering)
    seen_by_judge(trained, rendering)  # in this order: those that are asked for come first
    kept = np.isin(whole.column("id").astype(str), trained)
    study = Study(whole, kept)
    said = add_pictures(study, rendering)
    table = {name: row_of(study, name, against) for name, against in methods_of(study)}
    parts = study.pack.column("part")
    figures = figures_of(table, said, study.pack)
    figures |= {f"{part}_loras": float((parts == part).sum()) for part in ("train", "validation", "test")}
    asked = study.asked["test"]
    figures |= {f"{cell}_prompts": float(which.sum()) for cell, which in cells(asked).items()}
    figures |= {"pool": float(asked.pool.sum()), "neutral_prompts": float(args.prompts)}
    command = " ".join(["python -m benchmarks.previews", *sys.argv[1:]])
    log.info("%s", write_results("previews", command, SEED, figures, list(table.values())))
    for name, row in table.items():
        log.info("%-70s %.3f %.3f   style %.3f %.3f", name, row["zs_all_recall_at_1"], row["zs_all_recall_at_5"],
                 row["zs_style_recall_at_1"], row["zs_style_recall_at_5"])  # fmt: skip


if __name__ == "__main__":
    with zoo_needed():
        main()
