"""Nonsense for every argument of every public constructor: refused with the project's error."""

from __future__ import annotations

import inspect
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import fewshot_blo
from faults.elsewhere import elsewhere
from faults.row import Row
from fewshot_blo.backbones.backbone import Backbone, Preprocessing
from fewshot_blo.commands.main import COMMANDS
from fewshot_blo.commands.running import options_of
from fewshot_blo.errors import (
    CheckpointError,
    ConfigurationError,
    DivergenceError,
    NotSolvedError,
    StructuralZeroError,
)
from fewshot_blo.experiments.settings import EpisodeSettings
from fewshot_blo.finetune.candidates import Candidate
from fewshot_blo.heads import HEADS
from fewshot_blo.hypergrad import STRATEGIES
from fewshot_blo.hypergrad.linear_solve import SOLVERS
from fewshot_blo.kernel.lbfgs import LBFGS
from fewshot_blo.kernel.rules import RULES
from fewshot_blo.networks import ENCODERS
from fewshot_blo.objectives import METRICS
from fewshot_blo.problems import PROBLEMS
from fewshot_blo.records.scalars import in_short
from fewshot_blo.solving.constraints import Box, Simplex
from fewshot_blo.solving.starts import Partial
from fewshot_blo.studies.recipe import STUDIES
from fewshot_blo.studies.rows import RowSettings
from fewshot_blo.tasks import Augmentation, ClassDataset, DataError, EpisodicSampler, TaskBatch
from fewshot_blo.tasks.catalogue import DATA_SETS
from fewshot_blo.tasks.families import FAMILIES
from fewshot_blo.tasks.protocols import PROTOCOLS

OURS = (
    CheckpointError,
    ConfigurationError,
    DataError,
    DivergenceError,
    NotSolvedError,
    StructuralZeroError,
)
_LONG = ("fit", "evaluate", "train")  # Run in full when they are not refused.


class Odd:
    """An object of no use."""


NONSENSE: tuple[Any, ...] = (
    math.nan,
    math.inf,
    -math.inf,
    -1,
    0,
    1.5,
    -0.5,
    10**20,
    10**5000,
    1e308,
    2,
    "",
    "adamw",
    "5",
    "a\0b",
    b"adam",
    None,
    True,
    [],
    {},
    (1, 2, 3),
    [math.nan],
    {"a": math.nan},
    Odd(),
    Odd,
    print,
    np.float32(0.5),
    np.float64(math.nan),
    np.int64(3),
    np.array([1.0, 2.0]),
    torch.tensor(0.5),
    torch.tensor(2),
    torch.tensor(math.nan),
    torch.tensor(0.5, requires_grad=True),
    torch.ones(3),
    torch.float16,
)
_NOT_FINITE = (math.nan, np.float64(math.nan), torch.tensor(math.nan))


def _dataset() -> ClassDataset:
    images = torch.zeros(12, 1, 8, 8, dtype=torch.uint8)
    return ClassDataset(images, torch.arange(3).repeat_interleave(4), ("a", "b", "c"))


def _network() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))


def _batch() -> dict[str, Any]:
    x, y = torch.zeros(1, 2, 1, 8, 8), torch.zeros(1, 2, dtype=torch.long)
    return {
        "support_x": x,
        "support_y": y,
        "query_x": x,
        "query_y": y,
        "classes": torch.zeros(1, 2, dtype=torch.long),
    }


def _loss(v: Any, u: Any) -> torch.Tensor:
    loss: torch.Tensor = ((v["v"] - u["u"]) ** 2).sum()
    return loss


def _plain() -> dict[str, Any]:
    return {
        "outer": {"u": torch.zeros(2)},
        "inner": {"v": torch.zeros(2)},
        "inner_loss": _loss,
        "outer_loss": _loss,
    }


def _required() -> dict[str, dict[str, Any]]:
    """Sensible values of the arguments that have no default."""
    return {
        "ClassDataset": vars(_dataset()),
        "TaskBatch": _batch(),
        "EpisodicSampler": {"dataset": _dataset(), "way": 2, "shot": 1, "query": 1, "tasks": 1},
        "Initialization": {"network": _network()},
        "SharedEncoder": {"encoder": _network()},
        "Pretraining": {"encoder": _network(), "features": 4, "classes": 3},
        "PlainProblem": _plain(),
        "solve": {
            "problem": fewshot_blo.PlainProblem(**_plain()),
            "strategy": fewshot_blo.Unroll(fewshot_blo.InnerSteps(1, fewshot_blo.SGD(0.1))),
            "optimizer": lambda leaves: torch.optim.SGD(leaves, lr=0.1),
            "steps": 1,
            "progress": False,
        },
        "TailHead": {"tail": nn.Linear(4, 4), "adapted": ["weight"], "features": 4},
        "classifier": {"encoder": _network(), "features": 4, "way": 2},
        "Backbone": {"body": _network()},
        "Candidate": {"name": "a"},
        "load_backbone": {"name": "torchvision:mobilenet_v3_small", "pretrained": False},
    }


def public() -> list[Callable[..., Any]]:
    """Every constructor, and every function of settings, that the package offers by name."""
    named = [getattr(fewshot_blo, name) for name in sorted(fewshot_blo._HOME)]
    further = (EpisodicSampler, ClassDataset, TaskBatch, Augmentation, Partial, Box, Simplex, LBFGS)
    settings = (EpisodeSettings, RowSettings, Preprocessing, Backbone, Candidate)
    components = (
        *STRATEGIES,
        *HEADS,
        *RULES,
        *SOLVERS,
        *ENCODERS,
        *PROBLEMS,
        *DATA_SETS,
        *METRICS,
        *PROTOCOLS,
        *FAMILIES,
        *STUDIES.values(),
    )
    requests = [kind for command in COMMANDS for kind in options_of(command).kinds]
    every = [*named, *further, *settings, *components, *requests]
    kinds = dict.fromkeys(k for k in every if callable(k) and k.__name__ not in _SKIPPED)
    return [k for k in kinds if not (inspect.isclass(k) and issubclass(k, BaseException))]


# Records of the program and a protocol, not settings; and what has no argument.
_SKIPPED = {
    "Bilevel",
    "LoggedRun",
    "Logger",
    "OuterStep",
    "PretrainedModel",
    "keep_freed_memory",
    "load_classifier",
}


def cases() -> Iterator[tuple[Callable[..., Any], str, Any, dict[str, Any]]]:
    """``(constructor, argument, nonsense, the other arguments)``."""
    required = _required()
    for kind in public():
        for name in inspect.signature(kind).parameters:
            for value in NONSENSE:
                if (kind.__name__, name) in _CALLED and callable(value):
                    continue  # It is called: what it does is its author's business.
                if (kind.__name__, name) == ("load_backbone", "pretrained") and value is True:
                    continue  # A download.
                yield kind, name, value, required.get(kind.__name__, {})


_CALLED = {
    ("PlainProblem", "inner_starts"),
    ("solve", "optimizer"),
    ("solve", "validate"),
    ("solve", "observe"),
}


def fuzz(every: int = 1, first: int = 0) -> Row:
    """Calls them with nonsense for one argument at a time.

    Args:
        every: take one of so many cases.
        first: the first case.
    """
    row = Row("nonsense", "constructors")
    with tempfile.TemporaryDirectory() as folder, elsewhere(Path(folder)):
        for number, (kind, name, value, others) in enumerate(cases()):
            if number % every == first % every:
                fault = _fault(kind, name, value, others)
                case = f"{kind.__name__}({name}={in_short(value)})"
                row.add(f"{case}: {fault}" if fault else None)
    return row


def _fault(kind: Callable[..., Any], name: str, value: Any, others: dict[str, Any]) -> str:
    absent = [
        p.name
        for p in inspect.signature(kind).parameters.values()
        if p.default is p.empty and p.name not in others and p.name != name
    ]
    given = {**dict.fromkeys(absent, Odd()), **others, name: value}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind(**given)
    except OURS as error:
        return "" if str(error) else "the message is empty"
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    if kind.__name__ in _LONG:
        return "it ran with nonsense for its data"
    taken = any(value is bad for bad in _NOT_FINITE)
    return "NaN is taken" if taken and not _takes_anything(kind, name) else ""


def _takes_anything(kind: Callable[..., Any], name: str) -> bool:
    """Whether an argument is of tensors or of objects of any kind."""
    words = str(inspect.signature(kind).parameters[name].annotation)
    return any(word in words for word in ("Tensor", "Any", "object", "Mapping", "Bound"))
