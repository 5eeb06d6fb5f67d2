"""One evaluation of a MODEL through ComfyUI's own guider, on fixed noise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.patcher_extension
import comfy.samplers
import torch
from torch import Tensor

from ..autolora_core.errors import AutoLoRAError
from .bridge_features import is_out_of_memory

# Share of the denoising that is done at the sigma used: the prompt decides what is drawn in early steps.
PERCENT = 0.2
COMPILED = "torch.compile"  # ComfyUI's key for the wrapper that runs a compiled copy of the network
SEED = 0
# Side of the latent: in most networks a token is two by two.
SIDE = 16
Conditioning = list


def quiet_clone(model: Any) -> Any:
    """A clone whose layers can be heard: hooks have no say in a compiled copy of the network."""
    model = model.clone()
    model.remove_wrappers_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, COMPILED)
    return model


def run_once(model: Any, conds: list[Conditioning], shape: tuple[int, ...]) -> None:
    """Evaluate a MODEL once at ``PERCENT`` of the denoising, on fixed noise, for every one of ``conds``.

    Raises ``AutoLoRAError`` when the model cannot be run on them.
    """
    guider = _Guider(model)
    guider.inner_set_conds({str(number): cond for number, cond in enumerate(conds)})
    latent = torch.zeros(shape)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(SEED))
    with _explained():
        guider.sample(noise, latent, _Once(), torch.tensor([sigma_of(model), 0.0]), disable_pbar=True, seed=SEED)


def sigma_of(model: Any) -> float:
    """The sigma of the evaluation, by the model's own or patched sampling."""
    return float(model.get_model_object("model_sampling").percent_to_sigma(PERCENT))


@contextmanager
def _explained() -> Iterator[None]:
    """A network that cannot be run on this conditioning says so in words of its own; memory errors are ComfyUI's."""
    try:
        yield
    except (RuntimeError, KeyError) as error:
        if is_out_of_memory(error):
            raise
        raise AutoLoRAError(
            f"the model could not be run on what the CLIP makes of a text ({error})",
            fix="connect the CLIP that belongs to the model, or disconnect it",
        ) from error


class _Guider(comfy.samplers.CFGGuider):
    """Runs every condition it was given, each on its own rows of the batch; ComfyUI decides how many at a time."""

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: dict | None = None, seed: Any = None) -> Tensor:
        conds = [self.conds[str(number)] for number in range(len(self.conds))]
        return comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options or {})[0]


class _Once(comfy.samplers.Sampler):
    """A sampler of a single evaluation at the first sigma."""

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, *others: Any) -> Tensor:
        sampling = model_wrap.inner_model.model_sampling
        x = sampling.noise_scaling(sigmas[0], noise, latent_image, self.max_denoise(model_wrap, sigmas))
        return model_wrap(x, sigmas[:1].expand(len(x)), **extra_args)


def latent_shape(model: Any, family: str) -> tuple[int, ...]:
    """A small latent: ``SIDE`` square, more where a position table needs it."""
    latents = model.model.latent_format
    side = 4 * SIDE if family == "pixart" else SIDE
    return (1, latents.latent_channels, *[1] * (latents.latent_dimensions - 2), side, side)
