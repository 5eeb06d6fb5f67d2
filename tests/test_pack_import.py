"""Proves that importing the pack imports next to nothing, and that every node is there when it is asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {
    "faiss", "transformers", "open_clip", "tokenizers", "ray", "matplotlib", "sqlite3", "scipy", "torch", "numpy",
    "safetensors", "PIL",
}  # fmt: skip
LOAD = """
import importlib.util, json, sys
pack, stubs, ask = sys.argv[1:]
sys.path.insert(0, stubs)  # folder_paths: the pack exports its nodes where ComfyUI is
place = pack + "/__init__.py"
spec = importlib.util.spec_from_file_location("a pack-with_x_dots", place, submodule_search_locations=[pack])
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec.loader.exec_module(module)
for node in module.NODE_CLASS_MAPPINGS.values():
    node.RELATIVE_PYTHON_MODULE = "custom_nodes.here"
titles = {}
if ask == "ask":
    from inspect import isclass
    for name, node in module.NODE_CLASS_MAPPINGS.items():
        assert isclass(node) and node.__name__ == name and callable(getattr(node(), node.FUNCTION)), name
        assert node.RELATIVE_PYTHON_MODULE == "custom_nodes.here" and not hasattr(node, "NO_SUCH_THING")
        titles[name] = node.TITLE
    assert titles == module.NODE_DISPLAY_NAME_MAPPINGS
mine = [name for name in sys.modules if name.startswith("a pack-with_x_dots.autolora_core")]
print(json.dumps([sorted({name.partition(".")[0] for name in sys.modules}), mine, len(module.NODE_CLASS_MAPPINGS)]))
"""


def loaded(stubs: Path, ask: str) -> tuple[set[str], list[str], int]:
    """Top-level modules, the pack's own core modules and the number of nodes of a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(ROOT), str(stubs), ask],
        capture_output=True, encoding="utf-8", env=os.environ | {"PYTHONPATH": ""}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    modules, mine, count = json.loads(done.stdout)
    return set(modules), mine, count


@pytest.fixture
def stubs(tmp_path):
    (tmp_path / "folder_paths.py").write_text("")
    return tmp_path


def test_the_import_brings_in_nothing_heavy(stubs):
    modules, mine, count = loaded(stubs, "only")
    assert not modules & HEAVY and not mine and count == 17


def test_every_node_is_there_when_it_is_asked_for(stubs):
    modules, mine, _ = loaded(stubs, "ask")
    assert not modules & {"faiss", "transformers", "open_clip", "tokenizers", "ray", "matplotlib"}
    assert mine and "torch" in modules
