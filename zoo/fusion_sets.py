"""What gates are trained on: sets of LoRAs with a prompt and the picture that ought to come of it.

Three kinds. A *pair*: subject and style LoRA, their real composite, and up to three LoRAs that nobody asked for. A
*subject* alone in the default style, with strangers. A *bystander*: something that the base knows, with strangers only;
they should leave the picture as it is. Subjects are of the training part, and held-out pairs are left out, so the test
part's combinations are seen by nobody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autolora_core.errors import AutoLoRAError
from zoo import scale_data
from zoo.autoencoder import encode_pictures
from zoo.cache import write_npy, zoo_dir
from zoo.captions import STYLE_NAMES, captions
from zoo.lora_data import true_picture
from zoo.pictures import Pictures
from zoo.scale_plan import plan, subject_part
from zoo.splits import DEFAULT_STYLE, Splits
from zoo.train_scale import groups_of

SLOTS, TEXTS = 5, 5
# A fair sample of the large zoo is enough: the first groups of its training (a quarter of an hour on two cores).
GROUPS = 25
# How often each kind comes, and how many strangers with what probability.
KINDS = (("pair", 0.7), ("subject", 0.15), ("bystander", 0.15))
STRANGERS = (0.4, 0.3, 0.2, 0.1)


@dataclass(frozen=True)
class FusionSet:
    """``loras``: rows of the shelf, the wanted ones first; ``asked``: those of them that do not say they are of
    something else. ``texts`` all ask for the same picture. ``others``: pictures that it might be confused with, of
    another subject in this style and of this subject in another; empty unless a subject and a style are wanted.
    """

    subject: str
    style: str
    loras: tuple[int, ...]
    texts: tuple[str, ...]
    asked: tuple[int, ...]
    others: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Shelf:
    """LoRAs of the sample, as ``scale_data.rows`` has them, without second copies."""

    rows: list[dict]

    @classmethod
    def of_part(cls, part: str = "train") -> Shelf:
        sample = {spec.id for group in groups_of(plan())[:GROUPS] for spec in group}
        rows = [row for row in scale_data.rows(copies=False) if row["id"] in sample]
        if len(rows) < len(sample):
            raise AutoLoRAError(
                f"{len(sample) - len(rows)} LoRAs of the sample are not trained yet",
                fix=f"run `python -m zoo.train_scale --groups {GROUPS}`",
            )
        return cls([row for row in rows if row["part"] == part])

    def where(self, kind: str) -> list[int]:
        """Rows of ``subject`` or ``style`` LoRAs that a pair can be made of."""
        splits = Splits.load()
        if kind == "subject":
            return [i for i, r in enumerate(self.rows) if r["kind"] == kind and r["subject"] in splits.lora_subjects]
        return [i for i, r in enumerate(self.rows) if r["kind"] == kind and r["style"] in STYLE_NAMES]


class Drawer:
    """Draws sets whose true picture exists."""

    def __init__(self, shelf: Shelf, pictures: Pictures, rng: np.random.Generator):
        self.shelf, self.pictures, self.rng = shelf, pictures, rng
        self.subjects, self.styles = shelf.where("subject"), shelf.where("style")
        known = [s for s in sorted(Splits.load().base_subjects) if (s, DEFAULT_STYLE) in pictures.index]
        self.bystanders = [s for s in known if subject_part(s) == "train"]

    def draw(self) -> FusionSet | None:
        """One set, or None where luck drew a picture that there is none of."""
        kind = self.rng.choice([name for name, _ in KINDS], p=[share for _, share in KINDS])
        strangers = int(self.rng.choice(len(STRANGERS), p=STRANGERS))
        if kind == "pair":
            a, b = int(self.rng.choice(self.subjects)), int(self.rng.choice(self.styles))
            subject, style, wanted = self.shelf.rows[a]["subject"], self.shelf.rows[b]["style"], (a, b)
            if Splits.held_out_pair(subject, style):
                return None
        elif kind == "subject":
            a = int(self.rng.choice(self.subjects))
            subject, style, wanted = self.shelf.rows[a]["subject"], DEFAULT_STYLE, (a,)
        else:
            subject, style, wanted = str(self.rng.choice(self.bystanders)), DEFAULT_STYLE, ()
            strangers += 1
        if true_picture(self.pictures, subject, style) is None:
            return None
        labels = {self.shelf.rows[i]["label"] for i in wanted} | {subject, style}
        others = [i for i in self.rng.permutation(len(self.shelf.rows))[:20] if self._apart(int(i), labels)]
        texts = tuple(text for text, _ in captions(subject, style))[:TEXTS]
        strange = tuple(map(int, others[:strangers]))
        unnamed = tuple(i for i in strange if self.shelf.rows[i]["trigger"])
        confused = self._confused(subject, style) if kind == "pair" else ()
        return FusionSet(subject, style, (*wanted, *strange), texts, (*wanted, *unnamed), confused)

    def _confused(self, subject: str, style: str) -> tuple[tuple[str, str], ...]:
        """Of the other subject's picture and the other style's, none where luck found none in a few draws."""
        subjects = [str(self.shelf.rows[int(i)]["subject"]) for i in self.rng.choice(self.subjects, 6)]
        styles = [str(self.shelf.rows[int(i)]["style"]) for i in self.rng.choice(self.styles, 6)]
        beside = [(s, style) for s in subjects if s != subject and self._there(s, style)]
        besides = [(subject, t) for t in styles if t != style and self._there(subject, t)]
        return (beside[0], besides[0]) if beside and besides else ()

    def _there(self, subject: str, style: str) -> bool:
        return true_picture(self.pictures, subject, style) is not None and not Splits.held_out_pair(subject, style)

    def _apart(self, row: int, labels: set[str]) -> bool:
        mine = self.shelf.rows[row]
        return not {mine["label"], mine["subject"], mine["style"]} & labels


def draw_sets(shelf: Shelf, count: int, seed: int) -> list[FusionSet]:
    """``count`` sets, the same for every run on the same shelf."""
    drawer, out = Drawer(shelf, Pictures.load(), np.random.default_rng(seed)), []
    while len(out) < count:
        if (found := drawer.draw()) is not None:
            out.append(found)
    return out


def true_latents(wanted: Sequence[tuple[str, str]]) -> np.ndarray:
    """(n, 16, 16, 16) float16 of pictures (subject, style), kept in the cache."""
    path = zoo_dir("fusion") / f"latents-{hashlib.sha256(repr(wanted).encode()).hexdigest()[:12]}.npy"
    if not path.exists():
        pictures = Pictures.load()
        write_npy(path, encode_pictures(np.stack([true_picture(pictures, *one) for one in wanted])))
    return np.load(path)
