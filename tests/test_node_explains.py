"""Proves, through the real nodes, that whoever reads the two reports learns why: every pick tells the parts of its
score, the words that matched, its neighbours and how sure it is; every file without encoded weights is named with the
reason. The last test asks the shipped library, whose right answers are in `zoo/loras.json`."""

from __future__ import annotations

import json
import re

import pytest
import torch
from comfy_local import pack_module
from conftest import ROOT, emoji_factors, write_lora
from safetensors.torch import save_file
from similar_files import drifted

WORDS = ("otter", "fox", "castle", "rocket", "guitar", "cactus", "crown", "harbour", "violin", "lantern")
PROJ = "diffusion_model.joint_blocks.0.x_block.attn.proj"


def pair(out: int = 256, inputs: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, inputs), torch.randn(out, 2)


def lora(key: str, down: torch.Tensor, up: torch.Tensor, names=("lora_A.weight", "lora_B.weight")) -> dict:
    return dict(zip((f"{key}.{name}" for name in names), (down, up), strict=True))


def kohya(key: str, down: torch.Tensor, up: torch.Tensor) -> dict:
    return lora(key, down, up, ("lora_down.weight", "lora_up.weight"))


def unusable(folder) -> dict[str, str]:
    """Files whose weights cannot be encoded, or not as those of the base; name → what the report must say of each."""
    cut = write_lora(folder / "cut.safetensors", emoji_factors(30, blocks=1))
    cut.write_bytes(cut.read_bytes()[:4000])
    (folder / "page.safetensors").write_bytes(b"<!DOCTYPE html><html></html>")
    (folder / "empty.safetensors").write_bytes(b"")
    save_file({"first_stage.weight": torch.randn(4, 4)}, folder / "vae.safetensors")
    save_file(lora("diffusion_model.strange.thing", *pair(99, 77)), folder / "foreign.safetensors")
    down, up = pair()
    save_file(lora(PROJ, down, torch.zeros_like(up)), folder / "zero.safetensors")
    save_file(lora(PROJ, down, up * float("nan")), folder / "nan.safetensors")
    save_file({f"{PROJ}.oft_blocks": torch.randn(4, 64, 64)}, folder / "oft.safetensors")
    return {
        "cut": "truncated", "page": "HTML", "empty": "empty", "vae": "no tensor of this file is part of a LoRA",
        "foreign": "no base model that this pack knows", "zero": "every update in this file is zero",
        "nan": "broken values", "oft": "oft is not a matrix that is added",
    }  # fmt: skip


@pytest.fixture(scope="module")
def reports(comfy, tmp_path_factory):
    """The report of Encode LoRA Library, what it must say, and a function that asks Retrieve LoRAs from Prompt."""
    base = tmp_path_factory.mktemp("explains")
    folder = base / "loras"
    for seed, word in enumerate(WORDS):
        write_lora(folder / f"{word}.safetensors", emoji_factors(seed), {"modelspec.title": f"A {word}"})
    write_lora(folder / "9a3f01.safetensors", drifted(emoji_factors(1), 0.3))
    torch.manual_seed(0)
    expected = unusable(folder)
    encoder = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    save_file(kohya(encoder, *pair(3072, 768)), folder / "te.safetensors")
    save_file(kohya("lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k", *pair(320, 768)),
              folder / "other base.safetensors")  # fmt: skip
    patch, encode, retrieve = pytest.MonkeyPatch(), pack_module("nodes.encode_library"), pack_module("nodes.retrieve")
    tower = pack_module("autolora_core.encode.towers").LexicalTower()
    for module in (encode, retrieve):
        patch.setattr(module, "shared_tower", lambda folders=(): tower)
    patch.setattr(pack_module("nodes.bridge_paths"), "lora_roots", lambda: {"loras": str(folder)})
    comfy.set_user_directory(str(base / "user"))
    index, report = encode.AutoLoRAEncodeLibrary().encode("all loras", "", "default", False)["result"]

    def ask(prompt: str, **inputs):
        how = {"family": "emoji", "top_k": 3, "threshold": 0.5, "strength": 1.0, "pinned": "", "banned": "",
               "use_weights": True, "use_text": True}  # fmt: skip
        selection, _, _, said = retrieve.AutoLoRARetrieve().retrieve(index=index, prompt=prompt, **how | inputs)[
            "result"
        ]
        return selection, said

    yield report, expected, ask
    patch.undo()


def line_of(report: str, name: str) -> str:
    (line,) = [line for line in report.splitlines() if line.startswith(f"- {name}.safetensors")]
    return line


def test_every_file_that_could_not_be_encoded_is_named_with_the_reason(reports):
    report, expected, _ = reports
    assert f"{len(expected)} files whose weights are not encoded:" in report
    for name, reason in expected.items():
        assert reason in line_of(report, name), name
    assert "changes the text encoder only" in line_of(report, "te")
    listed = set(re.findall(r"^- (\S+)\.safetensors: ", report, re.MULTILINE))
    assert not listed & {*WORDS, "9a3f01"}, "files that were encoded are not complained of"


def test_the_search_says_what_it_left_out_and_why(reports):
    _, _, ask = reports
    _, said = ask("an otter")
    assert re.search(r"Left out, made for another base model: .*other base\.safetensors", said)
    assert "Weights could not be encoded, so only words count: nan.safetensors (it has broken values" in said
    for name, kind in (("cut", "not a LoRA, or damaged"), ("zero", "all zero")):
        assert f"{name}.safetensors ({kind})" in said
    assert "oft.safetensors" in ask("x", family="sd3")[1]


def test_a_pick_tells_its_parts_its_words_and_how_sure_it_is(reports):
    _, _, ask = reports
    selection, said = ask("a fox in the snow")
    (pick,) = selection["picks"]
    line = line_of(said, "fox")
    assert f"{pick['score']:.0%} (weights " in line and f"text {pick['parts']['text']:.0%}" in line
    assert f"words {pick['parts']['lexical']:.0%}" in line
    assert "Matches “fox”: its title says “A fox”" in line
    assert all(f"{miss['score']:.0%}" in said for miss in selection["misses"] if miss["score"] > 0.01)


def test_a_pick_without_words_tells_whose_weights_are_near(reports):
    _, _, ask = reports
    selection, said = ask("a bridge", pinned="9a3f01")
    (near,) = selection["picks"][0]["neighbours"]
    assert (near["name"], near["words"]) == ("fox.safetensors", "A fox") and 0.5 < near["similarity"] <= 1
    clause = f"No words of its own; its weights are nearest to “A fox” ({near['similarity']:.2f})."
    assert clause in line_of(said, "9a3f01")
    assert "nearest to" not in line_of(ask("a castle", use_weights=False, pinned="9a3f01")[1], "9a3f01")


def test_neighbours_in_the_shipped_library_show_what_the_lora_shows(tmp_path):
    """Five or more of its nameless files have a neighbour; four of five neighbours show the very same thing."""
    library = pack_module("autolora_core.library.index").Library
    towers, prepare = pack_module("autolora_core.encode.towers"), pack_module("autolora_core.retrieve.prepare").prepare
    shows = {row["file"]: row["label"] for row in json.loads((ROOT / "zoo" / "loras.json").read_text("utf-8"))}
    with library.open(tmp_path) as opened:
        opened.scan({"loras": ROOT / "models" / "loras"})
        near = prepare(opened, "emoji", towers.LexicalTower()).neighbourhood
        nameless = [i for i, entry in enumerate(near.entries) if not near.sayings.speaking[i]]
        each = zip(nameless, near.nearest(nameless), strict=True)
        found = [(near.entries[i].name, neighbour.name) for i, nearest in each for neighbour in nearest]
    right = sum(shows[one] == shows[other] for one, other in found)
    assert len(nameless) > 50 and len(found) >= 5 and right >= 0.8 * len(found)
