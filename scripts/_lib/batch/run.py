"""A whole batch: the plan, the workers, progress, and an end that can be taken up again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..cli import ScriptFailed
from ..interrupts import Interrupted
from ..progress import Progress
from .board import Attempt, Board
from .books import Books
from .jobs import Job
from .remote import Remote
from .worker import Pace, Worker

_FIRST_ANSWER = 10  # looks at servers of which none has answered, before the batch is given up
_GRACE = 20.0  # seconds for workers to end a request that is under way


class Console:
    """Lines that stay, above a bar that is redrawn; on a pipe a line of progress now and then."""

    def __init__(self, every: float = 30.0) -> None:
        self.line, self.every, self._told = Progress("Batch"), every, time.monotonic()
        self._lock = threading.Lock()

    def say(self, words: str) -> None:
        """One line that stays."""
        with self._lock:
            self.line.done_above(words)

    def show(self, fraction: float, words: str) -> None:
        """How far it is."""
        with self._lock:
            self.line.bar(fraction, words)
        if not self.line.live and time.monotonic() - self._told > self.every:
            self._told = time.monotonic()
            print(f"{fraction:.0%} {words}", flush=True)


def choose(jobs: Sequence[Job], books: Books, folder: Path, retry_failed: bool, remake: bool) -> tuple[list[Job], str]:
    """The jobs still to be made, and what is left out of them, in words."""
    todo, made, failed, gone = [], 0, 0, 0
    for job in jobs:
        line = books.done.get(job.id)
        if line is None:
            todo.append(job)
        elif line.get("status") == "failed":
            failed += 1
            todo += [job] if retry_failed else []
        else:
            missing = any(not (folder / file["name"]).exists() for file in line.get("files", []))
            made, gone = made + 1, gone + missing
            todo += [job] if missing and remake else []
    words = [f"{len(jobs)} jobs, {made} made already"]
    words += (
        [f"{failed} failed before{' and are tried again' if retry_failed else ' (--retry-failed)'}"] if failed else []
    )
    words += [f"files of {gone} are no longer here{'' if remake else ' (--remake-missing)'}"] if gone else []
    return todo, ", ".join(words) + "."


class Batch:
    """The workers of one batch, and what the main thread does meanwhile."""

    def __init__(self, board: Board, remotes: Sequence[Remote], pace: Pace, give_up: float = 3600.0) -> None:
        self.board, self.pace, self.give_up = board, pace, give_up
        self.workers = [Worker(remote, board, pace, self._able, self._others) for remote in remotes]
        self._by_name = {worker.shown: worker for worker in self.workers}
        self._started = time.monotonic()

    def take_up(self, jobs: Sequence[Job]) -> int:
        """What an earlier run sent and did not see the end of is looked for where it was sent; how many those are.

        ``jobs`` are all of the plan: one that is done already may still wait on a server that had been gone.
        """
        found, known = 0, {job.id: job for job in jobs}
        for prompt_id, line in self.board.books.out.items():
            job = known.get(line["id"])
            if job is None:
                continue  # of a row that is no longer asked for: it stays in the outbox
            worker = self._by_name.get(line["server"]) or self._collector(line["server"])
            attempt = Attempt(job, prompt_id, float(line.get("at", 0.0)))
            worker.attempts.append(attempt)
            self.board.adopt(attempt)
            found += 1
        return found

    def run(self, show: Callable[[float, str], None]) -> None:
        """Until everything is finished. Raises `ScriptFailed` when no server is any use, or all jobs fail."""
        for worker in self.workers:
            worker.start()
        while not self.board.over():
            self.board.changed.wait(0.2)
            self.board.changed.clear()
            self._watch()
            show(*self._progress())
        if self.board.problem:
            self.stop()
            raise ScriptFailed(self.board.problem)
        self.board.stopping.set()  # wakes those that wait for a server to come back
        self._join()

    def stop(self) -> tuple[int, int]:
        """End early and leave the servers' queues clean: how many jobs were taken back, how many may still run."""
        self.board.stopping.set()
        self._join()
        left = [worker.leave() for worker in self.workers if not worker.is_alive()]
        return sum(back for back, _ in left), sum(on for _, on in left)

    def _join(self) -> None:
        deadline = time.monotonic() + _GRACE
        for worker in self.workers:
            worker.join(max(0.1, deadline - time.monotonic()))

    def _collector(self, server: str) -> Worker:
        """For a server that is not among those of this run, but has something of ours."""
        worker = Worker(Remote(server), self.board, self.pace, self._able, self._others, only_collect=True)
        self.workers.append(worker)
        self._by_name[server] = worker
        return worker

    def _able(self) -> set[str]:
        """Servers that may take a job: all but those that lack a node, and those that were away for too long."""
        now, takers = time.monotonic(), self._takers()
        return {w.shown for w in takers if w.state != "unfit" and now - w.last_up < self.give_up}

    def _others(self, worker: Worker) -> bool:
        return any(other.state == "up" for other in self._takers() if other is not worker)

    def _takers(self) -> list[Worker]:
        return [worker for worker in self.workers if not worker.only_collect]

    def _watch(self) -> None:
        """End the batch where no server is any use."""
        takers, now = self._takers(), time.monotonic()
        reasons = "\n".join(f"  {worker.error}" for worker in takers)
        if all(worker.error and not worker.met for worker in takers):
            certain = all(worker.state == "unfit" for worker in takers)
            if certain or now - self._started > _FIRST_ANSWER * self.pace.poll:
                fix = "" if certain else "\nStart ComfyUI, or say where yours is: --server http://ADDRESS:PORT"
                self.board.end(f"No server can be used:\n{reasons}{fix}")
        elif all(now - worker.last_up > self.give_up for worker in takers):
            self.board.end(f"No server has answered for {self.give_up / 60:.0f} minutes:\n{reasons}")
        else:
            self.board.fail_refused(self._able())

    def _progress(self) -> tuple[float, str]:
        board, tally = self.board, self.board.tally
        whole, left = len(board.jobs), board.left()
        words = f"{whole - left} of {whole}" + (f", {tally.failed} failed" if tally.failed else "")
        up = sum(worker.state == "up" for worker in self.workers)
        words += f", {up} of {len(self.workers)} servers" if len(self.workers) > 1 else ("" if up else ", no server")
        ends = list(tally.ends)
        if len(ends) > 1 and left:
            each = (ends[-1] - ends[0]) / (len(ends) - 1)
            words += f", {_span(each * left)} left"
        return (whole - left) / max(whole, 1), words


def carry_out(batch: Batch, console: Console, resume: str) -> int:
    """Run a batch to its end, or until Ctrl-C; the exit code."""
    try:
        batch.run(console.show)
    except Interrupted as stop:
        console.say("Stopping: taking back what still waits on the servers …")
        back, on = batch.stop()
        running = f" {on} may still run there and will be fetched." if on else ""
        console.say(f"{back} jobs were taken back.{running} {batch.board.left()} are left. To go on: {resume}")
        return stop.exit_code
    except ScriptFailed as error:
        raise ScriptFailed(f"{error}\n{batch.board.left()} jobs are left. To go on: {resume}") from error
    tally = batch.board.tally
    twice = f" {tally.twice} were made twice by a server that had been gone; the first was kept." if tally.twice else ""
    again = f" See the manifest; {resume} --retry-failed tries them again." if tally.failed else ""
    console.line.done(f"{tally.made} made ({tally.files} files), {tally.failed} failed.{twice}{again}")
    return 1 if tally.failed else 0


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
