"""The contact sheet, the table and the results file say what happened, to people and to programs."""

from __future__ import annotations

import dataclasses
import io
import json

import pytest
from PIL import Image, PngImagePlugin

from scripts._lib import report, sheet
from scripts._lib.png import pixels, same_picture
from scripts._lib.showcase import Shown

RED, BLUE = (200, 30, 30), (30, 30, 200)


def png(colour, note="", size=(16, 16)):
    picture, text, out = Image.new("RGB", size, colour), PngImagePlugin.PngInfo(), io.BytesIO()
    text.add_text("prompt", note)
    picture.save(out, format="PNG", pnginfo=text)
    return out.getvalue()


def pick(name, score, role="subject"):
    return {"name": name, "score": score, "role": role, "reason": f"looks like {name}", "strength": 1.0}


@pytest.fixture
def shown(tmp_path):
    def save(name, colour):
        path = tmp_path / "pictures" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(colour))
        return path

    picks = [pick("animals\\otter.safetensors", 0.91), pick("pixel.safetensors", 0.72, "style")]
    two = Shown("an otter, pixel art", {"picks": picks}, "an otter, pixel art, pxl", "two LoRAs gated", 1.25)
    two.pictures = {name: save(name, RED) for name in ("base", "pick1", "pick2", "chain", "ours")}
    none = Shown("a cabin", {"picks": [], "none_reason": "best score 0.12 is below 0.50"}, "a cabin", "", 0.5)
    none.pictures = {"base": save("nb", BLUE), "ours": save("no", BLUE)}
    none.same_as_base = True
    return [two, none]


def test_metadata_does_not_count_but_a_pixel_does():
    one = png(RED, "one graph")
    assert one != png(RED, "another") and same_picture(one, png(RED, "another"))
    changed = Image.new("RGB", (16, 16), RED)
    changed.putpixel((15, 15), (200, 30, 31))
    out = io.BytesIO()
    changed.save(out, format="PNG")
    assert not same_picture(one, out.getvalue())
    assert not same_picture(png(RED, size=(8, 32)), png(RED, size=(32, 8)))


@pytest.mark.parametrize("data", [b"", b"<html>", png(RED)[:60]], ids=["empty", "html", "cut"])
def test_what_is_not_a_png_is_refused(data):
    with pytest.raises(ValueError, match="PNG"):
        pixels(data)


def test_the_table_names_picks_scores_reasons_and_seconds(shown):
    text = report.table(shown, 100)
    assert "otter: 0.91, subject, looks like" in text and "pixel: 0.72, style" in text and "1.2" in text
    assert "none fits: best score 0.12 is below 0.50" in text and "identical to the base model's picture" in text
    assert all(len(line) <= 100 for line in text.splitlines())


def test_a_none_fits_that_changed_the_picture_is_not_hidden(shown):
    shown[1].same_as_base = False
    assert "NOT the base model's picture" in report.table(shown, 100)


def test_results_file_holds_everything_with_relative_paths(shown, tmp_path):
    path = report.write_results(shown, tmp_path, {"seed": 7})
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["seed"] == 7 and [row["prompt"] for row in data["prompts"]] == ["an otter, pixel art", "a cabin"]
    assert data["prompts"][0]["selection"]["picks"][0]["score"] == 0.91
    assert all((tmp_path / file).is_file() for row in data["prompts"] for file in row["pictures"].values())


def test_the_sheet_has_a_labelled_column_a_method_and_gaps_where_nothing_was_picked(shown):
    spec = report.sheet_spec(shown)
    assert spec["columns"] == [
        "base model",
        "pick 1 alone",
        "pick 2 alone",
        "stock loaders, all picks",
        "AutoLoRA gate",
    ]
    assert [cell["image"] is None for cell in spec["rows"][1]["cells"]] == [False, True, True, True, False]
    drawn = sheet.draw(sheet.Sheet.from_json(json.dumps(spec)))
    assert drawn.size == sheet.size(sheet.Sheet(spec["columns"], spec["rows"]))
    left, top = sheet._left(0) + sheet.CELL // 2, sheet.MARGIN + sheet.HEADER + sheet.CELL // 2
    below = top + sheet.CELL + sheet.CAPTION + sheet.GAP
    assert drawn.getpixel((left, top)) == RED and drawn.getpixel((left, below)) == BLUE
    assert drawn.getpixel((sheet._left(1) + 5, below)) == sheet.EMPTY


def test_labels_are_drawn_and_long_ones_stay_in_their_column():
    long = sheet.Sheet(["x" * 500, ""], [sheet.Row("word " * 60 + "y" * 300, "note", [sheet.Cell(), sheet.Cell()])])
    drawn = sheet.draw(sheet.Sheet.from_json(json.dumps(dataclasses.asdict(long))))
    header = range(sheet.MARGIN, sheet.MARGIN + sheet.HEADER)

    def inked(columns):
        return any(drawn.getpixel((x, y)) != sheet.PAPER for x in columns for y in header)

    assert inked(range(sheet._left(0), sheet._left(0) + sheet.CELL))
    assert not inked(range(sheet._left(0) + sheet.CELL + 1, sheet._left(1) + sheet.CELL))
