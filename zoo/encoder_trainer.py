"""The trainer of `autolora_core.train`, with the views that the zoo's probes of the base make possible."""

from __future__ import annotations

from functools import partial

from autolora_core.encode.set_encoder import MODULES
from autolora_core.train import trainer
from zoo.encoder_data import GROUPS

# What a LoRA is seen by in one training step: everything, only its file, or with one probe missing.
VIEWS = ((0.35, GROUPS), (0.35, (MODULES,)), (0.15, (MODULES, "functional", "draw")),
         (0.15, (MODULES, "functional", "profile")))  # fmt: skip
Trainer = partial(trainer.Trainer, views=VIEWS)
