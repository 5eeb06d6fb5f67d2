"""Runs the kernel as a fused layer calls it, in Triton's interpreter (``TRITON_INTERPRET=1``); prints ``ok``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from benchmarks import in_comfy  # noqa: E402

in_comfy.start()

import fast_layers as fl  # noqa: E402
from comfy_local import pack_module  # noqa: E402


def check(layer, moment) -> None:
    given = fl.inputs()
    with torch.inference_mode():
        wanted = layer(given.x, given.y0)
        flat, hidden = given.y0.clone().view(-1, fl.OUT), layer.factors.hidden(given.x, moment)
        hidden = hidden.view(-1, hidden.shape[-1])
        for span in layer.factors.spans:
            section = span.section
            span.by_kernel(flat[:, slice(*section.span)], hidden[:, slice(*section.columns)], moment)
    size = (wanted - given.y0).abs().max()
    assert (flat.view_as(wanted) - wanted).abs().max() < 2e-5 * size and size > 0.1
    print("ok")


if __name__ == "__main__":
    moment = pack_module("autolora_core.fusion.moment").Moment()
    moment.go(3, 10)
    check(fl.layer(fl.three(), {"layer": fl.gate()}, moment=moment), moment)
    roles = torch.randn(2, 2, 2, generator=torch.Generator().manual_seed(1))
    plan = pack_module("autolora_core.fusion.plan")
    standings = {0: plan.Standing("subject"), 1: plan.Standing("style")}
    gates = {"layer": fl.gate(roles=roles, power=0.5)}
    check(fl.layer(fl.three(), gates, moment=moment, standings=standings), moment)
    slices = {f"layer[{a}:{b}]": fl.gate(b - a, a) for a, b in fl.PARTS}
    check(fl.layer(fl.three(), slices, moment=moment), moment)
