"""Run as a program: scans and fits libraries in child processes that die by SIGKILL at a chosen moment.

``python library_victim.py LORAS FOLDER MOMENT…`` forks one child per moment, with the library FOLDER/MOMENT. A moment
is ``what:n``: ``file:n`` after the n-th file, ``commit:n`` and ``replace:n`` just before the n-th commit and the n-th
renaming of an atomically written file, ``sketch:n`` in the middle of encoding the n-th file, ``vectors:n`` inside the
transaction of a fit. Prints how each child ended, as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from autolora_core.encode.towers import LexicalTower  # noqa: E402
from autolora_core.library import scan, scan_rows, store, vectors  # noqa: E402
from autolora_core.library.index import Library  # noqa: E402


def die_at(count: int):
    """A function that kills this process, the hard way, at its ``count``-th call."""
    calls = 0

    def step(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)

    return step


def before(step, function):
    def wrapped(*args, **kwargs):
        step()
        return function(*args, **kwargs)

    return wrapped


def arm(moment: str):
    """Set the trap; returns the progress callback to scan with."""
    what, _, count = moment.partition(":")
    step = die_at(int(count))
    scan.COMMIT_FILES = 4
    if what == "file":
        return step
    if what == "commit":
        store.Batch.commit = before(step, store.Batch.commit)
    elif what == "replace":
        os.replace = before(step, os.replace)
    elif what == "sketch":
        scan_rows.store_sketch = before(step, scan_rows.store_sketch)
    elif what == "vectors":
        from autolora_core.library import fit

        fit.store_vectors = before(step, fit.store_vectors)
    return lambda *_: None


def work(loras: str, folder: str, progress) -> None:
    """What Encode LoRA Library does."""
    with Library.open(folder) as library:
        library.scan({"loras": loras}, progress=progress)
        library.fit(LexicalTower())
        encoder = library.encoder("emoji")
        vectors.open_vectors(library.store, encoder.id)


def main(loras: str, folder: str, *moments: str) -> None:
    endings = {}
    for moment in moments:
        child = os.fork()
        if child == 0:
            work(loras, str(Path(folder) / moment.replace(":", "-")), arm(moment))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        endings[moment] = os.waitstatus_to_exitcode(status)
    json.dump(endings, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
