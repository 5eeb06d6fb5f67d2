"""Node "Train Fusion Gate": the user's own model and LoRAs → a gate for the Apply node."""

from __future__ import annotations

from typing import Any

from ..autolora_core.fusion.requests import requests_of
from ..autolora_core.fusion.training.outcome import MOST, STEPS, Options, training_report
from ..autolora_core.wording import lines_apart
from .bar import Bar
from .wires import require_clip, require_model, require_vae

MOST_LORAS = 24


class AutoLoRATrainFusionGate:
    """Learns how much of each LoRA to let through on the user's own base."""

    TITLE = "Train Fusion Gate"
    CATEGORY = "AutoLoRA"
    DESCRIPTION = (
        "Trains a fusion gate for your own base model from your own LoRAs. Each LoRA's picture is made with it alone; "
        "then a gate is learnt that keeps that picture when other LoRAs stand beside it. Pictures of your own with "
        "captions can be added. The gate is saved in models/autolora, if it does better than the plain sum on draws it "
        "did not learn from. A cancelled run goes on next time."
    )
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("previews", "report")
    OUTPUT_TOOLTIPS = (
        "The first two LoRAs fused by the gate, after each quarter of the training.",
        "What was learnt, from what, and where the gate was saved.",
    )
    FUNCTION = "train"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        from .bridge_samplers import sampler_names, scheduler_names

        def whole(default: int, low: int, high: int, tip: str, step: int = 1) -> tuple:
            return ("INT", {"default": default, "min": low, "max": high, "step": step, "tooltip": tip})

        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The diffusion model the gate is for, without LoRAs."}),
                "clip": ("CLIP", {"tooltip": "Its text encoder: every LoRA is asked for by its own words."}),
                "vae": ("VAE", {"tooltip": "For previews, and to encode pictures of your own."}),
                "steps": whole(STEPS, 1, 100000, "Steps of learning. A few hundred are usual."),
                "most_together": whole(MOST, 2, 8, "At most so many LoRAs at once while learning."),
                "width": whole(512, 16, 4096, "Width of the pictures it learns from. Small is quick.", 8),
                "height": whole(512, 16, 4096, "Height of the pictures it learns from.", 8),
                "sampling_steps": whole(20, 1, 1000, "Steps of sampling a LoRA's own picture."),
                "cfg": ("FLOAT", {"default": 4.0, "min": 0.0, "max": 100.0, "step": 0.1,
                                  "tooltip": "Guidance of these pictures; 1 for FLUX."}),
                "sampler_name": (sampler_names(), {"tooltip": "Sampler of these pictures."}),
                "scheduler": (scheduler_names(), {"tooltip": "Scheduler of these pictures."}),
                # one that moves by itself, as the page has it for seeds, would train anew at every run
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": False,
                                 "tooltip": "Noise of these pictures."}),
            },
            "optional": {
                "index": ("LORA_INDEX", {"tooltip": "LoRAs to learn from: those of the library that fit the model."}),
                "lora_stack": ("LORA_STACK", {"tooltip": "LoRAs to learn from, with their strengths."}),
                "selection": ("LORA_SELECTION", {"tooltip": "LoRAs to learn from, with their roles."}),
                "most_loras": whole(MOST_LORAS, 2, 1000, "At most so many LoRAs of the index."),
                "pictures": ("IMAGE", {"tooltip": "Optional. Pictures of your own, of any combination of the LoRAs."}),
                "captions": ("STRING", {"default": "", "multiline": True, "tooltip": "A line for each of the pictures. "
                             "LoRAs whose own words are all in it are those that should be seen."}),
                "gate_name": ("STRING", {"default": "", "tooltip": "Name of the file. Empty: after the base family."}),
            },
        }  # fmt: skip

    def train(
        self, model: Any, clip: Any, vae: Any, steps: int = STEPS, most_together: int = MOST, width: int = 512,
        height: int = 512, sampling_steps: int = 20, cfg: float = 4.0, sampler_name: str = "euler",
        scheduler: str = "normal", seed: int = 0, index: Any = None, lora_stack: Any = None, selection: Any = None,
        most_loras: int = MOST_LORAS, pictures: Any = None, captions: str = "", gate_name: str = "",
    ) -> dict[str, Any]:  # fmt: skip
        from .bridge_paths import model_family
        from .bridge_train_gate import Job, Look, joined, stack_of_index

        require_model(model)
        require_clip(clip)
        require_vae(vae)
        requests = requests_of(selection, lora_stack)
        if index is not None:
            requests += stack_of_index(index, model_family(model).name, most_loras)
        bar, options = Bar(), Options(steps, most_together, gate_name)
        look = Look(width, height, sampling_steps, cfg, sampler_name, scheduler, seed)
        lines = [line for line in captions.splitlines() if line.strip()]
        job = Job(model, clip, vae, requests, options, look, pictures, lines, bar, bar.show)
        outcome, names, count, previews = job.run()
        bar.finish()
        report = lines_apart(training_report(outcome, names, count, job.notes))
        return {"ui": {"text": [report]}, "result": (joined(previews, look), report)}
