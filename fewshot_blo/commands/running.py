"""Running one command: its options, its errors and its memory."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fewshot_blo.commands.help import command_help, component_help
from fewshot_blo.commands.options import HelpWanted, Options
from fewshot_blo.errors import (
    CheckpointError,
    ConfigurationError,
    DivergenceError,
    StructuralZeroError,
)
from fewshot_blo.machine.allocator import keep_freed_memory, return_freed_memory
from fewshot_blo.machine.memory import is_out_of_memory, memory_limit
from fewshot_blo.records.terminal import shown_lines
from fewshot_blo.tasks import DataError

_USER_ERRORS = (
    CheckpointError,
    ConfigurationError,
    DataError,
    DivergenceError,
    StructuralZeroError,
    OSError,
)


@dataclass(frozen=True)
class MemoryLimit:
    """What every command takes.

    Attributes:
        memory_limit: GiB that the process may hold; what is computed at a time is made to fit.
    """

    memory_limit: float | None = None


def options_of(command: str) -> Options:
    """The options of a command, those of every command included."""
    own: Options = importlib.import_module(f"fewshot_blo.commands.{command}").OPTIONS
    return replace(own, kinds=(*own.kinds, MemoryLimit))


def run(command: str, description: str, words: Sequence[str]) -> int:
    """Runs a command with the words behind its name; returns the exit status."""
    options = options_of(command)
    module: Any = importlib.import_module(f"fewshot_blo.commands.{command}")
    name = f"fewshot-blo {command}"
    try:
        try:
            *requests, limit = options.parse(words)
        except HelpWanted as wanted:
            print(
                component_help(options, wanted.place, wanted.tree)
                if wanted.place
                else command_help(command, description, options)
            )
            return 0
    except (ConfigurationError, DataError) as error:
        print(f"{name}: {shown_lines(error)}; see {name} --help", file=sys.stderr)
        return 2
    if limit.memory_limit is None:
        keep_freed_memory()
    else:
        return_freed_memory()
    try:
        with memory_limit(limit.memory_limit):
            status: int = module.run(*requests)
        return status
    except BrokenPipeError:  # An OSError, but no error of the command's.
        raise
    except _USER_ERRORS as error:
        print(f"{name}: {shown_lines(error)}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"{name}: {_exhausted(error)}", file=sys.stderr)
        return 1


def _exhausted(error: MemoryError | RuntimeError) -> str:
    """One line on memory that ran out, with what to do."""
    reason = str(error).splitlines()[0] if str(error) else "memory ran out"
    if isinstance(error, MemoryError) and str(error):  # Of take_steps, with its own remedy.
        return reason
    if not isinstance(error, torch.OutOfMemoryError):
        reason = "memory ran out."
    return f"{reason} Lower train.chunk (tasks at a time), or episodes.tasks"
