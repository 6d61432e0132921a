"""The command line: ``fewshot-blo train | evaluate | compare | check | data``."""

from __future__ import annotations

import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser, Namespace

from fewshot_blo.allocator import keep_freed_memory
from fewshot_blo.check import check_kernel, measure_precisions
from fewshot_blo.compare import compare
from fewshot_blo.config import Config
from fewshot_blo.errors import (
    CheckpointError,
    ConfigurationError,
    DivergenceError,
    StructuralZeroError,
)
from fewshot_blo.from_config import (
    build_problem,
    build_rule,
    build_sampler,
    build_splits,
    build_strategy,
    train_from_config,
)
from fewshot_blo.hypergrad import Phases
from fewshot_blo.kernel.fused import describe_kernels
from fewshot_blo.problems import FewShotProblem
from fewshot_blo.report import EvaluationRequest, evaluate_checkpoints
from fewshot_blo.run import BEST
from tasks import DataError
from tasks.picture import episode_picture

_USER_ERRORS = (
    CheckpointError,
    ConfigurationError,
    DataError,
    DivergenceError,
    StructuralZeroError,
    OSError,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        0; 1 for an error, which is printed as one message, or a check that failed; 2 for wrong
        arguments; 130 where the user interrupted.
    """
    parsers: dict[str, tuple[ArgumentParser, Callable[[ArgumentParser, Namespace], int]]] = {
        "train": (_train_parser(), _train),
        "evaluate": (_evaluate_parser(), _evaluate),
        "compare": (_compare_parser(), _compare),
        "check": (_check_parser(), _check),
        "data": (_data_parser(), _data),
    }
    parser = ArgumentParser(
        prog="fewshot-blo",
        description="Few-shot learning as bilevel problems.",
        exit_on_error=False,
    )
    commands = parser.add_subcommands(dest="command")
    for name, (subparser, _) in parsers.items():
        subparser.exit_on_error = False
        commands.add_subcommand(name, subparser)
    try:
        parsed = parser.parse_args(arguments)
    except ArgumentError as error:
        words = sys.argv[1:] if arguments is None else arguments
        command_line = " ".join(["fewshot-blo", *(word for word in words[:1] if word in parsers)])
        reason = " ".join(str(error).split())
        print(f"{command_line}: {reason} (see {command_line} --help)", file=sys.stderr)
        return 2
    keep_freed_memory()
    subparser, command = parsers[parsed.command]
    try:
        return command(subparser, parsed[parsed.command])
    except _USER_ERRORS as error:
        print(f"fewshot-blo {parsed.command}: {error}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        print(
            f"fewshot-blo {parsed.command}: {reason} Lower train.chunk (tasks at a time), or "
            "episodes.tasks",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(f"fewshot-blo {parsed.command}: interrupted", file=sys.stderr)
        return 130


def _config_parser(description: str) -> ArgumentParser:
    """A parser whose options are the settings of a run."""
    parser = ArgumentParser(description=description)
    parser.add_argument("--config", action="config", help="YAML file of settings")
    parser.add_class_arguments(Config)
    return parser


def _config(parser: ArgumentParser, parsed: Namespace) -> Config:
    for field in fields(Config):
        if is_dataclass(field.default) and not isinstance(parsed[field.name], Namespace):
            raise ConfigurationError(
                f"{field.name} is {parsed[field.name]}: it must be a mapping of settings"
            )
    built = parser.instantiate(parsed)
    return Config(**{field.name: built[field.name] for field in fields(Config)})


def _train_parser() -> ArgumentParser:
    parser = _config_parser("Meta-train, validate on held-out classes, then evaluate the best.")
    parser.add_argument("--run", type=Path, default=Path("runs/default"), help="folder of the run")
    parser.add_argument(
        "--resume", action="store_true", help="continue the run where it was interrupted"
    )
    parser.add_argument(
        "--test_tasks", type=int, default=600, help="tasks of the evaluation at the end; 0 for none"
    )
    return parser


def _train(parser: ArgumentParser, parsed: Namespace) -> int:
    config = _config(parser, parsed)
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
        evaluate_checkpoints([parsed.run / BEST], request, splits)
    return 0


def _evaluate_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Accuracy with 95 % intervals in every norm mode; several checkpoints are "
        "compared on the same tasks."
    )
    parser.add_argument("checkpoints", nargs="+", type=Path, help="files written by train")
    parser.add_class_arguments(EvaluationRequest)
    return parser


def _evaluate(parser: ArgumentParser, parsed: Namespace) -> int:
    built = parser.instantiate(parsed)
    request = EvaluationRequest(**{f.name: built[f.name] for f in fields(EvaluationRequest)})
    evaluate_checkpoints(parsed.checkpoints, request)
    return 0


def _compare_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Train the recipes that have no finished run, evaluate all on the same tasks, "
        "and write a table (Markdown, CSV) and a picture. The same command goes on after Ctrl-C."
    )
    parser.add_argument(
        "sources", nargs="+", type=Path, help="recipes (YAML), folders of runs, or checkpoints"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/compare"), help="of new runs and the table"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of training recipes")
    parser.add_argument(
        "--max_steps", type=int, help="train recipes of more outer steps for so many only"
    )
    parser.add_class_arguments(EvaluationRequest, skip={"output"})
    return parser


def _compare(parser: ArgumentParser, parsed: Namespace) -> int:
    built = parser.instantiate(parsed)
    names = [f.name for f in fields(EvaluationRequest) if f.name != "output"]
    request = EvaluationRequest(**{name: built[name] for name in names})
    compare(
        parsed.sources,
        request,
        folder=parsed.folder,
        seeds=parsed.seeds,
        max_steps=parsed.max_steps,
    )
    return 0


def _check_parser() -> ArgumentParser:
    parser = _config_parser(
        "Compare the batched kernel with a loop over tasks, in float64, on the configured problem, "
        "and every precision with float64."
    )
    parser.add_argument("--check_tasks", type=int, default=3, help="tasks to compare on")
    return parser


def _check(parser: ArgumentParser, parsed: Namespace) -> int:
    config = _config(parser, parsed)
    splits = build_splits(config.data)
    image = splits.train.images.shape[1:]
    config = replace(config, episodes=replace(config.episodes, tasks=parsed.check_tasks))
    strategy, norm = build_strategy(config), config.train.norm
    if isinstance(strategy, Phases):
        _, strategy = strategy.phases[-1]

    def problem(dtype: Literal["float32", "float64"], **settings: Any) -> FewShotProblem:
        changed = replace(config.problem, **settings)
        return build_problem(replace(config, dtype=dtype, problem=changed), image)

    exact = replace(config, dtype="float64")
    batch = build_sampler(exact, splits.train, training=True).batch(0)
    comparisons = check_kernel(
        lambda backend: problem("float64", backend=backend, precision="float32"),
        strategy,
        batch,
        rule=build_rule(config, config.inner),
        norm=norm,
    )
    for comparison in comparisons:
        verdict = "agrees" if comparison.agrees else "DIFFERS"
        print(f"{comparison.quantity:45} {comparison.difference:.1e}  {verdict}")
    errors = measure_precisions(
        lambda dtype, precision: problem(dtype, precision=precision), strategy, batch, norm=norm
    )
    print("error against float64      loss  hypergradient  seconds (float64)")
    for error in errors:
        times = f"{error.seconds:.3f} ({error.float64_seconds:.3f})"
        print(f"{error.precision:21} {error.loss:10.1e} {error.hypergradient:14.1e} {times:>18}")
    print(f"kernels: {describe_kernels(batch.support_x.device)}")
    return 0 if all(comparison.agrees for comparison in comparisons) else 1


def _data_parser() -> ArgumentParser:
    parser = _config_parser("Load a data set, say what is in it, and draw a picture of episodes.")
    parser.add_argument("--picture", type=Path, help="PNG file to write a few episodes to")
    return parser


def _data(parser: ArgumentParser, parsed: Namespace) -> int:
    config = _config(parser, parsed)
    splits = build_splits(config.data)
    for name, dataset in splits:
        counts, shape = dataset.counts, "x".join(map(str, dataset.images.shape[1:]))
        print(
            f"{name:11} {len(dataset.class_names):5} classes, {len(dataset):7} images of {shape}, "
            f"{int(counts.min())} to {int(counts.max())} a class"
        )
    if parsed.picture:
        sampler = build_sampler(config, splits.train, training=True)
        names = splits.train.class_names
        episode_picture(sampler.batch(0), parsed.picture, class_names=names)
        print(f"episodes drawn in {parsed.picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
