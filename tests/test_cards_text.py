"""What the browser files of cards and panel do without a page, run by Node: choices are read, written and matched by
the rules of the node, and a result that was kept is found in the history however many nodes lie before it."""

from __future__ import annotations

import json
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autolora_core.errors import FamilyError, SelectionError
from autolora_core.retrieve.choices import FORMAT, Choice, apply_choices, read_choices
from autolora_core.retrieve.names import Names
from autolora_core.retrieve.selection import Parts, Pick, Selection
from autolora_core.retrieve.wishes import read_wishes

WEB = Path(__file__).resolve().parents[1] / "web"
NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="Node.js is not on the PATH")


def said_by(folder: Path, module: str, script: str, given: Any = None) -> Any:
    """What ``script`` gives back; it has the module as ``it`` and ``given``."""
    for part in ("cards", "panel"):
        shutil.copytree(WEB / part, folder / part, dirs_exist_ok=True)
    (folder / "package.json").write_text('{"type": "module"}', encoding="utf-8")
    text = f"import * as it from './{module}';\nconst given = {json.dumps(given)};\n"
    text += f"const found = await (async () => {{ {script} }})();\nconsole.log(JSON.stringify(found));\n"
    (folder / "ask.js").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [NODE, str(folder / "ask.js")], capture_output=True, encoding="utf-8", timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


HISTORY = """
const { depth } = given;
const graph = (start) => {
  const made = { 0: { class_type: "Checkpoint", inputs: { name: start } } };
  for (let i = 1; i <= depth; i++)
    made[i] = { class_type: "LoraLoader", inputs: { model: [`${i - 1}`, 0], clip: [`${i - 1}`, 1], strength: 1 } };
  return made;
};
const shown = (card) => (card ? { [depth]: { autolora: [card] } } : {});
const run = (start, card) => ({ prompt: [0, "", graph(start)], outputs: shown(card) });
const history = { a: run("x", "of x"), b: run("y", "of y"), c: run("x"), d: run("z") };
const api = { fetchApi: async () => ({ json: async () => history }) };
return Promise.all(["c", "d", "gone"].map((id) => it.cachedCard(api, id, String(depth))));
"""


@pytest.mark.parametrize("depth", [1, 60])
def test_a_card_is_that_of_the_same_nodes_however_many_there_are(tmp_path, depth):
    assert said_by(tmp_path, "cards/cached.js", HISTORY, {"depth": depth}) == ["of x", None, None]


def test_what_the_cards_write_the_node_reads(tmp_path):
    script = """
    const otter = { name: "a/otter.safetensors" };
    let all = it.withChoice(new Map(), otter, "strength", 0.6);
    all = it.withTrigger(all, { name: "A\\\\Otter" }, "constructor", true, false);
    all = it.withTrigger(all, otter, "tok", true, true);
    all = it.withChoice(all, { name: "__proto__" }, "role", "style");
    all = it.withChoice(it.withChoice(all, { name: "gone" }, "role", "style"), { name: "gone" }, "role", undefined);
    return [it.writeChoices(all), it.writeChoices(it.readChoices(it.writeChoices(all)))];
    """
    written, again = said_by(tmp_path, "cards/choices.js", script)
    assert read_choices(written) == {
        "a/otter.safetensors": Choice(0.6, {"constructor": True}),
        "__proto__": Choice(role="style"),
    }
    assert again == written and FORMAT in written


class Entry:
    """What pinning goes by."""

    def __init__(self, name: str, family: str = "sdxl"):
        self.name, self.hash, self.family = name, sha256(name.encode()).hexdigest(), family


# Names that differ by case alone, by folder, by how a mark is written; one with signs that other rules take for the end
# of a line; and one of another base.
SHELF = [
    "a/otter.safetensors", "A/Otter.safetensors", "b/otter.safetensors", "deep/down/b/otter.safetensors",
    "fox.safetensors", "Fox.safetensors", "stra\u00dfe.safetensors", "cafe\u0301.safetensors", "\u0130.safetensors",
    "line\u2028break\u0085here\x0b.safetensors", "ratio 1:2.safetensors", "\u039f\u0394\u039f\u03a3.safetensors",
]  # fmt: skip
ENTRIES = [
    *map(Entry, SHELF),
    Entry("FOX.safetensors", "flux"),
    Entry("deep/owl.safetensors"),
    Entry("owl.safetensors", "flux"),
]
LINES = [
    *SHELF, "otter", "a/otter", "A\\OTTER", "B/OTTER", "b/otter", "c/otter", "down/b/otter", "FOX", "fox", "Fox", "foX",
    "FOX.safetensors", "fox: 0.7", "Fox.safetensors:-.5e1", "fox:1e999", "fox: 1_0", "fox :nan", "foxes", "STRASSE",
    "STRA\u00dfE", "caf\u00e9", "CAF\u00c9", "ratio 1:2", "ratio 1:2:0.5", "\u03bf\u03b4\u03bf\u03c2", "owl",
    "line\u2028break\u0085here\x0b: 2", "fox.safetensors\u2028", "a/otter\rb/otter", "fox\x85Fox", "\u2003otter\ufeff",
]  # fmt: skip


def cards_of(own: list[Entry], everything: list[Entry]) -> list[dict[str, Any]]:
    """A card a LoRA of the base, with what the node tells of other names."""
    known, ours = Names(one.name for one in everything), Names(one.name for one in own)
    return [{"name": one.name, "beside": known.beside(one.name, ours)} for one in own]


def wished(field: str, line: str, own: list[Entry]) -> list[str] | None:
    """The names that the node pins or bans; None where it says that it cannot tell which, or of another base."""
    try:
        wishes = {"pinned": [], "banned": []} | {field: line}
        taken, shut, _ = read_wishes(own, ENTRIES, "sdxl", wishes["pinned"], wishes["banned"], 1.0)
    except FamilyError:
        return None
    except SelectionError as error:
        return None if "ambiguous" in error.message else []
    hit = [index for index, _ in taken] if field == "pinned" else np.flatnonzero(shut).tolist()
    return [own[index].name for index in hit]


@pytest.mark.parametrize("field", ["pinned", "banned"])
def test_a_line_means_on_the_card_what_it_means_to_the_node(tmp_path, field):
    own = [entry for entry in ENTRIES if entry.family == "sdxl"]
    script = """
    const { field, lines, cards } = given;
    return lines.map((line) => cards.filter((one) => it.isListed(field, line, one)).map((one) => one.name));
    """
    given = {"field": field, "lines": LINES, "cards": cards_of(own, ENTRIES)}
    shown = said_by(tmp_path, "cards/choices.js", script, given)
    of_node = {line: wished(field, line, own) for line in LINES}
    told = {line: names for line, names in zip(LINES, shown, strict=True) if of_node[line] is not None}
    assert told == {line: names for line, names in of_node.items() if names is not None}
    assert sum(map(bool, told.values())) > 20 and sum(not names for names in told.values()) > 4


@pytest.mark.parametrize("key", [*SHELF, "otter", "A/OTTER", "a\\otter", "FOX", "Fox", "fox", "c/otter", "caf\u00c9"])
def test_a_choice_is_of_the_lora_that_the_node_takes_it_for(tmp_path, key):
    own = [entry for entry in ENTRIES if entry.family == "sdxl"]
    text = json.dumps({"format": FORMAT, "loras": {key: {"strength": 0.5}}})
    picks = tuple(Pick(one.name, one.hash, "", "subject", 1.0, 0.9, Parts(), "") for one in own)
    made = apply_choices(Selection("x", "sdxl", picks), read_choices(text), [one.name for one in ENTRIES]).selection
    script = """
    const all = it.readChoices(given.text);
    return given.cards.filter((one) => it.choiceOf(all, one).strength === 0.5).map((one) => one.name);
    """
    shown = said_by(tmp_path, "cards/choices.js", script, {"text": text, "cards": cards_of(own, ENTRIES)})
    assert shown == [pick.name for pick in made.picks if pick.strength == 0.5]
    assert len(shown) == (key in SHELF or key in ("a\\otter", "Fox", "fox", "caf\u00c9"))


def test_a_control_of_one_leaves_a_namesake_s_line_and_choice(tmp_path):
    cards = cards_of(ENTRIES[:6], ENTRIES)
    script = """
    const [small, large] = given.filter((one) => one.name.toLowerCase() === "fox.safetensors");
    const pinned = it.listed("pinned", it.listed("pinned", "", small, true), large, true);
    const all = it.withChoice(it.withChoice(new Map(), small, "strength", 0.1), large, "strength", 0.2);
    const left = it.writeChoices(it.withoutChoice(all, small));
    return [pinned, it.listed("pinned", pinned, small, false), it.writeChoices(all), left];
    """
    both, left, written, rest = said_by(tmp_path, "cards/choices.js", script, cards)
    assert (both.split("\n"), left) == (["fox.safetensors", "Fox.safetensors"], "Fox.safetensors")
    assert {name: one.strength for name, one in read_choices(written).items()} == {
        "fox.safetensors": 0.1,
        "Fox.safetensors": 0.2,
    }
    assert list(read_choices(rest)) == ["Fox.safetensors"]


def test_a_ban_in_full_leaves_others_of_that_name(tmp_path):
    names = ["a/otter.safetensors", "b/otter.safetensors", "fox.safetensors"]
    entries = [Entry(name) for name in names]
    script = "return it.listed('banned', '', given, true);"
    line = said_by(tmp_path, "cards/choices.js", script, {"name": names[1]})
    for pattern, shut in (
        (line, [0, 1, 0]),
        ("B\\Otter.safetensors", [0, 1, 0]),
        ("otter", [1, 1, 0]),
        ("b/otter", [0, 1, 0]),
        ("c/otter", [0, 0, 0]),
        ("*/ott*", [1, 1, 0]),
    ):
        assert read_wishes(entries, entries, "sdxl", [], [pattern], 1.0)[1].tolist() == shut, pattern
    assert not read_wishes([], [], "sdxl", [], [line], 1.0)[1].size


PIN = """
const node = { type: "AutoLoRARetrieve", title: "Mine", inputs: [{ widget: { name: "pinned" }, link: given.link }] };
node.widgets = ["pinned", "banned"].map((name) => ({ name, value: given[name] }));
const said = it.pin({ graph: { nodes: [node] } }, { name: "a/otter.safetensors", beside: given.beside });
return [said, ...node.widgets.map((widget) => widget.value)];
"""


@pytest.mark.parametrize(
    ("given", "said", "pinned", "banned"),
    [
        ({"pinned": "fox\n", "banned": "Otter\nfox"}, "Pinned in “Mine”.", "fox\na/otter.safetensors", "fox"),
        (
            {"pinned": "A/Otter.safetensors", "banned": "", "beside": ["A/Otter.safetensors"]},
            "Pinned in",
            "A/Otter.safetensors\na/otter.safetensors",
            "",
        ),
        ({"pinned": "a\\otter: 0.5", "banned": ""}, "It is pinned there already.", "a\\otter: 0.5", ""),
        ({"pinned": "", "banned": "", "link": 3}, "Its field pinned is connected to another node", "", ""),
    ],
)
def test_the_panel_pins_as_the_cards_do(tmp_path, given, said, pinned, banned):
    told, *fields = said_by(tmp_path, "panel/actions.js", PIN, {"link": None, **given})
    assert told.startswith(said) and fields == [pinned, banned]
