"""What the judge is trained on: real pictures, their transforms, and both after a trip through the autoencoder."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.autoencoder import Autoencoder, decode_latents, encode_pictures
from zoo.autoencoder_train import per_transform, transformed_draw, transformed_pool
from zoo.cache import write_npy, zoo_dir
from zoo.judge import SIZE, centre, known_names
from zoo.pictures import Pictures
from zoo.splits import Splits
from zoo.transforms import TRANSFORMS

log = logging.getLogger("zoo.judge")
DECODED_REAL, DECODED_TRANSFORMED = 900, 300


def test_rows(pictures: Pictures) -> list[int]:
    """Rows held out for the judge."""
    return [r["row"] for r in pictures.rows if Splits.judge_test(r["subject"], r["style"])]


def train_rows(pictures: Pictures) -> list[int]:
    """All other rows, less those whose picture is byte for byte one of the held-out ones (twins under another name)."""

    def digest(row: int) -> bytes:
        return hashlib.sha256(pictures.images[row].tobytes()).digest()

    held = test_rows(pictures)
    seen, out = {digest(r) for r in held}, set(held)
    return [r["row"] for r in pictures.rows if r["row"] not in out and digest(r["row"]) not in seen]


@dataclass
class Pool:
    """Pictures uint8 (n, 64, 64, 3) with the numbers of their subject and style, int64 (n,)."""

    images: np.ndarray
    subject: np.ndarray
    style: np.ndarray

    def save(self, name: str) -> None:
        write_npy(zoo_dir("judge") / f"{name}.npy", self.images)
        write_npy(zoo_dir("judge") / f"{name}-labels.npy", np.stack([self.subject, self.style]))

    @classmethod
    def read(cls, name: str) -> Pool | None:
        paths = zoo_dir("judge") / f"{name}.npy", zoo_dir("judge") / f"{name}-labels.npy"
        return cls(np.load(paths[0]), *np.load(paths[1])) if all(p.exists() for p in paths) else None


def halve(images: np.ndarray) -> np.ndarray:
    """uint8 (n, 128, 128, 3) -> uint8 (n, 64, 64, 3), averages of 2 x 2, as `to_input` sees them."""
    parts = np.array_split(images, max(1, len(images) // 256))
    small = [p.reshape(len(p), SIZE, 2, SIZE, 2, 3).mean((2, 4), dtype=np.float32) for p in parts]
    return np.concatenate([s.round().astype(np.uint8) for s in small])


class Pools:
    """The three pools, made once and kept in the cache."""

    def __init__(self) -> None:
        self.pictures = Pictures.load()
        subjects, self.styles = known_names()
        self.number = {s: i for i, s in enumerate(subjects)}
        self.rows = train_rows(self.pictures)

    def labels(self, rows: list[int], styles: list[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of subjects and styles of picture rows; `styles` overrides theirs."""
        table = self.pictures.rows
        names = styles or [table[r]["style"] for r in rows]
        subject = np.array([self.number[table[r]["subject"]] for r in rows])
        return subject, np.array([self.styles.index(s) for s in names])

    def real(self) -> Pool:
        return Pool(halve(self.pictures.images[self.rows]), *self.labels(self.rows))

    def transformed_rows(self) -> tuple[np.ndarray, list[int], list[str]]:
        """The autoencoder's transformed pictures that may be trained on: their places, picture rows and styles.

        One picture a transform is checked against the draw that is replayed here.
        """
        images = transformed_pool(self.pictures)
        drawn, allowed = transformed_draw(self.pictures), set(self.rows)
        for i in range(0, len(drawn), per_transform(self.pictures)):
            row, style = drawn[i]
            if not np.array_equal(TRANSFORMS[style](self.pictures.images[row]), images[i]):
                path = zoo_dir() / "autoencoder_transforms.npy"
                raise ValueError(f"{path} is of other pictures or transforms; delete it and run again")
        places = [i for i, (row, _) in enumerate(drawn) if row in allowed]
        return np.array(places), [drawn[i][0] for i in places], [drawn[i][1] for i in places]

    def transformed(self) -> Pool:
        places, rows, styles = self.transformed_rows()
        return Pool(halve(transformed_pool(self.pictures)[places]), *self.labels(rows, styles))

    def decoded(self) -> Pool:
        """Real pictures and transforms after a round trip through the autoencoder."""
        rng, model = np.random.default_rng(5), Autoencoder.load()
        rows = [int(r) for r in rng.choice(self.rows, DECODED_REAL, replace=False)]
        places, t_rows, t_styles = self.transformed_rows()
        some = rng.choice(len(places), DECODED_TRANSFORMED, replace=False)
        images = np.concatenate([self.pictures.images[rows], transformed_pool(self.pictures)[places[some]]])
        out = decode_latents(encode_pictures(images, model, batch=8), model, batch=8)
        styles = [self.pictures.rows[r]["style"] for r in rows] + [t_styles[i] for i in some]
        return Pool(halve(out), *self.labels(rows + [t_rows[i] for i in some], styles))

    def load(self) -> list[Pool]:
        """Real, transformed, decoded."""
        pools = []
        for name in ("real", "transformed", "decoded"):
            pool = Pool.read(name)
            if pool is None:
                pool = getattr(self, name)()
                pool.save(name)
                log.info("made pool %s: %d pictures", name, len(pool.images))
            pools.append(pool)
        return pools


def augment(x: Tensor, flip: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures 0..255 (b, 3, 64, 64) -> network input, and whether the style is still honest (b,) float.

    Two in three are changed mildly: moved by up to 4 %, scaled by up to 9 %, turned by up to 4 degrees, mirrored where
    `flip` (b,) allows it, a little blur, noise and light. The others get three times that and may lose their colours
    or have them inverted: good for subjects, but palettes, gradients and outlines are what styles are known by, so
    those count as no evidence of style.
    """
    b = len(x)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(b, *shape, generator=g)

    strong = uniform(0, 1) < 0.35
    much = torch.where(strong, 3.0, 1.0)
    pixel = much[:, None, None, None]
    x = _moved(x, much, 1 - 2 * (flip & (uniform(0, 1) < 0.4)).float(), uniform)
    x = x.lerp(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), (uniform(-0.5, 0.33, 1, 1, 1) * pixel).clamp(min=0))
    kind = uniform(0, 1)[:, None, None, None]
    x = torch.where(strong[:, None, None, None] & (kind < 0.3), x.mean(1, keepdim=True), x)
    x = torch.where(strong[:, None, None, None] & (kind > 0.87), 255 - x, x)
    x = x * (1 + pixel * uniform(-0.035, 0.02, 1, 1, 1)) * (1 + pixel * uniform(-0.012, 0.012, 3, 1, 1))
    x = x + (uniform(-4, 5, 1, 1, 1) * pixel).clamp(min=0) * torch.randn(x.shape, generator=g)
    return centre(x).contiguous(memory_format=torch.channels_last), (~strong).float()


def _moved(x: Tensor, much: Tensor, mirror: Tensor, uniform: Callable[..., Tensor]) -> Tensor:
    """Pictures (b, 3, h, w) moved, scaled, turned by random amounts times `much` (b,); edges continue outwards."""
    angle, move = 0.07 * much * uniform(-1, 1), 0.08 * much[:, None] * uniform(-0.8, 0.8, 2)
    zoom = 1 + 0.09 * much * uniform(-0.65, 1)
    zx, zy = zoom * mirror, zoom * (1 + 0.025 * much * uniform(-1, 1))
    cos, sin = angle.cos(), angle.sin()
    top, low = torch.stack([cos * zx, -sin * zy, move[:, 0]], 1), torch.stack([sin * zx, cos * zy, move[:, 1]], 1)
    grid = F.affine_grid(torch.stack([top, low], 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)
