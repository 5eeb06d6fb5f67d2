"""``python scripts/workflows.py [NAME …]`` writes ``workflows/<name>.json`` anew from ``workflows/api/<name>.json``.

Places, sizes, groups and notes stay as they are in the UI file; nodes, values, wires and the inputs that nodes have
come from the API file and from a real ComfyUI with this pack, started for it. ``--check`` only says which files differ.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts._lib.paths import REPO
from scripts._lib.server import ComfyServer
from scripts._lib.workflow_ui import complete

FOLDER = REPO / "workflows"


def main(arguments: list[str]) -> int:
    """The exit code: 1 where ``--check`` found a difference."""
    parser = argparse.ArgumentParser(prog="python scripts/workflows.py", description=__doc__)
    parser.add_argument("names", nargs="*", help="which workflows (default: all)")
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    names = options.names or sorted(path.stem for path in (FOLDER / "api").glob("*.json"))
    with tempfile.TemporaryDirectory() as base, ComfyServer(Path(base)) as server:
        offered = server.client.object_info()
    other = 0
    for name in names:
        api = json.loads((FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8"))
        path = FOLDER / f"{name}.json"
        before = path.read_text(encoding="utf-8")
        after = json.dumps(complete(api, json.loads(before), offered), indent=2, ensure_ascii=False) + "\n"
        if after != before:
            other += 1
            print(f"{path.name} {'differs' if options.check else 'written'}")
            if not options.check:
                path.write_text(after, encoding="utf-8", newline="\n")
    print(f"{len(names)} workflows, {other} {'differ' if options.check else 'changed'}")
    return 1 if options.check and other else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
