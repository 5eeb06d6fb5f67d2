"""The demo network with a different set of LoRAs, and gates, for every row of a batch: what gates are trained in.

Where a set is routed (SSR-Merge, :mod:`autolora_core.fusion.methods.ssr`), LoRA k's branch is ``B_k (R A x)_k`` instead
of ``B_k A_k x``: the routers see to it that each LoRA answers its own prompt only, and the gate decides how much
of that passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autolora_core.fusion.branches import Branch
from autolora_core.fusion.gate import EPS, GateVectors
from autolora_core.fusion.layer_kinds import kind_of
from autolora_core.fusion.methods.ssr import Signals, stack
from autolora_core.fusion.training.parameters import spans_of
from zoo import scale_data
from zoo.base_probe import STATE_TIME, BaseProbe, recorded
from zoo.fusion_sets import SLOTS
from zoo.mmdit import MMDiT
from zoo.multi_lora import target_layers
from zoo.text_bank import encode

RANK = 16


class Factors:
    """Down and up factors of many LoRAs, padded to one rank; the last row is "no LoRA"."""

    def __init__(self, model: MMDiT, ids: Sequence[str]):
        self.layers = {name: model.get_submodule(name) for name in target_layers(model)}
        self.down = {n: torch.zeros(len(ids) + 1, RANK, layer.in_features) for n, layer in self.layers.items()}
        self.up = {n: torch.zeros(len(ids) + 1, layer.out_features, RANK) for n, layer in self.layers.items()}
        for row, tag in enumerate(ids):
            for name, (down, up) in scale_data.factors(tag).items():
                if name in self.down:
                    self.down[name][row, : len(down)], self.up[name][row, :, : up.shape[1]] = down, up

    def __len__(self) -> int:
        return len(next(iter(self.down.values()))) - 1


class Routers:
    """R of every set and layer, (sets, SLOTS·RANK, SLOTS·RANK), calibrated on what each LoRA goes by."""

    def __init__(self, factors: Factors, texts: Sequence[str], probe: BaseProbe):
        self.factors = factors
        self.heard = {text: self._inputs(text, probe) for text in dict.fromkeys(texts)}
        self.texts = list(texts)

    def _inputs(self, text: str, probe: BaseProbe) -> dict[str, Tensor]:
        context, pooled = encode([text], probe.minilm)
        real = context[0].abs().sum(dim=-1) > 0
        with recorded(probe.model, list(self.factors.layers)) as seen, torch.no_grad():
            probe.model(STATE_TIME * probe.noise[:1], torch.full((1,), STATE_TIME), context, pooled)
        return {n: (x[0][real] if ".context_block." in n else x[0]).half() for n, x in seen.items()}

    def of(self, loras: Sequence[int]) -> dict[str, Tensor]:
        """Layer → R of one set, padded with the identity."""
        out = {}
        for name in self.factors.layers:
            branches = [
                Branch(name, slot, down=self.factors.down[name][i], up=self.factors.up[name][i])
                for slot, i in enumerate(loras)
            ]
            whole = torch.eye(SLOTS * RANK)
            if len(branches) > 1:
                stacked = stack(branches, branches[0].up.shape[0])
                signals = Signals(stacked.owner)
                for text, owners in _by_text([self.texts[i] for i in loras]).items():
                    z = stacked.down @ self.heard[text][name].float().T
                    signals.add(owners, z @ z.T)
                whole[: len(stacked.owner), : len(stacked.owner)] = signals.router().float()
            out[name] = whole
        return out


def _by_text(texts: Sequence[str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for slot, text in enumerate(texts):
        groups.setdefault(text, []).append(slot)
    return groups


class Gate(nn.Module):
    """A gate's numbers, for training; :meth:`vectors` are the product's.

    ``shared``: five numbers a kind of layer instead of vectors a layer. ``roled``: subjects and styles differ in shift
    and gain. ``timed``: both move along the sampling, linearly in ``2u − 1``, u the share of it that is done.
    ``counted``: the gain falls by ``(2/K)^p``, p learnt for each layer. Without roles, time and count it is the
    published gate.
    """

    def __init__(
        self, layers: Mapping[str, nn.Linear], shared: bool = False, roled: bool = True, timed: bool = True,
        counted: bool = True, noise: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        self.layers, self.shared, self.roled, self.timed, self.counted = dict(layers), shared, roled, timed, counted
        self.numbers, self.roles, self.powers, self.norms = (nn.ParameterDict() for _ in range(4))
        generator = torch.Generator().manual_seed(0)
        for name, layer in layers.items():
            key, parts = self.key(name), parts_of(name, layer.out_features)
            shape = (parts, 1) if shared else (parts, layer.out_features // parts)
            if key in self.numbers:
                continue
            start = torch.zeros(5, *shape) + noise * torch.randn(5, *shape, generator=generator)
            start[3] = 1.0 if noise else 2.0  # sigmoid(0) · 2: the plain sum
            self.numbers[key] = nn.Parameter(start)
            self.roles[key] = nn.Parameter(torch.zeros(parts, 2, 2, 2), requires_grad=roled or timed)
            self.powers[key] = nn.Parameter(torch.zeros(()), requires_grad=counted)
            if not shared:
                unit = torch.stack([torch.ones(shape), torch.zeros(shape)] * 2)
                self.norms[key] = nn.Parameter(unit)

    def key(self, name: str) -> str:
        """Shared numbers go by the part of a block, whatever stream or block it is in."""
        return kind_of(name) if self.shared else name.replace(".", "/")

    def update(self, name: str, y0: Tensor, y: Tensor, u: Tensor, count: Tensor, roles: Tensor) -> Tensor:
        """``y0`` (b, L, d), ``y`` (b, S, L, d), ``u``, ``count`` (b,), ``roles`` (b, S) → what is added to ``y0``."""
        key, parts = self.key(name), parts_of(name, y0.shape[-1])
        w_base, w_lora, w_cross, w_out, bias = self.numbers[key].unbind(0)
        y0, y = y0.unflatten(-1, (parts, -1)), y.unflatten(-1, (parts, -1))
        base, lora = _normed(y0)[:, None], _normed(y)
        if not self.shared:
            base_scale, base_bias, lora_scale, lora_bias = self.norms[key].unbind(0)
            base, lora = base * base_scale + base_bias, lora * lora_scale + lora_bias
        constant, slope = self.table(key)[:, roles].permute(1, 2, 4, 3, 0).unbind(2)  # (b, S, 2, parts) each
        shift, gain = (constant + (2 * u - 1).view(-1, 1, 1, 1) * slope)[:, :, :, None, :, None].unbind(2)
        gain = gain + self.powers[key] * torch.log(2 / count.clamp_min(1)).view(-1, 1, 1, 1, 1)
        logits = lora * (w_lora + base * w_cross) + base * w_base + bias + shift
        return (gain.exp() * w_out * torch.sigmoid(logits) * y).sum(dim=1).flatten(-2)

    def table(self, key: str) -> Tensor:
        """(parts, role, shift or gain, constant or slope)."""
        table = self.roles[key]
        if not self.roled:
            table = table.mean(1, keepdim=True).expand_as(table)
        return table if self.timed else table * torch.tensor([1.0, 0.0])

    @torch.no_grad()
    def vectors(self) -> dict[str, GateVectors]:
        """The product's vectors of every layer, in spans as a gate file has them."""
        out = {}
        for name, layer in self.layers.items():
            key, spans = self.key(name), spans_of(name, layer.out_features)
            parts, width = len(spans), layer.out_features // len(spans)
            numbers, table = self.numbers[key].expand(5, parts, width), self.table(key)
            unit = torch.stack([torch.ones(parts, width), torch.zeros(parts, width)] * 2)
            norms = unit if self.shared else self.norms[key]
            for part, (entry, _, _) in enumerate(spans):
                found = GateVectors.from_stack(torch.cat([numbers[:, part], norms[:, part]]).clone())
                tilted = {"roles": table[part].clone()} if table.any() else {}
                out[entry] = replace(found, **tilted, power=float(self.powers[key]))
        return out


def parts_of(name: str, channels: int) -> int:
    """In how many equal parts a layer is gated."""
    return len(spans_of(name, channels))


def _normed(x: Tensor) -> Tensor:
    return F.layer_norm(x.float(), x.shape[-1:], eps=EPS)


class FusedLayers:
    """Wraps the network's layers. Before a forward pass set ``ids`` (b, SLOTS), ``roles`` (b, SLOTS), ``count`` (b,),
    ``u`` (b,) and ``routes`` (layer → (b, R, R)); without ``gate`` LoRAs are summed."""

    def __init__(self, factors: Factors):
        self.factors, self.gate = factors, None
        self.ids = self.roles = torch.zeros(1, SLOTS, dtype=torch.long)
        self.count = self.u = torch.ones(1)
        self.routes: dict[str, Tensor] | None = None
        self.common: dict[str, tuple[Tensor, Tensor]] | None = None  # Global-LoRA: layer → (b, r, in), (b, out, r)
        for name, layer in factors.layers.items():
            layer.forward = self._forward(name, layer)  # type: ignore[method-assign]

    def _forward(self, name: str, layer: nn.Linear):
        def forward(x: Tensor) -> Tensor:
            y0 = F.linear(x, layer.weight, layer.bias)
            b, length = x.shape[:2]
            down, up = self.factors.down[name][self.ids], self.factors.up[name][self.ids]
            heard = torch.bmm(x, down.flatten(1, 2).to(x.dtype).mT)
            if self.routes is not None:
                heard = torch.bmm(heard, self.routes[name].to(x.dtype).mT)
            heard = heard.view(b, length, SLOTS, RANK).transpose(1, 2)
            y = torch.matmul(heard, up.to(x.dtype).mT)
            if self.gate is None:
                return y0 + y.sum(dim=1)
            roles = self.roles
            if self.common is not None:
                low, high = self.common[name]
                whole = torch.bmm(torch.bmm(x, low.to(x.dtype).mT), high.to(x.dtype).mT)
                y, roles = torch.cat([y, whole[:, None]], 1), F.pad(roles, (0, 1))
            return y0 + self.gate.update(name, y0, y, self.u, self.count, roles).to(y0.dtype)

        return forward


def padded(loras: Sequence[int], none: int) -> list[int]:
    return [*loras, *[none] * (SLOTS - len(loras))]


def share_done(t: np.ndarray) -> np.ndarray:
    """How much of the sampling is done at flow time ``t`` (1 = noise), with SD3's shift of 3: t = 3s / (1 + 2s)."""
    return 1 - t / (3 - 2 * t)
