"""What all workers share: which jobs wait, who has which, what is finished. Any thread may call any method."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .books import Books
from .jobs import Job
from .workflow import Workflow

MOST_LOST = 5  # a job that so many servers forgot, or that brings servers down, is not tried again
ALL_BAD = 10  # failures without one success after which something is wrong with the whole batch


@dataclass(eq=False)
class Attempt:
    """A job sent to a server.

    ``sure``: the server said that it has it. ``stray``: given to others meanwhile, as the server was gone.
    ``yields``: another server was seen running it; this one is taken back if it only waits.
    """

    job: Job
    prompt_id: str
    at: float
    sure: bool = False
    stray: bool = False
    yields: bool = False
    stopped: bool = False


@dataclass
class Tally:
    """Counts for the end of the batch."""

    made: int = 0
    failed: int = 0
    twice: int = 0
    files: int = 0
    ends: deque[float] = field(default_factory=lambda: deque(maxlen=60))


class Board:
    """The state of one batch; its lock guards jobs and attempts."""

    def __init__(self, jobs: Iterable[Job], workflow: Workflow, books: Books, folder: Path, say: Callable[[str], None]):
        self.workflow, self.books, self.folder, self.say = workflow, books, folder, say
        self.jobs = {job.id: job for job in jobs}
        self.waiting: deque[Job] = deque(self.jobs.values())
        self.tally, self.stopping, self.changed = Tally(), threading.Event(), threading.Event()
        self.problem = ""  # why the whole batch ended early
        self._held: dict[str, list[Attempt]] = {}
        self._finished: set[str] = set()
        self._lock = threading.RLock()

    def adopt(self, attempt: Attempt) -> None:
        """An attempt of an earlier run: its job does not wait any more. That of a finished job is only a remainder."""
        with self._lock:
            self._held.setdefault(attempt.job.id, []).append(attempt)
            attempt.stray = self.is_done(attempt.job)
            if attempt.job in self.waiting:
                self.waiting.remove(attempt.job)

    def take(self, server: str) -> Job | None:
        """The next job that this server has not refused."""
        with self._lock:
            for job in self.waiting:
                if server not in job.refused:
                    self.waiting.remove(job)
                    return job
        return None

    def hold(self, attempt: Attempt) -> None:
        """Note an attempt before it is sent."""
        with self._lock:
            self._held.setdefault(attempt.job.id, []).append(attempt)

    def drop(self, attempt: Attempt, why: str) -> None:
        """The attempt is over without a result; its job waits again unless somebody else has it, or it is done."""
        self.books.back(attempt.prompt_id, why)
        with self._lock:
            attempt.job.lost += why in ("lost", "never arrived")
            self._let_go(attempt)
            if attempt.job.lost >= MOST_LOST and not self.is_done(attempt.job):
                words = f"sent {MOST_LOST} times, and each time the server forgot it or went away"
                self.fail(attempt, "", {"node": None, "type": None, "message": words})

    def give_away(self, attempt: Attempt) -> None:
        """Its server is gone: others may make the job. The attempt stays known, should the server come back."""
        with self._lock:
            attempt.stray = True
            self._wait_again(attempt.job)

    def reclaim(self, attempt: Attempt) -> bool:
        """A server is back and still has the job: True when it is its again, False when another one has it now."""
        with self._lock:
            if attempt.job in self.waiting:
                self.waiting.remove(attempt.job)
                attempt.stray = False
            return not attempt.stray

    def contest(self, attempt: Attempt) -> None:
        """A stray attempt is running: the others are to give way if they only wait."""
        with self._lock:
            for other in self._held.get(attempt.job.id, []):
                other.yields = other.yields or other is not attempt

    def yielded(self, attempt: Attempt) -> None:
        """The attempt was taken back for one that runs, which owns the job from now on."""
        self.books.back(attempt.prompt_id, "withdrawn")
        with self._lock:
            others = [other for other in self._held[attempt.job.id] if other is not attempt]
            for other in others[:1]:
                other.stray = False
            self._let_go(attempt)

    def is_done(self, job: Job) -> bool:
        """Whether the job has its line in the manifest, of this run or an earlier one, and is not to be made again."""
        with self._lock:
            return job.id in self._finished or job.id not in self.jobs

    def finish(self, attempt: Attempt, line: dict[str, Any]) -> bool:
        """Write a job's line; False, and nothing written, when another server was first."""
        with self._lock:
            if self.is_done(attempt.job):
                self.tally.twice += 1
                self._let_go(attempt)
            else:
                self._write(attempt.job, line)
                self._let_go(attempt)
                return True
        self.books.back(attempt.prompt_id, "duplicate")
        self.say(f"row {attempt.job.row.number} was made twice, by {line['server']} too: the first is kept")
        return False

    def fail(self, attempt: Attempt, server: str, fault: dict[str, Any]) -> None:
        """Write that a job failed; it is not tried again by itself."""
        from .collect import line_of

        if self.finish(attempt, line_of(attempt.job, server, attempt.prompt_id, status="failed", error=fault)):
            where = f"node {fault['node']} ({fault['type']}): " if fault.get("node") else ""
            self.say(f"row {attempt.job.row.number} failed: {where}{fault['message']}")

    def refuse(self, attempt: Attempt, server: str, fault: dict[str, Any], able: set[str]) -> None:
        """A server would not take the job: the others are asked; when all of ``able`` refused, it has failed."""
        with self._lock:
            attempt.job.refused[server] = fault
            last = able <= set(attempt.job.refused)
        if last:
            self.fail(attempt, server, fault)
        else:
            self.drop(attempt, "refused")
            self.say(f"{server} cannot make row {attempt.job.row.number}: {fault['message']} – others are asked")

    def fail_refused(self, able: set[str]) -> None:
        """Fail the jobs that every server refused which may still come: those of ``able``."""
        with self._lock:
            hopeless = [job for job in self.waiting if job.refused and able <= set(job.refused)]
        for job in hopeless:
            server, fault = next(iter(job.refused.items()))
            self.fail(Attempt(job, "", 0.0), server, fault)

    def end(self, problem: str) -> None:
        """End the whole batch early, for the first ``problem`` there was."""
        with self._lock:
            self.problem = self.problem or problem
        self.stopping.set()
        self.changed.set()

    def left(self) -> int:
        """Jobs without a line in the manifest."""
        with self._lock:
            return len(self.jobs) - len(self._finished)

    def over(self) -> bool:
        """Whether workers are to end."""
        return self.stopping.is_set() or not self.left()

    def _write(self, job: Job, line: dict[str, Any]) -> None:
        self.books.finish(line)
        self._finished.add(job.id)
        if job in self.waiting:
            self.waiting.remove(job)
        made = line["status"] == "done"
        self.tally.made += made
        self.tally.failed += not made
        self.tally.files += len(line.get("files", []))
        self.tally.ends.append(time.monotonic())
        if self.tally.failed >= ALL_BAD and not self.tally.made:
            self.end(f"The first {ALL_BAD} jobs all failed; the last one: {line['error']['message']}")
        self.changed.set()

    def _let_go(self, attempt: Attempt) -> None:
        held = self._held.get(attempt.job.id, [])
        if attempt in held:
            held.remove(attempt)
        self._wait_again(attempt.job)

    def _wait_again(self, job: Job) -> None:
        owned = any(not other.stray for other in self._held.get(job.id, []))
        if not owned and not self.is_done(job) and job not in self.waiting:
            self.waiting.appendleft(job)
            self.changed.set()
