"""Proves that a library whose files were read by workers is the one that a single machine makes, whatever happens to
the workers: lost ones cost their files alone, a file that ends them is named, a stopped run goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from cluster_world import HereCluster, mixed_folder
from conftest import ROOT, emoji_factors, write_lora
from library_dump import dump

from autolora_core.cluster import rays, worker
from autolora_core.cluster.driver import cluster_lines, scan_on_cluster
from autolora_core.cluster.paths import PathMap
from autolora_core.cluster.shards import ALONE, MAX_BYTES, MAX_FILES, Ledger, Shard, plan
from autolora_core.encode.towers import LexicalTower
from autolora_core.errors import LibraryError
from autolora_core.library.index import Library
from autolora_core.library.walk import Scope

FILES = 19  # that are read, of the mixed folder


@pytest.fixture(scope="module")
def loras(tmp_path_factory) -> Path:
    return mixed_folder(tmp_path_factory.mktemp("cluster") / "loras")


@pytest.fixture(scope="module")
def alone(loras, tmp_path_factory):
    """Report and content of the library that one machine makes."""
    with Library.open(tmp_path_factory.mktemp("alone")) as library:
        return library.scan([loras]), dump(library)


def encode(folder: Path, loras: Path, cluster: HereCluster, **how):
    """Scan on the cluster; scan report, cluster report, content."""
    with Library.open(folder) as library:
        report, workers = scan_on_cluster(library, Scope.of([loras]), cluster, **how)
        return report, workers, dump(library)


def counts(cluster: HereCluster) -> Counter:
    return Counter(name for shard in cluster.read for name in shard)


def told(report) -> tuple:
    return (report.added, report.changed, report.renamed, report.unchanged, report.missing, report.shared,
            report.encoded, report.bytes_read, report.families, report.kinds, sorted(report.problems))  # fmt: skip


def test_equal_to_one_machine_in_content_and_report(tmp_path, loras, alone):
    cluster = HereCluster()
    report, workers, content = encode(tmp_path, loras, cluster)
    assert content == alone[1] and told(report) == told(alone[0])
    assert counts(cluster) == Counter(dict.fromkeys(counts(cluster), 1)) and len(counts(cluster)) == FILES
    assert len(cluster.read) > 4 and sum(workers.hosts.values()) == FILES and workers.lost == 0
    again = HereCluster()
    second = encode(tmp_path, loras, again)
    assert again.read == [] and second[0].unchanged == FILES + 1 and second[2] == content
    assert [path.name for path in tmp_path.glob("*.tmp")] == []


def test_what_is_fitted_to_it_is_equal_too(tmp_path, loras):
    with Library.open(tmp_path / "alone") as alone, Library.open(tmp_path / "cluster") as library:
        alone.scan([loras])
        scan_on_cluster(library, Scope.of([loras]), HereCluster())
        for each in (alone, library):
            each.fit(LexicalTower())
        assert dump(alone) == dump(library) and dump(library)["vectors"]


def test_a_lost_worker_costs_its_files_alone(tmp_path, loras, alone):
    lost: list[list[str]] = []

    def lose(names: list[str]) -> bool:
        if lost or "fox-1.safetensors" not in names:
            return False
        lost.append(names)
        return True

    cluster = HereCluster(lose)
    _, workers, content = encode(tmp_path, loras, cluster)
    assert content == alone[1]
    assert len(lost[0]) > 1 and {name for name, n in counts(cluster).items() if n == 2} == set(lost[0])
    assert set(counts(cluster).values()) == {1, 2}
    assert (workers.lost, workers.again, workers.given_up) == (1, len(lost[0]), [])
    assert f"Workers lost: 1; files handed out again for it: {len(lost[0])}." in cluster_lines(workers)


def test_a_file_that_ends_its_worker_is_named_and_not_tried_for_ever(tmp_path, loras, alone):
    bad = "rocket-5.safetensors"
    cluster = HereCluster(lambda names: bad in names)
    report, workers, content = encode(tmp_path, loras, cluster)
    assert [name for name in workers.given_up if name.endswith(bad)] == workers.given_up != []
    assert counts(cluster)[bad] == 1 + ALONE and max(n for name, n in counts(cluster).items() if name != bad) == 2
    (problem,) = (text for name, text in report.problems if name.endswith(bad))
    assert "it was not read: 2 workers in a row ended while they read this file alone (it was told to)" == problem
    rows = {row[1]: row for row in alone[1]["files"]}
    assert [row for row in content["files"] if row != rows[row[1]]][0][5] is None and len(content["files"]) == FILES + 1
    _, _, mended = encode(tmp_path, loras, HereCluster())
    assert mended["files"] == alone[1]["files"] and mended["contents"] == alone[1]["contents"]


def test_workers_that_die_of_every_file_end_the_run(tmp_path, loras):
    cluster = HereCluster(lambda names: True)
    with pytest.raises(LibraryError, match="every file ends the worker that reads it .it was told to"):
        encode(tmp_path, loras, cluster)


def test_a_stopped_run_goes_on(tmp_path, loras, alone):
    first, second = HereCluster(), HereCluster()
    seen: list[int] = []
    with Library.open(tmp_path) as library:
        report, _ = scan_on_cluster(
            library, Scope.of([loras]), first, progress=lambda done, *_: seen.append(done),
            should_stop=lambda: bool(seen) and seen[-1] >= 9,
        )  # fmt: skip
        assert report.stopped
        kept = {row[0] for row in library.store.db.execute("SELECT name FROM files WHERE hash IS NOT NULL")}
    assert 8 <= len(kept) < FILES
    assert encode(tmp_path, loras, second)[2] == alone[1]
    assert not {Path(name.decode()).name for name in kept} & set(counts(second))


VICTIM = """
import os, signal, sys
from pathlib import Path
sys.path += [sys.argv[1], sys.argv[1] + "/tests"]
from cluster_world import HereCluster
from autolora_core.cluster import driver
from autolora_core.library.index import Library
from autolora_core.library.walk import Scope

calls, real = [], driver.ClusterScanner._place

def place(self, *what):
    calls.append(what)
    if len(calls) == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, *what)

driver.ClusterScanner._place = place
with Library.open(sys.argv[2]) as library:
    driver.scan_on_cluster(library, Scope.of([Path(sys.argv[3])]), HereCluster())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_driver_that_is_killed_in_the_middle_of_a_merge_goes_on(tmp_path, loras, alone):
    arguments = [sys.executable, "-c", VICTIM, str(ROOT), str(tmp_path), str(loras)]
    done = subprocess.run(arguments, timeout=120, check=False)
    assert done.returncode == -9
    cluster = HereCluster()
    assert encode(tmp_path, loras, cluster)[2] == alone[1] and 0 < len(counts(cluster)) <= FILES - 6


def test_changes_are_found_as_on_one_machine(tmp_path):
    """New, changed, gone, moved, force: side by side with a library of one machine."""
    root = mixed_folder(tmp_path / "loras")
    with Library.open(tmp_path / "alone") as alone, Library.open(tmp_path / "cluster") as library:

        def both(**how):
            left = alone.scan([root], **how)
            right, _ = scan_on_cluster(library, Scope.of([root]), HereCluster(), **how)
            assert dump(alone) == dump(library)
            for what in ("added", "changed", "renamed", "unchanged", "missing", "encoded", "kinds"):
                assert getattr(left, what) == getattr(right, what), what
            return right

        both()
        write_lora(root / "people" / "new.safetensors", emoji_factors(90, blocks=1))
        write_lora(root / "people" / "otter-0.safetensors", emoji_factors(91, blocks=1))
        (root / "not-one.safetensors").unlink()
        (root / "styles" / "fox-1.safetensors").rename(root / "moved.safetensors")
        (root / "people" / "harbour-9.json").write_text('{"description": "a neon sign"}', encoding="utf-8")
        report = both()
        assert (report.added, report.changed, report.renamed, report.missing) == (1, 1, 1, 1)
        for each in (alone, library):  # as one that an older version made
            each.store.db.execute("DELETE FROM responses")
        assert both().encoded > 0
        both(force=True)


def test_paths_of_workers_stay_out_of_the_library(tmp_path, loras, alone):
    elsewhere = tmp_path / "mnt"
    elsewhere.symlink_to(loras.parent)
    cluster = HereCluster()
    paths = PathMap.parse([f"{loras.parent}={elsewhere}"])
    assert encode(tmp_path / "library", loras, cluster, paths=paths)[2] == alone[1]
    assert cluster.paths and all(path.startswith(str(elsewhere)) for path in cluster.paths)


def test_a_drive_that_is_not_mounted_on_a_worker_is_said(tmp_path, loras):
    paths = PathMap.parse([f"{loras.parent}={tmp_path}/nowhere"])
    with pytest.raises(LibraryError, match="does not see this folder .*nowhere/loras.* say with --map"):
        encode(tmp_path / "library", loras, HereCluster(), paths=paths)


def test_a_file_that_is_another_one_on_the_worker_is_not_taken(tmp_path):
    write_lora(tmp_path / "here" / "fox.safetensors", emoji_factors(1, blocks=1))
    write_lora(tmp_path / "here" / "otter.safetensors", emoji_factors(3, blocks=1))
    write_lora(tmp_path / "there" / "fox.safetensors", emoji_factors(2, rank=4, blocks=1))
    paths = PathMap.parse([f"{tmp_path}/here={tmp_path}/there"])
    report, _, content = encode(tmp_path / "library", tmp_path / "here", HereCluster(), paths=paths)
    assert [row[5] for row in content["files"]] == [None, None] and content["contents"] == []
    why = dict(report.problems)
    assert "bytes when it was listed" in why["fox.safetensors"] and "cannot read it" in why["otter.safetensors"]


def test_what_is_known_stays_when_a_worker_cannot_read_a_file_that_did_not_change(tmp_path):
    for seed, name in enumerate(("fox", "otter")):
        write_lora(tmp_path / "here" / f"{name}.safetensors", emoji_factors(seed, blocks=1))
    _, _, before = encode(tmp_path / "library", tmp_path / "here", HereCluster())
    (tmp_path / "there").mkdir()
    shutil.copy2(tmp_path / "here" / "fox.safetensors", tmp_path / "there")
    paths = PathMap.parse([f"{tmp_path}/here={tmp_path}/there"])
    report, _, after = encode(tmp_path / "library", tmp_path / "here", HereCluster(), paths=paths, force=True)
    assert after == before and report.unchanged == 2
    assert [name for name, why in report.problems if "cannot read it" in why] == ["otter.safetensors"]
    cluster = HereCluster(lambda names: "fox.safetensors" in names)
    _, workers, after = encode(tmp_path / "library", tmp_path / "here", cluster, force=True)
    assert after == before and workers.given_up == ["fox.safetensors"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps names that are not UTF-8")
def test_names_that_are_not_text_travel(tmp_path):
    name = os.fsdecode(b"caf\xe9.safetensors")
    write_lora(tmp_path / "loras" / "fox.safetensors", emoji_factors(0, blocks=1)).rename(tmp_path / "loras" / name)
    with Library.open(tmp_path / "alone") as alone:
        alone.scan([tmp_path / "loras"])
        assert encode(tmp_path / "library", tmp_path / "loras", HereCluster())[2] == dump(alone)
        assert [entry.name for entry in alone.entries()] == [name]


def test_workers_of_another_version_are_refused(tmp_path, loras, monkeypatch):
    class Old(HereCluster):
        def answer(self, request):
            with monkeypatch.context() as patch:
                patch.setattr(worker, "code_id", lambda: "another")
                return super().answer(request)

    with pytest.raises(LibraryError, match="another version of this pack"):
        encode(tmp_path, loras, Old())


def spoilt(whole: bytes, how: str) -> bytes:
    rows = worker.answer(whole)[1]
    head = whole[: len(whole) - len(rows)]
    return {"empty": head, "other": head + b"not a database" * 100, "torn": head + rows[: len(rows) // 2],
            "headless": b"{}" + rows, "none": b""}[how]  # fmt: skip


@pytest.mark.parametrize("how", ["empty", "other", "torn", "headless", "none"])
def test_what_is_no_library_is_not_merged(tmp_path, loras, how):
    class Broken(HereCluster):
        def answer(self, request):
            return spoilt(super().answer(request), how)

    with pytest.raises(LibraryError, match="a worker sent"):
        encode(tmp_path, loras, Broken())
    with Library.open(tmp_path) as library:
        assert dump(library)["contents"] == [] and list(tmp_path.glob("*.tmp")) == []


def test_shards_hold_every_file_once_and_stay_small():
    for count, workers in ((0, 4), (1, 4), (7, 2), (1000, 3), (100_000, 50)):
        shards = plan([1] * count, workers)
        assert [number for shard in shards for number in shard.files] == list(range(count))
        assert all(0 < len(shard.files) <= MAX_FILES for shard in shards)
        assert len(shards) >= min(count, 4 * workers)
    big = plan([MAX_BYTES // 3] * 30, 1)
    assert max(len(shard.files) for shard in big) == 3


def test_every_file_of_a_lost_shard_comes_back_once():
    ledger = Ledger([Shard(tuple(range(64)))])
    assert ledger.lost(ledger.take()) is None
    parts = []
    while ledger:
        parts.append(ledger.take())
    assert [number for part in parts for number in part.files] == list(range(64)) and len(parts) == 8


def test_map_takes_the_longest_way_of_nothing_but_whole_folders():
    paths = PathMap.parse(["/mnt/a=/srv/b/", "/=/all"])
    assert paths.there("/mnt/a/x.safetensors") == "/srv/b/x.safetensors" and paths.there("/mnt/a") == "/srv/b"
    assert paths.there("/mnt/ab/x") == "/all/mnt/ab/x"
    with pytest.raises(LibraryError, match="HERE=THERE"):
        PathMap.parse(["/mnt"])


def test_without_ray_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LibraryError, match="Ray is not installed .*pip install"):
        rays.RayCluster("127.0.0.1:6379")


def test_ray_is_imported_only_when_asked_for():
    code = (
        "import sys; import autolora_core.encode.encoder, autolora_core.library.index, autolora_core.encode.__main__;"
        "assert 'autolora_core.cluster' not in sys.modules; import autolora_core.cluster.command,"
        " autolora_core.cluster.rays, autolora_core.cluster.driver; assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
