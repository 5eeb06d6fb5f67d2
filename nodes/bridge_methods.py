"""The training-free modes of the Apply node: what they need of ComfyUI, around ``fusion.methods.planner``."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management

from ..autolora_core.encode.towers import file_sha256
from ..autolora_core.errors import SelectionError
from ..autolora_core.fusion.branches import Branch
from ..autolora_core.fusion.methods.planner import STEPWISE, Blend, Member, Settings, blend
from ..autolora_core.fusion.moment import Moment
from ..autolora_core.fusion.plan import by_module
from ..autolora_core.fusion.presence import Presence
from ..autolora_core.fusion.terms import Term
from .bar import Bar
from .bridge_dense import dense_patches
from .bridge_inject import attach
from .bridge_loras import PREFIX, LoadedLora
from .bridge_moment import compose, follow_steps
from .bridge_place import layout_of
from .bridge_record import record
from .bridge_ssr import find_routers

HASHED = ("dare", "ssr")  # methods that know a LoRA by its content


@dataclass(frozen=True)
class Wishes:
    """The node's inputs that decide how LoRAs are fused; ``prompt`` is the selection's, ``terms`` say when and where
    they are on, ``record`` whether what passes is noted. ``node``: the node's id, to tell it what passes; "" tells
    nobody."""

    mode: str = "auto"
    gate: str = "auto"
    settings: Settings = field(default_factory=Settings)
    prompt: str = ""
    terms: Sequence[Term] = ()
    record: bool = False
    node: str = ""


def blend_with(
    model: Any,
    clip: Any,
    wishes: Wishes,
    loras: Mapping[int, LoadedLora],
    branches: Sequence[Branch],
    channels: Mapping[str, int],
) -> Blend:
    """Fuse ``loras`` (number → file), two or more, by ``wishes.mode``; branches of other LoRAs are summed beside them.

    Raises ``SelectionError`` when the mode needs a CLIP and there is none.
    """
    hashed = wishes.mode in HASHED
    members = [
        Member(index, lora.name, lora.request.role, file_sha256(lora.file.path) if hashed else "")
        for index, lora in loras.items()
    ]
    own = [branch for branch in branches if branch.lora_index in loras]
    routers, notes = None, []
    if wishes.mode == "ssr":
        if clip is None:
            raise SelectionError(
                "mode 'ssr' asks the model with each LoRA's own words, and no CLIP is connected",
                key="clip",
                fix="connect the model's CLIP, or choose another mode",
            )
        routers, notes = find_routers(model, clip, own, channels, loras, members, wishes.prompt)
    tick = None
    if wishes.mode == "klora":
        bar, names = Bar(), list(by_module(own))
        tick = _ticker(bar, {name: number for number, name in enumerate(names, start=1)})
    device = comfy.model_management.get_torch_device()
    made = blend(wishes.mode, branches, channels, members, wishes.settings, routers, device, tick)
    made.notes += notes
    return made


def _ticker(bar: Bar, numbers: Mapping[str, int]) -> Any:
    def tick(name: str) -> None:
        bar(numbers[name], len(numbers), name)

    return tick


def attach_blend(
    patcher: Any,
    made: Blend,
    terms: Mapping[int, Term] | None = None,
    names: Sequence[str] | None = None,
    node: str = "",
    contents: Mapping[int, tuple] | None = None,
) -> None:
    """Give ``patcher`` (a clone of ours) everything that ``made`` asks for; ``terms``: LoRA number → when and where;
    ``names`` of all LoRAs, if what passes of them is to be recorded, and told to ``node`` of the page; ``contents``:
    LoRA number → stamp of its file, where branches are as their files have them."""
    passing = {index: Presence(term) for index, term in (terms or {}).items() if term.passing}
    recorder = None if names is None else record(patcher, made, names, node)
    moment = Moment(presences=passing, recorder=recorder)
    if made.plan.modules:
        attach(patcher, made.plan, PREFIX, moment, contents)
    if made.dense:
        patcher.add_patches(dense_patches(made.dense, PREFIX), 1.0)
    key = f"autolora_{made.plan.mode}_{uuid.uuid4().hex}"
    if made.plan.mode == "composite":
        compose(patcher, key, moment, made.order)
    if passing or recorder or (made.plan.mode in STEPWISE and made.plan.mode != "composite") or made.plan.timed:
        layout = layout_of(patcher) if passing else None
        follow_steps(patcher, f"{key}_steps", moment, made.turns, layout)
