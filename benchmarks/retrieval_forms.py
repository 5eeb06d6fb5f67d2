"""The phrases of a prompt in the words in which captions say them: "an otter", not "otter"; "pixel art style", not
"pixel art".

A LoRA answers loudest to the very form it was trained on, so the form decides how well its answer can be told from
those of strangers. Grammar alone: a determiner opens a noun phrase, which goes on over a joining word until the next
determiner ("a notebook with decorative cover" | "on our invitation card"), a comma, or a manner; and all that stands
between "in" and "style" is one style ("in white chalk on black style").
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from autolora_core.retrieve.spans import Hint, Token, _by_manner, _meaning, _phrases, tokenise
from autolora_core.retrieve.words import MANNERS, stem

DETERMINERS = frozenset("a an the this that these those some my your his her its our their".split())
JOINING = frozenset("of with without over under in on at behind between".split())
# Words that end a phrase elsewhere but belong to a thing's name: "a thumbs up", "a knocked out face", "two hearts".
PARTICLES = frozenset("up down out off no not two three both".split())
# Words of asking: never part of what is asked for when they come first.
ASKING = frozenset(
    """please show give make draw paint create generate need want like could can would will should must say see think
    imagine get let""".split()
)
_COMPOUND = re.compile(r"[^\W_]+(?:-[^\W_]+)+")


@dataclass(frozen=True)
class Form:
    """``text`` to ask the LoRAs for, its ``role`` by grammar, the indices of its meaningful ``words``."""

    text: str
    role: Literal["style", "subject"]
    words: frozenset[int]


def caption_forms(prompt: str) -> list[Form]:
    """Every phrase of ``prompt`` once, as captions would say it, in the order of the prompt."""
    glued: dict[str, str] = {}
    tokens = tokenise(_COMPOUND.sub(lambda found: _glue(found.group(), glued), prompt))
    pieces = _with_whole_styles(tokens, [p for phrase in _phrases(tokens) for p in _by_manner(tokens, *phrase)])
    found: dict[str, Form] = {}

    def offer(start: int, stop: int, role: Literal["style", "subject"]) -> None:
        text = " ".join(glued.get(token.text, token.text) for token in tokens[start:stop])
        text = f"{text} style" if role == "style" else text
        found.setdefault(text, Form(text, role, _meaning(tokens, start, stop)))

    for start, stop, hint in pieces:
        if hint == "style":
            offer(start, stop, "style")
    for start, stop in _noun_phrases(tokens, [piece[:2] for piece in pieces if piece[2] != "style"]):
        offer(start, stop, "subject")
    return sorted((form for form in found.values() if form.words), key=lambda form: (min(form.words), form.text))


def _glue(compound: str, glued: dict[str, str]) -> str:
    """ "washed-out" is one word, though "out" alone would end a phrase; manners ("black-and-white") are known apart."""
    if " ".join(stem(word) for word in compound.lower().split("-")) in MANNERS:
        return compound
    whole = compound.replace("-", "'")  # an apostrophe joins a word
    glued[whole.lower()] = compound.lower()
    return whole


def _with_whole_styles(tokens: list[Token], pieces: list[tuple[int, int, Hint]]) -> list[tuple[int, int, Hint]]:
    """Pieces between "in" (or the start of a clause) and "style" become one piece; a determiner in between is no style,
    nor is anything before "of" ("in the style of …")."""
    for stop in [i for i, token in enumerate(tokens) if token.text == "style"]:
        start = stop
        while start and tokens[start - 1].clause == tokens[stop].clause and tokens[start - 1].text not in ("in", "as"):
            start -= 1
        words = {token.text for token in tokens[start:stop]}
        inside = [piece for piece in pieces if start <= piece[0] and piece[1] <= stop]
        if inside and not words & (DETERMINERS | ASKING):
            pieces = [piece for piece in pieces if piece not in inside] + [(start, stop, "style")]
    return sorted(pieces)


def _noun_phrases(tokens: list[Token], matter: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """[start, stop) of noun phrases with their determiner."""
    matter = [(_asked(tokens, *piece), piece[1]) for piece in matter]
    matter = [piece for piece in matter if piece[0] < piece[1]]
    while matter:
        start, stop = matter.pop(0)
        joined = False
        while matter and (link := _link(tokens, stop, matter[0][0])) and (joined or link != "and"):
            stop, joined = matter.pop(0)[1], True
        start, stop = _reach(tokens, start, -1, PARTICLES), _reach(tokens, stop - 1, 1, PARTICLES) + 1
        opened = _reach(tokens, start, -1, DETERMINERS)
        yield max(opened, start - 1), stop


def _reach(tokens: list[Token], at: int, step: int, over: frozenset[str]) -> int:
    """How far a phrase goes on over neighbouring words of one kind, inside its clause."""
    while (
        0 <= at + step < len(tokens)
        and tokens[at + step].text in over
        and tokens[at + step].clause == tokens[at].clause
    ):
        at += step
    return at


def _asked(tokens: list[Token], start: int, stop: int) -> int:
    """Where a phrase begins without the words of asking."""
    while start < stop and tokens[start].text in ASKING:
        start += 1
    return start


def _link(tokens: list[Token], stop: int, start: int) -> str:
    """The word that keeps two neighbouring phrases together, or nothing: "and" only does inside "with … and …"."""
    between = [token.text for token in tokens[stop:start]]
    if not between or tokens[stop - 1].clause != tokens[start].clause:
        return ""
    if between == ["of", "the"] or (len(between) == 1 and between[0] in JOINING | PARTICLES):
        return "of"
    return "and" if between == ["and"] else ""
