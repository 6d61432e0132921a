"""Releases a trained model: copies it to ``checkpoints/released`` and writes its card.

    python scripts/release.py runs/omniglot/protonet/seed0 omniglot-5w1s-protonet \
        --recipe recipes/omniglot-5w1s/protonet.yaml --evaluation runs/omniglot/evaluation.json

All figures on the card are read from the run's folder and from the evaluation file of ``compare``
or ``evaluate``. The first two lines of the recipe, which are comments, give the card's title and
source. Data set, split, backbone, protocol, limits and licence follow from the settings. The
released checkpoint does not include the optimizer state and the data folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from fewshot_blo.experiments.history import lineage
from fewshot_blo.experiments.settings import Config, config_from
from fewshot_blo.experiments.table import Row
from fewshot_blo.models.card import facts, metadata
from fewshot_blo.training import checkpoint as checkpoints
from fewshot_blo.training.checkpoint import Checkpoint
from fewshot_blo.training.run import BEST, PROVENANCE

RELEASED = Path(__file__).resolve().parents[1] / "checkpoints" / "released"


def main() -> None:
    """Writes the checkpoint, its settings and its card."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--evaluation", type=Path, required=True)
    parser.add_argument(
        "--folder", type=Path, default=RELEASED, help="folder of all released models"
    )
    options = parser.parse_args()
    path = options.run / BEST
    loaded = checkpoints.load(path)
    config = config_from(loaded.config)
    first = config.start_from
    checkpoint = _without_traces(loaded, config)
    report = json.loads(options.evaluation.read_text(encoding="utf-8"))
    folder = options.folder / options.name
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints.save(checkpoint, folder / BEST)
    settings = yaml.safe_dump(dict(checkpoint.config), sort_keys=False)
    (folder / "config.yaml").write_text(settings, encoding="utf-8")
    figures = report["checkpoints"][str(path)]
    runs = [Path(first).parent, options.run] if first else [options.run]
    card = _card(options.name, options.recipe, runs, checkpoint, figures)
    (folder / "card.md").write_text(card, encoding="utf-8")
    print(folder)


def _without_traces(checkpoint: Checkpoint, config: Config) -> Checkpoint:
    """The checkpoint without optimizer state, data folder and the state of single tasks."""
    return replace(
        checkpoint,
        config=replace(config, data=config.data.changed(root=""), start_from="").plain(),
        optimizer={"state": {}, "param_groups": []},
        strategy={
            name: part if isinstance(part, Tensor) else {}
            for name, part in checkpoint.strategy.items()
        },
        origin=_without_folders(lineage(checkpoint)),
        random_state={"cpu": checkpoint.random_state["cpu"], "cuda": []},
    )


def _without_folders(history: Mapping[str, Any]) -> dict[str, Any]:
    """What a model and its starts were trained on, without the folders of the machine."""
    paths = {"root", "csv", "table"}
    trained = [
        {**one, "data": {**one["data"], **dict.fromkeys(paths & one["data"].keys(), "")}}
        for one in history["trained"]
    ]
    return {"trained": trained, "unknown": [Path(start).name for start in history["unknown"]]}


def _card(
    name: str,
    recipe: Path,
    runs: Sequence[Path],
    checkpoint: Checkpoint,
    figures: Sequence[Mapping[str, Any]],
) -> str:
    """The text of the card.

    Args:
        name: name of the released model.
        recipe: recipe of its training.
        runs: folders of the runs; each run started from the result of the one before.
        checkpoint: the released checkpoint.
        figures: its evaluation in each norm mode.
    """
    comments = recipe.read_text(encoding="utf-8").splitlines()[:2]
    title, source = (line.removeprefix("# ") for line in comments)
    best, train = checkpoint.best, checkpoint.config["train"]
    seed, tasks = checkpoint.config["seed"], figures[0]["tasks"]
    accuracies = "\n".join(
        f"| {f['norm']} | {100 * f['mean']:.2f} ± {100 * f['interval_95']:.2f} "
        f"| {100 * f['calibration_error']:.1f} |"
        for f in figures
    )
    chosen = "a single model"
    if train["steps"]:
        chosen = (
            "a single model: the checkpoint with the highest accuracy on\nvalidation classes "
            f"(outer step {best['step']} of {train['steps']}: {100 * best['value']:.2f} %)"
        )
    made = "\n".join(_training(run) for run in runs)
    config = config_from(checkpoint.config)
    return f"""{metadata(name, config, figures)}
# {name}

{title} Source: {source}

{facts(config)}

| norm mode | accuracy on test classes, % | calibration error, % |
|---|---|---|
{accuracies}

Mean over {tasks} tasks ({figures[0]["protocol"]}) with
95 % confidence interval, 1.96 s / sqrt(n), {chosen},
one training seed ({seed}).

- trained by `fewshot-blo compare {recipe.as_posix()} --root DIR --seeds {seed}`
{made}
- settings: `config.yaml`; the optimizer state is not included

To reproduce the figures:

    fewshot-blo evaluate {name} --tasks {tasks} --root DIR

To use it:

    from fewshot_blo import load_pretrained

    model = load_pretrained("{name}")
    probabilities = model.predict(support, labels, queries)
"""


def _training(run: Path) -> str:
    """Commit, machine and, unless it has no outer steps, cost of a run, as an item of a list."""
    lines = (run / PROVENANCE).read_text(encoding="utf-8").splitlines()
    attempts = [json.loads(line) for line in lines]
    last = attempts[-1]
    commits = ", ".join(dict.fromkeys(f"`{attempt['commit'][:12]}`" for attempt in attempts))
    cost = Row(run.name, [run / BEST], []).cost()
    text = (
        f"- {run.parent.name}: commit {commits}, torch {last['torch']}, Python {last['python']}, "
        f"{last['device']},\n  {last['cores']} cores, {last['threads']} thread(s)"
    )
    if not cost:
        return f"{text}; not trained further"
    return (
        f"{text}; {cost['steps']:.0f} steps, {cost['seconds'] / 60:.0f} minutes\n  with "
        f"validation, {cost['tasks_per_second']:.1f} tasks/s, peak resident memory "
        f"{cost['peak_gib']:.2f} GiB"
    )


if __name__ == "__main__":
    main()
