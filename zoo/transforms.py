"""Styles made by us: deterministic picture transforms, uint8 (H, W, 3) -> uint8 (H, W, 3), each with an honest name
for prompts.

A transform of any picture is defined, so each is a style with a right answer for every subject. They expect a drawing
on white.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from zoo.pixels import (
    TRANSFORMS,
    Array,
    Transform,
    alpha,
    blur,
    cells,
    dots,
    edges,
    grey,
    grid,
    lines,
    mix,
    noise,
    pil,
    ramp,
    relief,
    rgb,
    shift,
    style,
    unpil,
)

__all__ = ["TRANSFORMS", "Transform"]
INK = (0.10, 0.10, 0.14)


@style("pixel art")
def pixel_art(x: Array) -> Array:
    """16 x 16 big pixels, few colours."""
    small = pil(x).resize((16, 16), Image.Resampling.BOX).quantize(10, dither=Image.Dither.NONE).convert("RGB")
    return unpil(small.resize((x.shape[1], x.shape[0]), Image.Resampling.NEAREST))


@style("blueprint")
def blueprint(x: Array) -> Array:
    """White lines on ruled blue paper."""
    r, c = grid(x)
    ruled = ((r % 16 < 1) | (c % 16 < 1)).astype(np.float32) * 0.18
    paper = np.broadcast_to(rgb(24, 70, 160), x.shape)
    return mix(paper, np.ones_like(x), np.maximum(ruled, edges(x, 3.5)))


@style("neon outline")
def neon(x: Array) -> Array:
    """Glowing outlines on black, hue running across the picture."""
    r, c = grid(x)
    line = edges(x, 3.5)
    hue = ramp(np.clip((r + c) / 256, 0, 1), rgb(255, 40, 180), rgb(150, 60, 255), rgb(30, 230, 255))
    glow = np.clip(line + 1.2 * blur(line, 3) + 0.8 * blur(line, 7), 0, 1)
    return hue * glow[..., None] + (line**3)[..., None] * 0.5


@style("pencil sketch")
def pencil(x: Array) -> Array:
    """Graphite: dodge of the inverted blur, with paper grain."""
    g = grey(x)
    dodge = np.clip(g / np.maximum(1 - blur(1 - g, 6), 0.05), 0, 1) ** 1.5
    tone = np.clip(dodge * 0.75 + g * 0.25 - 0.35 * edges(x), 0, 1)
    grain = (noise(*g.shape) - 0.5) * 0.16 * (1 - tone)
    return np.repeat((0.15 + 0.82 * tone + grain)[..., None], 3, -1)


@style("halftone dots")
def halftone(x: Array) -> Array:
    """Newspaper dots in black."""
    return np.repeat((1 - dots(x, 5, 45, 1 - grey(x)))[..., None], 3, -1)


@style("sepia photo")
def sepia(x: Array) -> Array:
    """Old brown photograph with a dark border."""
    r, c = grid(x)
    vignette = np.clip(1.25 - np.hypot(r - 64, c - 64) / 95, 0.35, 1)
    return ramp(grey(x), rgb(40, 22, 8), rgb(150, 105, 60), rgb(245, 225, 185)) * vignette[..., None]


@style("stained glass mosaic")
def stained_glass(x: Array) -> Array:
    """Cells of one colour with dark leading."""
    owner, border = cells(x.shape[0], x.shape[1], 15)
    n = np.maximum(np.bincount(owner.ravel()), 1)
    colour = np.stack([np.bincount(owner.ravel(), x[..., i].ravel()) / n for i in range(3)], -1)
    glass = np.clip((colour - 0.5) * 1.25 + 0.5, 0, 1)[owner].astype(np.float32)
    return mix(glass, np.zeros_like(x) + 0.08, np.clip(1.6 - border, 0, 1))


@style("soft pastel")
def pastel(x: Array) -> Array:
    """Pale, low-contrast colours on cream, grainy edges."""
    pale = blur(x, 1.2) * 0.45 + rgb(255, 236, 226) * 0.55
    return pale + ((noise(*x.shape[:2], 3) - 0.5) * 0.10)[..., None]


@style("risograph print")
def risograph(x: Array) -> Array:
    """Two inks, pink and teal, out of register."""
    g = grey(x)
    pink = dots(x, 3.2, 20, np.clip(1.15 - shift(x[..., 1], 2, 1), 0, 1))
    teal = dots(x, 3.2, 65, np.clip(1.0 - shift(0.6 * x[..., 0] + 0.4 * g, -2, -1), 0, 1))
    paper = np.broadcast_to(rgb(250, 246, 235), x.shape)
    return mix(paper, paper * rgb(255, 72, 140), pink) * (1 - teal[..., None] * (1 - rgb(0, 150, 155)))


@style("photo negative")
def negative(x: Array) -> Array:
    """Inverted colours."""
    return 1 - x


@style("thermal camera")
def thermal(x: Array) -> Array:
    """Heat colours: background cold, light parts of the drawing hot."""
    heat = alpha(x) * (0.35 + 0.65 * blur(grey(x), 2))
    return ramp(heat, rgb(10, 0, 60), rgb(90, 0, 150), rgb(220, 30, 90), rgb(255, 150, 0), rgb(255, 250, 190))


@style("purple and yellow duotone")
def duotone(x: Array) -> Array:
    """Dark purple to yellow."""
    return ramp(grey(x), rgb(60, 0, 110), rgb(190, 60, 120), rgb(255, 225, 60))


@style("glitch")
def glitch(x: Array) -> Array:
    """Colour channels apart, rows displaced."""
    out = np.stack([shift(x[..., 0], 5, 0), x[..., 1], shift(x[..., 2], -5, 0)], -1)
    moves = np.random.default_rng(5).integers(-9, 10, 16) * (np.random.default_rng(6).random(16) < 0.45)
    rows = np.array_split(np.arange(x.shape[0]), 16)
    return np.concatenate([shift(out[r], int(m), 0) for r, m in zip(rows, moves, strict=True)])


@style("emboss")
def emboss(x: Array) -> Array:
    """Grey raised relief."""
    return np.repeat(relief(x)[..., None], 3, -1)


@style("chalkboard")
def chalk(x: Array) -> Array:
    """Chalk strokes on a green board."""
    line = edges(x, 3) * (0.55 + 0.6 * noise(*x.shape[:2], 1))
    fill = alpha(x) * lines(x, 4, 60, np.full(x.shape[:2], 0.3, np.float32)) * 0.45 * grey(x)
    return mix(
        np.broadcast_to(rgb(38, 66, 54), x.shape), np.clip(x * 0.4 + 0.6, 0, 1), np.clip(np.maximum(line, fill), 0, 1)
    )


@style("pop art")
def pop_art(x: Array) -> Array:
    """Few saturated colours on a yellow ground with dots."""
    flat = np.round(np.clip((x - 0.5) * 1.8 + 0.5, 0, 1) * 2) / 2
    ground = mix(
        np.broadcast_to(rgb(255, 214, 0), x.shape),
        np.broadcast_to(rgb(255, 90, 60), x.shape),
        dots(x, 8, 45, np.full(x.shape[:2], 0.25)),
    )
    return mix(ground, flat, alpha(x)) * (1 - 0.9 * edges(x, 2)[..., None])


@style("night vision")
def night_vision(x: Array) -> Array:
    """Green phosphor, grain, round view."""
    r, c = grid(x)
    round_view = np.clip((62 - np.hypot(r - 64, c - 64)) / 4, 0, 1)
    light = 0.15 + 0.85 * (alpha(x) * grey(x)) + (noise(*x.shape[:2], 2) - 0.5) * 0.22
    return ramp(np.clip(light, 0, 1) * round_view, rgb(0, 8, 0), rgb(20, 150, 30), rgb(200, 255, 170))


@style("gold relief")
def gold(x: Array) -> Array:
    """Struck in gold."""
    return ramp(relief(x), rgb(60, 30, 0), rgb(200, 140, 20), rgb(255, 245, 180))


@style("frozen ice")
def ice(x: Array) -> Array:
    """Pale blue glass with cracks."""
    _, border = cells(x.shape[0], x.shape[1], 7)
    body = ramp(
        np.clip(0.5 * grey(x) + 0.5 * relief(x), 0, 1), rgb(20, 70, 130), rgb(110, 190, 235), rgb(240, 252, 255)
    )
    cracked = mix(body, np.ones_like(x), np.clip(0.9 - border, 0, 1) * 0.7)
    return mix(np.broadcast_to(rgb(214, 236, 250), x.shape), cracked, alpha(x))


@style("CRT scanlines")
def crt(x: Array) -> Array:
    """Old screen: bright, dark lines between rows, red-green-blue bleed, dark ground."""
    r, _ = grid(x)
    bleed = np.stack([shift(x[..., 0], 1, 0), x[..., 1], shift(x[..., 2], -1, 0)], -1)
    screen = mix(np.broadcast_to(rgb(16, 22, 40), x.shape), np.clip(bleed * 1.25, 0, 1), alpha(x))
    return screen * (0.3 + 0.7 * (r % 4 < 2))[..., None]


@style("cross-hatching")
def cross_hatch(x: Array) -> Array:
    """Ink lines in up to four directions, denser where darker."""
    dark = 1 - grey(x)
    ink = np.zeros_like(dark)
    for angle, start in ((45, 0.06), (135, 0.28), (0, 0.5), (90, 0.7)):
        ink = np.maximum(ink, lines(x, 5, angle, np.full_like(dark, 0.32)) * (dark > start))
    return mix(
        np.ones_like(x), np.broadcast_to(np.array(INK, np.float32), x.shape), np.maximum(ink, edges(x, 2.5) ** 1.5)
    )


@style("watercolour")
def watercolour(x: Array) -> Array:
    """Bleeding washes on paper, darker at the rim."""
    wash = unpil(pil(x).filter(ImageFilter.ModeFilter(9)).filter(ImageFilter.GaussianBlur(2.2)))
    rim = np.abs(blur(alpha(x), 1.5) - blur(alpha(x), 4))
    cloud = blur(noise(*x.shape[:2], 4), 5)
    cloud = (cloud - cloud.mean()) * 5
    paper = rgb(252, 249, 240) + ((noise(*x.shape[:2], 8) - 0.5) * 0.04)[..., None]
    return paper * (1 - (1 - wash) * np.clip(0.8 + cloud, 0.4, 1)[..., None]) * (1 - 0.8 * rim[..., None])


@style("embroidery")
def embroidery(x: Array) -> Array:
    """Slanted satin stitches on linen."""
    r, c = grid(x)
    stitched = unpil(pil(x).filter(ImageFilter.ModeFilter(7)))
    thread = 0.62 + 0.38 * np.abs(np.sin((c + r * 0.5) * np.pi / 4)) * (0.8 + 0.2 * (r % 8 > 1))
    linen = rgb(216, 200, 170) * (0.86 + 0.14 * (((r // 2) + (c // 2)) % 2))[..., None]
    return mix(linen, stitched * thread[..., None], alpha(x))


@style("paper cut")
def paper_cut(x: Array) -> Array:
    """Flat paper layers with a drop shadow on craft paper."""
    flat = unpil(
        pil(unpil(pil(x).filter(ImageFilter.ModeFilter(7)))).quantize(6, dither=Image.Dither.NONE).convert("RGB")
    )
    shadow = blur(shift(alpha(x), 5, 6), 3.5) * 0.6
    craft = rgb(205, 160, 115) * (0.97 + 0.06 * noise(*x.shape[:2], 9))[..., None]
    layer = flat * (1 - 0.35 * np.clip(edges(shift(flat, 1, 1), 1.5), 0, 1)[..., None])
    return mix(craft * (1 - shadow[..., None]), layer, alpha(x))


@style("charcoal drawing")
def charcoal(x: Array) -> Array:
    """Smudged black on rough grey paper."""
    n = noise(*x.shape[:2], 10)
    line = blur(edges(x, 4), 1.2) * (0.5 + n)
    smudge = blur(1 - grey(x), 4) * 0.75 * (0.65 + 0.5 * n)
    return np.repeat((0.86 * (1 - np.clip(line + smudge, 0, 1)) + 0.05)[..., None], 3, -1)


@style("comic ink")
def comic(x: Array) -> Array:
    """Thick black outline, bright flat colours, dotted shade."""
    flat = np.round(np.clip((x - 0.5) * 1.2 + 0.55, 0, 1) * 4) / 4
    shade = dots(x, 4, 45, np.clip(0.75 - grey(x), 0, 1)) * alpha(x) * 0.35
    a = alpha(x)
    rim = np.clip(unpil(pil(a).filter(ImageFilter.MaxFilter(7))) - unpil(pil(a).filter(ImageFilter.MinFilter(3))), 0, 1)
    return flat * (1 - shade[..., None]) * (1 - np.clip(np.maximum(rim, edges(x, 3) ** 1.5), 0, 1)[..., None])


@style("sunset silhouette")
def sunset(x: Array) -> Array:
    """Dark figure before an orange and violet sky with a sun."""
    r, c = grid(x)
    sky = ramp(r / 128, rgb(70, 30, 120), rgb(235, 90, 90), rgb(255, 200, 90))
    sky = mix(sky, np.broadcast_to(rgb(255, 240, 170), x.shape), np.clip(34 - np.hypot(r - 80, c - 64), 0, 1))
    return mix(sky, x * 0.22 * rgb(200, 120, 200), alpha(x))


@style("polka dot background")
def polka(x: Array) -> Array:
    """The drawing itself before pink paper with white dots."""
    ground = mix(
        np.broadcast_to(rgb(255, 140, 170), x.shape), np.ones_like(x), dots(x, 18, 45, np.full(x.shape[:2], 0.22))
    )
    return mix(ground, x, alpha(x))


@style("wood engraving")
def engraving(x: Array) -> Array:
    """Wavy horizontal cuts in brown wood, thicker where darker."""
    r, c = grid(x)
    phase = np.abs(((r + 1.6 * np.sin(c / 9)) / 4.5) % 1 - 0.5) * 2
    cut = np.clip((alpha(x) * (1.05 - 0.75 * grey(x)) - phase) * 2.2 + 0.5, 0, 1) * (alpha(x) > 0.05)
    wood = rgb(214, 170, 110) * (0.93 + 0.07 * np.sin(r / 2.2 + 2 * np.sin(c / 30)))[..., None]
    return mix(wood, np.broadcast_to(rgb(70, 35, 12), x.shape), np.maximum(cut, edges(x, 2) ** 2))
