"""Proves that the archive which ComfyUI's registry hands out has all that the pack needs to run, and stays small."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from e2e_world import need_demo_models
from workflow_files import api_file

from scripts._lib.server import DEMO_MODELS, ComfyServer

ROOT = Path(__file__).resolve().parents[1]
MOST_MB = 60  # unpacked; the demo model, its LoRAs and its gate are 52 of them
try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    tomllib = None


def archived() -> list[str]:
    """What git keeps, less what `.comfyignore` names (folders and files, no patterns), as ``comfy node pack`` takes."""
    lines = (ROOT / ".comfyignore").read_text(encoding="utf-8").split("\n")
    left_out = tuple(line for line in lines if line and not line.startswith("#"))
    assert not any(set("*?[!") & set(line) for line in left_out)
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        pytest.skip("not a clone of the repository")
    return [name for name in done.stdout.split("\0") if name and not name.startswith(left_out)]


def test_it_is_small_and_leaves_out_what_develops_the_pack():
    names = archived()
    assert "nodes/retrieve.py" in names and "workflows/retrieve_and_fuse.json" in names and ".comfyignore" in names
    assert not any(name.startswith(("tests/", "benchmarks/", "zoo/")) for name in names)
    assert sum((ROOT / name).stat().st_size for name in names if (ROOT / name).exists()) < MOST_MB * 1e6


@pytest.mark.skipif(tomllib is None, reason="Python 3.10 cannot read TOML")
def test_the_registry_s_card_is_whole():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    card = project["tool"]["comfy"]
    assert {"PublisherId", "DisplayName", "Icon", "Banner"} <= set(card)
    for key in ("Icon", "Banner"):
        assert (ROOT / "docs" / "images" / card[key].rpartition("/")[2]).is_file(), key


@pytest.mark.slow
def test_the_archive_runs_the_main_workflow(tmp_path):
    need_demo_models()
    pack = tmp_path / "unpacked"
    for name in archived():
        if (ROOT / name).exists():
            (pack / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, pack / name)
    models = {kind: [pack / folder.relative_to(ROOT) for folder in folders] for kind, folders in DEMO_MODELS.items()}
    with ComfyServer(tmp_path / "base", packs={"autolora": pack}, models=models) as server:
        result = server.run(api_file("retrieve_and_fuse"), timeout=300)
        assert "Picked:" in result.text("13") and result.images("12")
