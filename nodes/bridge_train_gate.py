"""Training a fusion gate with the user's own MODEL, CLIP, VAE and LoRAs: pictures, texts, learning, saving."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.sample
import torch
from PIL import Image
from torch import Tensor

from ..autolora_core.encode.towers import file_sha256
from ..autolora_core.errors import AutoLoRAError, FamilyError, SelectionError
from ..autolora_core.fusion.base_print import base_fingerprint
from ..autolora_core.fusion.files import replace_file
from ..autolora_core.fusion.kinds import few_step_reason, norms_reason
from ..autolora_core.fusion.methods.planner import Blend
from ..autolora_core.fusion.plan import Standing, build_plan
from ..autolora_core.fusion.requests import Request, merge_same_files
from ..autolora_core.fusion.training.examples import Example, named_in
from ..autolora_core.fusion.training.outcome import Options, Outcome, gate_path, save_gate
from ..autolora_core.fusion.training.parameters import GateParameters
from ..autolora_core.fusion.training.trainer import Training
from ..autolora_core.portable import load_copies
from . import bridge_loras, bridge_paths
from .bridge_loras import LoadedLora
from .bridge_methods import attach_blend
from .bridge_once import quiet_clone
from .bridge_ssr import own_text
from .bridge_states import ModelStates
from .bridge_studio import EMPTY, Material, ModelStudio, work_on

VERSION = 1
CHUNKS = 4  # previews of a training
Progress = Callable[..., None]


@dataclass(frozen=True)
class Look:
    """How pictures are sampled."""

    width: int = 512
    height: int = 512
    steps: int = 20
    cfg: float = 4.0
    sampler: str = "euler"
    scheduler: str = "normal"
    seed: int = 0


@dataclass
class Job:
    """One training. ``pictures`` (n, h, w, 3) in 0..1 with ``captions``, or None: then only own pictures are used."""

    model: Any
    clip: Any
    vae: Any
    requests: Sequence[Request]
    options: Options
    look: Look
    pictures: Tensor | None
    captions: Sequence[str]
    progress: Progress
    show: Callable[[Image.Image], None]
    notes: list[str] = field(default_factory=list)

    def run(self) -> tuple[Outcome, list[str], int, list[Tensor]]:
        """(outcome, names of the LoRAs, number of pictures, previews). May be interrupted; the next run goes on."""
        with torch.inference_mode(False), torch.no_grad():
            return self._run()

    def _run(self) -> tuple[Outcome, list[str], int, list[Tensor]]:
        self.model = quiet_clone(self.model)
        self.base = bridge_paths.model_family(self.model)
        self.family = self.base.name
        self.loras, halves = self._fitting(self._loras())
        self.texts = [own_text(lora, "")[0] for lora in self.loras]
        channels = {name: width for half in halves for name, width in half.channels.items()}
        branches = {i: half.branches for i, half in enumerate(halves)}
        self.folder = Path(bridge_paths.user_directory(), "autolora", ".gates", self._key())
        latents, examples, captions = self._examples(halves, channels)
        conds = {number: self._encode(text) for number, text in enumerate(captions)} | {EMPTY: self._encode("")}
        roles = {i: lora.request.role for i, lora in enumerate(self.loras)}
        material = Material(latents, conds, branches, roles, channels)
        with torch.enable_grad():
            training = Training(GateParameters(channels), examples, len(self.loras), self.options.most, self.folder)
        if training.resume():
            self.notes.append(f"gone on from step {training.step}, where an earlier run stopped")
        previews = self._train(training, material)
        outcome = self._finish(training, material)
        return outcome, [lora.name for lora in self.loras], len(latents), previews

    # LoRAs

    def _loras(self) -> list[LoadedLora]:
        """Files that go into the gate, each once; few-step LoRAs stay outside it."""
        merged = merge_same_files(bridge_loras.resolved(self.requests))
        found = []
        for path, request in merged:
            bridge_paths.throw_if_interrupted()
            try:
                file = bridge_loras.open_for(path, request, self.base)
            except FamilyError as error:  # an index holds Wan of 1.3B and of 14B under one name
                self.notes.append(f"{request.name} is left out: {error.message}")
                continue
            lora = bridge_loras.load(path, request, file)
            reason = few_step_reason(request.name, lora.file.metadata)
            if reason:
                self.notes.append(f"{request.name} is left out: {reason}")
            else:
                found.append(lora)
        if len(found) < 2:
            raise SelectionError(
                f"a gate is trained on two LoRAs or more, here {'is one' if found else 'is none'}", key="lora_stack",
                fix="connect an index or a stack with more LoRAs of this base model",
            )  # fmt: skip
        return found

    def _fitting(self, loras: Sequence[LoadedLora]) -> tuple[list[LoadedLora], list[bridge_loras.ModelHalf]]:
        """Those that have layers beside the model's, numbered anew."""
        key_map = comfy.lora.model_lora_keys_unet(self.model.model, {})
        kept, halves = [], []
        for lora in loras:
            half = bridge_loras.model_half(lora, self.model, key_map, len(kept))
            reason = "no layer of it can stand beside this model's layers"
            if half.branches:
                reason, _ = norms_reason(lora.name, self.family, half.branches, half.channels)
            if reason:
                self.notes.append(f"{lora.name} is left out: {reason}")
                continue
            kept.append(lora)
            halves.append(half)
        if len(kept) < 2:
            raise SelectionError(
                "fewer than two of these LoRAs fit the model", key="lora_stack", fix="connect LoRAs of this base model"
            )
        return kept, halves

    def _key(self) -> str:
        """Everything that the training depends on, but for how long it takes."""
        said = [f"{VERSION} {ModelStates(self.model, self.clip).id} {self.options.most} {self.look}", *self.captions]
        said += [f"{file_sha256(lora.file.path)} {lora.request.model}" for lora in self.loras]
        if self.pictures is not None:
            said.append(hashlib.sha256(self.pictures.cpu().contiguous().numpy().tobytes()).hexdigest())
        return hashlib.sha256("\n".join(said).encode("utf-8", "backslashreplace")).hexdigest()[:24]

    # Pictures and texts

    def _examples(self, halves: Sequence[Any], channels: dict) -> tuple[Tensor, list[Example], list[str]]:
        """Latents in the model's own scale, examples, and their texts: each LoRA's own picture, then the user's."""
        captions, examples, latents = list(self.texts), [], []
        for number, text in enumerate(self.texts):
            self._tell(0.3 * number / len(self.texts), f"picture of {self.loras[number].name}")
            if text:
                examples.append(Example(len(latents), number, (number,)))
                latents.append(self._own_picture(number, text, halves[number], channels))
            else:
                self.notes.append(f"{self.loras[number].name} has no words of its own: it only stands beside others")
        for number, latent in enumerate(self._encoded_pictures()):
            caption = self.captions[number].strip()
            wanted = named_in(caption, self.texts)
            self.notes.append(f"picture {number + 1}: '{caption}' asks for "
                              + (", ".join(self.loras[i].name for i in wanted) or "none of the LoRAs"))  # fmt: skip
            examples.append(Example(len(latents), len(captions), wanted))
            captions.append(caption)
            latents.append(latent)
        if len(examples) < 2:
            raise SelectionError(
                "fewer than two of these LoRAs say what they show", key="lora_stack",
                fix="put trigger words or a title into their files or sidecars, or connect pictures with captions",
            )  # fmt: skip
        return torch.cat(latents), examples, captions

    def _tell(self, share: float, what: str) -> None:
        self.progress(round(1000 * share), 1000, what)

    def _own_picture(self, number: int, text: str, half: Any, channels: dict) -> Tensor:
        """What the model makes of a LoRA's own words with it alone; kept on disk."""
        path = self.folder / f"picture-{number}.safetensors"
        if path.exists():
            return load_copies(path)["latent"]
        model = self.model.clone()
        attach_blend(model, Blend(build_plan(half.branches, channels)))
        latent = self._sample(model, text)
        replace_file(path, {"latent": latent.contiguous()}, {})
        return latent

    def _sample(self, model: Any, text: str) -> Tensor:
        """(1, …) latent in the model's own scale."""
        look = self.look
        empty = torch.zeros(1, 4, look.height // 8, look.width // 8)
        empty = comfy.sample.fix_empty_latent_channels(model, empty)
        noise = comfy.sample.prepare_noise(empty, look.seed, None)
        out = comfy.sample.sample(
            model, noise, look.steps, look.cfg, look.sampler, look.scheduler, self._encode(text), self._encode(""),
            empty, disable_pbar=True, seed=look.seed,
        )  # fmt: skip
        return model.model.process_latent_in(out.float()).cpu().clone()

    def _encoded_pictures(self) -> list[Tensor]:
        if self.pictures is None:
            return []
        if len(self.captions) != len(self.pictures):
            raise AutoLoRAError(
                f"{len(self.pictures)} pictures and {len(self.captions)} captions", key="captions",
                fix="write one caption a line, one for each picture",
            )  # fmt: skip
        out = []
        for picture in self.pictures:
            latent = self.vae.encode(picture[None, :, :, :3].clone())
            latent = comfy.sample.fix_empty_latent_channels(self.model, latent)
            out.append(self.model.model.process_latent_in(latent.float()).cpu().clone())
        first = tuple(out[0].shape)
        own = (1, first[1], *first[2:-2], self.look.height // 8, self.look.width // 8)
        if any(tuple(latent.shape) != first for latent in out) or first[-2:] != own[-2:]:
            raise AutoLoRAError(
                "the pictures are not of the size that is sampled", key="pictures",
                fix=f"scale them to {self.look.width} × {self.look.height}, or set width and height to theirs",
            )  # fmt: skip
        return out

    def _encode(self, text: str) -> list:
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    # Learning

    def _train(self, training: Training, material: Material) -> list[Tensor]:
        """Learn in a few parts, with a picture after each."""
        previews, steps = [], self.options.steps
        for part in range(1, CHUNKS + 1):
            until = steps * part // CHUNKS
            if training.step >= until:
                continue

            def job(studio: ModelStudio, until: int = until) -> None:
                with torch.enable_grad():
                    training.run(studio, until, steps, self._tick)

            work_on(self.model, material, job)
            previews.append(self._preview(training, material))
        return previews

    def _tick(self, done: int, steps: int) -> None:
        self._tell(0.3 + 0.65 * done / steps, f"step {done} of {steps}")

    def _preview(self, training: Training, material: Material) -> Tensor:
        """The first two LoRAs together under both their words, through the gate as it is; (1, h, w, 3)."""
        branches = [branch for lora in (0, 1) for branch in material.branches[lora]]
        known = {lora: Standing(material.roles[lora]) for lora in (0, 1)}
        model = self.model.clone()
        plan = build_plan(branches, material.channels, training.gate.vectors(), standings=known)
        attach_blend(model, Blend(plan))
        latent = self._sample(model, ", ".join(text for text in self.texts[:2] if text))
        picture = self.vae.decode(model.model.process_latent_out(latent))
        picture = picture.reshape(-1, *picture.shape[-3:])[:1]
        self.show(Image.fromarray((picture[0] * 255).clamp(0, 255).byte().cpu().numpy()))
        return picture

    def _finish(self, training: Training, material: Material) -> Outcome:
        found: dict[str, float] = {}

        def job(studio: ModelStudio) -> None:
            found["summed"] = training.measure(studio, None)
            found["gated"] = training.measure(studio, training.gate)

        self._tell(0.96, "measuring")
        work_on(self.model, material, job)
        path = gate_path(Path(bridge_paths.model_folders()[0]), self.family, self.options.name)
        outcome = Outcome(found["summed"], found["gated"], training.step, path, training.history)
        if not outcome.pays:
            return Outcome(outcome.summed, outcome.gated, outcome.steps, None, outcome.history)
        network = self.model.model.diffusion_model
        recipe = f"own pictures of {len(self.loras)} LoRAs, {len(self.captions)} of the user, {training.step} steps"
        save_gate(
            path, training.gate, family=self.family, most=self.options.most, recipe=recipe,
            base_id=ModelStates(self.model, self.clip).id, fingerprint=base_fingerprint(network.state_dict()),
        )  # fmt: skip
        return outcome


def stack_of_index(index: Any, family: str, most: int) -> list[Request]:
    """LoRAs of an index for a base family, those with words first, as requests of strength 1."""
    with bridge_paths.open_index(index) as library:
        entries = [entry for entry in library.entries() if entry.family == family]
    entries.sort(key=lambda entry: not entry.text.captions)
    return [Request(entry.name, 1.0, 1.0, path=os.fspath(entry.path)) for entry in entries[:most]]


def joined(previews: Sequence[Tensor], look: Look) -> Tensor:
    """IMAGE batch; a black picture where nothing was left to learn."""
    return torch.cat(list(previews)) if previews else torch.zeros(1, look.height, look.width, 3)
