"""The three nodes in one graph on a real ComfyUI server, over HTTP and websocket: drawn, cached, stopped, refused."""

from __future__ import annotations

import io
import json
import uuid
from pathlib import Path

import pytest
import torch
from e2e_world import (
    APPLY,
    ENCODE,
    FUSION,
    PICKS,
    RETRIEVE,
    SAMPLER,
    SAVE,
    SHOWN_PROMPT,
    StandIn,
    drawn,
    finished,
    forget,
    furthest,
    main_graph,
    node,
    picks,
    ran,
    sampled_again,
    shown,
    stacked,
    without_pack,
)
from PIL import Image
from safetensors.torch import save_file

from scripts._lib.client import ExecutionFailed, PromptRejected
from scripts._lib.png import same_picture
from scripts._lib.server import PACK_NAME, REPO, ComfyServer

pytestmark = pytest.mark.slow

LOADERS = {"1", "2", "3"}
NO_LORA = "an invoice for office furniture"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = StandIn(tmp_path_factory.mktemp("models"))
    for number in range(80):
        world.lora(f"../many/{number:03d}.safetensors", 200 + number, f"thing number {number}", rank=4)
    (world.loras / "empty").mkdir()
    return world


@pytest.fixture(scope="module")
def server(world, tmp_path_factory):
    models = world.models()
    models["loras"] = [world.loras, world.root / "many"]
    packs = {PACK_NAME: REPO, "e2e_pack": Path(__file__).parent / "e2e_pack"}
    with ComfyServer(tmp_path_factory.mktemp("e2e"), models=models, packs=packs) as server:
        yield server


def test_the_main_graph_makes_a_picture_that_carries_its_graph(server):
    graph = shown(main_graph())
    workflow = {"nodes": [], "links": [], "version": 0.4}
    result = server.run(graph, extra_data={"extra_pnginfo": {"workflow": workflow}})
    picture = Image.open(io.BytesIO(drawn(server, result)))
    assert picture.size == (128, 128)
    carried = json.loads(picture.info["prompt"])
    assert {name: body["inputs"] for name, body in carried.items()} == {k: v["inputs"] for k, v in graph.items()}
    assert json.loads(picture.info["workflow"]) == workflow
    names = {pick["name"] for pick in json.loads(result.text(PICKS))["picks"]}
    assert {"otter.safetensors", "pixel_art_style.safetensors"} <= names
    assert "20 LoRA files" in result.text(ENCODE)
    assert all(name in result.text(RETRIEVE) and name in result.text(FUSION) for name in names)
    progress = [data["value"] for kind, data in result.events if kind == "progress" and data["node"] == ENCODE]
    assert progress == sorted(progress) and progress[-1] > 0


def test_a_batch_of_prompts_loads_and_encodes_once(server):
    client = uuid.uuid4().hex
    prompts = ("a castle", "a volcano, watercolour style", "a rocket, blueprint style", "a sunflower")
    queued = [server.client.queue(shown(main_graph(prompt, library="batch")), client) for prompt in prompts]
    records = [finished(server, prompt_id) for prompt_id in queued]
    for record in records:
        assert record["status"]["status_str"] == "success", record["status"]
    for record in records[1:]:
        cached = next(data["nodes"] for kind, data in record["status"]["messages"] if kind == "execution_cached")
        assert LOADERS | {ENCODE} <= set(cached)
        assert not {RETRIEVE, APPLY, SAMPLER} & set(cached)
    for prompt, record in zip(prompts, records, strict=True):
        selection = json.loads(record["outputs"][PICKS]["text"][0])
        subject = prompt.split(",")[0].split()[-1]
        assert selection["prompt"] == prompt
        assert f"{subject}.safetensors" in {pick["name"] for pick in selection["picks"]}


def test_running_the_same_graph_again_costs_nothing(server):
    graph = shown(main_graph("a tractor", library="again"))
    first = server.run(graph)
    again = server.run(graph)
    assert again.cached == set(graph) and ran(again) == set()
    assert again.text(RETRIEVE) == first.text(RETRIEVE) and again.images(SAVE) == first.images(SAVE)


def test_a_new_lora_is_read_and_nothing_else_is(server, world):
    graph = shown(main_graph("a lighthouse", library="grows"))
    server.run(graph)
    added = world.lora("lighthouse.safetensors", 50, "lighthouse")
    try:
        result = server.run(graph)
        assert {ENCODE, RETRIEVE} <= ran(result) and LOADERS <= result.cached
        assert "21 LoRA files: 1 new, 20 unchanged." in result.text(ENCODE)
        assert json.loads(result.text(PICKS))["picks"][0]["name"] == "lighthouse.safetensors"
        assert ran(server.run(graph)) == set()
    finally:
        added.unlink()
    gone = server.run(graph)
    assert "1 missing now, kept in the index" in gone.text(ENCODE)
    assert "lighthouse.safetensors" not in {pick["name"] for pick in json.loads(gone.text(PICKS))["picks"]}


def test_sampling_stops_when_asked_and_the_next_run_is_as_if_nothing_had_happened(server):
    graph = main_graph(seed=11, library="stop")
    graph[SAMPLER]["inputs"]["steps"] = 12
    server.run({name: body for name, body in graph.items() if name in LOADERS | {ENCODE}})

    def stop(kind, data):
        if kind == "progress" and data["node"] == SAMPLER and data["value"] == 1:
            server.client.interrupt()

    stopped = server.run(graph, stop, check=False)
    assert stopped.status == "interrupted" and stopped.error["node_id"] == SAMPLER
    steps = [data["value"] for kind, data in stopped.events if kind == "progress" and data["node"] == SAMPLER]
    assert max(steps) < 12
    after = server.run(graph)
    assert SAMPLER in ran(after)
    forget(server)
    undisturbed = server.run(graph)
    assert LOADERS | {SAMPLER} <= ran(undisturbed)
    assert same_picture(drawn(server, after), drawn(server, undisturbed))


def test_encoding_stops_when_asked_and_goes_on_at_the_next_run(server):
    def many(library):
        graph = shown(main_graph("thing number 17", library=library, pinned="017"))
        graph[ENCODE]["inputs"]["folder"] = "many"
        return graph

    def stop(kind, data):
        if kind == "progress" and data["node"] == ENCODE and data["value"] > 0:
            server.client.interrupt()

    stopped = server.run(many("stopped"), stop, check=False)
    assert stopped.status == "interrupted" and stopped.error["node_id"] == ENCODE
    after, undisturbed = server.run(many("stopped")), server.run(many("undisturbed"))
    assert "80 LoRA files" in after.text(ENCODE)
    one, other = (json.loads(result.text(PICKS)) for result in (after, undisturbed))
    assert [pick["name"] for pick in one["picks"]][:1] == ["017.safetensors"] and one["misses"]
    assert {**one, "index": None} == {**other, "index": None}
    assert same_picture(drawn(server, after), drawn(server, undisturbed))


@pytest.mark.parametrize("case", ["gone", "another base", "no layer in common", "a page saved as a LoRA", "empty"])
def test_a_lora_that_cannot_be_applied_stops_the_run_and_is_named(server, world, case):
    name = case.replace(" ", "_") + ".safetensors"
    path, said = world.loras / name, [name, "What to do:"]
    if case == "another base":
        key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
        save_file({f"{key}.lora_down.weight": torch.ones(4, 320), f"{key}.lora_up.weight": torch.ones(320, 4)}, path)
        said += ["sd15", "emoji"]
    elif case == "no layer in common":
        key = "diffusion_model.joint_blocks.9.x_block.mlp.fc1"
        save_file({f"{key}.lora_A.weight": torch.ones(4, 256), f"{key}.lora_B.weight": torch.ones(1024, 4)}, path)
    elif case == "a page saved as a LoRA":
        path.write_text("<!DOCTYPE html><title>Sign in</title>" + " " * 5000)
    elif case == "empty":
        path.write_bytes(b"")
    try:
        with pytest.raises(ExecutionFailed) as failed:
            server.run(stacked(f"otter.safetensors|1|1\n{name}|1|1"))
    finally:
        path.unlink(missing_ok=True)
    error = failed.value.result.error
    assert error["node_type"] == "AutoLoRAGatedApply"
    for part in said:
        assert part in error["exception_message"], part


def test_a_damaged_gate_stops_the_run_and_is_named(server):
    folder = server.base / "models" / "autolora"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "aaa_damaged.safetensors"
    values = {"joint_blocks.0.x_block.mlp.fc1.weight_out": torch.full((1024,), float("nan"))}
    save_file(values, path, {"format": "autolora-gate/1", "family": "emoji"})
    try:
        with pytest.raises(ExecutionFailed) as failed:
            server.run(stacked("otter.safetensors|1|1\ncastle.safetensors|1|1", mode="gate", gate=path.name))
    finally:
        path.unlink()
    message = failed.value.result.error["exception_message"]
    assert str(path) in message and "What to do:" in message
    with pytest.raises(PromptRejected, match=path.name):
        server.run(stacked("otter.safetensors|1|1", gate=path.name))


def test_an_empty_folder_says_so_and_draws_the_base_picture(server):
    graph = shown(main_graph("a castle", library="empty"))
    graph[ENCODE]["inputs"]["folder"] = "loras/empty"
    result = server.run(graph)
    assert "No LoRA file in this folder" in result.text(ENCODE)
    assert picks(result) == [] and json.loads(result.text(PICKS))["none_reason"]
    assert same_picture(drawn(server, result), drawn(server, server.run(without_pack(graph))))


def test_broken_files_in_the_folder_are_reported_and_the_others_are_used(server, world):
    broken = world.loras / "broken.safetensors"
    broken.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    try:
        result = server.run(shown(main_graph("a castle", library="broken")))
    finally:
        broken.unlink()
    line = next(line for line in result.text(ENCODE).splitlines() if "broken.safetensors" in line)
    assert "LFS" in line
    assert "castle.safetensors" in {pick["name"] for pick in picks(result)}


@pytest.mark.parametrize(
    ("target", "entry", "source"),
    [(RETRIEVE, "index", [RETRIEVE, 3]), (APPLY, "selection", [RETRIEVE, 1]), (APPLY, "lora_stack", [RETRIEVE, 0])],
)
def test_a_wire_of_the_wrong_kind_is_refused_before_anything_runs(server, target, entry, source):
    graph = main_graph()
    graph[target]["inputs"][entry] = [ENCODE, 1] if target == RETRIEVE else source
    with pytest.raises(PromptRejected) as refused:
        server.run(graph)
    (error,) = refused.value.node_errors[target]["errors"]
    assert error["type"] == "return_type_mismatch" and error["extra_info"]["input_name"] == entry


def test_strength_nought_and_nothing_that_fits_leave_the_base_picture_as_it_is(server):
    for graph in (shown(main_graph("a castle", seed=31)), shown(main_graph(NO_LORA, seed=31, threshold=0.95))):
        nought = graph[RETRIEVE]["inputs"]["prompt"] != NO_LORA
        if nought:
            assert not same_picture(*(drawn(server, server.run(g)) for g in (graph, without_pack(graph))))
            graph[APPLY]["inputs"]["strength"] = 0.0
        result = server.run(graph)
        assert (picks(result) == []) == (not nought)
        base = without_pack(graph)
        base["7"]["inputs"]["text"] = result.text(SHOWN_PROMPT)
        assert same_picture(drawn(server, result), drawn(server, server.run(sampled_again(base))))


def test_one_lora_is_what_the_stock_loader_makes_of_it(server):
    stock = without_pack(main_graph())
    stock["lora"] = node("LoraLoaderModelOnly", model=["1", 0], lora_name="castle.safetensors", strength_model=0.8)
    stock[SAMPLER]["inputs"]["model"] = ["lora", 0]
    base, theirs = (drawn(server, server.run(graph)) for graph in (without_pack(main_graph()), stock))
    assert furthest(base, theirs) > 20
    ours = drawn(server, server.run(stacked("castle.safetensors|0.8|0.8", mode="sum")))
    assert furthest(ours, theirs) <= 2


def test_two_loras_added_up_are_what_two_stock_loaders_make(server):
    stock = without_pack(main_graph())
    model = ["1", 0]
    for name in ("castle", "otter"):
        stock[name] = node("LoraLoaderModelOnly", model=model, lora_name=f"{name}.safetensors", strength_model=0.7)
        model = [name, 0]
    stock[SAMPLER]["inputs"]["model"] = model
    theirs = drawn(server, server.run(stock))
    ours = drawn(server, server.run(stacked("castle.safetensors|0.7|0\notter.safetensors|0.7|0", mode="sum")))
    assert furthest(ours, theirs) <= 2


def test_without_the_nodes_the_base_model_is_as_it_was(server):
    base = without_pack(main_graph(seed=41))
    before = drawn(server, server.run(base))
    fused = drawn(server, server.run(stacked("castle.safetensors|1|1\notter.safetensors|1|1", mode="sum")))
    again = server.run(sampled_again(base))
    assert {"1"} <= again.cached and SAMPLER in ran(again)
    assert same_picture(before, drawn(server, again))
    assert not same_picture(before, fused)
