"""Putting fused layers into a running model and taking them out, whatever else is stacked on the same layer.

ComfyUI calls ``inject`` after a model is loaded and ``eject`` when it is moved or replaced. The calls are neither
paired nor last-in-first-out, a clone's deletion may eject what belongs to its parent, and other packs replace the same
``forward``. So nothing here restores a remembered function blindly: a wrapper is switched off, and taken away only
while it is on top.
"""

from __future__ import annotations

import uuid
import weakref
from typing import Any

import comfy.utils
import torch
from comfy.patcher_extension import PatcherInjection
from torch import nn

from ..autolora_core.fusion.moment import Moment
from ..autolora_core.fusion.plan import FusionPlan
from .bridge_bank import FusionBank
from .bridge_features import compute_dtype, patcher_class
from .bridge_packed import Contents


class FusedForward:
    """Stands in for ``module.forward``; once dead it only passes on to what it replaced.

    What is put in place is the bound method ``run``: torch.compile knows a method by its code and its owner by what is
    in it, but any other object by its identity, and would compile again at every injection.
    """

    def __init__(self, module: nn.Module, layer: nn.Module):
        self.had_own_forward = "forward" in module.__dict__
        self.inner = module.forward
        # What a layer's own class makes is nobody else's; what another pack's function gives may be kept by it.
        below = getattr(self.inner, "__self__", None)
        self.fresh = below.fresh if isinstance(below, FusedForward) else not self.had_own_forward
        self.layer = layer
        self.live = True

    def run(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        y0 = self.inner(x, *args, **kwargs)
        return self.layer(x, y0, self.fresh) if self.live else y0

    def kill(self) -> None:
        """Stop fusing and let go of the factors, even while buried under a foreign wrapper."""
        self.live = False
        self.layer = None


def top_wrapper(module: nn.Module) -> FusedForward | None:
    """Our wrapper, dead or alive, when it is the outermost thing that stands in for a layer's ``forward``."""
    owner = getattr(module.__dict__.get("forward"), "__self__", None)
    return owner if isinstance(owner, FusedForward) else None


def peel(module: nn.Module) -> None:
    """Remove our dead wrappers from the top of the stack."""
    while (top := top_wrapper(module)) is not None and not top.live:
        if top.had_own_forward:
            module.forward = top.inner
        else:
            del module.forward


class FusionInjection:
    """Inject and eject of one node application. Idempotent, and per model: a patcher may be given another one.

    The patcher that injected owns the layers, and only it takes them out. A clone of a loaded patcher believes that it
    is injected too, and ejects when it is deleted: that may be in the middle of its parent's sampling.
    """

    def __init__(self, key: str, prefix: str):
        self.key, self.prefix = key, prefix
        self._installed: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
        self._owners: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

    def inject(self, patcher: Any) -> None:
        if not self._owned_by_another(patcher):
            self._owners[patcher.model] = weakref.ref(patcher)
        installed = self._installed.setdefault(patcher.model, {})
        bank = patcher.get_additional_models_with_key(self.key)[0].model
        for name, layer in zip(bank.names, bank.layers, strict=True):
            if name not in installed:
                module = comfy.utils.get_attr(patcher.model, self.prefix + name)
                peel(module)
                installed[name] = FusedForward(module, layer)
                module.forward = installed[name].run

    def eject(self, patcher: Any) -> None:
        if self._owned_by_another(patcher):
            return
        self._owners.pop(patcher.model, None)
        for name, wrapper in self._installed.pop(patcher.model, {}).items():
            wrapper.kill()
            peel(comfy.utils.get_attr(patcher.model, self.prefix + name))

    def _owned_by_another(self, patcher: Any) -> bool:
        owner = self._owners.get(patcher.model, lambda: None)()
        return owner is not None and owner is not patcher and owner.is_injected


def attach(
    patcher: Any, plan: FusionPlan, prefix: str, moment: Moment | None = None, contents: Contents | None = None
) -> str:
    """Give ``patcher`` (a clone of ours) the fused layers of ``plan``; returns the key they are filed under.

    ``moment``: where the layers read the step of sampling, for rules that depend on it. ``contents``:
    LoRA number → what stands for its file, where the plan's factors are the file's own.

    The key is new each time: ComfyUI replaces injections that share a key, so two of our nodes in a row would be one.
    """
    modules = {name: comfy.utils.get_attr(patcher.model, prefix + name) for name in plan.modules}
    bank = FusionBank(plan, modules, moment, compute_dtype(patcher), contents)
    aux = patcher_class()(bank, load_device=patcher.load_device, offload_device=patcher.offload_device)
    key = f"autolora_fuse_{uuid.uuid4().hex}"
    injection = FusionInjection(key, prefix)
    patcher.set_additional_models(key, [aux])
    patcher.set_injections(key, [PatcherInjection(inject=injection.inject, eject=injection.eject)])
    return key
