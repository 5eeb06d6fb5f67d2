"""LORA_SELECTION, LORA_STACK and what is chosen on cards, as they may come over the API: any JSON in their place."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

from autolora_core.fusion.lora_text import marks_text
from autolora_core.fusion.requests import merge_same_files, requests_of, stack_entries
from autolora_core.fusion.terms import terms_of
from autolora_core.retrieve.cards import retrieve_cards
from autolora_core.retrieve.choices import apply_choices, read_choices
from autolora_core.retrieve.selection import Selection

from .. import mutate
from ..memory import MIB
from ..oracle import Wrong

CASES = 18_000
PICK = {
    "name": "otter.safetensors",
    "hash": "ab" * 32,
    "path": "/loras/otter.safetensors",
    "role": "subject",
    "strength": 0.8,
    "score": 0.9,
    "parts": {"weights": 0.5, "text": None, "lexical": 1.0, "response": 0.1},
    "reason": "fits",
    "triggers": ["ottr"],
    "neighbours": [{"name": "fox", "words": "a fox", "similarity": 0.4}],
}
SELECTION = {
    "format": "autolora-selection/1",
    "prompt": "an otter",
    "family": "sd3",
    "picks": [PICK, PICK],
    "none_reason": None,
    "misses": [{key: one for key, one in PICK.items() if key != "role"}],
    "index": {},
    "encoder": None,
    "tower": "t",
    "notes": ["n"],
}
CHOICES = {
    "format": "autolora-choices/1",
    "loras": {"otter": {"strength": 0.5, "triggers": {"ottr": False, "mud": True}, "role": "style"}, "fox": {}},
}
STACK = [["otter.safetensors", 0.8, 0.6], ["fox", "1.0"], [None, 1, 1], ["None", 1.0, 1.0]]


def bound(size: int) -> int:
    return 8 * MIB + 60 * size


def _fresh() -> dict:
    return {"selection": SELECTION, "stack": STACK, "terms": None, "strength": 1.0, "choices": CHOICES}


def seeds(folder: Path) -> list[bytes]:
    return [mutate.dumped(_fresh())]


def make(rng: random.Random, parent: bytes) -> bytes:
    return mutate.as_json(rng, parent, _fresh)


def run(data: bytes, folder: Path) -> None:
    document = mutate.loaded(data)
    given = document if isinstance(document, dict) else {"selection": document, "stack": document, "terms": document}
    strict = given.get("selection")
    requests = requests_of(strict, given.get("stack"))
    for one in requests:
        whole = [one.name, one.origin, one.near, one.sha256, *one.triggers, *([] if one.path is None else [one.path])]
        if not all(isinstance(text, str) for text in whole) or not all(
            map(math.isfinite, (one.model, one.clip, one.asked))
        ):
            raise Wrong(f"a request of wrong types: {one!r:.200}")
    merge_same_files((one.name, one) for one in requests)
    stack_entries(given.get("stack"))
    marks_text(requests)
    terms_of(given.get("terms"))
    chosen = given.get("choices")
    wishes = {} if chosen is None else read_choices(chosen if isinstance(chosen, str) else json.dumps(chosen))
    if strict is not None:
        found = Selection.from_json(strict)
        again = Selection.from_json(found.to_json())
        if again != found:
            raise Wrong("a selection is another one after it was written and read")
        for pick in (*found.picks, *found.misses):
            if not math.isfinite(pick.strength) or not 0 <= pick.score <= 1:
                raise Wrong(f"a pick of strength {pick.strength} and score {pick.score}")
        applied = apply_choices(found, wishes, ["fox.safetensors"])
        if not all(math.isfinite(pick.strength) for pick in applied.selection.picks):
            raise Wrong("a choice made a strength that is no number")
        json.dumps(retrieve_cards(found, applied, []))
