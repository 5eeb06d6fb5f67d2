"""Keeps one server busy: sends jobs, looks what became of them, fetches what they made, and notices when it is gone."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from ..cli import ScriptFailed
from ..client import PromptRejected
from .board import Attempt, Board
from .collect import Gone, download, fault_of, line_of, picks_of, refusal, seconds_of
from .remote import Remote, Unreachable

EXTRA = "autolora_batch"


@dataclass(frozen=True)
class Pace:
    """Seconds, and how many jobs of ours a server has at once.

    ``gone_after``: a server that does not answer is taken for gone (a busy one may be silent for long);
    ``refused_after``: the same where nobody listens at its address. ``settle``: a job that was sent when we were
    killed may still arrive.
    """

    queued: int = 2
    poll: float = 0.5
    look: float = 3.0
    gone_after: float = 120.0
    refused_after: float = 10.0
    settle: float = 5.0
    longest_wait: float = 30.0


class Worker(threading.Thread):
    """One server's thread.

    Args:
        remote, board, pace: the server, the batch, and how fast.
        able: the names of all servers that may be asked for a job, be they away for a while.
        others: whether another server is up.
        only_collect: send nothing; fetch what an earlier run sent.

    ``state`` is new, up, down or unfit (it lacks a node of the workflow), ``error`` why it is not up; ``met``: it was
    seen to be a ComfyUI that knows all nodes.
    """

    def __init__(
        self, remote: Remote, board: Board, pace: Pace, able: Callable[[], set[str]],
        others: Callable[[Worker], bool], only_collect: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(name=remote.name, daemon=True)
        self.remote, self.board, self.pace, self.able, self.others = remote, board, pace, able, others
        self.only_collect = only_collect
        self.attempts: list[Attempt] = []
        self.state, self.error, self.met, self.last_up = "new", "", False, time.monotonic()
        self._down_since = self._looked = 0.0
        self._tries, self._told_gone = 0, False

    @property
    def shown(self) -> str:
        """The server's address without a password."""
        return self.remote.name

    def run(self) -> None:
        """Work until the batch is over; then take back what another server finished meanwhile."""
        while not self.board.over():
            try:
                wait = self._turn()
            except Unreachable as error:
                wait = self._trouble(error)
            except Exception as error:  # a disk that is full, a fault of ours: it ends the batch, never in silence
                self.board.end(f"{self.shown}: {type(error).__name__}: {error}")
                if not isinstance(error, OSError | ScriptFailed):
                    raise
                return
            self.board.stopping.wait(wait)
        if self.attempts and not self.board.problem:
            with contextlib.suppress(Unreachable):
                self._look()

    def _turn(self) -> float:
        """One look at the server; seconds until the next."""
        if self.state != "up":
            self._arrive()
        fetched = self._round()
        if self._told_gone:
            self.board.say(f"{self.shown} is back")
            self._told_gone = False
        self.state, self.error, self._tries, self.last_up = "up", "", 0, time.monotonic()
        return 0.02 if fetched else self.pace.poll

    def leave(self) -> tuple[int, int]:
        """The batch ends early: take back what waits; how many were taken back, and how many go on running."""
        mine = [attempt.prompt_id for attempt in self.attempts]
        if not mine or self.state != "up":
            return 0, len(mine)
        try:
            waiting = self.remote.queued()[1] & set(mine)
            if waiting:
                self.remote.withdraw(sorted(waiting))
            running, pending = self.remote.queued()
        except Unreachable:
            return 0, len(mine)
        back = waiting - running - pending
        for attempt in list(self.attempts):
            if attempt.prompt_id in back and self.remote.record(attempt.prompt_id) is None:
                self._forget(attempt, "withdrawn")
        return len(back), len(self.attempts)

    def _arrive(self) -> None:
        """See that the server can run the workflow, at the start and whenever it comes back."""
        self._looked = 0.0
        if self.only_collect:
            return
        missing = self.remote.missing(self.board.workflow.with_picks(self.board.workflow.graph))
        if missing:
            words = f"{self.shown} does not know {', '.join(missing)}: install the pack that has it there"
            if self.state != "unfit":
                self.board.say(words)
            self.state = "unfit"
            raise Unreachable(words)
        self.met, self.state = True, "down" if self.state == "unfit" else self.state

    def _round(self) -> int:
        """Fetch what is finished, see that the rest is still there, send more; how many were fetched."""
        fetched = 0
        for attempt in list(self.attempts):
            record = self.remote.record(attempt.prompt_id)
            if record is not None:
                self._collect(attempt, record)
                fetched += 1
        if self.attempts and time.monotonic() - self._looked >= self.pace.look:
            self._look()
        while self._own() < self.pace.queued and not self.only_collect and not self.board.over():
            job = self.board.take(self.shown)
            if job is None:
                break
            self._send(Attempt(job, str(uuid.uuid4()), time.time()))
        return fetched

    def _own(self) -> int:
        return sum(not attempt.stray for attempt in self.attempts)

    def _send(self, attempt: Attempt) -> None:
        job = attempt.job
        graph = self.board.workflow.with_picks(job.graph(self.board.workflow))
        self.board.hold(attempt)
        self.attempts.append(attempt)
        self.board.books.sent(job.id, self.shown, attempt.prompt_id, attempt.at)
        try:
            given = self.remote.submit(graph, attempt.prompt_id, {EXTRA: {"job": job.id, "row": job.row.number}})
        except PromptRejected as error:
            self.attempts.remove(attempt)
            self.board.refuse(attempt, self.shown, refusal(error), self.able())
            return
        if given != attempt.prompt_id:  # an old server names runs itself
            self.board.books.sent(job.id, self.shown, given, attempt.at)
            self.board.books.back(attempt.prompt_id, "renamed")
            attempt.prompt_id = given
        attempt.sure = True

    def _look(self) -> None:
        """Compare what we sent with the server's queue. The history is asked afterwards: what left the queue meanwhile
        stands in it, and what is in neither is lost."""
        running, waiting = self.remote.queued()
        for attempt in list(self.attempts):
            if attempt.prompt_id in running | waiting:
                self._judge(attempt, attempt.prompt_id in running)
                continue
            record = self.remote.record(attempt.prompt_id)
            if record is not None:
                self._collect(attempt, record)
            elif attempt.sure or not 0 <= time.time() - attempt.at <= self.pace.settle:
                self._forget(attempt, "lost" if attempt.sure else "never arrived")
        self._looked = time.monotonic()

    def _judge(self, attempt: Attempt, runs: bool) -> None:
        """The server has this job in its queue: is it still wanted from it?"""
        attempt.sure = True
        if self.board.is_done(attempt.job):
            self._cancel(attempt, runs)
        elif attempt.stray and not self.board.reclaim(attempt):
            if runs:
                self.board.contest(attempt)
            else:
                self._cancel(attempt, runs)
        elif attempt.yields and not runs and self._taken_back(attempt):
            self.attempts.remove(attempt)
            self.board.yielded(attempt)

    def _cancel(self, attempt: Attempt, runs: bool) -> None:
        if runs:
            attempt.stopped = True
            self.remote.stop(attempt.prompt_id)  # its history comes next, and says that it was interrupted
        elif self._taken_back(attempt):
            self._forget(attempt, "withdrawn")

    def _taken_back(self, attempt: Attempt) -> bool:
        self.remote.withdraw([attempt.prompt_id])
        running, waiting = self.remote.queued()
        return attempt.prompt_id not in running | waiting and self.remote.record(attempt.prompt_id) is None

    def _collect(self, attempt: Attempt, record: dict) -> None:
        fault = fault_of(record)
        if fault is not None and (attempt.stopped or attempt.stray or self.board.is_done(attempt.job)):
            return self._forget(attempt, "withdrawn")  # what fails beside another that is on its way says nothing
        if fault is None and not self.board.is_done(attempt.job):
            try:
                files = download(self.remote, attempt.job, record, self.board.folder)
            except Gone as error:
                fault = {"node": None, "type": None, "message": str(error)}
            else:
                if not files:
                    fault = {"node": None, "type": None, "message": "the workflow saved nothing"}
        self.attempts.remove(attempt)
        if fault is not None:
            return self.board.fail(attempt, self.shown, fault)
        more = {"picks": picks_of(record), "files": [] if self.board.is_done(attempt.job) else files}
        told = {"status": "done", "seconds": seconds_of(record), **more}
        self.board.finish(attempt, line_of(attempt.job, self.shown, attempt.prompt_id, **told))

    def _forget(self, attempt: Attempt, why: str) -> None:
        self.attempts.remove(attempt)
        self.board.drop(attempt, why)

    def _trouble(self, error: Unreachable) -> float:
        """Note that the server did not answer; seconds to wait. Gives its jobs away once it is really gone."""
        now = time.monotonic()
        if not self._tries:
            self._down_since = now
        self._tries += 1
        self.state, self.error = "down" if self.state == "up" else self.state, str(error)
        away = self.pace.refused_after if error.refused else self.pace.gone_after
        if self.state == "unfit" or (self._tries >= 3 and now - self._down_since >= away):
            self._is_gone(error)
        return min(self.pace.longest_wait, self.pace.poll * 2 ** min(self._tries, 10))

    def _is_gone(self, error: Unreachable) -> None:
        """Others may make what it has, where there are others that are up."""
        mine = [attempt for attempt in self.attempts if not attempt.stray] if self.others(self) else []
        for attempt in mine:
            self.board.give_away(attempt)
        if mine or not (self._told_gone or self.state == "unfit"):
            jobs = f" Its {len(mine)} unfinished jobs go to other servers." if mine else ""
            self.board.say(f"{error}: gone.{jobs} It is tried again until it is back.")
            self._told_gone = True
