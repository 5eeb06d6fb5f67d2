"""Proves that a drive on which side-by-side reading is slow is tried one file at a time, that the better way stays, and
that a drive with nothing to gain is left alone."""

from __future__ import annotations

import threading
import time

import pytest

from autolora_core.library.ahead import ReadAhead
from autolora_core.library.streams import GAIN, SLOW_BYTES_A_SECOND, TRIED_BYTES, TRIED_FILES, Streams

READERS = 4


class Imagined:
    """A drive that gives ``several`` bytes a second to :data:`READERS` readers together and ``one`` to a single one,
    files of ``size`` bytes; a file takes ``computing`` seconds beside."""

    def __init__(self, several: float, one: float, size: int = 64 << 20, computing: float = 0.0):
        self.several, self.one, self.size, self.computing = several, one, size, computing
        self.time = 0.0
        self.streams = Streams(lambda: self.time)

    def read(self, files: int) -> None:
        """So many are read as the drive's readers are told to: in waves, one file each."""
        while files > 0:
            readers = 1 if self.streams.one else READERS
            waited = self.size * readers / (self.one if readers == 1 else self.several)
            began = [self.streams.begin() for _ in range(readers)]
            self.time += waited + self.computing
            for start in began:
                self.streams.note(start, self.size, waited, READERS)
            files -= readers


def test_a_drive_that_gives_more_to_one_reader_gets_one():
    disk = Imagined(several=60e6, one=120e6)
    disk.read(TRIED_FILES * READERS + READERS + 2)
    assert disk.streams.one
    disk.read(500)
    assert disk.streams.one


@pytest.mark.parametrize("several, one", [(60e6, 40e6), (60e6, 60e6), (60e6, 60e6 * (GAIN - 0.05))])
def test_a_drive_that_gives_less_or_no_more_to_one_gets_several_again(several, one):
    network = Imagined(several, one)
    network.read(TRIED_FILES * READERS + READERS + 1)
    assert network.streams.one, "it is tried"
    network.read(TRIED_FILES * READERS + 2)
    assert not network.streams.one
    network.read(500)
    assert not network.streams.one, "and not again"


def test_a_drive_where_readers_hardly_wait_is_not_tried():
    quick = Imagined(several=READERS * SLOW_BYTES_A_SECOND * 1.1, one=1e12)
    quick.read(500)
    assert not quick.streams.one


def test_a_quick_beginning_does_not_decide():
    """Files in the page cache first, then those that the disk must give."""
    disk = Imagined(several=1e12, one=1e12)
    disk.read(100)
    disk.several, disk.one = 60e6, 120e6
    disk.read(3 * TRIED_FILES * READERS)
    assert disk.streams.one


@pytest.mark.parametrize("size, files", [(1 << 20, TRIED_BYTES >> 20), (2 << 30, TRIED_FILES * READERS)])
def test_it_is_judged_by_enough_bytes_and_enough_files(size, files):
    disk = Imagined(60e6, 120e6, size=size)
    disk.read(files)
    assert not disk.streams.one
    disk.read(2 * READERS)
    assert disk.streams.one


def test_a_trial_with_files_from_the_page_cache_decides_nothing():
    disk = Imagined(60e6, 120e6)
    disk.read((TRIED_FILES + 2) * READERS)
    assert disk.streams.one
    disk.one = disk.several = 5e9
    disk.read(100)
    assert not disk.streams.one
    disk.several, disk.one = 60e6, 120e6
    disk.read(200)
    assert disk.streams.one


def test_a_trial_begins_anew_when_other_readers_are_allowed():
    """Another drive is through, so that this one has more readers: what they get is not what the few got."""
    disk = Imagined(60e6, 100e6)
    disk.read((TRIED_FILES + 2) * READERS)
    assert disk.streams.one
    disk.streams.note(disk.streams.begin(), disk.size, 1.0, 2 * READERS)
    assert not disk.streams.one


def test_one_reader_alone_has_nothing_to_try():
    streams = Streams()
    for _ in range(1000):
        streams.note(streams.begin(), 64 << 20, 60.0, 1)
    assert not streams.one


def test_files_are_read_one_at_a_time_once_that_is_better(monkeypatch):
    """Through the threads: after the drive's trial no two files of it are read at once, those of another drive are."""
    monkeypatch.setattr("autolora_core.library.streams.TRIED_BYTES", 1)
    running, most, lock = {"a": 0, "b": 0}, {"a": [], "b": []}, threading.Lock()

    def work(item: str):
        def job() -> tuple[str, float]:
            drive = item[0]
            with lock:
                running[drive] += 1
                most[drive].append(running[drive])
                side_by_side = running[drive] > 1
            time.sleep(0.02 if side_by_side and drive == "a" else 0.002)
            with lock:
                running[drive] -= 1
            return drive, 1.0 if drive == "a" else 0.0

        return job

    items = [f"{drive}{number}" for number in range(120) for drive in "ab"]
    with ReadAhead(READERS) as reading:
        cost = lambda made: (1000, made[1])  # noqa: E731
        got = [item for item, _ in reading.results(iter([items]), work, lambda item: item[0], cost)]
    assert sorted(got) == sorted(items)
    assert max(most["a"][:16]) > 1 and max(most["a"][-40:]) == 1
    assert max(most["b"][-40:]) > 1
