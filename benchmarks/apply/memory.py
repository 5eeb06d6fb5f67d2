"""Part ``memory``: bytes that each way allocates and moves at a layer, counted and not sampled; what training keeps.

Every allocation and release of PyTorch's own allocator is noted by its profiler. ``peak_extra``: the most that was
there at once, less the base's output, which is there without LoRAs too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from autolora_core.fusion.branches import Branch
from autolora_core.fusion.training.fused import FusedLoras
from autolora_core.fusion.training.parameters import GateParameters, hooked_update
from benchmarks import in_comfy

from .layers import DTYPES, name_of
from .node_layer import NodeLayer, running
from .shapes import MODELS, Shape
from .turns import threads
from .ways import Layer
from .work import work_rows

WHERE = ("sdxl", "64.ff.0")
QUICK_SHARE = 1 / 16


def peak_bytes(run: Callable[[], object]) -> int:
    """The most bytes of tensors on the CPU at once while ``run`` runs, beyond those before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        kept = run()
    events = seen.profiler.kineto_results.events()
    there = most = 0
    for event in sorted((one for one in events if one.name() == "[memory]"), key=lambda one: one.start_ns()):
        there += event.nbytes()
        most = max(most, there)
    del kept
    return most


def layer_rows(shape: Shape, dtype: torch.dtype, count: int, rank: int) -> list[dict]:
    layer = Layer.make(shape, [rank] * count, dtype, "cpu")
    branch = shape.tokens * shape.out * dtype.itemsize
    node = NodeLayer(layer)
    ways = {"bypass": layer.bypass, "eager": layer.eager, "node": node, "torch": node.in_plain_torch}
    rows = []
    with running():
        for name, way in ways.items():
            way()  # what is made once is no part of it
            peak = peak_bytes(way)
            rows.append({
                "what": "layer", "shape": shape.name, "tokens": shape.tokens, "out": shape.out, "k": count,
                "rank": rank, "dtype": name_of(dtype), "way": name, "branch_bytes": branch, "peak_bytes": peak,
                "peak_extra_over_one_branch": (peak - branch) / branch,
            })  # fmt: skip
    return rows


def training_rows(tokens: int, channels: int, rank: int, count: int) -> list[dict]:
    """Bytes that autograd keeps of one gated layer, over those of the layer's output."""
    loras = {n: [Branch("a", n, down=torch.zeros(rank, 8), up=torch.randn(channels, rank))] for n in range(count)}
    y0 = torch.randn(tokens, channels).requires_grad_()
    heard = {n: [torch.randn(tokens, rank).requires_grad_()] for n in loras}
    gate = GateParameters({"a": channels})
    fused = FusedLoras("a", channels, loras)

    def eager() -> Tensor:
        outputs = {n: own[0] @ loras[n][0].up.T for n, own in heard.items()}
        return y0 + hooked_update(gate, "a", y0, outputs, {}, float(count), 0.5, -1)

    ways = {"eager": eager, "ours": lambda: fused.output(gate, y0, heard, {}, float(count), 0.5, -1)}
    return [
        {"what": "training", "tokens": tokens, "out": channels, "k": count, "rank": rank, "way": name,
         "saved_over_output": saved_bytes(way) / (4 * y0.numel())}
        for name, way in ways.items()
    ]  # fmt: skip


def saved_bytes(run: Callable[[], Tensor]) -> int:
    """Of all storages that autograd keeps of what ``run`` computes, each once."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # alive, so that no address is used twice
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run()
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del out
    return size


def measure(quick: bool) -> tuple[dict[str, float], list[dict]]:
    in_comfy.start()
    count, figures, rows = threads(), {}, []
    shape = next(one for one in MODELS[WHERE[0]] if one.name == WHERE[1]).at(QUICK_SHARE if quick else 1)
    for dtype in DTYPES:
        for k in (3,) if quick else (1, 3, 8):
            rows += layer_rows(shape, dtype, k, 16)
        rows += [{"on": "cpu", **row} for row in work_rows(shape, 3, 16, dtype)]
    for row in rows:
        if (row["what"], row["k"], row["dtype"]) == ("layer", 3, "float32"):
            figures[f"peak_extra_over_one_branch_{row['way']}"] = row["peak_extra_over_one_branch"]
    figures["peak_extra_over_one_branch"] = figures["peak_extra_over_one_branch_node"]
    for k in (1, 3, 8):
        trained = training_rows(256, 512, 4, k)
        figures |= {f"train_saved_over_output_k{k}_{row['way']}": row["saved_over_output"] for row in trained}
        rows += trained
    return figures, [{"threads": count, **row} for row in rows]
