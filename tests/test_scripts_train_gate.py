"""The command line that trains a gate: what it asks for, and the graph it makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts._lib import gate_graph
from scripts._lib.server import DEMO_MODELS
from scripts.train_gate import parse


def loaders(graph):
    return {
        body["class_type"] for name, body in graph.items() if name not in ("library", "train", "report", "previews")
    }


def test_the_demo_is_what_it_trains_on_unless_told():
    options = parse([])
    graph = gate_graph.build(options)
    assert (options.width, options.height) == (128, 128) and gate_graph.model_paths(None) == DEMO_MODELS
    assert loaders(graph) == {"UNETLoader", "VAELoader", "AutoLoRAMiniLMCLIPLoader"}
    train = graph[gate_graph.TRAIN]["inputs"]
    assert train["model"] == ["unet", 0] and train["clip"] == ["text", 0] and train["vae"] == ["vae_file", 0]
    assert train["index"] == ["library", 0] and train["steps"] == 200
    assert not {"model", "clip", "vae"} & set(graph)


def test_a_checkpoint_or_its_parts(tmp_path):
    (tmp_path / "clip").mkdir()
    (tmp_path / "text_encoders").mkdir()
    (tmp_path / "loras").mkdir()
    assert gate_graph.model_paths(Path(tmp_path)) == {
        "text_encoders": [tmp_path / "text_encoders", tmp_path / "clip"], "loras": [tmp_path / "loras"],
    }  # fmt: skip
    whole = parse(["--models", "m", "--checkpoint", "a.safetensors", "--width", "768"])
    assert loaders(gate_graph.build(whole)) == {"CheckpointLoaderSimple"} and whole.height == 768
    clips = ["--clip", "t5.safetensors", "--clip", "l.safetensors", "--clip-type", "flux"]
    parts = parse(["--models", "m", "--unet", "f.safetensors", *clips, "--vae", "ae.safetensors"])
    graph = gate_graph.build(parts)
    assert loaders(graph) == {"UNETLoader", "VAELoader", "DualCLIPLoader"} and parts.width == 512
    assert graph["text"]["inputs"] == {"clip_name1": "t5.safetensors", "clip_name2": "l.safetensors", "type": "flux"}


@pytest.mark.parametrize(
    "words", [["--unet", "f"], ["--checkpoint", "a"], ["--models", "m", "--unet", "f", "--clip", "c"]]
)
def test_what_is_missing_is_said(words, capsys):
    with pytest.raises(SystemExit):
        parse(words)
    said = capsys.readouterr().err
    assert "needs --clip and --vae" in said or "--models says where" in said
