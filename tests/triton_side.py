"""Runs the kernel in Triton's interpreter (``TRITON_INTERPRET=1``) and prints ``ok`` for every case that is right."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import test_fast_gate as world  # noqa: E402

from autolora_core.fusion.fast import triton_gate  # noqa: E402
from autolora_core.fusion.fast.packed import coefficients, pack  # noqa: E402
from autolora_core.fusion.fast.triton_gate import Launch  # noqa: E402

SPLIT, WHOLE = Launch(tokens=16, tiles=2), Launch(split=False, tokens=16)
LAUNCHES = (SPLIT, WHOLE, Launch(tokens=16, tiles=1, held=False), Launch(tokens=16, channels=32, tiles=64))
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def check(launch, dtype=torch.float32, tilts=None, ups=None, hidden=None):
    y0, own_hidden, own_ups, vectors = world.world()
    hidden, ups = hidden or own_hidden, ups or own_ups
    hidden, ups, y0 = [h.to(dtype) for h in hidden], [up.to(dtype) for up in ups], y0.to(dtype)
    packed = pack(ups)
    table = coefficients(vectors) * torch.tensor([[0.5]] * 4 + [[1.0]])
    knobs = torch.tensor(
        [[s, *tilt.shift, *tilt.gain] for s, tilt in zip(world.SCALES, tilts or [world.Tilt()] * 3, strict=True)]
    )
    parts = world.side_by_side([h.float() for h in hidden], packed).to(dtype)
    out = triton_gate.gated(y0, parts, packed, table, knobs, world.EPS, world.SHARE, tilts is not None, launch)
    wanted = world.exact(y0, hidden, ups, vectors, tilts)
    error = (out.double() - wanted).abs().max() / (wanted - y0.double()).abs().max()
    assert error < TOLERANCE[dtype], (launch, dtype, error)
    print("ok")


if __name__ == "__main__":
    for one in LAUNCHES:
        check(one)
        check(one, tilts=world.TILTS)
    check(SPLIT, torch.float16)
    check(SPLIT, torch.bfloat16)
