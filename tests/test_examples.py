"""Notebooks of examples have the code of their sources, whole outputs and titled pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from script_modules import script

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "examples.py"


SOURCES = script("examples").sources()


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_has_the_code_of_its_source_and_outputs_without_faults(source: Path) -> None:
    kept = json.loads(source.with_suffix(".ipynb").read_text(encoding="utf-8"))
    made = script("examples").notebook(source.read_text(encoding="utf-8"))
    *cells, last = kept["cells"]
    pairs = [(cell["cell_type"], cell["source"]) for cell in cells]
    assert pairs == [(cell["cell_type"], cell["source"]) for cell in made["cells"]]
    assert list(script("examples").faults(kept)) == []
    assert last["source"].startswith("*Run by `scripts/examples.py` at commit `")


def test_there_are_at_least_eight_and_the_page_lists_each_once() -> None:
    page = (SCRIPT.parents[1] / "docs" / "examples" / "index.md").read_text(encoding="utf-8")
    assert len(SOURCES) >= 8
    for source in SOURCES:
        assert page.count(f"({source.stem}.ipynb): ") == 1, source.stem
        assert source.read_text(encoding="utf-8").startswith("# %% [markdown]\n# # "), source.stem


def output(**parts: Any) -> list[str]:
    cell = {"cell_type": "code", "outputs": [parts]}
    return list(script("examples").faults({"cells": [cell]}))


def test_faults_of_outputs_are_found() -> None:
    text = {"output_type": "stream", "name": "stdout"}
    assert output(**text, text="accuracy 0.9 of 1/2 and/or 3 at https://example.org/a/b") == []
    assert "names /home/me/" in output(**text, text="saved in /home/me/run")[0]
    assert "stderr" in output(output_type="stream", name="stderr", text="UserWarning")[0]
    assert "raised ValueError" in output(output_type="error", ename="ValueError")[0]
    picture = {"output_type": "display_data", "data": {"image/png": ""}}
    assert output(**picture, metadata={"image/png": {"alt": "Loss"}}) == []
    assert "without a title" in output(**picture, metadata={"image/png": {"alt": ""}})[0]
    lacking = {"alt": "Loss", "below_standard": ["a colour bar has no label"]}
    assert "no label" in output(**picture, metadata={"image/png": lacking})[0]
    assert output(**text, text='{"picture": "/training/1/32.jpg"}') == []
    assert list(script("examples").faults({"cells": []})) == ["no cell has an output"]


def test_a_source_without_cells_or_with_code_in_a_text_is_refused() -> None:
    with pytest.raises(ValueError, match="is in no cell: add '# %%'"):
        script("examples").notebook("import os\n")
    with pytest.raises(ValueError, match="begin it with '# '"):
        script("examples").notebook("# %% [markdown]\n# text\nx = 1\n")
