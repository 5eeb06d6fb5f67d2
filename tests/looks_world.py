"""How pictures of the browser are compared: coarsely, for fonts differ between machines; and by where the parts lie."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

REFERENCES = Path(__file__).parent / "browser" / "references"
LOOKS = ("AutoLoRARetrieve", "AutoLoRAGatedApply", "list", "map")
# Of 255 levels. Other fonts were 1.3 to 3.3 apart on average and 3 in the worst region; a look without its styles 22 to
# 33, and 44 to 82; a tile or a heat map that is not there 1.5 to 6, and 39 to 54.
MOST_ON_AVERAGE, MOST_IN_A_REGION = 6.0, 16.0
# Where the map has its dots, in shares of the height: the last place of a number moves them, so each kind of processor
# lays them out in a way of its own. There has to be as much of them: a twelfth less was seen.
DOTS, LIT, MOST_OF_LIT = (0.13, 0.81), 60, 0.25
ROW = 44  # pixels of a row of the panel's list

Box = list[int]  # left, top, right, bottom in CSS pixels from the corner of what was taken
Places = dict[str, list[Box]]


def keep(shot: Path, reference: Path) -> None:
    """In grey, which is all that is compared: a third of the bytes."""
    reference.parent.mkdir(exist_ok=True)
    Image.open(shot).convert("L").save(reference, "PNG", optimize=True)


def blocks(path: Path, count: int) -> np.ndarray:
    """Mean luminance of ``count`` × ``count`` equal parts of a picture, 0 to 255."""
    whole = Image.open(path).convert("L")
    if is_map(path):
        whole.paste(0, dots(whole))
    return np.asarray(whole.resize((count, count), Image.Resampling.BOX)).astype(float)


def is_map(path: Path) -> bool:
    return path.name.partition(".")[0] == "map"


def dots(picture: Image.Image) -> tuple[int, int, int, int]:
    """Where the map has them."""
    top, bottom = (round(share * picture.height) for share in DOTS)
    return 0, top, picture.width, bottom


def lit(path: Path) -> float:
    """Which share of that place they and their names cover."""
    picture = Image.open(path).convert("L")
    return float((np.asarray(picture.crop(dots(picture))) > LIT).mean())


def apart(shot: Path, reference: Path) -> list[str]:
    """What tells the picture from the reference, in words; empty when it looks the same."""
    with Image.open(shot) as one, Image.open(reference) as other:
        sizes = np.array([one.size, other.size], dtype=float)
    found = []
    if (np.abs(sizes[0] - sizes[1]) > 0.06 * sizes[1]).any():
        found.append(f"{shot.name} is {sizes[0]} pixels and was {sizes[1]}")
    average = np.abs(blocks(shot, 64) - blocks(reference, 64)).mean()
    region = np.abs(blocks(shot, 8) - blocks(reference, 8)).max()
    if average > MOST_ON_AVERAGE:
        found.append(f"{shot.name} differs by {average:.1f} levels on average")
    if region > MOST_IN_A_REGION:
        found.append(f"a part of {shot.name} differs by {region:.1f} levels")
    if is_map(reference) and abs(lit(shot) - lit(reference)) > MOST_OF_LIT * lit(reference):
        found.append(f"dots cover {lit(shot):.1%} of the map and were {lit(reference):.1%}")
    return found


def faults(look: str, places: Places) -> list[str]:
    """Parts of a look that do not lie where they belong, in words."""
    rules = {"AutoLoRARetrieve": _retrieve, "AutoLoRAGatedApply": _apply, "list": _list, "map": _map}
    return [what for what, holds in rules[look](places).items() if not holds]


def _retrieve(at: Places) -> dict[str, bool]:
    pins, bans, names = at['[aria-label^="Pin "]'], at['[aria-label^="Ban "]'], at[".al-name"]
    four = [at[".al-part"][start : start + 4] for start in range(0, len(at[".al-part"]), 4)]
    return _cards(at) | {
        "two picks, each with its strength": len(at['input[type="range"]']) == 2,  # the misses below have none
        "a name, a pin and a ban in a line": all(map(_in_line, names[:2], pins[:2], bans[:2])),
        "the four scores of a card side by side": len(four) == 2 and all(_in_line(*part) for part in four),
        "the reasons below the scores": len(at[".al-reason"]) >= 2
        and all(map(_below, at[".al-part"][::4], at[".al-reason"])),
        "the strength at the end of its card": all(
            card[3] - 30 < strength[3] <= card[3]
            for card, strength in zip(at["article"][:2], at['input[type="range"]'], strict=True)
        ),
    }  # fmt: skip


def _apply(at: Places) -> dict[str, bool]:
    heats = at[".al-heat"]
    return _cards(at) | {
        "a heat map on each card": len(heats) == len(at["article"]) == 2,
        "heat maps wide enough to be read": all(_width(heat) > 150 and 30 < _height(heat) < 90 for heat in heats),
        "heat maps below the names": all(map(_below, at[".al-name"], heats)),
        "heat maps of one size": len({(_width(heat), _height(heat)) for heat in heats}) == 1,
    }


def _cards(at: Places) -> dict[str, bool]:
    (root,) = at["root"]
    cards, tiles, mains = at["article"], at[".al-tile"], at[".al-main"]
    return {
        "cards as wide as the node": all(_width(card) > 0.93 * _width(root) for card in cards),
        "cards one below the other": bool(cards) and all(_below(one, other) for one, other in pairwise(cards)),
        "the headline above the cards": _below(at[".al-head"][0], at[".al-body"][0]),
        "tiles as wide as they are high": all(abs(_width(tile) - _height(tile)) <= 1 for tile in tiles),
        "tiles of two sizes at most": len({_width(tile) for tile in tiles[:2]}) == 1
        and _width(tiles[0]) in (63, 64, 65),
        "a tile to the left of each card's text": len(mains) >= 2 and all(map(_left_of, tiles, mains)),
        "texts within their cards": all(map(_within, mains, cards)),
    }


def _list(at: Places) -> dict[str, bool]:
    (root,) = at["root"]
    rows = sorted(at[".autolora-row[id]"], key=lambda row: row[1])
    parts = at[".autolora-title"], at[".autolora-under"], at[".autolora-side"]
    return _panel(at, ".autolora-list") | {
        "rows from the top to the end of the list": len(rows) * ROW >= _height(at[".autolora-list"][0]),
        "rows of one height without gaps": all(one[1] + ROW == other[1] for one, other in pairwise(rows)),
        "rows as wide as the panel": all(_width(row) > 0.93 * _width(root) for row in rows),
        "in a row the title, its family at its side, its file below": all(
            _in_line(title, side) and _below(title, under) for title, under, side in zip(*parts, strict=True)
        ),
    }


def _map(at: Places) -> dict[str, bool]:
    (legend,) = at[".autolora-legend"]
    return _panel(at, ".autolora-canvas") | {
        "the legend between the map and the status": _below(at[".autolora-canvas"][0], legend)
        and _below(legend, at[".autolora-status"][0]),
        "a legend of some groups, within its place": len(at[".autolora-legend button"]) >= 2
        and all(_within(button, legend) for button in at[".autolora-legend button"]),
    }


def _panel(at: Places, main: str) -> dict[str, bool]:
    (root,), (body,) = at["root"], at[main]
    (search,), (tabs,), (status,) = at[".autolora-search"], at[".autolora-tabs"], at[".autolora-status"]
    return {
        "search, tabs, what is shown, status from top to bottom": all(
            _below(one, other) for one, other in pairwise([search, tabs, body, status])
        ),
        "the tabs in a line": len(at[".autolora-tabs button"]) == 4 and _in_line(*at[".autolora-tabs button"]),
        "the status at the end of the panel": abs(status[3] - root[3]) <= 2,
        "most of the room is for what is shown": _height(body) > 0.6 * _height(root),
        "it is as wide as the panel": _width(body) > 0.97 * _width(root),
    }


def _width(box: Box) -> int:
    return box[2] - box[0]


def _height(box: Box) -> int:
    return box[3] - box[1]


def _below(upper: Box, lower: Box) -> bool:
    return lower[1] >= upper[3] - 1


def _left_of(one: Box, other: Box) -> bool:
    return one[2] <= other[0] + 1


def _in_line(*boxes: Box) -> bool:
    """From left to right, without overlap, their middles at one height."""
    middles = [(box[1] + box[3]) / 2 for box in boxes]
    return all(_left_of(one, other) for one, other in pairwise(boxes)) and max(middles) - min(middles) <= 5


def _within(inner: Box, outer: Box) -> bool:
    return all(inner[side] >= outer[side] - 1 for side in (0, 1)) and all(
        inner[side] <= outer[side] + 1 for side in (2, 3)
    )
