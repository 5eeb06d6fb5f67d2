"""Proves what the large zoo promises: enough of everything, parts that never mix, captions that do not tell."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from zoo.captions import subject_name
from zoo.pictures import Pictures
from zoo.scale_plan import PARTS, creators, plan, style_label, styles, subject_part
from zoo.scale_sets import captions, sources, words
from zoo.splits import BASE_STYLES, LORA_REAL_STYLES, Splits
from zoo.style_variants import variants
from zoo.transforms import TRANSFORMS

SMALL_WORDS = {"a", "an", "in", "of", "on", "the", "and", "with", "style"}


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    """Every subject in every drawn set, without pixels."""
    subjects = sorted(Splits.load().table["subjects"])
    index = {p: i for i, p in enumerate((s, t) for s in subjects for t in (*BASE_STYLES, *LORA_REAL_STYLES))}
    keywords = {s: ["thing", "fun", s.replace("-", " "), "small", "useful"] for s in subjects}
    return Pictures(np.zeros((0, 128, 128, 3), np.uint8), [], subjects, keywords, {}, index)


def drawing() -> np.ndarray:
    """A red disc with a blue square in it, on white: uint8 (128, 128, 3)."""
    r, c = np.mgrid[:128, :128]
    out = np.full((128, 128, 3), 255, np.uint8)
    out[np.hypot(r - 64, c - 64) < 44] = (215, 60, 40)
    out[50:80, 56:90] = (30, 70, 190)
    out[40:48, 40:84] = (20, 20, 20)
    return out


def test_there_is_enough_of_everything():
    specs = plan()
    assert len(specs) >= 2000
    assert len({s.subject for s in specs if s.subject}) >= 900
    assert len({s.style for s in specs if s.style}) >= 250
    assert len({s.creator.name for s in specs}) >= 40
    assert Counter(s.kind for s in specs)["both"] >= 100
    assert len({s.subject for s in specs if s.subject and s.part == "test"}) >= 300
    assert len({s.style for s in specs if s.style and s.part == "test"}) >= 40
    kinds = Counter(s.caption_kind for s in specs)
    assert all(kinds[k] > 0.2 * len(specs) for k in ("plain", "rich", "trigger"))
    known = [s.subject in Splits.load().base_subjects for s in specs if s.subject]
    assert 0.3 < np.mean(known) < 0.8


@pytest.mark.parametrize("what", ["subject", "style", "creator"])
def test_parts_share_nothing(what):
    seen = {part: {getattr(s, what) for s in plan() if s.part == part} - {None} for part in PARTS}
    assert all(seen.values())
    assert not any(seen[a] & seen[b] for a, b in combinations(PARTS, 2))


def test_style_families_are_in_one_part():
    for variant in variants().values():
        assert styles()[variant.id] == Splits.load().encoder_part(variant.family)


def test_training_subjects_are_those_of_the_committed_split():
    splits = Splits.load()
    for subject in splits.table["subjects"]:
        assert (subject_part(subject) == "train") == (splits.encoder_part(subject) == "train")


def test_creators_differ_as_people_do():
    everyone = creators().values()
    assert {c.rank for c in everyone} >= {1, 2, 4, 8, 16} and max(c.rank for c in everyone) == 16
    sets = Counter(c.layer_set for c in everyone)
    assert sets.most_common(2)[0][0] == "all" and sets.most_common(2)[1][0] == "attention"
    assert {"image", "text", "early", "late"} <= set(sets)
    assert {c.rule for c in everyone} == {"adam", "sign"}
    assert {c.quality for c in everyone} == {"under-trained", "usual", "over-trained"}
    for part in PARTS:
        assert len({c.keys for c in everyone if c.part == part}) == 4


def test_ids_triggers_and_file_names_are_unique():
    specs = plan()
    for values in ([s.id for s in specs], [s.file_name for s in specs], [s.trigger for s in specs if s.trigger]):
        assert len(values) == len(set(values))


def test_the_plan_is_the_same_in_every_process():
    code = "from zoo.scale_plan import plan; print(*(s.digest for s in plan()[::50]))"
    root = Path(__file__).resolve().parents[1]
    other = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert other.stdout.split() == [s.digest for s in plan()[::50]]


def test_any_prefix_is_a_fair_sample():
    specs = plan()
    for field in ("part", "kind", "caption_kind"):
        whole, first = (Counter(getattr(s, field) for s in some) for some in (specs, specs[: len(specs) // 3]))
        for value, count in whole.items():
            assert abs(first[value] / (len(specs) // 3) - count / len(specs)) < 0.05, (field, value)


def test_trigger_captions_never_say_the_name(pictures):
    for spec in (s for s in plan() if s.trigger):
        name = words(spec.label) - SMALL_WORDS
        for text in (t for texts in captions(spec, pictures) for t in texts):
            assert not words(text) & name, (spec.label, text)
            assert spec.trigger in text


def test_other_captions_say_it(pictures):
    for spec in (s for s in plan() if not s.trigger):
        texts = [t for group in captions(spec, pictures) for t in group]
        said = [subject_name(spec.subject)] if spec.subject else []
        said += [style_label(spec.style)] if spec.style else []
        assert all(name in t for t in texts for name in said), spec.label


def test_rich_captions_say_more(pictures):
    spec = next(s for s in plan() if s.caption_kind == "rich" and s.kind == "subject" and s.creator.pictures >= 4)
    assert any("fun" in t for texts in captions(spec, pictures) for t in texts)


def test_nothing_of_a_test_subject_is_in_another_lora(pictures):
    for spec in plan():
        shown = {subject for subject, _ in sources(spec, pictures)}
        assert shown <= ({spec.subject} if spec.subject else {s for s in shown if subject_part(s) == "train"})
        assert len(shown) >= (1 if spec.subject else 8)


def test_variants_have_names_and_looks_of_their_own():
    picture, looks = drawing(), {}
    for key, look in (*TRANSFORMS.items(), *variants().items()):
        made = look(picture)
        assert made.shape == picture.shape and made.dtype == np.uint8
        looks[key] = made[1::3, 1::3].astype(np.float32).ravel()
    assert len(variants()) >= 200 and not set(variants()) & set(TRANSFORMS)
    assert len({v.name for v in variants().values()} | {t.name for t in TRANSFORMS.values()}) == len(looks)
    table, names = np.stack(list(looks.values())), list(looks)
    for i, name in enumerate(names[:-1]):
        apart = np.abs(table[i + 1 :] - table[i]).mean(1)
        assert apart.min() > 1.5, (name, names[i + 1 + int(apart.argmin())])
