"""Making a library ready to be asked: once per state of the library, then kept in memory."""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ..encode.encoder import WeightEncoder
from ..encode.generic import GENERIC_PROMPTS
from ..encode.text_cache import CachedTower
from ..encode.threads import one_thread
from ..encode.towers import TextTower
from ..library.answers import CachedAnswers
from ..portable import file_stem
from ..wording import counted, listed
from .candidates import candidates, is_for
from .near import Near, set_apart
from .neighbours import Neighbourhood
from .picture_part import PictureSource, learn
from .ready import KEPT_FROM, Keeper, Ready
from .responding import Responder
from .sayings import phrases_of
from .score import Scorer
from .tune import Calibration, calibrate, calibrated, calibration_json, near_groups
from .view import EntryLike, LibraryView

log = logging.getLogger(__name__)
CACHED_LIBRARIES = 4
WARM_BLOCK = 32
READY, USUAL = "ready", "usual"  # what is kept: all but the rulers of every LoRA, and these, which only Encode makes
NAMED = 5  # files a note names; the report of Encode LoRA Library names them all
# Which part of the work each step of preparing a library is, as progress shows it.
WORDS, COMPARING, ASKING, CALIBRATING = (0.0, 0.4), (0.4, 0.5), (0.5, 0.75), (0.75, 1.0)
Progress = Callable[[int, int, str], None]
_cache: OrderedDict[str, Prepared] = OrderedDict()
_cache_lock = threading.Lock()


@dataclass(frozen=True)
class Prepared:
    """One family of a library, ready to be asked; ``notes`` say what could not be used and why.

    ``neighbourhood`` compares LoRAs with each other, None when weights are not to be used.
    """

    scorer: Scorer
    groups: np.ndarray
    calibration: Calibration
    use_weights: bool
    use_text: bool
    encoder: str | None
    notes: tuple[str, ...]
    neighbourhood: Neighbourhood | None = None
    _apart: dict[tuple, tuple[np.ndarray, tuple[str, ...]]] = field(default_factory=dict)

    def apart(self, family: str, near: Near) -> tuple[np.ndarray, tuple[str, ...]]:
        """Which LoRAs (N,) are for another size or line of the base, and notes on it; told once for each."""
        key = family, near.variant, near.model is not None, near.wanted
        if key not in self._apart:
            self._apart[key] = set_apart(self.scorer.entries, family, near)
        return self._apart[key]


def prepare(
    view: LibraryView,
    family: str,
    tower: TextTower,
    use_weights: bool = True,
    use_text: bool = True,
    progress: Progress | None = None,
    asking: CachedAnswers | None = None,
    handle: dict | None = None,
    pictures: PictureSource | None = None,
) -> Prepared:
    """Make a family ready, or take it from the cache when nothing it depends on has changed.

    With ``asking`` a base model the LoRAs are asked through it, too; with ``pictures`` their previews count.
    ``handle``: the view's, where it is known.
    """
    handle = view.handle if handle is None else handle
    encoder = view.encoder(family, tower.id)
    base = asking.id if asking is not None else None
    seen = pictures.id if pictures is not None else None
    state = [handle, family, tower.id, encoder.id if encoder else None, use_weights, use_text, base, seen]
    key = json.dumps(state, sort_keys=True, default=str) if handle else None
    with _cache_lock:
        if key in _cache:
            _cache.move_to_end(key)
            return _cache[key]
    store, chosen, kept = view.text_tower(tower), candidates(view, family), None
    if use_weights and len(chosen) >= KEPT_FROM:
        kept = Keeper.of(view, READY, handle, family, tower.id, encoder)
    work = _Work(view, family, store, chosen, encoder, use_weights, use_text, asking, progress, pictures, kept)
    prepared = work.done()
    if key is not None:
        with _cache_lock:
            _cache[key] = prepared
            while len(_cache) > CACHED_LIBRARIES:
                _cache.popitem(last=False)
    return prepared


@dataclass
class _Work:
    """Making one family ready: what :func:`prepare` was given, ``chosen`` the entries, ``kept`` where the outcome is
    kept (None: nowhere)."""

    view: LibraryView
    family: str
    store: CachedTower
    chosen: list[EntryLike]
    encoder: WeightEncoder | None
    use_weights: bool
    use_text: bool
    asking: CachedAnswers | None
    progress: Progress | None
    pictures: PictureSource | None
    kept: Keeper | None

    def done(self) -> Prepared:
        """All of it."""
        ready = self.kept.load() if self.kept is not None else None
        if ready is not None:
            try:
                return self._made(ready)
            except (ValueError, KeyError, TypeError, IndexError) as error:  # sound, but written by somebody else
                log.warning("%s cannot be used (%s: %s)", self.kept.path, type(error).__name__, error)
        _encode_words(self.store, self.chosen, _portion(self.progress, *WORDS))
        return self._made(None)

    def _made(self, ready: Ready | None) -> Prepared:
        view, family, encoder, progress, notes = self.view, self.family, self.encoder, self.progress, []
        if self.use_weights and encoder is None:
            notes.append("Weights were not used: no encoder has been fitted for this base model and text tower.")
        elif self.use_weights and not encoder.usable:
            why = "too few LoRAs of this base model have words to learn their meaning from"
            notes.append(f"Weights were not used: {why}.")
        reading = encoder if self.use_weights and encoder is not None and encoder.usable else None
        vectors = view.vectors(family, reading.id) if reading is not None else None
        scorer = Scorer(self.chosen, self.store, reading, vectors, ready.arrays if ready else None)
        groups = ready.groups if ready else near_groups(scorer, list(view.near_duplicates(family)))
        if len(groups) != len(scorer.entries):
            raise ValueError("groups of other LoRAs")
        weights, near = reading is not None and bool(scorer.has_vector.any()), None
        if self.use_weights:
            grid = view.grid(family, _ticking(_portion(progress, *COMPARING)))
            near = Neighbourhood(scorer.entries, scorer.sayings, grid, view.kept(f"near-{file_stem(family)}"))
        if self.asking is not None:
            asked = _portion(progress, *ASKING)
            scorer.responder = Responder.measure(view, family, scorer.entries, self.asking, asked)
            notes.append(_asked_note(scorer))
        calibration = self._calibrated(scorer, groups, weights, ready)
        if weights:
            notes.append(
                f"Weights count for at most {scorer.weight_claim:.0%}: so often they alone put the right LoRA first, "
                "of those here that have words."
            )
        if self.use_weights:
            notes += _unencoded_note(view, family)
        if self.pictures is not None:
            scorer.pictures, told = learn(scorer, groups, self.pictures)
            notes.append(told)
        notes += self._silent_note(scorer, weights)
        reader = reading.id if reading else None
        told = tuple(notes) if scorer.entries else ()  # of no LoRA there is nothing to tell
        return Prepared(scorer, groups, calibration, weights, self.use_text, reader, told, near)

    def _calibrated(self, scorer: Scorer, groups: np.ndarray, weights: bool, ready: Ready | None) -> Calibration:
        plain = self.use_text and self.asking is None  # as it is kept
        if ready is not None and plain:
            keeper = Keeper.of(self.view, USUAL, self.view.handle, self.family, self.store.id, self.encoder)
            rulers = keeper.load() if keeper is not None else None
            usual = rulers.arrays["usual"] if rulers is not None else None
            return calibrated(scorer, ready.calibration, usual, weights, self.use_text)
        progress = _portion(self.progress, *CALIBRATING)
        arrays = scorer.to_arrays() if plain and self.kept is not None else None
        found = calibrate(scorer, groups, weights, self.use_text, self.asking, progress)
        if arrays is not None:
            self.kept.save({**arrays, "groups": groups}, calibration_json(scorer, found))
        return found

    def _silent_note(self, scorer: Scorer, weights: bool) -> list[str]:
        heard = (scorer.has_vector & weights) | (scorer.has_text & self.use_text) | scorer.answers
        silent = np.flatnonzero(~(heard | scorer.pictured))
        if not (self.use_weights or self.use_text or scorer.pictured.any()):
            return ["Weights and text are both switched off: only pinned LoRAs are chosen."]
        if not len(silent):
            return []
        verb, names = "has" if len(silent) == 1 else "have", listed([scorer.entries[i].name for i in silent], NAMED)
        count = counted(len(silent), "LoRA")
        return [f"{count} {verb} neither words nor usable weights and could not be considered: {names}."]


def _portion(progress: Progress | None, low: float, high: float) -> Progress | None:
    """Progress of one step, told as a part of the whole, in thousandths."""
    if progress is None:
        return None
    return lambda done, total, text: progress(int(1000 * (low + (high - low) * done / max(total, 1))), 1000, text)


def _ticking(progress: Progress | None) -> Callable[[int, int], None]:
    """Progress without a text."""
    return lambda done, total: None if progress is None else progress(done, total, "")


def _unencoded_note(view: LibraryView, family: str) -> list[str]:
    """Which LoRAs that may be chosen can be found by their words only, and why."""
    files = [f"{e.name} ({why.partition('. What to do')[0]})" for e, why in view.unencoded(family) if is_for(e, family)]
    return [f"Weights could not be encoded, so only words count: {listed(files, NAMED)}."] if files else []


def _asked_note(scorer: Scorer) -> str:
    count = int(scorer.answers.sum())
    if not count:
        return "The LoRAs could not be asked through the model: none changes a layer of it that a prompt reaches."
    return f"Asked through the model and the CLIP: {count} of {counted(len(scorer.entries), 'LoRA')}."


@one_thread()
def warm(view: LibraryView, family: str, tower: TextTower, progress: Progress | None = None) -> str | None:
    """Encode every text the retriever will need into the library's text store, and make the rows that LoRAs are
    compared by, both in blocks; of a large library also what else can be kept on disk.

    Six milliseconds a text with MiniLM, once per library: call it after encoding a library, so that the first prompt
    need not wait. ``progress(done, total, text)`` may raise to interrupt; finished blocks are kept. Returns how weights
    are searched, for a library so large that it is to be told.
    """
    chosen = candidates(view, family)
    _encode_words(view.text_tower(tower), chosen, _portion(progress, 0.0, 0.5))
    view.grid(family, _ticking(_portion(progress, 0.5, 0.6)))
    if len(chosen) >= KEPT_FROM:
        prepared = prepare(view, family, tower, progress=_portion(progress, 0.6, 0.7))
        prepared.scorer.quick.make(_ticking(_portion(progress, 0.7, 0.75)))
        prepared.neighbourhood.keep_lists(_ticking(_portion(progress, 0.75, 0.95)))
        _keep_usual(view, family, tower, prepared.calibration, _ticking(_portion(progress, 0.95, 1.0)))
        return prepared.scorer.quick.line()
    return None


def _keep_usual(
    view: LibraryView, family: str, tower: TextTower, calibration: Calibration, tick: Callable[[int, int], None]
) -> None:
    keeper = Keeper.of(view, USUAL, view.handle, family, tower.id, view.encoder(family, tower.id))
    if keeper is not None and keeper.load() is None:
        keeper.save({"usual": calibration.ruler.of_all(tick)}, {})


def _encode_words(store: CachedTower, entries: list[EntryLike], progress: Progress | None) -> None:
    own = {phrase.text for entry in entries for phrase in phrases_of(entry, 0)}
    texts = [*GENERIC_PROMPTS, *sorted(own)]
    for start in range(0, len(texts), WARM_BLOCK):
        if progress is not None:
            progress(start, len(texts), texts[start])
        store.encode(texts[start : start + WARM_BLOCK])
