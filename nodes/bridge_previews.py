"""Pictures with and without a LoRA from the user's own MODEL, CLIP and VAE: the camera of ``previews.run``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sample
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..autolora_core.encode.towers import file_sha256
from ..autolora_core.errors import AutoLoRAError
from ..autolora_core.fusion.base_print import base_fingerprint
from ..autolora_core.fusion.requests import Request
from ..autolora_core.library.names import compile_filter
from ..autolora_core.previews.difference import latent_vector
from ..autolora_core.previews.run import Shot, Wanted
from ..autolora_core.previews.settings import Settings
from ..autolora_core.previews.shelf import CLIP, LATENTS
from . import bridge_loras
from .bridge import apply_loras
from .bridge_features import is_out_of_memory
from .bridge_methods import Wishes
from .bridge_paths import throw_if_interrupted
from .bridge_states import ModelStates

# What a LoRA's tensors, or a network that does not take them, may raise.
BLAMED = (RuntimeError, ValueError, TypeError, LookupError, OSError)


def base_id(model: Any, clip: Any, vae: Any) -> tuple[str, bool]:
    """Names model, text encoder and VAE by their contents; whether that lasts beyond this run of ComfyUI."""
    states = ModelStates(model, clip)
    stage = getattr(vae, "first_stage_model", None)
    numbers = base_fingerprint(stage.state_dict()) if stage is not None else {}
    said = json.dumps([states.id, numbers], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:24], states.lasting


class ModelCamera:
    """See ``previews.run.Camera``. ``tower``: an image tower, or None; ``show(picture)`` gets every PIL picture."""

    def __init__(
        self, model: Any, clip: Any, vae: Any, settings: Settings, tower: Any = None,
        show: Callable[[Image.Image], None] = lambda picture: None,
    ):  # fmt: skip
        self.base, self.vae, self.settings, self.tower, self.show = (model, clip), vae, settings, tower, show
        self.towers = {LATENTS: LATENTS} | ({CLIP: tower.id} if tower is not None else {})
        self._plain: dict[str, list] = {}  # what the base's own text encoder makes of a text
        self.model, self.clip, self.who = model, clip, "the model alone"

    def put_in(self, request: Request | None) -> None:
        """Raises ``AutoLoRAError`` for a LoRA that is for another base, or nobody can apply."""
        self.model, self.clip = self.base
        self.who = "the model alone" if request is None else "it"
        if request is not None:
            with _blamed(self.who):
                applied = apply_loras(*self.base, [request], Wishes(mode="sum"))
            self.model, self.clip = applied.model, applied.clip

    def shoot(self, number: int) -> Shot:
        with _blamed(self.who):
            sampled = self._sample(number)
            picture = self._decoded(sampled)
        vectors = {LATENTS: latent_vector(self.model.model.process_latent_in(sampled.float()))}
        if self.tower is not None:
            vectors[CLIP] = self.tower.encode([picture])[0]
        image = Image.fromarray((picture * 255).round().clamp(0, 255).byte().numpy())
        self.show(image)
        return Shot(image, vectors)

    def _sample(self, number: int) -> Tensor:
        settings = self.settings
        seed = settings.seed_of(number)
        empty = torch.zeros(1, 4, settings.height // 8, settings.width // 8)
        empty = comfy.sample.fix_empty_latent_channels(self.model, empty)
        noise = comfy.sample.prepare_noise(empty, seed, None)
        texts = (self._encoded(settings.prompts[number]), self._encoded(""))
        return comfy.sample.sample(
            self.model, noise, settings.steps, settings.cfg, settings.sampler, settings.scheduler, *texts, empty,
            disable_pbar=True, seed=seed,
        )  # fmt: skip

    def _decoded(self, latent: Tensor) -> Tensor:
        """(height, width, 3) in [0, 1] on the CPU; the first frame of a video."""
        picture = self.vae.decode(latent)
        return picture.reshape(-1, *picture.shape[-3:])[0, :, :, :3].detach().float().cpu()

    def _encoded(self, text: str) -> list:
        if self.clip is not self.base[1]:
            return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))
        if text not in self._plain:
            self._plain[text] = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))
        return self._plain[text]


@contextmanager
def _blamed(who: str) -> Iterator[None]:
    """What goes wrong with one LoRA becomes an error that lets the others go on; cancelling and a lack of memory end
    the run."""
    try:
        yield
    except AutoLoRAError:
        raise
    except BLAMED as error:
        if is_out_of_memory(error):
            raise
        raise AutoLoRAError(f"{who} could not be sampled ({error!s:.200})") from error


@dataclass
class Asked:
    """LoRAs to render; ``others`` are names of files of other bases, ``failed`` name → why."""

    wanted: list[Wanted]
    others: list[str]
    failed: dict[str, str]


def asked_for(requests: Iterable[Request], library: Any, strength: float, told: Callable[[str], None]) -> Asked:
    """LoRAs of a selection or stack, each content once. ``told(name)`` before a file is hashed."""
    hashes = {entry.path: entry.hash for entry in library.entries() if entry.hash and not entry.by_header}
    asked, seen = Asked([], [], {}), set()
    for request in requests:
        throw_if_interrupted()
        try:
            ((path, own),) = bridge_loras.resolved([request])
            told(own.name)
            key = hashes.get(path) or file_sha256(path)
        except AutoLoRAError as error:
            asked.failed[request.name] = error.message
            continue
        if key not in seen:
            seen.add(key)
            asked.wanted.append(Wanted(key, own.name, Request(own.name, strength, strength, path=path)))
    return asked


def of_library(library: Any, family: str, names: str, strength: float, told: Callable[[str], None]) -> Asked:
    """LoRAs of an index whose names pass the filter, each content once, those of ``family`` wanted."""
    passes = compile_filter(names)
    asked, seen = Asked([], [], {}), set()
    for entry in library.entries():
        throw_if_interrupted()
        if not passes(entry.name) or entry.kind not in ("lora", "text_encoder_only"):
            continue
        if entry.family not in (family, "unknown"):
            asked.others.append(entry.name)
            continue
        told(entry.name)
        try:
            key = file_sha256(entry.path) if entry.by_header or not entry.hash else entry.hash
        except OSError as error:
            asked.failed[entry.name] = f"it cannot be read ({error.strerror or error})"
            continue
        if key not in seen:
            seen.add(key)
            request = Request(entry.name, strength, strength, path=entry.path)
            asked.wanted.append(Wanted(key, entry.name, request))
    return asked


def image_of(array: np.ndarray) -> Tensor:
    """IMAGE, a batch of one, of (height, width, 3)."""
    return torch.from_numpy(np.ascontiguousarray(array))[None]
