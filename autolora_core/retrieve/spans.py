"""A prompt taken apart into phrases that one LoRA each could explain.

No parser and no model: function words and punctuation end a phrase, the last word of a phrase is its head, and the
handful of ways in which English says *manner* ("in X style", "in the style of X", "X of a Y" with X a kind of picture)
tell style from subject.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from .words import FILLER, FUNCTION, MANNERS, WORD, stem

MAX_PHRASE = 6
MAX_WORDS = 200
# Every span costs a pass of the text tower; of a very long prompt the parts of phrases are given up first.
MAX_SPANS = 256
_SETTING = frozenset({"at", "during", "by"})
_STYLE_WORDS = frozenset({"style", "styled", "styles", "aesthetic"})
_NOISE = re.compile(r"<[^<>]*>|\bembedding:\S+|\bBREAK\b|(?<=\d):(?=\d)|:\s*-?\d+(?:\.\d+)?(?=\s*[)\]])")
_LITERAL = re.compile(r"\\([()\[\]])")

Hint = Literal["style", "subject"] | None


@dataclass(frozen=True)
class Token:
    """One word of the prompt. ``clause`` counts the punctuation before it; ``content`` is false for joining words."""

    text: str
    stem: str
    clause: int
    content: bool
    filler: bool


@dataclass(frozen=True)
class Span:
    """A phrase: ``text`` as written, ``words`` the indices of its meaningful tokens, ``hint`` what its grammar says.

    ``partial`` counts meaningful words of its phrase that it leaves out; ``headless`` is true when the phrase's head
    (its last word) is among them: then it is a modifier ("snowy" of "snowy mountain"). ``joined`` is true for several
    phrases taken together, ``setting`` for a time or place ("at dusk") that seldom calls for a LoRA; ``stems`` are
    those of the whole phrase.
    """

    text: str
    words: frozenset[int]
    hint: Hint = None
    partial: int = 0
    headless: bool = False
    joined: bool = False
    setting: bool = False
    stems: frozenset[str] = frozenset()


def as_picture(words: str) -> str:
    """How a base model is asked for a manner of drawing: LoRAs answer a picture in that manner more than its bare
    name (on the shipped styles half a deviation to one and a half)."""
    return f"a picture in {words}" if says_style(words) else f"a picture in {words} style"


def says_style(words: str) -> bool:
    """Whether a phrase calls itself a style."""
    return bool(_STYLE_WORDS.intersection(words.lower().split()[-1:]))


def tokenise(prompt: str) -> list[Token]:
    """Words of a prompt without weights, brackets and ``<lora:…>`` marks."""
    text = _NOISE.sub(" ", _LITERAL.sub(r"\1", prompt))
    tokens, clause, end = [], 0, 0
    for match in WORD.finditer(text):
        if re.search(r"[^\s\-_'’]", text[end : match.start()]):
            clause += 1
        end = match.end()
        word = match.group().lower().replace("’", "'")
        tokens.append(Token(word, stem(word), clause, word not in FUNCTION, word in FILLER))
        if len(tokens) == MAX_WORDS:
            break
    return _joined_manners(tokens)


def _joined_manners(tokens: list[Token]) -> list[Token]:
    """"black and white" is one word in effect: its "and" ends no phrase, and "black" alone is not asked for."""
    joined: list[Token] = []
    for token in tokens:
        joined.append(token)
        if [one.text for one in joined[-3:]] == ["black", "and", "white"]:
            joined[-3:] = [replace(joined[-3], text="black and white", stem="black and white")]
    return joined


def decompose(prompt: str) -> list[Span]:
    """Every phrase of ``prompt`` that is offered to the LoRAs, longest first, each set of words once.

    Whole phrases, their parts, two phrases joined by "of", and the prompt without its styles.
    """
    tokens = tokenise(prompt)
    found: dict[frozenset[int], Span] = {}

    def offer(span: Span) -> None:
        # The same words may be met as part of a longer phrase and as a phrase of their own: the latter knows more.
        old = found.get(span.words)
        if span.words and (old is None or (old.partial, not old.hint) > (span.partial, not span.hint)):
            found[span.words] = span

    pieces = [piece for phrase in _phrases(tokens) for piece in _by_manner(tokens, *phrase)]
    for piece in pieces:
        for span in _parts(tokens, *piece):
            offer(span)
    for span in _joined(tokens, pieces) + _wholes(tokens, pieces):
        offer(span)
    kept = sorted(found.values(), key=lambda span: (span.headless, span.partial, min(span.words), span.text))
    return sorted(kept[:MAX_SPANS], key=lambda span: (-len(span.words), min(span.words), span.text))


def _phrases(tokens: list[Token]) -> list[tuple[int, int]]:
    """Runs of meaningful words inside a clause, [start, stop); runs of filler alone are dropped."""
    runs, start = [], None
    for i, token in enumerate([*tokens, Token("", "", -1, False, False)]):
        broken = not token.content or (start is not None and token.clause != tokens[start].clause)
        if start is not None and broken:
            runs.append((start, i))
            start = None
        if token.content and start is None:
            start = i
    return [run for run in runs if any(not tokens[i].filler for i in range(*run))]


def _by_manner(tokens: list[Token], start: int, stop: int) -> list[tuple[int, int, Hint]]:
    """Cut a phrase where a known manner meets something else, and say what grammar knows of each piece."""
    if stop - start > 1 and tokens[stop - 1].text in _STYLE_WORDS:
        return [(start, stop - 1, "style")]
    before, after = [t.text for t in tokens[max(0, start - 3) : start]], tokens[stop].text if stop < len(tokens) else ""
    if before[-2:] == ["style", "of"] or before[-3:] == ["style", "of", "the"] or before[-3:] == ["style", "of", "a"]:
        return [(start, stop, "style")]
    length = _manner_at(tokens, start, stop, from_end=True)
    if length == stop - start:
        # "blueprint of …", "in watercolour", "as a mosaic", and a clause that is nothing but a manner
        alone = (start == 0 or tokens[start - 1].clause != tokens[start].clause) and (
            stop == len(tokens) or tokens[stop].clause != tokens[start].clause
        )
        manner = after == "of" or before[-1:] in (["in"], ["as"]) or before[-2:-1] in (["in"], ["as"]) or alone
        return [(start, stop, "style" if manner else None)]
    if length:
        return [(start, stop - length, None), (stop - length, stop, "style" if after == "of" else None)]
    length = _manner_at(tokens, start, stop, from_end=False)
    if length:
        return [(start, start + length, "style"), (start + length, stop, "subject")]
    return [(start, stop, None)]


def _manner_at(tokens: list[Token], start: int, stop: int, from_end: bool) -> int:
    """Length of the longest known manner at one end of a phrase, 0 when there is none."""
    for length in range(min(3, stop - start), 0, -1):
        at = stop - length if from_end else start
        if " ".join(token.stem for token in tokens[at : at + length]) in MANNERS:
            return length
    return 0


def _parts(tokens: list[Token], start: int, stop: int, hint: Hint) -> list[Span]:
    """A piece and every window of it; windows that lack the head are modifiers. A known manner is one word in effect
    ("pixel art" is no kind of "art")."""
    inside = _meaning(tokens, start, stop)
    stems = frozenset(tokens[i].stem for i in inside)
    setting = start > 0 and tokens[start - 1].text in _SETTING
    if _manner_at(tokens, start, stop, from_end=True) == stop - start:
        return [Span(_text(tokens, start, stop), inside, hint, setting=setting, stems=stems)]
    spans = []
    for i in range(start, stop):
        for j in range(i + 1, min(stop, i + MAX_PHRASE) + 1):
            words = _meaning(tokens, i, j)
            headless = bool(inside) and max(inside) not in words
            spans.append(Span(_text(tokens, i, j), words, hint, len(inside - words), headless, False, setting, stems))
    return spans


def _joined(tokens: list[Token], pieces: list[tuple[int, int, Hint]]) -> list[Span]:
    """Neighbours joined by "of": "tower of London", "lord of the rings"."""
    spans = []
    for (start, stop, left), (second, end, right) in zip(pieces[:-1], pieces[1:], strict=True):
        between = [token.text for token in tokens[stop:second]]
        if between[:1] == ["of"] and set(between) <= {"of", "the"} and left is right is None:
            spans.append(Span(_text(tokens, start, end), _meaning(tokens, start, end), joined=True))
    return spans


def _wholes(tokens: list[Token], pieces: list[tuple[int, int, Hint]]) -> list[Span]:
    """Each clause, and the whole prompt, without the pieces that are styles."""
    spans = []
    matter = [piece for piece in pieces if piece[2] != "style"]
    groups = [[p for p in matter if tokens[p[0]].clause == clause] for clause in sorted({t.clause for t in tokens})]
    for group in [*groups, matter]:
        if len(group) > 1:
            text = _text(tokens, *group[0][:2])
            for (_, stop, _), (start, end, _) in zip(group[:-1], group[1:], strict=True):
                text += f" {_bridge(tokens, stop, start)}{_text(tokens, start, end)}"
            words = frozenset().union(*(_meaning(tokens, start, stop) for start, stop, _ in group))
            spans.append(Span(text, words, joined=True))
    return spans


def _bridge(tokens: list[Token], stop: int, start: int) -> str:
    """The joining words between two pieces; nothing when something else stands there."""
    joining = tokens[stop:start]
    return "".join(f"{token.text} " for token in joining) if all(not token.content for token in joining) else ""


def _meaning(tokens: list[Token], start: int, stop: int) -> frozenset[int]:
    return frozenset(i for i in range(start, stop) if tokens[i].content and not tokens[i].filler)


def _text(tokens: list[Token], start: int, stop: int) -> str:
    return " ".join(token.text for token in tokens[start:stop])
