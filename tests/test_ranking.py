"""``benchmarks/ranking.py``: equal trials, then equal runs."""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_runs import make_folder

from fewshot_blo.experiments.components import merged
from fewshot_blo.experiments.recipes import read_settings
from fewshot_blo.experiments.settings import config_from
from fewshot_blo.experiments.tuning.space import make_space

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def ranking(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import ranking

    monkeypatch.setattr(ranking, "keep_freed_memory", lambda: True)
    return ranking


@pytest.mark.parametrize("file", sorted((BENCHMARKS / "rankings").glob("*.yaml")), ids=str)
def test_rows_differ_in_strategy_and_rates_alone(file: Path, ranking: Any) -> None:
    found, budgets = ranking.Ranking(**yaml.safe_load(file.read_text())), []
    for row in found.rows.values():
        settings = read_settings(Path(row["recipe"]))
        for over in (found.common, row.get("settings", {})):
            settings, _ = merged(settings, over)
        config = config_from(settings)
        assert len(make_space(config, row["search"]).axes) == 2
        assert config.train.steps >= found.steps >= found.trial_steps
        budgets.append(
            (config.data, config.episodes, config.encoder, config.problem, config.adaptation)
        )
    assert all(budget == budgets[0] for budget in budgets)


@pytest.mark.slow
def test_a_small_ranking(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ranking: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    steps = {"steps": 1, "rule": {"name": "SGD", "step_size": 0.1}}
    recipe = tmp_path / "unroll.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "data": {"name": "Folder", "size": 16},
                "episodes": {"way": 3, "query": 2, "validation_query": 2, "tasks": 2},
                "encoder": {"name": "Conv4"},
                "problem": {"name": "SharedEncoder"},
                "strategy": {"name": "Unroll", "inner": steps},
                "adaptation": steps,
                "train": {"steps": 9, "validation_tasks": 4},
            }
        )
    )
    row = {"recipe": str(recipe), "search": ["train.learning_rate=1e-4..1e-2:log"]}
    content = {
        "common": {"encoder": {"hidden": 4}},
        "trials": 2,
        "trial_steps": 1,
        "steps": 2,
        "rows": {"second": row, "first": {**row, "settings": {"strategy": {"first_order": True}}}},
    }
    file, output = tmp_path / "small.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    root = make_folder(tmp_path / "images")
    options = f"x {file} --root {root} --seeds 0 1 --tasks 4 --output {output}"
    monkeypatch.setattr(sys, "argv", options.split())
    assert ranking.main() == 0
    assert "minus second" in (output / "runs" / "table.md").read_text()
    with (output / "runs" / "table.csv").open(encoding="utf-8") as opened:
        second, first = csv.DictReader(opened)
    assert (second["steps"], second["seeds"]) == (first["steps"], first["seeds"]) == ("2", "2")
    tuned = config_from(yaml.safe_load((output / "tuned" / "first.yaml").read_text()))
    assert tuned.strategy.first_order  # type: ignore[attr-defined]
    assert tuned.plain()["encoder"]["hidden"] == 4
    assert len(list((output / "search" / "first" / "trials").iterdir())) == 2
    assert (output / "runs" / "validation.png").is_file()
    with monkeypatch.context() as patched:
        patched.setattr(ranking, "compare", _interrupted)
        assert ranking.main() == 130
    content["common"] = {"encoder": {"hidden": 8}}
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    capsys.readouterr()
    assert ranking.main() == 2
    assert re.search(r"^ranking.py: .*another recipe \(.*encoder", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trials": None}, "lacks trials: its keys are common, rows, steps, trial_steps, trials"),
        ({"trails": 2}, "has unknown trails: its keys are"),
        ({"rows": {"a": {"recipe": "glyphs/maml"}}}, "row a of .* lacks search: its keys are"),
        ({"common": {"encoder": {"hiden": 4}}}, "there is no setting .*hiden"),
    ],
)
def test_files_that_are_refused(
    change: dict[str, Any],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ranking: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With one line, before anything is trained."""
    known = (BENCHMARKS / "rankings" / "omniglot-head.yaml").read_text()
    content = {**yaml.safe_load(known), **change}
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump({n: v for n, v in content.items() if v is not None}))
    monkeypatch.setattr(sys, "argv", ["x", str(file), "--output", str(tmp_path / "out")])
    assert ranking.main() == 2
    printed = capsys.readouterr().err
    assert re.search(f"^ranking.py: .*{said}", printed)
    assert printed.count("\n") == 1


def _interrupted(*_arguments: object, **_options: object) -> None:
    raise KeyboardInterrupt
