"""The library panel on a running server: its routes are the ones stated, hostile queries reach nothing outside the
index and LoRA folders, and the panel in a real browser stays small and shows hostile names as text."""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import panel_world
import pytest
from conftest import ROOT
from panel_world import HOSTILE, IMAGE
from PIL import Image

from autolora_core.library.index import Library
from scripts._lib import browser
from scripts._lib.server import REPO, ComfyServer

pytestmark = pytest.mark.slow
COUNT = 100_000
STATED = ("libraries", "entries", "search", "similar", "duplicates", "problems", "map", "preview")
SCRIPT = Path(__file__).parent / "browser" / "panel.mjs"
BAD = (
    "..", "../..", "../small", "../../../../etc/passwd", "/etc/passwd", "C:\\Windows\\win.ini", "\\\\host\\share",
    "small/", "./small", "small\0", "\0", "%2e%2e%2f", "~", "", ".", "file:///etc/passwd", "small\n", "' OR 1=1 --",
    "\u202e", "ｓmall", "１２", "-1", "1e9", "9" * 30, "NaN", "0x10", "😀" * 50, "x" * 401, "{{7*7}}", IMAGE, "*", "%",
    "a" * 2000, "[]",
)  # fmt: skip
KEYS = ("library", "query", "family", "kind", "hash", "offset", "limit", "path", "file")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Base folder of the server and its loras folder; a secret picture lies beside both."""
    place = tmp_path_factory.mktemp("panel")
    loras, user = place / "loras", place / "base" / "user" / "autolora"
    panel_world.small(user / "small", loras)
    panel_world.many(user / "many", loras, COUNT)
    Image.new("RGB", (9, 9)).save(place / "secret.png")
    with Library.open(user / "small") as library:  # an index that was tampered with: a root that is none of ComfyUI's
        told = (os.fsencode(place / "secret.png"), os.fsencode(place), b"castle.safetensors")
        changed = library.store.db.execute("UPDATE files SET preview = ?, root = ? WHERE name = ?", told)
        assert changed.rowcount == 1
        library.store.bump()
    return place


@pytest.fixture(scope="module")
def server(place):
    packs = {"autolora": REPO, "panel_spy": ROOT / "tests" / "panel_spy"}
    with ComfyServer(place / "base", models={"loras": [place / "loras"]}, packs=packs) as server:
        server.client.post("/settings", {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False})
        yield server


def get(server: ComfyServer, path: str, connection: http.client.HTTPConnection | None = None, method: str = "GET"):
    """``(status, headers, body)``."""
    line = connection or http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    line.request(method, path)
    answer = line.getresponse()
    return answer.status, answer.headers, answer.read()


def rows(server: ComfyServer, route: str, **said) -> dict:
    query = "&".join(f"{key}={quote(str(value))}" for key, value in said.items())
    status, _, body = get(server, f"/autolora/{route}?{query}")
    assert status == 200, body
    return json.loads(body)


def test_the_running_server_has_the_stated_routes_and_no_others(server):
    told = json.loads(get(server, "/panel_spy")[2])
    pack = str(REPO / "nodes")
    ours = {
        (method, path) for method, path, file in told["routes"] if file.startswith(pack) or "autolora" in path.lower()
    }
    paths = {f"{twin}/autolora/{name}" for twin in ("", "/api") for name in STATED}
    folders = ("/extensions/autolora", "/api/workflow_templates/autolora")  # web/ and workflows/, served by ComfyUI
    files = {(method, folder) for method in ("GET", "HEAD") for folder in folders}
    assert ours - files == {(method, path) for method in ("GET", "HEAD") for path in paths}
    said = re.search(r"`GET /autolora/` ((?:`\w+`,? ?)+)", (ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    assert said and tuple(re.findall(r"\w+", said[1])) == STATED
    for name in STATED:
        assert get(server, f"/autolora/{name}?library=small", method="POST")[0] == 405


def test_the_routes_answer(server):
    assert [one["name"] for one in rows(server, "libraries")["libraries"]] == ["many", "small"]
    found = rows(server, "entries", library="small", query="otter")["rows"]
    otter = next(row for row in found if row["name"] == "otter.safetensors")
    assert rows(server, "entries", library="many", offset=99_990)["total"] == COUNT
    assert rows(server, "search", library="small", query="a volcano")["rows"][0]["name"] == "volcano.safetensors"
    (louder,) = rows(server, "entries", library="small", query="plough")["rows"]
    alike = rows(server, "similar", library="small", hash=louder["hash"])
    assert [row["name"] for row in alike["rows"]] == ["tractor.safetensors"] and alike["rows"][0]["score"] > 0.99
    assert rows(server, "similar", library="small", hash=otter["hash"])["rows"] == [], "its copy is itself"
    assert [row["same"] for row in rows(server, "duplicates", library="small")["rows"]] == [True, True]
    assert rows(server, "problems", library="small")["rows"][0]["name"] == f"broken {IMAGE}.safetensors"
    assert get(server, "/autolora/map?library=small")[2][:4] == b"ALM1"
    status, headers, body = get(server, f"/autolora/preview?library=small&hash={otter['hash']}")
    assert status == 200 and headers["Content-Type"] == "image/png" and body[:4] == b"\x89PNG"
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cross-Origin-Resource-Policy"] == "same-origin"


def hostile_queries(count: int, hashes: list[str]) -> list[str]:
    rng, out = random.Random(7), []
    values = [*BAD, "small", "many", "emoji", "lora", "otter", "0", "5", *hashes, "0" * 64, "~" + "0" * 20]
    for _ in range(count):
        said = {key: rng.choice(values) for key in rng.sample(KEYS, rng.randint(1, 5))}
        if rng.random() < 0.7:
            said["library"] = "small"  # past the first question
        if rng.random() < 0.2:
            said["hash"] = "../" * rng.randint(1, 4) + rng.choice(["secret.png", "loras/otter.preview.png", hashes[0]])
        query = "&".join(f"{key}={quote(value.encode('utf-8', 'surrogatepass'))}" for key, value in said.items())
        query = re.sub("%25", lambda m: rng.choice(["%25", "%", "%ff"]), query)
        path = rng.choice(["/autolora/", "/api/autolora/"]) + rng.choice(STATED)
        out.append(f"{path}?{query}")
    return out


def test_hostile_queries_reach_nothing_outside(server, place):
    hashes = [row["hash"] for row in rows(server, "entries", library="small")["rows"] if row["hash"]]
    castle = rows(server, "entries", library="small", query="castle")
    line = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    statuses: dict[int, int] = {}
    for path in hostile_queries(2500, hashes):
        status, headers, body = get(server, path, line)
        statuses[status] = statuses.get(status, 0) + 1
        assert status in (200, 400, 404), (path, body[:300])
        if headers["Content-Type"].startswith("application/json"):
            told = json.loads(body)
            assert status == 200 or told["error"]
            assert str(place) not in body.decode() and "passwd" not in json.dumps(told.get("rows", "")), path
        assert headers["X-Content-Type-Options"] == "nosniff"
    assert min(statuses.get(status, 0) for status in (200, 400, 404)) > 100, statuses
    assert castle["total"] == 0, "a file of a folder that is none of ComfyUI's is listed"
    spied = json.loads(get(server, "/panel_spy")[2])
    inside = [os.path.realpath(one) for one in (place / "loras", place / "base" / "user" / "autolora")]
    # What Python, its packages and the text tower are made of, and how many processors there are.
    known = [
        os.path.realpath(one) for one in (REPO, sys.prefix, sys.base_prefix, server.install.comfyui, "/proc", "/sys")
    ]
    folders = tuple(f"{one}{os.sep}" for one in inside + known)
    outside = [path for path in spied["opened"] if not path.startswith(folders) and path not in inside]
    assert outside == [] and spied["did"] == []
    assert [path for path in spied["written"] if not path.startswith(inside[1] + os.sep)] == []
    assert any(path.endswith("library.sqlite") for path in spied["opened"]), "the hook is deaf"
    assert any(path.endswith(".preview.png") for path in spied["opened"])


def test_the_panel_in_a_browser(server, tmp_path):
    chromium = browser.find()
    job = {"url": server.url, "profile": str(tmp_path / "profile"), "count": COUNT, "node": "AutoLoRARetrieve",
           "screenshots": os.environ.get("AUTOLORA_SCREENSHOTS", "")}  # fmt: skip
    command = [str(chromium.node), str(SCRIPT), json.dumps(job)]
    done = subprocess.run(command, env=chromium.env(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{done.stderr}\n{server.log_text()[-2000:]}"
    seen = json.loads(done.stdout)
    assert [error for error in seen["errors"] if "autolora" in error.lower() or "panel" in error.lower()] == []
    assert seen["elsewhere"] == [] and seen["alerts"] == []
    # A hundred thousand rows: few are elements, wherever one scrolls, and each says where it stands.
    assert seen["total"] == f"{COUNT:,} LoRAs"
    assert 10 < max(seen["elements"]) < 60
    assert seen["last"] == {
        "title": f"{panel_world.WORDS[(COUNT - 1) % 8]} number {COUNT - 1}",
        "at": str(COUNT),
        "of": str(COUNT),
    }
    assert seen["reopened"] == seen["last"]["title"], "it has forgotten where it was"
    assert seen["typed"] == ["otter number 0", "otter number 8"] and seen["chips"][0].startswith("All")
    assert seen["family"]["pressed"].startswith("flux") and 0 < seen["family"]["rows"] < COUNT
    # Keys: from the search into the list, down, into what can be done, and back to the search.
    assert seen["keys"] == {"active": "2", "details": True, "focus": "Similar to this", "slash": "autolora-search"}
    assert seen["pinned"] == ["made/000016.safetensors"] and "Pinned in" in seen["said"]
    # Hostile names: shown, run by nobody.
    shown = " ".join(seen["hostile"])
    assert [name for name in HOSTILE if name.replace("\u202e", "\ufffd") not in shown] == []
    assert (seen["ran"], seen["planted"]) == (0, [])
    assert seen["twice"] == 2 and seen["faulty"].startswith("broken <img") and seen["drawn"] > 200
    assert seen["card"] and seen["chosen"]
