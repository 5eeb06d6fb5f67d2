"""A workflow as the front end saves it, made from its API twin and from where things lie.

The API file is the truth of nodes, values and wires; the UI file adds places, sizes, groups, notes and colours, and a
running server says which inputs, outputs and defaults a node has. So a node that gets a new input is written into every
workflow by one command (``python scripts/workflows.py``), and a new workflow is its API file and a list of places.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
_NOTES = {"Note", "MarkdownNote"}  # known to the front end alone
_AFTER = "control_after_generate"
Json = dict[str, Any]


def complete(api: Mapping[str, Json], ui: Json, info: Mapping[str, Json]) -> Json:
    """The UI file: ``ui`` with every node's inputs, outputs, values and links as ``api`` and the server have them.

    ``ui`` needs ``nodes`` with ``id``, ``pos`` and ``size`` at least, notes whole. ``info`` is ``/object_info``.
    Raises ValueError when the two files do not hold the same nodes, KeyError for a node the server does not have.
    """
    places = {str(node["id"]): node for node in ui["nodes"] if node.get("type") not in _NOTES}
    if set(places) != set(api):
        raise ValueError(f"nodes in only one of the two files: {sorted(set(places) ^ set(api))}")
    schemas = {node: schema(info[body["class_type"]]) for node, body in api.items()}
    links = _links(api, ui, info, schemas)
    nodes = []
    for number, place in enumerate(ui["nodes"]):
        if place.get("type") in _NOTES:
            nodes.append({**place, "order": number})
        else:
            name = str(place["id"])
            nodes.append(_node(place, number, api[name], info[api[name]["class_type"]], schemas[name], links))
    return {
        "id": ui["id"], "revision": ui.get("revision", 0),
        "last_node_id": max(node["id"] for node in nodes), "last_link_id": max((link[0] for link in links), default=0),
        "nodes": nodes, "links": links, "groups": ui.get("groups", []), "config": ui.get("config", {}),
        "extra": ui.get("extra", {}), "version": 0.4,
    }  # fmt: skip


def schema(info: Json) -> dict[str, tuple[Any, Json]]:
    """Input's name → (type, options), those that take a wire only before those with a widget, as the front end does."""
    inputs: dict[str, tuple[Any, Json]] = {}
    optional = info["input"].get("optional", {})
    for name, spec in {**info["input"].get("required", {}), **optional}.items():
        options = spec[1] if len(spec) > 1 else {}
        inputs[name] = (spec[0], {**options, "optional": name in optional})
    wires = {name: entry for name, entry in inputs.items() if not is_widget(*entry)}
    return wires | {name: entry for name, entry in inputs.items() if name not in wires}


def is_widget(kind: Any, options: Json) -> bool:
    """Whether the front end draws something to type or choose for an input."""
    return (isinstance(kind, list) or kind in _WIDGETS) and not options.get("forceInput")


def _links(api: Mapping[str, Json], ui: Json, info: Mapping[str, Json], schemas: Mapping[str, Json]) -> list[list]:
    """[number, source, slot, target, slot, type] of every wire; one that was there keeps its number."""
    numbers = {tuple(link[1:5]): link[0] for link in ui.get("links", [])}
    new, links = max(numbers.values(), default=0), []
    for target, body in api.items():
        for slot, name in enumerate(schemas[target]):
            wire = body["inputs"].get(name)
            if not isinstance(wire, list):
                continue
            key = (int(wire[0]), wire[1], int(target), slot)
            if key not in numbers:
                new += 1
            given = info[api[wire[0]]["class_type"]]["output"][wire[1]]
            type_ = "COMBO" if isinstance(given, list) else given
            links.append([numbers.get(key, new), *key, type_])
    return sorted(links)


def _node(place: Json, order: int, body: Json, info: Json, inputs: Json, links: list[list]) -> Json:
    number, kind = place["id"], body["class_type"]
    entering = {link[4]: link[0] for link in links if link[3] == number}
    properties = {"Node name for S&R": kind}
    if not info.get("python_module", "").startswith("custom_nodes"):
        properties |= {"cnr_id": "comfy-core", "ver": "0.3.75"}
    node = {"id": number, "type": kind, "pos": place["pos"], "size": place["size"]}
    node |= {"flags": place.get("flags", {}), "order": order, "mode": place.get("mode", 0)}
    node["inputs"] = [_input(name, *inputs[name], entering.get(slot)) for slot, name in enumerate(inputs)]
    node["outputs"] = [
        {"name": name, "type": "COMBO" if isinstance(type_, list) else type_, "slot_index": slot,
         "links": [link[0] for link in links if link[1:3] == [number, slot]] or None}
        for slot, (name, type_) in enumerate(zip(info["output_name"], info["output"], strict=True))
    ]  # fmt: skip
    node |= {"title": body["_meta"]["title"], "properties": place.get("properties", properties)}
    node["widgets_values"] = _values(body, inputs, place.get("widgets_values", []))
    return node | {key: place[key] for key in ("color", "bgcolor") if key in place}


def _input(name: str, kind: Any, options: Json, link: int | None) -> Json:
    entry: Json = {"name": name, "type": "COMBO" if isinstance(kind, list) else kind, "link": link}
    if is_widget(kind, options):
        return entry | {"widget": {"name": name}}
    return entry | ({"shape": 7} if options["optional"] else {})


def _values(body: Json, inputs: Json, before: list) -> list:
    """Every widget's value in order: the API file's, else the node's default; what follows a seed stays as it was."""
    values: list[Any] = []
    for name, (kind, options) in inputs.items():
        if not is_widget(kind, options):
            continue
        value = body["inputs"].get(name)
        if value is None or isinstance(value, list):
            value = _default(kind, options)
        values.append(value)
        if options.get(_AFTER):
            kept = before[len(values)] if len(before) > len(values) else None
            values.append(kept if kept in ("fixed", "randomize", "increment", "decrement") else "fixed")
    return values


def _default(kind: Any, options: Json) -> Any:
    choices = kind if isinstance(kind, list) else options.get("options")
    if "default" in options:
        return options["default"]
    return choices[0] if choices else {"INT": 0, "FLOAT": 0.0, "BOOLEAN": False}.get(kind, "")
