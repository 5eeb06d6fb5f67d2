"""Do the norms of a LoRA tell that it is a few-step one?

    python -m benchmarks.few_step [--pictures 24]       writes benchmarks/results/few_step.json

Few-step LoRAs of the demo base (``zoo.few_step``) against the sample of the zoo (subjects, styles and both, good and
bad): the figure of ``fusion.kinds.stream_ratio``, how much more a LoRA changes what sees the picture than what reads
the text, and how many :data:`~autolora_core.fusion.kinds.FEW_STEP_RATIO` gets right. That the few-step LoRAs are any is
shown by drawing with them: of subjects that the base knows, the share that the judge names in pictures of their few
steps without guidance, of the bare base in as many, and of the base in twenty guided ones.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor

from autolora_core.fusion.branches import Branch
from autolora_core.fusion.kinds import FEW_STEP_RATIO, stream_ratio
from benchmarks.fusion_judge import Critic, Wanted, right
from benchmarks.fusion_methods import updates
from benchmarks.fusion_network import Course, Network, Painter
from benchmarks.results_file import write_results
from zoo import scale_data
from zoo.captions import subject_name, with_article
from zoo.evaluate import load_autoencoder
from zoo.few_step import Student, path_of, students
from zoo.fusion_sets import Shelf
from zoo.judge import Judge
from zoo.raw_factors import read_raw
from zoo.splits import DEFAULT_STYLE, Splits
from zoo.train_loras import load_base

PARTS = ("train", "validation", "test")
TEACHER_STEPS, GUIDANCE, SEED = 20, 4.0, 77


def branches_of(factors: dict[str, tuple[Tensor, Tensor]]) -> list[Branch]:
    return [Branch(name, 0, down=down, up=up) for name, (down, up) in factors.items()]


def few_step_branches(one: Student) -> list[Branch]:
    return branches_of(read_raw(path_of(one)))


class Look:
    """Whether the judge names the subject in pictures of subjects that the base knows, on fixed prompts and noise."""

    def __init__(self, count: int):
        known = sorted(Splits.load().base_subjects)
        self.subjects = [known[int(i)] for i in np.random.default_rng(SEED).choice(len(known), count, replace=False)]
        self.network, self.critic = Network(load_base(), torch.bfloat16), Critic(Judge.load())
        self.decoder, self._bare = load_autoencoder()[0], {}

    def named(self, branches: list[Branch], steps: int, cfg: float = 1.0) -> float:
        """Share of pictures whose subject is named."""
        weights = self.network.weights(updates(branches, self.network.channels))
        prompts = [with_article(subject_name(subject)) for subject in self.subjects]
        images = Painter(self.network, self.decoder, steps, cfg).draw(Course(lambda _: (weights,)), prompts, SEED)
        hits = [
            right(self.critic.notes(images[i : i + 1], Wanted(subject, DEFAULT_STYLE)))["subject"]
            for i, subject in enumerate(self.subjects)
        ]
        return float(np.mean(hits))

    def bare(self, steps: int) -> float:
        if steps not in self._bare:
            self._bare[steps] = self.named([], steps)
        return self._bare[steps]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=24)
    count = parser.parse_args().pictures
    torch.set_num_threads(1)
    rows, look = [], Look(count)
    for one in students(0):
        branches = few_step_branches(one)
        named, bare = look.named(branches, one.count), look.bare(one.count)
        ratio = stream_ratio(branches, look.network.channels)
        rows.append({"kind": "few-step", "id": one.name, "ratio": ratio, "named": named, "named_bare": bare})
    for part in PARTS:
        for row in Shelf.of_part(part).rows:
            ratio = stream_ratio(branches_of(scale_data.factors(row["id"])), look.network.channels)
            rows.append({"kind": row["kind"], "id": row["id"], "ratio": ratio})
    told = {few: [r["ratio"] for r in rows if (r["kind"] == "few-step") == few and r["ratio"]] for few in (True, False)}
    figures = {
        "few_step_loras": sum(r["kind"] == "few-step" for r in rows),
        "few_step_with_both_streams": len(told[True]),
        "few_step_found": sum(ratio > FEW_STEP_RATIO for ratio in told[True]),
        "few_step_lowest_ratio": round(min(told[True]), 3),
        "named_with_few_step_lora": round(float(np.mean([r["named"] for r in rows if "named" in r])), 3),
        "named_bare_in_as_few_steps": round(float(np.mean([r["named_bare"] for r in rows if "named" in r])), 3),
        "named_guided_in_twenty_steps": round(look.named([], TEACHER_STEPS, GUIDANCE), 3),
        "others": len(rows) - sum(r["kind"] == "few-step" for r in rows),
        "others_with_both_streams": len(told[False]),
        "others_taken_for_few_step": sum(ratio > FEW_STEP_RATIO for ratio in told[False]),
        "others_highest_ratio": round(max(told[False]), 3),
        "threshold": FEW_STEP_RATIO,
    }
    kept = [{**r, "ratio": r["ratio"] and round(r["ratio"], 3)} for r in rows]
    write_results("few_step", f"python -m benchmarks.few_step --pictures {count}", SEED, figures, kept)


if __name__ == "__main__":
    main()
