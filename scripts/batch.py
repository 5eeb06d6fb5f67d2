"""Makes pictures for a file of prompts on one or many ComfyUI servers, through their own queues.

    python scripts/batch.py prompts.csv --server http://127.0.0.1:8188 --server http://otherbox:8188 --out pictures

A row is a prompt; other columns (seed, negative, count, width, height, strength, top_k, or Title.input for any input of
the workflow) may stand beside it. The folder gets the pictures and manifest.jsonl. Stop it with Ctrl-C, pull the plug,
lose a server: the same command goes on and makes nothing twice. See docs/batch.md.
"""

import argparse
import os
import shlex
import subprocess
import sys

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def parse(arguments):
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="batch.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prompts", metavar="FILE", help=".csv, .tsv, .jsonl, or .txt with a prompt a line")
    parser.add_argument(
        "--server", action="append", metavar="URL", help="a ComfyUI (default http://127.0.0.1:8188); may be repeated"
    )
    parser.add_argument(
        "--workflow",
        metavar="FILE",
        help="yours, from File → Export (API) (default: workflows/api/retrieve_and_fuse.json, for the demo model)",
    )
    parser.add_argument("--out", metavar="DIR", help="folder for pictures and manifest (default: the file's name)")
    parser.add_argument("--seed", type=int, default=0, help="rows without a seed get others with another number here")
    parser.add_argument(
        "--queued", type=int, default=2, metavar="N", help="jobs of ours in a server's queue (default 2)"
    )
    parser.add_argument("--encoding", metavar="NAME", help="of the file, when it is not UTF-8; as cp1252")
    parser.add_argument("--retry-failed", action="store_true", help="try again what failed in earlier runs")
    parser.add_argument("--remake-missing", action="store_true", help="make again what is no longer in the folder")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and send nothing")
    parser.add_argument(
        "--gone-after",
        type=float,
        default=120.0,
        metavar="S",
        help="seconds of silence until a server's jobs go to others",
    )
    parser.add_argument(
        "--give-up", type=float, default=60.0, metavar="MIN", help="minutes without any server (default 60)"
    )
    options = parser.parse_args(arguments)
    if options.queued < 1:
        parser.error("--queued is 1 or more")
    return options


def main(arguments):
    """Make everything; the exit code."""
    from pathlib import Path

    from scripts._lib import graphs
    from scripts._lib.batch import run, workflow
    from scripts._lib.batch.board import Board
    from scripts._lib.batch.books import Books
    from scripts._lib.batch.jobs import plan
    from scripts._lib.batch.remote import Remote
    from scripts._lib.batch.rows import KNOWN, check_columns, read_rows
    from scripts._lib.batch.worker import Pace
    from scripts._lib.files import locked

    options = parse(arguments)
    file, chosen = Path(options.prompts), Path(options.workflow) if options.workflow else graphs.WORKFLOW
    out = Path(options.out) if options.out else file.with_suffix("")
    rows = read_rows(file, options.encoding)
    columns = list(dict.fromkeys(name for row in rows for name in row.asked))
    filler = workflow.Workflow(workflow.load(chosen), columns, str(chosen))
    check_columns(rows, [*KNOWN, *filler.holes], file)
    patience = min(30.0, max(1.0, options.gone_after / 4))  # seconds for one answer: several are missed before the end
    servers = [Remote(address, patience) for address in options.server or ["http://127.0.0.1:8188"]]
    remotes = {remote.name: remote for remote in servers}
    told = filler.told(dict.fromkeys([*columns, "seed"]))
    if not options.workflow:
        told = [f"Workflow: {chosen.name}, which is for the demo model; --workflow FILE takes yours", *told]
    jobs, notes = plan(rows, filler, options.seed)
    for line in [*told, *notes[:10], *([f"… and {len(notes) - 10} more such rows"] if len(notes) > 10 else [])]:
        print(line)
    if options.dry_run:
        print(f"{len(jobs)} jobs from {len(rows)} rows; nothing was sent.")
        return 0
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / "batch.lock", f"Another batch writes into {out}; waiting for it …"):
        books, console = Books(out), run.Console()
        todo, words = run.choose(jobs, books, out, options.retry_failed, options.remake_missing)
        print(words, flush=True)
        board = Board(todo, filler, books, out, console.say)
        pace = Pace(queued=options.queued, gone_after=options.gone_after)
        batch = run.Batch(board, list(remotes.values()), pace, 60 * options.give_up)
        found = batch.take_up(jobs)
        if found:
            print(f"{found} jobs were sent before and are looked for on their servers.", flush=True)
        return run.carry_out(batch, console, again(arguments))


def again(arguments):
    """The command that goes on."""
    words = [sys.executable, os.path.relpath(os.path.join(REPO, "scripts", "batch.py")), *arguments]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036 (whatever Python is there runs this file)
        sys.exit("This needs Python 3.10 or later; this is " + sys.version.split()[0] + ".")
    sys.path[0] = REPO  # the scripts are imported as scripts._lib
    from scripts._lib import cli

    sys.exit(cli.run(main))
