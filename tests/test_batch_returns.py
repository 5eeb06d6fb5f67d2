"""Batches whose client is killed and whose servers go away and come back: each job once, and none lost."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest
from batch_fakes import FAST, World, made, once, some_fakes, until
from batch_world import manifest

from scripts._lib.batch.board import Attempt
from scripts._lib.batch.books import Books
from scripts._lib.batch.collect import line_of
from scripts._lib.batch.jobs import plan
from scripts._lib.batch.worker import Pace


@pytest.fixture
def fakes():
    yield from some_fakes()


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_a_server_that_is_gone_has_its_jobs_made_by_others(world, fakes):
    one, two = fakes(2, delay=0.03)
    batch = world.batch([one, two])
    ended = threading.Thread(target=batch.run, args=(lambda *_: None,))
    ended.start()
    until(lambda: len(two.made) >= 2)
    two.stop()
    ended.join(10)
    world.lines()
    assert any("gone. Its" in said for said in world.said)
    assert made(one, two).total() <= 12 + 2  # what the dead server had in hand


def test_a_server_that_comes_back_gives_what_it_made_and_takes_more(world, fakes):
    one, two = fakes(2, delay=0.05)
    one.delay = 0.2
    batch = world.batch([one, two])
    ended = threading.Thread(target=batch.run, args=(lambda *_: None,))
    ended.start()
    until(lambda: two.made)
    two.stop()
    until(lambda: any("gone. Its" in said for said in world.said))
    two.start()
    until(lambda: any("is back" in said for said in world.said))
    ended.join(10)
    world.lines()
    assert sum(line["server"] == two.url for line in manifest(world.folder)) > 2
    assert made(one, two).total() <= 12 + 2 and batch.board.tally.twice <= 2


def test_of_a_job_made_twice_the_first_is_kept_and_it_is_said(world, fakes):
    world.rows = world.rows[:1]
    one, two = fakes(2, delay=0.3)
    batch = world.batch([one, two], Pace(**{**FAST.__dict__, "queued": 1}))
    ended = threading.Thread(target=batch.run, args=(lambda *_: None,))
    ended.start()
    until(lambda: one.running or two.running)
    first, second = (one, two) if one.running else (two, one)
    first.stop()  # its picture goes on being made
    until(lambda: any("gone. Its" in said for said in world.said) and second.running)
    first.fault = lambda method, path: 503 if path.startswith("/view") else None
    first.start()
    ended.join(10)
    (line,) = world.lines()
    assert line["server"] == second.url and made(one, two).total() == 2


def test_a_server_that_forgot_everything_is_sent_its_jobs_again(world, fakes):
    (fake,) = fakes(delay=0.03)
    batch = world.batch([fake])
    ended = threading.Thread(target=batch.run, args=(lambda *_: None,))
    ended.start()
    until(lambda: len(manifest(world.folder)) >= 3)
    fake.forget()
    ended.join(10)
    world.lines()


def test_a_job_that_is_forgotten_again_and_again_fails_at_last(world, fakes):
    (fake,) = fakes(delay=60)
    world.rows = world.rows[:1]
    batch = world.batch([fake])
    ended = threading.Thread(target=batch.run, args=(lambda *_: None,))
    ended.start()
    while ended.is_alive():
        fake.forget()
        time.sleep(0.03)
    (line,) = manifest(world.folder)
    assert line["status"] == "failed" and "5 times" in line["error"]["message"]


@pytest.mark.parametrize("when", ["waits", "runs", "ended", "never arrived"])
def test_what_a_killed_run_had_sent_is_looked_for(world, fakes, when):
    (fake,) = fakes(delay=0.2 if when == "runs" else 0.0)
    job = plan(world.rows, world.workflow)[0][0]
    prompt_id, graph = "a1e0b0d4-0000-4000-8000-000000000001", job.graph(world.workflow)
    Books(world.folder).sent(job.id, fake.url, prompt_id, time.time() - (10 if when == "ended" else 0))
    if when != "never arrived":
        fake.post("/prompt", {"prompt": world.workflow.with_picks(graph), "prompt_id": prompt_id})
    if when == "runs":
        fake.advance()
        fake.delay = 0.0  # of those that come after it
    world.run([fake])
    line = world.lines()[0]
    assert world.found == 1 and once(world, fake)
    assert (line["prompt_id"] == prompt_id) == (when != "never arrived")


def test_what_arrives_after_its_sender_was_killed_is_waited_for(world, fakes):
    (fake,) = fakes()
    job = plan(world.rows, world.workflow)[0][0]
    Books(world.folder).sent(job.id, fake.url, "late", time.time())
    body = {"prompt": job.graph(world.workflow), "prompt_id": "late"}
    arrival = threading.Timer(0.1, fake.post, ("/prompt", body))
    arrival.start()
    world.run([fake])
    arrival.join()
    assert world.lines()[0]["prompt_id"] == "late" and once(world, fake)


def test_a_returned_server_that_runs_the_job_keeps_it_and_the_other_one_s_copy_is_taken_back(world, fakes):
    world.rows = world.rows[:1]
    one, two = fakes(2, delay=1.0)
    one.delay = 2.0  # longer than the other's queue: a copy left there would be made
    (job,) = plan(world.rows, world.workflow)[0]
    Books(world.folder).sent(job.id, one.url, "first", time.time())
    one.post("/prompt", {"prompt": job.graph(world.workflow), "prompt_id": "first"})
    one.advance()
    others = {"draw": {"class_type": "Draw", "inputs": {"prompt": "somebody else's"}}}
    two.post("/prompt", {"prompt": others, "prompt_id": "theirs"})
    two.advance()
    batch = world.batch([one, two])
    ended = threading.Thread(target=batch.run, args=(lambda *_: None,))
    ended.start()
    until(lambda: all(worker.state == "up" for worker in batch.workers))
    one.stop()
    until(lambda: two.pending)
    one.start()
    ended.join(10)
    (line,) = world.lines()
    two.advance()
    assert line["server"] == one.url and one.made == ["picture 1"] and not two.pending
    assert two.made == ["somebody else's"]


@pytest.mark.parametrize("there", ["waits", "runs"])
def test_what_a_returned_server_still_has_and_was_made_elsewhere_is_taken_back(world, fakes, there):
    one, two = fakes(2, delay=0.1)
    one.delay = 60
    job = plan(world.rows, world.workflow)[0][0]
    Books(world.folder).sent(job.id, one.url, "first", time.time())
    others = {"draw": {"class_type": "Draw", "inputs": {"prompt": "somebody else's"}}}
    if there == "waits":
        one.post("/prompt", {"prompt": others, "prompt_id": "theirs"})
    one.post("/prompt", {"prompt": job.graph(world.workflow), "prompt_id": "first"})
    batch = world.batch([one, two], Pace(**{**FAST.__dict__, "queued": 1}))
    ended = threading.Thread(target=batch.run, args=(lambda *_: None,))
    ended.start()
    until(lambda: all(worker.state == "up" for worker in batch.workers))
    one.stop()
    until(lambda: "picture 1" in two.made)
    one.start()
    until(lambda: any("is back" in said for said in world.said))
    until(lambda: "first" not in [item[1] for item in (*one.pending, *(item for item, _ in one.running))])
    one.delay, one.running = 0.0, [(item, 0.0) for item, _ in one.running]
    ended.join(10)
    world.lines()
    assert made(one, two)["picture 1"] == 1 and (there == "runs") == ("first" in one.history)


def test_two_results_of_one_job_give_one_line(world, fakes):
    board = world.batch(fakes(0)).board
    job = board.take("one")
    first, second = Attempt(job, "a", 0.0), Attempt(job, "b", 0.0)
    for attempt in (first, second):
        board.hold(attempt)
    told = {"status": "done", "files": []}
    assert board.finish(first, line_of(job, "one", "a", **told))
    assert not board.finish(second, line_of(job, "two", "b", **told))
    assert [line["server"] for line in manifest(world.folder)] == ["one"] and board.tally.twice == 1
    assert "row 1 was made twice, by two too: the first is kept" in world.said


def test_what_was_sent_to_a_server_that_is_not_asked_this_time_is_fetched_from_it(world, fakes):
    one, other = fakes(2)
    job = plan(world.rows, world.workflow)[0][0]
    Books(world.folder).sent(job.id, other.url, "there", time.time())
    other.post("/prompt", {"prompt": job.graph(world.workflow), "prompt_id": "there"})
    world.run([one])
    assert world.lines()[0]["server"] == other.url and other.made == ["picture 1"] and once(world, one, other)


def test_ending_early_takes_back_what_waits_and_leaves_others_jobs_alone(world, fakes):
    (fake,) = fakes(delay=0.4)
    graph = {"draw": {"class_type": "Draw", "inputs": {"prompt": "somebody else's"}}}
    batch = world.batch([fake], Pace(**{**FAST.__dict__, "queued": 3}))
    ended = threading.Thread(target=batch.run, args=(lambda *_: None,))
    ended.start()
    until(lambda: len(fake.pending) == 2 and fake.running)
    fake.post("/prompt", {"prompt": graph, "prompt_id": "theirs"})
    assert batch.stop() == (2, 1)
    ended.join(10)
    assert [item[1] for item in fake.pending] == ["theirs"]
    fake.delay = 0.0
    world.run([fake])
    assert world.found == 1 and world.lines()
    assert made(fake) == Counter(row.values["prompt"] for row in world.rows) + Counter(["somebody else's"])
