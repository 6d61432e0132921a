"""Which runs of a comparison may be trained beside each other."""

from __future__ import annotations

from pathlib import Path

from small_runs import make_folder, write_recipe

from fewshot_blo.experiments.compared_runs import ComparedRuns, Run
from fewshot_blo.experiments.request import EvaluationRequest


def test_runs_that_start_from_one_run_are_in_one_group(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data")
    first = write_recipe(tmp_path / "first.yaml", folder)
    b = write_recipe(tmp_path / "b.yaml", folder, start_from="first.yaml")
    c = write_recipe(tmp_path / "c.yaml", folder, start_from="b.yaml")
    d = write_recipe(tmp_path / "d.yaml", folder)
    runs = ComparedRuns([c, d, first], EvaluationRequest(), tmp_path / "runs", seeds=(0, 5))
    assert runs.groups() == [
        [Run(c, 0), Run(first, 0)],
        [Run(c, 5), Run(first, 5)],
        [Run(d, 0)],
        [Run(d, 5)],
    ]
    alone = ComparedRuns([b, c], EvaluationRequest(), tmp_path / "runs")
    assert alone.groups() == [[Run(b, 0), Run(c, 0)]]
