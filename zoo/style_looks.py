"""Looks with parameters: what the variants in ``style_variants`` are made of. Float pictures (H, W, 3) in 0..1."""

from __future__ import annotations

from collections.abc import Callable

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
        return mix(colour[owner].astype(np.float32), np.broadcast_to(lead, x.shape), np.clip(1.6 - border, 0, 1))

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
        back = mix(ramp(r / 128, *stops), np.broadcast_to(ball, x.shape), np.clip(26 - np.hypot(r - 40, c - 88), 0, 1))
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
