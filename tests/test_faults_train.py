"""Proves that a training goes on past damaged work in progress, that a full disk stops it with words and costs nothing,
and that the encoder trained last is the one in use, whatever the clock said meanwhile."""

from __future__ import annotations

import datetime
import errno
import json
import os
from pathlib import Path

import pytest
import torch
from test_train_own import files, library, small_network, train  # noqa: F401  fixtures
from train_worlds import topic

from autolora_core import portable
from autolora_core.errors import NotWrittenError
from autolora_core.fusion.training.parameters import GateParameters
from autolora_core.fusion.training.trainer import Training
from autolora_core.library.encoders import trained_file
from autolora_core.train import target
from autolora_core.train.captions import parse_table
from autolora_core.train.outcome import Options


def encoder_of(outcome) -> tuple[str, dict]:
    tensors, said = portable.load_whole(outcome.path)
    said = {key: value for key, value in said.items() if key != "trained"}
    return said, {name: value.numpy().tobytes() for name, value in tensors.items()}


@pytest.mark.parametrize("what", ["fold-1.json", "plan.json", "fold-0.safetensors"])
@pytest.mark.parametrize("how", ["cut", "empty", "other"])
def test_damaged_work_in_progress_is_done_again(library, tmp_path, monkeypatch, what, how):  # noqa: F811
    small_network(monkeypatch)
    monkeypatch.setattr("autolora_core.train.contest.beats", lambda *_: True)
    work, [whole] = library.folder / "training", train(library, tmp_path / "models", Options(epochs=2))[0]
    kept = {path.name: path.read_bytes() for path in next(work.iterdir()).iterdir()}
    wanted = encoder_of(whole)
    for path in next(work.iterdir()).iterdir():
        path.unlink()
    folder = next(work.iterdir())
    data = kept.get(what, b"\0" * 500)
    (folder / what).write_bytes({"cut": data[: len(data) // 2], "empty": b"", "other": b"[1, 2]"}[how])
    if what.startswith("fold-1"):
        (folder / "plan.json").write_bytes(kept["plan.json"])
    [again], _ = train(library, tmp_path / "models", Options(epochs=2))
    assert not again.again and again.figures == whole.figures and encoder_of(again) == wanted


def test_a_full_disk_stops_a_training_with_words_and_costs_nothing(library, tmp_path, monkeypatch):  # noqa: F811
    [whole], _ = train(library, tmp_path / "whole")
    written, real = [], portable.tempfile.mkstemp

    def full(**where):
        written.append(where["dir"])
        if len(written) > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(**where)

    for path in next((library.folder / "training").iterdir()).iterdir():
        path.unlink()
    with monkeypatch.context() as patched:
        patched.setattr(portable.tempfile, "mkstemp", full)
        with pytest.raises(NotWrittenError, match=r"fold-\d\.json.*make room on this drive"):
            train(library, tmp_path / "models")
    left = next((library.folder / "training").iterdir())
    assert sorted(path.name for path in left.iterdir()) == ["fold-0.json", "fold-1.json", "plan.json"]
    [found], _ = train(library, tmp_path / "models")
    assert encoder_of(found) == encoder_of(whole) and found.figures == whole.figures


def test_the_last_one_is_the_newest_whatever_the_clock_says(library, tmp_path, monkeypatch):  # noqa: F811
    times = iter([2_000_000_000, 1_000_000_000])

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime.fromtimestamp(next(times), tz)

    monkeypatch.setattr(target.datetime, "datetime", Clock)
    [first], _ = train(library, tmp_path / "models", Options(epochs=0, name="one"))
    rows = tuple(parse_table(f"0028ab00cd,{topic(40)}\n", "t"))
    [second], _ = train(library, tmp_path / "models", Options(rows=rows, epochs=0, name="two"))
    assert first.path != second.path and Path(second.path) == trained_file([tmp_path / "models"], "mine", "emoji")
    assert json.loads(Path(second.path).with_suffix(".json").read_text())["trained"].startswith("2033")


def test_a_damaged_state_of_a_gate_is_begun_anew(tmp_path):
    def training() -> Training:
        return Training(GateParameters({"fc1": 8}), [], 2, 2, tmp_path)

    first = training()
    first.step = 7
    first.save()
    second = training()
    assert second.resume() and second.step == 7
    state = tmp_path / "state.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    third = training()
    assert not third.resume() and third.step == 0 and torch.isfinite(next(iter(third.gate.parameters()))).all()
