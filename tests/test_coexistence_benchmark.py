"""The count of coexistence cases: every outcome told apart, a base that changed after the case is a failure."""

from __future__ import annotations

import os

import pytest

from benchmarks.coexistence import figures_of, run

CASES = """
import pytest

@pytest.fixture
def base():
    yield
    assert False, "the base has changed"

def test_fine(): pass
def test_wrong(): assert 1 == 2, "not alike"
def test_absent(): pytest.skip("no such node")
def test_leaves_something(base): pass
def test_wrong_and_leaves_something(base): assert False
@pytest.mark.parametrize("mode", ["sum", "gate"])
def test_two_ways(mode): pass
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    file = tmp_path_factory.mktemp("cases") / "test_coexist_toys.py"
    file.write_text(CASES)
    return run([file], dict(os.environ), "9.9.9")


def test_every_case_is_told_once(rows):
    told = {row["case"]: row["outcome"] for row in rows}
    assert told == {
        "toys: fine": "passed",
        "toys: wrong": "failed",
        "toys: absent": "skipped",
        "toys: leaves something": "failed",
        "toys: wrong and leaves something": "failed",
        "toys: two ways[sum]": "passed",
        "toys: two ways[gate]": "passed",
    }
    assert len(rows) == len(told) and {row["comfyui"] for row in rows} == {"9.9.9"}
    why = {row["case"]: row.get("why", "") for row in rows}
    assert "no such node" in why["toys: absent"] and "the base has changed" in why["toys: leaves something"]


def test_skipped_cases_are_not_counted_as_cases(rows):
    assert figures_of(rows) == {"coexistence_cases": 6, "coexistence_failures": 3, "coexistence_skipped": 1}


def test_a_run_that_breaks_off_is_no_result(tmp_path):
    file = tmp_path / "test_coexist_broken.py"
    file.write_text("import a_module_that_is_not_there\n")
    with pytest.raises(RuntimeError, match="a_module_that_is_not_there"):
        run([file], dict(os.environ), "9.9.9")
