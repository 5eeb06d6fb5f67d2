"""Every mode of the Apply node, at the node's defaults, as courses of the demo network; and the gates beside them.

A method is a function of a workbench and the ids of the LoRAs; ``fusion_entries`` names all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from autolora_core.encode.calibrate import Logistic
from autolora_core.fusion.branches import Branch
from autolora_core.fusion.files import read_gate
from autolora_core.fusion.gate import GateVectors, Tilt
from autolora_core.fusion.methods import dense
from autolora_core.fusion.methods.planner import METHODS, Member, Routed, Settings, blend, ssr_stacks
from autolora_core.fusion.methods.rows import parts_of
from autolora_core.fusion.methods.ssr import Signals, Stack, route
from autolora_core.fusion.moment import Moment
from autolora_core.fusion.plan import UNASKED, FusionPlan, Group, ModulePlan, Standing, build_plan, by_module
from autolora_core.fusion.rules import Alone, Energy, Switch, Timed
from benchmarks.fusion_network import Course, Network, Weights
from benchmarks.fusion_shelf import Shelf
from zoo.sampler import SHIFT
from zoo.text_bank import encode

DEFAULTS = Settings()
# Of the cosine of two texts in MiniLM's space: as Retrieve believes words until it has measured them.
WORDS = Logistic(-12 * 0.62, np.array([12.0]))
MODES = ("sum", *METHODS)  # as the Apply node lists them
# As ``nodes.bridge_ssr``: one step at 20 % of the denoising, a latent of 32 × 32, the noise of seed 0.
EARLY, SIDE, NOISE = 0.8, 32, 0


class Workbench:
    """The LoRAs of one case and what several methods make of them; ``clear`` before the next case."""

    def __init__(self, shelf: Shelf, network: Network):
        self.shelf, self.network = shelf, network
        self.loras = {lora.id: lora for lora in shelf.loras}
        self.phrases: Sequence[str] = ()
        self._vectors: dict[str, Tensor] = {}
        self.clear()

    def asked(self, ids: Sequence[str]) -> list[float]:
        """How far the prompt asks for each of these LoRAs, as Retrieve reads a prompt: by the words of those that have
        any, phrase by phrase; what no words explain is left to those without, in equal shares."""
        if not self.phrases:
            return [1.0] * len(ids)
        told = {name: self._told(name) for name in ids if self.loras[name].worded}
        explained = np.max([*told.values(), np.zeros(len(self.phrases))], axis=0)
        share = min(1.0, float((1 - explained).sum()) / max(len(ids) - len(told), 1))
        return [float(told[name].max()) if name in told else share for name in ids]

    def _told(self, name: str) -> np.ndarray:
        """Probability for every phrase that the words of a LoRA mean it."""
        own = self._vector(self.loras[name].text)
        return WORDS.probability(np.array([[float(own @ self._vector(phrase))] for phrase in self.phrases]))

    def _vector(self, text: str) -> Tensor:
        if text not in self._vectors:
            self._vectors[text] = F.normalize(encode([text])[1][0], dim=0)
        return self._vectors[text]

    def standings(self, ids: Sequence[str], asked: bool = True) -> dict[int, Standing]:
        shares = self.asked(ids) if asked else [1.0] * len(ids)
        return {
            i: Standing(self.loras[name].role, share) for i, (name, share) in enumerate(zip(ids, shares, strict=True))
        }

    def clear(self) -> None:
        self._branches: dict[str, list[Branch]] = {}
        self._kept: dict[tuple[str, str], dict[str, Tensor]] = {}
        self._alone: dict[str, Weights] = {}
        self._heard: dict[str, dict[str, Tensor]] = {}

    def branches(self, ids: Sequence[str]) -> list[Branch]:
        """All branches; the LoRA's number is its place in ``ids``."""
        out = []
        for index, name in enumerate(ids):
            if name not in self._branches:
                self._branches[name] = self.shelf.branches(name, 0)
            out += [replace(branch, lora_index=index) for branch in self._branches[name]]
        return out

    def members(self, ids: Sequence[str]) -> list[Member]:
        return [Member(i, name, self.loras[name].role, self.shelf.content(name)) for i, name in enumerate(ids)]

    def alone(self, name: str) -> Weights:
        """The network's weights with this one LoRA."""
        if name not in self._alone:
            self._alone[name] = self.network.weights(updates(self.branches([name]), self.network.channels))
        return self._alone[name]

    def kept(self, method: str, name: str, density: float) -> dict[str, Tensor]:
        """Module → what ``method`` leaves of this LoRA's update before the LoRAs meet."""
        if (method, name) not in self._kept:
            contents = {0: self.shelf.content(name)}
            self._kept[method, name] = {
                module: dense.DenseMerge(
                    method, density, tuple(parts_of(own, contents)), self.network.channels[module]
                ).delta()
                for module, own in by_module(self.branches([name])).items()
            }
        return self._kept[method, name]

    def heard(self, text: str) -> dict[str, Tensor]:
        """Module → what it reads, (tokens, in) float32, when the bare base is asked for ``text``."""
        if text not in self._heard:
            inputs: dict[str, Tensor] = {}

            def ear(name: str) -> Callable:
                return lambda _, args: inputs.__setitem__(name, args[0].detach().float().flatten(0, 1))

            hooks = [layer.register_forward_pre_hook(ear(n)) for n, layer in self.network.layers.items()]
            sigma = SHIFT * EARLY / (1 + (SHIFT - 1) * EARLY)
            noise = torch.randn(1, 16, SIDE, SIDE, generator=torch.Generator().manual_seed(NOISE))
            with torch.inference_mode(), self.network.computing():
                self.network.model(sigma * noise, torch.full((1,), sigma), *encode([text]))
            for hook in hooks:
                hook.remove()
            self._heard[text] = inputs
        return self._heard[text]


def updates(branches: Sequence[Branch], channels: Mapping[str, int]) -> dict[str, Tensor]:
    """Module → the sum of its branches' updates, float32 (out, in)."""
    out = {}
    for name, own in by_module(branches).items():
        out[name] = torch.zeros(channels[name], own[0].columns)
        for branch in own:
            start, stop = branch.span(channels[name])
            out[name][start:stop] += (branch.up.float() * branch.scale) @ branch.down.float()
    return out


Method = Callable[[Workbench, Sequence[str]], Course]


def still(weights: Weights) -> Course:
    return Course(lambda moment: (weights,))


def single(bench: Workbench, ids: Sequence[str]) -> Course:
    """One LoRA, or none: what every mode makes of it."""
    return still(bench.alone(ids[0]) if ids else {})


def mode(name: str, settings: Settings = DEFAULTS) -> Method:
    """A training-free mode of the Apply node."""

    def build(bench: Workbench, ids: Sequence[str]) -> Course:
        if name in dense.METHODS:
            return still(bench.network.weights(merged(bench, name, ids, settings.density)))
        routers = routes(bench, ids) if name == "ssr" else None
        branches = bench.branches(ids)
        made = blend(name, branches, bench.network.channels, bench.members(ids), settings, routers)
        return course_of(bench, made.plan, ids)

    return build


def gate(path: Path) -> Method:
    """A gate file, as mode ``gate`` applies it."""
    return lambda bench, ids: gated(bench, ids, gate_vectors(path))


def gated(
    bench: Workbench, ids: Sequence[str], vectors: Mapping[str, GateVectors], asked: bool = True, routed: bool = False,
    roled: bool = True,
) -> Course:  # fmt: skip
    """``vectors`` on the LoRAs that are ``asked`` for, each on its own or on its routed branch."""
    plan = gated_plan(bench, ids, vectors, asked, routed, roled)
    if not plan.timed and all(g.vectors is None or g.vectors.flat for own in plan.modules.values() for g in own.groups):
        return still(bench.network.weights(flat_updates(plan)))
    return Course(plan=plan)


def gated_plan(
    bench: Workbench, ids: Sequence[str], vectors: Mapping[str, GateVectors], asked: bool = True, routed: bool = False,
    roled: bool = True,
) -> FusionPlan:  # fmt: skip
    """The plan of :func:`gated`, as the node runs it, beside the layers."""
    standings = bench.standings(ids, asked)
    standings = standings if roled else {i: replace(one, role=None) for i, one in standings.items()}
    branches = bench.branches([name for i, name in enumerate(ids) if standings[i].asked >= UNASKED])
    kept = [i for i in standings if standings[i].asked >= UNASKED]
    standings = {place: standings[i] for place, i in enumerate(kept)}
    if routed and len(kept) > 1:
        found = routes(bench, [ids[i] for i in kept])
        own = by_module(branches)
        branches = [b for name, parts in own.items() for b in (route(*found[name]) if name in found else parts)]
    return build_plan(branches, bench.network.channels, gates=vectors, standings=standings)


def flat_updates(plan: FusionPlan) -> dict[str, Tensor]:
    """Module → what flat gates make of its LoRAs, one update (out, in); a test compares with ``eager.fuse``."""
    out = {}
    for name, own in plan.modules.items():
        out[name] = torch.zeros(own.channels, own.branches[0].columns)
        for group in own.groups:
            for number, lora in enumerate(group.loras):
                factor = _flat_factor(group, number)
                for branch in (own.branches[index] for index in lora):
                    start, stop = branch.span(own.channels)
                    rows = factor[start - group.start : stop - group.start, None] if factor is not None else 1.0
                    out[name][start:stop] += rows * ((branch.up.float() * branch.scale) @ branch.down.float())
    return out


def _flat_factor(group: Group, number: int) -> Tensor | None:
    if group.vectors is None:
        return None
    return group.vectors.rest(group.tilts[number] if group.tilts else Tilt(), 0.5).float()


def summed(bench: Workbench, ids: Sequence[str]) -> Course:
    """The plain sum, each LoRA as loud as it is asked for: what that alone brings."""
    plan = build_plan(bench.branches(ids), bench.network.channels, standings=bench.standings(ids))
    branches = [branch for own in plan.modules.values() for branch in own.branches]
    return still(bench.network.weights(updates(branches, bench.network.channels)))


@cache
def gate_vectors(path: Path) -> dict[str, GateVectors]:
    return read_gate(path).modules


def merged(bench: Workbench, method: str, ids: Sequence[str], density: float) -> dict[str, Tensor]:
    """Module → the update of ``dense.DenseMerge``, from parts that are kept for the case (a test compares)."""
    trimmed = "magnitude" if method == "ties" else method
    kept = [bench.kept(trimmed, name, density) for name in ids]
    out = {}
    for module in {module: None for own in kept for module in own}:
        mine = [own[module] for own in kept if module in own]
        total = sum(mine)
        if method == "ties":
            sign = torch.sign(total)
            total = sum(torch.where(torch.sign(one) == sign, one, 0.0) for one in mine)
        out[module] = total
    return out


def routes(bench: Workbench, ids: Sequence[str]) -> dict[str, Routed]:
    """SSR's routers, asked of the base with what each LoRA goes by."""
    stacks = ssr_stacks(bench.branches(ids), bench.network.channels)
    texts: dict[str, list[int]] = {}
    for index, name in enumerate(ids):
        texts.setdefault(bench.loras[name].text, []).append(index)
    signals = {module: Signals(stack.owner) for module, stack in stacks.items()}
    for text, owners in texts.items():
        heard = bench.heard(text)
        for module, stack in stacks.items():
            z = heard[module] @ stack.down.T
            signals[module].add(owners, z.T @ z)
    return {module: _routed(stack, signals[module]) for module, stack in stacks.items()}


def _routed(stack: Stack, signals: Signals) -> Routed:
    return stack, signals.router().float()


def course_of(bench: Workbench, plan: FusionPlan, ids: Sequence[str]) -> Course:
    """What a plan asks for, on weights where that is the same."""
    rules = {name: own.groups[0].rule for name, own in plan.modules.items()}
    if any(isinstance(rule, Energy) for rule in rules.values()):
        return Course(plan=plan)
    if not any(isinstance(rule, Alone | Switch | Timed) for rule in rules.values()):
        branches = [branch for own in plan.modules.values() for branch in own.branches]
        return still(bench.network.weights(updates(branches, bench.network.channels)))
    alone = [bench.alone(name) for name in ids]
    if any(isinstance(rule, Alone) for rule in rules.values()):
        return Course(lambda moment: alone)
    return Course(lambda moment: (_spoken(plan, alone, moment),))


def _spoken(plan: FusionPlan, alone: Sequence[Weights], moment: Moment) -> Weights:
    """At every module the weight of the LoRA whose turn it is; the base's where that one has nothing to say."""
    out = {}
    for name, own in plan.modules.items():
        weights = alone[_speaker(own, moment)]
        if name in weights:
            out[name] = weights[name]
    return out


def _speaker(plan: ModulePlan, moment: Moment) -> int:
    return plan.groups[0].rule.live(moment)
