"""How loud should a subject's and a style's LoRA be in which layers? Found by experiment, on validation pairs.

    python -m benchmarks.fusion_shape            finds the gains, writes models/emoji_gate.safetensors

Sixteen gains (logarithms): of two roles, in each block of the demo base, on its image and its text side. Two LoRAs
at once, 40 validation pairs, two pictures each. A round is a two-level design of 32 runs that moves all gains at once
(Plackett and Burman 1946; a Hadamard matrix and its mirror image), so every run tells about every gain; then steps
along the slopes that it gave. What is climbed is the mean of (p_subject · p_style)^¼ by the judge. How much of the way
is gone (:data:`SHARES`) is chosen on the other 60 validation pairs. The test part is not looked at. About 40 minutes on
a core; every run is kept in the cache, ``benchmarks/results/fusion_shape.json`` tells all.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from autolora_core.encode.towers import file_sha256
from autolora_core.fusion.base_print import base_fingerprint
from autolora_core.fusion.files import write_gate
from autolora_core.fusion.gate import ROLES, GateVectors
from autolora_core.fusion.training.parameters import spans_of
from benchmarks.fusion import STEPS, all_cases
from benchmarks.fusion_cases import Case
from benchmarks.fusion_judge import Critic, Wanted, right
from benchmarks.fusion_methods import Workbench, still, updates
from benchmarks.fusion_network import Network, Painter
from benchmarks.fusion_shelf import SAMPLE, VALIDATION, open_shelf
from benchmarks.results_file import write_results
from zoo.cache import models_dir, read_json, write_json, zoo_dir
from zoo.evaluate import load_autoencoder
from zoo.judge import Judge
from zoo.lora_data import true_picture
from zoo.pictures import Pictures
from zoo.train_loras import base_path, base_tag, load_base

log = logging.getLogger("benchmarks.fusion_shape")
PAIRS, CLIMBED, SEEDS, BLOCKS = 100, 40, 2, 4
START = (*(0.4,) * 8, *(0.2,) * 8)  # subjects suffer more beside a style than styles beside a subject
MOVES, WAYS, SHARES = (0.4, 0.3), (0.4, 0.8, 1.2, 1.8, 2.6), (1.0, 0.7)
MEASURES = ("subject", "style", "joint", "p_subject", "p_style", "p_joint", "climbed")


def place(module: str) -> int:
    """Which gain of a role a module has."""
    return 2 * int(module.split(".")[1]) + (".context_block." in module)


@dataclass
class Shaper:
    """Draws and judges the pairs for a choice of gains; what was drawn is kept."""

    cases: Sequence[Case]
    path: Path

    def __post_init__(self) -> None:
        shelf = open_shelf(SAMPLE)
        self.network = Network(load_base(), torch.bfloat16, compiled=True)
        self.bench = Workbench(shelf, self.network)
        self.painter = Painter(self.network, load_autoencoder()[0], STEPS)
        self.critic, self.pictures = Critic(Judge.load()), Pictures.load()
        self.known: dict[str, list[float]] = read_json(self.path) if self.path.exists() else {}

    def score(self, gains: Sequence[float], part: slice) -> np.ndarray:
        """Means of :data:`MEASURES` over the pairs of ``part``."""
        key = f"{part.start}:{part.stop} " + " ".join(f"{gain:.3f}" for gain in gains)
        if key not in self.known:
            rows = [self._pair(case, gains) for case in self.cases[part]]
            self.known[key] = [round(float(v), 5) for v in np.mean(rows, axis=0)]
            write_json(self.path, self.known)
        log.info("%s %s", key, dict(zip(MEASURES, self.known[key], strict=True)))
        return np.array(self.known[key])

    def _pair(self, case: Case, gains: Sequence[float]) -> list[float]:
        self.bench.clear()
        weights = self.network.weights(self._fused(case, gains))
        images = self.painter.draw(still(weights), case.prompts[:SEEDS], case.noise)
        wanted = Wanted(case.subject, case.style, true_picture(self.pictures, case.subject, case.style))
        notes = self.critic.notes(images, wanted)
        hits = right(notes)
        subject, style = np.array(notes["likely_subject"]), np.array(notes["likely_style"])
        soft = [np.exp(subject), np.exp(style), np.exp(subject + style), np.exp((subject + style) / 4)]
        return [float(np.mean(values)) for values in (hits["subject"], hits["style"], hits["joint"], *soft)]

    def _fused(self, case: Case, gains: Sequence[float]) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for role, name in enumerate(case.wanted):
            for module, update in updates(self.bench.branches([name]), self.network.channels).items():
                louder = float(np.exp(gains[8 * role + place(module)])) * update
                out[module] = out[module] + louder if module in out else louder
        return out


def design(gains: int = 16) -> np.ndarray:
    """(2·gains, gains) of ±1: a Hadamard matrix (Sylvester) and its mirror image."""
    h = np.ones((1, 1))
    while len(h) < gains:
        h = np.block([[h, h], [h, -h]])
    return np.concatenate([h, -h])


def climb(shaper: Shaper) -> np.ndarray:
    """The gains after a round for each of :data:`MOVES`."""
    part, at, plan = slice(0, CLIMBED), np.array(START), design()
    for move in MOVES:
        climbed = np.array([shaper.score(at + move * row, part)[-1] for row in plan])
        slopes = plan.T @ climbed / len(plan) / move
        tried = [at, *(at + way * slopes / np.abs(slopes).max() for way in WAYS)]
        at = max(tried, key=lambda gains: shaper.score(gains, part)[-1])
    return at


def chosen(shaper: Shaper, gains: np.ndarray) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The share of the gains that does best on pairs they were not found on; and what the plain sum does there."""
    rows, part = [], slice(CLIMBED, PAIRS)
    for share in (0.0, *SHARES):
        scores = shaper.score(share * gains, part)
        rows.append({"share": share, **dict(zip(MEASURES, scores.tolist(), strict=True))})
    best = max(rows, key=lambda row: row["climbed"])
    return best["share"] * gains, rows


def gate_of(gains: Sequence[float], network: Network) -> dict[str, GateVectors]:
    """A gate that lets every LoRA pass as loudly as its role is to be in that layer; without a role, in between."""
    out = {}
    for module, channels in network.channels.items():
        table = torch.zeros(2, 2, 2)
        for role in range(len(ROLES)):
            table[role, 1, 0] = float(gains[8 * role + place(module)])
        for entry, start, stop in spans_of(module, channels):
            out[entry] = replace(GateVectors.identity(stop - start), roles=table)
    return out


def save(gains: Sequence[float], network: Network, path: Path) -> None:
    recipe = "gains by role, block and side, found on 100 validation pairs (benchmarks/results/fusion_shape.json)"
    write_gate(
        path, gate_of(gains, network), family="emoji", k_range=(2, 8), recipe=recipe,
        base_sha256=file_sha256(base_path()), base_fingerprint=base_fingerprint(load_file(str(base_path()))),
    )  # fmt: skip


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    cases = all_cases(open_shelf(SAMPLE), VALIDATION, PAIRS)
    shaper = Shaper(cases, zoo_dir("fusion", base_tag()) / "shape.json")
    found = climb(shaper)
    gains, rows = chosen(shaper, found)
    save(gains, shaper.network, models_dir() / "emoji_gate.safetensors")
    names = [f"{role}_block{b}_{side}" for role in ROLES for b in range(BLOCKS) for side in ("image", "text")]
    figures = {f"gain_{name}": round(float(g), 4) for name, g in zip(names, gains, strict=True)}
    for row in rows:
        figures |= {f"{measure}_share{row['share']:g}": row[measure] for measure in MEASURES}
    tried = [{"run": key, **dict(zip(MEASURES, values, strict=True))} for key, values in shaper.known.items()]
    command = "python -m benchmarks.fusion_shape"
    log.info("wrote %s", write_results("fusion_shape", command, 0, figures, [*rows, *tried]))


if __name__ == "__main__":
    main()
