"""Proves that layers are sampled alike in every file: one rule for a layer whatever else is in the file, enough of them
in small files, and cosines of samples that estimate those of whole files."""

from __future__ import annotations

import numpy as np
import pytest

from autolora_core.encode.sample import FEWEST, SHARE, sampled

LAYERS = [f"blocks.{block}.{part}" for block in range(60) for part in ("q", "k", "v", "o", "up", "down")]


def test_a_share_of_the_layers_is_taken_and_never_by_their_order():
    taken = sampled("flux", LAYERS)
    assert 0.5 < len(taken) / (len(LAYERS) * SHARE / 256) < 1.5
    assert sampled("flux", reversed(LAYERS)) == taken
    assert len(sampled("sdxl", LAYERS)) < len(taken), "a family of more layers has a smaller share"
    assert sampled("emoji", LAYERS) == set(LAYERS)


def test_common_layers_are_taken_in_both_files_or_in_neither():
    some = [layer for layer in LAYERS if layer.endswith((".q", ".v", ".up"))]
    few = sampled("flux", some)
    assert len(few) > FEWEST and few == sampled("flux", LAYERS) & set(some)


def test_small_files_keep_enough():
    assert sampled("flux", LAYERS[:FEWEST]) == set(LAYERS[:FEWEST])
    assert len(sampled("flux", LAYERS[: FEWEST + 20])) == FEWEST
    assert sampled("flux", []) == frozenset()


def test_rows_of_a_fused_layer_go_by_its_name():
    rows = [f"{layer}[{start}:{start + 8}]" for layer in LAYERS for start in (0, 8)]
    assert sampled("flux", rows) == sampled("flux", LAYERS)


@pytest.mark.parametrize("common", [0.4, 0.6, 1.0])
def test_cosines_of_samples_are_those_of_whole_files(common):
    """Files of 360 layers, some of which only one of them has: the mean over many pairs is right within its error."""
    generator, errors = np.random.default_rng(0), []
    for pair in range(200):
        layers = [f"{pair}.{layer}" for layer in LAYERS]
        other = layers[: int(common * len(layers))]
        shared = {layer: generator.normal(size=8) for layer in layers}
        one = {layer: shared[layer] + generator.normal(size=8) for layer in layers}
        two = {layer: shared[layer] + generator.normal(size=8) for layer in other}
        whole = cosine(one, two, set(layers), set(other))
        errors.append(cosine(one, two, sampled("flux", layers), sampled("flux", other)) - whole)
    assert abs(np.mean(errors)) < 4 * np.std(errors) / len(errors) ** 0.5 + 0.01


def cosine(one, two, of_one, of_two) -> float:
    product = sum(one[layer] @ two[layer] for layer in of_one & of_two)
    lengths = [sum(part[layer] @ part[layer] for layer in of) for part, of in ((one, of_one), (two, of_two))]
    return product / (lengths[0] * lengths[1]) ** 0.5
