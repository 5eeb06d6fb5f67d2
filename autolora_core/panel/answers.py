"""What the panel's routes answer: pages of rows of a library, as JSON. Nothing here takes or gives a path."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..encode.calibrate import sigmoid
from ..encode.threads import one_thread
from ..encode.towers import TextTower
from ..errors import LibraryError
from ..library.index import Library
from ..library.linked import linked_groups
from ..retrieve.evidence import hints, losses
from ..retrieve.finalists import Finalists
from ..retrieve.prepare import prepare
from ..retrieve.score import ROLE_WEIGHT, Evidence
from ..retrieve.spans import Span, decompose
from .asked import Asked
from .catalogue import Catalogue, Found, catalogue_of

Stop = Callable[[], bool]
MOST_RANKED = 100  # LoRAs that a search by meaning or by likeness lists
LEAST_LIKE = 0.15  # estimated cosine: of a hundred thousand unlike files none comes as near
LEAST_FIT = 0.01


class Stopped(Exception):
    """Nobody waits for the answer any more."""


def ticking(stop: Stop) -> Callable[..., None]:
    """A progress callback that raises :class:`Stopped` once ``stop()`` says so."""

    def tick(*_: object) -> None:
        if stop():
            raise Stopped

    return tick


def page(catalogue: Catalogue, found: Found, asked: Asked, extra: Sequence[dict] = (), **more: object) -> dict:
    """One page of ``found``; ``extra`` (n) is added to the rows, ``more`` to the answer."""
    places = found.rows[asked.offset : asked.offset + asked.limit].tolist()
    rows = catalogue.rows(places)
    for row, said in zip(rows, extra[asked.offset : asked.offset + asked.limit], strict=False):
        row |= said
    return {
        "generation": str(catalogue.generation), "total": len(found.rows), "offset": asked.offset, "rows": rows,
        "families": found.families, **more,
    }  # fmt: skip


def entries(library: Library, asked: Asked, stop: Stop) -> dict:
    """Files whose words contain the query; with ``hash`` the files of that content."""
    catalogue = catalogue_of(library)
    among = np.array(_places(catalogue, asked.hash), np.int64) if asked.hash else None
    return page(catalogue, catalogue.select(asked.query, asked.family, asked.kind, among), asked)


def problems(library: Library, asked: Asked, stop: Stop) -> dict:
    """Files that cannot be used, or of which there is something to say: all that Encode's card counts."""
    catalogue = catalogue_of(library)
    if "problems" not in catalogue.kept:
        reasons = {entry.name: why for entry, why in library.unencoded()}
        catalogue.kept["problems"] = catalogue.problems(reasons), reasons
    rows, reasons = catalogue.kept["problems"]
    answer = page(catalogue, catalogue.select(asked.query, asked.family, asked.kind, rows), asked)
    for row in answer["rows"]:
        why = "" if row["missing"] else reasons.get(row["name"], "")
        if why and not row["problems"]:
            row["problems"] = [why]
    return answer


def duplicates(library: Library, asked: Asked, stop: Stop) -> dict:
    """Files of one content, or nearly one LoRA by their weights as Encode compared them, group by group. Rows say their
    ``group`` and whether another file of it is the same to the byte."""
    catalogue = catalogue_of(library)
    if "groups" not in catalogue.kept:
        catalogue.kept["groups"] = _groups(catalogue, library)
    rows, said = catalogue.kept["groups"]
    found = catalogue.select(asked.query, asked.family, asked.kind, rows)
    extra = [said[at] for at in found.rows.tolist()]
    return page(catalogue, found, asked, extra, groups=len({one["group"] for one in extra}))


def _groups(catalogue: Catalogue, library: Library) -> tuple[np.ndarray, dict[int, dict]]:
    """Rows in the order of their groups, and what is said of each."""
    there = {
        digest: [at for at in places if not catalogue.entries[at].missing]
        for digest, places in catalogue.by_hash.items()
    }
    pairs = [pair for family in catalogue.families for pair in library.near_duplicates(family)]
    linked = {digest for pair in pairs for digest in pair}
    hashes = sorted(digest for digest, places in there.items() if len(places) > 1 or (places and digest in linked))
    members: dict[int, list[int]] = {}
    for digest, number in zip(hashes, linked_groups(hashes, pairs).tolist(), strict=True):
        members.setdefault(number, []).extend(there[digest])
    groups = sorted(sorted(places) for places in members.values() if len(places) > 1)
    said = {
        at: {"group": number, "same": len(there[catalogue.entries[at].hash]) > 1}
        for number, places in enumerate(groups)
        for at in places
    }
    return np.array([at for places in groups for at in places], np.int64), said


def similar(library: Library, asked: Asked, stop: Stop) -> dict:
    """The LoRAs whose weights are nearest to those of ``hash``: estimated cosines, no file is opened."""
    catalogue = catalogue_of(library)
    entry = catalogue.entries[_places(catalogue, asked.hash)[0]]
    grid = library.grid(entry.family, ticking(stop))
    if asked.hash not in grid.places:
        reasons = {one.hash: why for one, why in library.unencoded(entry.family)}
        why = reasons.get(asked.hash, "its weights have not been read yet: run Encode LoRA Library")
        return page(catalogue, catalogue.none, asked, note=f"Its weights cannot be compared: {why}.")
    cosines = grid.cosines(grid.rows[grid.places[asked.hash]])
    nearest = np.argsort(-cosines, kind="stable")[: MOST_RANKED + 1].tolist()
    ranked = [
        (at, {"score": round(float(cosines[i]), 3)})
        for i in nearest
        if grid.hashes[i] != asked.hash and cosines[i] >= LEAST_LIKE
        for at in catalogue.by_hash.get(grid.hashes[i], ())[:1]
    ]
    return _ranked(catalogue, ranked, asked, "by weights, estimated")


@one_thread()
def search(library: Library, asked: Asked, stop: Stop, tower: TextTower) -> dict:
    """The LoRAs that fit the words of a prompt, by Retrieve's own scores: ``score`` that it fits some part of it,
    ``weights`` and ``words`` what each says (None where it says nothing). Nothing is chosen and nothing is changed."""
    catalogue = catalogue_of(library)
    family = asked.family or next((name for name in catalogue.families if name != "unknown"), "")
    spans = decompose(asked.query)
    if not family or not spans:
        return page(catalogue, catalogue.none, asked, note="There are no words to go by.")
    scorer = prepare(library, family, tower, progress=ticking(stop)).scorer
    question = scorer.ask(spans)
    loras = Finalists(scorer, question, ROLE_WEIGHT * hints(spans), losses(spans), MOST_RANKED).first()
    evidence = scorer.evidence_of(question, spans, loras)
    best, span = evidence.logit.max(axis=0), evidence.logit.argmax(axis=0)
    ranked = []
    for column in _order(evidence, spans)[:MOST_RANKED].tolist():
        entry, at, score = scorer.entries[evidence.loras[column]], (span[column], column), float(sigmoid(best[column]))
        if score < LEAST_FIT:
            continue
        words = np.fmax(evidence.text[at], evidence.lexical[at])
        said = {"score": round(score, 3), "weights": _number(evidence.weights[at]), "words": _number(words)}
        # Of several files of one content the scorer's own; ids of places never change hands.
        ranked += [(place, said) for place in catalogue.by_hash.get(entry.hash, ())
                   if catalogue.entries[place].name == entry.name]  # fmt: skip
    return _ranked(catalogue, ranked, asked, f"for {family}, by words and weights")


def _order(evidence: Evidence, spans: Sequence[Span]) -> np.ndarray:
    """Best first: what fits several parts of the prompt, then the best of every part in turn, so that a hundred styles
    do not hide the one subject; then what does not fit, by its score."""
    apart = [at for at, span in enumerate(spans) if not span.joined] or list(range(len(spans)))
    logit = evidence.logit[apart]
    places = np.argsort(np.argsort(-logit, axis=1, kind="stable"), axis=1, kind="stable")
    fitted = (logit > 0).sum(axis=0)
    turn = np.where(fitted, places.min(axis=0), 0)
    return np.lexsort((evidence.loras, -logit.max(axis=0), turn, -fitted))


def _ranked(catalogue: Catalogue, ranked: Sequence[tuple[int, dict]], asked: Asked, how: str) -> dict:
    rows = np.array([at for at, _ in ranked], np.int64)
    return page(catalogue, catalogue.of_family(rows, ""), asked, [said for _, said in ranked], ranked=how)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 3)


def _places(catalogue: Catalogue, digest: str) -> list[int]:
    """Rows of a content. Raises LibraryError for one that the index does not know."""
    found = catalogue.by_hash.get(digest)
    if not found:
        raise LibraryError("the index holds no such LoRA", key="hash", fix="open the panel again")
    return found
