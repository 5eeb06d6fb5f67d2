"""Copies, cuts, merges and other steps of trained LoRAs, made on purpose, with the truth about every two of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from autolora_core.lora.file import LoraFile
from zoo.lora_export import DTYPES, FORMATS

Factors = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Origin:
    """Where a file comes from: ``run`` (one training), and what was done to it since. ``parts`` for a merge: (run,
    weight) of both, ``how`` they were merged. ``kind`` says what it is to the untouched file of its run."""

    run: str
    kind: str = "original"
    step: int = 0
    form: str = "own"
    scale: float = 1.0
    cut: str = ""
    part: str = ""
    parts: tuple[tuple[str, float], ...] = ()
    how: str = ""


def truth(a: Origin, b: Origin) -> set[str]:
    """What the two may rightly be called. Files that differ in several ways may be called after any of them, except
    that weights which are not the same must not be said to be. Empty: neither is a version of the other."""
    if a.parts and a.parts == b.parts and "matrices" not in (a.how, b.how):
        return {"truncated"} if a.how != b.how else {"resaved"}
    if a.parts or b.parts or a.run != b.run:
        return set()
    if a.step != b.step:
        return {"epoch"}
    differ = {name for name in ("cut", "part") if getattr(a, name) != getattr(b, name)}
    if differ == {"part"}:
        return {"part"}
    if differ:
        # Two cuts of different ranks, or a cut and a part of it: nearest by rank, or as near as another step.
        return {"truncated"} if "" in (a.cut, b.cut) and differ == {"cut"} else {"truncated", "part", "epoch", "alike"}
    if a.form != b.form:
        return {"refactorised"}
    return {"resaved"} if a.scale == b.scale else {"rescaled"}


def read(path: Path) -> Factors:
    """Module → (down, up) float32 with the scale folded in, q, k and v of one trained LoRA laid together again."""
    slices: dict[str, list] = {}
    for update in LoraFile.open(path).updates():
        slices.setdefault(update.base_module, []).append(update)
    out = {}
    for name, parts in slices.items():
        parts.sort(key=lambda u: u.rows or (0, 0))
        if any(not torch.equal(u.down, parts[0].down) for u in parts):
            raise ValueError(f"{path}: the parts of {name} have different down matrices")
        out[name] = (parts[0].down.float(), torch.cat([u.up.float() for u in parts]))
    return out


def write(path: Path, factors: Factors, keys: str, dtype: str, alpha: float = 1.0) -> Path:
    """Write in one of the zoo's key formats; ``alpha`` (a multiple of the rank) is taken out of ``up`` first."""
    taken = {name: (down, up / alpha) for name, (down, up) in factors.items()}
    kinds = DTYPES | {"float8": torch.float8_e4m3fn}
    tensors = {k: v.to(kinds[dtype]).contiguous().clone() for k, v in FORMATS[keys](taken, alpha).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(path))
    return path


def scaled(factors: Factors, by: float) -> Factors:
    return {name: (down, up * by) for name, (down, up) in factors.items()}


def mixed(factors: Factors, seed: int) -> Factors:
    """A → RA, B → BR⁻¹ with a random R of condition up to 3."""
    g = torch.Generator().manual_seed(seed)
    out = {}
    for name, (down, up) in factors.items():
        r = len(down)
        mix = torch.linalg.qr(torch.randn(r, r, generator=g))[0] * (0.5 + torch.rand(r, generator=g))
        out[name] = (mix @ down, up @ torch.linalg.inv(mix))
    return out


def svd(factors: Factors, keep: int | float | None = None) -> Factors:
    """From the SVD of ΔW, √σ on each side: all of it, the first ``keep`` terms, or the fewest with that share of σ²."""
    out = {}
    for name, (down, up) in factors.items():
        u, s, vt = torch.linalg.svd((up.double() @ down.double()), full_matrices=False)
        rank = min(len(down), len(s))
        if isinstance(keep, float):
            shares = s[:rank].square().cumsum(0) / s[:rank].square().sum()
            rank = min(rank, int((shares < keep).sum()) + 1)
        elif keep is not None:
            rank = min(rank, keep)
        root = s[:rank].sqrt()
        out[name] = ((root[:, None] * vt[:rank]).float(), (u[:, :rank] * root).float())
    return out


def summed(a: Factors, x: float, b: Factors, y: float) -> Factors:
    """x·a + y·b, ranks laid side by side."""
    out = {}
    for name in sorted(a.keys() | b.keys()):
        found = [(side[name], w) for side, w in ((a, x), (b, y)) if name in side]
        out[name] = (torch.cat([d for (d, _), _ in found]), torch.cat([u * w for (_, u), w in found], dim=1))
    return out


def averaged(a: Factors, x: float, b: Factors, y: float) -> Factors:
    """The matrices of both summed one by one with the roots of the weights, as kohya's merge_lora.py does."""
    return {n: (x**0.5 * a[n][0] + y**0.5 * b[n][0], x**0.5 * a[n][1] + y**0.5 * b[n][1]) for n in a}


def _draw(run: str, what: str, count: int) -> int:
    return int(hashlib.sha256(f"{run} {what}".encode()).hexdigest()[:8], 16) % count


def copies(run: str, factors: Factors) -> Iterator[tuple[Origin, Factors, dict]]:
    """``(origin, factors, how to write them)`` of everything made of one LoRA alone."""
    base = Origin(run)
    rank = max(len(down) for down, _ in factors.values())
    yield replace(base, kind="resaved"), factors, {"keys": "kohya", "dtype": "bfloat16", "alpha": 0.5}
    yield replace(base, kind="resaved"), factors, {"keys": "peft", "dtype": "float32"}
    yield replace(base, kind="resaved"), factors, {"keys": "native", "dtype": "float8", "alpha": 2.0}
    for by in (0.5, (1.2, 1.7, 3.0)[_draw(run, "scale", 3)]):
        yield replace(base, kind="rescaled", scale=by), scaled(factors, by), {"keys": "native", "dtype": "float16"}
    yield (
        replace(base, kind="refactorised", form="mixed"),
        mixed(factors, _draw(run, "mix", 10**6)),
        {"keys": "diffusers", "dtype": "float16"},
    )
    yield replace(base, kind="refactorised", form="svd"), svd(factors), {"keys": "kohya", "dtype": "bfloat16"}
    half = max(1, rank // 2)
    yield replace(base, kind="truncated", form="svd", cut=f"{half}"), svd(factors, half), {
        "keys": "kohya", "dtype": "float16",
    }  # fmt: skip
    energy = svd(factors, (0.6, 0.75, 0.9)[_draw(run, "energy", 3)])
    if any(len(energy[name][0]) < len(down) for name, (down, _) in factors.items()):
        yield replace(base, kind="truncated", form="svd", cut="energy", scale=1.5), scaled(energy, 1.5), {
            "keys": "native", "dtype": "bfloat16",
        }  # fmt: skip
    few = {name: f for name, f in factors.items() if name.startswith(("joint_blocks.0.", "joint_blocks.1."))}
    yield replace(base, kind="part", part="blocks"), few, {"keys": "kohya", "dtype": "float16"}


def merges(runs: Sequence[str], held: dict[str, Factors]) -> Iterator[tuple[Origin, Factors, dict]]:
    """Every LoRA with the next in the list, in one of four ways; matrices only where the two fit together."""
    weights = ((0.5, 0.5), (0.7, 0.3), (1.0, 0.5), (0.8, -0.5))
    for i, run in enumerate(runs):
        other = runs[(i + 1) % len(runs)]
        x, y = weights[i % len(weights)]
        a, b = held[run], held[other]
        origin = Origin(f"{run}+{other}", "merged", parts=((run, x), (other, y)), how="sum")
        total = summed(a, x, b, y)
        yield origin, total, {"keys": "native", "dtype": "float16"}
        rank = max(len(down) for side in (a, b) for down, _ in side.values())
        yield replace(origin, how="truncated"), svd(total, rank), {"keys": "kohya", "dtype": "float16"}
        fits = [r for r in runs if r != run and _shapes(held[r]) == _shapes(a)]
        if fits:
            mate = fits[_draw(run, "mate", len(fits))]
            x, y = abs(x), abs(y)
            yield (
                Origin(f"{run}+{mate}", "merged", parts=((run, x), (mate, y)), how="matrices"),
                averaged(a, x, held[mate], y),
                {"keys": "kohya", "dtype": "float16"},
            )


def _shapes(factors: Factors) -> dict[str, tuple]:
    return {name: (tuple(down.shape), tuple(up.shape)) for name, (down, up) in factors.items()}


def build(folder: Path, originals: dict[str, Path], made_from: Sequence[str]) -> dict[str, Origin]:
    """Write copies and merges of the runs ``made_from`` into ``folder``; file name → origin of all that was written."""
    held = {run: read(originals[run]) for run in made_from}
    out: dict[str, Origin] = {}
    jobs = [job for run in made_from for job in copies(run, held[run])]
    jobs += list(merges(list(made_from), held))
    for number, (origin, factors, how) in enumerate(jobs):
        name = f"{number:04d}.safetensors"
        write(folder / name, factors, **how)
        out[name] = origin
    return out
