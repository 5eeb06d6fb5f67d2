"""One plain sentence for every decision."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .score import Evidence, Scorer
from .select import Choice
from .selection import Neighbour
from .spans import Span

_FIELDS = {
    "title": "its title",
    "trigger": "its trigger word",
    "tag": "its tag",
    "tags": "its tags",
    "description": "its description",
}
CLEAR, HINT = 0.5, 0.2


def reason(scorer: Scorer, spans: Sequence[Span], evidence: Evidence, choice: Choice) -> str:
    """Which words of the prompt a LoRA matched, and by what evidence."""
    at = choice.span, choice.lora
    proofs = []
    if evidence.phrase[at] >= 0:
        phrase = scorer.sayings.phrase(int(evidence.phrase[at]))
        field, said = _FIELDS[phrase.field], _short(phrase.text)
        text, lexical = float(evidence.text[at]), float(evidence.lexical[at])
        if lexical >= CLEAR:
            proofs.append((lexical, f"{field} {'say' if field.endswith('s') else 'says'} “{said}”"))
        elif text >= CLEAR:
            proofs.append((text, f"{field} “{said}” {'mean' if field.endswith('s') else 'means'} nearly the same"))
        else:
            verb = "are" if field.endswith("s") else "is"
            proofs.append((text, f"{field} “{said}” {verb} only distantly related"))
    answer = float(evidence.response[at])
    if not math.isnan(answer):
        responds = (
            "responds clearly" if answer >= CLEAR else "responds a little" if answer >= HINT else "hardly responds"
        )
        proofs.append((answer, f"in the model it {responds} ({answer:.0%})"))
    picture = math.nan if evidence.picture is None else float(evidence.picture[at])
    if picture >= HINT:
        strength = "point clearly to it" if picture >= CLEAR else "hint at it"
        proofs.append((picture, f"its previews {strength} ({picture:.0%})"))
    weights = float(evidence.weights[at])
    # An encoder that sees nothing would contradict what words or the model show; its share stands in the numbers.
    if not math.isnan(weights) and (weights >= HINT or not proofs):
        strength = "point clearly to it" if weights >= CLEAR else "hint at it" if weights >= HINT else "do not show it"
        proofs.append((weights, f"its weights {strength} ({weights:.0%})"))
    if not proofs:
        return f"Compared with “{spans[choice.span].text}”: neither words nor usable weights to go on."
    proofs.sort(key=lambda proof: -proof[0])
    # One of those left out that is as good as unrelated must not read like a match.
    verb = "Matches" if choice.score >= HINT else "Compared with"
    return f"{verb} “{spans[choice.span].text}”: {' and '.join(text for _, text in proofs)}."


def miss_reason(why: str, matched: str) -> str:
    """A miss: the same evidence, after why it was left out."""
    return f"{why} {matched}"


def neighbours(near: Sequence[Neighbour], has_words: bool, chosen: bool) -> str:
    """Whose weights a LoRA's are nearest to, as one more sentence; empty when none stands out.

    A LoRA left out that speaks for itself needs no witness.
    """
    if not near or (has_words and not chosen):
        return ""
    named = [f"“{_short(neighbour.words)}” ({neighbour.similarity:.2f})" for neighbour in near]
    whose = " and ".join(filter(None, [", ".join(named[:-1]), named[-1]]))
    return f" {'Its' if has_words else 'No words of its own; its'} weights are nearest to {whose}."


def none_reason(scorer: Scorer, threshold: float, misses: Sequence[tuple[str, float, str]], families: str) -> str:
    """Why nothing was chosen. ``misses`` holds (name, probability, words) of the nearest, best first."""
    count = len(scorer.entries)
    if not count:
        return f"No LoRA was added: the library holds none for this base model{families}."
    nearest = "; ".join(f"{name} for “{words}” ({score:.0%})" for name, score, words in misses)
    near = f" Nearest: {nearest}." if nearest else ""
    plural = f"none of the {count} LoRAs fits" if count > 1 else "the only LoRA does not fit"
    return f"No LoRA was added: {plural} this prompt with a probability of {threshold:.0%} or more.{near}"


def _short(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
