"""Proves at run time what ``test_no_escape`` reads in the code: a run in the real ComfyUI makes no connection, loads no
pickle, starts no program, runs no code it was given and writes nowhere but into ComfyUI's user and models folders."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import comfy_folder

pytestmark = pytest.mark.slow
VICTIM = Path(__file__).with_name("audit_victim.py")


def test_a_run_reaches_nothing_outside(tmp_path):
    command = [sys.executable, str(VICTIM), str(comfy_folder()), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["seen"] == []
    assert {"open", "sqlite3.connect"} <= set(told["heard"]), "nothing of the pack's was heard: the hook is deaf"
    assert told["picks"] == ["neon castle.safetensors", "watercolour otter.safetensors"] and "<lora:" in told["text"]


@pytest.mark.parametrize(
    "deed",
    [
        "__import__('socket').create_connection(('127.0.0.1', 9), 0.1)",
        "__import__('pickle').loads(b'cos\\ngetcwd\\n.')",
        "open('/dev/null', 'w')",
        "__import__('subprocess').run(['true'])",
        "eval('1 + 1')",
        "__import__('os').mkdir('/nowhere/at/all')",
    ],
)
def test_the_hook_hears(tmp_path, deed):
    """Each deed, done by a file that says it is the pack's, is told."""
    code = f"import sys; sys.path.insert(0, {str(VICTIM.parent)!r}); import audit_victim as a\n"
    code += "a.watch('/comfy', ('/allowed',))\n"
    code += f"exec(compile({'def deed(): ' + deed!r}, a.OWN[0] + 'x.py', 'exec'))\n"
    code += "try:\n    deed()\nexcept Exception:\n    pass\nprint(len(a.seen))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert int(done.stdout.split()[-1]) >= 1
