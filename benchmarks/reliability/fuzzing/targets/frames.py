"""What goes between a scan and the processes that read files for it: frames that broke off, lie about their lengths,
list other arrays, say other things. A frame is refused or taken; nothing else may come of it."""

from __future__ import annotations

import io
import json
import random
import struct
from pathlib import Path

from autolora_core.errors import AutoLoRAError
from autolora_core.library.reader_wire import BadFrame, answer, answered, read_frame, write_frame
from autolora_core.library.reading import read_file, words_of
from autolora_core.library.walk import walk

from .. import lora_seeds, mutate
from ..memory import MIB
from ..oracle import Wrong

CASES = 3_000
LENGTHS = struct.Struct("<QQ")
ARRAYS = (["<f4", [2, 3]], ["<f4", [-1]], ["<f8", [1 << 62, 4]], ["<f2", []], ["|O", [1]], ["<f4", [0, -1]],
          ["f4, (", [1]], ["(2,)f4", [1]], [None, [1]], ["<f4", ["1"]], ["<f4", 3], ["<f4", [2.0]], [])  # fmt: skip


def bound(size: int) -> int:
    return 16 * MIB + 8 * size


def seeds(folder: Path) -> list[bytes]:
    """The answers to some files."""
    made = []
    for number, data in enumerate(lora_seeds.seeds(folder)[:3]):
        (folder / f"{number}.safetensors").write_bytes(data)
    for item in walk(str(folder), lambda name: True, lambda path, why: None):
        read = read_file(item, lambda size: None)
        frame = io.BytesIO()
        write_frame(frame, *answer(read, words_of(item, read, None)))
        made.append(frame.getvalue())
    return made


def make(rng: random.Random, parent: bytes) -> bytes:
    if rng.random() < 0.2:
        return mutate.bytes_of(rng, parent)
    size, _ = LENGTHS.unpack_from(parent)  # of one that cannot be taken apart the fuzzer changes bytes
    head, body, lengths = json.loads(parent[16 : 16 + size]), parent[16 + size :], None
    for _ in range(rng.choice((1, 1, 2, 4))):
        way = rng.randrange(4)
        if way == 0:
            head = mutate.changed(rng, head)
        elif way == 1 and isinstance(head, dict):
            listed = head.get("arrays")
            listed = [*listed] if isinstance(listed, list) else []
            listed.insert(rng.randrange(len(listed) + 1), rng.choice(ARRAYS))
            head["arrays"] = listed[: rng.choice((len(listed), 1, 0))]
        elif way == 2:
            body = mutate.bytes_of(rng, body)
        else:
            lengths = rng.choice(((0, 0), (1 << 63, 1), (1 << 20, 0), (1, (1 << 28) - 1), (7, 7)))
    text = mutate.dumped(head)
    return LENGTHS.pack(*(lengths or (len(text), len(body)))) + text + body


def run(data: bytes, folder: Path) -> None:
    try:
        frame = read_frame(io.BytesIO(data))
        read, _ = answered(*frame) if frame is not None else (None, None)
    except BadFrame as error:
        raise AutoLoRAError(f"no frame: {error}", path="frame", fix="read the file by itself") from error
    features = read.encoded.features if read is not None and read.encoded is not None else None
    if features is not None and (features.rows.ndim, features.log_norms.ndim) != (2, 1):
        raise Wrong(f"features of shape {features.rows.shape}")
