"""Keeps the validations of a finished training run, and draws those of all runs on the same tasks.

    python scripts/training_curves.py runs/omniglot/maml++/seed0 omniglot-5w1s/maml++-long
    python scripts/training_curves.py                        # draws the pictures again

Writes ``benchmarks/results/training/omniglot-5w1s/maml++-long.csv`` and ``.../omniglot-5w1s.png``.
Examples are the support and query images of the outer steps. There is no axis of time: long runs
share the processor with others.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from fewshot_blo.errors import CheckpointError, ConfigurationError
from fewshot_blo.experiments.problem import metric_of
from fewshot_blo.experiments.progress import EXAMPLES, examples_by_step
from fewshot_blo.experiments.settings import Config, config_from
from fewshot_blo.records.curves import Curve, Panel, curve_figure
from fewshot_blo.records.figure import save_figure
from fewshot_blo.records.files import atomic_write
from fewshot_blo.records.logs import LOG, read_log
from fewshot_blo.training import checkpoint as checkpoints
from fewshot_blo.training.run import BEST

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "training"
COLUMNS = ("step", "examples", "validation accuracy, %", "95 % interval")


def keep(run: Path, name: str, folder: Path) -> Path:
    """Writes the validations of a run to ``folder``/``name``.csv."""
    config = config_from(checkpoints.load(run / BEST).config)
    metric = metric_of(config).quantity
    key, factor = metric.key, metric.factor
    path, log = folder / f"{name}.csv", read_log(run / LOG)
    examples = examples_by_step(log)
    lines = [",".join(f'"{column}"' for column in COLUMNS)]
    for record in log:
        if (value := record.get(f"{key}/validation")) is not None:
            half = factor * record[f"{key}/validation_interval"]
            step = record["step"]
            count = examples[step] if step in examples else step * _images_a_step(run, config)
            lines.append(f"{step},{count:.0f},{factor * value:.3f},{half:.3f}")
    if len(lines) == 1:
        raise ConfigurationError(f"{run} has no validation in its {LOG}: name a run that has")
    with atomic_write(path) as file:
        file.write("".join(f"{line}\n" for line in lines).encode())
    return path


def _images_a_step(run: Path, config: Config) -> int:
    """Of logs of earlier versions, which do not have the number."""
    episodes = config.plain()["episodes"]
    sizes = [episodes[name] for name in ("tasks", "way", "shot", "query")]
    for size in sizes:
        if type(size) is not int:
            raise ConfigurationError(
                f"the log of {run} has no {EXAMPLES}, and the settings have a range, {size}: train "
                "it again for a curve over examples"
            )
    tasks, way, shot, query = sizes
    images: int = tasks * way * (shot + query)
    return images


def draw(folder: Path) -> None:
    """Draws the runs in ``folder`` as ``folder``.png."""
    curves = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open(encoding="utf-8") as file:
            rows = [[float(row[column]) for column in COLUMNS[1:]] for row in csv.DictReader(file)]
        examples, values, halves = zip(*rows, strict=True)
        curves[path.stem] = Curve([count / 1e6 for count in examples], values, halves)
    label = "support and query images (millions)"
    panel = Panel(curves, label, "validation accuracy (%)", xscale="log")
    title = f"Validation during training, {folder.name}"
    save_figure(curve_figure(title, [panel]), folder.with_suffix(".png"))


def main(words: Sequence[str] | None = None) -> int:
    """Keeps a run, or draws all pictures; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", help="folder of the run")
    parser.add_argument("name", nargs="?", help="name of its recipe")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args(words)
    if options.run and not options.name:
        parser.error("a run needs a name, as omniglot-5w1s/maml-long")
    try:
        if options.run:
            places = [keep(options.run, options.name, options.folder).parent]
        else:
            places = [place for place in sorted(options.folder.iterdir()) if place.is_dir()]
        for place in places:
            draw(place)
    except (CheckpointError, ConfigurationError, OSError) as error:
        print(f"training_curves.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
