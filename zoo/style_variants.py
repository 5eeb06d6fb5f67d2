"""Parameterised variants of the transforms: other inks, grounds, sizes and strengths, each with an honest name.

They are kept out of ``TRANSFORMS``, whose names the judge and ``splits.json`` depend on. A variant belongs to the
*family* of the transform that it varies, and to that family's part of the split: a near-twin of a training style must
not stand in the test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from zoo.pixels import rgb, to_uint8
from zoo.style_looks import (
    BLACK,
    INKS,
    WHITE,
    Look,
    blurred,
    coarse,
    dark,
    dotted,
    drawn,
    faint,
    glass,
    glowing,
    greyed,
    grounded,
    halftone,
    inked,
    inverted,
    pale,
    pixels,
    plain,
    pop,
    sky,
    solarised,
    striped,
    struck,
    tinted,
    toned,
    turned,
    two_inks,
    washed,
)
from zoo.transforms import TRANSFORMS


def _p(family: str, *variants: tuple[str, Callable[[Look], Look]]) -> list[tuple[str, Look]]:
    look = plain(family)
    return [(name, make(look)) for name, make in variants]


def _inks(family: str, pattern: str, how: Callable[..., Look], *names: str) -> list[tuple[str, Look]]:
    return [(pattern.format(n), how(plain(family), n)) for n in names]


def _duo(*pairs: tuple[str, np.ndarray, np.ndarray]) -> list[tuple[str, Look]]:
    return [(f"{name} duotone", toned(lambda x: x, a, (a + b) / 2, b)) for name, a, b in pairs]


# Families whose marks have a size get a "coarse" variant; the others a "blurry" one.
SIZELESS = (
    "photo-negative", "sepia-photo", "purple-and-yellow-duotone", "thermal-camera", "soft-pastel", "glitch",
    "sunset-silhouette", "watercolour", "pixel-art",
)  # fmt: skip


@cache
def _specific() -> dict[str, list[tuple[str, Look]]]:
    """Family -> variants that only make sense there."""
    return {
        "pixel-art": [("tiny pixel art", pixels(28, 16)), ("huge pixel art", pixels(9, 8))]
        + _p("pixel-art", ("grey pixel art", greyed), ("green handheld pixel art", lambda f: inked(f, "green"))),
        "blueprint": _inks("blueprint", "{} blueprint", lambda f, n: toned(f, INKS[n][1] * 0.8, WHITE, low=0.25),
                           "crimson", "green", "violet", "black"),
        "neon-outline": _inks("neon-outline", "{} neon outline", glowing, "green", "amber", "white", "blue"),
        "pencil-sketch": _inks("pencil-sketch", "{} pencil sketch", drawn, "crimson", "blue", "green")
        + _p("pencil-sketch", ("white pencil on black", inverted)),
        "halftone-dots": [("magenta halftone dots", halftone(5, rgb(225, 0, 130), WHITE)),
                          ("blue halftone dots", halftone(5, rgb(0, 90, 200), WHITE)),
                          ("white halftone dots on black", halftone(5, WHITE, BLACK)),
                          ("red halftone dots on yellow", halftone(6, rgb(215, 30, 20), rgb(255, 220, 60)))],
        "sepia-photo": [("cyanotype photo", toned(plain("sepia-photo"), *INKS["blue"])),
                        ("green toned photo", toned(plain("sepia-photo"), *INKS["green"])),
                        ("rose toned photo", toned(plain("sepia-photo"), *INKS["rose"])),
                        ("black and white photo", greyed(plain("sepia-photo")))],
        "stained-glass-mosaic": [("large stained glass mosaic", glass(8, rgb(20, 20, 20))),
                                 ("tiny stained glass mosaic", glass(24, rgb(20, 20, 20))),
                                 ("white grouted mosaic", glass(15, rgb(245, 245, 240))),
                                 ("gold leaded mosaic", glass(13, rgb(205, 160, 40)))],
        "soft-pastel": [("mint pastel", pale(rgb(190, 255, 215))), ("lavender pastel", pale(rgb(222, 205, 255))),
                        ("lemon pastel", pale(rgb(255, 250, 170))), ("sky blue pastel", pale(rgb(185, 225, 255)))],
        "risograph-print": [("blue and orange risograph print", two_inks(rgb(255, 120, 20), rgb(30, 70, 190))),
                            ("green and red risograph print", two_inks(rgb(240, 60, 60), rgb(0, 130, 70))),
                            ("violet and yellow risograph print", two_inks(rgb(255, 215, 0), rgb(110, 40, 170))),
                            ("brown and mint risograph print", two_inks(rgb(120, 220, 180), rgb(100, 60, 30))),
                            ("black and gold risograph print", two_inks(rgb(225, 175, 40), rgb(25, 25, 25)))],
        "photo-negative": _p("photo-negative", ("grey photo negative", greyed)) + [("solarised photo", solarised)]
        + _inks("photo-negative", "{} film negative", inked, "amber", "blue"),
        "thermal-camera": _p("thermal-camera", ("white hot thermal camera", greyed),
                             ("black hot thermal camera", lambda f: inverted(greyed(f))))
        + _inks("thermal-camera", "{} thermal camera", inked, "green", "violet"),
        "purple-and-yellow-duotone": _duo(("red and cream", rgb(150, 10, 20), rgb(255, 245, 215)),
                                          ("navy and orange", rgb(10, 20, 80), rgb(255, 160, 60)),
                                          ("green and pink", rgb(0, 80, 50), rgb(255, 190, 215)),
                                          ("black and lime", rgb(5, 10, 5), rgb(190, 255, 60)),
                                          ("brown and sky blue", rgb(80, 40, 15), rgb(160, 220, 255)),
                                          ("wine and turquoise", rgb(95, 0, 45), rgb(90, 235, 220))),
        "glitch": _p("glitch", ("double glitch", lambda f: lambda x: f(f(x))), ("vertical glitch", turned),
                     ("grey glitch", greyed), ("violet glitch", lambda f: tinted(f, "violet"))),
        "emboss": _inks("emboss", "{} emboss", inked, "blue", "rose", "brown")
        + _p("emboss", ("sunken emboss", inverted)),
        "chalkboard": [(f"{n} chalkboard", toned(plain("chalkboard"), c, WHITE, low=0.2)) for n, c in
                       (("blue", rgb(25, 45, 95)), ("black", rgb(20, 20, 22)), ("brown", rgb(95, 60, 35)),
                        ("red", rgb(130, 30, 35)))],
        "pop-art": [("blue pop art", pop(rgb(40, 140, 255), rgb(20, 60, 200))),
                    ("green pop art", pop(rgb(120, 220, 60), rgb(20, 140, 60))),
                    ("violet pop art", pop(rgb(180, 90, 240), rgb(255, 120, 220))),
                    ("black pop art", pop(rgb(25, 25, 25), rgb(250, 250, 250)))],
        "night-vision": _inks("night-vision", "{} night vision", glowing, "amber", "blue", "crimson", "white"),
        "gold-relief": [(f"{n} relief", struck(n)) for n in ("silver", "copper", "jade", "ruby", "violet")],
        "frozen-ice": _inks("frozen-ice", "frozen {} ice", tinted, "green", "rose", "violet", "amber"),
        "crt-scanlines": _inks("crt-scanlines", "{} CRT scanlines", glowing, "green", "amber", "blue")
        + _p("crt-scanlines", ("vertical CRT scanlines", turned), ("grey CRT scanlines", greyed)),
        "cross-hatching": _inks("cross-hatching", "{} cross-hatching", drawn, "crimson", "blue", "green")
        + _p("cross-hatching", ("white cross-hatching on black", inverted)),
        "watercolour": _inks("watercolour", "{} watercolour", tinted, "blue", "rose", "amber")
        + _p("watercolour", ("grey ink wash", greyed)),
        "embroidery": [(f"{n} embroidery", grounded(plain("embroidery"), c)) for n, c in
                       (("blue denim", rgb(45, 70, 125)), ("black felt", rgb(22, 22, 26)),
                        ("red velvet", rgb(140, 15, 30)))]
        + [("gold thread embroidery", tinted(plain("embroidery"), "amber", 0.85)),
           ("silver thread embroidery", tinted(plain("embroidery"), "silver", 0.9))],
        "paper-cut": [(f"{n} paper cut", toned(plain("paper-cut"), *INKS[i])) for n, i in
                      (("red", "crimson"), ("grey", "silver"), ("blue", "blue"), ("violet", "violet"))],
        "charcoal-drawing": _inks("charcoal-drawing", "{} charcoal drawing", lambda f, n: inked(f, n, high=0.9),
                                  "crimson", "blue", "copper", "green")
        + _p("charcoal-drawing", ("white charcoal on black", inverted)),
        "comic-ink": _p("comic-ink", ("black and white comic ink", greyed))
        + _inks("comic-ink", "{} comic ink", lambda f, n: tinted(f, n, 0.85), "blue", "amber", "crimson"),
        "sunset-silhouette": [("moonlit silhouette", sky(rgb(8, 12, 45), rgb(50, 75, 140), ball=rgb(245, 245, 225))),
                              ("aurora silhouette", sky(rgb(5, 25, 50), rgb(30, 190, 130), rgb(90, 60, 160),
                                                        ball=rgb(200, 255, 220))),
                              ("pink dawn silhouette", sky(rgb(150, 170, 230), rgb(255, 185, 200), ball=WHITE)),
                              ("red planet silhouette", sky(rgb(60, 10, 10), rgb(210, 80, 30),
                                                            ball=rgb(255, 170, 90)))],
        "polka-dot-background": [("blue polka dot background", dotted(rgb(70, 140, 235))),
                                 ("green polka dot background", dotted(rgb(90, 185, 90), rgb(255, 240, 140))),
                                 ("black polka dot background", dotted(rgb(25, 25, 28))),
                                 ("orange striped background", striped)],
        "wood-engraving": _inks("wood-engraving", "{} wood engraving", lambda f, n: inked(f, n, low=0.15, high=0.75),
                                "crimson", "blue", "green", "black"),
    }  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """A look derived from the transform ``family``. ``name`` reads well after 'in' and before 'style'."""

    id: str
    name: str
    family: str
    look: Look

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) -> uint8 (H, W, 3)."""
        return to_uint8(self.look(image.astype(np.float32) / 255))


def _all() -> Iterator[Variant]:
    for family, transform in TRANSFORMS.items():
        look = plain(family)
        size = ("blurry", blurred) if family in SIZELESS else ("coarse", coarse)
        generic = (("faint", faint), ("dark", dark), ("washed-out", washed), size)
        looks = [(f"{word} {transform.name}", how(look)) for word, how in generic] + _specific()[family]
        for name, made in looks:
            yield Variant(name.lower().replace(" ", "-"), name, family, made)


@cache
def variants() -> dict[str, Variant]:
    """Every variant by its id, in a fixed order."""
    return {v.id: v for v in _all()}
