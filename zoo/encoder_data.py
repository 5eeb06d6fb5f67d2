"""A pack of the zoo as an encoder is trained on it: groups of tokens, texts, and who must not be told apart.

Groups: ``sketches`` (what a file alone gives), ``functional`` (what each update does to real inputs of the base),
``profile`` (how strongly the text-fed layers answer to a bank of texts), ``draw`` (what it draws unasked).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autolora_core.encode.features import size_for
from autolora_core.encode.set_encoder import MODULES, token_schema
from autolora_core.encode.tokens import TokenMap, assemble
from autolora_core.train.steps import Arrays
from zoo.captions import with_article
from zoo.features_pack import Pack

GROUPS = (MODULES, "functional", "profile", "draw")
PROFILE_CLIP, PROFILE_UNIT = 12.0, 8.0


@dataclass
class EncoderData:
    """``groups``: name -> (tokens (n, T, w), mask (n, T)). ``texts[i]``: what LoRA i may be asked for by, best first.

    ``train``, ``validation``, ``test`` (n,) bool. ``thing`` (n,) int: LoRAs of one number show the same.
    """

    groups: Arrays
    texts: list[tuple[str, ...]]
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    thing: np.ndarray
    recipe: np.ndarray
    tokens: TokenMap


def texts_of(row: dict, keywords: Sequence[str]) -> tuple[str, ...]:
    """What a LoRA shows, in several ways of saying it. The truth about it, also where its captions were a trigger."""
    label = row["label"]
    if row["subject"] is None:
        return (f"{label} style", label, f"a picture in {label} style")
    out = [label, with_article(label), f"a picture of {with_article(label)}"]
    if len(keywords) >= 2:
        out += [f"{label}, {', '.join(keywords[:3])}", f"{', '.join(keywords[:4])}"]
    return tuple(out)


def token_map(pack: Pack, train: np.ndarray) -> TokenMap:
    """The map from a library's sketches to the pack's tokens, scaled by the training LoRAs."""
    split = tuple(pack.info["split"])
    schema = token_schema("emoji", size_for("emoji"), split)
    mask, norms = split_norms(pack)
    kept = pack.arrays["tokens"][train]
    there = mask[train].sum(axis=0).clip(1)[:, None]
    spread = np.sqrt((kept**2).sum(axis=0) / there)
    # Half-way to whitening: leading directions stay louder, the rest can be heard.
    scale = np.sqrt(spread * np.sqrt((spread**2).mean(axis=1, keepdims=True)))
    usual = (norms * mask)[train].sum(axis=0) / there[:, 0]
    return TokenMap(schema, pack.bases["tokens"], pack.means["tokens"], scale.astype(np.float32),
                    usual.astype(np.float32))  # fmt: skip


def split_norms(pack: Pack) -> tuple[np.ndarray, np.ndarray]:
    """(n, S) mask and log-norms for the split modules; q, k and v of a fused layer share its norm."""
    at = [pack.info["modules"].index(name.partition("[")[0]) for name in pack.info["split"]]
    mask = pack.arrays["present"][:, at] & np.any(pack.arrays["tokens"] != 0, axis=2)
    return mask, np.where(mask, pack.arrays["log_norm"][:, at], 0)


def encoder_data(pack: Pack, profile: np.ndarray, only: np.ndarray | None = None) -> EncoderData:
    """``profile`` (n, B): z-scored responses to the bank, NaN for LoRAs that change no text-fed layer. ``only`` (n,)
    bool cuts the training part."""
    part = pack.column("part")
    train, validation, test = (part == name for name in ("train", "validation", "test"))
    train = train if only is None else train & only
    tokens = token_map(pack, train)
    mask, norms = split_norms(pack)
    modules = assemble(pack.arrays["tokens"], mask, norms, tokens.scale, tokens.usual)
    drawn = np.any(pack.arrays["draw"] != 0, axis=1)
    groups = {
        MODULES: (modules, mask),
        "functional": (_scaled(pack.arrays["functional"], train), pack.arrays["present"]),
        "profile": profile_groups(profile),
        "draw": (_scaled(pack.arrays["draw"][:, None], train), drawn[:, None]),
    }
    keywords = pack.info["keywords"]
    texts = [texts_of(row, keywords.get(row["subject"], ())) for row in pack.rows]
    things: dict[tuple, int] = {}
    thing = np.array([things.setdefault((r["subject"], r["style"]), len(things)) for r in pack.rows])
    recipes: dict[str, int] = {}
    recipe = np.array([recipes.setdefault(r["creator"], len(recipes)) for r in pack.rows])
    return EncoderData(groups, texts, train, validation, test, thing, recipe, tokens)


def profile_groups(profile: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, B) z-scores, NaN where there is no text-fed layer → (n, 1, B) tokens and (n, 1) mask.

    Squared above zero: what a LoRA answers to loudly says what it is of, what it ignores says little.
    """
    heard = np.isfinite(profile).all(axis=1)
    loud = np.clip(np.nan_to_num(profile), 0, PROFILE_CLIP) ** 2 / PROFILE_UNIT
    return loud[:, None].astype(np.float32), heard[:, None]


def _scaled(x: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Unit mean square a token over the training LoRAs that have it, half-way to whitening."""
    there = np.any(x != 0, axis=2)[train].sum(axis=0).clip(1)[:, None]
    spread = np.sqrt((x[train] ** 2).sum(axis=0) / there)
    scale = np.sqrt(spread * np.sqrt((spread**2).mean(axis=1, keepdims=True)))
    return np.clip(x / np.where(scale > 0, scale, 1), -8, 8).astype(np.float32)
