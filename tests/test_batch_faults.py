"""Batches on servers that answer badly or refuse: each job once, faults in words, files whole."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace

import pytest
from batch_fakes import GRAPH, World, once, some_fakes
from batch_world import manifest
from fake_comfy import picture

from scripts._lib.batch.books import Books
from scripts._lib.batch.collect import download
from scripts._lib.batch.jobs import plan
from scripts._lib.batch.remote import Remote, Unreachable
from scripts._lib.batch.rows import Row
from scripts._lib.batch.workflow import Workflow
from scripts._lib.cli import ScriptFailed
from scripts._lib.client import Image


@pytest.fixture
def fakes():
    yield from some_fakes()


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


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


@pytest.mark.parametrize("fault", ["cut", "short"])
def test_a_file_that_came_half_is_none(fakes, tmp_path, fault):
    (fake,) = fakes()
    fake.files = {"a.png": picture({"draw": {"inputs": {}}}), "b.bin": b"0123456789"}
    fake.fault = lambda method, path: fault
    if fault == "cut":
        with pytest.raises(Unreachable, match="IncompleteRead"):
            Remote(fake.url).fetch(Image("b.bin"))
    job = plan([Row(1, 1, {"prompt": "a"})], Workflow(GRAPH, ["prompt"]))[0][0]
    record = {"outputs": {"draw": {"images": [{"filename": "a.png"}]}}}
    with pytest.raises(Unreachable):
        download(Remote(fake.url), job, record, tmp_path)
    assert list(tmp_path.iterdir()) == []
    fake.fault = lambda method, path: None
    assert download(Remote(fake.url), job, record, tmp_path)[0]["name"] == f"{job.stem}.png"


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
    with pytest.raises(ScriptFailed, match=f"No server can be used:\n.*{fake.port}.*refused(.*\n)+.*--server"):
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
