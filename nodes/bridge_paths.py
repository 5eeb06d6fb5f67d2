"""What the library nodes ask of ComfyUI: folders, progress, interruption, and which base a loaded model is.

One of the ``bridge*.py`` files, the only ones that import ``comfy.*`` or ``folder_paths``. Stateless; every lookup is
made when it is needed, because folders and models come and go while ComfyUI runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
from comfy_execution.utils import get_executing_context

from ..autolora_core.errors import LibraryError
from ..autolora_core.lora.families import Family, Layers, recognise_network
from ..autolora_core.lora.lineage import Lineage, lineage_of_network
from .bridge_features import weight_shape
from .bridge_plain import plain_layers
from .wires import require_model

PREVIEW_SIDE = 512
CLIP_FOLDERS = ("clip_vision", "text_encoders")


def lora_roots() -> dict[str, str]:
    """Label → folder of every loras root ComfyUI knows, in its order of search.

    Labels are the folder's last name, made unique by its parents where two roots share one.
    """
    roots: dict[str, str] = {}
    for folder in folder_paths.get_folder_paths("loras"):
        folder = os.path.abspath(folder)
        if folder in roots.values():
            continue
        rest, label = os.path.split(folder)
        while label in roots and rest != os.path.dirname(rest):
            rest, parent = os.path.split(rest)
            label = f"{parent}/{label}"
        roots[label if label not in roots else folder] = folder
    return roots


def user_directory() -> str:
    """ComfyUI's user directory, where libraries live in ``autolora/``."""
    return folder_paths.get_user_directory()


def open_index(handle: Any) -> Any:
    """The library, and the part of it, that a LORA_INDEX names; close it. Raises LibraryError.

    Handles may come over the API: only those of libraries in ComfyUI's user directory are opened, whatever else on the
    disk may be one.
    """
    from ..autolora_core.library.index import Library

    folder = handle.get("folder") if isinstance(handle, Mapping) else None
    libraries = os.path.join(user_directory(), "autolora")
    if folder is not None and _normal(os.path.dirname(str(folder))) != _normal(libraries):
        raise LibraryError(
            "the index names a folder that is none of ComfyUI's user directory",
            path=str(folder),
            key="index",
            fix="connect the index output of Encode LoRA Library",
        )
    return Library.from_handle(handle)


def _normal(path: str) -> str:
    return os.path.normcase(os.path.abspath(path.replace("\0", "")))


def model_folders() -> list[str]:
    """Folders that may hold encoders, gates and text towers: ``models/autolora`` in ComfyUI's models folder."""
    return [os.path.join(folder_paths.models_dir, "autolora")]


def table_folders() -> list[str]:
    """Where a table of captions may lie: ComfyUI's input, user and models folders, and those of LoRAs."""
    own = [folder_paths.get_input_directory(), user_directory(), folder_paths.models_dir]
    return [*own, *lora_roots().values()]


def for_menus(names: Iterable[str]) -> list[str]:
    """The names that a menu may show. Menus of ComfyUI's front end take an entry for markup (seen in 1.32.9): a file or
    folder called ``<img src=x onerror=…>`` would run in the page. No name that Windows takes has such a sign."""
    return [name for name in names if "<" not in name]


def lora_names() -> list[str]:
    """What ComfyUI's LoRA menus show."""
    return folder_paths.get_filename_list("loras")


def lora_path(name: str) -> str | None:
    """The file behind a name of the LoRA menus, or None."""
    return folder_paths.get_full_path("loras", name)


def clip_files() -> list[str]:
    """``folder/name`` of every .safetensors file that may hold a CLIP: CLIP vision models, then text encoders."""
    return [
        f"{folder}/{name}"
        for folder in CLIP_FOLDERS
        for name in folder_paths.get_filename_list(folder)
        if name.endswith(".safetensors")
    ]


def clip_path(choice: str) -> str | None:
    """The file behind an entry of :func:`clip_files`, or None."""
    folder, _, name = choice.partition("/")
    return folder_paths.get_full_path(folder, name) if folder in CLIP_FOLDERS else None


def progress_bar(total: int) -> Callable[..., None]:
    """``update(done, total, image=None)`` for the node that is running now; a PIL ``image`` is shown on it."""
    bar = comfy.utils.ProgressBar(total)

    def update(done: int, total: int, image: Any = None) -> None:
        bar.update_absolute(done, max(total, 1), image and ("JPEG", image, PREVIEW_SIDE))

    return update


def running_node() -> str | None:
    """The id of the node that is running in this thread, None outside a prompt."""
    context = get_executing_context()
    return None if context is None else context.node_id


def throw_if_interrupted() -> None:
    """Raise ComfyUI's interrupt when the user pressed Cancel."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def model_family(model: Any) -> Family:
    """The base family of a loaded MODEL, from the names and sizes of its layers; no tensor is copied or moved. Raises
    ``InputError`` for what is none."""
    require_model(model)
    return recognise_network(_layers(model))


def model_lineage(model: Any, family: str) -> Lineage:
    """Which checkpoint of its family a loaded MODEL descends from, where its layers show that at all."""
    return lineage_of_network(family, _layers(model))


def _layers(model: Any) -> Layers:
    network = model.model.diffusion_model
    with plain_layers(model):
        modules = list(network.named_modules())
    found = ((name.removeprefix("_orig_mod."), weight_shape(module)) for name, module in modules)
    return Layers((name, shape) for name, shape in found if shape is not None)
