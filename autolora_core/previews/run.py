"""Rendering the previews of some LoRAs: what is there already is left, what fails is named, the rest goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ..errors import AutoLoRAError, FileInUseError
from .difference import Difference, difference
from .settings import Settings
from .shelf import PreviewShelf, Record, without_key

Tick = Callable[[int, int, str], None]
WITHOUT = "without a LoRA"


@dataclass(frozen=True)
class Wanted:
    """A LoRA: ``key`` is the SHA-256 of its content, ``request`` what the camera knows it by."""

    key: str
    name: str
    request: Any = None


@dataclass(frozen=True)
class Shot:
    """A picture and its vectors, space → (d,)."""

    picture: Image.Image
    vectors: dict[str, np.ndarray]


class Camera(Protocol):
    """A base model. Raises ``AutoLoRAError`` for what a LoRA is to blame for; all else ends the run."""

    towers: dict[str, str]  # space → what makes its vectors

    def put_in(self, request: Any | None) -> None:
        """From now on with this LoRA, None: without any."""
        ...

    def shoot(self, number: int) -> Shot:
        """The picture of the prompt of this number."""
        ...


@dataclass
class Outcome:
    """``rendered``: name → what its pictures say; ``there``: names of those that had been rendered so; ``failed``: name
    → why; ``in_use``: those of ``failed`` that nothing is wrong with, but a file of theirs was open elsewhere;
    ``left``: how many the limit left for the next run, those that failed not among them."""

    rendered: dict[str, Difference] = field(default_factory=dict)
    there: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    in_use: list[str] = field(default_factory=list)
    left: int = 0


def render(
    shelf: PreviewShelf,
    settings: Settings,
    wanted: Sequence[Wanted],
    camera: Camera,
    *,
    kept: int = 1,
    limit: int = 0,
    tick: Tick = lambda done, total, name: None,
) -> Outcome:
    """Render what is missing of ``wanted``, at most ``limit`` LoRAs (0: all), and keep ``kept`` pictures of each. One
    that fails does not count: it would take a place in every run, and with enough of them none would go on.

    ``tick(done, total, name)`` is called before every picture and after a failure, and may raise to interrupt: LoRAs
    that were finished stay finished. ``AutoLoRAError`` when the base itself cannot be sampled, ``NotWrittenError`` when
    the disk takes no more. A LoRA whose picture somebody has open (Windows) is named and left for the next run.
    """
    shelf.tidy()
    prompts, outcome = len(settings.prompts), Outcome()
    kept = min(kept, prompts)
    missing = []
    for lora in wanted:
        if shelf.holds(lora.key, settings.id, kept):
            outcome.there.append(lora.name)
        else:
            missing.append(lora)
    if not missing:
        return outcome
    most = min(limit or len(missing), len(missing))
    steps = _Steps(tick, (most + 1) * prompts)
    without = _without(shelf, settings, camera, kept, steps, outcome)
    for number, lora in enumerate(missing):
        if len(outcome.rendered) == most:
            outcome.left = len(missing) - number
            break
        steps.begin((len(outcome.rendered) + 1) * prompts)
        try:
            camera.put_in(lora.request)
            shots = _shots(camera, prompts, steps, lora.name)
            vectors = _stacked(shots)
        except AutoLoRAError as error:
            outcome.failed[lora.name] = error.message
            steps.tell(lora.name)
            continue
        changes = {space: rows - without.vectors[space] for space, rows in vectors.items()}
        record = Record(settings.id, changes, camera.towers, lora.name)
        if _put(shelf, lora.key, lora.name, record, shots[:kept], outcome):
            outcome.rendered[lora.name] = difference(changes[_told_by(changes)])
    return outcome


def _put(
    shelf: PreviewShelf, key: str, name: str, record: Record, shots: Sequence[Shot], outcome: Outcome
) -> bool:  # fmt: skip
    """Put pictures there; False, and said in ``outcome``, where somebody has one of the old files open."""
    try:
        shelf.put(key, record, [shot.picture for shot in shots])
        return True
    except FileInUseError as error:
        # Hours of sampling may stand behind this one and before the others: one open viewer does not end them.
        file = f"{Path(error.path).name}: " if error.path else ""
        outcome.failed[name] = f"{file}{error.message}; close it there, then queue this again"
        outcome.in_use.append(name)
        return False


def _without(
    shelf: PreviewShelf, settings: Settings, camera: Camera, kept: int, steps: _Steps, outcome: Outcome
) -> Record:  # fmt: skip
    """The record of the prompts without a LoRA; rendered where it is missing."""
    key = without_key(settings.without)
    if not shelf.holds(key, settings.without, kept):
        camera.put_in(None)
        shots = _shots(camera, len(settings.prompts), steps, WITHOUT)
        record = Record(settings.without, _stacked(shots), camera.towers)
        _put(shelf, key, WITHOUT, record, shots[:kept], outcome)
        return record
    return shelf.record(key)


class _Steps:
    def __init__(self, tick: Tick, total: int):
        self.tick, self.total, self.at, self.told = tick, total, 0, 0

    def begin(self, at: int) -> None:
        self.at = at

    def tell(self, name: str) -> None:
        """A LoRA that failed after its pictures were made gives its place to the next: no bar runs back for that."""
        self.told = max(self.told, self.at)
        self.tick(self.told, self.total, name)

    def next(self, name: str) -> None:
        self.tell(name)
        self.at += 1


def _shots(camera: Camera, prompts: int, steps: _Steps, name: str) -> list[Shot]:
    shots = []
    for number in range(prompts):
        steps.next(name)
        shots.append(camera.shoot(number))
    return shots


def _stacked(shots: Sequence[Shot]) -> dict[str, np.ndarray]:
    found = {space: np.stack([shot.vectors[space] for shot in shots]) for space in shots[0].vectors}
    for rows in found.values():
        if not np.isfinite(rows).all():
            raise AutoLoRAError("its pictures hold values that are not finite", fix="try a smaller strength")
    return found


def _told_by(changes: dict[str, np.ndarray]) -> str:
    """Of several spaces the one whose numbers are told: a CLIP's, as CARLoS has them."""
    return next((space for space in changes if space != "latents"), next(iter(changes)))
