"""ComfyUI-AutoLoRA: the entry that ComfyUI imports. Outside ComfyUI importing this does nothing."""

from importlib.util import find_spec

WEB_DIRECTORY = "./web"
__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]

# Both conditions: test runners import this file without a package, or as a package without ComfyUI.
if __package__ and find_spec("folder_paths") is not None:
    from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
    from .nodes.routes import add_routes

    add_routes()
else:
    NODE_CLASS_MAPPINGS: dict[str, type] = {}
    NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}
