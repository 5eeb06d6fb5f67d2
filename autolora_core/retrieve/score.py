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
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from ..encode.calibrate import Logistic, Ruler, sigmoid
from ..encode.encoder import WeightEncoder
from ..encode.generic import GENERIC_MANNERS, GENERIC_PROMPTS, GENERIC_SUBJECTS
from ..encode.text_cache import CachedTower, cached
from ..encode.towers import LexicalTower, TextTower
from ..library.answers import CachedAnswers
from .lexicon import Lexicon, Phrase
from .odds import UNKNOWN_HIT_RATE, bounded, combine, hit_rate, weight_prior
from .responding import MAX_PHRASES, RESPONSE_PRIOR, Progress, Responder, either
from .spans import Span, as_picture
from .view import EntryLike, VectorsLike
from .words import MANNERS, content_stems, words_of

# Stated, not fitted, on (z-score, cosine), by tower. MiniLM: half-way at z = 6.5 with cosine 0.62, where a phrase and a
# caption are as likely to be the same thing as to be neighbours ("alarm clock", "timer clock"). The lexical tower's
# strangers share no letters, so its z-scores say nothing; of a tower we do not know, the cosines say nothing.
TEXT_MODELS = {
    "minilm": Logistic(-0.5 * 6.5 - 12 * 0.62, np.array([0.5, 12.0])),
    "lexical": Logistic(-14 * 0.66, np.array([0.0, 14.0])),
}
UNKNOWN_TOWER_MODEL = Logistic(-0.8 * 6.5, np.array([0.8, 0.0]))
# On the overlap of words: 0.95 for the very same words, a half at 0.7 (one of two equally rare words shared is 0.67).
LEXICAL_MODEL = Logistic(-10 * 0.7, np.array([10.0]))
# One tag among many says less than a title: log odds.
FIELD_PENALTY = {"title": 0.0, "trigger": 0.0, "tags": 0.0, "description": 0.0, "tag": 1.5}
TEXT_FLOOR = 0.05
MAX_REMEMBERED = 4096
# Log odds that a phrase loses per word left out, for lacking its head, for being several phrases together, and for
# being a time or place.
PARTIAL_PENALTY, HEADLESS_PENALTY, JOINED_PENALTY, SETTING_PENALTY = 0.15, 1.5, 0.3, 1.0
# Log odds lost when phrase and caption share a word and each has one that the other lacks: purple heart, blue heart.
SIBLING_PENALTY = 2.0
# Log odds won or lost when grammar says style or subject and the LoRA is clearly one of the two.
ROLE_WEIGHT = 1.0
_STYLE_TAGS = frozenset({"style", "art style", "artstyle", "artist", "aesthetic"})
_SUBJECT_TAGS = frozenset({"character", "subject", "object", "animal", "person", "clothing", "vehicle", "food"})


@dataclass(frozen=True)
class Evidence:
    """(spans, LoRAs) each: probabilities of the parts (NaN where absent), ``logit`` of them all with the adjustments.

    ``phrase`` is the index of the LoRA's phrase that matched best by text or words, −1 where it has none.
    """

    weights: np.ndarray
    text: np.ndarray
    lexical: np.ndarray
    response: np.ndarray
    logit: np.ndarray
    phrase: np.ndarray


def phrases_of(entry: EntryLike, owner: int) -> list[Phrase]:
    """What a LoRA says of itself, once each: title, triggers, tags together and the first six alone, description."""
    text = entry.text
    found = [("title", text.title), *(("trigger", word) for word in text.triggers[:8])]
    found += [("tags", ", ".join(text.tags[:12])), *(("tag", tag) for tag in text.tags[:6])]
    found.append(("description", text.description[:200]))
    seen, phrases = set(), []
    for name, words in found:
        key = " ".join(words_of(words))
        if key and key not in seen:
            seen.add(key)
            phrases.append(Phrase(owner, name, " ".join(words.split())))
    return phrases


class Scorer:
    """A family's LoRAs made ready to be asked. ``entries`` (N) are sorted by hash and name.

    ``weight_model`` maps a z-score to log odds, ``weight_claim`` bounds what comes of it; they start as the stated
    prior and what the encoder's file says, and are replaced by calibration. ``responder`` is set before that, if any.
    """

    responder: Responder | None = None
    response_model = RESPONSE_PRIOR
    response_claim = 1.0

    def __init__(
        self, entries: Sequence[EntryLike], tower: TextTower, encoder: WeightEncoder | None, vectors: VectorsLike | None
    ):
        self.entries = sorted(entries, key=lambda entry: (entry.hash, entry.name))
        self.tower, self.encoder = cached(tower), encoder
        self.text_model = TEXT_MODELS.get(self.tower.id.partition("-")[0], UNKNOWN_TOWER_MODEL)
        # Prompts are remembered in memory only: what is kept on disk stays as small as the library, and a prepared
        # library needs no open file.
        self._asking = CachedTower(self.tower.tower)
        self.phrases = [phrase for i, entry in enumerate(self.entries) for phrase in phrases_of(entry, i)]
        self.has_text = np.zeros(len(self.entries), bool)
        self.has_text[[phrase.owner for phrase in self.phrases]] = True
        self.lexicon = Lexicon(self.phrases, len(self.entries))
        self._penalty = np.array([FIELD_PENALTY[phrase.field] for phrase in self.phrases])
        self._words = tower.encode([phrase.text for phrase in self.phrases])
        generic = tower.encode(list(GENERIC_PROMPTS))
        self._phrase_ruler = Ruler.measure(self._words @ generic.T, TEXT_FLOOR)
        self.vectors, self.has_vector = self._vectors(vectors)
        self.unseen = self._unseen()
        self._generic_query = encoder.query(generic) if encoder is not None else generic
        self._weight_ruler = Ruler.measure(self.vectors @ self._generic_query.T)
        self.weight_model = weight_prior(int(self.has_vector.sum()))
        self.weight_claim = hit_rate(encoder) if encoder is not None else UNKNOWN_HIT_RATE
        self._roles_by_words, self._roles_by_weights = self._roles(generic)

    def _vectors(self, vectors: VectorsLike | None) -> tuple[np.ndarray, np.ndarray]:
        matrix = np.zeros((len(self.entries), self.tower.dim), np.float32)
        if vectors is not None:
            row_of = {digest: row for row, digest in enumerate(vectors.hashes)}
            for i, entry in enumerate(self.entries):
                if entry.hash in row_of:
                    matrix[i] = vectors.matrix[row_of[entry.hash]]
        return matrix, np.any(matrix != 0, axis=1)

    @property
    def roles(self) -> np.ndarray:
        """(N,) from −1 (subject) to 1 (style), 0 unknown: what words say, else what weights say, by their hit rate."""
        return self._roles_by_words + self.weight_claim * self._roles_by_weights

    @property
    def answers(self) -> np.ndarray:
        """(N,) bool: LoRAs that can be asked through the base model."""
        return self.responder.has if self.responder is not None else np.zeros(len(self.entries), bool)

    def _unseen(self) -> np.ndarray:
        """(N,) bool: the vector was made without having been taught what its file shows, so the encoder may be judged
        by it."""
        if self.encoder is None or self.encoder.trained_on is None:
            return np.zeros(len(self.entries), bool)
        taught = np.array([entry.hash in self.encoder.trained_on for entry in self.entries], bool)
        return self.has_vector & ~taught

    def evidence(
        self,
        spans: Sequence[Span],
        use_weights: bool = True,
        use_text: bool = True,
        asking: CachedAnswers | None = None,
        progress: Progress | None = None,
    ) -> Evidence:
        """Score every span against every LoRA; ``asking`` is for the responder."""
        if len(self._asking.store) > MAX_REMEMBERED:
            self._asking.store.clear()
        asked = self._asking.encode([span.text for span in spans])
        weights = self.weight_evidence(asked) if use_weights else np.full((len(spans), len(self.entries)), np.nan)
        if use_text:
            stems = [span.stems for span in spans]
            text, lexical, phrase = self.word_evidence(asked, [span.text for span in spans], stems)
        else:
            text = lexical = np.full(weights.shape, np.nan)
            phrase = np.full(weights.shape, -1)
        response = self._responses(spans, asking, progress)
        logit = combine(either(weights, response), text, lexical) + self._adjustment(spans)
        return Evidence(weights, text, lexical, response, logit, phrase)

    def _responses(self, spans: Sequence[Span], asking: CachedAnswers | None, progress: Progress | None) -> np.ndarray:
        """(S, N), NaN where absent. Of very many spans those that leave out the most words are not asked."""
        found = np.full((len(spans), len(self.entries)), np.nan)
        first = sorted(range(len(spans)), key=lambda i: (spans[i].headless, spans[i].partial, i))[:MAX_PHRASES]
        if self.responder is not None and asking is not None and first:
            texts = [as_picture(spans[i].text) if spans[i].hint == "style" else spans[i].text for i in first]
            z = self.responder.z(texts, asking, progress=progress)
            found[first] = self.response_evidence(z)
        return found

    def response_evidence(self, z: np.ndarray) -> np.ndarray:
        """z-scores of responses (S, N) → probability-like, NaN where there is none."""
        found, known = np.full(z.shape, np.nan), np.isfinite(z)
        found[known] = bounded(self.response_model.probability(z[known][:, None]), self.response_claim)
        return found

    def weight_z(self, asked: np.ndarray) -> np.ndarray:
        """Tower vectors (S, dim) → z-scores of the weights part (S, N); NaN for LoRAs without a vector."""
        query = self.encoder.query(asked) if self.encoder is not None else asked
        z = self._weight_ruler.z(self.vectors @ query.T).T
        return np.where(self.has_vector[None], z, np.nan)

    def weight_evidence(self, asked: np.ndarray) -> np.ndarray:
        """(S, dim) → probability-like (S, N), NaN where there is no vector."""
        return bounded(self.weight_model.probability(self.weight_z(asked)[..., None]), self.weight_claim)

    def word_evidence(
        self, asked: np.ndarray, texts: Sequence[str], stems: Sequence[frozenset[str]] = ()
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Text and lexical probabilities (S, N), NaN for LoRAs without words, and the best phrase's index.

        ``stems`` of the whole phrase each text comes from; default: those of the text itself.
        """
        shape = (len(texts), len(self.entries))
        text, lexical, best = np.full(shape, np.nan), np.full(shape, np.nan), np.full(shape, -1)
        if not self.phrases or not len(texts):
            return text, lexical, best
        cosine = (self._words @ asked.T).astype(np.float64)
        by_text = self.text_model.logit(np.stack([self._phrase_ruler.z(cosine), cosine], axis=-1)).T - self._penalty
        whole = [own or frozenset(content_stems(words)) for words, own in zip_longest(texts, stems)]
        sibling = SIBLING_PENALTY * np.stack([self.lexicon.siblings(own) for own in whole])
        by_text -= sibling
        overlap = np.stack([self.lexicon.overlap(words) for words in texts])
        by_word = LEXICAL_MODEL.logit(overlap[..., None]) - self._penalty - sibling
        owners = np.array(self.lexicon.owners)
        starts = np.flatnonzero(np.diff(owners, prepend=-1))
        holders = owners[starts]
        text[:, holders] = sigmoid(np.maximum.reduceat(by_text, starts, axis=1))
        lexical[:, holders] = sigmoid(np.maximum.reduceat(by_word, starts, axis=1))
        either = np.maximum(by_text, by_word)
        for start, stop, holder in zip(starts, [*starts[1:], len(owners)], holders, strict=True):
            best[:, holder] = start + either[:, start:stop].argmax(axis=1)
        return text, lexical, best

    def _adjustment(self, spans: Sequence[Span]) -> np.ndarray:
        """(S, N) log odds for incomplete phrases and for roles that agree or clash."""
        loss = [
            PARTIAL_PENALTY * span.partial
            + HEADLESS_PENALTY * span.headless
            + JOINED_PENALTY * span.joined
            + SETTING_PENALTY * span.setting
            for span in spans
        ]
        hint = [{"style": 1.0, "subject": -1.0, None: 0.0}[span.hint] for span in spans]
        return ROLE_WEIGHT * np.outer(hint, self.roles) - np.array(loss)[:, None]

    def _roles(self, generic: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """:attr:`roles` by words (what tags say, else the nearer kind of generic prompt by meaning, so not with the
        lexical tower) and, where there are none, by weights alone."""
        words, weights = np.zeros((2, len(self.entries)))
        by_weights = _kind_axis(self._generic_query)
        by_words = _kind_axis(generic)
        first: dict[int, int] = {}
        for row, phrase in enumerate(self.phrases):
            if phrase.field != "tag":
                first.setdefault(phrase.owner, row)
        for i, entry in enumerate(self.entries):
            said = said_role(entry)
            if said or self.tower.id == LexicalTower.id:
                words[i] = said
            elif i in first:
                words[i] = float(by_words(self._words[first[i]]))
            elif self.has_vector[i]:
                weights[i] = float(by_weights(self.vectors[i]))
        return words, weights


def said_role(entry: EntryLike) -> float:
    """1 when a LoRA's own words call it a style, −1 when they call it a subject, 0 when they do not say."""
    tags = {" ".join(words_of(tag)) for tag in entry.text.tags}
    title = words_of(entry.text.title)
    if tags & _STYLE_TAGS or {"style", "aesthetic"} & set(title):
        return 1.0
    if tags & _SUBJECT_TAGS:
        return -1.0
    return 1.0 if " ".join(content_stems(entry.text.title)) in MANNERS else 0.0


def _kind_axis(generic: np.ndarray):
    """A function from a vector to −1 … 1 along the line from the generic subjects to the generic manners."""
    subjects = generic[: len(GENERIC_SUBJECTS)].mean(axis=0)
    manners = generic[-len(GENERIC_MANNERS) :].mean(axis=0)
    axis = manners - subjects
    middle, half = axis @ (manners + subjects) / 2, max(float(axis @ axis) / 2, 1e-9)
    return lambda vector: np.clip((vector @ axis - middle) / half, -1, 1)
