"""Shared fixtures: a seed, a writer of small real LoRA files, and the real ComfyUI imported in this process.

``comfy`` and ``pack`` need a ComfyUI folder: ``COMFYUI_PATH``, or the one ``scripts/test.py`` unpacks into the cache.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from comfy_local import NO_COMFY, comfy_path
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("AUTOLORA_SHARED", ROOT.parent / "shared"))
# Appended, not put first: the pack's nodes/ and ComfyUI's nodes.py share a name, and ComfyUI must win.
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

EMOJI_HIDDEN, EMOJI_DEPTH = 256, 4


def real_loras() -> list[Path]:
    """The real LoRA files beside the checkout; an empty list where there are none."""
    return sorted((SHARED / "data" / "loras").glob("*.safetensors"))


def emoji_shapes(blocks: int = EMOJI_DEPTH) -> dict[str, tuple[int, int]]:
    """Module name → (out, in) of the demo base's linear layers (SD3 layout, hidden 256)."""
    width, shapes = EMOJI_HIDDEN, {}
    for block in range(blocks):
        for stream in ("x_block", "context_block"):
            name = f"joint_blocks.{block}.{stream}"
            shapes[f"{name}.attn.qkv"] = (3 * width, width)
            if stream == "x_block" or block < EMOJI_DEPTH - 1:
                shapes[f"{name}.attn.proj"] = (width, width)
                shapes[f"{name}.mlp.fc1"] = (4 * width, width)
                shapes[f"{name}.mlp.fc2"] = (width, 4 * width)
    return shapes


def emoji_factors(seed: int, rank: int = 2, blocks: int = EMOJI_DEPTH) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Module name → (down (r, in), up (out, r)), float32, drawn from ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(rank, n_in, generator=generator), torch.randn(n_out, rank, generator=generator) * 0.05)
        for name, (n_out, n_in) in emoji_shapes(blocks).items()
    }


def write_lora(path: Path, factors: dict, metadata: dict[str, str] | None = None, dtype=torch.float16) -> Path:
    """Write ``factors`` (see :func:`emoji_factors`) as a safetensors LoRA with PEFT suffixes; returns ``path``."""
    tensors = {}
    for name, (down, up) in factors.items():
        tensors[f"diffusion_model.{name}.lora_A.weight"] = down.to(dtype).contiguous()
        tensors[f"diffusion_model.{name}.lora_B.weight"] = up.to(dtype).contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata)
    return path


@pytest.fixture(autouse=True)
def seed() -> int:
    """Every test starts from the same random state."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    return 0


@pytest.fixture
def tiny_lora(tmp_path: Path) -> Callable[..., Path]:
    """``tiny_lora("sub/name.safetensors", seed=1, metadata={…})`` → path of a real file under tmp_path/loras."""

    def make(name: str, seed: int = 0, rank: int = 2, metadata: dict[str, str] | None = None, **how) -> Path:
        return write_lora(tmp_path / "loras" / name, emoji_factors(seed, rank, **how), metadata)

    return make


def comfy_folder() -> Path:
    """The ComfyUI folder the tests use; fails, saying how to get one, when there is none."""
    folder = comfy_path()
    if not (folder / "folder_paths.py").is_file():
        pytest.fail(f"no ComfyUI in {folder}: {NO_COMFY}")
    return folder


@pytest.fixture(scope="session")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The real ComfyUI on CPU in this process, with empty user, models and output folders; yields ``folder_paths``."""
    folder, cwd, argv = comfy_folder(), os.getcwd(), sys.argv
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    sys.argv = ["comfy", "--cpu"]
    options = importlib.import_module("comfy.options")
    options.enable_args_parsing()
    folder_paths = importlib.import_module("folder_paths")
    importlib.import_module("comfy.model_management")
    importlib.import_module("comfy.utils")
    sys.argv = argv
    scratch = tmp_path_factory.mktemp("comfy")
    folder_paths.set_user_directory(str(scratch / "user"))
    folder_paths.set_output_directory(str(scratch / "output"))
    yield folder_paths
    os.chdir(cwd)


@pytest.fixture(scope="session")
def pack(comfy: ModuleType) -> ModuleType:
    """The pack loaded as ComfyUI loads it: from its folder, as a package with a name of its own."""
    name = "autolora_pack"
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
