"""What is killed besides encoding: trainings of encoders and gates, and the writers of files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autolora_core import portable
from autolora_core.encode.encoder import FORMAT, write_encoder
from autolora_core.fusion.files import read_gate, write_gate
from autolora_core.fusion.gate import GateVectors
from autolora_core.fusion.merged.writing import write_merged
from autolora_core.fusion.methods import router_store
from autolora_core.fusion.training import trainer as gate_trainer
from autolora_core.library.index import Library
from autolora_core.train import contest, own
from autolora_core.train.outcome import Options

from .faults_world import apart, check_whole, fresh_folder, journal, need, note


def digest_of(path: Path, without: tuple[str, ...] = ()) -> str:
    """Of the tensors and metadata of a safetensors file."""
    tensors, said = portable.load_whole(path)
    digest = hashlib.sha256(repr(sorted((k, v) for k, v in said.items() if k not in without)).encode())
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class LibraryTraining:
    """Train LoRA Encoder on fifty small files; with ``epochs`` the set transformer takes part and is saved."""

    def __init__(self, base: Path, epochs: int):
        from train_worlds import world

        self.name = "set_transformer" if epochs else "ridge"
        self.epochs, self.folder, self.log = epochs, base / f"train {epochs}", base / "train journal"
        self.library, self.models = self.folder / "mine", self.folder / "models"
        self.old = base / "scanned" / "mine"
        if not self.old.exists():
            apart(lambda: self._scan(world(base / "train world")), base)

    def _scan(self, files: Path) -> None:
        with Library.open(self.old) as library:
            library.scan({"loras": files})

    def again(self) -> None:
        self.log.unlink(missing_ok=True)
        fresh_folder(self.folder)
        fresh_folder(self.library, self.old)

    def work(self) -> None:
        from retrieve_worlds import TopicTower

        own.MIN_FOR_SET, own._Job._seconds_an_epoch = 20, lambda *_: 0.01
        if self.epochs:
            contest.beats, own.leads = (lambda *_: True), (lambda *_: True)
        fold = contest.Contest.fold
        contest.Contest.fold = lambda me, number, tick: (note(self.log, f"fold {number}"), fold(me, number, tick))[1]
        final = own._Job._final
        own._Job._final = lambda *args: (note(self.log, "final"), final(*args))[1]
        note(self.log, "gathering")
        with Library.open(self.library) as library:
            [found], _ = own.train_library(library, TopicTower(), self.models, ["emoji"], Options(epochs=self.epochs))
            note(self.log, "saved")
            need(found.path and found.verdict.knows, "this world is made to be learnt")

    def check(self) -> None:
        """After a kill: the library is whole, and so is every file under a final name."""
        check_whole(self.library)
        for path in self.folder.rglob("*.safetensors"):
            portable.load_whole(path)

    def result(self) -> dict[str, Any]:
        path = self.models / "emoji-mine-encoder.safetensors"
        outcome = next((self.library / "training").glob("*/outcome.json")).read_text(encoding="utf-8")
        lines = [line for line in outcome.splitlines() if '"seconds"' not in line]
        return {"encoder": digest_of(path, ("trained",)), "outcome": "\n".join(lines)}


class GateTraining:
    """Forty steps on a made-up base; then the gate is saved."""

    name = "gate"

    def __init__(self, base: Path):
        self.folder, self.log = base / "gate training", base / "gate journal"

    def again(self) -> None:
        self.log.unlink(missing_ok=True)
        fresh_folder(self.folder)

    def work(self) -> None:
        from test_train_gate_core import Line, training

        note(self.log, "gate")
        made = training(self.folder)
        made.resume()
        made.run(Line(), 40, 40, lambda done, total: None)
        note(self.log, "gate trained")
        write_gate(self.folder / "gate.safetensors", made.gate.vectors(), family="emoji")

    def check(self) -> None:
        state = self.folder / "state.safetensors"
        if state.exists():
            said = portable.load_whole(state)[1]
            need(int(said["step"]) % gate_trainer.SAVE_EVERY == 0, "a state between two saves")
        if (self.folder / "gate.safetensors").exists():
            read_gate(self.folder / "gate.safetensors")

    def result(self) -> dict[str, Any]:
        return {name: digest_of(self.folder / name) for name in ("state.safetensors", "gate.safetensors")}


ROUNDS = 12
KEY = "0" * 32


class Saving:
    """Twelve rounds of writing every kind of file, each round over the last one's."""

    name = "save"

    def __init__(self, base: Path):
        self.folder, self.log = base / "saved", base / "save journal"
        self.writers = {
            "merged.safetensors": self._merged,
            "gate.safetensors": self._gate,
            "encoder.safetensors": self._encoder,
            f"{KEY}.safetensors": self._routers,
        }

    def again(self) -> None:
        self.log.unlink(missing_ok=True)
        fresh_folder(self.folder)

    def work(self) -> None:
        for number in range(ROUNDS):
            for name, write in self.writers.items():
                note(self.log, name)
                write(self.folder / name, number)
                note(self.log, [name, number])

    def _merged(self, path: Path, number: int) -> None:
        tensors = {f"layer{i}.lora_up.weight": torch.full((256, 1024), number + i / 8) for i in range(4)}
        write_merged(path, tensors, lambda taken: {"number": str(number)}, overwrite=True)

    def _gate(self, path: Path, number: int) -> None:
        vectors = GateVectors.from_named({name: torch.full((4096,), number / 10) for name in _vector_names()}, 1e-6)
        write_gate(path, {"fc1": vectors}, family="emoji", metadata={"number": str(number)})

    def _encoder(self, path: Path, number: int) -> None:
        said = {"format": FORMAT, "number": str(number)}
        write_encoder(path, {"X": np.full((400, 400), number, np.float32)}, said)

    def _routers(self, path: Path, number: int) -> None:
        router_store.write(path.parent, KEY, {"a": torch.full((200, 200), float(number))})

    def check(self) -> None:
        last: dict[str, int] = {}
        for said in journal(self.log):
            if isinstance(said, list):
                last[said[0]] = said[1]
        for name in self.writers:
            path = self.folder / name
            if not path.exists():
                need(name not in last, f"{name} was saved and is gone")
                continue
            tensors, said = portable.load_whole(path)
            first = float(next(iter(tensors.values())).flatten()[0])
            number = int(said["number"]) if "number" in said else round(first)
            need(last.get(name, -1) <= number <= last.get(name, -1) + 1, f"{name} is of round {number}, not {last}")
            whole = {round(float(value.double().std()), 9) for value in tensors.values()}
            need(whole == {0.0}, f"{name} is made of two rounds")
        odd = [path.name for path in self.folder.iterdir() if path.name not in self.writers]
        need(
            all(name.startswith(portable.TEMPORARY) and name.endswith(".tmp") for name in odd),
            f"files under other names: {odd}",
        )

    def result(self) -> dict[str, Any]:
        return {name: hashlib.sha256((self.folder / name).read_bytes()).hexdigest() for name in self.writers}


def _vector_names() -> tuple[str, ...]:
    from autolora_core.fusion.gate import VECTORS

    return tuple(VECTORS)
