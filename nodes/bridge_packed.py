"""Low-rank LoRAs of one linear layer in a few stacked factors, stored once: fast where they can be, and as the gate is
written down from slices of the same factors where not.

Everything is a weight of ComfyUI's own casting layers: it counts, moves, streams and casts them.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import replace

import comfy.ops
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..autolora_core.fusion.fast import chunked
from ..autolora_core.fusion.fast.choose import give_up, tell_once, why_no_kernel, why_written_out
from ..autolora_core.fusion.fast.in_place import add_gated
from ..autolora_core.fusion.fast.layout import Layout, Section, arrange, stacked_down, whole_ups
from ..autolora_core.fusion.fast.packed import Packed, coefficients, filled, pack
from ..autolora_core.fusion.gate import GateVectors, Tilt
from ..autolora_core.fusion.moment import Moment
from ..autolora_core.fusion.plan import ModulePlan
from .bridge_features import is_out_of_memory

HALVED = (0.5, 0.5, 0.5, 0.5, 1.0)  # rows of the gate's table: the kernel takes half the logits, which is exact


MOST_KEPT = 64 << 20  # bytes
Contents = Mapping[int, Hashable]  # LoRA number → what stands for the content of its file
# What the norms of a gated span need to know, which takes longest to work out: another strength needs the same again.
_measured: OrderedDict[tuple, tuple[Tensor, Tensor]] = OrderedDict()


class Factors(nn.Module):
    """The packed branches of a linear layer. ``dtype``: what the model computes in, so that nothing is cast later.
    ``contents`` of all LoRAs whose factors are as their files have them."""

    def __init__(self, plan: ModulePlan, dtype: torch.dtype, contents: Contents | None = None):
        super().__init__()
        self.name = plan.name
        self.layout = layout = arrange(plan)
        self.down = held(stacked_down(plan, layout, dtype))
        self.spans = nn.ModuleList([Span(plan, layout, section, dtype, contents) for section in layout.sections])
        self.ups = nn.ModuleList([held(plan.branches[index].up.to(dtype)) for index in layout.plain])
        # A compiled graph takes strengths as inputs, so that another strength is no other graph.
        scales = torch.tensor([piece.scale for piece in layout.pieces], dtype=torch.float32)
        self.register_buffer("scales", scales, persistent=False)
        self._where = {index: (number, None) for number, index in enumerate(layout.plain)}
        for number, section in enumerate(layout.sections):
            self._where |= {index: (number, section) for lora in section.members for index in lora}

    def runs_fast(self, x: Tensor, y0: Tensor) -> bool:
        """Whether :meth:`fast` may be called; tells once why a GPU has to do without its kernel."""
        if why_written_out(x, y0) is not None:
            return False
        reason = why_no_kernel(y0.device, self.layout.sections) if self.layout.sections else None
        if reason is None or torch.compiler.is_compiling():
            return True
        tell_once(reason)
        return False

    def fast(self, x: Tensor, y0: Tensor, moment: Moment, own: bool) -> Tensor | None:
        """The layer's output; ``y0`` itself, written over, where it is our ``own``. None: the kernel failed."""
        hidden = self.hidden(x, moment)
        if torch.compiler.is_compiling():
            return self._traced(hidden, y0, moment)
        own = own and y0.is_contiguous() and (y0.device.type == "cpu" or len(self.spans) < 2)  # a kernel may fail later
        out = y0 if own else y0.clone(memory_format=torch.contiguous_format)
        flat, hidden = out.view(-1, out.shape[-1]), hidden.view(-1, hidden.shape[-1])
        for span in self.spans:
            if not span.add(flat, hidden, moment):
                return None
        for up, index in zip(self.ups, self.layout.plain, strict=True):
            piece = self.layout.pieces[index]
            part = flat[:, slice(*piece.span)]
            part.addmm_(hidden[:, slice(*piece.columns)], weight_of(up, y0).t(), alpha=piece.scale)
        return out

    def hidden(self, x: Tensor, moment: Moment) -> Tensor:
        """(…, R): what all down factors make of ``x``, as far as each LoRA is present."""
        out = linear(x, weight_of(self.down, x))
        if moment.presences:
            for lora, columns in dict.fromkeys((piece.lora, piece.columns) for piece in self.layout.pieces):
                presence, part = moment.presences.get(lora), out[..., slice(*columns)]
                if presence is not None:
                    part.copy_(presence.of(part, self.name, -1))
        return out

    def branch(self, index: int, x: Tensor) -> Tensor:
        """What branch ``index`` adds by itself, on its own channels: slices of the factors."""
        piece, (number, section) = self.layout.pieces[index], self._where[index]
        low = linear(x, weight_of(self.down, x)[slice(*piece.columns)])
        low = self._scaled(index, low)
        if section is None:
            return linear(low, weight_of(self.ups[number], x))
        start, first = section.span[0], section.columns[0]
        rows, columns = (piece.span[0] - start, piece.span[1] - start), (a - first for a in piece.columns)
        return linear(low, weight_of(self.spans[number].up, x)[slice(*rows), slice(*columns)])

    def vectors(self, number: int, like: Tensor) -> GateVectors | None:
        """The gate of group ``number``; None for a plain sum."""
        found = (span for span in self.spans if span.section.group == number)
        return next((span.vectors(like) for span in found), None)

    def _scaled(self, index: int, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return x * self.layout.pieces[index].scale
        return (x.to(torch.promote_types(x.dtype, torch.float32)) * self.scales[index]).to(x.dtype)

    def _traced(self, hidden: Tensor, y0: Tensor, moment: Moment) -> Tensor:
        """The same without loops over tokens and without writing in place, for a compiler to fuse."""
        out = y0.clone()
        for span in self.spans:
            part = slice(*span.section.span)
            out[..., part] = span.traced(y0[..., part], hidden, moment)
        for up, index in zip(self.ups, self.layout.plain, strict=True):
            piece = self.layout.pieces[index]
            low = self._scaled(index, hidden[..., slice(*piece.columns)])
            out[..., slice(*piece.span)] += linear(low, weight_of(up, y0))
        return out


class Span(nn.Module):
    """The LoRAs of one gated group, and its gate: ``up`` (d, R), and ``numbers``, float32 whatever the model computes
    in: means and roots of the LoRAs' statistics, what each LoRA's knobs are, the gate's table."""

    def __init__(
        self, plan: ModulePlan, layout: Layout, section: Section, dtype: torch.dtype, contents: Contents | None = None
    ):
        super().__init__()
        self.section = section
        packed = _packed(plan, layout, section, dtype, contents or {})
        tilts = section.tilts or (Tilt(),) * len(section.bounds)
        knobs = torch.tensor([[s, *t.shift, *t.gain] for s, t in zip(section.scales, tilts, strict=True)])
        table = coefficients(plan.groups[section.group].vectors) * torch.tensor(HALVED)[:, None]
        self.widest, self.channels = packed.root.shape[1], packed.channels
        self.up = held(packed.up)
        parts = [packed.mean, packed.root.flatten(), knobs.flatten(), table.flatten()]
        self.sizes = [filled(part.numel()) for part in parts]  # each begins where a GPU reads well
        self.numbers = held(torch.cat([_filled(part.float()) for part in parts])[None])
        self.bounds_on: dict[torch.device, Tensor] = {}

    def add(self, out: Tensor, hidden: Tensor, moment: Moment) -> bool:
        """Add the group to ``out`` (T, channels of the layer) in place; False where the kernel failed."""
        part, own = out[:, slice(*self.section.span)], hidden[:, slice(*self.section.columns)]
        if out.device.type == "cpu":
            packed, _, table = self._parts(out)
            add_gated(part, own, packed, self._whole(table), self._plain_knobs(moment), self.section.eps)
            return True
        try:
            self.by_kernel(part, own, moment)
        except Exception as error:  # whatever a compiler of another system says
            if is_out_of_memory(error):
                raise
            give_up(error)
            return False
        return True

    def by_kernel(self, part: Tensor, hidden: Tensor, moment: Moment) -> None:
        """Add the group to ``part`` (T, d) in place; ``hidden`` (T, R) its own. Triton must be there."""
        from ..autolora_core.fusion.fast import triton_gate

        packed, knobs, table = self._parts(part)
        if part.device not in self.bounds_on:
            whole = torch.tensor(self.section.bounds, dtype=torch.int32)
            self.bounds_on[part.device] = whole.to(part.device)
        packed, tilted = replace(packed, spans=self.bounds_on[part.device]), self.section.tilts is not None
        share, eps = moment.progress, self.section.eps
        triton_gate.gated(part, hidden, packed, table, knobs, eps, share, tilted, out=part)

    def traced(self, y0: Tensor, hidden: Tensor, moment: Moment) -> Tensor:
        """The gated span, a new tensor, for a compiler to fuse."""
        packed, knobs, table = self._parts(y0)
        way = 2 * moment.share - 1
        gain = torch.exp(knobs[:, 3] + way * knobs[:, 4])
        knobs = torch.stack([knobs[:, 0], knobs[:, 1] + way * knobs[:, 2], gain], 1)
        flat, own = y0.reshape(-1, y0.shape[-1]), hidden[..., slice(*self.section.columns)]
        out = chunked.piece(flat, own.reshape(len(flat), -1), packed, self._whole(table), knobs, self.section.eps)
        return out.to(y0.dtype).view(y0.shape)

    def vectors(self, like: Tensor) -> GateVectors:
        """The gate as nine vectors, those of both norms ones and zeros: the table has them worked in."""
        constant, slope, lora, cross, w_out = self._whole(self._parts(like)[2])
        one, zero = constant.new_ones(self.channels), constant.new_zeros(self.channels)
        return GateVectors(lora, cross, w_out, constant, one, zero, one, zero, slope, self.section.eps)

    def _parts(self, like: Tensor) -> tuple[Packed, Tensor, Tensor]:
        """Factors and statistics (spans are for the kernel alone), knobs (K, 5), table (5, d) of half the logits."""
        mean, root, knobs, table = weight_of(self.numbers, like, torch.float32)[0].split(self.sizes)
        loras, root = len(self.section.bounds), root.view(-1, self.widest)
        packed = Packed(weight_of(self.up, like), mean, root, None, self.section.bounds)
        return packed, knobs[: 5 * loras].view(loras, 5), table[: 5 * self.channels].view(5, self.channels)

    def _plain_knobs(self, moment: Moment) -> list[tuple[float, float, float]]:
        """Scale, shift, exp(gain) as numbers."""
        way, scales = 2 * moment.progress - 1, self.section.scales
        if self.section.tilts is None:
            return [(scale, 0.0, 1.0) for scale in scales]
        return [
            (scale, tilt.shift[0] + way * tilt.shift[1], math.exp(tilt.gain[0] + way * tilt.gain[1]))
            for scale, tilt in zip(scales, self.section.tilts, strict=True)
        ]

    @staticmethod
    def _whole(table: Tensor) -> Tensor:
        return torch.cat([table[:4] * 2, table[4:]])


def _packed(plan: ModulePlan, layout: Layout, section: Section, dtype: torch.dtype, contents: Contents) -> Packed:
    """A section's factors; their statistics are looked up where the files were measured before."""
    pieces = [layout.pieces[index] for lora in section.members for index in lora]
    key = (plan.name, section.span, section.bounds, dtype) + tuple(
        (contents.get(piece.lora), piece.columns, piece.span, piece.louder) for piece in pieces
    )
    known = None if any(piece.lora not in contents for piece in pieces) else _measured.get(key)
    packed = pack(whole_ups(plan, layout, section), dtype, known)
    if all(piece.lora in contents for piece in pieces):
        _measured[key] = packed.mean, packed.root
        _measured.move_to_end(key)
        while sum(mean.nbytes + root.nbytes for mean, root in _measured.values()) > MOST_KEPT:
            _measured.popitem(last=False)
    return packed


def _filled(part: Tensor) -> Tensor:
    return torch.nn.functional.pad(part, (0, filled(part.numel()) - part.numel()))


def held(weight: Tensor) -> nn.Module:
    """A casting layer that keeps ``weight`` (out, in) as it is."""
    layer = comfy.ops.manual_cast.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=False)
    return layer


def weight_of(layer: nn.Module, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The weight of a casting layer where ``like`` is and in its dtype, or in ``dtype``: itself, where it is so."""
    dtype = dtype or like.dtype
    return comfy.ops.cast_bias_weight(layer, None, dtype, like.device, dtype)[0]
