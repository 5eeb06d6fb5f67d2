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
from PIL import Image

from zoo import pixels as px
from zoo.pixels import Array, alpha, blur, dots, edges, grey, grid, lines, mix, pil, ramp, rgb, shift, to_uint8, unpil
from zoo.transforms import TRANSFORMS

Look = Callable[[Array], Array]
BLACK, WHITE = rgb(0, 0, 0), rgb(255, 255, 255)
# Ink -> dark, middle and light tone.
INKS: dict[str, tuple[Array, Array, Array]] = {
    "crimson": (rgb(55, 0, 10), rgb(205, 25, 50), rgb(255, 228, 226)),
    "green": (rgb(0, 38, 18), rgb(25, 145, 75), rgb(226, 250, 230)),
    "blue": (rgb(4, 14, 62), rgb(35, 85, 205), rgb(226, 236, 255)),
    "violet": (rgb(38, 0, 68), rgb(135, 55, 195), rgb(241, 228, 255)),
    "amber": (rgb(58, 28, 0), rgb(225, 140, 15), rgb(255, 240, 200)),
    "teal": (rgb(0, 38, 44), rgb(0, 140, 145), rgb(220, 248, 245)),
    "rose": (rgb(82, 8, 50), rgb(232, 95, 155), rgb(255, 230, 240)),
    "copper": (rgb(48, 18, 6), rgb(190, 105, 60), rgb(255, 222, 195)),
    "silver": (rgb(28, 30, 36), rgb(150, 156, 166), rgb(250, 252, 255)),
    "jade": (rgb(0, 45, 35), rgb(60, 165, 120), rgb(215, 255, 225)),
    "ruby": (rgb(60, 0, 20), rgb(190, 10, 60), rgb(255, 170, 190)),
    "brown": (rgb(40, 22, 10), rgb(140, 90, 50), rgb(245, 230, 210)),
    "black": (rgb(0, 0, 0), rgb(30, 30, 32), rgb(255, 255, 255)),
    "white": (rgb(90, 90, 95), rgb(225, 225, 230), rgb(255, 255, 255)),
}


def plain(family: str) -> Look:
    """The transform itself on float pictures."""
    return lambda x: TRANSFORMS[family](to_uint8(x)).astype(np.float32) / 255


def toned(look: Look, *stops: Array, low: float = 0.0, high: float = 1.0) -> Look:
    """A look in other inks: its brightness, ``low``..``high`` spread to 0..1, through evenly spaced colours."""
    return lambda x: ramp(np.clip((grey(look(x)) - low) / (high - low), 0, 1), *stops)


def inked(look: Look, ink: str, **span: float) -> Look:
    return toned(look, *INKS[ink], **span)


def glowing(look: Look, ink: str) -> Look:
    """Light of one colour on black."""
    return toned(look, BLACK, INKS[ink][1], WHITE, high=0.8)


def drawn(look: Look, ink: str) -> Look:
    """Dark marks in one ink on white."""
    return toned(look, INKS[ink][1] * 0.75, WHITE)


def inverted(look: Look) -> Look:
    return lambda x: 1 - look(x)


def tinted(look: Look, ink: str, amount: float = 0.65) -> Look:
    """The look's own colours pulled towards one ink."""
    return lambda x: look(x) * (1 - amount) + ramp(grey(look(x)), *INKS[ink]) * amount


def greyed(look: Look) -> Look:
    return lambda x: np.repeat(grey(look(x))[..., None], 3, -1)


def grounded(look: Look, ground: Array) -> Look:
    """The look where the drawing is, one colour around it."""
    return lambda x: mix(np.broadcast_to(ground, x.shape), look(x), alpha(x))


def faint(look: Look) -> Look:
    """Two fifths of the look over the untouched picture."""
    return lambda x: 0.4 * look(x) + 0.6 * x


def dark(look: Look) -> Look:
    return lambda x: look(x) ** 1.3 * 0.5


def washed(look: Look) -> Look:
    return lambda x: 0.45 * look(x) + 0.55


def blurred(look: Look) -> Look:
    return lambda x: blur(look(x), 2.5)


def coarse(look: Look) -> Look:
    """Everything the look draws, twice as large: applied to the picture at half size, then enlarged."""

    def apply(x: Array) -> Array:
        h, w = x.shape[0] // 2, x.shape[1] // 2
        page = np.ones_like(x)
        top, left = h // 2, w // 2
        page[top : top + h, left : left + w] = unpil(pil(x).resize((w, h), Image.Resampling.BOX))
        part = look(page)[top : top + h, left : left + w]
        return unpil(pil(part).resize((x.shape[1], x.shape[0]), Image.Resampling.NEAREST))

    return apply


def turned(look: Look) -> Look:
    """What runs across the picture runs down it."""
    return lambda x: look(x.swapaxes(0, 1)).swapaxes(0, 1)


def pixels(side: int, colours: int = 10) -> Look:
    def apply(x: Array) -> Array:
        small = pil(x).resize((side, side), Image.Resampling.BOX).quantize(colours, dither=Image.Dither.NONE)
        return unpil(small.convert("RGB").resize((x.shape[1], x.shape[0]), Image.Resampling.NEAREST))

    return apply


def glass(count: int, lead: Array) -> Look:
    """Cells of one colour, ``count`` a side, with leading of one colour."""

    def apply(x: Array) -> Array:
        owner, border = px.cells(x.shape[0], x.shape[1], count)
        n = np.maximum(np.bincount(owner.ravel()), 1)
        colour = np.stack([np.bincount(owner.ravel(), x[..., i].ravel()) / n for i in range(3)], -1)
        return mix(
            colour[owner].astype(np.float32), np.broadcast_to(lead, x.shape), np.clip(1.6 - border, 0, 1)
        )

    return apply


def two_inks(first: Array, second: Array) -> Look:
    """Risograph in two inks, out of register."""

    def apply(x: Array) -> Array:
        one = dots(x, 3.2, 20, np.clip(1.15 - shift(x[..., 1], 2, 1), 0, 1))
        two = dots(x, 3.2, 65, np.clip(1.0 - shift(grey(x), -2, -1), 0, 1))
        paper = np.broadcast_to(rgb(250, 246, 235), x.shape)
        return mix(paper, paper * first, one) * (1 - two[..., None] * (1 - second))

    return apply


def pale(colour: Array) -> Look:
    return lambda x: blur(x, 1.2) * 0.45 + colour * 0.55


def halftone(period: float, ink: Array, paper: Array) -> Look:
    return lambda x: paper + (ink - paper) * dots(x, period, 45, 1 - grey(x))[..., None]


def struck(ink: str) -> Look:
    return lambda x: ramp(px.relief(x), *INKS[ink])


def sky(*stops: Array, ball: Array) -> Look:
    """A dark figure before a sky of these colours, with a sun or moon."""

    def apply(x: Array) -> Array:
        r, c = grid(x)
        back = mix(
            ramp(r / 128, *stops), np.broadcast_to(ball, x.shape), np.clip(26 - np.hypot(r - 40, c - 88), 0, 1)
        )
        return mix(back, x * 0.2 * stops[0] * 2, alpha(x))

    return apply


def dotted(ground: Array, dot: Array = WHITE) -> Look:
    def apply(x: Array) -> Array:
        amount = np.full(x.shape[:2], 0.22, np.float32)
        back = mix(np.broadcast_to(ground, x.shape), np.broadcast_to(dot, x.shape), dots(x, 18, 45, amount))
        return mix(back, x, alpha(x))

    return apply


def striped(x: Array) -> Array:
    bars = lines(x, 16, 0, np.full(x.shape[:2], 0.5, np.float32))
    ground = mix(np.broadcast_to(rgb(255, 225, 120), x.shape), np.broadcast_to(rgb(240, 110, 60), x.shape), bars)
    return mix(ground, x, alpha(x))


def pop(ground: Array, dot: Array) -> Look:
    def apply(x: Array) -> Array:
        flat = np.round(np.clip((x - 0.5) * 1.8 + 0.5, 0, 1) * 2) / 2
        amount = np.full(x.shape[:2], 0.25, np.float32)
        back = mix(np.broadcast_to(ground, x.shape), np.broadcast_to(dot, x.shape), dots(x, 8, 45, amount))
        return mix(back, flat, alpha(x)) * (1 - 0.9 * edges(x, 2)[..., None])

    return apply


def solarised(x: Array) -> Array:
    return 1 - np.abs(2 * x - 1)


def _p(family: str, *variants: tuple[str, Callable[[Look], Look]]) -> list[tuple[str, Look]]:
    look = plain(family)
    return [(name, make(look)) for name, make in variants]


def _inks(family: str, pattern: str, how: Callable[..., Look], *names: str) -> list[tuple[str, Look]]:
    return [(pattern.format(n), how(plain(family), n)) for n in names]


def _duo(*pairs: tuple[str, Array, Array]) -> list[tuple[str, Look]]:
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
