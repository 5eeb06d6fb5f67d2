"""Proves that the page on retrieval says what its results say."""

from __future__ import annotations

import json

from benchmarks.results_file import RESULTS
from benchmarks.retrieval_page import PAGE, page


def test_the_page_is_made_from_the_results():
    results = json.loads((RESULTS / "retrieval.json").read_text(encoding="utf-8"))
    assert PAGE.read_text(encoding="utf-8") == page(results)
