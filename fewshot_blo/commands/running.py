"""Running one command: its options, its errors and its memory."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fewshot_blo.commands.group import How, Meeting, group, meeting, quiet
from fewshot_blo.commands.help import command_help, component_help
from fewshot_blo.commands.launched import is_first, started
from fewshot_blo.commands.options import HelpWanted, Options, wants_help
from fewshot_blo.commands.unexpected import report_unexpected
from fewshot_blo.commands.words import names_in
from fewshot_blo.errors import (
    CheckpointError,
    ConfigurationError,
    DivergenceError,
    ProcessError,
    StructuralZeroError,
)
from fewshot_blo.machine.allocator import keep_freed_memory, return_freed_memory
from fewshot_blo.machine.memory import is_out_of_memory, memory_limit
from fewshot_blo.records.checked import checked
from fewshot_blo.records.ranges import Positive
from fewshot_blo.records.shard import Shard
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


Speaks = Callable[[], bool]
"""Whether this process is the one that reports an error."""


@checked
@dataclass(frozen=True)
class MemoryLimit:
    """What every command takes.

    Attributes:
        memory_limit: GiB that the process may hold; what is computed at a time is made to fit.
        debug: show the traceback of an unexpected error.
    """

    memory_limit: Positive | None = None
    debug: bool = False


def options_of(command: str) -> Options:
    """The options of a command, those of every command included."""
    own: Options = importlib.import_module(f"fewshot_blo.commands.{command}").OPTIONS
    return replace(own, kinds=(*own.kinds, MemoryLimit))


def run(command: str, description: str, words: Sequence[str]) -> int:
    """Runs a command with the words behind its name; returns the exit status.

    Of several processes that ``torchrun`` started, the first one to fail reports it.
    """
    requests: list[Any] = []
    speaks: Speaks = is_first
    try:
        if wants_help(words):  # For which nobody has to wait.
            with quiet(not is_first()):
                return _run(command, description, words, requests, speaks)
        how = _how(command)
        if started() == 1:
            return _run(command, description, words, requests, speaks)
        met = meeting()
        speaks = met.speaks
        if how == "shards":
            return _run_in_shards(command, description, words, requests, met)
        with group(met):
            return _run(command, description, words, requests, speaks)
    except (BrokenPipeError, KeyboardInterrupt):  # An OSError, but no error of the command's.
        raise
    except ProcessError as error:
        return 1 if error.is_told else _failed(speaks, f"fewshot-blo {command}: {error}")
    except _USER_ERRORS as error:
        return _failed(speaks, f"fewshot-blo {command}: {shown_lines(error)}")
    except Exception as error:
        if is_out_of_memory(error):
            return _failed(speaks, f"fewshot-blo {command}: {shown_lines(_exhausted(error))}")
        return report_unexpected(error, command, words, _folder(requests)) if speaks() else 1


def _failed(speaks: Speaks, message: str) -> int:
    if speaks():
        print(message, file=sys.stderr)
    return 1


def _how(command: str) -> How:
    module = importlib.import_module(f"fewshot_blo.commands.{command}")
    how: How = getattr(module, "PROCESSES", "one")
    if started() > 1 and how == "one":
        raise ConfigurationError(
            f"WORLD_SIZE is {started()}, and {command} runs in one process: start it without "
            "torchrun"
        )
    return how


def _run_in_shards(
    command: str, description: str, words: Sequence[str], requests: list[Any], met: Meeting
) -> int:
    """Each process does a shard; then the first one does what is left, such as the tables."""
    if any(name == "shard" for name, _ in names_in(words)):
        raise ConfigurationError(
            f"torchrun divides the work among {met.count} processes by itself: leave out shard"
        )
    # Each trains and writes alone from here on.
    os.environ.pop("WORLD_SIZE")
    shard = Shard(met.rank + 1, met.count)
    with quiet(met.rank > 0):
        status = _run(command, description, words, requests, met.speaks, shard)
    if status:
        return status
    met.wait_for_all()
    return _run(command, description, words, requests, met.speaks) if met.rank == 0 else 0


_LOWER = (
    "Lower train.chunk (tasks at a time), episodes.tasks, or the size of the images or the network"
)


def _run(
    command: str,
    description: str,
    words: Sequence[str],
    requests: list[Any],
    speaks: Speaks,
    shard: Shard | None = None,
) -> int:
    """Runs it with its words, or a part of it only."""
    options = options_of(command)
    module: Any = importlib.import_module(f"fewshot_blo.commands.{command}")
    try:
        *parsed, limit = options.parse(words)
    except HelpWanted as wanted:
        try:
            print(
                component_help(options, wanted.place, wanted.tree)
                if wanted.place
                else command_help(command, description, options)
            )
        except ConfigurationError as error:
            return _refused(speaks, command, error)
        return 0
    except (ConfigurationError, DataError) as error:
        return _refused(speaks, command, error)
    requests += parsed
    if limit.memory_limit is None:
        keep_freed_memory()
    else:
        return_freed_memory()
    with memory_limit(limit.memory_limit):
        if shard is None:
            status: int = module.run(*parsed)
            return status
        module.run_part(*parsed, shard)
    return 0


def _refused(speaks: Speaks, command: str, error: Exception) -> int:
    name = f"fewshot-blo {command}"
    _failed(speaks, f"{name}: {shown_lines(error)}; see {name} --help")
    return 2


def _folder(requests: Sequence[Any]) -> Path | None:
    """The folder that a command writes to, as far as it is known."""
    found = [
        vars(request).get(name) for request in requests for name in ("run", "folder", "output")
    ]
    return next((path for path in found if isinstance(path, Path)), None)


def _exhausted(error: Exception) -> str:
    """One line on memory that ran out, with what to do."""
    reason = str(error).splitlines()[0] if str(error) else "the memory is full."
    if isinstance(error, MemoryError) and str(error):  # Of take_steps, with its own remedy.
        return reason
    if not isinstance(error, torch.OutOfMemoryError):
        reason = "the memory is full."
    return f"{reason} {_LOWER}"
