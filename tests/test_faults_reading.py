"""Proves that a file which changes, or goes away, while it is read never leaves a row of something that it was not, and
that trouble with a disk never stays with a content."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from conftest import emoji_factors, write_lora
from library_dump import dump

from autolora_core.encode.towers import LexicalTower
from autolora_core.library import one_pass
from autolora_core.library.index import Library


@pytest.fixture
def two(tmp_path) -> tuple[Path, Path]:
    """Two LoRAs of one size: the one in the loras folder, and one to put in its place."""
    one = write_lora(tmp_path / "loras" / "fox.safetensors", emoji_factors(1, blocks=1))
    return one, write_lora(tmp_path / "other" / "fox.safetensors", emoji_factors(2, blocks=1))


@pytest.fixture
def library(tmp_path):
    with Library.open(tmp_path / "library") as opened:
        yield opened


def features(library: Library) -> dict[str, bytes]:
    return dict(library.store.db.execute("SELECT hash, rows FROM features"))


def alone(path: Path, folder: Path) -> dict[str, bytes]:
    """Content hash → sketch of a file that nobody disturbs."""
    with Library.open(folder) as library:
        library.scan([path.parent])
        return features(library)


def once_after(monkeypatch, module, name: str, disturb) -> None:
    """``disturb()`` once, just before ``module.name`` does its work: the file was hashed by then."""
    real, left = getattr(module, name), [1]

    def disturbed(*args, **kwargs):
        if left:
            left.pop()
            disturb()
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, disturbed)


@pytest.mark.parametrize("moment", [(one_pass.Pass, "head"), (one_pass.Pass, "tensors"), (one_pass.Pass, "rest")])
@pytest.mark.parametrize("how", ["moved there", "moved there with its old time", "written over", "cut off", "deleted"])
def test_no_row_is_made_of_two_files(two, library, tmp_path, monkeypatch, moment, how):
    one, other = two
    both = alone(one, tmp_path / "of one") | alone(other, tmp_path / "of other")
    before = one.stat()

    def disturb() -> None:
        if how.startswith("moved"):
            copy = shutil.copy(other, tmp_path / "copy")
            if "old time" in how:
                os.utime(copy, ns=(before.st_atime_ns, before.st_mtime_ns))
            os.replace(copy, one)
        elif how == "written over":
            one.write_bytes(other.read_bytes())
        elif how == "cut off":
            os.truncate(one, 3000)
        else:
            one.unlink()

    once_after(monkeypatch, *moment, disturb)
    report = library.scan([one.parent])
    assert features(library) == {} and library.store.db.execute("SELECT count(*) FROM contents").fetchone() == (0,)
    assert any("cannot be read" in problem for _, problem in report.problems)
    shutil.copy(other, one)
    library.scan([one.parent])
    found = features(library)
    assert len(found) == 1 and found.items() <= both.items()


def test_a_known_file_that_changes_while_it_is_sketched_anew_is_read_again(two, library, tmp_path, monkeypatch):
    one, other = two
    os.utime(other, ns=(0, other.stat().st_mtime_ns + 10**9))  # times count in steps: both may have been written in one
    library.scan([one.parent], encode=False)
    once_after(monkeypatch, one_pass.Pass, "tensors", lambda: os.replace(other, one))
    library.scan([one.parent])
    assert features(library) == {}
    library.scan([one.parent])
    assert features(library) == alone(one, tmp_path / "alone")


@pytest.mark.parametrize("where", ["header", "tensors"])
def test_a_disk_that_fails_for_a_moment_teaches_nothing_wrong(two, library, tmp_path, monkeypatch, where):
    one, _ = two
    wanted = alone(one, tmp_path / "alone")

    def fail(*_: object, **__: object):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        if where == "header":
            patched.setattr(one_pass.Pass, "head", fail)
        else:
            patched.setattr(one_pass.Pass, "tensors", fail)
        report = library.scan([one.parent])
        assert any("Input/output error" in problem for _, problem in report.problems)
    library.scan([one.parent])
    assert features(library) == wanted


def test_a_drive_that_fails_while_all_is_read_again_takes_nothing_away(two, library, monkeypatch):
    one, _ = two
    library.scan([one.parent])
    library.fit(LexicalTower())
    before = dump(library)

    def fail(*_: object, **__: object):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(one_pass.Pass, "head", fail)
        report = library.scan([one.parent], force=True)
    assert any("Input/output error" in problem for _, problem in report.problems)
    assert dump(library) == before
    assert library.scan([one.parent]).bytes_read == 0


def test_a_move_that_a_stopped_scan_saw_is_still_a_move(tmp_path, library):
    """What it had written by then is known to the next scan, and was taken for a copy of a file that went missing."""
    loras = tmp_path / "loras"
    for seed, name in enumerate(("fox", "otter", "owl")):
        write_lora(loras / f"{name}.safetensors", emoji_factors(seed, blocks=1))
    library.scan([loras])
    shutil.copy(loras / "owl.safetensors", loras / "copy of owl.safetensors")  # a copy stays one
    library.scan([loras])
    os.rename(loras / "fox.safetensors", loras / "a fox.safetensors")
    os.unlink(loras / "owl.safetensors")
    seen = []

    def stop(done: int, total: int, name: str) -> None:
        seen.append(name)
        if name.startswith("a fox"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        library.scan([loras], progress=stop)
    names = dict(library.store.db.execute("SELECT name, missing FROM files"))
    assert names[b"a fox.safetensors"] == 0 and names[b"fox.safetensors"] == 0, "the scan was not stopped in time"
    before = library.generation
    library.scan([loras])
    assert dict(library.store.db.execute("SELECT name, missing FROM files")) == {
        b"a fox.safetensors": 0, b"copy of owl.safetensors": 0, b"otter.safetensors": 0, b"owl.safetensors": 1,
    }  # fmt: skip
    assert library.generation > before
