"""Steps that are done once: each leaves a stamp keyed by what it was made from, so that a second run goes on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from .files import write_atomic
from .paths import cache_dir
from .process import CommandFailed
from .progress import Progress

Tick = Callable[..., None]  # with a word on what is happening, or without


class StepFailed(Exception):
    """A step that could not be done: its name, why, the last lines of the tool's output, and what to do about it."""

    def __init__(self, step: Step, why: str, output: str = "") -> None:
        self.step = step
        shown = "".join(f"\n    | {line}" for line in output.splitlines())
        super().__init__(
            f"Step '{step.name}' failed ({step.title}): {why}{shown}\n"
            f"What to do: {step.fix}\nThen run the same command again: finished steps are kept."
        )


class StepError(Exception):
    """Raised by a step's action with a plain reason, when there is no tool's output to show."""


@dataclass(frozen=True)
class Step:
    """Something to have, and how to get it.

    Attributes:
        name: one word for messages.
        title: what it is, for people.
        stamp: file that says it is done; inside the thing made, so that deleting the thing forgets the step.
        inputs: everything the result depends on; a change means doing it again.
        action: makes it; called with a function to call now and then while waiting.
        fix: what to do when it fails.
        size: what it downloads and takes on disk, in words.
        intact: whether what a valid stamp speaks of is still there.
    """

    name: str
    title: str
    stamp: Path
    inputs: tuple[str, ...]
    action: Callable[[Tick], None]
    fix: str
    size: str = ""
    intact: Callable[[], bool] = lambda: True

    @property
    def key(self) -> str:
        """A hash of the inputs."""
        return hashlib.sha256(json.dumps([self.name, *self.inputs]).encode()).hexdigest()

    def is_done(self) -> bool:
        """Whether the stamp is there, belongs to these inputs, and the thing itself is intact."""
        try:
            stamp = json.loads(self.stamp.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False  # no stamp, or not one of ours: do the step again
        return isinstance(stamp, dict) and stamp.get("key") == self.key and self.intact()

    def finish(self) -> None:
        """Leave the stamp."""
        stamp = {"step": self.name, "key": self.key, "finished": time.strftime("%Y-%m-%dT%H:%M:%S")}
        write_atomic(self.stamp, json.dumps(stamp, indent=1).encode())


def run_step(step: Step, label: str) -> None:
    """Do a step that is not done, and stamp it. Raises `StepFailed`."""
    if step.is_done():
        return
    line = Progress(label)
    try:
        step.action(line.tick)
    except CommandFailed as error:
        line.done("failed")
        raise StepFailed(step, f"{error}\nFull log: {error.log}", error.tail) from error
    except (StepError, OSError) as error:
        line.done("failed")
        raise StepFailed(step, str(error)) from error
    except BaseException:
        line.done("stopped")
        raise
    step.finish()
    line.done(f"done in {line.seconds:.0f} s")


def run_steps(steps: Iterable[Step]) -> None:
    """Do what is missing, in order, after saying what that is and how big."""
    steps = list(steps)
    missing = [step for step in steps if not step.is_done()]
    if not missing:
        return
    there = f" ({len(steps) - len(missing)} of {len(steps)} steps are done)" if len(missing) < len(steps) else ""
    print(f"To be installed now, into {cache_dir()}{there}:")
    for step in missing:
        print(f"  {step.title}" + (f": {step.size}" if step.size else ""))
    print(flush=True)
    for number, step in enumerate(steps, 1):
        # Each is looked at again when its turn comes: rebuilding one step may have undone a later one.
        run_step(step, f"[{number}/{len(steps)}] {step.title}")
