"""Libraries for the tests of the panel: a small real one, hostile names, and a hundred thousand rows."""

from __future__ import annotations

import hashlib
import html
import json
import sqlite3
from pathlib import Path

from conftest import emoji_factors, write_lora
from PIL import Image

from autolora_core.encode.towers import LexicalTower
from autolora_core.library.index import Library
from autolora_core.library.store import now

MARK = "window.autoloraRan=1"
IMAGE = f"<img src=x onerror={MARK}>"
HOSTILE = (IMAGE, f'"><svg onload={MARK}>', f"[otter](javascript:{MARK})", "otter\u202egnp.exe", "`{{7*7}}`")
FAMILIES = ("sdxl", "flux", "sd15")
WORDS = ("otter", "castle", "volcano", "sunflower", "tractor", "rocket", "cupcake", "anchor")


def small(folder: Path, loras: Path) -> None:
    """A real library of real files: six LoRAs with words and previews, one of them louder, hostile names, a copy, a
    damaged file."""
    for seed, word in enumerate(WORDS[:6]):
        write_lora(loras / f"{word}.safetensors", emoji_factors(seed, blocks=1), tags(word))
        Image.new("RGB", (64, 48), (40 * seed, 90, 160)).save(loras / f"{word}.preview.png")
    for seed, name in enumerate(HOSTILE):
        said = tags(html.escape(name)) | {"modelspec.title": f"Trap {html.escape(name)}"}
        write_lora(loras / f"{name}.safetensors", emoji_factors(20 + seed, blocks=1), said)
    louder = {name: (down, 2 * up) for name, (down, up) in emoji_factors(4, blocks=1).items()}
    write_lora(loras / "stronger tractor.safetensors", louder, tags("plough"))
    (loras / "copy of otter.safetensors").write_bytes((loras / "otter.safetensors").read_bytes())
    (loras / f"broken {IMAGE}.safetensors").write_bytes(b"<html>")
    with Library.open(folder) as library:
        library.scan({"loras": loras})
        library.fit(LexicalTower())


def tags(word: str) -> dict[str, str]:
    return {"ss_tag_frequency": json.dumps({"train": {word: 40}})}


def many(folder: Path, loras: Path, count: int) -> None:
    """``count`` rows of files that do not exist, straight into a library: a second or two for a hundred thousand."""
    Library.open(folder).close()
    contents, files, root = [], [], str(loras).encode()
    for i in range(count):
        digest = hashlib.sha256(b"%d" % i).hexdigest()
        title = f"{WORDS[i % len(WORDS)]} number {i}"
        text = json.dumps({"title": title, "tags": [f"shelf {i % 7}"], "triggers": [], "description": "", "source": ""})
        name = b"made/%06d.safetensors" % i
        contents.append(
            (digest, 10**7, FAMILIES[i % 3], "", "[]", "lora", None, 16, "[]", None, "[0,0,0]", "[]", 1, now())
        )
        files.append((root, name, root + b"/" + name, 10**7, 0, digest, "", text, "", "", b"", "[]", now()))
    with sqlite3.connect(folder / "library.sqlite") as db:
        db.executemany(f"INSERT INTO contents VALUES ({','.join('?' * 14)})", contents)
        db.executemany(
            "INSERT INTO files (root, name, path, size, mtime_ns, hash, sidecars, text, base_model, autov3, preview,"
            f" problems, date) VALUES ({','.join('?' * 13)})",
            files,
        )
        db.execute("UPDATE meta SET value = CAST(value AS INTEGER) + 1 WHERE key = 'generation'")
    db.close()
