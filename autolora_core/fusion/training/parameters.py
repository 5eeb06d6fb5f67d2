"""The numbers of a gate while it is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..gate import ROLES, GateVectors, Tilt, gated_update

QUICK = 3.0  # a role or a power is one number for a whole layer: it may learn faster


def spans_of(name: str, channels: int) -> list[tuple[str, int, int]]:
    """(entry of a gate file, start, stop) of a layer: a fused qkv has one for each of its three parts."""
    if name.rpartition(".")[2] == "qkv" and channels % 3 == 0:
        third = channels // 3
        return [(f"{name}[{i * third}:{(i + 1) * third}]", i * third, (i + 1) * third) for i in range(3)]
    return [(name, 0, channels)]


class GateParameters(nn.Module):
    """Vectors, roles and powers of every layer in ``channels`` (module → output channels); starts as the plain sum."""

    def __init__(self, channels: Mapping[str, int]):
        super().__init__()
        self.channels = dict(channels)
        self.stacks, self.roles, self.powers = (nn.ParameterDict() for _ in range(3))
        for name, width in self.channels.items():
            for entry, start, stop in spans_of(name, width):
                key = _key(entry)
                self.stacks[key] = nn.Parameter(GateVectors.identity(stop - start).stack())
                self.roles[key] = nn.Parameter(torch.zeros(2, 2, 2))
                self.powers[key] = nn.Parameter(torch.zeros(()))

    def groups(self) -> list[dict]:
        """Parameter groups for an optimiser, with how much faster than its rate each learns."""
        quick = [*self.roles.values(), *self.powers.values()]
        return [{"params": list(self.stacks.values()), "times": 1.0}, {"params": quick, "times": QUICK}]

    def live(self, entry: str, device: torch.device) -> GateVectors:
        """The vectors as they are now, on ``device``, with their gradients."""
        return GateVectors.from_stack(self.stacks[_key(entry)].to(device))

    def tilt(self, entry: str, role: str | None, count: float, device: torch.device) -> Tilt:
        """As :meth:`GateVectors.tilt`, of tensors."""
        table = self.roles[_key(entry)].to(device)
        shift, gain = table[ROLES.index(role)] if role in ROLES else table.mean(0)
        louder = self.powers[_key(entry)].to(device) * math.log(2 / max(count, 1.0))
        return Tilt((shift[0], shift[1]), (gain[0] + louder, gain[1]))

    def knobs(self, entry: str, roles: Sequence[str | None], count: float, u: float, device: torch.device) -> Tensor:
        """(K, 3) for LoRAs of these roles: scale 1, shift and exp(gain) at ``u``, as the fused form takes them."""
        rows, way = [], 2 * u - 1
        for role in roles:
            tilt = self.tilt(entry, role, count, device)
            shift, gain = (constant + slope * way for constant, slope in (tilt.shift, tilt.gain))
            rows.append(torch.stack([torch.ones_like(shift), shift, gain.exp()]))
        return torch.stack(rows)

    @torch.no_grad()
    def vectors(self) -> dict[str, GateVectors]:
        """What a gate file holds."""
        out = {}
        for name, width in self.channels.items():
            for entry, _, _ in spans_of(name, width):
                found = GateVectors.from_stack(self.stacks[_key(entry)].detach().cpu().clone())
                roles = self.roles[_key(entry)].detach().cpu().clone()
                out[entry] = replace(found, roles=roles, power=float(self.powers[_key(entry)]))
        return out


def _key(entry: str) -> str:
    """Names of parameters must not hold dots."""
    return entry.replace(".", "/")


def hooked_update(
    parameters: GateParameters, name: str, y0: Tensor, branches: Mapping[int, Tensor], roles: Mapping[int, str | None],
    count: float, u: float, dim: int,
) -> Tensor:  # fmt: skip
    """What the gate adds to a layer's output ``y0``; ``branches``: LoRA number → its output on all channels."""
    pieces = []
    for entry, start, stop in spans_of(name, y0.shape[dim]):
        base = y0.narrow(dim, start, stop - start)
        values = [value.narrow(dim, start, stop - start) for value in branches.values()]
        tilts = [parameters.tilt(entry, roles.get(lora), count, y0.device) for lora in branches]
        vectors = parameters.live(entry, y0.device)
        pieces.append(gated_update(base, values, vectors, dim, tilts, torch.tensor(u, device=y0.device)))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)
