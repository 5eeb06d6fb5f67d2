"""Proves that the Retrieve node hands on the choice in every form (selection, stack, prompt, report) without touching
what it was given, and that the family of the connected model decides."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from comfy_local import every_progress_message, library_place, pack_module
from conftest import emoji_factors, write_lora

WORDS = ("otter", "fox", "castle", "rocket", "guitar", "cactus", "crown", "harbour", "violin", "lantern")
DEFAULTS = {
    "family": "auto", "top_k": 3, "threshold": 0.5, "strength": 0.8, "pinned": "", "banned": "", "use_weights": True,
    "use_text": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def indexed(comfy, tmp_path_factory):
    """An index of twelve demo LoRAs and one SDXL LoRA; its words come from the lexical tower."""
    base = tmp_path_factory.mktemp("retrieve")
    for seed, word in enumerate(WORDS):
        metadata = {"modelspec.title": f"A {word}", "modelspec.trigger_phrase": f"tok{word} (a)"} if seed < 3 else None
        write_lora(base / "loras" / f"{word}.safetensors", emoji_factors(seed, blocks=1), metadata)
    sdxl = "input_blocks.4.1.transformer_blocks.0.attn2.to_k"
    write_lora(base / "loras" / "sdxl otter.safetensors", {sdxl: (torch.randn(2, 2048), torch.randn(640, 2))})
    library = pack_module("autolora_core.library.index")
    tower = pack_module("autolora_core.encode.towers").LexicalTower()
    with library.Library.open(library_place(comfy, base.name)) as opened:
        opened.scan({"loras": base / "loras"})
        opened.fit(tower)
        return json.loads(json.dumps(opened.handle)), tower


@pytest.fixture
def run(indexed, monkeypatch):
    index, tower = indexed
    module = pack_module("nodes.retrieve")
    monkeypatch.setattr(module, "shared_tower", lambda folders=(): tower)

    def call(prompt: str, **inputs):
        out = module.AutoLoRARetrieve().retrieve(**{**DEFAULTS, "index": index, "prompt": prompt, **inputs})
        selection, stack, words, report = out["result"]
        assert out["ui"]["text"] == [report] and json.loads(json.dumps(selection)) == selection
        (card,) = out["ui"]["autolora"]
        assert json.loads(json.dumps(card)) == card and [one["name"] for one in card["picks"]] == names(selection)
        return selection, stack, words, report

    return call


def names(selection: dict) -> list[str]:
    return [pick["name"] for pick in selection["picks"]]


def test_every_input_and_output_is_explained(comfy):
    node = pack_module("nodes.retrieve").AutoLoRARetrieve
    groups = node.INPUT_TYPES()
    assert list(groups["required"]) == ["index", "prompt", *DEFAULTS]
    assert list(groups["optional"]) == ["model", "clip", "lora_stack", "choices", "previews"]
    assert all(len(spec[1]["tooltip"]) > 20 for group in groups.values() for spec in group.values())
    assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) == len(node.OUTPUT_TOOLTIPS) == 4
    assert node.OUTPUT_NODE and node.CATEGORY == "AutoLoRA" and node.DESCRIPTION
    assert node.TITLE == "Retrieve LoRAs from Prompt"


def test_the_right_lora_in_every_form(run):
    selection, stack, prompt, report = run("a fox in the snow", family="emoji")
    assert selection["format"] == "autolora-selection/1" and names(selection) == ["fox.safetensors"]
    assert stack == [("fox.safetensors", 0.8, 0.8)]
    assert prompt == "a fox in the snow, tokfox \\(a\\)"
    assert "fox.safetensors" in report and "Base model emoji, as chosen." in report and "Strength 0.8" in report


def test_nothing_fits(run):
    selection, stack, prompt, report = run("a bowl of noodle soup", family="emoji")
    assert selection["picks"] == [] and stack == [] and prompt == "a bowl of noodle soup"
    why, _, nearest = selection["none_reason"].partition(" Nearest: ")
    assert nearest and why in report and nearest not in report, "a list below names them already"
    assert report.count("lantern.safetensors") == 1


def test_same_question_same_answer(run):
    assert run("an otter and a castle", family="emoji") == run("an otter and a castle", family="emoji")


def test_pinned_and_banned(run):
    selection, stack, _, report = run("a fox", family="emoji", pinned="rocket\n\n guitar:0.5 ", banned="fox", top_k=4)
    assert "- Left out, banned by you: fox.safetensors." in report
    assert stack == [("rocket.safetensors", 0.8, 0.8), ("guitar.safetensors", 0.5, 0.5)]
    assert [pick["role"] for pick in selection["picks"]] == ["pinned", "pinned"]
    with pytest.raises(Exception, match=r"unicorn.*not in the library\. What to do"):
        run("a fox", family="emoji", pinned="unicorn")
    with pytest.raises(Exception, match=r"did you mean rocket\.safetensors\?"):
        run("a fox", family="emoji", pinned="rokcet: 0.7")


def test_the_lines_of_a_report_stay_apart_in_markdown(run):
    """Preview as Text shows Markdown, which makes one paragraph of lines that follow each other."""
    apart = pack_module("autolora_core.wording").lines_apart
    assert apart("a\nb\n\nc\n- d\n  e\n- f\n") == "a  \nb\n\nc\n- d  \n  e\n- f\n"
    lines = run("a fox", family="emoji")[3].split("\n")
    for line, after in zip(lines, lines[1:], strict=False):
        assert not line or not after or after.startswith("- ") or line.endswith("  "), (line, after)


def test_incoming_stack_is_extended_never_changed(run):
    incoming = [("mine.safetensors", 1.0, 0.5), ("sub\\x.safetensors", 0.3, 0.3)]
    kept = list(incoming)
    _, stack, _, _ = run("a fox", family="emoji", lora_stack=incoming)
    assert stack == [*kept, ("fox.safetensors", 0.8, 0.8)] and incoming == kept
    _, again, _, _ = run("a fox", family="emoji", lora_stack=stack)
    assert again == stack  # what is in the stack already is not applied twice


def stands_for(monkeypatch, family, variant=None, line=()):
    """Whatever is connected as a model is of this family."""
    bridge = pack_module("nodes.bridge_paths")
    found = pack_module("autolora_core.lora.families").Family(family, variant)
    known = pack_module("autolora_core.lora.lineage").Lineage(line, "a test says so")
    monkeypatch.setattr(bridge, "model_family", lambda model: found)
    monkeypatch.setattr(bridge, "model_lineage", lambda model, family: known)


def test_connected_model_decides_the_family(run, monkeypatch):
    for family, expected in (("emoji", ["otter.safetensors"]), ("sdxl", ["sdxl otter.safetensors"])):
        stands_for(monkeypatch, family)
        selection, _, _, report = run("an otter", model=object())
        assert names(selection) == expected and selection["family"] == family
        assert f"Base model {family}, recognised" in report and "Left out, made for another base model" in report
    selection, _, _, report = run("an otter", model=object(), family="emoji")
    assert selection["family"] == "emoji" and "looks like sdxl" in report


def test_a_search_may_be_restricted_to_a_checkpoint_line(run, monkeypatch):
    node = pack_module("nodes.retrieve")
    options = node.AutoLoRARetrieve.INPUT_TYPES()["required"]["family"][0]
    assert options[0] == "auto" and {"sdxl", "sdxl / pony", "flux / krea", "wan / 2.2"} <= set(options)
    assert {*pack_module("nodes.retrieve_inputs").FAMILIES} <= set(options) and "emoji / " not in " ".join(options)
    selection, _, _, report = run("an otter", family="sdxl / pony")
    assert names(selection) == ["sdxl otter.safetensors"] and selection["family"] == "sdxl"
    assert "Only LoRAs for sdxl pony: none is made for another; LoRAs that say none stay in: 1." in report
    stands_for(monkeypatch, "sdxl", line=("pony",))
    assert "Only LoRAs for" not in run("an otter", model=object())[3]  # a note would do: the user chose no line


def test_choose_family_says_why(comfy):
    choose = pack_module("nodes.retrieve").choose_family
    assert choose("flux", None, ["sdxl"]) == ("flux", "Base model flux, as chosen.")
    assert choose("auto", None, ["sdxl"])[0] == "sdxl"
    assert choose("auto", "unknown", ["sdxl", "flux"])[0] is None
    assert "not one this pack knows" in choose("auto", "unknown", ["sdxl", "flux"])[1]
    assert choose("auto", None, []) == (None, "The index holds no LoRA of a known base model.")


class Asked:
    """Stands in for a live model and CLIP: one state, a fixed one a word, for every layer asked for."""

    lasting, family, device = False, "emoji", "cpu"

    def __init__(self, model, clip):
        self.id, self.texts = f"{model} {clip}", []

    def record(self, texts, spaces, progress=None):
        import numpy as np

        self.texts += texts
        counts = np.ones(len(texts), int)
        rows = np.stack([np.random.default_rng(abs(hash(text)) % 2**32).normal(size=256) for text in texts])
        states = pack_module("autolora_core.encode.input_states").TextStates
        yield states(counts, {space + mark: rows for space in spaces for mark in ("", "@image")})


def test_model_and_clip_together_ask_the_loras(run, monkeypatch):
    asked, states = [], pack_module("nodes.bridge_states")  # imported before anything is replaced
    monkeypatch.setattr(states, "ModelStates", lambda *given: asked.append(Asked(*given)) or asked[-1])
    stands_for(monkeypatch, "emoji")
    selection, _, _, report = run("a fox", model="model", clip="clip", threshold=0.0)
    assert "fox" in asked[0].texts
    assert f"Asked through the model and the CLIP: {len(WORDS)} of {len(WORDS)} LoRAs." in report
    assert all(0 <= pick["parts"]["response"] <= 1 for pick in selection["picks"])
    assert "(in the model " in report
    for inputs, why in (
        ({"model": "model"}, "connect clip to find those that nobody described"),
        ({"clip": "clip"}, "connect model to find"),
        ({}, "connect model and clip to find"),
        ({"model": "model", "clip": "clip", "use_weights": False}, "use_weights is off"),
        ({"model": "model", "use_weights": False}, "use_weights is off"),
        ({"model": "model", "clip": "clip", "family": "sdxl"}, "it is of emoji, the LoRAs searched are for sdxl"),
    ):
        selection, _, _, report = run("a fox", **inputs)
        assert len(asked) == 1 and why in report and "Asked through" not in report, inputs
        assert all(pick["parts"]["response"] is None for pick in [*selection["picks"], *selection["misses"]])


def test_a_model_whose_text_layers_are_not_known(comfy):
    why = pack_module("nodes.retrieve").why_not_asked
    assert "not known which of its layers" in why(True, "unknown", True, None)
    assert why(True, "flux", True, "flux") == ""
    assert "use_weights is off" in why(False, None, False, "flux") and "use_weights" in why(False, "flux", True, "flux")


@pytest.fixture
def progress(comfy, monkeypatch):
    """What ComfyUI's progress bar is told; nothing that was prepared before counts."""
    import comfy.utils

    told: list[int] = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, *more, **named: told.append(value))
    every_progress_message(monkeypatch)
    monkeypatch.setattr(pack_module("nodes.bar").Bar, "INTERVAL", 0.0)
    pack_module("autolora_core.retrieve.prepare")._cache.clear()
    return told


def test_the_first_prompt_shows_progress(run, progress):
    run("a fox in the snow", family="emoji")
    assert len(progress) > 5 and progress == sorted(progress) and progress[-1] == 1000
    seen = len(progress)
    run("an otter", family="emoji")
    assert progress[seen:] == [1000], "prepared already"


def test_the_first_prompt_can_be_cancelled_and_asked_again(run, progress, monkeypatch):
    import comfy.model_management as management
    import comfy.utils

    def cancel(value, total, preview, node_id=None):
        progress.append(value)
        if len(progress) == 2:
            management.interrupt_current_processing(True)

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", cancel)
    with pytest.raises(management.InterruptProcessingException):
        run("a fox in the snow", family="emoji")
    assert not management.processing_interrupted() and len(progress) == 2
    assert names(run("a fox in the snow", family="emoji")[0]) == ["fox.safetensors"]


def test_trigger_words(comfy):
    module = pack_module("nodes.retrieve")

    def words(prompt: str, *triggers: tuple[str, ...]) -> str:
        return module.prompt_with_triggers(prompt, [SimpleNamespace(triggers=group) for group in triggers])[0]

    assert words("a cat", ("ohwx",)) == "a cat, ohwx"
    assert words("a cat, ", ("ohwx",)) == "a cat, ohwx"
    assert words("", ("ohwx", "man")) == "ohwx, man"
    assert words("A Cat by OHWX", ("ohwx",)) == "A Cat by OHWX"
    assert words("a cattle", ("cat",)) == "a cattle, cat"  # a whole word, not a piece of one
    assert words("x", ("smart falcon \\(umamusume\\)",)) == "x, smart falcon \\(umamusume\\)"
    assert words("smart_falcon (umamusume)", ("smart falcon \\(umamusume\\)",)) == "smart_falcon (umamusume)"
    assert words("x", ("foo (bar)",)) == "x, foo \\(bar\\)"  # brackets would be weights
    assert words("x", ("one",), ("one", "two")) == "x, one, two"
    assert words("x", ("a1", "b2", "c3", "d4")) == "x, a1, b2, c3"
    assert words("x\n", ()) == "x\n" and words("x", ("",)) == "x"


def test_lost_library_is_named(run, indexed, comfy):
    index = {**indexed[0], "folder": str(library_place(comfy, "gone"))}
    with pytest.raises(Exception, match="gone.*run Encode LoRA Library again"):
        run("a fox", index=index)


def test_all_nodes_are_registered(pack):
    assert set(pack.NODE_CLASS_MAPPINGS) == set(pack.NODE_DISPLAY_NAME_MAPPINGS) == {
        "AutoLoRAEncodeLibrary", "AutoLoRARetrieve", "AutoLoRAFindSimilar", "AutoLoRAGatedApply",
        "AutoLoRAMiniLMCLIPLoader", "AutoLoRATrainEncoder", "AutoLoRATrainFusionGate",
        "AutoLoRATimeAndPlace", "AutoLoRAConflictReport", "AutoLoRAGateHeatMap", "AutoLoRASaveMerged",
        "AutoLoRAStackFromText", "AutoLoRAStackToText", "AutoLoRASaveImage",
        "AutoLoRACompare", "AutoLoRAPictureSheet", "AutoLoRARenderPreviews",
    }  # fmt: skip
    for node in pack.NODE_CLASS_MAPPINGS.values():
        groups = {kind: inputs for kind, inputs in node.INPUT_TYPES().items() if kind != "hidden"}
        assert all(spec[1].get("tooltip") for group in groups.values() for spec in group.values())
        assert node.DESCRIPTION and len(node.OUTPUT_TOOLTIPS) == len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
        assert callable(getattr(node, node.FUNCTION))
    assert (pack_root(pack) / pack.WEB_DIRECTORY).is_dir()


def pack_root(pack):
    from pathlib import Path

    return Path(pack.__file__).parent
