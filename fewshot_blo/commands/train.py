"""``fewshot-blo train``."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from fewshot_blo.commands.settings import config_parser, parsed_config
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.experiments.data import build_splits
from fewshot_blo.experiments.report import evaluate_checkpoints
from fewshot_blo.experiments.request import EvaluationRequest
from fewshot_blo.experiments.training import train_from_config
from fewshot_blo.training.run import BEST


def parser() -> ArgumentParser:
    """Its options."""
    options = config_parser("Meta-train, validate on held-out classes, then evaluate the best.")
    options.add_argument("--run", type=Path, default=Path("runs/default"), help="folder of the run")
    options.add_argument(
        "--resume", action="store_true", help="continue the run where it was interrupted"
    )
    options.add_argument(
        "--test_tasks", type=int, default=600, help="tasks of the evaluation at the end; 0 for none"
    )
    return options


def run(parser: ArgumentParser, parsed: Namespace) -> int:
    """Runs it; returns the exit status."""
    config = parsed_config(parser, parsed)
    if parsed.test_tasks < 0:
        raise ConfigurationError(f"test_tasks is {parsed.test_tasks}: it must not be negative")
    splits = build_splits(config.data)
    result = train_from_config(
        config, splits, parsed.run, resume=parsed.resume, tested=parsed.test_tasks > 0
    )
    if result.interrupted:
        print(f"stopped at step {result.step}; continue with the same command and --resume")
        return 130
    print(f"best validation accuracy {100 * result.validation_accuracy:.2f} % in {result.best}")
    if parsed.test_tasks:
        request = EvaluationRequest(tasks=parsed.test_tasks, output=parsed.run / "evaluation.json")
        own = [config.problem.network]
        evaluate_checkpoints([parsed.run / BEST], request, splits, allowed=own)
    return 0
