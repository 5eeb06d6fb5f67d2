"""Pictures of the embedded world: fetch the icon sets from npm, choose the subjects, rasterise them all.

    python -m zoo.pictures [--jobs 2]

writes `<cache>/zoo/pictures.npy` (uint8, (N, 128, 128, 3), on white) and `pictures.json` (rows, keywords,
categories). Each style is kept as its own part, so an interrupted run goes on where it was. Share-alike sets
(openmoji, emojione-v1) are never read.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from zoo.cache import cache_dir, read_json, write_json, write_npy, zoo_dir

log = logging.getLogger("zoo.pictures")
SIZE = 128
MIN_SETS = 6
# style -> (npm package, version, licence)
SVG_SETS: dict[str, tuple[str, str, str]] = {
    "noto": ("@iconify-json/noto", "1.2.9", "Apache-2.0"),
    "noto-v1": ("@iconify-json/noto-v1", "1.2.5", "Apache-2.0"),
    "twemoji": ("@iconify-json/twemoji", "1.2.5", "CC-BY-4.0"),
    "fluent-emoji-flat": ("@iconify-json/fluent-emoji-flat", "1.2.6", "MIT"),
    "fluent-emoji": ("@iconify-json/fluent-emoji", "1.2.7", "MIT"),
    "fluent-emoji-high-contrast": ("@iconify-json/fluent-emoji-high-contrast", "1.2.6", "MIT"),
    "emojione": ("@iconify-json/emojione", "1.2.3", "CC-BY-4.0"),
    "emojione-monotone": ("@iconify-json/emojione-monotone", "1.2.1", "CC-BY-4.0"),
}
WEBP_STYLE = "fluent-emoji-3d"
WEBP_SET = ("@lobehub/fluent-emoji-3d", "1.1.0", "MIT")
KEYWORD_SET = ("emojilib", "4.0.3", "MIT")
STYLES: tuple[str, ...] = (*SVG_SETS, WEBP_STYLE)
_NAMED_BY = (
    "fluent-emoji-flat",
    "fluent-emoji-high-contrast",
    "twemoji",
    "noto",
)  # sets whose chars.json names code points
_LEFT_OUT = re.compile(
    r"skin-tone|^keycap|-oclock$|-thirty$|^flag-(?!in-hole)|(?<!lowered)(?<!raised)-flag$|^crossed-flags$|^input-|^circled-m$"
    r"|^(a|ab|b|o|p|cl|cool|free|id|new|ng|ok|sos|up|vs|japanese-[a-z-]+)-button"
)


def tarball(package: str, version: str) -> Path:
    """The package's npm tarball in the cache, fetched with `npm pack` when absent.

    Raises:
        ConnectionError: npm is not there or could not fetch it, in npm's words.
    """
    folder = cache_dir() / "downloads" / "npm"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{package.lstrip('@').replace('/', '-')}-{version}.tgz"
    if not path.exists():
        npm = shutil.which("npm")  # the whole path: on Windows it is npm.cmd, which its bare name does not start
        if npm is None:
            raise ConnectionError("npm fetches the pictures and is not on the PATH: install Node.js, which brings it")
        with tempfile.TemporaryDirectory(
            prefix="part-", dir=folder
        ) as part:  # npm writes slowly; a kill leaves a piece
            command = [npm, "pack", f"{package}@{version}", "--pack-destination", part]
            done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")
            if done.returncode:
                raise ConnectionError(f"npm could not fetch {package} {version}:\n{done.stderr[-2000:]}")
            os.replace(Path(part) / path.name, path)
        log.info("fetched %s %s (%.1f MB)", package, version, path.stat().st_size / 1e6)
    return path


def member(package: str, version: str, name: str) -> bytes | None:
    """One file of a package, or None when it has no such file."""
    with tarfile.open(tarball(package, version)) as tar:
        try:
            handle = tar.extractfile(f"package/{name}")
        except KeyError:
            return None
        return handle.read() if handle else None


@cache
def _set_json(style: str, name: str) -> dict[str, Any]:
    package, version, _ = SVG_SETS[style]
    data = member(package, version, name)
    return json.loads(data) if data else {}


def _code(text: str) -> str:
    """A code point string without variation selectors: '2764-fe0f' -> '2764'."""
    return text.lower().replace("_", "-").replace("-fe0f", "")


@cache
def code_names() -> dict[str, str]:
    """Code points ('1f9a6') -> icon name ('otter'), from the sets that say so."""
    names: dict[str, str] = {}
    for style in _NAMED_BY:
        for code, name in _set_json(style, "chars.json").items():
            names.setdefault(_code(code), name)
    return names


@cache
def webp_names() -> dict[str, str]:
    """Icon name -> file in the 3-D package."""
    with tarfile.open(tarball(*WEBP_SET[:2])) as tar:
        files = [n for n in tar.getnames() if n.endswith(".webp")]
    return {code_names()[code]: f for f in sorted(files) if (code := _code(Path(f).stem)) in code_names()}


def icon_names(style: str) -> set[str]:
    """All names a style draws, aliases included."""
    if style == WEBP_STYLE:
        return set(webp_names())
    icons = _set_json(style, "icons.json")
    return set(icons["icons"]) | set(icons.get("aliases", {}))


def choose_subjects() -> list[str]:
    """Names at least six of the nine sets draw, without tones, flags, clock faces, keycaps and letter buttons;
    sorted.
    """
    count = Counter(name for style in STYLES for name in icon_names(style))
    return sorted(n for n, c in count.items() if c >= MIN_SETS and not _LEFT_OUT.search(n))


def svg(style: str, name: str) -> str:
    """The icon as a whole SVG document, aliases and flips resolved, centred on a square."""
    icons = _set_json(style, "icons.json")
    flips: list[dict[str, Any]] = []
    while name not in icons["icons"]:
        alias = icons["aliases"][name]
        flips.append(alias)
        name = alias["parent"]
    icon = icons["icons"][name]
    left, top = (icon.get(k, icons.get(k, 0)) for k in ("left", "top"))
    width, height = (icon.get(k, icons.get(k, 16)) for k in ("width", "height"))
    body = icon["body"].replace("currentColor", "#000")
    for alias in flips:
        sx, sy = (-1 if alias.get(k) else 1 for k in ("hFlip", "vFlip"))
        cx, cy = left + width / 2, top + height / 2
        turn = 90 * alias.get("rotate", 0)
        body = f'<g transform="translate({cx} {cy}) rotate({turn}) scale({sx} {sy}) translate({-cx} {-cy})">{body}</g>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{2 * SIZE}" height="{2 * SIZE}" '
        f'viewBox="{left} {top} {width} {height}">{body}</svg>'
    )


def _on_white(data: bytes) -> np.ndarray:
    """Encoded picture -> uint8 (128, 128, 3), transparent parts white."""
    from PIL import Image

    image = Image.open(io.BytesIO(data)).convert("RGBA")
    if image.size != (SIZE, SIZE):
        image = image.convert("RGBa").resize((SIZE, SIZE), Image.Resampling.LANCZOS).convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, image).convert("RGB"))


def rasterise(style: str, subjects: list[str]) -> tuple[list[str], np.ndarray]:
    """Draw a style: the subjects it has, and their pictures uint8 (n, 128, 128, 3)."""
    have = [s for s in subjects if s in icon_names(style)]
    if style == WEBP_STYLE:
        files = webp_names()
        with tarfile.open(tarball(*WEBP_SET[:2])) as tar:
            wanted = {files[s] for s in have}
            data = {m.name: tar.extractfile(m).read() for m in tar if m.name in wanted}  # type: ignore[union-attr]
        return have, np.stack([_on_white(data[files[s]]) for s in have])
    import resvg_py

    # drawn at twice the size: fluent-emoji is cut out by masks, which resvg does not antialias
    draw = (resvg_py.svg_to_bytes(svg_string=svg(style, s), background="#ffffff", skip_system_fonts=True) for s in have)
    return have, np.stack([_on_white(bytes(d)) for d in draw])


def _part(style: str, subjects: list[str]) -> str:
    """Rasterise a style into its part files unless they are there for the same subjects."""
    folder = zoo_dir("parts")
    table, array = folder / f"{style}.json", folder / f"{style}.npy"
    if table.exists() and array.exists() and read_json(table)["asked"] == subjects:
        return style
    have, images = rasterise(style, subjects)
    write_npy(array, images)
    write_json(table, {"asked": subjects, "drawn": have})
    return style


def keywords() -> dict[str, list[str]]:
    """Icon name -> emojilib's words for it, without the name itself."""
    data = json.loads(member(*KEYWORD_SET[:2], "dist/emoji-en-US.json") or b"{}")
    result: dict[str, list[str]] = {}
    for char, words in data.items():
        name = code_names().get(_code("-".join(f"{ord(c):x}" for c in char)))
        if name:
            plain = [w.replace("_", " ").strip() for w in words if re.fullmatch(r"[a-zA-Z][a-zA-Z _-]+", w)]
            result[name] = [w for w in plain if w.lower() != name.replace("-", " ")]
    return result


def categories() -> dict[str, str]:
    """Icon name -> emoji category, from the noto set."""
    return {n: c for c, names in _set_json("noto", "metadata.json").get("categories", {}).items() for n in names}


@dataclass(frozen=True)
class Pictures:
    """All real pictures. `images[i]` is described by `rows[i] = {row, subject, style}`."""

    images: np.ndarray  # uint8 (N, 128, 128, 3), memory-mapped, read-only
    rows: list[dict[str, Any]]
    subjects: list[str]
    keywords: dict[str, list[str]]
    categories: dict[str, str]
    index: dict[tuple[str, str], int] = field(default_factory=dict)  # (subject, style) -> row

    @classmethod
    def load(cls) -> Pictures:
        """Open what `python -m zoo.pictures` wrote."""
        folder = zoo_dir()
        if not (folder / "pictures.json").exists():
            raise FileNotFoundError(f"{folder / 'pictures.json'} is not there; run `python -m zoo.pictures` first")
        table = read_json(folder / "pictures.json")
        index = {(r["subject"], r["style"]): r["row"] for r in table["rows"]}
        images = np.load(folder / "pictures.npy", mmap_mode="r")
        return cls(images, table["rows"], table["subjects"], table["keywords"], table["categories"], index)

    def rows_of(self, subject: str | None = None, style: str | None = None) -> list[int]:
        """Rows of one subject, of one style, or of both."""
        return [r["row"] for r in self.rows if subject in (None, r["subject"]) and style in (None, r["style"])]


def build(jobs: int = 2, every: int = 1) -> Pictures:
    """Rasterise what is missing, join the parts, and open the result; of the subjects only each `every`-th."""
    for package, version, _ in (*SVG_SETS.values(), WEBP_SET, KEYWORD_SET):
        tarball(package, version)
    subjects = choose_subjects()[::every]
    with ProcessPoolExecutor(jobs) as pool:
        for style in pool.map(_part, STYLES, [subjects] * len(STYLES)):
            log.info("drew %s", style)
    folder = zoo_dir("parts")
    tables = {s: read_json(folder / f"{s}.json")["drawn"] for s in STYLES}
    pairs = [(subject, style) for style in STYLES for subject in tables[style]]
    write_npy(zoo_dir() / "pictures.npy", np.concatenate([np.load(folder / f"{s}.npy", mmap_mode="r") for s in STYLES]))
    words, cats = keywords(), categories()
    table = {
        "rows": [{"row": i, "subject": a, "style": b} for i, (a, b) in enumerate(pairs)],
        "subjects": subjects,
        "keywords": {s: words.get(s, []) for s in subjects},
        "categories": {s: cats[s] for s in subjects if s in cats},
    }
    write_json(zoo_dir() / "pictures.json", table)
    log.info("%d pictures of %d subjects in %d styles", len(pairs), len(subjects), len(STYLES))
    return Pictures.load()


def main() -> None:
    """Command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, default=2)
    build(parser.parse_args().jobs)


if __name__ == "__main__":
    main()
