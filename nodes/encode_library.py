"""Node "Encode LoRA Library": LoRA folders → an index that Retrieve searches."""

from __future__ import annotations

import logging
import os
import time
from typing import Any

from ..autolora_core.errors import LibraryError
from ..autolora_core.library.encoders import encoders_state, find_encoders
from ..autolora_core.library.folders import library_folder
from ..autolora_core.library.index import Library
from ..autolora_core.library.later import note_words, unread
from ..autolora_core.library.report import Summary, encode_report
from ..autolora_core.library.report_card import encode_card
from ..autolora_core.library.walk import Scope, folder_state
from ..autolora_core.retrieve.prepare import warm
from ..autolora_core.wording import lines_apart
from .bar import Bar
from .later import PACK_MODELS, read_later
from .tower import shared_tower, tower_state

log = logging.getLogger(__name__)
ALL_LORAS = "all loras"
NOW, LATER = "now", "later"
MAX_FOLDERS = 5000  # ComfyUI's own menus list as many files; what is left out can still be asked for by name
STEPS = (0.7, 0.1, 0.1, 0.1)
STEP_NAMES = ("Reading files", "Encoding weights", "Comparing files", "Words for the first prompt")
# Library folders this process has filled, and how often each had vanished since: a deleted library runs the node again.
_filled: dict[str, int] = {}


def folder_choices(roots: dict[str, str]) -> tuple[list[str], int]:
    """What the folder menu offers, and how many folders it leaves out: all, each loras root, then the first-level
    folders as ``root/folder``, up to :data:`MAX_FOLDERS`."""
    # ComfyUI also names roots that do not exist.
    there = {label: root for label, root in roots.items() if os.path.isdir(root)}
    below = [f"{label}/{name}" for label, root in there.items() for name in _folders_in(root)]
    return [ALL_LORAS, *there, *below[:MAX_FOLDERS]], max(0, len(below) - MAX_FOLDERS)


def _folders_in(root: str) -> list[str]:
    try:
        with os.scandir(root) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except OSError as error:
        log.warning("%s cannot be listed (%s): its folders are not in the menu", root, error)
        return []


def folder_tooltip(left_out: int) -> str:
    """What the menu is for, and how to choose a folder that is not in it."""
    menu = "Which LoRA files to index: all of them, or one of ComfyUI's loras folders."
    if left_out:
        menu += f" {left_out} more folders are not listed."
    return f"{menu} For a folder that is not listed write its name into name_filter, as in flux/people/*"


def why_no_folder(folder: str, roots: dict[str, str]) -> str:
    """Why ``folder`` cannot be indexed; empty when it can. Folders deeper down or beyond the menu's end are fine."""
    try:
        scope = scope_of(folder, "", roots)
    except LibraryError as error:
        return str(error)
    parts = scope.under.replace("\\", "/").split("/") if scope.under else []
    if ".." in parts or (parts and not os.path.isdir(os.path.join(*scope.roots.values(), *parts))):
        return f"there is no folder {folder}; press R to refresh the menu"
    return ""


def scope_of(folder: str, name_filter: str, roots: dict[str, str]) -> Scope:
    """The part of the LoRA folders that a choice of the menu means. Raises LibraryError for an unknown choice."""
    if folder == ALL_LORAS:
        return Scope.of(roots, "", name_filter)
    # The longest label first: "a/b" may be a root of its own.
    for label in sorted(roots, key=len, reverse=True):
        if folder == label or folder.startswith(f"{label}/"):
            return Scope.of({label: roots[label]}, folder[len(label) + 1 :], name_filter)
    raise LibraryError(
        "ComfyUI has no such loras folder", key=folder, fix="choose a folder from the menu; press R to refresh it"
    )


def _all_read(place: str, weights: str | None) -> str:
    """Changes once all weights that were to be read later are read."""
    if weights != LATER or not os.path.isdir(place):
        return ""
    with Library.open(place) as opened:
        return "" if unread(opened) else "read"


class AutoLoRAEncodeLibrary:
    """Reads every LoRA below a folder once and keeps what it learned."""

    TITLE = "Encode LoRA Library"
    CATEGORY = "AutoLoRA"
    DESCRIPTION = (
        "Reads your LoRA files once (weights, names, trigger words) and keeps what it learned in an index, so that "
        "Retrieve LoRAs from Prompt can find the right ones. New, moved and deleted files are noticed at the next run; "
        "unchanged files are not read again. LoRA folders are never written to."
    )
    RETURN_TYPES = ("LORA_INDEX", "STRING")
    RETURN_NAMES = ("index", "report")
    OUTPUT_TOOLTIPS = (
        "The index, for Retrieve LoRAs from Prompt.",
        "What was found: files by base model, problems and how to mend them, duplicates, speed.",
    )
    FUNCTION = "encode"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        from .bridge_paths import for_menus, lora_roots

        text = {"multiline": False}
        folders, left_out = folder_choices(lora_roots())
        folders = for_menus(folders)
        return {
            "required": {
                "folder": (folders, {"tooltip": folder_tooltip(left_out)}),
                "name_filter": (
                    "STRING",
                    {
                        **text,
                        "default": "",
                        "tooltip": "Only files whose name matches. Commas separate parts; a part is a piece of the "
                        "name, or a pattern with * and ?; -part leaves files out. Empty takes all.",
                    },
                ),
                "library": (
                    "STRING",
                    {
                        **text,
                        "default": "default",
                        "tooltip": "Name of the index. One is enough; give another name to keep indexes apart.",
                    },
                ),
                "force": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "tooltip": "Read every file again at every run, even those that have not changed.",
                    },
                ),
            },
            "optional": {
                "weights": (
                    [NOW, LATER],
                    {
                        "default": NOW,
                        "tooltip": "later: only the headers of new files are read now, so that words find them within "
                        "seconds; their weights are read in the background while no prompt runs, those first that "
                        "were picked, then the newest.",
                    },
                )
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, folder: str | None) -> bool | str:
        """Instead of ComfyUI's own check against the menu, so that scripts can name any folder; linked: None."""
        from .bridge_paths import lora_roots

        if folder is None:
            return True
        return why_no_folder(folder, lora_roots()) or True

    @classmethod
    def IS_CHANGED(cls, folder: str, name_filter: str, library: str, force: bool, weights: str | None = NOW) -> str:
        """Names, sizes and times of the files: a new LoRA runs the node again, an unchanged folder does not. Weights
        that were to be read later run it once more when all of them are read.

        Inputs that come from another node are None here; a change of theirs runs this node in any case.
        """
        from .bridge_paths import lora_roots, model_folders, user_directory

        place = str(library_folder(library or "", user_directory()))
        if place in _filled and not os.path.isdir(place):
            _filled[place] += 1
        state = f"{tower_state(model_folders())}|{encoders_state(model_folders())}"
        also = f"{place}|{_filled.get(place, 0)}|{state}|{time.time_ns() if force else ''}|{_all_read(place, weights)}"
        return folder_state(scope_of(folder or ALL_LORAS, name_filter or "", lora_roots()), also)

    def encode(self, folder: str, name_filter: str, library: str, force: bool, weights: str = NOW) -> dict[str, Any]:
        from .bridge_paths import lora_roots, model_folders, user_directory

        scope = scope_of(folder, name_filter, lora_roots())
        place, bar = library_folder(library, user_directory()), Bar(STEPS, STEP_NAMES)
        with Library.open(place) as opened:
            later = {"headers_only": weights == LATER}
            scan = opened.scan(scope, force=force, progress=bar, should_stop=bar.stopped, **later)
            bar.step = 1
            tower = shared_tower(model_folders())
            shipped = find_encoders([*model_folders(), PACK_MODELS], place.name)
            fitted = opened.fit(tower, progress=bar, should_stop=bar.stopped, shipped=shipped)
            bar.step = 2
            view = opened.view(scope)
            families = sorted({entry.family for entry in view.entries()} - {"unknown"})
            near = {family: view.compare_duplicates(family, bar) for family in families}
            bar.step = 3
            words, searches = opened.text_tower(tower), {}  # one open text store, closed with the library
            if weights == NOW:
                searches = {family: how for family in families if (how := warm(view, family, words, bar))}
            elif scan.added or scan.changed:
                note_words(opened, "")
            bar.finish()
            summary = Summary(
                scan, fitted, view.entries(), view.exact_copies(), near, str(place), view.unencoded(), searches
            )
            report = lines_apart(encode_report(summary))
            handle = view.handle
            read_later(view)
        _filled.setdefault(str(place), 0)
        return {"ui": {"text": [report], "autolora": [encode_card(summary)]}, "result": (handle, report)}
