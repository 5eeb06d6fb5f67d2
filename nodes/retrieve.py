"""Node "Retrieve LoRAs from Prompt": index and prompt → the LoRAs that fit, their trigger words, the reasons."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from ..autolora_core.encode.spaces import FAMILIES as FAMILIES_THAT_ANSWER
from ..autolora_core.fusion.file_names import spelled, without_ending
from ..autolora_core.fusion.requests import stack_entries
from ..autolora_core.library.encoders import OF_CLIP, known_towers
from ..autolora_core.library.index import Library
from ..autolora_core.library.report import weights_line
from ..autolora_core.retrieve.cards import retrieve_cards
from ..autolora_core.retrieve.choices import FIRST_TRIGGERS, apply_choices, read_choices
from ..autolora_core.retrieve.names import Names, lines_of
from ..autolora_core.retrieve.near import Near
from ..autolora_core.retrieve.selection import Pick, Selection
from ..autolora_core.wording import lines_apart, shown
from .bar import Bar
from .later import BY_LETTERS, quick_tower, read_later, wanted_first
from .preview_source import OFF, picture_source
from .retrieve_inputs import AUTO, WITHIN, optional_inputs, required_inputs
from .tower import shared_tower

WORTH_A_LINE = 0.01  # probability below which a LoRA left out is not mentioned


def choose_family(asked: str, model: str | None, indexed: Sequence[str]) -> tuple[str | None, str]:
    """The base family to search, and why. ``model`` is the connected MODEL's family (None when none is connected),
    ``indexed`` the families in the index. None leaves the choice to the search (the largest family)."""
    if asked != AUTO:
        other = f" The model connected looks like {model}." if model not in (None, asked, "unknown") else ""
        return asked, f"Base model {asked}, as chosen.{other}"
    if model not in (None, "unknown"):
        return model, f"Base model {model}, recognised from the model's layers."
    doubt = "The model's base is not one this pack knows. " if model == "unknown" else ""
    if len(indexed) == 1:
        return indexed[0], f"{doubt}Base model {indexed[0]}: the index holds no other."
    if not indexed:
        return None, f"{doubt}The index holds no LoRA of a known base model."
    return None, f"{doubt}No base model is given: connect the model or choose a family."


def why_not_asked(use_weights: bool, model: str | None, clip: bool, searched: str | None) -> str:
    """Why the LoRAs are not asked through the model, and how to have it done; empty when they are.

    ``model`` is the connected MODEL's family (None without one), ``clip`` whether one is connected, ``searched`` the
    family searched.
    """
    absent = " and ".join(name for name, there in (("model", model is not None), ("clip", clip)) if not there)
    if not use_weights:
        return "LoRAs were not asked through the model: use_weights is off."
    if absent:
        return f"LoRAs were not asked through the model: connect {absent} to find those that nobody described."
    if model not in FAMILIES_THAT_ANSWER:
        return "LoRAs were not asked through the model: it is not known which of its layers read text."
    if model != searched:
        return f"LoRAs were not asked through the model: it is of {model}, the LoRAs searched are for {searched}."
    return ""


def _model_states(model: Any, clip: Any) -> Any:
    from .bridge_states import ModelStates

    return ModelStates(model, clip)


def _near(model: Any, known: Any, searched: str | None, wanted: str) -> Near:
    """The model's size and lineage, where it is of the family searched."""
    if known is None or known.name != searched:
        return Near(wanted=wanted)
    from .bridge_paths import model_lineage

    return Near(known.variant or "", model_lineage(model, known.name), wanted)


def _tower_for(library: Library, family: str | None, clip: Any) -> Any:
    """The CLIP as a text tower, where an encoder was trained for it (Train LoRA Encoder with this CLIP)."""
    if clip is None or family is None:
        return None
    if not any(name.startswith(OF_CLIP) for name in known_towers(library.store, family)):
        return None
    from .clip_tower import ClipTower

    tower = ClipTower(clip)
    found = library.encoder(family, tower.id)
    return tower if found is not None and found.usable else None


def _comparable(text: str) -> str:
    return " ".join(re.sub(r"[\\_]", " ", text).casefold().split())


def _escaped(trigger: str) -> str:
    """Brackets are weights in a prompt; those of a trigger word are meant as they stand."""
    return re.sub(r"(?<!\\)([()])", r"\\\1", trigger)


def prompt_with_triggers(
    prompt: str, picks: Iterable[Pick], words: Mapping[str, Sequence[str]] | None = None
) -> tuple[str, list[str]]:
    """The prompt with each pick's first trigger words (or those that ``words`` has under its name) appended, those left
    out that stand in it already."""
    added: list[str] = []
    for pick in picks:
        for trigger in pick.triggers[:FIRST_TRIGGERS] if words is None else words[pick.name]:
            present = re.sub(r"\\(?=[()])", "", ", ".join([prompt, *added]))
            wanted = _comparable(re.sub(r"\\(?=[()])", "", trigger))
            if wanted and not re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", _comparable(present)):
                added.append(_escaped(trigger))
    head = prompt.rstrip().rstrip(",")
    return (", ".join([head, *added] if head else added) if added else prompt), added


def extend_stack(stack: Sequence[tuple] | None, picks: Iterable[Pick]) -> list[tuple[str, float, float]]:
    """A new LORA_STACK: the incoming entries without empty slots, then the picks that are not in it yet (whatever the
    separators, with or without ending)."""
    extended = stack_entries(stack)
    present = {without_ending(spelled(name)) for name, _, _ in extended}
    for pick in picks:
        if without_ending(spelled(pick.name)) not in present:
            extended.append((pick.name, pick.strength, pick.strength))
    return extended


def _percent(part: float | None) -> str:
    return "–" if part is None else f"{part:.0%}"


def _line(pick: Pick) -> str:
    parts = [("weights", pick.parts.weights), ("text", pick.parts.text), ("words", pick.parts.lexical)]
    if pick.parts.response is not None:
        parts.insert(0, ("in the model", pick.parts.response))
    if pick.parts.picture is not None:
        parts.append(("previews", pick.parts.picture))
    shares = ", ".join(f"{name} {_percent(part)}" for name, part in parts)
    role = f"{pick.role}, " if pick.role else ""
    return f"- {shown(pick.name)}: {role}{pick.score:.0%} ({shares}). {pick.reason}"


def selection_report(selection: Selection, why_family: str, added: Sequence[str]) -> str:
    """Every decision with its reason. Lists and blank lines stay apart in Preview as Text, which may show Markdown."""
    lines = [f"Prompt: {selection.prompt}", "", why_family]
    near = [miss for miss in selection.misses if miss.score >= WORTH_A_LINE]
    if selection.picks:
        lines += ["", "Picked:", *(f"{_line(pick)} Strength {pick.strength:g}." for pick in selection.picks)]
    if selection.none_reason:
        lines += ["", selection.none_reason.partition(" Nearest: ")[0] if near else selection.none_reason]
    if added:
        lines += ["", f"Trigger words added to the prompt: {', '.join(added)}"]
    if near:
        lines += ["", "Nearest of those left out:", *(_line(miss) for miss in near)]
    if selection.notes:
        lines += ["", "Besides:", *(f"- {note}" for note in selection.notes)]
    return lines_apart("\n".join(lines))


class AutoLoRARetrieve:
    """Finds the LoRAs that fit a prompt, or says that none does."""

    TITLE = "Retrieve LoRAs from Prompt"
    CATEGORY = "AutoLoRA"
    DESCRIPTION = (
        "Chooses the LoRAs that fit the prompt, by what their weights say and by their names, tags and trigger words, "
        "and says why. Connect the model, so that LoRAs made for another base stay out, and the CLIP as well, so that "
        "LoRAs nobody described are found too: each is asked what it does to the prompt's words inside the model. When "
        "nothing fits, nothing is chosen."
    )
    RETURN_TYPES = ("LORA_SELECTION", "LORA_STACK", "STRING", "STRING")
    RETURN_NAMES = ("selection", "lora_stack", "prompt", "report")
    OUTPUT_TOOLTIPS = (
        "The choice with its reasons, for Gated Multi-LoRA Apply.",
        "The same as a LORA_STACK, for other packs' nodes. Apply takes either; with both, each LoRA is used once.",
        "The prompt with the trigger words of the chosen LoRAs that it lacked; for CLIP Text Encode.",
        "What was chosen and why, and what was nearly chosen.",
    )
    FUNCTION = "retrieve"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": required_inputs(), "optional": optional_inputs()}

    def retrieve(
        self, index: dict, prompt: str, family: str, top_k: int, threshold: float, strength: float, pinned: str,
        banned: str, use_weights: bool, use_text: bool, model: Any = None, clip: Any = None,
        lora_stack: list | None = None, choices: str = "", previews: str = OFF,
    ) -> dict[str, Any]:  # fmt: skip
        from ..autolora_core.retrieve.retrieve import retrieve
        from .bridge_paths import model_family, model_folders, open_index

        bar, wished = Bar(), read_choices(choices)
        family, _, wanted = family.partition(WITHIN)
        known = model_family(model) if model is not None else None
        base = known and known.name
        with open_index(index) as library:
            quick = quick_tower(library)
            entries = library.entries()
            indexed = sorted({entry.family for entry in entries} - {"unknown"})
            chosen, why = choose_family(family, base, indexed)
            unasked = why_not_asked(use_weights, base, clip is not None, chosen)
            found = retrieve(
                library,
                prompt,
                family=chosen,
                top_k=top_k,
                threshold=threshold,
                pinned=lines_of(pinned),
                banned=lines_of(banned),
                use_weights=use_weights,
                use_text=use_text,
                strength=strength,
                tower=_tower_for(library, chosen, clip) or quick or shared_tower(model_folders()),
                base=None if unasked else _model_states(model, clip),
                progress=bar,
                near=_near(model, known, chosen, wanted),
                pictures=picture_source(library, previews),
            )
            unread = [*weights_line(entries), *([BY_LETTERS] if quick else [])]
            wanted_first(library, [pick.name for pick in (*found.picks, *found.misses)])
            read_later(library)
        bar.finish()
        names = Names(entry.name for entry in entries)
        chosen = apply_choices(found, wished, names)
        own = Names(entry.name for entry in entries if entry.family in (found.family, "unknown"))
        selection, beside = chosen.selection, partial(names.beside, own=own)
        words, added = prompt_with_triggers(prompt, selection.picks, chosen.words)
        report = selection_report(selection, "\n\n".join(filter(None, [why, unasked, *unread])), added)
        result = (selection.to_json(), extend_stack(lora_stack, selection.picks), words, report)
        return {"ui": {"text": [report], "autolora": [retrieve_cards(found, chosen, added, beside)]}, "result": result}
