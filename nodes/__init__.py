"""The pack's nodes. Ids are stable for ever: saved workflows name them."""

from __future__ import annotations

from .conflict_report import AutoLoRAConflictReport
from .encode_library import AutoLoRAEncodeLibrary
from .find_similar import AutoLoRAFindSimilar
from .gated_apply import AutoLoRAGatedApply
from .heat_map import AutoLoRAGateHeatMap
from .lora_text import AutoLoRAStackFromText, AutoLoRAStackToText
from .minilm_clip import AutoLoRAMiniLMCLIPLoader
from .retrieve import AutoLoRARetrieve
from .save_image import AutoLoRASaveImage
from .save_merged import AutoLoRASaveMerged
from .time_and_place import AutoLoRATimeAndPlace
from .train_encoder import AutoLoRATrainEncoder
from .train_gate import AutoLoRATrainFusionGate

NODE_CLASSES = (
    AutoLoRAEncodeLibrary, AutoLoRARetrieve, AutoLoRAFindSimilar, AutoLoRAGatedApply, AutoLoRAMiniLMCLIPLoader,
    AutoLoRATimeAndPlace, AutoLoRAConflictReport, AutoLoRAGateHeatMap, AutoLoRASaveMerged, AutoLoRATrainEncoder,
    AutoLoRATrainFusionGate, AutoLoRAStackFromText, AutoLoRAStackToText, AutoLoRASaveImage,
)  # fmt: skip
NODE_CLASS_MAPPINGS: dict[str, type] = {node.__name__: node for node in NODE_CLASSES}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {node.__name__: node.TITLE for node in NODE_CLASSES}
