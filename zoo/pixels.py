"""Small picture tools the transforms are made of: float32 pictures (H, W, 3) in 0..1, masks and grey (H, W)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Array = np.ndarray


def to_uint8(x: Array) -> np.ndarray:
    """Float 0..1 -> uint8, rounded."""
    return (np.clip(x, 0, 1) * 255 + 0.5).astype(np.uint8)


def pil(x: Array) -> Image.Image:
    """Float array -> PIL picture (RGB or L)."""
    return Image.fromarray(to_uint8(x))


def unpil(x: Image.Image) -> Array:
    """PIL picture -> float array."""
    return np.asarray(x, np.float32) / 255


def rgb(*c: float) -> Array:
    """A colour (3,) from 0..255 numbers."""
    return np.array(c, np.float32) / 255


def grey(x: Array) -> Array:
    """Luma (H, W)."""
    return x @ np.array([0.299, 0.587, 0.114], np.float32)


def blur(x: Array, radius: float) -> Array:
    """Gaussian blur of a picture or a mask."""
    return unpil(pil(x).filter(ImageFilter.GaussianBlur(radius)))


def mix(a: Array, b: Array, mask: Array) -> Array:
    """a where the mask (H, W) is 0, b where it is 1."""
    m = mask[..., None]
    return a * (1 - m) + b * m


def shift(x: Array, dx: int, dy: int) -> Array:
    """Move a picture right and down, repeating its border."""
    h, w = x.shape[:2]
    return x[np.clip(np.arange(h) - dy, 0, h - 1)][:, np.clip(np.arange(w) - dx, 0, w - 1)]


def edges(x: Array, gain: float = 3.0) -> Array:
    """Edge strength (H, W) in 0..1: the greatest colour gradient, slightly smoothed."""
    s = blur(x, 0.7)
    gx, gy = s - shift(s, 2, 0), s - shift(s, 0, 2)
    return np.clip(np.sqrt((gx**2 + gy**2).max(-1)) * gain, 0, 1)


def alpha(x: Array) -> Array:
    """How much the drawing covers each pixel (H, W): white reached from the border is background, the rest is
    drawing.
    """
    h, w = x.shape[:2]
    padded = np.ones((h + 2, w + 2), np.uint8)
    padded[1:-1, 1:-1] = x.min(-1) > 0.94
    image = Image.fromarray(padded * 255).copy()  # floodfill leaves a read-only picture as it was
    ImageDraw.floodfill(image, (0, 0), 128)
    outside = np.asarray(image)[1:-1, 1:-1] == 128
    return blur(1 - outside.astype(np.float32), 0.6)


def grid(x: Array) -> tuple[Array, Array]:
    """Pixel coordinates (rows (H, W), columns (H, W)) as floats in units of a 128 px picture."""
    h, w = x.shape[:2]
    r, c = np.mgrid[0:h, 0:w].astype(np.float32)
    return r * 128 / h, c * 128 / w


@lru_cache(maxsize=8)
def noise(h: int, w: int, seed: int = 0) -> Array:
    """Fixed uniform noise (H, W)."""
    return np.random.default_rng(seed).random((h, w), dtype=np.float32)


def ramp(values: Array, *stops: Array) -> Array:
    """Map grey (H, W) in 0..1 through evenly spaced colours."""
    at = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(values, at, [s[i] for s in stops]) for i in range(3)], -1).astype(np.float32)


def lines(x: Array, period: float, angle: float, width: Array) -> Array:
    """Stripes (H, W) in 0..1 covering the fraction `width` of each period, antialiased."""
    r, c = grid(x)
    t = np.radians(angle)
    phase = np.abs(((c * np.cos(t) + r * np.sin(t)) / period) % 1 - 0.5) * 2
    return np.clip((width - phase) * period / 2 + 0.5, 0, 1)


def dots(x: Array, period: float, angle: float, amount: Array) -> Array:
    """Halftone dots (H, W) whose area follows `amount`."""
    r, c = grid(x)
    t = np.radians(angle)
    u, v = (c * np.cos(t) + r * np.sin(t)) / period, (r * np.cos(t) - c * np.sin(t)) / period
    d = np.hypot(u % 1 - 0.5, v % 1 - 0.5)
    return np.clip((np.sqrt(np.clip(amount, 0, 1)) * 0.72 - d) * period + 0.5, 0, 1)


def relief(x: Array) -> Array:
    """Lit height map (H, W) around 0.5, light from the upper left."""
    g = blur(grey(x) * alpha(x) * 0.6 + alpha(x) * 0.4, 1.0)
    return np.clip(0.5 + 2.2 * (shift(g, -1, -1) - shift(g, 1, 1)), 0, 1)


@lru_cache(maxsize=4)
def cells(h: int, w: int, count: int) -> tuple[Array, Array]:
    """Voronoi cells on a jittered lattice: owner (H, W) and distance to the border (H, W)."""
    rng = np.random.default_rng(7)
    lattice = (np.mgrid[0:count, 0:count].reshape(2, -1).T + 0.5 + rng.uniform(-0.38, 0.38, (count * count, 2))) / count
    r, c = np.mgrid[0:h, 0:w]
    d = np.hypot((r / h)[..., None] - lattice[:, 0], (c / w)[..., None] - lattice[:, 1])
    two = np.sort(d, -1)[..., :2]
    return d.argmin(-1), ((two[..., 1] - two[..., 0]) * h).astype(np.float32)


@dataclass(frozen=True)
class Transform:
    """A named look. `name` reads well after 'in' and before 'style'; `fn` maps uint8 (H, W, 3) to uint8 (H, W, 3)."""

    id: str
    name: str
    fn: Callable[[np.ndarray], np.ndarray]

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Apply to one picture."""
        return self.fn(image)


TRANSFORMS: dict[str, Transform] = {}


def style(name: str) -> Callable[[Callable[[Array], Array]], Callable[[Array], Array]]:
    """Register a float function under `name`; its id is the name with hyphens."""

    def register(fn: Callable[[Array], Array]) -> Callable[[Array], Array]:
        def apply(image: np.ndarray) -> np.ndarray:
            return to_uint8(fn(np.asarray(image, np.float32) / 255))

        key = name.lower().replace(" ", "-")
        TRANSFORMS[key] = Transform(key, name, apply)
        return fn

    return register
