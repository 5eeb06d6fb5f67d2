"""How well each LoRA explains each phrase of a prompt, part by part.

    weights   z-score of  ⟨query(tower(phrase)), vector⟩  over the generic prompts → logistic, calibrated on the library
              bounded by the encoder's hit rate h:  1/p_weights − 1 = (1/p − 1) + (1/h − 1)
    response  z-score of what the LoRA does to the phrase's states in the base model → logistic, calibrated and bounded
              likewise (:mod:`.responding`); absent where no model is at hand
    text      tower cosine with the LoRA's own words, and its z-score over the generic prompts → logistic, stated
    lexical   overlap of exact words, rare ones counting more → logistic, stated

A part that has nothing to go on is absent, not zero. Text and lexical speak of the same words, so the larger counts;
weights and response are evidence of their own: ``p = 1 − (1 − p_weights)(1 − p_response)(1 − max(p_text, p_lexical))``.

The hit rate h is how often the encoder puts the right LoRA first when words are hidden (:func:`.odds.hit_rate`); no
z-score, however high, may claim more. The odds against a match are those its z-score leaves plus those of the encoder
being wrong altogether, so the order of claims stays, small ones hardly change, and a LoRA whose own words say the very
thing wins over one that an often mistaken encoder points at.

Everything is scored for some LoRAs or for all (:mod:`.finalists` finds those that matter), in float64: what a LoRA gets
does not depend on which others are scored with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from ..encode.calibrate import WEIGHT_FLOOR, Logistic
from ..encode.encoder import WeightEncoder
from ..encode.generic import GENERIC_PROMPTS
from ..encode.text_cache import CachedTower, cached
from ..encode.towers import LexicalTower, TextTower
from ..library.answers import CachedAnswers
from ..library.table import Table
from ..library.table_state import codes_of_arrays, codes_to_arrays
from .evidence import Asked, Evidence, hints, losses
from .odds import UNKNOWN_HIT_RATE, bounded, combine, hit_rate, weight_prior
from .picture_part import PicturePart
from .quick_weights import quick_weights
from .responding import MAX_PHRASES, RESPONSE_PRIOR, Progress, Responder, either
from .roles import along_kinds, said_role
from .sayings import RULER_BLOCK, Sayings, ranges, ruler_of, whole_stems
from .spans import Span, as_picture
from .view import EntryLike, VectorsLike

# Stated, not fitted, on (z-score, cosine), by tower. MiniLM: half-way at z = 6.5 with cosine 0.62, where a phrase and a
# caption are as likely to be the same thing as to be neighbours ("alarm clock", "timer clock"). The lexical tower's
# strangers share no letters, so its z-scores say nothing; of a tower we do not know, the cosines say nothing.
TEXT_MODELS = {
    "minilm": Logistic(-0.5 * 6.5 - 12 * 0.62, np.array([0.5, 12.0])),
    "lexical": Logistic(-14 * 0.66, np.array([0.0, 14.0])),
}
UNKNOWN_TOWER_MODEL = Logistic(-0.8 * 6.5, np.array([0.8, 0.0]))
MAX_REMEMBERED = 4096
# Log odds won or lost when grammar says style or subject and the LoRA is clearly one of the two.
ROLE_WEIGHT = 1.0
_ARRAYS = ("row", "has_vector", "unseen", "_roles_by_words", "_roles_by_weights")


class Scorer:
    """A family's LoRAs made ready to be asked. ``entries`` (N) are sorted by hash and name.

    ``weight_model`` maps a z-score to log odds, ``weight_claim`` bounds what comes of it; they start as the stated
    prior and what the encoder's file says, and are replaced by calibration. ``responder`` is set before that, if any,
    ``pictures`` after it.
    """

    responder: Responder | None = None
    pictures: PicturePart | None = None
    response_model = RESPONSE_PRIOR
    response_claim = 1.0

    def __init__(
        self, entries: Sequence[EntryLike], tower: TextTower, encoder: WeightEncoder | None,
        vectors: VectorsLike | None, kept: Mapping[str, np.ndarray] | None = None,
    ):  # fmt: skip
        """``kept``: what :meth:`to_arrays` of a scorer of the very same gave; then nothing is worked out."""
        self.entries = sorted(entries, key=lambda entry: (entry.hash, entry.name))
        self.everyone = np.arange(len(self.entries))
        self.tower, self.encoder = cached(tower), encoder
        # Prompts are remembered in memory only: what is kept on disk stays as small as the library, and a prepared
        # library needs no open file.
        self._asking = CachedTower(self.tower.tower)
        generic = tower.encode(list(GENERIC_PROMPTS))
        model = TEXT_MODELS.get(self.tower.id.partition("-")[0], UNKNOWN_TOWER_MODEL)
        self._generic_query = encoder.query(generic) if encoder is not None else generic
        if kept is None:
            self.sayings = Sayings(self.entries, self.tower, generic, model)
            self.weight_table, self.row = self._weights(vectors)
            self.has_vector = self._having()
            self.unseen = self._unseen()
            self._roles_by_words, self._roles_by_weights = self._roles(generic)
        else:
            self._take_over(kept, model, vectors)
        self.has_text = self.sayings.speaking
        self.weight_model = weight_prior(int(self.has_vector.sum()))
        self.weight_claim = hit_rate(encoder) if encoder is not None else UNKNOWN_HIT_RATE
        self.quick = quick_weights(self, self._generic_query, vectors)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """What was worked out of entries and vectors, without what a calibration sets."""
        own, table = {name.lstrip("_"): getattr(self, name) for name in _ARRAYS}, self.weight_table
        codes = codes_to_arrays(table, "weights") | codes_to_arrays(self.sayings.table, "words")
        return {**own, "scale": table.scale, "shift": table.shift, **codes, **self.sayings.to_arrays()}

    def _take_over(self, kept: Mapping[str, np.ndarray], model: Logistic, vectors: VectorsLike | None) -> None:
        """Inverse of :meth:`to_arrays`. Raises ValueError or KeyError for arrays that do not fit."""
        rows = np.zeros((0, self.tower.dim), np.float32) if vectors is None else vectors.matrix
        self.sayings = Sayings.of_arrays(kept, model)
        self.weight_table = Table(rows, kept["scale"], kept["shift"])
        for name in _ARRAYS:
            setattr(self, name, kept[name.lstrip("_")])
        counts = {len(self.entries), self.sayings.count, *(len(getattr(self, name)) for name in _ARRAYS)}
        lengths = {len(rows), len(kept["scale"]), len(kept["shift"])}
        if len(counts) > 1 or len(lengths) > 1 or self.row.max(initial=-1) >= len(rows):
            raise ValueError("numbers of LoRAs that do not fit each other")
        codes_of_arrays(self.weight_table, "weights", kept)
        codes_of_arrays(self.sayings.table, "words", kept)

    def _weights(self, vectors: VectorsLike | None) -> tuple[Table, np.ndarray]:
        """z-scores of each content's vector, and each LoRA's row there, −1 where it has none."""
        if vectors is None or not len(vectors.hashes):
            return Table(np.zeros((0, self.tower.dim), np.float32)), np.full(len(self.entries), -1)
        place = {digest: row for row, digest in enumerate(vectors.hashes)}
        row = np.array([place.get(entry.hash, -1) for entry in self.entries], np.int64)
        ruler = ruler_of(vectors.matrix, self._generic_query, WEIGHT_FLOOR)
        deviation = ruler.deviation.astype(np.float64)
        return Table(vectors.matrix, 1 / deviation, -ruler.mean / deviation), row

    def _having(self) -> np.ndarray:
        """(N,) bool: LoRAs with a vector that is not zero."""
        rows = self.weight_table.rows
        filled = np.zeros(len(rows) + 1, bool)  # the last is that of row −1
        for start in range(0, len(rows), RULER_BLOCK):
            stop = min(start + RULER_BLOCK, len(rows))
            filled[start:stop] = rows[start:stop].any(axis=1)
        return filled[self.row]

    def loras_of(self, rows: np.ndarray) -> np.ndarray:
        """The LoRAs that have these rows of :attr:`weight_table`, ascending."""
        order, starts = self._having_row
        return np.sort(order[ranges(starts[rows], starts[rows + 1])])

    @cached_property
    def _having_row(self) -> tuple[np.ndarray, np.ndarray]:
        """LoRAs by row: those of row r are ``order[starts[r] : starts[r + 1]]``."""
        order = np.argsort(self.row, kind="stable")
        return order, np.searchsorted(self.row[order], np.arange(len(self.weight_table) + 1))

    @property
    def roles(self) -> np.ndarray:
        """(N,) from −1 (subject) to 1 (style), 0 unknown: what words say, else what weights say, by their hit rate."""
        return self.roles_of(self.everyone)

    def roles_of(self, loras: np.ndarray) -> np.ndarray:
        """:attr:`roles` of some."""
        return self._roles_by_words[loras] + self.weight_claim * self._roles_by_weights[loras]

    @property
    def answers(self) -> np.ndarray:
        """(N,) bool: LoRAs that can be asked through the base model."""
        return self.responder.has if self.responder is not None else np.zeros(len(self.entries), bool)

    @property
    def pictured(self) -> np.ndarray:
        """(N,) bool: LoRAs whose previews count."""
        return self.pictures.rows >= 0 if self.pictures is not None else np.zeros(len(self.entries), bool)

    def _unseen(self) -> np.ndarray:
        """(N,) bool: the vector was made without having been taught what its file shows, so the encoder may be judged
        by it."""
        if self.encoder is None or self.encoder.trained_on is None:
            return np.zeros(len(self.entries), bool)
        taught = np.array([entry.hash in self.encoder.trained_on for entry in self.entries], bool)
        return self.has_vector & ~taught

    def query(self, vectors: np.ndarray) -> np.ndarray:
        """Tower vectors (S, dim) → what the weights' vectors are compared with."""
        return self.encoder.query(vectors) if self.encoder is not None else vectors

    def ask(
        self,
        spans: Sequence[Span],
        use_weights: bool = True,
        use_text: bool = True,
        asking: CachedAnswers | None = None,
        progress: Progress | None = None,
    ) -> Asked:
        """Make the phrases of a prompt ready; ``asking`` is for the responder."""
        if len(self._asking.store) > MAX_REMEMBERED:
            self._asking.store.clear()
        texts = [span.text for span in spans]
        answers, vectors = self._answers(spans, asking, progress), self._asking.encode(texts)
        asked = self.asked(texts, vectors, use_weights, use_text, [s.stems for s in spans], answers)
        if self.pictures is not None and len(texts):
            asked = replace(asked, pictured=self.pictures.z(texts, vectors))
        return asked

    def asked(
        self,
        texts: Sequence[str],
        vectors: np.ndarray,
        use_weights: bool,
        use_text: bool,
        stems: Sequence[frozenset[str]] = (),
        answers: np.ndarray | None = None,
    ) -> Asked:
        """Texts and their tower vectors; ``stems`` of the whole phrase each text comes from (default: its own)."""
        shared = self.sayings.lexicon.shared(texts, whole_stems(texts, stems))
        query = self.query(vectors) if use_weights and len(self.weight_table) else None
        return Asked(texts, vectors, shared, query is not None, use_text, answers, query)

    def evidence(
        self,
        spans: Sequence[Span],
        use_weights: bool = True,
        use_text: bool = True,
        asking: CachedAnswers | None = None,
        progress: Progress | None = None,
    ) -> Evidence:
        """Score every span against every LoRA."""
        asked = self.ask(spans, use_weights, use_text, asking, progress)
        return self.evidence_of(asked, spans, self.everyone)

    def evidence_of(self, asked: Asked, spans: Sequence[Span], loras: np.ndarray) -> Evidence:
        """Score the spans that ``asked`` is made of against ``loras`` (C,), ascending."""
        weights, text, lexical, response, phrase = self.parts(asked, loras)
        shown = None if asked.pictured is None else self.pictures.evidence(asked.pictured[:, loras])
        beside_words = either(weights, response) if shown is None else either(either(weights, response), shown)
        logit = combine(beside_words, text, lexical)
        logit += ROLE_WEIGHT * np.outer(hints(spans), self.roles_of(loras)) - losses(spans)[:, None]
        return Evidence(loras, weights, text, lexical, response, logit, phrase, shown)

    def parts(self, asked: Asked, loras: np.ndarray) -> tuple[np.ndarray, ...]:
        """(S, C) each: weights, text, lexical, response as probabilities, NaN where absent, and the best phrase."""
        absent = np.full((len(asked.texts), len(loras)), np.nan)
        weights = self.weight_evidence(asked.query, loras) if asked.use_weights else absent
        text, lexical, phrase = absent, absent, np.full(absent.shape, -1)
        if asked.use_text:
            text, lexical, phrase = self.sayings.evidence(asked.vectors, asked.shared, loras)
        response = absent if asked.answers is None else self.response_evidence(asked.answers[:, loras])
        return weights, text, lexical, response, phrase

    def _answers(self, spans: Sequence[Span], asking: CachedAnswers | None, progress) -> np.ndarray | None:
        """(S, N) z-scores, NaN where absent. Of very many spans those that leave out the most words are not asked."""
        first = sorted(range(len(spans)), key=lambda i: (spans[i].headless, spans[i].partial, i))[:MAX_PHRASES]
        if self.responder is None or asking is None or not first:
            return None
        found = np.full((len(spans), len(self.entries)), np.nan)
        texts = [as_picture(spans[i].text) if spans[i].hint == "style" else spans[i].text for i in first]
        found[first] = self.responder.z(texts, asking, progress=progress)
        return found

    def response_evidence(self, z: np.ndarray) -> np.ndarray:
        """z-scores of responses (S, C) → probability-like, NaN where there is none."""
        found, known = np.full(z.shape, np.nan), np.isfinite(z)
        found[known] = bounded(self.response_model.probability(z[known][:, None]), self.response_claim)
        return found

    def weight_z(self, query: np.ndarray, loras: np.ndarray) -> np.ndarray:
        """:meth:`query` (S, d) → z-scores of the weights part (S, C); NaN for LoRAs without a vector."""
        found = np.full((len(query), len(loras)), np.nan)
        has = self.has_vector[loras]
        found[:, has] = self.weight_table.scores(self.row[loras[has]], query)
        return found

    def weight_evidence(self, query: np.ndarray, loras: np.ndarray) -> np.ndarray:
        """(S, d) → probability-like (S, C), NaN where there is no vector."""
        return bounded(self.weight_model.probability(self.weight_z(query, loras)[..., None]), self.weight_claim)

    def _roles(self, generic: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """:attr:`roles` by words (what tags say, else the nearer kind of generic prompt by meaning, so not with the
        lexical tower) and, where there are none, by weights alone."""
        said = np.array([said_role(entry) for entry in self.entries]).reshape(-1)
        words, weights = said.copy(), np.zeros(len(said))
        if self.tower.id == LexicalTower.id:
            return words, weights
        first = self.sayings.first_but_tags()
        silent = said == 0
        at = silent & (first >= 0)
        words[at] = along_kinds(self.sayings.vectors[first[at]], generic)
        at = silent & (first < 0) & self.has_vector
        weights[at] = along_kinds(self.weight_table.rows[self.row[at]], self._generic_query)
        return words, weights
