"""The library panel's answers: rows by page, searches, groups, previews and the map, without a server."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from conftest import emoji_factors, write_lora
from PIL import Image

from autolora_core.encode.towers import LexicalTower
from autolora_core.errors import LibraryError, SelectionError
from autolora_core.library.entries import Entry, EntryText
from autolora_core.library.index import Library
from autolora_core.library.report import Summary
from autolora_core.library.report_card import encode_card
from autolora_core.panel import answers
from autolora_core.panel.asked import MAX_OFFSET, MOST_ROWS, Asked
from autolora_core.panel.catalogue import Catalogue, catalogue_of
from autolora_core.panel.libraries import folder_of, folders
from autolora_core.panel.preview import MAX_BYTES, preview_of, read_picture_file

WAITS = lambda: False  # noqa: E731 - somebody waits for the answer
WORDS = ("red otter", "blue castle", "otter, watercolour style", "neon sign", "quiet harbour")


@pytest.fixture
def world(tmp_path):
    """Loras folder and the open library of it: five files with words, a copy, a scaled one, a damaged one."""
    loras = tmp_path / "loras"
    for seed, words in enumerate(WORDS):
        tags = {"ss_tag_frequency": json.dumps({"train": {words: 9}})}
        write_lora(loras / f"{words.replace(' ', '_')}.safetensors", emoji_factors(seed, blocks=1), tags)
    (loras / "copy.safetensors").write_bytes((loras / "neon_sign.safetensors").read_bytes())
    louder = {name: (down, 2 * up) for name, (down, up) in emoji_factors(0, blocks=1).items()}
    write_lora(loras / "louder.safetensors", louder)
    (loras / "broken.safetensors").write_bytes(b"<html>")
    Image.new("RGB", (9, 9), "red").save(loras / "neon_sign.preview.png")
    with Library.open(tmp_path / "index") as library:
        library.scan({"loras": loras})
        library.compare_duplicates("emoji")
        yield loras, library


def entry(name, family="sdxl", **more):
    usual = dict(path=f"/l/{name}", hash=f"{name:0>64}", size=1, mtime=0.0, variant="", kind="lora", partial=None,
                 rank=4, missing=False, problems=(), text=EntryText())  # fmt: skip
    return Entry(name=name, family=family, **(usual | more))


def names(answer):
    return [row["name"] for row in answer["rows"]]


def test_every_word_must_be_in_the_row():
    found = Catalogue(1, [
        entry("one", text=EntryText("Red OTTER", ("watercolour",))),
        entry("two", "flux", text=EntryText(tags=("otter",))), entry("otter.three", kind="control"),
        entry("four", missing=True, text=EntryText("otter")),
    ])  # fmt: skip
    assert found.select("Otter").rows.tolist() == [0, 1, 2], "missing files are not among them"
    assert found.select("otter water").rows.tolist() == [0] and not len(found.select("otter ink").rows)
    assert found.select("otter", "flux").rows.tolist() == [1]
    assert found.select("otter", "flux").families == {"sdxl": 2, "flux": 1}, "counts are of all families"
    assert found.select("", kind="control").rows.tolist() == [2] and not len(found.select("", "no such base").rows)
    assert found.problems().tolist() == [2, 3] and found.problems({"two"}).tolist() == [2, 1, 3]


def test_pages_lie_side_by_side():
    found = Catalogue(7, [entry(f"{i:03d}") for i in range(250)])
    pages = [answers.page(found, found.select(""), Asked(offset=at, limit=100)) for at in (0, 100, 200, 300)]
    assert [row["name"] for page in pages for row in page["rows"]] == [f"{i:03d}" for i in range(250)]
    assert {page["total"] for page in pages} == {250} and pages[0]["generation"] == "7"
    assert "path" not in pages[0]["rows"][0]


@pytest.mark.parametrize(
    "said",
    [{"offset": "-1"}, {"offset": "1e3"}, {"limit": str(MOST_ROWS + 1)}, {"offset": str(MAX_OFFSET + 1)},
     {"offset": "９"}, {"limit": "9" * 400}, {"query": "x" * 401}, {"hash": "0" * 1000}, {"offset": "1\n"}],
)  # fmt: skip
def test_what_no_panel_asks_is_refused(said):
    with pytest.raises(SelectionError, match=next(iter(said))):
        Asked.of(said)
    assert Asked.of({"offset": "5", "limit": "7", "query": "x"}) == Asked(offset=5, limit=7, query="x")


def test_searches_and_lists_of_a_real_library(world):
    _, library = world
    assert names(answers.entries(library, Asked(query="otter"), WAITS)) == [
        "otter,_watercolour_style.safetensors", "red_otter.safetensors"
    ]  # fmt: skip
    problems = answers.problems(library, Asked(), WAITS)
    assert names(problems) == ["broken.safetensors"] and problems["rows"][0]["problems"]
    twice = answers.duplicates(library, Asked(), WAITS)
    assert [(row["name"], row["group"], row["same"]) for row in twice["rows"]] == [
        ("copy.safetensors", 0, True), ("neon_sign.safetensors", 0, True),
        ("louder.safetensors", 1, False), ("red_otter.safetensors", 1, False),
    ] and twice["groups"] == 2  # fmt: skip
    digest = answers.entries(library, Asked(query="louder"), WAITS)["rows"][0]["hash"]
    near = answers.similar(library, Asked(hash=digest), WAITS)
    assert names(near) == ["red_otter.safetensors"] and near["rows"][0]["score"] > 0.99
    assert names(answers.entries(library, Asked(hash=digest), WAITS)) == ["louder.safetensors"]
    with pytest.raises(LibraryError, match="no such LoRA"):
        answers.similar(library, Asked(hash="0" * 64), WAITS)


def test_unreadable_lists_all_that_the_card_of_encode_counts(world):
    loras, library = world
    strange = {"body.layer": (torch.ones(2, 8), torch.ones(8, 2))}
    write_lora(loras / "stranger.safetensors", strange)
    scan = library.scan({"loras": loras})
    card = encode_card(Summary(scan, library.fit(LexicalTower()), library.entries(), unencoded=library.unencoded()))
    told = {one["name"]: one["why"] for one in card["problems"]}
    assert set(told) == {"broken.safetensors", "stranger.safetensors"}
    catalogue_of(library).made = -1e9  # older than a list may be that is shown while files are being read
    rows = {row["name"]: row["problems"] for row in answers.problems(library, Asked(), WAITS)["rows"]}
    assert set(rows) == set(told) and all(told[name] in rows[name] for name in told)


def test_the_search_by_meaning_ranks_as_retrieve_scores(world):
    _, library = world
    tower = LexicalTower()
    library.fit(tower)
    found = answers.search(library, Asked(query="an otter beside a castle"), WAITS, tower)
    # Both parts of the prompt are among the first, not two of one part.
    assert {"blue_castle.safetensors"} < set(names(found)[:3]) and "otter" in names(found)[0] + names(found)[1]
    scores = [row["score"] for row in found["rows"]]
    assert scores and all(0 <= score <= 1 for score in scores) and found["rows"][0]["words"] > 0.5
    before = library.generation
    assert answers.search(library, Asked(query="..."), WAITS, tower)["rows"] == [] and library.generation == before


def test_a_search_that_nobody_waits_for_ends(world):
    with pytest.raises(answers.Stopped):
        answers.search(world[1], Asked(query="otter"), lambda: True, LexicalTower())


def test_a_list_is_kept_until_the_library_changes(world):
    loras, library = world
    held = catalogue_of(library)
    assert catalogue_of(library) is held
    write_lora(loras / "newcomer.safetensors", emoji_factors(77, blocks=1))
    library.scan({"loras": loras})
    held.made = -1e9  # older than a list may be that is shown while files are being read
    assert names(answers.entries(library, Asked(query="newcomer"), WAITS)) == ["newcomer.safetensors"]


def test_libraries_are_found_by_their_names_alone(tmp_path):
    for name in ("default", "Über anime", ".routers", "empty"):
        (tmp_path / "autolora" / name).mkdir(parents=True)
    for name in ("default", "Über anime", ".routers"):
        Library.open(tmp_path / "autolora" / name).close()
    Library.open(tmp_path / "elsewhere").close()
    assert list(folders(tmp_path)) == ["default", "Über anime"]
    for name in ("", ".", "..", "../elsewhere", "default/", "./default", ".routers", "empty", "\0", str(tmp_path)):
        with pytest.raises(LibraryError, match="no such library"):
            folder_of(tmp_path, name)


# -- previews ---------------------------------------------------------------------------------------------------------


def preview(world, name):
    loras, library = world
    digest = answers.entries(library, Asked(query=name), WAITS)["rows"][0]["hash"]
    return digest, preview_of(library, digest, [str(loras)])


def test_a_preview_is_what_its_first_bytes_say(world):
    digest, found = preview(world, "neon")
    assert found == ((world[0] / "neon_sign.preview.png").read_bytes(), "image/png")
    assert preview(world, "blue")[1] is None and preview_of(world[1], "0" * 64, [str(world[0])]) is None
    assert preview_of(world[1], digest, [str(world[0]) + "2"]) is None, "not of a loras folder"
    (world[0] / "neon_sign.preview.png").write_bytes(b"<script>alert(1)</script>")
    assert preview_of(world[1], digest, [str(world[0])]) is None


def test_a_drawn_sample_is_shown_where_no_preview_lies(world):
    digest, _ = preview(world, "blue")
    catalogue = catalogue_of(world[1])
    assert not catalogue.rows(catalogue.by_hash[digest])[0]["preview"]
    (world[1].folder / "previews").mkdir()
    Image.new("RGB", (9, 9), "blue").save(world[1].folder / "previews" / f"{digest}.png")
    assert preview_of(world[1], digest, [str(world[0])])[1] == "image/png"
    assert catalogue.rows(catalogue.by_hash[digest])[0]["preview"]


def test_a_preview_that_leads_elsewhere_is_not_read(world, tmp_path):
    """An index that was tampered with: the picture named lies in no loras folder, or beside another file."""
    loras, library = world
    digest, _ = preview(world, "neon")
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")
    (loras / "other").mkdir()
    Image.new("RGB", (9, 9)).save(loras / "other" / "secret.png")
    catalogue = catalogue_of(library)
    for place in (tmp_path / "secret.png", loras / ".." / "secret.png", loras / "other" / "secret.png"):
        for at in catalogue.by_hash[digest]:
            object.__setattr__(catalogue.entries[at], "preview", str(place))
        assert preview_of(library, digest, [str(loras)]) is None, place


def test_only_pictures_of_believable_size_are_read(tmp_path):
    heads = {
        "png": b"\x89PNG\r\n\x1a\n",
        "jpeg": b"\xff\xd8\xff\xe0",
        "webp": b"RIFF\1\0\0\0WEBPVP8 ",
        "gif": b"GIF89a",
    }
    for kind, head in heads.items():
        (tmp_path / kind).write_bytes(head + b"rest")
        assert read_picture_file(str(tmp_path / kind))[1] == f"image/{kind}"
    (tmp_path / "svg").write_bytes(b"<svg onload='alert(1)'>")
    with open(tmp_path / "large", "wb") as stream:
        stream.write(heads["png"])
        stream.truncate(MAX_BYTES + 1)
    for name in ("svg", "large", "none", "", "a\0b"):
        assert read_picture_file(str(tmp_path / name) if name else str(tmp_path)) is None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names")
def test_a_name_that_is_no_text_goes_through_json(tmp_path):
    (tmp_path / "l").mkdir()
    (tmp_path / "l" / "bad\udcff.safetensors").write_bytes(b"<html>")
    with Library.open(tmp_path / "index") as library:
        library.scan({"l": tmp_path / "l"})
        told = json.loads(json.dumps(answers.problems(library, Asked(), WAITS)))
    assert told["rows"][0]["name"] == "bad\udcff.safetensors"
