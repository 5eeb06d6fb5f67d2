"""Part ``pictures``: whole pictures of the demo model through real ComfyUI, with LoRAs applied in different ways.

``base``: none. ``stock``: ComfyUI's own LoRA loader, which changes weights. ``sum``: our Apply node, plain branches.
``gate``: Apply with a gate whose every vector counts (made by lot: the shipped one never looks at what passes, so it
could be cheaper). ``torch``: the same where Numba is not installed. ``written``: the gate as it is written down.
``shipped``: the shipped gate. Sampling alone
is timed, after the model was loaded.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from autolora_core.fusion.files import read_gate, write_gate
from autolora_core.fusion.gate import VECTORS, GateVectors
from benchmarks import in_comfy
from benchmarks.results_file import REPO

from .node_layer import running
from .turns import in_turns, threads

WRITTEN, TORCH = "written_k3", "torch_k3"
SHIPPED, DRAWN = "emoji_gate.safetensors", "drawn.safetensors"
COUNTS, TURNS, STEPS, SIDE = (1, 3, 8), 5, 20, 32
PROMPT, GUIDANCE = "a castle in watercolour style", 4.0


def write_drawn_gate(folder: Path) -> None:
    """A gate for the demo model's layers that listens to all it can hear."""
    dice = torch.Generator().manual_seed(0)
    kept = read_gate(REPO / "models" / SHIPPED)
    vectors = {
        name: GateVectors.from_named({v: 0.3 * torch.randn(own.channels, generator=dice) for v in VECTORS})
        for name, own in kept.modules.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_gate(folder / DRAWN, vectors, family=kept.family)


def loras(count: int) -> list[str]:
    return [path.name for path in sorted((REPO / "models" / "loras").glob("*.safetensors"))[:count]]


def models(base: Any) -> dict[str, Any]:
    """MODELs by the name of the way."""
    import comfy.sd
    import comfy.utils

    apply = in_comfy.node("gated_apply.AutoLoRAGatedApply").apply

    def applied(count: int, **how: Any) -> Any:
        return apply(base, lora_stack=[(name, 1.0, 1.0) for name in loras(count)], **how)[0]

    stock = base
    for name in loras(3):
        state = comfy.utils.load_torch_file(str(REPO / "models" / "loras" / name), safe_load=True)
        stock, _ = comfy.sd.load_lora_for_models(stock, None, state, 1.0, 0.0)
    found = {"base": base, "stock_k3": stock, "sum_k3": applied(3, mode="sum")}
    found |= {f"gate_k{count}": applied(count, mode="gate", gate=DRAWN) for count in COUNTS}
    found |= dict.fromkeys((WRITTEN, TORCH), found["gate_k3"])
    return found | {"shipped_k3": applied(3, mode="gate", gate=SHIPPED)}


@contextmanager
def going(name: str) -> Iterator[None]:
    """The node's layers do without their fast way, or without Numba, for the ways that are called so."""
    factors = in_comfy.pack_module("nodes.bridge_packed").Factors
    fast = factors.runs_fast
    if name == WRITTEN:
        factors.runs_fast = lambda self, x, y0: False
    plain = in_comfy.pack_module("autolora_core.fusion.fast.choose").in_plain_torch
    try:
        with plain() if name == TORCH else nullcontext():
            yield
    finally:
        factors.runs_fast = fast


class Sampling:
    """Noise, texts and sizes, the same for all."""

    def __init__(self):
        (clip,) = in_comfy.node("minilm_clip.AutoLoRAMiniLMCLIPLoader").load()
        self.told, self.empty = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (PROMPT, ""))
        self.latent = torch.zeros(1, 16, SIDE, SIDE)
        self.noise = torch.randn(self.latent.shape, generator=torch.Generator().manual_seed(0))

    def __call__(self, name: str, model: Any, steps: int) -> torch.Tensor:
        import comfy.sample

        with going(name):
            return comfy.sample.sample(
                model, self.noise, steps, GUIDANCE, "euler", "normal", self.told, self.empty, self.latent,
                disable_pbar=True, seed=0,
            )  # fmt: skip


def measure(quick: bool) -> tuple[dict[str, float], list[dict]]:
    count, base = threads(), in_comfy.demo_model()
    import folder_paths

    with tempfile.TemporaryDirectory() as folder, running():
        folder_paths.models_dir = folder
        write_drawn_gate(Path(folder, "autolora"))
        made, sampling = models(base), Sampling()
        steps, turns = (2, 1) if quick else (STEPS, TURNS)
        ways: dict[str, Callable] = {name: partial(sampling, name, model, steps) for name, model in made.items()}
        taken = in_turns(ways, turns, before=lambda name: sampling(name, made[name], 1))
        drawn = {name: ways[name]() for name in ("gate_k3", TORCH, WRITTEN)}
    figures = {f"demo_image_{name}_over_base": s / taken["base"] for name, s in taken.items() if name != "base"}
    figures["demo_image_over_base_k3"] = figures["demo_image_gate_k3_over_base"]
    spread = drawn[WRITTEN].std()
    for name, way in (("compiled", "gate_k3"), ("torch", TORCH)):
        figures[f"demo_image_latent_apart_{name}"] = float((drawn[way] - drawn[WRITTEN]).abs().max() / spread)
    about = {"what": "picture", "threads": count, "steps": steps, "side": 8 * SIDE}
    return figures, [{**about, "way": name, "ms": 1e3 * s} for name, s in taken.items()]
