"""A batch on fake servers, in this process: a table, the workflow, and every start of the command as an object."""

from __future__ import annotations

import time
from collections import Counter

from batch_world import check
from fake_comfy import FakeComfy

from scripts._lib.batch.board import Board
from scripts._lib.batch.books import Books
from scripts._lib.batch.jobs import plan
from scripts._lib.batch.remote import Remote
from scripts._lib.batch.rows import Row
from scripts._lib.batch.run import Batch, choose
from scripts._lib.batch.worker import Pace
from scripts._lib.batch.workflow import Workflow

GRAPH = {
    "find": {"class_type": "AutoLoRARetrieve", "inputs": {"prompt": "", "top_k": 3}},
    "draw": {"class_type": "Draw", "inputs": {"prompt": "{prompt}", "seed": "{seed}", "loras": ["find", 1]}},
}
FAST = Pace(poll=0.01, look=0.02, gone_after=0.4, refused_after=0.1, settle=0.3, longest_wait=0.05)


class World:
    """A table of prompts in a folder; every `batch` is as a new start of the command."""

    def __init__(self, folder, count=12):
        self.folder, self.said = folder, []
        self.rows = [Row(number, number, {"prompt": f"picture {number}"}) for number in range(1, count + 1)]
        self.workflow = Workflow(GRAPH, ["prompt"])

    def batch(self, fakes, pace=FAST, give_up=5.0, **choice):
        books, jobs = Books(self.folder), plan(self.rows, self.workflow)[0]
        options = {"retry_failed": False, "remake": False, **choice}
        todo, self.words = choose(jobs, books, self.folder, **options)
        board = Board(todo, self.workflow, books, self.folder, self.said.append)
        batch = Batch(board, [Remote(fake.url, timeout=1.0) for fake in fakes], pace, give_up)
        self.found = batch.take_up(jobs)
        return batch

    def run(self, fakes, **options):
        batch = self.batch(fakes, **options)
        batch.run(lambda *_: None)
        return batch.board.tally

    def lines(self):
        return check(self.folder, len(self.rows))


def made(*fakes):
    return Counter(prompt for fake in fakes for prompt in fake.made)


def once(world, *fakes):
    return made(*fakes) == Counter(row.values["prompt"] for row in world.rows)


def until(what, limit=5.0):
    deadline = time.monotonic() + limit
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)


def some_fakes():
    """A fixture's body: a function that starts so many servers; they are stopped at the end."""
    started = []

    def make(count=1, **options):
        started.extend(FakeComfy(**options) for _ in range(count))
        return started[len(started) - count :]

    yield make
    for fake in started:
        fake.stop()
