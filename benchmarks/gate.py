"""Does the shipped gate do better than the plain sum, on composites that nothing was trained on?

    python -m benchmarks.gate [--pairs 120] [--drawn 48]

writes `benchmarks/results/gate.json`. Pairs are (subject LoRA, style LoRA) of the demo world whose real picture exists
and was held out (`Splits.held_out_pair`). Two measures, both paired: the flow loss against the true picture (same
noise, same times), with the two LoRAs alone and with a third that the prompt does not ask for; and what the judge
names in pictures drawn with each. "sum" is the same network with the identity gate. Needs the trained LoRAs of the
cache (`python -m zoo.train_loras`).
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from autolora_core.fusion.files import read_gate
from autolora_core.fusion.gate import GateVectors
from benchmarks.results_file import write_results
from zoo.cache import REPO
from zoo.captions import plain_caption
from zoo.evaluate import Share, judge_pictures, load_autoencoder, share
from zoo.lora_plan import LoraSpec, plan
from zoo.sampler import sample
from zoo.text_bank import encode
from zoo.train_base import flow_loss
from zoo.train_gate import BATCH, Composites, GatedLayers, composites, held_out_pairs
from zoo.train_loras import finished, load_base

log = logging.getLogger("benchmarks.gate")
TIMES = (0.95, 0.8, 0.6, 0.35)


class Bench:
    """Base and LoRAs with a gate whose vectors can be exchanged; ``ids`` of a batch are padded to ``BATCH`` rows."""

    def __init__(self, specs: list[LoraSpec]):
        self.specs, self.model = specs, load_base()
        self.gate = GatedLayers(self.model, specs)
        layers = self.gate.named()  # views of the parameters, which `use` overwrites
        self.identity = {name: GateVectors.identity(v.channels) for name, v in layers.items()}
        self.trained = read_gate(REPO / "models" / "emoji_gate.safetensors").modules

    @torch.no_grad()
    def use(self, vectors: dict[str, GateVectors]) -> None:
        """Put these vectors into every layer."""
        for key, parameter in self.gate.vectors.items():
            parameter.copy_(vectors[key.replace("/", ".")].stack())

    def slots(self, pair: tuple[int, int], distractor: int | None) -> list[int]:
        """The row of ids for a pair; ``len(specs)`` stands for "none"."""
        return [*pair, len(self.specs) if distractor is None else distractor]


def distractors(bench: Bench, pairs: list[tuple[int, int]]) -> list[int]:
    """For each pair a LoRA it does not ask for, drawn once."""
    rng, out = np.random.default_rng(23), []
    for pair in pairs:
        labels = {bench.specs[i].label for i in pair}
        pool = [i for i, spec in enumerate(bench.specs) if spec.label not in labels]
        out.append(int(rng.choice(pool)))
    return out


@torch.inference_mode()
def losses(bench: Bench, data: Composites, extra: list[int | None]) -> np.ndarray:
    """Flow loss of every pair, mean over ``TIMES``; (n,)."""
    out = np.zeros(len(data.pairs))
    for start in range(0, len(out), BATCH):
        rows = range(start, min(start + BATCH, len(out)))
        ids = torch.tensor([bench.slots(data.pairs[k], extra[k]) for k in rows])
        context, pooled = encode([data.texts[k][0] for k in rows])
        clean = torch.from_numpy(data.latents[list(rows)].astype(np.float32))
        for i, time in enumerate(TIMES):
            noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1000 * i + start))
            bench.gate.ids = ids
            loss = flow_loss(bench.model, clean, torch.full((len(ids),), time), noise, context, pooled)
            out[list(rows)] += loss.numpy() / len(TIMES)
    return out


def drawn(bench: Bench, pairs: list[tuple[int, int]], extra: list[int | None]) -> np.ndarray:
    """One picture of every pair, the seed its place; uint8 (n, 128, 128, 3)."""
    from zoo.autoencoder import decode_latents

    decoder, empty, out = load_autoencoder()[0], encode([""]), []
    for start in range(0, len(pairs), BATCH):
        some = pairs[start : start + BATCH]
        prompts = [plain_caption(bench.specs[i].subject or "", bench.specs[j].style) for i, j in some]
        ids = torch.tensor([bench.slots(p, e) for p, e in zip(some, extra[start : start + BATCH], strict=True)])
        bench.gate.ids = torch.cat([ids, ids])  # conditional and unconditional half of a step
        with torch.autocast("cpu", torch.bfloat16):
            latents = sample(bench.model, *encode(prompts), empty, seed=start)
        out.append(decode_latents(latents.float(), decoder, batch=8))
    return np.concatenate(out)


def named(bench: Bench, pairs: list[tuple[int, int]], images: np.ndarray) -> dict[str, np.ndarray]:
    """Whether the judge names the subject, the style, both; (n,) bool each."""
    verdict = judge_pictures(images)
    subject = verdict.subject_rank([bench.specs[i].subject or "" for i, _ in pairs]) < 1
    style = verdict.style_rank([bench.specs[j].style or "" for _, j in pairs]) < 1
    return {"subject": subject, "style": style, "joint": subject & style}


def compare(measure: Callable[[], Any], bench: Bench) -> tuple[Any, Any]:
    """``measure`` with the plain sum, then with the trained gate."""
    results = []
    for vectors in (bench.identity, bench.trained):
        bench.use(vectors)
        results.append(measure())
    return results[0], results[1]


def run(count: int, pictures: int, command: str) -> None:
    """Measure and write the results."""
    torch.set_num_threads(2)
    bench = Bench([s for s in plan() if finished(s).exists()])
    data = composites(bench.specs, held_out_pairs(bench.specs, count))
    strangers, alone = distractors(bench, data.pairs), [None] * len(data.pairs)
    clusters = [bench.specs[i].label for i, _ in data.pairs]
    figures: dict[str, float] = {"gate.pairs": len(data.pairs), "gate.drawn": pictures}
    rows: list[dict[str, Any]] = []

    def note(name: str, value: Share) -> None:
        figures[name] = value.value
        rows.append(value.row(name))

    for k, extra in ((2, alone), (3, strangers)):
        plain, gated = compare(lambda extra=extra: losses(bench, data, extra), bench)
        note(f"gate.flow_loss_sum_k{k}", share(plain, clusters))
        note(f"gate.flow_loss_gate_k{k}", share(gated, clusters))
        note(f"gate.flow_loss_gain_k{k}", share(plain - gated, clusters))
        log.info("K = %d: sum %.4f, gate %.4f", k, plain.mean(), gated.mean())
    some = data.pairs[:pictures]
    for k, extra in ((2, alone), (3, strangers)):
        plain, gated = compare(lambda extra=extra: named(bench, some, drawn(bench, some, extra[: len(some)])), bench)
        for key in plain:
            note(f"gate.{key}_sum_k{k}", share(plain[key], clusters[: len(some)]))
            note(f"gate.{key}_gate_k{k}", share(gated[key], clusters[: len(some)]))
        said = [{n: round(float(v.mean()), 3) for n, v in side.items()} for side in (plain, gated)]
        log.info("K = %d: sum %s, gate %s", k, *said)
    log.info("wrote %s", write_results("gate", command, 0, figures, rows))


def main() -> None:
    """Command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=120)
    parser.add_argument("--drawn", type=int, default=48)
    args = parser.parse_args()
    run(args.pairs, args.drawn, f"python -m benchmarks.gate --pairs {args.pairs} --drawn {args.drawn}")


if __name__ == "__main__":
    main()
