"""Node "Train LoRA Encoder": an index → an encoder learnt from its own files and words; the index encoded with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..autolora_core.errors import LibraryError
from ..autolora_core.library.encoders import encoders_state, find_encoders
from ..autolora_core.train.captions import read_table, table_inside, table_path
from ..autolora_core.train.outcome import EPOCHS, MINUTES, Options
from ..autolora_core.train.own import families_of, train_library
from ..autolora_core.train.report import training_report
from ..autolora_core.wording import lines_apart
from .bar import Bar
from .encode_library import PACK_MODELS
from .retrieve_inputs import AUTO, FAMILIES
from .tower import shared_tower, tower_state

STEPS = (0.9, 0.1)  # training, encoding the index again


def _clip_tower(clip: Any) -> Any:
    from .clip_tower import ClipTower

    return ClipTower(clip)


class AutoLoRATrainEncoder:
    """Learns from a library's own captioned files what weights show, and says honestly how well."""

    TITLE = "Train LoRA Encoder"
    CATEGORY = "AutoLoRA"
    DESCRIPTION = (
        "Learns from your own LoRAs, those that say what they show, to find the ones that nobody described. Some are "
        "hidden while learning, and the report says how many of them are found, beside guessing. When it learns "
        "nothing it says so and changes nothing. The encoder is saved in models/autolora and the index is encoded with "
        "it. Takes minutes; a cancelled run goes on next time."
    )
    RETURN_TYPES = ("LORA_INDEX", "STRING")
    RETURN_NAMES = ("index", "report")
    OUTPUT_TOOLTIPS = (
        "The index, encoded with what was learnt, for Retrieve LoRAs from Prompt.",
        "Whether the encoder knows anything of your LoRAs, how many hidden ones it finds, why others were not trained.",
    )
    FUNCTION = "train"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"index": ("LORA_INDEX", {"tooltip": "The index from Encode LoRA Library."})},
            "optional": {
                "clip": (
                    "CLIP",
                    {
                        "tooltip": "Optional. A text encoder whose space is learnt, in place of MiniLM; Retrieve uses "
                        "what was learnt when the same one is connected there."
                    },
                ),
                "family": (
                    [AUTO, *FAMILIES],
                    {"tooltip": "Base model to train an encoder for. auto: one for each in the index."},
                ),
                "captions_csv": (
                    "STRING",
                    {
                        "default": "",
                        "multiline": True,
                        "tooltip": "Optional. What LoRAs show, a file a line: file,caption. Or the name of a .csv file "
                        "with such lines in ComfyUI's input folder. They take the place of the files' own words.",
                    },
                ),
                "minutes": (
                    "FLOAT",
                    {
                        "default": MINUTES,
                        "min": 0.1,
                        "max": 1440.0,
                        "step": 0.5,
                        "tooltip": "About how long it may take. Less time, fewer epochs.",
                    },
                ),
                "epochs": (
                    "INT",
                    {
                        "default": EPOCHS,
                        "min": 0,
                        "max": 1000,
                        "tooltip": "At most so many passes over the files. 0 trains ridge regression only: seconds.",
                    },
                ),
                "encoder_name": (
                    "STRING",
                    {"default": "", "tooltip": "Name of the encoder's file. Empty: after base model and library."},
                ),
            },
        }

    @classmethod
    def IS_CHANGED(cls, captions_csv: str | None = "", **_: Any) -> str:
        """The table's file, the text tower, and the encoders that are there; the library comes with the index."""
        from .bridge_paths import model_folders, table_folders

        path = table_path(captions_csv or "")
        try:
            path = path and table_inside(path, table_folders())
        except LibraryError:  # the run says so
            path = None
        status = path.stat() if path is not None and path.is_file() else None
        table = (status.st_size, status.st_mtime_ns) if status else ""
        return f"{table}|{tower_state(model_folders())}|{encoders_state(model_folders())}"

    def train(
        self, index: dict, family: str = AUTO, captions_csv: str = "", minutes: float = MINUTES, epochs: int = EPOCHS,
        encoder_name: str = "", clip: Any = None,
    ) -> dict[str, Any]:  # fmt: skip
        from .bridge_paths import model_folders, open_index, table_folders

        folders, bar = [*model_folders(), PACK_MODELS], Bar(STEPS)
        tower = shared_tower(model_folders()) if clip is None else _clip_tower(clip)
        options = Options(tuple(read_table(captions_csv, table_folders())), epochs, minutes, encoder_name)
        with open_index(index) as library:
            families = families_of(library, None if family == AUTO else family)
            target = Path(model_folders()[0])
            outcomes, notes = train_library(
                library, tower, target, families, options, find_encoders(folders), progress=bar, searched=folders
            )
            bar.step = 1
            shipped = find_encoders(folders, library.folder.name)
            library.fit(tower, progress=bar, should_stop=bar.stopped, shipped=shipped)
            bar.finish()
            handle = library.handle
        report = lines_apart(training_report(outcomes, notes))
        return {"ui": {"text": [report]}, "result": (handle, report)}
