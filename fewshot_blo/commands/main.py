"""The command line: ``fewshot-blo COMMAND``."""

from __future__ import annotations

import sys
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
from jsonargparse import ArgumentParser

from fewshot_blo.commands import (
    check,
    compare,
    data,
    evaluate,
    export,
    finetune,
    predict,
    study,
    train,
)
from fewshot_blo.errors import (
    CheckpointError,
    ConfigurationError,
    DivergenceError,
    StructuralZeroError,
)
from fewshot_blo.experiments.recipes import is_study
from fewshot_blo.machine.allocator import keep_freed_memory, return_freed_memory
from fewshot_blo.machine.memory import memory_limit
from fewshot_blo.tasks import DataError

_COMMANDS: dict[str, ModuleType] = {
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "study": study,
    "finetune": finetune,
    "predict": predict,
    "export": export,
    "check": check,
    "data": data,
}
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
    parsers = {name: command.parser() for name, command in _COMMANDS.items()}
    parser = ArgumentParser(
        prog="fewshot-blo",
        description="Few-shot learning as bilevel problems.",
        exit_on_error=False,
    )
    commands = parser.add_subcommands(dest="command")
    for name, subparser in parsers.items():
        subparser.exit_on_error = False
        subparser.add_argument(
            "--memory_limit",
            type=float,
            help="GiB that the process may hold: what is computed at a time is made to fit",
        )
        commands.add_subcommand(name, subparser)
    try:
        parsed = parser.parse_args(arguments)
    except ArgumentError as error:
        words = sys.argv[1:] if arguments is None else arguments
        command_line = " ".join(["fewshot-blo", *(word for word in words[:1] if word in parsers)])
        study = next(filter(is_study, (Path(word.split("=", 1)[-1]) for word in words)), None)
        # Its rows have names of their own, of which the parser complains instead.
        reason = f"{study} is a study: use fewshot-blo study" if study else str(error)
        reason = " ".join(reason.split())
        print(f"{command_line}: {reason} (see {command_line} --help)", file=sys.stderr)
        return 2
    options = parsed[parsed.command]
    if options.memory_limit is None:
        keep_freed_memory()
    else:
        return_freed_memory()
    try:
        command = _COMMANDS[parsed.command]
        with memory_limit(options.memory_limit):
            status: int = command.run(parsers[parsed.command], options)
        return status
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


if __name__ == "__main__":
    sys.exit(main())
