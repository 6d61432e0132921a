"""The gradients of the oracle, computed by the project's kernel."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fewshot_blo import errors
from fewshot_blo.hypergrad import Unroll
from fewshot_blo.kernel import SGD, BackendChoice, InnerSteps, Order
from fewshot_blo.problems import FewShotProblem, Initialization, SharedEncoder
from fewshot_blo.tasks import TaskBatch
from fewshot_blo.training.step import hypergradient
from zoo.oracle import STEP_SIZE, STEPS, Result

PROJECT_ERRORS: tuple[type[Exception], ...] = tuple(
    error
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, Exception)
)
"""A network that raises one of these has been refused; any other exception is a defect."""


@contextmanager
def said(messages: list[str]) -> Iterator[None]:
    """Collects the messages of warnings inside the context, each once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            for warning in caught:
                text = " ".join(str(warning.message).split())
                if _is_ours(warning, text) and text not in messages:
                    messages.append(text)


def _is_ours(warning: warnings.WarningMessage, text: str) -> bool:
    """Whether a warning is not one of PyTorch's on performance or deprecation."""
    return issubclass(warning.category, UserWarning) and "performance drop" not in text


def initialization(
    module: nn.Module, batch: TaskBatch, *, first_order: bool, backend: BackendChoice = "auto"
) -> tuple[Result, str]:
    """Losses and gradient as ``oracle.initialization``, and the backend that was chosen."""
    problem = Initialization(module, backend=backend)
    strategy = Unroll(InnerSteps(STEPS, SGD(STEP_SIZE)), first_order=first_order)
    return _step(problem, strategy, batch, "first" if first_order else "second")


def shared_encoder(
    module: nn.Module, batch: TaskBatch, *, backend: BackendChoice = "auto"
) -> tuple[Result, str]:
    """Losses and gradient as ``oracle.shared_encoder``, and the backend that was chosen."""
    problem = SharedEncoder(module, prox=0.0, start="zeros", backend=backend)
    return _step(problem, Unroll(InnerSteps(STEPS, SGD(STEP_SIZE))), batch, "first")


def _step(
    problem: FewShotProblem, strategy: Unroll, batch: TaskBatch, derivatives: Order
) -> tuple[Result, str]:
    problem.network.train()
    problem.prepare(batch, derivatives=derivatives)
    keys = torch.arange(batch.tasks)
    step = hypergradient(problem, strategy, strategy.init(), batch, norm="transductive", keys=keys)
    gradient: dict[str, Tensor] = dict(step.gradient)
    return (step.outer_loss, gradient), problem.backend
