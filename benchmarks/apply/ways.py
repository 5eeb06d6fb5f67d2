"""The same layer with the same LoRAs, applied in different ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from autolora_core.fusion.branches import Branch
from autolora_core.fusion.eager import fuse
from autolora_core.fusion.fast import chunked
from autolora_core.fusion.fast.packed import Packed, coefficients, pack
from autolora_core.fusion.gate import GateVectors
from autolora_core.fusion.plan import Group, ModulePlan

from .shapes import Shape

Way = Callable[[], Tensor]


@dataclass
class Layer:
    """A base layer, its input, K LoRAs of ``ranks`` and a gate, all random from ``seed``."""

    shape: Shape
    x: Tensor
    weight: Tensor
    bias: Tensor
    downs: list[Tensor]
    ups: list[Tensor]
    scales: list[float]
    vectors: GateVectors
    packed: Packed
    stacked: Tensor
    table: Tensor
    table_halved: Tensor
    knobs: Tensor

    @classmethod
    def make(cls, shape: Shape, ranks: Sequence[int], dtype: torch.dtype, device: str, seed: int = 0) -> Layer:
        dice = torch.Generator(device).manual_seed(seed)

        def random(*size: int) -> Tensor:
            return torch.randn(*size, generator=dice, device=device)

        weight = (random(shape.out, shape.n_in) / shape.n_in**0.5).to(dtype)
        downs = [(random(rank, shape.n_in) / shape.n_in**0.5).to(dtype) for rank in ranks]
        ups = [(random(shape.out, rank) * rank**-0.5).to(dtype) for rank in ranks]
        scales = [0.5 + 0.25 * number for number in range(len(ranks))]
        vectors = GateVectors(*(random(shape.out) for _ in range(8)), weight_base=random(shape.out))
        packed = pack(ups).to(device)
        stacked = torch.zeros(packed.columns, shape.n_in, dtype=dtype, device=device)
        for (first, _), down in zip(packed.bounds, downs, strict=True):
            stacked[first : first + len(down)] = down
        table = coefficients(vectors)
        knobs = torch.tensor([[scale, 0.0, 0.0, 0.0, 0.0] for scale in scales], device=device)
        return cls(
            shape, random(shape.tokens, shape.n_in).to(dtype), weight, random(shape.out).to(dtype), downs, ups, scales,
            vectors, packed, stacked, table, table * table.new_tensor([[0.5]] * 4 + [[1.0]]), knobs,
        )  # fmt: skip

    def base(self) -> Tensor:
        """No LoRA; the same work as with LoRAs merged into the weight."""
        return linear(self.x, self.weight, self.bias)

    def branch(self, number: int) -> Tensor:
        return linear(linear(self.x, self.downs[number]) * self.scales[number], self.ups[number])

    def bypass(self) -> Tensor:
        """Plain branches beside the layer, one by one."""
        out = self.base()
        for number in range(len(self.downs)):
            out = out + self.branch(number)
        return out

    def plan(self) -> ModulePlan:
        count, width = len(self.downs), self.shape.out
        branches = tuple(Branch("layer", number, slice=(0, width)) for number in range(count))
        group = Group(0, width, None, tuple((number,) for number in range(count)))
        return ModulePlan("layer", width, branches, (group,))

    def eager(self) -> Tensor:
        """The gate as it is written down, every branch output in memory."""
        return fuse(self.base(), self.plan(), self.branch, lambda group: self.vectors)

    def chunked(self) -> Tensor:
        """Ours in plain torch."""
        knobs = torch.stack([self.knobs[:, 0], self.knobs[:, 1], self.knobs[:, 3].exp()], 1)
        return chunked.gated(self.base(), linear(self.x, self.stacked), self.packed, self.table, knobs, 1e-5)

    def exact(self) -> Tensor:
        """Float64, from the factors as they are rounded."""
        y0 = self.base().double()
        vectors = GateVectors(
            **{name.replace(".", "_"): value.double() for name, value in self.vectors.named().items()}
        )
        norm = torch.nn.functional.layer_norm
        base = norm(y0, y0.shape[-1:], vectors.norm_base_weight, vectors.norm_base_bias, 1e-5)
        out = y0.clone()
        for down, up, scale in zip(self.downs, self.ups, self.scales, strict=True):
            y = scale * (linear(self.x.double(), down.double()) @ up.double().T)
            lora = norm(y, y.shape[-1:], vectors.norm_lora_weight, vectors.norm_lora_bias, 1e-5)
            logits = base * vectors.weight_base + lora * vectors.weight_lora + base * lora * vectors.weight_cross
            out += vectors.weight_out * torch.sigmoid(logits + vectors.bias) * y
        return out
