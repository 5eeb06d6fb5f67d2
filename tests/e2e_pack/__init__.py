"""A pack of someone else, for the end-to-end tests: a LoRA stacker that takes any name, as text; and helper nodes."""

from .basing import NODES as BASING
from .counting import NODES as COUNTING
from .looking import NODES as LOOKING
from .patching import NODES as PATCHING


class StackFromText:
    """Lines ``name|model strength|clip strength`` → LORA_STACK, without looking whether the files are there."""

    RETURN_TYPES = ("LORA_STACK",)
    FUNCTION = "stack"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"lines": ("STRING", {"multiline": True, "default": ""})}}

    def stack(self, lines):
        entries = (line.split("|") for line in lines.splitlines())
        return ([(name, float(model), float(clip)) for name, model, clip in entries],)


NODE_CLASS_MAPPINGS = {"StackFromText": StackFromText, **LOOKING, **BASING, **PATCHING, **COUNTING}
