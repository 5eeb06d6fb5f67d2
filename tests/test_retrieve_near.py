"""Proves that a search keeps other sizes of a base out, tells checkpoint lines apart, and can be restricted to one."""

from __future__ import annotations

import pytest
from retrieve_worlds import digest

from autolora_core.encode.towers import LexicalTower
from autolora_core.errors import FamilyError
from autolora_core.library.entries import Entry, EntryText, ScanReport
from autolora_core.library.fit_report import FitReport
from autolora_core.library.report import Summary, encode_report
from autolora_core.lora.lineage import Lineage
from autolora_core.retrieve.near import Near
from autolora_core.retrieve.retrieve import retrieve
from autolora_core.retrieve.view import MemoryView, ViewEntry, ViewText

TOWER = LexicalTower()


def entry(title: str, family: str = "sdxl", base_model: str = "", variant: str = "") -> ViewEntry:
    name = f"{title.replace(' ', '_')}_{variant or 'x'}.safetensors"
    return ViewEntry(
        name, digest(name), family, text=ViewText(title), halves=("model",), variant=variant, base_model=base_model
    )


SDXL = MemoryView([
    entry("watercolour", base_model="Pony"), entry("otter", base_model="Illustrious-XL-v0.1.safetensors"),
    entry("castle", base_model="sdxl_base_v1-0"), entry("fox", base_model="Pony"),
])  # fmt: skip


def ask(view: MemoryView, prompt: str, near: Near, family: str = "sdxl", **how):
    return retrieve(view, prompt, family=family, tower=TOWER, near=near, **how)


def titles(selection) -> set[str]:
    return {pick.name.split("_")[0] for pick in selection.picks}


def test_picks_say_which_line_they_are_made_for_and_that_lines_are_mixed():
    selection = ask(SDXL, "an otter, watercolour", Near(model=Lineage()))
    assert titles(selection) == {"otter", "watercolour"}
    reasons = {pick.name.split("_")[0]: pick.reason for pick in selection.picks}
    assert "Made for sdxl pony (base model 'Pony')" in reasons["watercolour"]
    assert "which sdxl this model is: not shown by its layers." in reasons["watercolour"]
    assert any("illustrious (1)" in note and "pony (1)" in note for note in selection.notes)
    alone = ask(SDXL, "a castle", Near(model=Lineage()))
    assert titles(alone) == {"castle"} and "Made for" not in alone.picks[0].reason
    assert not any("used together" in note for note in alone.notes)
    assert "Made for" not in ask(SDXL, "a fox", Near()).picks[0].reason  # no model to compare with


def test_a_search_restricted_to_a_line_leaves_out_those_that_say_another():
    selection = ask(SDXL, "an otter and a castle, watercolour", Near(wanted="pony"), threshold=0.3)
    assert titles(selection) == {"castle", "watercolour"}
    note = next(note for note in selection.notes if note.startswith("Only LoRAs for sdxl pony"))
    assert "left out, made for another: 1 (otter_x.safetensors); LoRAs that say none stay in: 1." in note
    pinned = ask(SDXL, "a castle", Near(wanted="pony"), pinned=["otter_x.safetensors"])
    assert titles(pinned) == {"castle", "otter"}  # a line is a matter of taste


WAN = MemoryView([entry("dance", "wan", variant=size) for size in ("1.3b", "14b")] + [entry("dance", "wan")])


def test_another_size_is_left_out_and_a_pinned_one_refused():
    selection = ask(WAN, "dance", Near("14b", Lineage()), "wan", threshold=0.0)
    assert not any("1.3b" in pick.name for pick in (*selection.picks, *selection.misses))
    assert any("another size of wan than the model's (14b): 1 (dance_1.3b" in note for note in selection.notes)
    everything = ask(WAN, "dance", Near(), "wan", threshold=0.0)
    assert any("1.3b" in pick.name for pick in (*everything.picks, *everything.misses))
    with pytest.raises(FamilyError, match=r"dance_1\.3b\.safetensors is a LoRA for wan 1\.3b, the model is wan 14b"):
        ask(WAN, "x", Near("14b"), "wan", pinned=["dance_1.3b"])


@pytest.mark.parametrize(
    ("family", "model", "file", "apart"),
    [("sd3", "medium", "3.5-medium", False), ("sd3", "3.5-medium", "large", True), ("sdxl", "", "refiner", True),
     ("sdxl", "refiner", "refiner", False), ("flux2", "klein-4b", "klein-9b", True), ("flux2", "klein-4b", "", False),
     ("wan", "", "14b", False)],
)  # fmt: skip
def test_which_variants_are_of_another_size(family, model, file, apart):
    view = MemoryView([entry("castle", family, variant=file)])
    selection = ask(view, "castle", Near(model, Lineage()), family, threshold=0.0)
    assert bool(selection.picks or selection.misses) != apart


def test_without_a_model_no_size_is_another():
    view = MemoryView([entry("castle", "sdxl", variant="refiner")])
    assert ask(view, "castle", Near(), "sdxl", threshold=0.0, pinned=["castle_refiner"]).picks


def test_a_flux_lora_pinned_on_chroma_says_what_to_do():
    view = MemoryView([entry("castle", "chroma"), entry("otter", "flux")])
    with pytest.raises(FamilyError, match="is a LoRA for flux, the model is chroma.*choose flux as family"):
        ask(view, "x", Near(), "chroma", pinned=["otter_x"])
    with pytest.raises(FamilyError, match="remove it from the pinned names$"):
        ask(view, "x", Near(), "sdxl", pinned=["otter_x"])


def library_entry(name: str, family: str, base_model: str) -> Entry:
    return Entry(name, name, digest(name), 1, 0.0, family, "", "lora", None, 4, False, (), EntryText(),
                 base_model=base_model)  # fmt: skip


def test_the_report_of_encode_counts_lines():
    entries = [
        library_entry("a.safetensors", "sdxl", "Pony"), library_entry("b.safetensors", "sdxl", "Pony; sdxl_base_v1-0"),
        library_entry("c.safetensors", "sdxl", "Illustrious"), library_entry("d.safetensors", "sdxl", "sdxl_base_v1-0"),
        library_entry("e.safetensors", "pixart", ""),
    ]  # fmt: skip
    report = encode_report(Summary(ScanReport(), FitReport(), entries))
    assert "- sdxl: 4 (0 with words that describe them), made for pony: 2, illustrious: 1, not said: 1" in report
    assert "- pixart: 1 (0 with words that describe them)\n" in report + "\n"
