"""What the pack adds to ComfyUI's start: its import, after all that ComfyUI imports anyway.

Each run is a process of the real ComfyUI that ``scripts/test.py`` fetches: PyTorch and ComfyUI's own modules first,
then the pack's folder in the way ComfyUI loads custom nodes. ``nodes_asked_ms`` is what comes later: the nodes' own
modules, read when ComfyUI's page first asks for their inputs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np

from benchmarks.results_file import REPO

RUNS = 7
_CHILD = """
import importlib.util, json, sys, time
comfy, pack = sys.argv[1:3]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, comfy)
began = time.perf_counter()
import torch
torch_s = time.perf_counter() - began
import comfy.options
comfy.options.enable_args_parsing()
import utils.extra_config, folder_paths, execution, server, nodes
import comfy.utils, comfy.model_management, comfy.sd, comfy.samplers
comfy_s = time.perf_counter() - began
before, began = set(sys.modules), time.perf_counter()
spec = importlib.util.spec_from_file_location("pack", pack + "/__init__.py", submodule_search_locations=[pack])
module = importlib.util.module_from_spec(spec)
sys.modules["pack"] = module
spec.loader.exec_module(module)
took, began = time.perf_counter() - began, time.perf_counter()
for node in module.NODE_CLASS_MAPPINGS.values():
    node.INPUT_TYPES()
asked = time.perf_counter() - began
added = sorted({name.partition(".")[0] for name in set(sys.modules) - before} - {"pack"})
print(json.dumps({"torch_ms": 1000 * torch_s, "comfy_ms": 1000 * comfy_s, "import_ms": 1000 * took,
                  "asked_ms": 1000 * asked, "nodes": len(module.NODE_CLASS_MAPPINGS), "added": added}))
"""


def one_run() -> dict[str, Any]:
    """Milliseconds until PyTorch and ComfyUI are there, what the pack took, and what else it brought in."""
    sys.path.append(str(REPO / "tests"))
    from comfy_local import comfy_path

    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(comfy_path()), str(REPO)],
        capture_output=True, encoding="utf-8", check=True, env=environment, cwd=comfy_path(),
    )  # fmt: skip
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(quick: bool = False) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The median of several starts (the first, which may compile, is not counted)."""
    runs = [one_run() for _ in range((1 if quick else RUNS) + 1)][1:]
    figures = {
        figure: float(np.median([run[name] for run in runs]))
        for figure, name in (
            ("import_ms", "import_ms"), ("nodes_asked_ms", "asked_ms"), ("start_torch_ms", "torch_ms"),
            ("start_comfy_ms", "comfy_ms"),
        )
    }  # fmt: skip
    rows = [{"run": i, **{k: v for k, v in run.items() if k != "added"}, "added": " ".join(run["added"])}
            for i, run in enumerate(runs)]  # fmt: skip
    return figures, rows
