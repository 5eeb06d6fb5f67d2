"""Files of prompts: CSV as spreadsheets of several countries write it, JSON lines, lists; and where columns go."""

from __future__ import annotations

import copy
import json

import pytest

from scripts._lib.batch.jobs import plan
from scripts._lib.batch.rows import KNOWN, Row, RowsError, check_columns, read_rows
from scripts._lib.batch.values import ValueWrong, like
from scripts._lib.batch.workflow import Workflow, WorkflowWrong, job_id, load
from scripts._lib.graphs import WORKFLOW
from scripts._lib.paths import REPO

PLAIN = [{"prompt": "a castle, at night", "seed": "7"}, {"prompt": "ein Fuchs, blau"}]


def rows_of(tmp_path, name, data, **options):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return read_rows(path, **options)


def values(rows):
    return [row.values for row in rows]


@pytest.mark.parametrize("data", [
    b'prompt,seed\n"a castle, at night",7\n"ein Fuchs, blau",\n',
    b'\xef\xbb\xbfprompt;seed\r\na castle, at night;7\r\nein Fuchs, blau;\r\n',
    b'sep=;\r\nPrompt;Seed\r\na castle, at night;7\r\nein Fuchs, blau;\r\n',
    b'prompt,seed,,\r\n"a castle, at night",7,,\r\n,,,\r\n\r\n"ein Fuchs, blau",,,\r\n',
    b'prompt\tseed\n"a castle, at night"\t 7 \nein Fuchs, blau\n',
    "prompt\tseed\r\na castle, at night\t7\r\nein Fuchs, blau\r\n".encode("utf-16"),
    b'\n\nprompt,seed\n"a castle, at night",7\n"ein Fuchs, blau"',
], ids=["plain", "Excel", "sep line", "empty cells and lines", "tabs", "UTF-16", "empty lines first"])  # fmt: skip
def test_one_table_in_many_spellings(tmp_path, data):
    assert values(rows_of(tmp_path, "p.csv", data)) == PLAIN


def test_one_column_needs_no_quotes(tmp_path):
    rows = rows_of(tmp_path, "p.csv", 'prompt\na castle, at night; blue\n"a ""quoted"" fox"\n')
    assert values(rows) == [{"prompt": "a castle, at night; blue"}, {"prompt": 'a "quoted" fox'}]


def test_lines_are_counted_as_an_editor_does(tmp_path):
    rows = rows_of(tmp_path, "p.csv", 'prompt,seed\n"two\nlines",1\n\nlast,2\n')
    assert [(row.number, row.line) for row in rows] == [(1, 2), (2, 5)]


@pytest.mark.parametrize(("data", "said"), [
    ("prompt,seed\na castle, at night,7\n", "line 2: 3 cells under 2 columns.*in quotes"),
    ("a castle\na fox\n", "line 1: the first line names the columns.*'a castle'.*txt"),
    ("prompt,prompt\na,b\n", "line 1: the column 'prompt' is there twice"),
    ("prompt,,seed\na,b,c\n", "line 1: a column has no name"),
    ("prompt,seed\n,\n", "there is no row"),
    ("", "there is no row"),
    (b"prompt,seed\na caf\xe9,1\n", "line 2: this is not utf-8.*CSV UTF-8.*cp1252"),
    (b"PK\x03\x04\x00\x00", "spreadsheet file"),
])  # fmt: skip
def test_tables_that_cannot_be_read_are_named_by_line(tmp_path, data, said):
    with pytest.raises(RowsError, match=said):
        rows_of(tmp_path, "p.csv", data)


def test_another_encoding_is_said(tmp_path):
    assert values(rows_of(tmp_path, "p.csv", b"prompt\na caf\xe9\n", encoding="cp1252")) == [{"prompt": "a café"}]


def test_json_lines_keep_their_types(tmp_path):
    rows = rows_of(tmp_path, "p.jsonl", '{"prompt": "a", "Sample.steps": 4, "#note": [1]}\n\n"b"\n{"prompt": null}\n')
    assert values(rows) == [{"prompt": "a", "Sample.steps": 4, "#note": [1]}, {"prompt": "b"}]
    assert rows[0].asked == {"prompt": "a", "Sample.steps": 4} and rows[1].line == 3


@pytest.mark.parametrize(("data", "said"), [
    ('"a"\n{"prompt": }\n', "line 2: this is not JSON"),
    ('"a"\n[1]\n', "line 2: a line is an object or a string, not list"),
    ('{"prompt": ["a"]}\n', "line 1: 'prompt' is a list"),
])  # fmt: skip
def test_json_lines_that_are_none_are_named(tmp_path, data, said):
    with pytest.raises(RowsError, match=said):
        rows_of(tmp_path, "p.jsonl", data)


def test_a_list_of_prompts(tmp_path):
    assert values(rows_of(tmp_path, "p.txt", "a fox, blue\n\n  a castle\n")) == [
        {"prompt": "a fox, blue"}, {"prompt": "a castle"},
    ]  # fmt: skip
    with pytest.raises(RowsError, match="not as .xlsx"):
        rows_of(tmp_path, "p.xlsx", "")


def test_a_misspelt_column_is_an_error_with_the_nearest(tmp_path):
    rows = rows_of(tmp_path, "p.csv", "prompt,sed,#who\na,1,me\n")
    with pytest.raises(RowsError, match="line 2: there is no column 'sed'. Is seed meant?"):
        check_columns(rows, KNOWN, tmp_path)
    check_columns(rows, [*KNOWN, "sed"], tmp_path)


@pytest.mark.parametrize(("cell", "old", "new"), [
    ("7", 1, 7), ("7.0", 1, 7), (7, 1, 7), ("-1", 1, -1), ("0,8", 1.0, 0.8), ("0.8", 1.0, 0.8), (".5", 1.0, 0.5),
    ("1e-3", 1.0, 0.001), ("2", 1.0, 2.0),
    ("yes", False, True), ("FALSE", True, False), (5, "x", "5"), ("a", None, "a"),
])  # fmt: skip
def test_cells_become_what_the_input_holds(cell, old, new):
    assert like(cell, old) == new and type(like(cell, old)) is type(new)


@pytest.mark.parametrize(("cell", "old", "said"), [
    ("7.5", 1, "not a whole"), ("1,23457E+14", 1, "spreadsheet has rounded"), ("many", 1, "not a whole"),
    (True, 1, "not a whole"), ("", 1.0, "not a number"), ("nan", 1.0, "not a number"), ("perhaps", True, "neither"),
])  # fmt: skip
def test_cells_that_do_not_fit(cell, old, said):
    with pytest.raises(ValueWrong, match=said):
        like(cell, old)


@pytest.fixture
def graph():
    return load(WORKFLOW)


def row(**values):
    return Row(1, 2, values)


def test_the_shipped_workflow_is_filled_by_what_its_nodes_are(graph):
    before = copy.deepcopy(graph)
    columns = {"prompt": "a fox", "negative": "dull", "width": "64", "height": "96", "strength": "0,5", "top_k": "1",
               "Sample.steps": "3", "6.mode": "sum", "KSampler.cfg": "2"}  # fmt: skip
    filled = Workflow(graph, columns).fill(row(**columns), 99)
    inputs = {node: body["inputs"] for node, body in filled.items()}
    assert inputs["5"]["prompt"] == "a fox" and inputs["8"]["text"] == "dull" and inputs["7"]["text"] == ["5", 2]
    assert (inputs["9"]["width"], inputs["9"]["height"]) == (64, 96)
    assert (inputs["5"]["strength"], inputs["5"]["top_k"]) == (0.5, 1)
    assert (inputs["10"]["seed"], inputs["10"]["steps"], inputs["10"]["cfg"]) == (99, 3, 2.0)
    assert inputs["6"]["mode"] == "sum" and graph == before


def test_every_shipped_workflow_with_a_sampler_says_where_prompt_and_seed_go():
    for path in sorted((REPO / "workflows" / "api").glob("*.json")):
        workflow = Workflow(load(path), name=path.name)
        if any(body["class_type"] == "KSampler" for body in workflow.graph.values()):
            assert workflow.places("prompt") and workflow.places("seed"), path.name


def test_placeholders_go_before_everything_else_and_keep_types(graph):
    graph["7"]["inputs"]["text"] = "{prompt}, in {place}, {red|blue}"
    graph["10"]["inputs"]["seed"] = "{seed}"
    graph["12"]["inputs"]["filename_prefix"] = "{prompt} {seed}"
    columns = {"prompt": "a fox", "place": "Rome"}
    workflow = Workflow(graph, columns)
    filled = workflow.fill(row(**columns), 5)
    assert filled["7"]["inputs"]["text"] == "a fox, in Rome, {red|blue}" and filled["10"]["inputs"]["seed"] == 5
    assert filled["12"]["inputs"]["filename_prefix"] == "a fox 5"
    assert filled["5"]["inputs"]["prompt"] == graph["5"]["inputs"]["prompt"] and workflow.holes >= {"place"}


def test_a_prompt_or_seed_that_comes_from_a_primitive_node_is_set_there(graph):
    graph["text"] = {"class_type": "PrimitiveStringMultiline", "inputs": {"value": "x"}}
    graph["number"] = {"class_type": "PrimitiveInt", "inputs": {"value": 3}}
    graph["5"]["inputs"]["prompt"], graph["10"]["inputs"]["seed"] = ["text", 0], ["number", 0]
    filled = Workflow(graph).fill(row(prompt="a fox"), 5)
    assert filled["text"]["inputs"]["value"] == "a fox" and filled["number"]["inputs"]["value"] == 5


def stock(**more):
    """No node of the pack: a checkpoint, two texts, a sampler of the newer kind."""
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "p"}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "n"}},
        "4": {"class_type": "CFGGuider", "inputs": {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0]}},
        "5": {"class_type": "RandomNoise", "inputs": {"noise_seed": 1}},
        "6": {"class_type": "SamplerCustomAdvanced", "inputs": {"noise": ["5", 0], "guider": ["4", 0]}},
        **more,
    }


def test_a_workflow_without_the_pack_is_filled_along_its_wires():
    filled = Workflow(stock()).fill(row(prompt="a fox", negative="dull"), 5)
    assert [filled[n]["inputs"]["text"] for n in "23"] == ["a fox", "dull"] and filled["5"]["inputs"]["noise_seed"] == 5
    through = stock()
    through["net"] = {"class_type": "ControlNetApplyAdvanced", "inputs": {"positive": ["2", 0], "negative": ["3", 0]}}
    through["4"]["inputs"] |= {"positive": ["net", 0], "negative": ["net", 1]}
    filled = Workflow(through).fill(row(prompt="a fox", negative="dull"), 5)
    assert [filled[n]["inputs"]["text"] for n in "23"] == ["a fox", "dull"]


def test_a_negative_made_of_the_prompt_itself_has_no_place():
    graph = stock(zero={"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["2", 0]}})
    graph["4"]["inputs"]["negative"] = ["zero", 0]
    with pytest.raises(WorkflowWrong, match="where does 'negative' go.*no place"):
        Workflow(graph).fill(row(prompt="a fox", negative="dull"), 5)


@pytest.mark.parametrize(("change", "column", "said"), [
    (lambda g: g.update(b=copy.deepcopy(g["5"])), "prompt", "several places for it: 5.prompt, b.prompt.*{prompt}"),
    (lambda g: g.update(b={"class_type": "KSampler", "inputs": {"seed": 8}}), "seed", "different seeds"),
    (lambda g: g.pop("9"), "width", "no place"),
    (lambda g: None, "Nowhere.steps", "no nodes are called 'Nowhere'.*Titles:.*Sample"),
    (lambda g: None, "Sample.stepz", "Sample has no input 'stepz'; it has.*steps"),
    (lambda g: None, "Sample.model", "Sample.model is connected to Gated Multi-LoRA Apply"),
    (lambda g: None, "CLIPTextEncode.text", "2 nodes are called"),
])  # fmt: skip
def test_where_a_column_goes_must_be_clear(graph, change, column, said):
    change(graph)
    with pytest.raises(WorkflowWrong, match=said):
        Workflow(graph, name="my.json").places(column)


def test_two_samplers_with_one_seed_get_one_seed(graph):
    graph["b"] = copy.deepcopy(graph["10"])
    filled = Workflow(graph).fill(row(prompt="x"), 5)
    assert filled["10"]["inputs"]["seed"] == filled["b"]["inputs"]["seed"] == 5


@pytest.mark.parametrize(("text", "said"), [
    ("{", "not JSON"), ("[]", "no workflow in API"), ('{"nodes": [], "links": []}', r"Export \(API\)"),
])  # fmt: skip
def test_files_that_are_no_workflow(tmp_path, text, said):
    (tmp_path / "w.json").write_text(text)
    with pytest.raises(WorkflowWrong, match=said):
        load(tmp_path / "w.json")


def test_a_workflow_as_it_was_posted_and_one_with_a_node_called_prompt(tmp_path, graph):
    path = tmp_path / "w.json"
    path.write_text(json.dumps({"prompt": graph, "client_id": "x"}))
    assert load(path) == graph
    path.write_text(json.dumps({**graph, "prompt": graph["8"]}))
    assert load(path)["prompt"] == graph["8"] and len(load(path)) == len(graph) + 1


def test_a_cell_that_does_not_fit_is_named_by_line_and_column(graph):
    with pytest.raises(WorkflowWrong, match="line 2: Sample.steps: 'many' is not a whole number"):
        Workflow(graph).fill(row(prompt="x", **{"Sample.steps": "many"}), 1)


def table(*rows):
    return [Row(number, number + 1, values) for number, values in enumerate(rows, 1)]


def test_ids_and_seeds_stay_when_rows_move_and_change_when_anything_in_the_picture_does(graph):
    workflow = Workflow(graph)
    first, _ = plan(table({"prompt": "a"}, {"prompt": "b", "count": "2"}), workflow)
    moved, _ = plan(table({"prompt": "new"}, {"prompt": "b", "count": 3, "#who": "me"}, {"prompt": "a"}), workflow)
    assert {job.id for job in first} < {job.id for job in moved} and len(moved) == 5
    assert len({job.seed for job in moved}) == 5 and all(0 <= job.seed < 2**32 for job in moved)
    assert not {job.id for job in plan(table({"prompt": "a"}), workflow, base_seed=1)[0]} & {job.id for job in first}
    graph["10"]["inputs"]["steps"] = 3
    assert not {job.id for job in plan(table({"prompt": "a"}), Workflow(graph))[0]} & {job.id for job in first}
    titled = copy.deepcopy(graph)
    titled["10"]["_meta"]["title"] = "Other"
    assert job_id(titled) == job_id(graph)


def test_explicit_seeds_count_up_and_what_is_asked_twice_is_made_once(graph):
    rows = table(
        {"prompt": "a", "seed": "7", "count": "2"}, {"prompt": "a", "seed": "8"}, {"prompt": "a"}, {"prompt": "a"}
    )
    jobs, notes = plan(rows, Workflow(graph))
    assert [job.seed for job in jobs[:2]] == [7, 8] and len({job.id for job in jobs}) == len(jobs) == 4
    assert notes == ["line 3 asks for what line 2 asks for: it is made once"]
    assert [job.stem.rpartition("-")[0] for job in jobs] == ["00001", "00001-1", "00003", "00004"]
    assert plan(table({"prompt": "a", "count": 0}), Workflow(graph))[0] == []
    with pytest.raises(RowsError, match="line 2: count is a number from 0 to"):
        plan(table({"prompt": "a", "count": "-1"}), Workflow(graph))


def test_a_seed_of_minus_one_is_none(graph):
    (one,), (other,) = (
        plan(table(values), Workflow(graph))[0] for values in ({"prompt": "a", "seed": "-1"}, {"prompt": "a"})
    )
    assert one.seed >= 0 and json.dumps(one.graph(Workflow(graph)))
    assert other.seed >= 0
