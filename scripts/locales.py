"""``python scripts/locales.py`` writes ``locales/en/nodeDefs.json`` from the nodes themselves, in a real ComfyUI.

The English file is what translators start from; ``tests/test_locales.py`` says what another language lacks. ``--check``
writes nothing and ends with 1 where the file is not that of the nodes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts._lib.paths import REPO
from scripts._lib.server import ComfyServer

FILE = REPO / "locales" / "en" / "nodeDefs.json"


def entry(info: dict[str, Any]) -> dict[str, Any]:
    """A node of ``/object_info`` in the front end's form for translations."""
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    tips = info.get("output_tooltips") or [""] * len(info["output"])
    return {
        "display_name": info["display_name"],
        "description": info["description"],
        "inputs": {name: {"name": name, "tooltip": spec[1]["tooltip"]} for name, spec in inputs.items()},
        "outputs": {
            str(place): {"name": name, "tooltip": tip}
            for place, (name, tip) in enumerate(zip(info["output_name"], tips, strict=True))
        },
    }


def written(offered: dict[str, Any]) -> str:
    """The file's text, for all of our nodes."""
    ours = {name: entry(info) for name, info in offered.items() if name.startswith("AutoLoRA")}
    return json.dumps(ours, indent=1, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python scripts/locales.py", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as base, ComfyServer(Path(base)) as server:
        text = written(server.client.object_info())
    if FILE.exists() and FILE.read_text(encoding="utf-8") == text:
        print(f"{FILE.name} is that of the nodes")
        return 0
    if not options.check:
        FILE.parent.mkdir(parents=True, exist_ok=True)
        FILE.write_text(text, encoding="utf-8", newline="\n")
    print(f"{FILE.name} {'differs from the nodes' if options.check else 'written'}")
    return int(options.check)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
