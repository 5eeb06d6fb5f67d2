"""Node "Find LoRAs Like This": an index and a LoRA or a picture → what is like it; with neither, all there is twice."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ..autolora_core.encode.open_clip_images import OpenClipImageTower
from ..autolora_core.errors import TowerError
from ..autolora_core.library.index import Library
from ..autolora_core.library.pictures import PictureFound, PictureHit, find_by_picture
from ..autolora_core.library.similar import Found, Hit, find_like
from ..autolora_core.library.similar_words import found_report, picture_report, relation_words, versions_report
from ..autolora_core.library.versions import list_versions
from ..autolora_core.retrieve.selection import Parts, Pick, Selection
from ..autolora_core.wording import lines_apart
from .bar import Bar
from .retrieve import extend_stack
from .retrieve_inputs import AUTO, FAMILIES

NONE = "none"
RANK_OFFSET = 60  # of reciprocal rank fusion (Cormack, Clarke and Büttcher 2009)
_held: dict[tuple[str, int, int], OpenClipImageTower] = {}


def image_tower(path: str) -> OpenClipImageTower:
    """The tower in ``path``, read once and kept while the file stays the same; only the one in use."""
    status = os.stat(path)
    key = (path, status.st_size, status.st_mtime_ns)
    if key not in _held:
        _held.clear()
        _held[key] = OpenClipImageTower(path).load()
    return _held[key]


def picks_by_weights(found: Found, strength: float, versions: bool) -> list[Pick]:
    """What the search by weights hands on: LoRAs that are alike, and versions of the very same one when asked for.

    A re-scaled copy gets the strength at which it does the same.
    """
    wanted = ("alike", "merged") if not versions else ("alike", "merged", *_VERSIONS)
    return [_pick(hit, strength) for hit in found.hits if hit.relation.kind in wanted and hit.entry.hash != found.hash]


_VERSIONS = ("resaved", "rescaled", "refactorised", "part", "truncated", "epoch")
_SAME = ("resaved", "rescaled", "refactorised")


def _pick(hit: Hit, strength: float) -> Pick:
    entry, relation = hit.entry, hit.relation
    own = strength * relation.measured.factor if relation.kind in _SAME else strength
    score = min(1.0, abs(hit.cosine))
    reason = f"By its weights: {relation_words(relation)}."
    parts = Parts(weights=score)
    return Pick(entry.name, entry.hash, entry.path, "alike", own, score, parts, reason, entry.text.triggers)


def picks_by_picture(found: PictureFound, strength: float) -> list[Pick]:
    """What the search by picture hands on, all that it found."""
    return [_picture_pick(hit, strength) for hit in found.hits]


def _picture_pick(hit: PictureHit, strength: float) -> Pick:
    entry = hit.entry
    said = []
    if hit.picture is not None:
        said.append(f"its preview is like the picture (cosine {hit.picture:.2f})")
    if hit.words is not None:
        said.append(f"its words “{hit.caption[:60]}” fit the picture (cosine {hit.words:.2f})")
    best = max(likeness for likeness in (hit.picture, hit.words) if likeness is not None)
    parts = Parts(text=None if hit.words is None else min(1.0, max(0.0, hit.words)))
    reason = f"By the picture: {' and '.join(said)}."
    score = min(1.0, max(0.0, best))
    return Pick(entry.name, entry.hash, entry.path, "alike", strength, score, parts, reason, entry.text.triggers)


def fused(lists: Sequence[Sequence[Pick]], top_k: int) -> tuple[Pick, ...]:
    """Several ranked lists as one: a LoRA counts 1 / (60 + rank) in each."""
    scores: dict[str, float] = {}
    first: dict[str, Pick] = {}
    for picks in lists:
        for rank, pick in enumerate(picks):
            scores[pick.hash] = scores.get(pick.hash, 0.0) + 1 / (RANK_OFFSET + rank)
            first.setdefault(pick.hash, pick)
    order = sorted(first, key=lambda digest: (-scores[digest], first[digest].name))
    return tuple(first[digest] for digest in order[:top_k])


class AutoLoRAFindSimilar:
    """Finds what is like a LoRA or a picture; without either it lists what the library holds more than once."""

    TITLE = "Find LoRAs Like This"
    CATEGORY = "AutoLoRA"
    DESCRIPTION = (
        "Finds the LoRAs that are like a LoRA, by their weights: copies saved again, re-scaled, re-factorised or cut "
        "to a lower rank, parts, merges of two, other epochs of the same training, and others that do something alike. "
        "Or those that fit a picture, by their preview pictures and words, with a CLIP you own. With neither, it lists "
        "everything the library holds more than once."
    )
    RETURN_TYPES = ("LORA_SELECTION", "LORA_STACK", "STRING")
    RETURN_NAMES = ("selection", "lora_stack", "report")
    OUTPUT_TOOLTIPS = (
        "The LoRAs that are alike, for Gated Multi-LoRA Apply. The LoRA asked for is not among them.",
        "The same as a LORA_STACK, for other packs' nodes. Apply takes either; a LoRA in both is used once.",
        "What every file found is to the one asked for, with numbers. Show it with Preview as Text.",
    )
    FUNCTION = "find"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        from .bridge_paths import clip_files, for_menus, lora_names

        return {
            "required": {"index": ("LORA_INDEX", {"tooltip": "The index from Encode LoRA Library."})},
            "optional": _optional_inputs([NONE, *for_menus(lora_names())], [NONE, *for_menus(clip_files())]),
        }

    @classmethod
    def IS_CHANGED(cls, lora: str | None = NONE, clip: str | None = NONE, **_: Any) -> str:
        """Size and time of the LoRA and CLIP files named; other files come with the index."""
        from .bridge_paths import clip_path, lora_path

        paths = [find(name) for name, find in ((lora, lora_path), (clip, clip_path)) if name and name != NONE]
        states = [os.stat(path) for path in paths if path and os.path.isfile(path)]
        return repr([(paths[i], state.st_size, state.st_mtime_ns) for i, state in enumerate(states)])

    def find(
        self, index: dict, lora: str = NONE, image: Any = None, clip: str = NONE, family: str = AUTO, top_k: int = 5,
        strength: float = 1.0, versions: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        from .bridge_paths import open_index

        base = None if family == AUTO else family
        with open_index(index) as library:
            reports, lists, searched = [], [], base or ""
            if lora != NONE:
                found = find_like(library, _lora_path(lora), top_k=top_k, tick=Bar())
                searched = found.family
                reports.append(found_report(found))
                lists.append(picks_by_weights(found, strength, versions))
            if image is not None:
                seen = find_by_picture(
                    library, list(image), image_tower(_clip_path(clip)), family=base, top_k=top_k, tick=Bar()
                )
                reports.append(picture_report(seen))
                lists.append(picks_by_picture(seen, strength))
            if not reports:
                reports = _list_all(library, base)
        report = lines_apart("\n\n".join(reports))
        picks = fused(lists, top_k)
        why = None if picks else _why_none(lists)
        selection = Selection(prompt="", family=searched, picks=picks, none_reason=why, index=index)
        return {"ui": {"text": [report]}, "result": (selection.to_json(), extend_stack(None, picks), report)}


def _why_none(lists: Sequence[Sequence[Pick]]) -> str:
    if not lists:
        return "No LoRA and no picture was given: the report lists what the library holds more than once."
    return "No other LoRA in the index is alike."


def _list_all(library: Library, family: str | None) -> list[str]:
    families = sorted({entry.family for entry in library.entries(family)} - {"unknown"})
    reports = [versions_report(list_versions(library, one, Bar())) for one in families]
    return reports or ["The index holds no LoRA of a known base model" + (f" {family}." if family else ".")]


def _lora_path(name: str) -> str:
    from ..autolora_core.errors import SelectionError
    from .bridge_paths import lora_path

    path = lora_path(name)
    if path is None:
        raise SelectionError(
            f"the LoRA file {name} is not in any of ComfyUI's loras folders", key="lora", fix="press R and choose again"
        )
    return path


def _clip_path(choice: str) -> str:
    from .bridge_paths import clip_path

    path = clip_path(choice) if choice != NONE else None
    if path is None:
        raise TowerError(
            "searching by picture needs a CLIP with an image tower" + ("" if choice == NONE else f"; {choice} is gone"),
            key="clip",
            fix="choose one in clip: a CLIP vision file from models/clip_vision, or a whole CLIP model",
        )
    return path


def _optional_inputs(loras: list[str], clips: list[str]) -> dict[str, tuple]:
    return {
        "image": (
            "IMAGE",
            {"tooltip": "A picture to find LoRAs for; needs a CLIP below. Of several, what they share counts."},
        ),
        "lora": (loras, {"tooltip": "The LoRA to find others like. It need not be part of the index."}),
        "clip": (
            clips,
            {
                "tooltip": "CLIP with an image tower, for the search by picture: a CLIP vision file or a whole CLIP. "
                "With a text half in it, words are compared too."
            },
        ),
        "family": (
            [AUTO, *FAMILIES],
            {"tooltip": "Base model to search by picture or to list. auto: all. A LoRA is searched by its own."},
        ),
        "top_k": (
            "INT",
            {"default": 5, "min": 1, "max": 64, "step": 1, "tooltip": "At most this many LoRAs are handed on."},
        ),
        "strength": (
            "FLOAT",
            {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.05, "tooltip": "Strength given to every LoRA found."},
        ),
        "versions": (
            "BOOLEAN",
            {
                "default": False,
                "tooltip": "Also hand on copies and other versions of the same LoRA; a re-scaled copy at the strength "
                "that makes it the same. The report names them in any case.",
            },
        ),
    }
