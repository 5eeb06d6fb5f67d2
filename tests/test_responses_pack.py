"""What is kept of the zoo's responses: the formula, the packing, and that it belongs to the pack beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autolora_core.errors import AutoLoRAError
from benchmarks.retrieval_study import asked_phrases
from zoo import responses_pack
from zoo.features_pack import Pack, read
from zoo.features_raw import ROWS
from zoo.responses_pack import answers, read_responses, write


def small_pack(ids: list[str]) -> Pack:
    return Pack([{"id": i} for i in ids], {}, {}, {}, {"base": "base-1"})


def test_the_mean_over_a_loras_own_layers():
    rng = np.random.default_rng(0)
    r = {"a": rng.normal(size=(3, ROWS, 8)), "b": rng.normal(size=(1, ROWS, 5))}
    x = {"a": rng.normal(size=(2, 6, 8)), "b": rng.normal(size=(2, 4, 5))}
    have = {"a": [0, 1, 2], "b": [2]}
    rows = {n: (torch.tensor(have[n]), torch.from_numpy(r[n]).flatten(0, 1).bfloat16()) for n in r}
    found = answers(rows, {n: torch.from_numpy(v).float() for n, v in x.items()}, 4)
    for lora in range(3):
        for text in range(2):
            logs = [
                np.log(((x[n][text] @ r[n][have[n].index(lora)].T) ** 2).sum() / (x[n][text] ** 2).sum())
                for n in r
                if lora in have[n]
            ]
            assert found[lora, text] == pytest.approx(np.mean(logs), abs=0.02)
    assert (found[3] == 0).all()  # changes no layer


def test_a_byte_keeps_the_order_and_other_zoos_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(responses_pack, "DATA", tmp_path)
    z = np.array([[-2.0, 0.0, 0.5], [4.0, 9.0, 24.0]], np.float32)
    pack = small_pack(["x", "y", "z"])
    write(pack, ["an otter", "a fox"], z)
    found = read_responses(pack, ["a fox", "an owl", "an otter"])
    assert np.abs(found[[2, 0]] - z).max() < 0.25
    assert np.isnan(found[1]).all()
    with pytest.raises(AutoLoRAError, match="responses_pack"):
        read_responses(small_pack(["x", "y", "other"]), ["a fox"])


def test_what_is_committed_answers_every_prompt_of_the_benchmark():
    pack = read("retrieval")
    found = read_responses(pack, asked_phrases(pack))
    assert np.isfinite(found).all()
    assert len(pack) >= 2000
