"""What a training says to people: one verdict in a sentence, then the figures it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .contest import CHOSEN, CONTROL, RIDGE, SET
from .outcome import SHIPPED, Outcome

NAMES = {
    CHOSEN: "this encoder",
    RIDGE: "ridge regression",
    SET: "set transformer",
    SHIPPED: "the encoder that came ready",
    CONTROL: "control: layers and loudness only",
}
KINDS = {RIDGE: "ridge regression", SET: "a set transformer"}


def training_report(outcomes: Sequence[Outcome], notes: Sequence[str] = ()) -> str:
    """The report of Train LoRA Encoder: refusals last, after what was learnt."""
    if not outcomes:
        return "The index holds no LoRA of a known base model: there is nothing to learn from."
    parts = ["\n".join(_learnt(outcome)) for outcome in outcomes if not outcome.refused]
    refused = [f"{outcome.family}: not trained, {outcome.refused}." for outcome in outcomes if outcome.refused]
    table = [f"Captions table: {note}" for note in notes]
    return "\n\n".join([*parts, *(["\n".join(refused)] if refused else []), *(["\n".join(table)] if table else [])])


def _learnt(outcome: Outcome) -> list[str]:
    lines = [f"{outcome.family}: {verdict(outcome)}", "", *_table(outcome), "", _how(outcome)]
    lines += list(outcome.notes)
    if outcome.path:
        lines.append(f"Saved: {outcome.path} ({outcome.encoder_id}, {KINDS[outcome.kind]}).")
        lines.append("New LoRAs get vectors from it; train again when many have come, or when words have changed.")
    if outcome.again:
        lines.append("Nothing had changed since it was trained: the earlier result counts.")
    else:
        lines.append(f"It took {outcome.seconds:.0f} s.")
    return lines


def verdict(outcome: Outcome) -> str:
    """Whether the encoder knows anything of these files, in a sentence or two."""
    found, said = outcome.figures[CHOSEN], outcome.verdict
    first = (
        f"of {found.asks} LoRAs hidden from it, it puts {percent(found.recall_at_1)} first and "
        f"{percent(found.recall_at_5)} among the first five of {outcome.files} for their own words"
    )
    if not said.knows:
        why = (
            "no more than guessing would" if not said.above_chance
            else "no more than knowing which layers they change and how loudly would"
        )  # fmt: skip
        return (
            f"the encoder knows nothing of what these LoRAs show: {first}, {why}. Nothing was saved; "
            + (_stays(outcome) or "the index is searched as before.")
        )
    if outcome.behind_shipped:
        return f"not saved, the encoder that came ready does better: {first}. " + (
            f"For all that, {_stays(outcome)}" if outcome.stays else "That one stays in use."
        )
    return (
        f"the encoder knows something of what these LoRAs show: {first}. Guessing would put "
        f"{percent(outcome.chance[0])} first and {percent(outcome.chance[1])} among the first five."
    )


def _stays(outcome: Outcome) -> str:
    """Which encoder trained earlier is still used; empty when there is none."""
    if not outcome.stays:
        return ""
    return (
        f"the encoder trained earlier for this library stays in use: {outcome.stays}. To search without it, move that "
        "file away and encode again."
    )


def _table(outcome: Outcome) -> list[str]:
    """Figures with their 95 % intervals, one line a method."""
    lines = [f"{'hidden LoRAs found by their own words':<36}{'first':>18}{'in first five':>18}{'mean 1/rank':>22}"]
    for name in (CHOSEN, SET, RIDGE, SHIPPED, CONTROL):
        if name in outcome.figures:
            f = outcome.figures[name]
            cells = (
                f"{percent(f.recall_at_1)} {_between(f.recall_at_1_interval)}",
                f"{percent(f.recall_at_5)} {_between(f.recall_at_5_interval)}",
                f"{f.mrr:.2f} [{f.mrr_interval[0]:.2f}, {f.mrr_interval[1]:.2f}]",
            )
            lines.append(f"{NAMES[name]:<36}{cells[0]:>18}{cells[1]:>18}{cells[2]:>22}")
    first, five, mrr = outcome.chance
    lines.append(f"{'guessing':<36}{percent(first):>18}{percent(five):>18}{mrr:>22.2f}")
    return lines


def _between(interval: tuple[float, float]) -> str:
    return f"[{100 * interval[0]:.0f}, {100 * interval[1]:.0f}]"


def _how(outcome: Outcome) -> str:
    same = outcome.captioned - outcome.distinct
    copies = f" ({same} are copies, versions or namesakes of others)" if same else ""
    held = "each fifth was hidden in turn" if outcome.held_out_folds > 1 else "one fifth was hidden"
    text = (
        f"{outcome.captioned} of {outcome.files} files have words{copies}; {held}, copies and versions together. "
        "All files are candidates. In brackets: 95 % intervals."
    )
    if outcome.validated and outcome.kind == RIDGE:
        text += f" Ridge was taken: the set transformer did not beat it on {outcome.validated} validation asks."
    elif outcome.kind == SET:
        text += f" The set transformer ({outcome.epochs} epochs) beat ridge on {outcome.validated} validation asks."
    return text


def percent(share: float) -> str:
    """A share, to the percent; a tenth where it is small."""
    return f"{100 * share:.1f} %" if 0 < share < 0.0995 else f"{100 * share:.0f} %"


def where_to_put(path: Path) -> str:
    """For an encoder saved where no index looks."""
    return f"{path.parent} is not searched by Encode LoRA Library: move {path.name} into ComfyUI's models/autolora."
