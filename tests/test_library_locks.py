"""Proves that a lock somebody else has is waited for, and that one that cannot be had at all is an error at once that
names the file; on this system and, with its module stood in for, on Windows."""

from __future__ import annotations

import errno
import os
import sys
import time
from types import SimpleNamespace

import pytest

from autolora_core.errors import LibraryError
from autolora_core.library import locks
from autolora_core.library.locks import LOCK_NAME, writer_lock

HELD = [errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK]
HOPELESS = [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EIO, errno.EBADF]


@pytest.fixture(params=["posix", "windows"])
def refused(request, monkeypatch):
    """``refused(number)``: from now on the system refuses locks with that error; returns the list of refusals."""

    def refuse(number: int) -> list[int]:
        asked: list[int] = []

        def no(*_: object) -> None:
            asked.append(number)
            raise OSError(number, os.strerror(number))

        if request.param == "windows":
            monkeypatch.setattr(locks.sys, "platform", "win32")
            stand_in = SimpleNamespace(locking=no, LK_NBLCK=2, LK_UNLCK=0)
            monkeypatch.setitem(sys.modules, "msvcrt", stand_in)
        else:
            stand_in = SimpleNamespace(flock=no, LOCK_EX=2, LOCK_NB=4)
            monkeypatch.setitem(sys.modules, "fcntl", stand_in)
        return asked

    return refuse


@pytest.mark.parametrize("number", HELD)
def test_a_lock_that_is_held_is_waited_for(refused, tmp_path, number):
    asked, waited = refused(number), []
    with pytest.raises(LibraryError, match="another process is writing this library"):
        with writer_lock(tmp_path, wait=0.25, waiting=lambda: waited.append(1)):
            raise AssertionError("never held")
    assert len(asked) >= 3 and waited


@pytest.mark.parametrize("number", HOPELESS)
def test_a_drive_without_locks_is_told_at_once(refused, tmp_path, number):
    asked, began = refused(number), time.monotonic()
    with pytest.raises(LibraryError, match=os.strerror(number)) as told, writer_lock(tmp_path, wait=60):
        raise AssertionError("never held")
    assert len(asked) == 1 and time.monotonic() - began < 5
    assert str(tmp_path / LOCK_NAME) in str(told.value) and "What to do: move ComfyUI's user directory" in str(
        told.value
    )


def test_a_lock_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / LOCK_NAME).mkdir()
    with pytest.raises(LibraryError, match="cannot be opened for writing") as told, writer_lock(tmp_path):
        raise AssertionError("never held")
    assert str(tmp_path / LOCK_NAME) in str(told.value)


def test_trouble_of_the_caller_is_not_taken_for_trouble_with_the_lock(tmp_path):
    with pytest.raises(OSError, match="disk full"), writer_lock(tmp_path):
        raise OSError(errno.ENOSPC, "disk full")
    with writer_lock(tmp_path):
        with pytest.raises(TimeoutError), writer_lock(tmp_path, waiting=_give_up):
            raise AssertionError("never held")


def _give_up() -> None:
    raise TimeoutError  # an OSError, too
