"""The zoo's autoencoder: TAESD's layout and key names, 16 latent channels, 8x smaller, so stock ComfyUI loads it as a
VAE.

    python -m zoo.autoencoder train --minutes 15      or, to be repeatable:  --steps 2900
    python -m zoo.autoencoder finetune-decoder --minutes 10
    python -m zoo.autoencoder latents
    python -m zoo.autoencoder sheet

*Model space* is what the encoder puts out: about zero mean and unit std. ComfyUI's SD3 latent format maps a stored
latent z to (z - 0.0609) * 1.5305 before the diffusion model; its TAESD divides by `vae_scale` and adds `vae_shift`.
With those two set to 1.5305 and 0.0609 the round trip is exact and the diffusion model sees the encoder's output
unchanged.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from zoo.budget import add_options, chosen
from zoo.cache import models_dir, write_atomic, write_npy, zoo_dir

log = logging.getLogger("zoo.autoencoder")
MINUTES = 15.0
LATENT_CHANNELS = 16
WIDTH = 64
DOWNSCALE = 8
SD3_SCALE, SD3_SHIFT = 1.5305, 0.0609


def conv(n_in: int, n_out: int, **kwargs: int | bool) -> nn.Conv2d:
    """3x3 convolution that keeps the size."""
    return nn.Conv2d(n_in, n_out, 3, padding=1, **kwargs)  # type: ignore[arg-type]


class Clamp(nn.Module):
    """Soft limit of latents to +-3."""

    def forward(self, x: Tensor) -> Tensor:
        """x (any shape) -> tanh(x / 3) * 3."""
        return torch.tanh(x / 3) * 3


class Block(nn.Module):
    """Residual block: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(conv(width, width), nn.ReLU(), conv(width, width), nn.ReLU(), conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """relu(conv(x) + x)."""
        return torch.relu(self.conv(x) + x)


def make_encoder() -> nn.Sequential:
    """(B, 3, H, W) in 0..1 -> (B, 16, H/8, W/8) in model space."""
    layers: list[nn.Module] = [conv(3, WIDTH), Block(WIDTH)]
    for _ in range(3):
        layers += [conv(WIDTH, WIDTH, stride=2, bias=False), *(Block(WIDTH) for _ in range(3))]
    return nn.Sequential(*layers, conv(WIDTH, LATENT_CHANNELS))


def make_decoder() -> nn.Sequential:
    """(B, 16, h, w) in model space -> (B, 3, 8h, 8w), about 0..1."""
    layers: list[nn.Module] = [Clamp(), conv(LATENT_CHANNELS, WIDTH), nn.ReLU()]
    for _ in range(3):
        layers += [*(Block(WIDTH) for _ in range(3)), nn.Upsample(scale_factor=2), conv(WIDTH, WIDTH, bias=False)]
    return nn.Sequential(*layers, Block(WIDTH), conv(WIDTH, 3))


class Autoencoder(nn.Module):
    """Pictures (B, 3, H, W) in 0..1 <-> latents (B, 16, H/8, W/8) in model space."""

    def __init__(self) -> None:
        super().__init__()
        self.taesd_encoder = make_encoder()
        self.taesd_decoder = make_decoder()
        for net in (self.taesd_encoder, self.taesd_decoder):
            for layer in net:  # the way past the blocks keeps its variance; the blocks start as small corrections
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.xavier_normal_(self.taesd_encoder[-1].weight)  # type: ignore[arg-type]
        nn.init.xavier_normal_(self.taesd_decoder[-1].weight, 0.1)  # type: ignore[arg-type]
        self._start_from_averages()

    @torch.no_grad()
    def _start_from_averages(self) -> None:
        """Begin as 8 x 8 averaging: three trunk channels carry red, green, blue; three latents brightness and two
        colour axes.

        From a plain start the shapes came out sharp, but after 3,500 steps green was still grey.
        """
        to_latent = torch.tensor([[1.1, 1.1, 1.1], [2.5, 0.0, -2.5], [-2.0, 4.0, -2.0]])
        mean, eye = torch.tensor([0.7, 0.7, 0.7]), torch.eye(3)
        first, last = self.taesd_encoder[0], self.taesd_encoder[-1]
        d_first, d_last = self.taesd_decoder[1], self.taesd_decoder[-1]
        for layer in self.modules():
            if isinstance(layer, Block):
                layer.conv[-1].weight[:3] = 0  # type: ignore[index]
                layer.conv[-1].bias[:3] = 0  # type: ignore[index]
        for layer in (
            first,
            last,
            d_first,
            *(
                c
                for n in (self.taesd_encoder, self.taesd_decoder)
                for c in n
                if isinstance(c, nn.Conv2d) and c.bias is None
            ),
        ):
            layer.weight[:3] = 0  # type: ignore[index,union-attr]
        for layer in self.taesd_encoder:
            if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2):
                layer.weight[:3, :3, 1:, 1:] = eye[..., None, None] / 4
        for layer in self.taesd_decoder:
            if isinstance(layer, nn.Conv2d) and layer.bias is None:
                layer.weight[:3, :3, 1, 1] = eye
        first.weight[:3, :3, 1, 1], first.bias[:3] = eye, torch.zeros(3)  # type: ignore[index,union-attr]
        last.weight[:3, :3, 1, 1], last.bias[:3] = to_latent, -to_latent @ mean  # type: ignore[index,union-attr]
        d_first.weight[:3, :3, 1, 1], d_first.bias[:3] = torch.linalg.inv(to_latent), mean  # type: ignore[index,union-attr]
        d_last.weight[:, :3] = 0  # type: ignore[index]
        d_last.weight[:3, :3, 1, 1] = eye  # type: ignore[index]

    @classmethod
    def load(cls, path: Path | None = None) -> Autoencoder:
        """Read a saved autoencoder for inference, float32, on the CPU; by default the one trained here, if any."""
        path = path or (default_path() if default_path().exists() else models_dir() / "emoji_vae.safetensors")
        state = load_file(str(path))
        model = cls()
        model.load_state_dict({k: v.float() for k, v in state.items() if not k.startswith("vae_")})
        return model.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def save(self, path: Path) -> Path:
        """Write safetensors that ComfyUI's VAELoader reads (float32)."""
        state = {k: v.detach().float().contiguous().cpu() for k, v in self.state_dict().items()}
        state["vae_scale"], state["vae_shift"] = torch.tensor(SD3_SCALE), torch.tensor(SD3_SHIFT)
        return write_atomic(
            path, lambda tmp: save_file(state, str(tmp), {"format": "pt", "autolora": "zoo-autoencoder/1"})
        )

    def encode(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) in 0..1 -> latents (B, 16, H/8, W/8), model space, float32."""
        with _fast(images):
            return self.taesd_encoder(images.to(memory_format=torch.channels_last)).float()

    def decode(self, latents: Tensor) -> Tensor:
        """latents (B, 16, h, w) in model space -> images (B, 3, 8h, 8w) in 0..1, float32."""
        with _fast(latents):
            return self.taesd_decoder(latents.to(memory_format=torch.channels_last)).float().clamp(0, 1)


def _fast(x: Tensor) -> torch.autocast | nullcontext[None]:
    """bf16 autocast where it is quick: on GPUs, and on CPUs with bf16 instructions."""
    if x.device.type == "cuda" or (x.device.type == "cpu" and "avx512_bf16" in _cpu_flags()):
        return torch.autocast(x.device.type, torch.bfloat16)
    return nullcontext()


def _cpu_flags(cache: list[str] = []) -> str:  # noqa: B006 - read once
    if not cache:
        path = Path("/proc/cpuinfo")
        cache.append(path.read_text(encoding="utf-8") if path.exists() else "")
    return cache[0]


def default_path() -> Path:
    """Where the trained autoencoder lies."""
    return zoo_dir() / "autoencoder.safetensors"


def to_float(images: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in 0..1, channels_last."""
    x = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)
    return x.to(torch.float32, memory_format=torch.channels_last).div_(255)


def to_uint8(images: Tensor) -> np.ndarray:
    """float (B, 3, H, W) in 0..1 -> uint8 (B, H, W, 3)."""
    return images.clamp(0, 1).mul(255).round().permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()


def _batches(n: int, size: int) -> Iterator[slice]:
    return (slice(i, min(i + size, n)) for i in range(0, n, size))


@torch.inference_mode()
def encode_pictures(images: np.ndarray, model: Autoencoder | None = None, batch: int = 32) -> np.ndarray:
    """uint8 (N, H, W, 3) -> float16 (N, 16, H/8, W/8) in model space."""
    model = model or Autoencoder.load()
    n, h, w, _ = images.shape
    out = np.empty((n, LATENT_CHANNELS, h // DOWNSCALE, w // DOWNSCALE), np.float16)
    for part in _batches(n, batch):
        out[part] = model.encode(to_float(images[part])).numpy().astype(np.float16)
    return out


@torch.inference_mode()
def decode_latents(latents: np.ndarray | Tensor, model: Autoencoder | None = None, batch: int = 32) -> np.ndarray:
    """(N, 16, h, w) in model space -> uint8 (N, 8h, 8w, 3)."""
    model = model or Autoencoder.load()
    z = torch.as_tensor(latents).float()
    return np.concatenate([to_uint8(model.decode(z[part])) for part in _batches(len(z), batch)])


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over pictures of 10 log10(255² / MSE); a, b uint8 (N, H, W, 3)."""
    mse = ((a.astype(np.float32) - b.astype(np.float32)) ** 2).mean((1, 2, 3))
    return float((10 * np.log10(255.0**2 / np.maximum(mse, 1e-3))).mean())


def _encode_rows(job: tuple[int, int]) -> np.ndarray:
    """Latents of rows start..stop of the pictures table, in a worker process of one thread."""
    from zoo.pictures import Pictures

    start, stop = job
    torch.set_num_threads(1)
    return encode_pictures(Pictures.load().images[start:stop], batch=8)


def precompute_latents(processes: int = 2) -> None:
    """`latents.npy` (float16, (N, 16, 16, 16)), row for row with the pictures table."""
    from zoo.pictures import Pictures

    n = len(Pictures.load().rows)
    log.info("latents of %d pictures: a few minutes", n)
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        z = np.concatenate(list(pool.imap(_encode_rows, [(s.start, s.stop) for s in _batches(n, 256)])))
    write_npy(zoo_dir() / "latents.npy", z)
    f = z.astype(np.float32)
    log.info("latents %s mean %.3f std %.3f", z.shape, f.mean(), f.std())
    log.info("  of each channel: mean %s std %s", f.mean((0, 2, 3)).round(2), f.std((0, 2, 3)).round(2))


def main() -> None:
    """Command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=("train", "finetune-decoder", "latents", "sheet"))
    add_options(parser, MINUTES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fresh", action="store_true", help="forget the saved state of an earlier run of this kind")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.what == "latents":
        precompute_latents()
        return
    from zoo import autoencoder_train

    if args.what == "sheet":
        autoencoder_train.evaluate(Autoencoder.load(), zoo_dir() / "autoencoder_sheet.png")
    else:
        budget = chosen(args.minutes, args.steps, MINUTES)
        autoencoder_train.train(budget, decoder_only=args.what == "finetune-decoder", fresh=args.fresh)


if __name__ == "__main__":
    main()
