"""The pack's nodes. Ids are stable for ever: saved workflows name them."""

from __future__ import annotations

from .on_demand import stand_in

# Id → its module and its title.
NODES = {
    "AutoLoRAEncodeLibrary": (".encode_library", "Encode LoRA Library"),
    "AutoLoRARetrieve": (".retrieve", "Retrieve LoRAs from Prompt"),
    "AutoLoRAFindSimilar": (".find_similar", "Find LoRAs Like This"),
    "AutoLoRAGatedApply": (".gated_apply", "Gated Multi-LoRA Apply"),
    "AutoLoRAMiniLMCLIPLoader": (".minilm_clip", "Load MiniLM CLIP (demo model)"),
    "AutoLoRATimeAndPlace": (".time_and_place", "LoRA Time and Place"),
    "AutoLoRAConflictReport": (".conflict_report", "LoRA Conflict Report"),
    "AutoLoRAGateHeatMap": (".heat_map", "Gate Heat Map"),
    "AutoLoRASaveMerged": (".save_merged", "Save Merged LoRA"),
    "AutoLoRATrainEncoder": (".train_encoder", "Train LoRA Encoder"),
    "AutoLoRATrainFusionGate": (".train_gate", "Train Fusion Gate"),
    "AutoLoRAStackFromText": (".lora_text", "LoRA Stack from Text"),
    "AutoLoRAStackToText": (".lora_text", "LoRA Stack to Text"),
    "AutoLoRASaveImage": (".save_image", "Save Image with LoRA Info"),
    "AutoLoRARenderPreviews": (".render_previews", "Render LoRA Previews"),
    "AutoLoRACompare": (".compare", "Compare Modes and Strengths"),
    "AutoLoRAPictureSheet": (".compare", "Picture Sheet"),
}
NODE_CLASS_MAPPINGS: dict[str, type] = {name: stand_in(name, home) for name, (home, _) in NODES.items()}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {name: title for name, (_, title) in NODES.items()}
