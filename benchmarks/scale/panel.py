"""The library panel at a hundred thousand LoRAs, in a real browser on ComfyUI's own front end: how long frames take
while one scrolls, and how long a letter takes from the key to the rows it leaves.

Frames are those that the browser asks for (``requestAnimationFrame``): 16.7 ms apart when nothing is late. The answer
to a letter is counted from the ``input`` event to the frame in which the rows of the new list stand, the panel's own
wait for further letters included.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results_file import REPO
from benchmarks.scale.made_up_library import ROOT, prompts
from benchmarks.scale.query import kept_library
from scripts._lib import browser
from scripts._lib.server import ComfyServer

SCRIPT = Path(__file__).with_name("panel.mjs")
WORDS = (
    "otter",
    "water",
    "castle style",
    "anna",
    "fox v2",
    "neon",
    "comic ink",
    "red",
    "face watercolour",
    "blueprint",
)


def measure(quick: bool = False) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """A library of 100,000 (quick: 1,000); every search three times (quick: once)."""
    count, times = (1000, 1) if quick else (100_000, 3)
    seen = _seen(kept_library(count), times)
    rows = [
        {"what": name, "library": count, **_spread(np.array(seen[name]))}
        for name in (
            "frames scrolling",
            "frames by the wheel",
            "frames on the map",
            "search by words",
            "search by meaning",
        )
    ]
    rows.append(
        {"what": "elements", "library": count, "rows": max(seen["elements"]), "first_list_ms": seen["first list"]}
    )
    frames = np.array([*seen["frames scrolling"], *seen["frames by the wheel"]])
    figures = {
        "panel_frame_p95_ms_100k": float(np.percentile(frames, 95)),
        "panel_map_frame_p95_ms_100k": float(np.percentile(seen["frames on the map"], 95)),
        "panel_search_p95_ms_100k": float(np.percentile(seen["search by words"], 95)),
        "panel_meaning_p95_ms_100k": float(np.percentile(seen["search by meaning"], 95)),
    }
    return figures, rows


def _seen(library: Path, times: int) -> dict[str, Any]:
    chromium = browser.find()
    with tempfile.TemporaryDirectory() as scratch:
        libraries = Path(scratch) / "base" / "user" / "autolora"
        libraries.mkdir(parents=True)
        (libraries / "many").symlink_to(library, target_is_directory=True)
        with ComfyServer(Path(scratch) / "base", models={"loras": [Path(ROOT)]}) as server:
            server.client.post("/settings", {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False})
            job = {"url": server.url, "profile": f"{scratch}/profile", "words": WORDS * times,
                   "prompts": prompts(10 * times)}  # fmt: skip
            command = [str(chromium.node), str(SCRIPT), json.dumps(job)]
            done = subprocess.run(
                command, cwd=REPO, env=chromium.env(), stdout=subprocess.PIPE, encoding="utf-8", check=True
            )
    return json.loads(done.stdout)


def _spread(times: np.ndarray) -> dict[str, float]:
    return {"count": len(times), **{f"p{p}_ms": float(np.percentile(times, p)) for p in (20, 50, 80, 95)}}
