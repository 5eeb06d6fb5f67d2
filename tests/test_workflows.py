"""Every shipped workflow: its two files say the same, and both fit what the real server offers."""

from __future__ import annotations

import json

import pytest
from e2e_world import need_demo_models
from workflow_files import (
    FOLDER,
    NAMES,
    OTHER_BASES,
    api_file,
    api_wires,
    drawn,
    is_widget,
    menu,
    on_the_demo_model,
    schema,
    ui_file,
    ui_nodes,
    ui_wires,
    widget_values,
    with_names_of_other_models,
)

from scripts._lib.client import ExecutionFailed
from scripts._lib.png import pixels
from scripts._lib.server import DEMO_MODELS, ComfyServer

each = pytest.mark.parametrize("name", NAMES)
PICTURES = {
    "retrieve_and_fuse": 1, "compare_sum_and_gate": 3, "choose_by_hand": 1, "find_in_my_library": 0, "look_inside": 3,
    "compare_modes": 1, "find_duplicates": 0, "train_encoder": 0, "train_gate": 1, "batch_by_api": 1,
    "each_in_its_place": 1, "sdxl_retrieve_and_fuse": 1, "flux_with_the_public_gate": 1,
}  # fmt: skip
# What a text of these says instead of what was picked for a prompt.
SAYS = {"find_duplicates": "compared by their weights", "train_gate": "on draws that nothing was learnt from"}


def test_every_workflow_has_both_files_and_a_picture():
    assert all((FOLDER / f"{name}.jpg").read_bytes()[:3] == b"\xff\xd8\xff" for name in NAMES)
    assert set(NAMES) == set(PICTURES) == {path.stem for path in (FOLDER / "api").glob("*.json")}


@each
def test_a_workflow_for_the_demo_model_says_how_to_get_it(name):
    """A new user's ComfyUI has no such model: the loaders turn red, and nothing else says why."""
    ui = ui_file(name)
    notes = [node["widgets_values"][0] for node in ui["nodes"] if node["type"] == "MarkdownNote"]
    needs = "emoji_mmdit.safetensors" in json.dumps(api_file(name))
    assert any("demo.py --serve --comfyui" in note for note in notes) == needs


@each
def test_it_opens_with_its_upper_left_corner_in_view(name):
    """Below the front end's tabs and menu (130 px) and beside its sidebar (60 px)."""
    ui = ui_file(name)
    scale, (across, down) = ui["extra"]["ds"]["scale"], ui["extra"]["ds"]["offset"]
    corners = [group["bounding"][:2] for group in ui["groups"]] + [node["pos"] for node in ui["nodes"]]
    assert 60 < (min(x for x, _ in corners) + across) * scale < 120
    assert 130 < (min(y for _, y in corners) + down) * scale < 200


@each
def test_both_files_hold_the_same_nodes_and_wires(name):
    ui, api = ui_file(name), api_file(name)
    nodes = ui_nodes(ui)
    assert {node: body["type"] for node, body in nodes.items()} == {k: v["class_type"] for k, v in api.items()}
    assert {node: body["title"] for node, body in nodes.items()} == {k: v["_meta"]["title"] for k, v in api.items()}
    assert ui_wires(ui) == api_wires(api)


@each
def test_links_of_the_ui_file_are_told_alike_from_both_ends(name):
    """The file writes a link three times: in its list, at the input it enters, at the output it leaves."""
    ui = ui_file(name)
    links = {link[0]: link for link in ui["links"]}
    nodes = {node["id"]: node for node in ui["nodes"]}
    entering = {
        entry["link"]: (node["id"], slot)
        for node in ui["nodes"]
        for slot, entry in enumerate(node["inputs"])
        if entry["link"] is not None
    }
    leaving = {
        link: (node["id"], slot)
        for node in ui["nodes"]
        for slot, output in enumerate(node["outputs"])
        for link in output["links"] or []
    }
    assert len(links) == len(ui["links"]) and set(links) == set(entering) == set(leaving)
    for number, (_, source, source_slot, target, slot, kind) in links.items():
        assert entering[number] == (target, slot) and leaving[number] == (source, source_slot)
        assert nodes[source]["outputs"][source_slot]["type"] == kind
    assert ui["last_link_id"] >= max(links) and ui["last_node_id"] >= max(nodes)


@each
def test_nothing_in_the_ui_file_lies_on_top_of_something_else(name):
    boxes = [(node["id"], *node["pos"], *node["size"]) for node in ui_file(name)["nodes"]]
    title = 30  # a node's title bar stands above its position
    for first, x, y, w, h in boxes:
        for second, x2, y2, w2, h2 in boxes:
            apart = x + w <= x2 or x2 + w2 <= x or y + h <= y2 - title or y2 + h2 <= y - title
            assert first == second or apart, (first, second)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    need_demo_models()
    models = with_names_of_other_models(DEMO_MODELS, tmp_path_factory)
    with ComfyServer(tmp_path_factory.mktemp("workflows"), models=models) as server:
        yield server


@pytest.fixture(scope="module")
def offered(server):
    return server.client.object_info()


@pytest.mark.slow
@each
def test_the_api_file_fits_what_the_server_offers(name, offered):
    graph = api_file(name)
    for node, body in graph.items():
        assert body["class_type"] in offered, f"the server has no node {body['class_type']}"
        info = offered[body["class_type"]]
        inputs = schema(info)
        where = f"node {node} ({body['class_type']})"
        assert set(body["inputs"]) <= set(inputs), where
        assert set(info["input"].get("required", {})) <= set(body["inputs"]), where
        for key, value in body["inputs"].items():
            kind, options = inputs[key]
            if isinstance(value, list):
                given = offered[graph[value[0]]["class_type"]]["output"][value[1]]
                assert kind in (given, "*"), f"{where}: {key} takes {kind}, not {given}"
            elif menu(kind, options) is not None:
                assert value in menu(kind, options), f"{where}: {key} does not offer {value}"
            else:
                assert isinstance(value, {"STRING": str, "BOOLEAN": bool, "INT": int, "FLOAT": float}[kind]), where
                assert options.get("min", value) <= value <= options.get("max", value), where


@pytest.mark.slow
@each
def test_the_ui_file_holds_the_api_file_s_values_in_the_server_s_order(name, offered):
    api = api_file(name)
    for node, body in ui_nodes(ui_file(name)).items():
        info = offered[body["type"]]
        values = widget_values(info, body["widgets_values"])
        for key, value in api[node]["inputs"].items():
            assert isinstance(value, list) or values[key] == value, (node, key)
        for entry in body["inputs"]:
            kind, options = schema(info)[entry["name"]]
            assert entry["type"] == ("COMBO" if menu(kind, options) is not None else kind), (node, entry["name"])
            assert ("widget" in entry) == is_widget(kind, options), (node, entry["name"])
        kinds = ["COMBO" if isinstance(kind, list) else kind for kind in info["output"]]
        assert [output["type"] for output in body["outputs"]] == kinds, node
        assert [output["name"] for output in body["outputs"]] == info["output_name"], node


@pytest.mark.slow
@each
def test_the_api_file_runs_as_it_is(name, server):
    graph = on_the_demo_model(api_file(name)) if name in OTHER_BASES else api_file(name)
    result = server.run(graph, timeout=300)
    shown = drawn(graph)
    assert len(shown) == PICTURES[name]
    for node, of_the_model in shown.items():
        header, _ = pixels(server.client.fetch(result.images(node)[0]))
        size = [int.from_bytes(header[at : at + 4], "big") for at in (0, 4)]
        assert size == [128, 128] if of_the_model else min(size) > 128, (node, size)
    texts = [result.text(node) for node, body in graph.items() if body["class_type"] == "PreviewAny"]
    if name in SAYS:
        assert any(SAYS[name] in text for text in texts), texts
    else:
        assert any(text.startswith("Prompt: ") and "Picked:" in text for text in texts), texts


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER_BASES)
def test_a_workflow_for_another_base_is_let_in_as_it_is(name, server):
    """What the server checks of a graph before it runs: it gets as far as the first file, which is empty here."""
    graph = api_file(name)
    with pytest.raises(ExecutionFailed) as failed:
        server.run(graph, timeout=120)
    assert "Loader" in graph[failed.value.result.error["node_id"]]["class_type"]


@pytest.mark.slow
def test_loras_that_nobody_described_are_found_through_the_model_alone(server):
    """Files of the shelf with meaningless names and no metadata: with MODEL and CLIP at Retrieve, and without."""
    shelf = json.loads((FOLDER.parent / "zoo" / "loras.json").read_text(encoding="utf-8"))
    silent = {row["label"]: row["file"] for row in shelf}
    found = {}
    for connected in (True, False):
        for label in ("anchor", "beaver", "seal"):
            graph = api_file("find_in_my_library")
            retrieve = next(body for body in graph.values() if body["class_type"] == "AutoLoRARetrieve")["inputs"]
            retrieve |= {"prompt": f"a {label} on a hill", "threshold": 0.5, "top_k": 3}
            if not connected:
                del retrieve["clip"]
            text = server.run(graph, timeout=300).text("7")
            assert ("connect clip" in text) == (not connected) and ("Asked through the model" in text) == connected
            picked = text.partition("Nearest of those left out")[0]
            found[connected, label] = silent[label] in picked
    assert sum(found[True, label] for label in ("anchor", "beaver", "seal")) >= 2, found
    assert not any(found[False, label] for label in ("anchor", "beaver", "seal")), found


@pytest.mark.slow
def test_the_template_browser_lists_the_workflows_and_not_their_api_twins(server):
    templates = server.client.get("/workflow_templates")["autolora"]
    assert sorted(templates) == NAMES
    for name in NAMES:
        served = server.client.request("GET", f"/api/workflow_templates/autolora/{name}.json")
        assert json.loads(served) == ui_file(name)
