"""An encoder for a user's own library: gather, refuse or train, measure honestly, save, and have the index use it.

Everything needed is in the library's database; no LoRA file is read. Work that takes longer is kept below
``<library>/training/`` and gone on with after a crash: an interrupted run gives what an undisturbed one gives.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..encode.encoder import RidgeEncoder, WeightEncoder
from ..encode.encoder_files import load_encoder_file
from ..encode.generic import GENERIC_PROMPTS
from ..encode.set_encoder import SetEncoder, rounded
from ..encode.text_cache import CachedTower
from ..encode.threads import one_thread
from ..encode.towers import TextTower
from ..errors import AutoLoRAError, LibraryError
from ..library.encoders import LIBRARY_KEY, WHEN_KEY, trained_file
from ..library.index import Library
from ..library.store import write_atomically
from ..portable import remove
from .captions import match
from .contest import CHOSEN, CONTROL, MOST_JUDGED, RIDGE, SET, Contest
from .figures import Figures, beats, chance, figures_of, leads, ranks_of, scores_of, verdict_of
from .inputs import Inputs
from .kept import read_kept, work_folder
from .material import Asked, Material, gather, refusal
from .outcome import SHIPPED, Options, Outcome
from .split import FOLDS
from .target import check_own, encoder_file, when_trained
from .trainer import Tick

log = logging.getLogger(__name__)
MIN_FOR_SET = 48  # distinct LoRAs; below this the set transformer is not tried
LEAST_EPOCHS = 4
TEXT_BLOCK = 64
ALL_FOLDS_UP_TO = 1000  # distinct LoRAs; of more, one fifth held out is enough
Progress = Callable[[int, int, str], None]


def families_of(library: Library, family: str | None = None) -> list[str]:
    """The families of a library's view, or the one asked for; LibraryError when it holds none of that."""
    held = sorted({entry.family for entry in library.entries()} - {"unknown"})
    if family is None:
        return held
    if family not in held:
        raise LibraryError(f"the index holds no LoRA for {family}", path=library.folder, key="family",
                           fix=f"choose one of: {', '.join(held) or 'none, encode LoRAs first'}")  # fmt: skip
    return [family]


@one_thread()
def train_library(
    library: Library, tower: TextTower, target: Path, families: Sequence[str], options: Options | None = None,
    shipped: Mapping[str, WeightEncoder] | None = None, progress: Progress = lambda done, total, name: None,
    searched: Sequence[str | Path] = (),
) -> tuple[list[Outcome], list[str]]:  # fmt: skip
    """Train an encoder for each of ``families`` and save it below ``target``: ``(outcomes, notes about the table)``.

    An encoder that was not trained for this library and family is never overwritten: LibraryError, at the start.
    An earlier one of this library stays where nothing is saved; ``searched``: more folders where it may lie.
    ``shipped``: encoders that would be used otherwise (family → encoder); one that does better stays in use.
    ``progress(done, total, family)`` may raise to interrupt. The library is not refitted: see ``Library.fit``.
    """
    options = options or Options()
    tower, shipped = library.text_tower(tower), shipped or {}
    table, notes = match(options.rows, library.entries())
    paths = {
        family: encoder_file(target, family, library.folder.name, options.name, len(families) > 1)
        for family in families
    }
    for family, path in paths.items():
        check_own(path, library.folder.name, family)
    outcomes = []
    # ComfyUI runs nodes in inference mode and draws from the global generator.
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        for at, family in enumerate(families):
            tick = _part(progress, at, len(families), family)
            job = _Job(library, tower, family, paths[family], options, table, shipped.get(family), tick,
                       options.minutes / len(families), searched)  # fmt: skip
            outcome = job.run()
            if not outcome.path and not outcome.refused:
                stays = trained_file([target, *searched], library.folder.name, family)
                outcome = replace(outcome, stays=str(stays) if stays else "")
            outcomes.append(outcome)
    progress(1, 1, "")
    return outcomes, notes


def _part(progress: Progress, at: int, count: int, family: str) -> Callable[[float], None]:
    return lambda share: progress(int(1000 * (at + min(share, 1.0))), 1000 * count, family)


@dataclass
class _Job:
    """One family's training; ``minutes`` are its part of the time."""

    library: Library
    tower: CachedTower
    family: str
    path: Path
    options: Options
    table: Mapping[str, Sequence[str]]
    shipped: WeightEncoder | None
    tick: Callable[[float], None]
    minutes: float
    searched: Sequence[str | Path] = ()

    def run(self) -> Outcome:
        began = time.monotonic()
        self.tick(0.0)
        material = gather(self.library, self.family, self.table, lambda done, total: self.tick(0.0))
        counts = {"files": len(material.hashes), "captioned": int(material.captioned.sum()),
                  "distinct": material.distinct, "notes": material.notes}  # fmt: skip
        why = refusal(material)
        if why:
            return Outcome(self.family, refused=why, **counts)
        inputs = material.inputs_id(self.tower.id, self.options.epochs, self.options.minutes, self._other_id())
        work = self.library.folder / "training" / f"{self.family}-{inputs[:12]}"
        known = self._known(work, inputs)
        if known is not None:
            return known
        work_folder(work)
        outcome = self._trained(material, work, Outcome(self.family, inputs, **counts))
        outcome = replace(outcome, seconds=round(time.monotonic() - began, 1))
        write_atomically(work / "outcome.json", json.dumps(outcome.to_json(), indent=1).encode())
        self._tidy(work)
        return outcome

    def _other_id(self) -> str:
        return self.shipped.id if self.shipped is not None and self.shipped.tower == self.tower.id else ""

    def _known(self, work: Path, inputs: str) -> Outcome | None:
        """What the same inputs gave before, if its encoder is still there."""
        try:
            said = Outcome.from_json(json.loads((work / "outcome.json").read_text(encoding="utf-8")))
            same = said.inputs == inputs and (not said.path or self.path == Path(said.path))
            if same and (not said.path or load_encoder_file(said.path).id == said.encoder_id):
                return replace(said, again=True)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AutoLoRAError) as error:
            log.warning("%s cannot be used (%s); training again", work, error)
        return None

    def _tidy(self, work: Path) -> None:
        """Checkpoints go, the result of this training stays; what was done for other inputs goes, finished or not."""
        for path in work.glob("*.safetensors"):
            remove(path)
        for other in work.parent.glob(f"{self.family}-*"):
            if other != work:
                shutil.rmtree(other, ignore_errors=True)

    # -- training --------------------------------------------------------------------------------------------------

    def _trained(self, material: Material, work: Path, outcome: Outcome) -> Outcome:
        captions = sorted({line for words in material.words.values() for line in words.lines})
        for start in range(0, len(captions), TEXT_BLOCK):
            self.tick(0.0)
            self.tower.encode(captions[start : start + TEXT_BLOCK])
        asked = Asked.of(material, self.tower)
        inputs = Inputs.of(self.family, material.files)
        contest = Contest(material, inputs, asked, 0, work)
        folds = list(range(FOLDS)) if outcome.distinct <= ALL_FOLDS_UP_TO else [0]
        epochs, why = self._plan(contest, len(folds) + 1)
        contest = replace(contest, epochs=epochs)
        found = []
        for at, fold in enumerate(folds):
            found.append(contest.fold(fold, self._share(at, len(folds) + 1)))
        ranks = {name: np.concatenate([one["ranks"][name] for one in found]).astype(np.int64)
                 for name in (CHOSEN, RIDGE, SET, CONTROL) if all(name in one["ranks"] for one in found)}  # fmt: skip
        order = np.concatenate([np.flatnonzero(asked.folds == fold) for fold in folds])
        right = asked.right[order].sum(axis=1)
        lots = chance(right, len(material.hashes))
        verdict = verdict_of(ranks[CHOSEN], ranks[CONTROL], lots[2])
        figures = {name: figures_of(values) for name, values in ranks.items()}
        behind = self._compare_shipped(material, contest, asked, order, ranks, figures,
                                       self._share(len(folds), len(folds) + 1))  # fmt: skip
        lead = np.concatenate([one["lead"] for one in found])
        wins = leads(lead)  # by the validation asks of all folds, as in one fold
        outcome = replace(
            outcome, held_out_folds=len(folds), kind=SET if wins else RIDGE, figures=figures, chance=lots,
            epochs=int(np.median([one["epoch"] for one in found])) if wins else 0, validated=len(lead),
            verdict=verdict, behind_shipped=behind, notes=(*outcome.notes, *([why] if why else [])),
        )  # fmt: skip
        if not verdict.knows or behind:
            return outcome
        return self._save(self._final(contest, outcome, self._share(len(folds), len(folds) + 1)), outcome)

    def _share(self, stage: int, stages: int) -> Tick:
        return lambda done, total: self.tick((stage + done / max(total, 1)) / stages)

    def _plan(self, contest: Contest, stages: int) -> tuple[int, str]:
        """How many epochs the set transformer gets, and why none; decided once, a resumed run keeps to it."""
        path = contest.work / "plan.json"
        said = read_kept(path, "epochs", "why")
        if said is not None:
            return said["epochs"], said["why"]
        epochs, why = self.options.epochs, ""
        if contest.material.distinct < MIN_FOR_SET:
            epochs, why = 0, (f"The set transformer was not tried: it needs {MIN_FOR_SET} different LoRAs with words, "
                              f"there are {contest.material.distinct}.")  # fmt: skip
        elif epochs > 0:
            took = self._seconds_an_epoch(contest)
            epochs = min(epochs, int(60 * self.minutes / (stages * took)))
            if epochs < LEAST_EPOCHS:
                epochs, why = 0, (f"The set transformer was not tried: an epoch takes {took:.0f} s, "
                                  f"{self.minutes:.3g} minutes are too few for it.")  # fmt: skip
        write_atomically(path, json.dumps({"epochs": epochs, "why": why}).encode())
        return epochs, why

    def _seconds_an_epoch(self, contest: Contest) -> float:
        """Of training and half a judgement; the second epoch is timed, the first is slower."""
        known = contest.material.captioned & (contest.material.folds >= 0)
        trainer = contest.trainer(known, None, lambda done, total: self.tick(0.0))
        trainer.epoch(1, self.options.epochs)
        began = time.monotonic()
        trainer.epoch(1, self.options.epochs)
        contest.set_vectors(trainer.network.eval(), np.arange(min(MOST_JUDGED // 2, len(contest.material.hashes))))
        return max(time.monotonic() - began, 1e-3)

    def _compare_shipped(
        self, material: Material, contest: Contest, asked: Asked, order: np.ndarray, ranks: Mapping[str, np.ndarray],
        figures: dict[str, Figures], tick: Tick,
    ) -> bool:  # fmt: skip
        """Ask the shipped encoder the same, as far as it was not taught the answers, and enter its figures. Does it do
        better?"""
        shipped = self.shipped
        if shipped is None or shipped.tower != self.tower.id or shipped.trained_on is None:
            return False
        taught = np.array([digest in shipped.trained_on for digest in material.hashes], bool)
        fresh = ~(asked.right[order] & taught).any(axis=1)
        if not fresh.any():
            return False
        vectors = np.zeros((len(material.files), shipped.dim), np.float32)
        for row, file in zip(vectors, material.files, strict=True):
            tick(0, 1)
            row[:] = shipped.encode(shipped.schema.assemble(file))
        raw = asked.centre + asked.queries[order][fresh].astype(np.float64)
        generic = shipped.query(self.tower.encode(GENERIC_PROMPTS))
        own = ranks_of(scores_of(vectors, shipped.query(raw), generic), asked.right[order][fresh])
        figures[SHIPPED] = figures_of(own)
        return beats(own, ranks[CHOSEN][fresh])

    def _final(self, contest: Contest, outcome: Outcome, tick: Tick) -> WeightEncoder:
        """Learn from everything that has words."""
        material, asked = contest.material, contest.asked
        known, recall = material.captioned, outcome.figures[CHOSEN].recall_at_1
        if outcome.kind == RIDGE:
            texts = [material.words[d].lines for d in material.hashes if d in material.words]
            encoder = RidgeEncoder.fit(contest.inputs.schema, contest.inputs.rows[known], texts, self.tower,
                                       contest.weights[known])  # fmt: skip
            return replace(encoder, held_out_recall_at_1=recall)
        trainer = contest.trainer(known, None, tick)
        trainer.run(contest.epochs, contest.work / "final.safetensors", stop=outcome.epochs)
        figures = {"held_out_recall_at_1": recall, "held_out_recall_at_5": outcome.figures[CHOSEN].recall_at_5}
        taught = frozenset(d for d in material.hashes if d in material.words)
        return rounded(SetEncoder(contest.inputs.tokens[0], self.tower.id, trainer.network.eval(),
                                  asked.centre.astype(np.float32), trainer.map.matrix(), figures, taught))  # fmt: skip

    def _save(self, encoder: WeightEncoder, outcome: Outcome) -> Outcome:
        """The encoder, and beside it how it was made and measured."""
        path = self.path
        work_folder(path.parent)
        when = when_trained([path.parent, *self.searched], self.library.folder.name, self.family)
        outcome = replace(outcome, encoder_id=encoder.id, path=str(path))
        also = {LIBRARY_KEY: self.library.folder.name, WHEN_KEY: when, "inputs": outcome.inputs}
        encoder.save(path, also)
        config = {**outcome.to_json(), **also, "options": {"epochs": self.options.epochs,
                  "minutes": self.options.minutes, "table_rows": len(self.options.rows)}}  # fmt: skip
        write_atomically(path.with_suffix(".json"), json.dumps(config, indent=1).encode())
        return outcome
