"""Batches on servers that fail in every way: each job once, nothing lost, and an end that can be taken up again."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest
from batch_world import check, manifest
from fake_comfy import FakeComfy

from scripts._lib.batch.board import Board
from scripts._lib.batch.books import Books
from scripts._lib.batch.jobs import plan
from scripts._lib.batch.remote import Remote
from scripts._lib.batch.rows import Row
from scripts._lib.batch.run import Batch, choose
from scripts._lib.batch.worker import Pace
from scripts._lib.batch.workflow import Workflow
from scripts._lib.cli import ScriptFailed

GRAPH = {
    "find": {"class_type": "AutoLoRARetrieve", "inputs": {"prompt": "", "top_k": 3}},
    "draw": {"class_type": "Draw", "inputs": {"prompt": "{prompt}", "seed": "{seed}", "loras": ["find", 1]}},
}
FAST = Pace(poll=0.01, look=0.02, gone_after=0.4, refused_after=0.1, settle=0.3, longest_wait=0.05)


@pytest.fixture
def fakes():
    made = []

    def make(count=1, **options):
        made.extend(FakeComfy(**options) for _ in range(count))
        return made[-count:]

    yield make
    for fake in made:
        fake.stop()


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


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def made(*fakes):
    return Counter(prompt for fake in fakes for prompt in fake.made)


def once(world, *fakes):
    return made(*fakes) == Counter(row.values["prompt"] for row in world.rows)


def until(what, limit=5.0):
    deadline = time.monotonic() + limit
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)


def first_times(count, answer, method=None, path=None):
    """A fault for the first requests of a kind."""
    left = [count]

    def fault(asked, where):
        if left[0] and (method is None or asked == method) and (path is None or where.startswith(path)):
            left[0] -= 1
            return answer
        return None

    return fault


def test_two_servers_share_the_work_and_neither_gets_more_than_two_jobs(world, fakes):
    one, two = fakes(2)
    tally = world.run([one, two])
    lines = world.lines()
    assert once(world, one, two) and (tally.made, tally.failed, tally.twice) == (12, 0, 0)
    assert one.most <= 2 and two.most <= 2 and {line["server"] for line in lines} == {one.url, two.url}
    assert lines[0]["picks"][0]["name"] == "otter.safetensors" and lines[0]["seconds"] == 2.5
    assert world.run([one, two]).made == 0 and once(world, one, two) and "12 made already" in world.words


def test_a_job_whose_answer_was_lost_is_found_again_and_not_sent_twice(world, fakes):
    (fake,) = fakes()
    fake.fault = first_times(3, "deaf", "POST", "/prompt")
    world.run([fake])
    world.lines()
    assert once(world, fake)


@pytest.mark.parametrize("answer", [500, 503, 429, "garbage", "cut"])
def test_answers_that_are_none_are_asked_for_again(world, fakes, answer):
    (fake,) = fakes()
    left = Counter(prompt=2, history=4, queue=2, view=3, object_info=1)

    def fault(method, path):
        kind = path[1:].partition("/")[0]
        left[kind] -= 1
        return answer if left[kind] >= 0 else None

    fake.fault = fault
    world.run([fake])
    world.lines()
    assert once(world, fake), "a picture was made twice or not at all"


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


def test_what_one_server_cannot_make_another_is_asked_for(world, fakes):
    one, two = fakes(2)
    error = {"draw": {"class_type": "Draw", "errors": [{"message": "Value not in list", "details": "lora: x"}]}}
    one.judge = lambda graph: error if graph["draw"]["inputs"]["prompt"].endswith("3") else None
    world.run([one, two])
    world.lines()
    assert "picture 3" in two.made and once(world, one, two)


def test_what_no_server_can_make_has_failed_with_node_and_reason(world, fakes):
    one, two = fakes(2)
    error = {"draw": {"class_type": "Draw", "errors": [{"message": "Value not in list", "details": "lora: x"}]}}
    for fake in (one, two):
        fake.judge = lambda graph: error if graph["draw"]["inputs"]["prompt"].endswith(" 3") else None
        fake.fails = lambda graph: graph["draw"]["inputs"]["prompt"].endswith(" 4")
    tally = world.run([one, two])
    lines = {line["row"]: line for line in manifest(world.folder)}
    assert (tally.made, tally.failed) == (10, 2) and len(lines) == 12
    assert lines[3]["error"]["node"] == "draw" and "Value not in list: lora: x" in lines[3]["error"]["message"]
    assert lines[4]["error"] == {"node": "draw", "type": "Draw", "message": "ValueError: no ink"}
    assert "row 4 failed: node draw (Draw): ValueError: no ink" in world.said
    assert world.run([one, two]).failed == 0 and "2 failed before (--retry-failed)" in world.words
    for fake in (one, two):
        fake.judge, fake.fails = lambda graph: None, lambda graph: False
    assert world.run([one, two], retry_failed=True).made == 2
    assert Counter(line["status"] for line in manifest(world.folder)) == {"done": 12, "failed": 2}


def test_a_batch_in_which_everything_fails_ends(world, fakes):
    (fake,) = fakes()
    fake.fails = lambda graph: True
    with pytest.raises(ScriptFailed, match="The first 10 jobs all failed; the last one: ValueError: no ink"):
        world.run([fake])
    assert len(manifest(world.folder)) < 12


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


def test_an_old_server_that_names_runs_itself(world, fakes):
    (fake,) = fakes()
    fake.renames = True
    world.run([fake])
    assert all(line["prompt_id"].startswith("own-") for line in world.lines()) and once(world, fake)
    assert Books(world.folder).out == {}


def test_a_server_without_the_pack_is_named_and_not_used(world, fakes):
    one, two = fakes(2)
    del two.nodes["AutoLoRARetrieve"]
    world.run([one, two])
    world.lines()
    assert not two.made and f"{two.url} does not know AutoLoRARetrieve: install the pack" in world.said[0]
    with pytest.raises(ScriptFailed, match="No server can be used:\n.*AutoLoRARetrieve"):
        World(world.folder / "other").run([two])


def test_servers_that_nobody_started_are_an_error_that_names_them(world, fakes):
    (fake,) = fakes()
    fake.stop()
    with pytest.raises(ScriptFailed, match=f"No server can be used:\n.*{fake.port}.*refused"):
        world.run([fake])


def test_lines_that_a_cut_of_power_left_half_are_made_again(world, fakes):
    (fake,) = fakes()
    world.run([fake])
    path = world.folder / "manifest.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    (world.folder / "outbox.jsonl").open("ab").write(b'{"event": "se')
    assert world.run([fake]).made == 1
    world.lines()
    assert once(world, fake)  # the server still had it


def test_a_line_that_is_none_is_named(world):
    (world.folder / "manifest.jsonl").write_text('{"id": "a"}\nnot ours\n')
    with pytest.raises(ScriptFailed, match="manifest.jsonl, line 2"):
        Books(world.folder)


def test_pictures_taken_away_are_made_again_only_when_asked(world, fakes):
    (fake,) = fakes()
    world.run([fake])
    for line in world.lines()[:2]:
        (world.folder / line["files"][0]["name"]).unlink()
    assert world.run([fake]).made == 0 and "files of 2 are no longer here (--remake-missing)" in world.words
    assert world.run([fake], remake=True).made == 2


def test_a_full_disk_ends_the_batch_with_its_reason(world, fakes, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("scripts._lib.batch.collect.write_atomic", full)
    with pytest.raises(ScriptFailed, match="No space left on device"):
        world.run(fakes())
    assert manifest(world.folder) == []


def test_a_path_and_a_password_in_the_address(world, fakes):
    (fake,) = fakes(prefix="/comfy")
    address = SimpleNamespace(url=fake.url.replace("//", "//me:s%40cret@") + "/")
    world.run([address])
    assert fake.headers["Authorization"] == "Basic bWU6c0BjcmV0"
    assert {line["server"] for line in world.lines()} == {fake.url}
    for name in ("manifest.jsonl", "outbox.jsonl"):
        assert "cret" not in (world.folder / name).read_text()


@pytest.mark.parametrize(("address", "name"), [
    ("box:8188", "http://box:8188"), ("https://box/comfy/", "https://box/comfy"), ("http://[::1]:80", "http://[::1]:80"),
])  # fmt: skip
def test_addresses(address, name):
    assert Remote(address).name == name


@pytest.mark.parametrize("address", ["ftp://box", "http://", "http://box:port"])
def test_addresses_that_are_none(address):
    with pytest.raises(ScriptFailed, match="--server"):
        Remote(address)


def test_the_outbox_is_empty_when_all_is_done(world, fakes):
    world.run(fakes())
    assert Books(world.folder).out == {} and (world.folder / "outbox.jsonl").read_text() == ""
    assert json.loads((world.folder / "manifest.jsonl").read_text().splitlines()[0])["format"] == "autolora-batch/1"
