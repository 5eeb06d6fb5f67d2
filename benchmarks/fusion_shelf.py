"""The LoRAs of the fusion benchmark: a fair sample of the large zoo, all of it, or the shipped ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Protocol

from autolora_core.encode.towers import file_sha256
from autolora_core.fusion.branches import Branch
from autolora_core.fusion.methods.roles import STYLE, SUBJECT
from autolora_core.lora.file import LoraFile
from zoo import scale_data
from zoo.cache import read_json, shelf_table
from zoo.captions import with_article
from zoo.fusion_sets import GROUPS
from zoo.scale_plan import plan, style_family, subject_part
from zoo.scale_sets import words
from zoo.splits import Splits, stem, unit
from zoo.train_loras import lora_folder
from zoo.train_scale import finished, groups_of

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SAMPLE, SCALE = "sample", "scale"


@dataclass(frozen=True)
class Lora:
    """``text``: what it goes by, its trigger word where its captions held nothing else, and then it is not ``worded``.
    ``label``: what it shows."""

    id: str
    subject: str | None
    style: str | None
    family: str | None
    label: str
    text: str
    worded: bool = True

    @property
    def kind(self) -> str:
        return "both" if self.subject and self.style else SUBJECT if self.subject else STYLE

    @property
    def role(self) -> str:
        """What the retriever would call it."""
        return STYLE if self.kind == STYLE else SUBJECT

    def shows(self, subject: str, style: str) -> bool:
        """Whether it has anything to do with either: the same idea, a shared word, a look of one family."""
        if self.family is not None and self.family == style_family(style):
            return True
        if self.subject is None:
            return False
        return stem(self.subject) == stem(subject) or bool(_words(self.subject) & _words(subject))


@cache
def _words(subject: str) -> set[str]:
    return words(subject.replace("-", " "))


class Shelf(Protocol):
    """Where LoRAs come from. ``loras`` is all that are planned, whether they are there or not."""

    name: str
    loras: Sequence[Lora]

    def ready(self, name: str) -> bool: ...
    def content(self, name: str) -> str: ...
    def branches(self, name: str, index: int) -> list[Branch]: ...
    def part(self, subject: str, style: str) -> str | None: ...


class ScaleShelf:
    """The zoo at scale, or the fair ``sample`` of it that gates are trained on (``zoo.fusion_sets``).

    Parts are those of the subject: whoever trains on pairs takes subjects of ``train``.
    """

    def __init__(self, sample: bool = True):
        self.name = SAMPLE if sample else SCALE

    @cached_property
    def _specs(self) -> dict:
        sample = (spec for group in groups_of(plan())[:GROUPS] for spec in group)
        return {spec.id: spec for spec in (sorted(sample, key=lambda s: s.id) if self.name == SAMPLE else plan())}

    @cached_property
    def loras(self) -> list[Lora]:
        return [
            Lora(
                s.id, s.subject, s.style, style_family(s.style) if s.style else None, s.label, s.trigger or s.thing,
                not s.trigger,
            )
            for s in self._specs.values()
        ]  # fmt: skip

    @cached_property
    def _shipped(self) -> set[str]:
        return {row["subject"] for row in read_json(shelf_table())}

    def ready(self, name: str) -> bool:
        return finished(self._specs[name]).exists()

    def content(self, name: str) -> str:
        return file_sha256(finished(self._specs[name]))

    def branches(self, name: str, index: int) -> list[Branch]:
        return [Branch(n, index, down=down, up=up) for n, (down, up) in scale_data.factors(name).items()]

    def part(self, subject: str, style: str) -> str | None:
        """Of a pair. No gate is trained on subjects of validation and test, but the shipped one, and that only on
        shipped subjects in pairs that are not held out: such pairs are nobody's, and so are held-out ones of ``train``.
        """
        mine, held = subject_part(subject), Splits.held_out_pair(subject, style)
        spoilt = held if mine == TRAIN else subject in self._shipped and not held
        return None if spoilt else mine


class ShippedShelf:
    """The files in ``models/loras``, what a checkout has without training anything; one a thing."""

    name = "shipped"

    @cached_property
    def loras(self) -> list[Lora]:
        out: dict[str, Lora] = {}
        for row in read_json(shelf_table()):
            subject, style = row["subject"], row["style"]
            known = style in Splits.load().styles() if style else True
            if known and row["label"] not in out and "(" not in row["label"]:
                text = with_article(row["label"]) if subject else f"{row['label']} style"
                out[row["label"]] = Lora(row["file"], subject, style, style, row["label"], text)
        return list(out.values())

    def ready(self, name: str) -> bool:
        return (lora_folder() / name).exists()

    def content(self, name: str) -> str:
        return file_sha256(lora_folder() / name)

    def branches(self, name: str, index: int) -> list[Branch]:
        updates = LoraFile.open(lora_folder() / name).updates()
        return [Branch(u.base_module, index, down=u.down.float(), up=u.up.float(), slice=u.rows) for u in updates]

    def part(self, subject: str, style: str) -> str | None:
        if not Splits.held_out_pair(subject, style):
            return TRAIN
        return VALIDATION if unit("fusion-part", f"{subject}|{style}") < 0.3 else TEST


def open_shelf(name: str) -> Shelf:
    return ShippedShelf() if name == ShippedShelf.name else ScaleShelf(name == SAMPLE)
