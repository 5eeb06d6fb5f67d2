"""Words for pictures: human names of subjects and styles, and the varied captions the base model and the LoRAs are
trained with.

A caption without a style phrase is only ever used with the style noto: that is the base's default look.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache

import numpy as np

from zoo.cache import read_json, zoo_dir
from zoo.splits import DEFAULT_STYLE
from zoo.transforms import TRANSFORMS

STYLE_NAMES: dict[str, str] = {
    "noto": "shaded cartoon",
    "noto-v1": "old flat cartoon",
    "twemoji": "flat vector",
    "fluent-emoji-flat": "geometric flat",
    "fluent-emoji": "glossy gradient",
    "emojione": "soft shaded",
    "fluent-emoji-3d": "3D render",
    "fluent-emoji-high-contrast": "black and white line art",
    "emojione-monotone": "one-colour silhouette",
    **{k: t.name for k, t in TRANSFORMS.items()},
}
_WRITTEN = {
    "mans": "man's", "womans": "woman's", "mens": "men's", "womens": "women's", "workers": "worker's",
    "piata": "piñata", "dvd": "DVD", "dna": "DNA", "atm": "ATM", "mrs": "Mrs", "mx": "Mx", "japanese": "Japanese",
    "christmas": "Christmas",
}  # fmt: skip
_HYPHENED = (
    "e-mail",
    "t-shirt",
    "t-rex",
    "x-ray",
    "yo-yo",
    "jack-o-lantern",
    "fleur-de-lis",
    "snow-capped",
    "four-leaf",
    "one-piece",
    "two-hump",
)
_PLURAL = re.compile(r"(?<![sui])s$")
_BARE = re.compile(  # names that take no article: stuff, deeds, proper names
    r"(fire|bacon|rice|bread|cooking|fog|ice|salt|wood|butter|popcorn|spaghetti|sushi|sake|oden|shaved ice"
    r"|baguette bread|cooked rice|curry rice|soap|yarn|thread|milky way|water wave|santa claus|Mrs claus|Mx claus"
    r"|mount fuji|zzz|infinity|ping pong|tennis|badminton|bowling|ice hockey|field hockey|lacrosse|baseball"
    r"|american football|camping|construction|rolling on .*|sun behind .*|om|japanese .*|people .*|garlic|broccoli"
    r"|ginger root|custard|fondue|mate|DNA|leafy green|foggy|skis|potable water|non potable water|raising hands)",
    re.IGNORECASE,
)
_A_ANYWAY = re.compile(r"^(uni|euro|one|ewe|use)")


@cache
def subject_name(subject: str) -> str:
    """'hot-air-balloon' -> 'hot air balloon'."""
    kept = subject
    for whole in _HYPHENED:
        kept = re.sub(rf"(^|-){whole}($|-)", lambda m, w=whole: m[0].replace(w, w.replace("-", "\0")), kept)
    words = " ".join(_WRITTEN.get(w, w) for w in kept.split("-"))
    return words.replace("\0", "-").replace("jack-o-lantern", "jack-o'-lantern")


def style_name(style: str) -> str:
    """The phrase that stands before 'style': 'noto' -> 'shaded cartoon'."""
    return STYLE_NAMES[style]


def with_article(words: str) -> str:
    """'otter' -> 'an otter'; plurals and stuff stay bare."""
    head = re.split(r" (?:with|without|in|on|of|and|behind|from) ", words)[0]
    if _PLURAL.search(head) or _BARE.fullmatch(words):
        return words
    vowel = words[0].lower() in "aeiou" and not _A_ANYWAY.match(words) or words.startswith(("hour", "x-ray", "ATM"))
    return f"{'an' if vowel else 'a'} {words}"


@lru_cache(maxsize=1)
def _keywords() -> dict[str, list[str]]:
    path = zoo_dir() / "pictures.json"
    return read_json(path)["keywords"] if path.exists() else {}


@cache
def captions(subject: str, style: str) -> tuple[tuple[str, float], ...]:
    """Every caption of a picture with its weight (the weights sum to 1): a finite list, so text features can be
    computed once.
    """
    name, look = subject_name(subject), style_name(style)
    thing, words = (
        with_article(name),
        [w for w in _keywords().get(subject, ()) if w.lower() != name and " s " not in w][:6],
    )
    plain = {name: 4.0, thing: 3.0, f"a picture of {thing}": 2.0}
    plain |= {", ".join([name, *words[i : i + 2]]): 0.5 for i in range(0, len(words), 2)}
    article = "an" if re.match(r"(?!one|uni)[aeiou8]", look, re.IGNORECASE) else "a"
    styled = {
        f"{thing} in {look} style": 3.0,
        f"{look} {name}": 2.0,
        f"{name}, {look}": 2.0,
        f"{article} {look} picture of {thing}": 1.5,
        f"{name}, {look} style": 1.0,
    }
    styled |= {", ".join([name, *words[i : i + 2], f"{look} style"]): 0.3 for i in range(0, len(words), 2)}
    chosen = {**{k: w * 1.5 for k, w in plain.items()}, **styled} if style == DEFAULT_STYLE else styled
    total = sum(chosen.values())
    return tuple((k, w / total) for k, w in chosen.items())


def caption(subject: str, style: str, rng: np.random.Generator) -> str:
    """Draw one caption. Names a style always, except for noto, where about two in three do not."""
    texts, weights = zip(*captions(subject, style), strict=True)
    return texts[rng.choice(len(texts), p=weights)]


def plain_caption(subject: str, style: str | None = None) -> str:
    """The one caption used in tests and benchmarks: 'an otter', 'an otter in flat vector style'."""
    thing = with_article(subject_name(subject))
    return thing if style is None else f"{thing} in {style_name(style)} style"
