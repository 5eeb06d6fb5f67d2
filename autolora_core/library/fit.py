"""One weight encoder per family, fitted on the files that have words, and a vector for every file that has weights.

The encoder is a function of the family's files and their words alone, in whatever order they came: scanning again,
after a crash or from nothing, gives the same one. Its vectors carry its id; those of another encoder or text tower lie
beside them and are never mixed with them.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np

from ..encode.encoder import SAME_FILE_COSINE, RidgeEncoder, WeightEncoder
from ..encode.features import FeatureSchema, ModuleFeatures
from ..encode.generic import GENERIC_PROMPTS
from ..encode.text_cache import CachedTower, cached
from ..encode.towers import TextTower
from ..portable import remove
from .encoders import drop_old, encoder_path, load_encoder, remember
from .entries import Entry, EntryText
from .fit_report import FamilyFit, FitReport
from .sketches import read_sketches, sketch_id
from .store import Store, now
from .vectors import store_vectors, vectors_path
from .words import Words, without_common, words_of

# Bounds the memory of a fit; captioned files come first.
MAX_FIT_FILES = 3000
ASSEMBLE_BLOCK = 256
TEXT_BLOCK = 64
# Which files an encoder that came ready is asked for; another version is asked again.
ASKED = "of those it was not taught"
# What was overwritten stays in the tables, in case it comes back, but teaches nothing: two libraries of the same files
# have the same encoder. Files that are offline are held.
_HELD = "EXISTS (SELECT 1 FROM files h WHERE h.hash = f.hash)"
Progress = Callable[[int, int, str], None]


def fit_library(
    store: Store,
    tower: TextTower,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
    shipped: Mapping[str, WeightEncoder] | None = None,
) -> FitReport:
    """Fit what changed, encode what has no vector. The caller holds the writer lock. ``shipped`` encoders (family →
    encoder) are extended with the library's own files instead of starting from nothing."""
    report, started = FitReport(tower.id), time.monotonic()
    progress, should_stop = progress or (lambda done, total, name: None), should_stop or (lambda: False)
    tower, families = cached(tower), _families(store)
    _read_captions(store, families, tower, progress)
    for index, family in enumerate(families):
        if should_stop():
            break
        tick = partial(_tick, progress, index, len(families), family)
        tick(0.0)
        report.families.append(_fit_family(store, family, tower, (shipped or {}).get(family), tick))
    progress(1, 1, "")
    report.seconds = time.monotonic() - started
    return report


def _tick(progress: Progress, index: int, count: int, family: str, share: float) -> None:
    """Tell how far the fit of one family is; thousandths, since progress counts whole things."""
    progress(int(1000 * (index + share)), 1000 * count, family)


def _read_captions(store: Store, families: list[str], tower: CachedTower, progress: Progress) -> None:
    """Put every caption through the tower in blocks, so that a large library can be interrupted and goes on."""
    captions = {line for family in families for said in _words(store, family).values() for line in said.lines}
    wanted = sorted(line for line in captions | set(GENERIC_PROMPTS) if f"{tower.id}\n{line}" not in tower.store)
    for start in range(0, len(wanted), TEXT_BLOCK):
        progress(start, len(wanted), wanted[start])
        tower.encode(wanted[start : start + TEXT_BLOCK])


def _families(store: Store) -> list[str]:
    rows = store.db.execute(
        "SELECT DISTINCT c.family FROM features f JOIN contents c ON c.hash = f.hash"
        f" WHERE f.problem IS NULL AND {_HELD}"
    )
    return sorted(row[0] for row in rows)


def _fit_family(
    store: Store, family: str, tower: TextTower, shipped: WeightEncoder | None, tick: Callable[[float], None]
) -> FamilyFit:
    hashes = encodable(store, family)
    held = set(hashes)
    words = {digest: said for digest, said in _words(store, family).items() if digest in held}
    inputs = _inputs_id(family, hashes, words, tower, shipped)
    row = store.db.execute(
        "SELECT id, info FROM encoders WHERE family = ? AND tower_id = ? AND inputs = ?", (family, tower.id, inputs)
    ).fetchone()
    encoder = load_encoder(store, row[0]) if row else None
    refitted = encoder is None
    if encoder is None:
        encoder = _fit_encoder(store, family, hashes, words, tower, shipped)
    if encoder is None:
        return FamilyFit(family, "", len(hashes), 0, False, False, 0.0)
    learnt = isinstance(encoder, RidgeEncoder)
    captioned = len(encoder.texts) if learnt else len(words)
    asks = captioned
    if not refitted:
        said = json.loads(row[1])
        found, asks = said["found_top5"], said.get("asks", asks)
    elif learnt:
        found = _found_top5(encoder, tower)
    else:
        found, asks = _found_as_shipped(store, encoder, family, words, tower)
    tick(0.5)
    fit = FamilyFit(family, encoder.id, len(hashes), captioned, encoder.usable, refitted, found, learnt, asks)
    _bring_up_to_date(store, encoder, hashes, inputs, fit, tick)
    return fit


def encodable(store: Store, family: str) -> list[str]:
    """Sorted contents of a family whose weights are stored as a fit reads them, files that are offline included."""
    rows = store.db.execute(
        "SELECT f.hash FROM features f JOIN contents c ON c.hash = f.hash"
        f" WHERE c.family = ? AND f.sketch_id = ? AND f.problem IS NULL AND {_HELD} ORDER BY f.hash",
        (family, sketch_id(family)),
    )
    return [row[0] for row in rows]


def _words(store: Store, family: str) -> dict[str, Words]:
    """Content → words that tell it from others, chosen as a training chooses them: it would be undone otherwise."""
    rows = store.db.execute(
        "SELECT f.hash, text FROM files f JOIN contents c ON c.hash = f.hash WHERE c.family = ?", (family,)
    )
    return without_common(words_of((digest, EntryText.from_json(json.loads(packed))) for digest, packed in rows))[0]


def _inputs_id(family, hashes, words: Mapping[str, Words], tower: TextTower, shipped: WeightEncoder | None) -> str:
    came = shipped.id if shipped else ""
    if shipped is not None and not isinstance(shipped, RidgeEncoder):
        came += f" {ASKED}"
    digest = hashlib.sha256(f"{sketch_id(family)} {tower.id} {came}".encode())
    for content in hashes:
        captions = words[content].lines if content in words else ()
        digest.update(json.dumps([content, captions]).encode())
    return digest.hexdigest()


def _fit_encoder(store, family, hashes, words, tower, shipped) -> WeightEncoder | None:
    """Fit on the captioned files, or extend a shipped encoder with them; None when there is nothing to learn from.

    A shipped encoder that is no ridge cannot be extended: it is taken as it is, unless it speaks to another tower.
    """
    if shipped is not None and not isinstance(shipped, RidgeEncoder):
        if shipped.tower == tower.id:
            return shipped
        shipped = None
    captioned = [digest for digest in hashes if digest in words][:MAX_FIT_FILES]
    others = [digest for digest in hashes if digest not in words][: MAX_FIT_FILES - len(captioned)]
    if shipped is None and not captioned:
        return None
    sketches = read_sketches(store.db, sorted(captioned + others), family)
    schema = shipped.schema if shipped else FeatureSchema.learn(family, [sketches[key] for key in sorted(sketches)])
    rows = _assemble(schema, [sketches[digest] for digest in captioned])
    texts = [words[digest].lines for digest in captioned]
    weights = np.array([words[digest].weight for digest in captioned])
    if shipped is None:
        return RidgeEncoder.fit(schema, rows, texts, tower, weights)
    # A file the shipped encoder was fitted on must not be learnt twice: leave-one-out would see its twin.
    new = [i for i, row in enumerate(rows) if not _is_known(shipped, row)]
    if not new and shipped.tower == tower.id:
        return shipped
    return shipped.extended(rows[new], [texts[i] for i in new], tower, weights[new])


def _is_known(encoder: RidgeEncoder, row: np.ndarray) -> bool:
    X = encoder.ridge.X
    lengths = np.linalg.norm(X, axis=1) * np.linalg.norm(row)
    return bool((X @ row / np.maximum(lengths, 1e-12)).max(initial=-1) > SAME_FILE_COSINE)


def _assemble(schema: FeatureSchema, files: Iterable[ModuleFeatures]) -> np.ndarray:
    rows = [schema.assemble(file).vector for file in files]
    return np.stack(rows) if rows else np.zeros((0, schema.width), np.float32)


def _found_top5(encoder: RidgeEncoder, tower: TextTower) -> float:
    """How often a captioned file's own words find its leave-one-out vector among the first five."""
    vectors = encoder.ridge.loo()
    return _share_in_top5(encoder, tower, encoder.texts, vectors)


def _found_as_shipped(store: Store, encoder: WeightEncoder, family: str, words, tower: TextTower) -> tuple[float, int]:
    """The same for an encoder that was not fitted here, among at most :data:`MAX_FIT_FILES` captioned files, and how
    many were asked for: not those whose vectors repeat what it was taught, none when it does not say which these are.
    """
    captioned = sorted(words)[:MAX_FIT_FILES]
    taught = encoder.trained_on
    asks = [] if taught is None else [i for i, digest in enumerate(captioned) if digest not in taught]
    if not asks:
        return 0.0, 0
    sketches = read_sketches(store.db, captioned, family)
    vectors = _vectors(encoder, (sketches[digest] for digest in captioned))
    texts = [words[captioned[i]].lines for i in asks]
    return _share_in_top5(encoder, tower, texts, vectors, asks), len(asks)


def _share_in_top5(
    encoder: WeightEncoder, tower: TextTower, texts: Sequence[Sequence[str]], vectors: np.ndarray,
    right: Sequence[int] | None = None,
) -> float:  # fmt: skip
    """How often ``texts[i]`` find ``vectors[right[i]]`` (default: row i) among the first five of ``vectors``."""
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    own = np.stack([tower.encode(list(lines)).mean(axis=0) for lines in texts])
    scores = encoder.query(own) @ vectors.T
    best = scores[np.arange(len(scores)), np.arange(len(scores)) if right is None else np.asarray(right)]
    rank = (scores > best[:, None]).sum(axis=1)
    return float((rank < 5).mean())


def _vectors(encoder: WeightEncoder, files: Iterable[ModuleFeatures]) -> np.ndarray:
    """(n, dim) float32 of every file."""
    rows = [encoder.encode(encoder.schema.assemble(file)) for file in files]
    return np.stack(rows) if rows else np.zeros((0, encoder.dim), np.float32)


def _bring_up_to_date(store: Store, encoder: WeightEncoder, hashes: list[str], inputs: str, fit: FamilyFit, tick):
    """Store the encoder as the current one of its family and tower, and the vectors that are missing; drop old ones."""
    have = {row[0] for row in store.db.execute("SELECT hash FROM vectors WHERE encoder_id = ?", (encoder.id,))}
    missing = [digest for digest in hashes if digest not in have]
    path = encoder_path(store.folder, encoder.id)
    if fit.refitted or not path.is_file():
        encoder.save(path)
    remember(encoder)
    row = (
        encoder.id, fit.family, encoder.id.partition("-")[0], encoder.schema.id, encoder.tower, inputs,
        json.dumps({"found_top5": fit.found_top5, "captioned": fit.captioned, "asks": fit.asks}), now(),
    )  # fmt: skip
    with store.transaction() as db:
        current = db.execute("SELECT inputs FROM encoders WHERE id = ? AND current = 1", (encoder.id,)).fetchone()
        if missing or current != (inputs,):
            db.execute("UPDATE encoders SET current = 0 WHERE family = ? AND tower_id = ?", (fit.family, encoder.tower))
            db.execute("INSERT OR REPLACE INTO encoders VALUES (?,?,?,?,?,?,?,1,?)", row)
            store.bump()
        for start in range(0, len(missing), ASSEMBLE_BLOCK):
            tick(0.5 + 0.5 * start / len(missing))
            block = missing[start : start + ASSEMBLE_BLOCK]
            sketches = read_sketches(db, block, fit.family)
            vectors = _vectors(encoder, (sketches[digest] for digest in block))
            store_vectors(
                store, encoder.id, encoder.schema.id, encoder.tower, list(zip(block, vectors, strict=True)), now()
            )
        dropped = drop_old(store, fit.family, encoder.tower)
    for old in dropped:
        searches = store.folder.glob(f"search-{old}-*.arrays")
        for stale in (encoder_path(store.folder, old), vectors_path(store.folder, old), *searches):
            remove(stale)


def feature_matrix(
    entries: list[Entry], sketches: Mapping[str, ModuleFeatures], family: str, schema: FeatureSchema | None
) -> tuple[list[Entry], np.ndarray]:
    """Entries that have features and their rows (n, F) float32, on ``schema`` or on one learnt from ``sketches``."""
    known = [entry for entry in entries if entry.hash in sketches]
    schema = schema or FeatureSchema.learn(family, [sketches[key] for key in sorted(sketches)])
    return known, _assemble(schema, (sketches[entry.hash] for entry in known))
