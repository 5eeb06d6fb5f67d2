"""Nothing that the scripts start outlives them: not on success, failure, Ctrl-C, or when they are killed outright."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml  # ComfyUI needs it, so the environment has it

from scripts._lib import cli, process
from scripts._lib.interrupts import Interrupted, install_handlers, shielded
from scripts._lib.paths import REPO
from scripts._lib.process import Child, CommandFailed, run_logged, tail
from scripts._lib.server import link_folder, model_paths_yaml, remove_link
from scripts._lib.steps import Step, StepFailed

SERVE = REPO / "scripts" / "_lib" / "serve.py"
# Starts a child of its own, says both process ids, and sleeps; with "deaf" both ignore Ctrl-C.
PARENT = """
import os, signal, subprocess, sys, time
if "deaf" in sys.argv: signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(os.getpid(), child.pid, flush=True)
time.sleep(60)
"""


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie that only waits to be reaped does not)."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.exists():
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return not Path("/proc/self").exists()


def gone(pids, within: float = 5.0) -> bool:
    deadline = time.monotonic() + within
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(alive, pids))


@pytest.mark.parametrize("words", [[], ["deaf"]], ids=["polite", "deaf to Ctrl-C"])
def test_leaving_the_block_ends_the_whole_group(words):
    with Child([sys.executable, "-c", PARENT, *words], grace=0.5, stdout=subprocess.PIPE) as child:
        pids = [int(pid) for pid in child.process.stdout.readline().split()]
        assert all(map(alive, pids))
    child.process.stdout.close()
    assert gone(pids)


def test_a_failed_command_keeps_its_output(tmp_path):
    log = tmp_path / "logs" / "tool.log"
    run_logged([sys.executable, "-c", "print('first')"], log)
    with pytest.raises(CommandFailed, match="exit code 7") as caught:
        run_logged([sys.executable, "-c", "import sys; print('second', file=sys.stderr); sys.exit(7)"], log)
    assert caught.value.tail.endswith("second") and "first" in log.read_text()
    assert tail(log, 1) == "second" and tail(tmp_path / "none") == ""


def test_the_end_of_a_log_is_read_without_the_rest(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"\xff" * 300_000 + "\nänd one\r\nand two\n\n".encode())
    assert tail(log, 3) == "änd one\nand two"
    assert len(tail(log)) <= process.TAIL_BYTES


def test_nohup_is_respected():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        install_handlers()
        signal.raise_signal(signal.SIGHUP)
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_a_python_that_does_not_read_pythonpath_gets_the_missing_packages_all_the_same(tmp_path):
    main, site = tmp_path / "main.py", tmp_path / "s ite"
    main.write_text("import sys\nprint(sys.path[:2], sys.argv)\n")
    command = [sys.executable, "-I", str(SERVE), str(main), "--cpu"]
    env = {**os.environ, "PYTHONPATH": str(site), "AUTOLORA_SITE": str(site)}
    with Child(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True) as child:
        assert child.process.stdout.readline().strip() == f"{[str(tmp_path), str(site)]} {[str(main), '--cpu']}"
    child.process.stdout.close()
    child.process.stdin.close()


def test_a_signal_in_a_shielded_block_waits_for_its_end():
    before = signal.getsignal(signal.SIGTERM)
    order = []
    install_handlers()
    try:
        with pytest.raises(Interrupted) as caught, shielded():
            signal.raise_signal(signal.SIGTERM)
            order.append("went on")
        with shielded(deliver=False):
            signal.raise_signal(signal.SIGTERM)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else before)
    assert order == ["went on"] and caught.value.exit_code == 128 + signal.SIGTERM


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_error_during_a_run_ends_the_child(tmp_path, error):
    def fail():
        raise error

    with pytest.raises(error):
        run_logged([sys.executable, "-c", PARENT], tmp_path / "log", on_tick=fail)
    assert not process._ALIVE


def test_errors_are_said_in_words_with_exit_code_1(monkeypatch, capsys):
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def fail(_arguments):
        raise StepFailed(Step("one", "Title", Path("x"), (), lambda tick: None, "mend it"), "broken", "last line")

    def stop(_arguments):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(sys, "argv", ["demo.py"])
    try:
        assert (cli.run(fail), cli.run(stop)) == (1, 130)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    said = capsys.readouterr().err
    assert "Step 'one' failed (Title): broken" in said and "| last line" in said and "mend it" in said
    assert "Nothing is left running" in said and "Traceback" not in said


def test_a_server_ends_when_its_parent_is_killed_outright(tmp_path):
    """Even SIGKILL of the script closes the pipe that serve.py watches."""
    main = tmp_path / "main.py"
    main.write_text("import os, sys, time\nprint(os.getpid(), sys.argv, sys.path[0], flush=True)\ntime.sleep(60)\n")
    code = (
        "import subprocess, sys, time\n"
        f"p = subprocess.Popen([sys.executable, {str(SERVE)!r}, {str(main)!r}, '--cpu'],"
        " stdin=subprocess.PIPE, start_new_session=True)\ntime.sleep(60)\n"
    )
    with Child([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        pid, _, rest = parent.process.stdout.readline().partition(" ")
        assert rest.strip() == f"['{main}', '--cpu'] {tmp_path}"
        assert alive(int(pid))
        parent.process.kill()
        assert gone([int(pid)])
    parent.process.stdout.close()


def test_links_lead_to_the_pack_and_are_replaced_but_real_folders_are_not(tmp_path):
    one, two, link = tmp_path / "one", tmp_path / "two", tmp_path / "nodes" / "pack"
    for folder in (one, two, link.parent):
        folder.mkdir()
    (one / "file").write_text("1")
    for target in (one, one, two):
        link_folder(target, link)
        assert link.samefile(target)
    remove_link(link)
    assert not link.exists() and (one / "file").exists()
    link.mkdir()
    with pytest.raises(FileExistsError, match="real file or folder"):
        link_folder(one, link)


def test_the_model_paths_file_survives_odd_folder_names(tmp_path):
    odd = [tmp_path / 'a "b" #c: d', tmp_path / "ünï cödé"]
    read = yaml.safe_load(model_paths_yaml({"loras": odd, "vae": [tmp_path]}))
    expected = {"loras": "\n".join(path.as_posix() for path in odd), "vae": tmp_path.as_posix(), "is_default": True}
    assert read == {"autolora_demo": expected}
    assert yaml.safe_load(model_paths_yaml({})) == {}
