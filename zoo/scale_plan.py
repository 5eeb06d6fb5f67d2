"""The zoo at scale: more than 2,000 LoRAs for learning and testing retrieval, uncurated, planned once and for ever.

Parts are fixed by hash. A subject's part is where ``unit("encoder", stem)`` falls; ``splits.json`` ends validation at
0.8, which leaves 278 test subjects, so here it ends at ``VALIDATION_END``: test grows to more than 300, and no subject
moves between train and the other two. A style's part is its transform's. A LoRA's part decides which creators may make
it, and a style is trained on subjects of the training part only: a test subject is in no LoRA but its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from zoo.captions import STYLE_NAMES, subject_name, with_article
from zoo.lora_plan import ATTENTION, CONTEXT, MLP, meaningless_name
from zoo.splits import BASE_STYLES, Splits, stem, unit
from zoo.style_variants import variants
from zoo.transforms import TRANSFORMS

PARTS = ("train", "validation", "test")
TRAIN_END, VALIDATION_END = 0.7, 0.775
CAPTION_KINDS = (("plain", 0.45), ("rich", 0.25), ("trigger", 0.30))
SECOND_SUBJECTS, SECOND_STYLES = 0.11, 0.30  # share that a second creator has made too
PAIRS = {"train": 105, "validation": 15, "test": 30}  # LoRAs of a subject in a style
KEYS = ("kohya", "diffusers", "peft", "native")
# What a creator trains: (streams, kinds of layers, blocks).
LAYER_SETS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...]]] = {
    "all": (("x_block", "context_block"), ("attn", "mlp"), (0, 1, 2, 3)),
    "attention": (("x_block", "context_block"), ("attn",), (0, 1, 2, 3)),
    "image": (("x_block",), ("attn", "mlp"), (0, 1, 2, 3)),
    "text": (("context_block",), ("attn", "mlp"), (0, 1, 2, 3)),
    "mlp": (("x_block", "context_block"), ("mlp",), (0, 1, 2, 3)),
    "early": (("x_block", "context_block"), ("attn", "mlp"), (0, 1)),
    "late": (("x_block", "context_block"), ("attn", "mlp"), (2, 3)),
}
_LAYERS = (
    "all", "attention", "all", "image", "all", "attention", "all", "text", "early", "all", "attention", "all", "all",
    "late",
)  # fmt: skip
# (steps, samples a step): under-trained, usual, over-trained.
_LENGTHS = ((150, 2), (90, 4), (190, 2), (50, 2), (110, 4), (170, 2), (220, 2), (80, 4), (130, 2), (200, 4), (200, 2))
_RANKS = (4, 8, 2, 6, 16, 4, 1, 8, 3, 12, 5, 4, 8)
_NAMES: dict[str, tuple[str, ...]] = {
    "train": (
        "alder", "bramble", "cinder", "dapple", "ember", "fathom", "gannet", "harrow", "inkwell", "jetty", "kestrel",
        "larch", "marrow", "nettle", "oxbow", "pumice", "quarry", "ripple", "sorrel", "thicket", "umber", "vetch",
        "willow", "yarrow", "zephyr", "burnish", "cobble", "drizzle",
    ),
    "validation": ("foxglove", "granite", "heather", "isthmus", "juncture"),
    "test": (
        "kelp", "lichen", "mistral", "nutmeg", "ochre", "plover", "quince", "rushes", "saffron", "tundra", "vellum",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class ScaleCreator:
    """A recipe. ``alpha`` is a multiple of the rank, ``lr`` is Adam's, ``pictures`` the most it trains on."""

    name: str
    part: str
    rank: int
    alpha: float
    lr: float
    steps: int
    batch: int
    layer_set: str
    keys: str
    dtype: str
    rule: str  # adam, or sign (Lion-like)
    pictures: int

    def trains(self, module: str) -> bool:
        """Whether ``joint_blocks.N.<stream>.<kind>.<layer>`` is among this creator's layers."""
        _, block, stream, kind, *_ = module.split(".")
        streams, kinds, blocks = LAYER_SETS[self.layer_set]
        return stream in streams and kind in kinds and int(block) in blocks

    @property
    def layers(self) -> tuple[str, ...]:
        """The coarse kinds of ``lora_plan.Creator``."""
        streams, kinds, _ = LAYER_SETS[self.layer_set]
        image = [k for k, short in ((ATTENTION, "attn"), (MLP, "mlp")) if short in kinds and "x_block" in streams]
        return (*image, CONTEXT) if "context_block" in streams else tuple(image)

    @property
    def samples(self) -> int:
        return self.steps * self.batch

    @property
    def quality(self) -> str:
        return "under-trained" if self.samples <= 120 else "over-trained" if self.samples >= 700 else "usual"


def _pick(options: Sequence[Any], kind: str, name: str) -> Any:
    return options[int(unit(kind, name) * len(options))]


def _creator(name: str, part: str, i: int) -> ScaleCreator:
    steps, batch = _LENGTHS[(i * 4 + PARTS.index(part)) % len(_LENGTHS)]
    rule = "sign" if unit("creator-rule", name) < 0.15 else "adam"
    lr = 3e-3 * 2.5 ** unit("creator-lr", name) * (0.25 if rule == "sign" else 1.0)
    return ScaleCreator(
        name,
        part,
        _RANKS[(i * 5 + 2 * PARTS.index(part)) % len(_RANKS)],
        _pick((0.5, 1.0, 1.0, 2.0), "creator-alpha", name),
        float(f"{lr:.2g}"),
        steps,
        batch,
        _LAYERS[(i + PARTS.index(part)) % len(_LAYERS)],
        KEYS[i % len(KEYS)],
        _pick(("float16", "float16", "bfloat16", "float32"), "creator-dtype", name),
        rule,
        _pick((2, 4, 6, 12, 24, 24), "creator-pictures", name),
    )


@cache
def creators() -> dict[str, ScaleCreator]:
    """Every creator by name. Recipes come from the same ranges in all parts; no creator is in two."""
    return {n: _creator(n, part, i) for part in PARTS for i, n in enumerate(_NAMES[part])}


def subject_part(subject: str) -> str:
    u = unit("encoder", stem(subject))
    return "train" if u < TRAIN_END else "validation" if u < VALIDATION_END else "test"


@cache
def styles() -> dict[str, str]:
    """Every style of the zoo -> its part: drawn sets, transforms, variants (with their transform)."""
    splits = Splits.load()
    out = {s: splits.encoder_part(s) for s in splits.styles()}
    return out | {v.id: out[v.family] for v in variants().values()}


def style_family(style: str) -> str:
    return variants()[style].family if style in variants() else style


def style_label(style: str) -> str:
    return variants()[style].name if style in variants() else STYLE_NAMES[style]


@dataclass(frozen=True)
class ScaleSpec:
    """One LoRA to train: of a subject, of a style, or of a subject in a style."""

    id: str
    subject: str | None
    style: str | None
    caption_kind: str  # plain, rich, trigger
    part: str
    creator: ScaleCreator
    edition: int  # 1, or 2 for the same thing by another creator

    @property
    def label(self) -> str:
        """'otter', 'pixel art', 'otter in pixel art style'."""
        if not self.subject:
            return style_label(self.style or "")
        return subject_name(self.subject) + (f" in {style_label(self.style)} style" if self.style else "")

    @property
    def thing(self) -> str:
        """What it shows, as a prompt says it: 'an otter', 'pixel art style', 'an otter in pixel art style'."""
        if not self.subject:
            return f"{self.label} style"
        return with_article(subject_name(self.subject)) + (f" in {style_label(self.style)} style" if self.style else "")

    @property
    def kind(self) -> str:
        return "both" if self.subject and self.style else "subject" if self.subject else "style"

    @property
    def trigger(self) -> str | None:
        """A token that means nothing, for LoRAs captioned with nothing else."""
        if self.caption_kind != "trigger":
            return None
        h = hashlib.sha256(f"trigger|{self.id}".encode()).digest()
        return "".join("bcdfghjklmnpqrstvwxz"[b % 20] for b in h[:4]) + f"{h[4] % 90 + 10}"

    @property
    def seed(self) -> int:
        return int.from_bytes(hashlib.sha256(f"seed|{self.id}".encode()).digest()[:6], "big")

    @property
    def metadata(self) -> str:
        """How much its file says, as ``lora_export`` has it."""
        u = unit("metadata", self.id)
        return "rich" if u < 0.2 else "tags" if u < 0.35 else "none"

    @property
    def file_name(self) -> str:
        if self.metadata == "none" or self.trigger:
            return unnamed(self.seed, self.id)
        return f"{self.label.replace(' ', '_')}-{self.creator.name}-{self.id}.safetensors"

    @property
    def digest(self) -> str:
        """Changes when anything about the training changes; finished files carry it."""
        return hashlib.sha256(repr(sorted(asdict(self).items(), key=str)).encode()).hexdigest()[:16]


def unnamed(seed: int, tag: str) -> str:
    """A meaningless file name that no other file of this zoo has."""
    return meaningless_name(seed).replace(".safetensors", f"_{tag[:5]}.safetensors")


def _caption_kind(name: str) -> str:
    u = unit("caption-kind", name)
    for kind, share in CAPTION_KINDS:
        if u < share:
            return kind
        u -= share
    return CAPTION_KINDS[-1][0]


def _spec(name: str, subject: str | None, style: str | None, part: str, edition: int = 1) -> ScaleSpec:
    mine = [c for c in creators().values() if c.part == part]
    at = int(unit("scale-creator", name) * len(mine))
    kind = _caption_kind(name)
    if edition == 2:  # another creator, and its own way of captioning
        at, kind = (at + 1 + len(mine) // 2) % len(mine), _caption_kind(f"{name}|again")
    tag = hashlib.sha256(f"{name}|{edition}".encode()).hexdigest()[:10]
    return ScaleSpec(tag, subject, style, kind, part, mine[at], edition)


def _with_seconds(things: Iterable[tuple[str, str | None, str | None, str]], share: float) -> list[ScaleSpec]:
    out = []
    for thing in things:
        out.append(_spec(*thing))
        if unit("second-edition", thing[0]) < share:
            out.append(_spec(*thing, edition=2))
    return out


def _pairs(part: str) -> list[ScaleSpec]:
    """Subjects in made styles, both of one part. A true picture exists for each: the look of the subject's pictures."""
    subjects = [s for s in sorted(Splits.load().table["subjects"]) if subject_part(s) == part]
    made = [s for s, p in styles().items() if p == part and (s in TRANSFORMS or s in variants())]
    subjects.sort(key=lambda s: unit("pair-subject", s))
    made.sort(key=lambda s: unit("pair-style", s))
    count = PAIRS[part]
    return [_spec(f"pair|{s}|{made[i % len(made)]}", s, made[i % len(made)], part) for i, s in
            enumerate(subjects[:count])]  # fmt: skip


@cache
def plan() -> tuple[ScaleSpec, ...]:
    """Every LoRA, in an order drawn by hash, so that any prefix is a fair sample."""
    subjects = [(f"subject|{s}", s, None, subject_part(s)) for s in sorted(Splits.load().table["subjects"])]
    looks = [(f"style|{s}", None, s, part) for s, part in styles().items()]
    specs = _with_seconds(subjects, SECOND_SUBJECTS) + _with_seconds(looks, SECOND_STYLES)
    specs += [spec for part in PARTS for spec in _pairs(part)]
    return tuple(sorted(specs, key=lambda s: s.id))


def content_subjects(style: str, count: int) -> list[str]:
    """Base-known subjects of the training part that a style is trained on, by hash; none shares a word with it."""
    words = set(style_label(style).lower().replace("-", " ").split())
    known = [s for s in sorted(Splits.load().base_subjects) if subject_part(s) == "train"]
    apart = [s for s in known if not words & set(s.lower().split("-"))]
    return sorted(apart, key=lambda s: unit(f"scale-style-{style}", s))[:count]


def is_base_known(spec: ScaleSpec) -> bool:
    """Whether the base has seen all that this LoRA shows."""
    subject_known = spec.subject is None or spec.subject in Splits.load().base_subjects
    return subject_known and (spec.style is None or spec.style in BASE_STYLES)
