"""Who may see what: subjects, styles and pairs, fixed once by SHA-256 of their names and committed as `splits.json`.

Gendered and `-face` variants of one idea (man-artist, woman-artist, artist; cat, cat-face) always fall on the same
side, because the hash is taken of their common stem. Adding a subject or a transform later moves nobody else, except
that style splits are ranks.

    python -m zoo.splits        writes zoo/splits.json again from the pictures table
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from zoo.cache import read_json, write_json

SALT = "EmojiMatrix/1"
PATH = Path(__file__).with_name("splits.json")
BASE_STYLES = ("noto", "noto-v1", "twemoji", "fluent-emoji-flat", "fluent-emoji", "emojione")
LORA_REAL_STYLES = ("fluent-emoji-3d", "fluent-emoji-high-contrast", "emojione-monotone")
DEFAULT_STYLE = "noto"  # the look of the base when a prompt names no style
BASE_SHARE = 0.61
ENCODER_SHARES = (("train", 0.7), ("validation", 0.1), ("test", 0.2))
FUSION_SHARE, JUDGE_SHARE = 0.15, 0.10
_STEM = re.compile(r"^(?:(?:man|woman|person|men|women|mans|womans)-(?:in-|with-)?(?=.))|-face$")


def unit(kind: str, name: str) -> float:
    """A fixed number in [0, 1) for a name in one kind of draw."""
    digest = hashlib.sha256(f"{SALT}|{kind}|{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def stem(subject: str) -> str:
    """What variants of one idea have in common: 'woman-artist' -> 'artist', 'cat-face' -> 'cat'."""
    return _STEM.sub("", subject) or subject


def _share(u: float, shares: Iterable[tuple[str, float]]) -> str:
    """The name whose share of [0, 1) holds u."""
    names, sizes = zip(*shares, strict=True)
    return names[sum(u >= edge for edge in itertools.accumulate(sizes[:-1]))]


def _style_sets(styles: Iterable[str], test: int, validation: int) -> dict[str, str]:
    """The `test` lowest hashes are test, the next `validation` are validation, the rest train."""
    ranked = sorted(styles, key=lambda s: unit("style-encoder", s))
    return {s: "test" if i < test else "validation" if i < test + validation else "train" for i, s in enumerate(ranked)}


def make_splits(subjects: Iterable[str], transforms: Iterable[str]) -> dict[str, Any]:
    """The whole table: subject -> [base or lora_only, encoder part], style -> the same."""
    transforms = tuple(transforms)
    encoder = _style_sets(BASE_STYLES, 1, 0) | _style_sets(LORA_REAL_STYLES, 1, 0) | _style_sets(transforms, 6, 3)
    return {
        "salt": SALT,
        "subjects": {
            s: [
                "base" if unit("base", stem(s)) < BASE_SHARE else "lora_only",
                _share(unit("encoder", stem(s)), ENCODER_SHARES),
            ]
            for s in sorted(subjects)
        },
        "styles": {
            s: ["base" if s in BASE_STYLES else "lora_only", encoder[s]]
            for s in (*BASE_STYLES, *LORA_REAL_STYLES, *sorted(transforms))
        },
    }


@dataclass(frozen=True)
class Splits:
    """The committed split. Parts are 'train', 'validation', 'test'; a subject or style is 'base' or 'lora_only'."""

    table: dict[str, Any]

    @classmethod
    @lru_cache(maxsize=1)
    def load(cls) -> Splits:
        """Read `zoo/splits.json`."""
        return cls(read_json(PATH))

    @property
    def base_subjects(self) -> frozenset[str]:
        """Subjects the base model is trained on."""
        return frozenset(self.subjects(known="base"))

    @property
    def lora_subjects(self) -> frozenset[str]:
        """Subjects only a LoRA can teach."""
        return frozenset(self.subjects(known="lora_only"))

    @property
    def base_styles(self) -> frozenset[str]:
        """Styles the base model is trained on."""
        return frozenset(self.styles(known="base"))

    @property
    def lora_styles(self) -> frozenset[str]:
        """Styles only a LoRA can teach: three real sets and all transforms."""
        return frozenset(self.styles(known="lora_only"))

    def subjects(self, known: str | None = None, encoder: str | None = None) -> list[str]:
        """Subjects of one side ('base', 'lora_only') and one encoder part; None means any. Sorted."""
        return [s for s, (k, e) in self.table["subjects"].items() if known in (None, k) and encoder in (None, e)]

    def styles(self, known: str | None = None, encoder: str | None = None) -> list[str]:
        """Styles, likewise; real sets first."""
        return [s for s, (k, e) in self.table["styles"].items() if known in (None, k) and encoder in (None, e)]

    def encoder_part(self, name: str) -> str:
        """'train', 'validation' or 'test' for a subject or a style."""
        return (self.table["subjects"].get(name) or self.table["styles"][name])[1]

    @staticmethod
    def held_out_pair(subject: str, style: str) -> bool:
        """15 % of pairs: never used in any training on composites (gates, fusion)."""
        return unit("fusion-pair", f"{subject}|{style}") < FUSION_SHARE

    @staticmethod
    def judge_test(subject: str, style: str) -> bool:
        """10 % of pictures: never seen by the judge in training."""
        return unit("judge", f"{subject}|{style}") < JUDGE_SHARE


def main() -> None:
    """Write splits.json."""
    from zoo.pictures import Pictures
    from zoo.transforms import TRANSFORMS

    argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0]).parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    table = make_splits(Pictures.load().subjects, TRANSFORMS)
    write_json(PATH, table, indent=0)
    splits = Splits(table)
    logging.getLogger("zoo.splits").info(
        "%d base subjects, %d LoRA-only; encoder parts %s; styles in test %s, in validation %s",
        len(splits.base_subjects),
        len(splits.lora_subjects),
        {e: len(splits.subjects(encoder=e)) for e, _ in ENCODER_SHARES},
        splits.styles(encoder="test"),
        splits.styles(encoder="validation"),
    )


if __name__ == "__main__":
    main()
