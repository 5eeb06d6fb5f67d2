"""What is kept of the zoo's responses: the formula, the packing, and that it belongs to the pack beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autolora_core.encode.generic import GENERIC_PROMPTS
from autolora_core.encode.input_states import TextStates
from autolora_core.errors import AutoLoRAError
from autolora_core.library.answers import CachedAnswers
from benchmarks.retrieval_study import asked_phrases
from zoo import responses_pack
from zoo.features_pack import Pack, read
from zoo.responses_pack import asked, read_responses, table_of, write


def small_pack(ids: list[str]) -> Pack:
    return Pack([{"id": i} for i in ids], {}, {}, {}, {"base": "base-1"})


QKV = "joint_blocks.0.context_block.attn.qkv"


class Base:
    """Made-up inputs of one layer."""

    id, family, lasting, device = "base", "emoji", False, "cpu"

    def record(self, texts, spaces, progress=None):
        rows = [np.random.default_rng(len(text)).normal(size=(2, 8)) for text in texts]
        yield TextStates(np.full(len(texts), 2), {QKV: np.concatenate(rows)} if QKV in spaces else {})


def test_the_zoo_is_asked_as_retrieve_asks():
    def factors(seed: int):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(2, 8, generator=generator), torch.randn(24, 2, generator=generator)

    items = [
        ({"id": "a"}, lambda: {QKV: factors(1)}),
        ({"id": "none"}, lambda: {}),
        ({"id": "b"}, lambda: {QKV: factors(2)}),
    ]
    table = table_of(items)
    assert table.hashes == ("a", "none", "b")
    found = asked(table, Base(), ["an otter", "a fox"])
    assert found.shape == (2, 3) and np.isnan(found[:, 1]).all() and np.isfinite(found[:, [0, 2]]).all()
    answers = CachedAnswers(Base()).answers(table, [*GENERIC_PROMPTS, "an otter"])
    usual = answers[0, :-1]
    assert found[0, 0] == pytest.approx((answers[0, -1] - usual.mean()) / usual.std(), rel=1e-4)


def test_a_byte_keeps_the_order_and_other_zoos_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(responses_pack, "DATA", tmp_path)
    z = np.array([[-2.0, 0.0, np.nan], [4.0, 9.0, 24.0]], np.float32)
    pack = small_pack(["x", "y", "z"])
    write(pack, ["an otter", "a fox"], z)
    found = read_responses(pack, ["a fox", "an owl", "an otter"])
    assert np.nanmax(np.abs(found[[2, 0]] - z)) < 0.25 and np.isnan(found[2, 2])
    assert np.isnan(found[1]).all()
    with pytest.raises(AutoLoRAError, match="responses_pack"):
        read_responses(small_pack(["x", "y", "other"]), ["a fox"])


def test_what_is_committed_answers_every_prompt_of_the_benchmark():
    pack = read("retrieval")
    found = read_responses(pack, asked_phrases(pack))
    # A few forms ("the cover") are younger than the file, which takes the large zoo to make again: they are asked
    # without their determiner.
    assert np.isfinite(found).mean() > 0.95 and np.isfinite(found).any(axis=1).mean() > 0.99
    assert len(pack) >= 2000
