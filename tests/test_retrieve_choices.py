"""Proves that what was chosen on cards is honoured: strength, trigger words and role of single LoRAs; that a malformed
text is refused by name; and that the node hands the choices on in every form, with the cards beside them."""

from __future__ import annotations

import json

import pytest
from comfy_local import library_place, pack_module
from conftest import emoji_factors, write_lora

from autolora_core.errors import SelectionError
from autolora_core.retrieve.cards import retrieve_cards
from autolora_core.retrieve.choices import FORMAT, Choice, apply_choices, read_choices
from autolora_core.retrieve.selection import Parts, Pick, Selection

WORDS = ("tok", "brown fur", "river", "whiskers", "mud")


def text(**loras) -> str:
    return json.dumps({"format": FORMAT, "loras": loras})


def selection(*picks: Pick) -> Selection:
    return Selection("an otter", "emoji", picks, index={"folder": "C:\\user\\autolora\\mine"}, notes=("a note",))


def pick(name: str = "a/otter.safetensors", role: str = "subject", strength: float = 1.0) -> Pick:
    return Pick(name, "0" * 64, "/secret/otter.safetensors", role, strength, 0.9, Parts(text=0.9), "because", WORDS)


def applied(choices: str, *picks: Pick, known: tuple[str, ...] = ("a/otter.safetensors", "fox.safetensors")):
    return apply_choices(selection(*(picks or (pick(),))), read_choices(choices), known)


@pytest.mark.parametrize("name", ["a/otter.safetensors", "a\\otter.safetensors", "A/Otter"])
def test_strength_role_and_words_of_one_lora(name):
    wish = {"strength": 0.25, "role": "style", "triggers": {"brown fur": False, "mud": True, "never heard": True}}
    found = applied(json.dumps({"format": FORMAT, "loras": {name: wish}}))
    (made,) = found.selection.picks
    assert (made.strength, made.role) == (0.25, "style")
    assert found.words == {"a/otter.safetensors": ("tok", "river", "mud")}
    assert made.triggers == ("tok", "river", "mud", "whiskers")  # no word that is off, those that are on first
    note, rest = found.selection.notes
    assert rest == "a note"
    assert note == (
        "As chosen on its card, a/otter.safetensors: strength 0.25 instead of 1, style instead of subject, without "
        "“brown fur”, with “mud”, “never heard” not among its trigger words."
    )


def test_an_exact_name_goes_before_one_of_another_case():
    wishes = {"OTTER.safetensors": {"strength": 0.1}, "otter.safetensors": {"strength": 0.2}}
    names = ("otter.safetensors", "OTTER.safetensors")
    found = applied(json.dumps({"format": FORMAT, "loras": wishes}), *map(pick, names), known=names)
    assert [one.strength for one in found.selection.picks] == [0.2, 0.1]


def test_a_choice_for_one_file_is_not_taken_by_one_of_another_case():
    """On a disk that keeps such names apart they are two files: in other case only what is certain is taken."""
    two = ("A.safetensors", "a.safetensors")
    for key, changed in (("A.safetensors", [0.5, 1.0]), ("a", [1.0, 0.5])):
        found = applied(text(**{key: {"strength": 0.5}}), *map(pick, two), known=two)
        assert [one.strength for one in found.selection.picks] == changed, key
    waits = applied(text(**{"A.safetensors": {"strength": 0.5}}), pick("a.safetensors"), known=two)
    assert waits.selection.picks == (pick("a.safetensors"),) and "kept for 1 LoRA" in waits.selection.notes[0]
    names = ("Fox.safetensors", "fOx.safetensors")
    for wishes in ({"FOX": {"strength": 0.5}}, {"FOX.safetensors": {"role": "style"}}):
        found = applied(text(**wishes), *map(pick, names), known=names)
        assert found.selection.picks == tuple(map(pick, names)) and "nearly that name: FOX" in found.selection.notes[0]
    twice = applied(
        text(**{"OTTER": {"strength": 0.1}, "oTTER": {"strength": 0.2}}), pick("otter.safetensors"), known=()
    )
    assert twice.selection.picks[0].strength == 1.0 and "OTTER, oTTER" in twice.selection.notes[0]


def test_no_choice_changes_nothing():
    for nothing in ("", "  \n", text(), text(**{"a/otter.safetensors": {}}), text(**{"a/otter": {"strength": 1}})):
        found = applied(nothing)
        assert found.selection == selection(pick()) and found.words == {"a/otter.safetensors": WORDS[:3]}


def test_choices_without_effect_are_told():
    found = applied(text(**{"fox": {"strength": 0.5}, "gone.safetensors": {"role": "style"}}))
    assert found.selection.picks == (pick(),)
    assert found.selection.notes == (
        "Choices for LoRAs that are not in the library changed nothing: gone.safetensors.",
        "Choices kept for 1 LoRA not picked this time.",
        "a note",
    )


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "choices must be an object, not list"),
        ('{"loras": {}}', f"not of format {FORMAT}"),
        (json.dumps({"format": FORMAT, "lora": {}}), "unknown field 'lora'"),
        (json.dumps({"format": FORMAT, "loras": []}), "choices.loras must be an object"),
        (text(x=3), "choices.loras['x'] must be an object"),
        (text(x={"strenght": 1}), "unknown field 'strenght'"),
        (text(x={"strength": "1"}), "from -10 to 10, not '1'"),
        (text(x={"strength": True}), "from -10 to 10, not True"),
        (text(x={"strength": float("nan")}), "from -10 to 10, not nan"),
        (text(x={"strength": 10.5}), "from -10 to 10, not 10.5"),
        (text(x={"strength": 10**400}), "from -10 to 10"),
        (text(x={"triggers": ["a"]}), "must hold true or false for every word"),
        (text(x={"triggers": {"a": 1}}), "must hold true or false for every word"),
        (text(x={"role": "pinned"}), "must be subject or style, not 'pinned'"),
    ],
)
def test_what_is_wrong_is_named(wrong, named):
    with pytest.raises(SelectionError, match="What to do: empty the input choices") as caught:
        read_choices(wrong)
    assert named in str(caught.value)


def test_a_huge_text_is_refused_unread():
    with pytest.raises(SelectionError, match="more than"):
        read_choices(" " * 5_000_000 + "{}")


def test_ten_thousand_choices():
    found = read_choices(
        json.dumps({"format": FORMAT, "loras": {f"{n}.safetensors": {"strength": 1} for n in range(10_000)}})
    )
    assert len(found) == 10_000 and found["7.safetensors"] == Choice(1.0)


def test_cards_hold_both_sides_and_no_path():
    found = applied(text(**{"a/otter": {"strength": 0.5, "role": "style", "triggers": {"tok": False}}}))
    card = retrieve_cards(selection(pick()), found, ["river"])
    (one,) = card["picks"]
    assert (one["strength"], one["role"], one["found"]) == (0.5, "style", {"role": "subject", "strength": 1.0})
    assert one["triggers"] == list(WORDS) and one["on"] == ["brown fur", "river"]
    assert card["library"] == "mine" and "secret" not in json.dumps(card)


def test_the_node_gives_the_choices_in_every_form(comfy, tmp_path_factory, monkeypatch):
    base = tmp_path_factory.mktemp("choices")
    metadata = {"modelspec.title": "A fox", "modelspec.trigger_phrase": "tokfox"}
    write_lora(base / "loras" / "fox.safetensors", emoji_factors(1, blocks=1), metadata)
    write_lora(base / "loras" / "castle.safetensors", emoji_factors(2, blocks=1), {"modelspec.title": "A castle"})
    tower = pack_module("autolora_core.encode.towers").LexicalTower()
    with pack_module("autolora_core.library.index").Library.open(library_place(comfy, base.name)) as opened:
        opened.scan({"loras": base / "loras"})
        opened.fit(tower)
        index = opened.handle
    module = pack_module("nodes.retrieve")
    monkeypatch.setattr(module, "shared_tower", lambda folders=(): tower)
    asked = {"family": "emoji", "top_k": 3, "threshold": 0.5, "strength": 1.0, "pinned": "fox:0.9", "banned": ""}
    asked |= {"index": index, "prompt": "a fox", "use_weights": True, "use_text": True}
    wish = text(fox={"strength": -0.5, "triggers": {"tokfox": False}, "role": "style"})
    out = module.AutoLoRARetrieve().retrieve(**asked, choices=wish)
    found, stack, prompt, report = out["result"]
    assert stack == [("fox.safetensors", -0.5, -0.5)] and prompt == "a fox"
    assert [(one["strength"], one["role"], one["triggers"]) for one in found["picks"]] == [(-0.5, "style", [])]
    assert "fox.safetensors: strength -0.5 instead of 0.9, style instead of pinned, without “tokfox”." in report
    (card,) = out["ui"]["autolora"]
    assert card["picks"][0]["pinned"] and card["picks"][0]["triggers"] == ["tokfox"] and card["library"] == base.name
    assert module.AutoLoRARetrieve().retrieve(**asked)["result"][2] == "a fox, tokfox"
    with pytest.raises(pack_module("autolora_core.errors").SelectionError, match="choices is not JSON"):
        module.AutoLoRARetrieve().retrieve(**asked, choices="{")
