"""Puts a row into a workflow: where the prompt, the seed and the rest go, found from the graph or said by the user."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..cli import ScriptFailed
from ..client import Graph
from ..graphs import APPLY, RETRIEVE, titles
from . import places
from .places import Place
from .rows import PROMPT, Row
from .values import ValueWrong, like, number, whole

PICKS = "batch_picks"  # node that shows what a Retrieve node picked, as JSON
_OF_RETRIEVE = ("strength", "top_k", "threshold", "pinned", "banned")
_HOLE = re.compile(r"\{([^{}|]+)\}")


class WorkflowWrong(ScriptFailed):
    """The workflow file cannot be used, or it is not clear where a column goes; the message says what to do."""


def load(path: Path) -> Graph:
    """A workflow in API format. Raises `WorkflowWrong`."""
    try:
        graph = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise WorkflowWrong(f"{path}: this is not JSON: {error}") from error
    if isinstance(graph, dict) and isinstance(graph.get("nodes"), list):
        raise WorkflowWrong(f"{path}: this is the page's own format. In ComfyUI choose File → Export (API)")
    sent = graph.get("prompt") if isinstance(graph, dict) else None
    graph = sent if isinstance(sent, dict) and "class_type" not in sent else graph  # as posted, with the graph inside
    nodes = graph.values() if isinstance(graph, dict) else ()
    if not nodes or not all(isinstance(n, dict) and {"class_type", "inputs"} <= set(n) for n in nodes):
        raise WorkflowWrong(f"{path}: this is no workflow in API format. In ComfyUI choose File → Export (API)")
    return graph


class Workflow:
    """A graph, and where the columns go. Places are looked for when a column needs them.

    Args:
        graph: API format.
        columns: all columns of the table: the names that ``{name}`` may stand for in the graph's texts.
        name: for messages.
    """

    def __init__(self, graph: Graph, columns: Iterable[str] = (), name: str = "the workflow") -> None:
        self.graph, self.name = graph, name
        self.titles = titles(graph)
        may = {*columns, PROMPT, "negative", "seed"}
        texts = [value for body in graph.values() for value in body["inputs"].values() if isinstance(value, str)]
        self.holes = {hole for text in texts for hole in _HOLE.findall(text) if hole in may}
        self.retrieves = [node for node, body in graph.items() if body["class_type"] == RETRIEVE]
        self._places: dict[str, list[Place]] = {}

    def fill(self, row: Row, seed: int) -> Graph:
        """The graph for one row. Raises `WorkflowWrong` with the row's line."""
        filled = copy.deepcopy(self.graph)
        cells = row.asked | {"seed": seed}
        try:
            _fill_holes(filled, self.holes, cells)
            for name, cell in cells.items():
                if name not in self.holes and name != "count":
                    for node, entry in self.places(name):
                        _set(filled, node, entry, cell, name)
        except ValueWrong as error:
            raise WorkflowWrong(f"line {row.line}: {error}") from error
        return filled

    def places(self, column: str) -> list[Place]:
        """Which inputs a column sets. Raises `WorkflowWrong` when none, or not clear."""
        if column not in self._places:
            self._places[column] = self._find(column)
        return self._places[column]

    def told(self, columns: Iterable[str]) -> list[str]:
        """Where each column goes, a line each, for people."""
        lines = []
        for column in columns:
            if column in self.holes:
                lines.append(f"{column} → where {{{column}}} stands")
            elif column != "count":
                lines.append(f"{column} → {', '.join(f'{self._called(n)}.{e}' for n, e in self.places(column))}")
        return lines

    def with_picks(self, graph: Graph) -> Graph:
        """The graph with nodes that show what each Retrieve node picked; pictures do not change."""
        more = {
            f"{PICKS}_{node}": {"class_type": "PreviewAny", "inputs": {"source": [node, 0]}} for node in self.retrieves
        }
        return {**graph, **more}

    def _find(self, column: str) -> list[Place]:
        finders: dict[str, Callable[[], list[Place]]] = {
            PROMPT: lambda: places.prompts(self.graph, self.retrieves),
            "negative": self._negatives,
            "seed": lambda: places.seeds(self.graph),
            "width": lambda: places.sizes(self.graph, "width"),
            "height": lambda: places.sizes(self.graph, "height"),
        }
        if column in finders:
            return self._one(column, finders[column]())
        if column in _OF_RETRIEVE:
            return self._one(column, self._of_pack(column))
        return [self._named(column)]

    def _negatives(self) -> list[Place]:
        """Not the prompt's own text, which some workflows turn into an empty negative."""
        prompts = places.prompts(self.graph, self.retrieves)
        return [place for place in places.texts(self.graph, "negative") if place not in prompts]

    def _of_pack(self, column: str) -> list[Place]:
        nodes = self.retrieves or [n for n, body in self.graph.items() if body["class_type"] == APPLY]
        found = [places.source(self.graph, (node, column)) for node in nodes if column in self._inputs(node)]
        return [place for place in found if place is not None]

    def _one(self, column: str, found: list[Place]) -> list[Place]:
        values = {repr(self._inputs(node).get(entry)) for node, entry in found}
        if len(found) == 1 or (column == "seed" and len(values) == 1):
            return found
        several = ", ".join(f"{self._called(node)}.{entry}" for node, entry in found)
        why = f"there are several places for it: {several}" if found else "there is no place for it"
        if column == "seed" and found:
            why = f"samplers have different seeds: {several}"
        example = several.partition(",")[0] or "Title.input"
        raise WorkflowWrong(
            f"{self.name}: where does {column!r} go? In this workflow {why}. Write {{{column}}} into the text or "
            f"number that it is to fill (in the .json file), or name the column after node and input, as {example}"
        )

    def _named(self, column: str) -> Place:
        node, _, entry = column.rpartition(".")
        found = [n for n in self.graph if n == node]
        found = found or [n for n, title in self.titles.items() if title == node]
        found = found or [n for n, body in self.graph.items() if body["class_type"] == node]
        if len(found) != 1:
            known = ", ".join(sorted(set(self.titles.values())))
            raise WorkflowWrong(
                f"{self.name}: {len(found) or 'no'} nodes are called {node!r} (column {column!r}); a column is a "
                f"node's id or title, a dot, an input. Titles: {known}"
            )
        inputs = self._inputs(found[0])
        if entry not in inputs:
            raise WorkflowWrong(f"{self.name}: {node} has no input {entry!r}; it has {', '.join(inputs)}")
        if places.is_link(inputs[entry], self.graph):
            source = self._called(inputs[entry][0])
            raise WorkflowWrong(f"{self.name}: {node}.{entry} is connected to {source}: name an input of that node")
        return found[0], entry

    def _inputs(self, node: str) -> dict[str, Any]:
        return self.graph[node]["inputs"]

    def _called(self, node: str) -> str:
        return self.titles[node] if list(self.titles.values()).count(self.titles[node]) == 1 else node


def job_id(graph: Graph) -> str:
    """What a filled graph draws, as 16 hex digits: classes and inputs, not titles."""
    plain = {node: [body["class_type"], body["inputs"]] for node, body in graph.items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, ensure_ascii=True).encode()).hexdigest()[:16]


def _fill_holes(graph: Graph, holes: set[str], cells: dict[str, Any]) -> None:
    for body in graph.values():
        for entry, text in body["inputs"].items():
            if not isinstance(text, str):
                continue
            whole_hole = _HOLE.fullmatch(text)
            if whole_hole and whole_hole[1] in holes:
                body["inputs"][entry] = _typed(whole_hole[1], cells.get(whole_hole[1], ""))
            else:
                body["inputs"][entry] = _HOLE.sub(lambda m: str(cells.get(m[1], "")) if m[1] in holes else m[0], text)


def _typed(column: str, cell: Any) -> Any:
    """A cell that is all of an input: numbers where the column is one."""
    if column in ("seed", "width", "height", "top_k"):
        return whole(cell)
    return number(cell) if column in ("strength", "threshold") else cell


def _set(graph: Graph, node: str, entry: str, cell: Any, column: str) -> None:
    inputs = graph[node]["inputs"]
    try:
        inputs[entry] = like(cell, inputs.get(entry))
    except ValueWrong as error:
        raise ValueWrong(f"{column}: {error}") from error
