"""Encode, Retrieve, Apply and a step of sampling inside the real ComfyUI, watched by an audit hook; run by a test.

``python audit_victim.py <ComfyUI folder> <scratch folder>`` prints, as JSON, every event of the pack's own that is
not allowed: connections, pickles, programs, code that is not imported, files written outside the folders it may write.
An event is the pack's when, from where it happened outwards, the pack's code comes before ComfyUI's.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
OWN = tuple(str(ROOT / part) + os.sep for part in ("autolora_core", "nodes"))
FORBIDDEN = (
    "socket.",
    "subprocess.",
    "pickle.",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "ftplib.",
    "urllib.",
    "http.",
)
CHANGES = {
    "os.remove": 1,
    "os.rename": 2,
    "os.mkdir": 1,
    "os.rmdir": 1,
    "os.link": 2,
    "os.symlink": 2,
    "os.truncate": 1,
    "shutil.rmtree": 1,
}
seen: list[str] = []
heard: set[str] = set()  # kinds of events of the pack's own, so that the test can tell that it was watched at all


def watch(comfy: str, allowed: tuple[str, ...]) -> None:
    """Install the hook, for good."""
    busy = [False]

    def hook(event: str, args: tuple) -> None:
        if busy[0] or not (
            event in ("open", "exec", "compile", "sqlite3.connect") or event in CHANGES or event.startswith(FORBIDDEN)
        ):
            return
        busy[0] = True
        try:
            where = _whose(comfy, event)
            if where:
                heard.add(event)
                why = _wrong(event, args, allowed)
                if why:
                    seen.append(f"{why}, from {where}")
        finally:
            busy[0] = False

    sys.addaudithook(hook)


def _whose(comfy: str, event: str) -> str | None:
    """The pack's line that an event comes from; None where it is ComfyUI's, or an import (dataclasses compile then)."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if "importlib" in name or name.startswith(comfy):
            return None
        if name.startswith(OWN):
            if event in ("exec", "compile") and frame.f_code.co_name == "<module>":
                return None
            return f"{os.path.relpath(name, ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return None


def _wrong(event: str, args: tuple, allowed: tuple[str, ...]) -> str | None:
    if event == "open":
        path, mode, flags = args[:3]
        writing = any(sign in str(mode or "") for sign in "wax+") or (
            isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
        )
        return f"{path!r} opened for writing" if writing and not _inside(path, allowed) else None
    if event in CHANGES or event == "sqlite3.connect":
        paths = [path for path in args[: CHANGES.get(event, 1)] if not _inside(path, allowed)]
        return f"{event} of {paths[0]!r}" if paths else None
    return f"{event} {str(args)[:100]}"


def _inside(path: object, allowed: tuple[str, ...]) -> bool:
    if isinstance(path, int) or path is None:
        return True
    text = os.fsdecode(path)
    return text.startswith("file:") or os.path.realpath(text).startswith(allowed)


def world(folder: Path):
    """ComfyUI with folders of its own, a small SD3 and two LoRAs for it."""
    import comfy.options

    sys.argv = ["comfy", "--cpu"]
    comfy.options.enable_args_parsing()
    import folder_paths
    import tiny_models

    folder_paths.set_user_directory(str(folder / "user"))
    folder_paths.models_dir = str(folder / "models")
    (folder / "loras").mkdir()
    folder_paths.folder_names_and_paths["loras"] = ([str(folder / "loras")], {".safetensors"})
    state = tiny_models.sd3_state(64)
    for seed, name in enumerate(("watercolour otter", "neon castle")):
        layers = tiny_models.linear_layers(state, "joint_blocks")
        tiny_models.save_lora(folder / "loras" / f"{name}.safetensors", layers, 4, seed, 0.1)
    return tiny_models, tiny_models.load(state)


def main(comfy: str, scratch: str) -> None:
    folder = Path(scratch).resolve()
    sys.path[:0] = [comfy, str(TESTS), str(ROOT)]
    os.chdir(comfy)
    tiny_models, model = world(folder)
    from comfy_local import pack_module

    encode, retrieve = pack_module("nodes.encode_library"), pack_module("nodes.retrieve")
    apply, conflicts = pack_module("nodes.gated_apply"), pack_module("nodes.lora_text")
    lexical = pack_module("autolora_core.encode.towers").LexicalTower()
    for module in (encode, retrieve):
        module.shared_tower = lambda folders=(): lexical
    watch(comfy, (str(folder / "user"), str(folder / "models" / "autolora")))
    index, _ = encode.AutoLoRAEncodeLibrary().encode("all loras", "", "default", False)["result"]
    selection, stack, _, report = retrieve.AutoLoRARetrieve().retrieve(
        index, "a watercolour otter", "auto", 2, 0.0, 1.0, "neon castle", "", True, True
    )["result"]
    fused, _, applied = apply.AutoLoRAGatedApply().apply(model, selection=selection, lora_stack=stack)
    text, _ = conflicts.AutoLoRAStackToText().write(selection=selection)
    tiny_models.sample(fused)
    print(
        json.dumps(
            {
                "seen": seen,
                "heard": sorted(heard),
                "picks": [p["name"] for p in selection["picks"]],
                "report": applied,
                "text": text,
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
