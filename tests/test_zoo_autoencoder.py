"""The autoencoder's training goes on exactly where it was, and ends by steps as by time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from zoo import autoencoder_train, cache
from zoo.autoencoder import Autoencoder
from zoo.autoencoder_train import Trainer
from zoo.budget import Budget


class Noise:
    """In place of pictures."""

    def draw(self, rng: np.random.Generator, n: int) -> torch.Tensor:
        return torch.from_numpy(rng.random((n, 3, 16, 16), np.float32))


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A group of one process, and a folder of its own."""
    monkeypatch.setenv(cache.FOLDER, str(tmp_path))
    monkeypatch.setattr(autoencoder_train, "Crops", lambda pictures: Noise())
    monkeypatch.setattr(autoencoder_train.Pictures, "load", lambda: None)
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "störe file"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def trained(steps: int) -> Trainer:
    trainer = Trainer(Budget(steps=steps), decoder_only=False, fresh=False, peak=1e-3)
    trainer.budget = Budget(steps=4)  # the learning rate of the whole run
    while trainer.steps < steps:
        trainer.step(Noise(), torch.zeros(2), 0.0)
    return trainer


def test_training_goes_on_exactly_where_it_was(alone: None) -> None:
    whole = trained(4)
    trained(2).save()
    again = trained(4)
    assert again.steps == 4
    for key, value in whole.params.items():
        assert torch.allclose(again.params[key], value, atol=1e-5), key
        assert torch.allclose(again.ema[key], whole.ema[key], atol=1e-5), key


def test_a_number_of_steps_ends_a_run_which_is_then_done(alone: None) -> None:
    trainer = Trainer(Budget(steps=3), decoder_only=False, fresh=False, peak=1e-3)
    model = trainer.run()
    assert trainer.steps == 3
    for key, value in model.named_parameters():
        assert torch.equal(value, trainer.ema[key])
    done = Trainer(Budget(steps=3), decoder_only=False, fresh=False, peak=1e-3)
    done.run()
    assert done.steps == 3


def test_what_is_shipped_is_half_as_large_and_read_as_the_same(tmp_path: Path) -> None:
    model = Autoencoder()
    source = model.save(tmp_path / "trained.safetensors")
    shipped = autoencoder_train.halved(source, tmp_path / "shipped.safetensors")
    assert shipped.stat().st_size < 0.55 * source.stat().st_size
    whole, half = load_file(source), load_file(shipped)
    assert set(whole) == set(half)
    for key, value in whole.items():
        if key.startswith("vae_"):
            assert torch.equal(half[key], value), key
        else:
            assert half[key].dtype == torch.float16 and torch.allclose(half[key].float(), value, rtol=1e-3, atol=1e-6)
    again = Autoencoder.load(shipped)
    assert all(torch.equal(value, half[name].float()) for name, value in again.state_dict().items())
