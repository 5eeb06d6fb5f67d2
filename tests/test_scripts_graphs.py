"""The shipped API workflow filled with a prompt, and the graph of pictures it is compared with."""

from __future__ import annotations

import copy

import pytest

from scripts._lib import graphs
from scripts._lib.cli import ScriptFailed
from scripts._lib.files import write_atomic
from scripts._lib.graphs import Comparison, WorkflowError
from scripts._lib.showcase import check_models


@pytest.fixture
def workflow():
    return graphs.load()


def test_missing_models_are_named_before_anything_starts(tmp_path):
    models = {kind: [tmp_path] for kind in ("diffusion_models", "vae")} | {"loras": [tmp_path / "loras"]}
    for file in ("emoji_mmdit.safetensors", "emoji_vae.safetensors", "loras/one.safetensors"):
        with pytest.raises(ScriptFailed, match=f"Missing.*{file.split('/')[0]}.*complete copy"):
            check_models(models)
        write_atomic(tmp_path / file, b"")
    check_models(models)


def links(graph):
    return [
        (node, name, value)
        for node, body in graph.items()
        for name, value in body["inputs"].items()
        if isinstance(value, list)
    ]


def assert_closed(graph):
    """Every link leads to a node of the graph."""
    assert [link for link in links(graph) if link[2][0] not in graph] == []


def test_filling_sets_prompt_and_seed_and_leaves_the_file_s_graph_alone(workflow):
    before = copy.deepcopy(workflow)
    filled = graphs.fill(workflow, "a “quoted” prompt\nwith a line", 123)
    assert workflow == before
    assert filled[graphs.find(filled, graphs.RETRIEVE)]["inputs"]["prompt"] == "a “quoted” prompt\nwith a line"
    assert filled[graphs.find(filled, "KSampler")]["inputs"]["seed"] == 123
    assert {graphs.SELECTION, graphs.PROMPT, graphs.FUSION} <= set(filled)
    assert_closed(filled)


def test_the_shipped_workflow_runs_encode_retrieve_apply_in_a_row(workflow):
    encode, retrieve, apply = (graphs.find(workflow, c) for c in (graphs.ENCODE, graphs.RETRIEVE, graphs.APPLY))
    assert workflow[retrieve]["inputs"]["index"] == [encode, 0]
    assert workflow[apply]["inputs"]["selection"] == [retrieve, 0]
    sampler = workflow[graphs.find(workflow, "KSampler")]["inputs"]
    assert sampler["model"] == [apply, 0]
    assert workflow[sampler["positive"][0]]["inputs"]["text"] == [retrieve, 2]
    assert_closed(workflow)


def test_encoding_alone_is_one_node(workflow):
    assert [body["class_type"] for body in graphs.encode_only(workflow).values()] == [graphs.ENCODE]


def test_nodes_are_found_by_class_not_by_number(workflow):
    renumbered = {f"n{node}": copy.deepcopy(body) for node, body in workflow.items()}
    for node, name, (source, slot) in links(renumbered):
        renumbered[node]["inputs"][name] = [f"n{source}", slot]
    filled = graphs.fill(renumbered, "x", 1)
    comparison = Comparison(renumbered, 1)
    comparison.add("a", "x", [("l.safetensors", 1.0)])
    assert_closed(filled)
    assert_closed(comparison.graph)


def test_a_workflow_without_the_node_says_so(workflow):
    del workflow[graphs.find(workflow, graphs.APPLY)]
    with pytest.raises(WorkflowError, match="0 nodes of class AutoLoRAGatedApply"):
        graphs.fill(workflow, "x", 1)


def model_chain(graph, save):
    """The LoRAs between a SaveImage and the model loader, in the order they are applied."""
    decode = graph[graph[save]["inputs"]["images"][0]]
    node = graph[decode["inputs"]["samples"][0]]["inputs"]["model"][0]
    chain = []
    while graph[node]["class_type"] == "LoraLoaderModelOnly":
        inputs = graph[node]["inputs"]
        chain.insert(0, (inputs["lora_name"], inputs["strength_model"]))
        node = inputs["model"][0]
    assert graph[node]["class_type"] == "UNETLoader"
    return chain


def test_a_comparison_uses_stock_nodes_only_and_shares_what_it_can(workflow):
    comparison = Comparison(workflow, 5)
    a, b = ("a.safetensors", 1.0), ("b.safetensors", 0.5)
    saves = {
        comparison.add("base", "an otter", []): [],
        comparison.add("one", "an otter, trigger", [a]): [a],
        comparison.add("two", "an otter, trigger", [b]): [b],
        comparison.add("chain", "an otter, trigger", [a, b]): [a, b],
    }
    graph = comparison.graph
    assert_closed(graph)
    assert {save: model_chain(graph, save) for save in saves} == saves
    classes = [body["class_type"] for body in graph.values()]
    assert classes.count("UNETLoader") == classes.count("VAELoader") == 1
    assert classes.count("CLIPTextEncode") == 3  # two texts and the negative one
    assert classes.count("LoraLoaderModelOnly") == 3  # a is loaded once, b alone and b after a
    assert not {c for c in classes if c.startswith("AutoLoRA")} - {"AutoLoRAMiniLMCLIPLoader"}


def test_the_base_picture_is_sampled_exactly_as_ours(workflow):
    filled = graphs.fill(workflow, "an otter", 5)
    comparison = Comparison(workflow, 5)
    comparison.add("base", "an otter", [])
    ours = filled[graphs.find(filled, "KSampler")]["inputs"]
    base = comparison.graph["sample_base"]["inputs"]
    same = ("seed", "steps", "cfg", "sampler_name", "scheduler", "denoise", "negative", "latent_image")
    assert {name: ours[name] for name in same} == {name: base[name] for name in same}
    for name in ("negative", "latent_image"):
        assert comparison.graph[base[name][0]] == filled[ours[name][0]]
