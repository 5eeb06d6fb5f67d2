"""Node classes whose modules are imported when anything of them is first asked for.

ComfyUI imports every pack before its page can be opened. Two hundred modules of this one would add a third of a second
to every start, also where none of its nodes is used; they are read when the page asks for the nodes' inputs.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class OnDemand(type):
    """The class of a stand-in: everything that is asked of it is asked of the node class, which has its name."""

    def __getattr__(cls, name: str) -> Any:
        return getattr(cls.node_class(), name)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls.node_class()(*args, **kwargs)

    def node_class(cls) -> type:
        """The class itself."""
        if "_node_class" not in cls.__dict__:
            module = import_module(cls.__dict__["_home"], __package__)
            type.__setattr__(cls, "_node_class", getattr(module, cls.__name__))
        return cls.__dict__["_node_class"]

    def __setattr__(cls, name: str, value: Any) -> None:
        # ComfyUI notes on every class which pack it came from; whoever changes a method means the class itself.
        type.__setattr__(cls, name, value)
        if name != "RELATIVE_PYTHON_MODULE":
            setattr(cls.node_class(), name, value)


def stand_in(name: str, home: str) -> type:
    """For the class ``name`` of the module ``home`` (``.retrieve``)."""
    return OnDemand(name, (), {"_home": home, "__module__": f"{__package__}{home}"})
