"""``check_device``: exactness of replayed CUDA graphs, and tasks per second beside plain loops.

The network is Conv4-64 on random images of 28×28 pixels, 5-way 1-shot tasks with 15 queries per
class, differentiated through 5 inner steps.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot_blo.checks.backends import relative_difference
from fewshot_blo.hypergrad import Unroll
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.kernel.graph import Graphs, make_graphs
from fewshot_blo.kernel.precision import product_precision
from fewshot_blo.machine.timing import best_seconds
from fewshot_blo.networks import Conv4, classifier
from fewshot_blo.problems import Initialization
from fewshot_blo.tasks import TaskBatch
from fewshot_blo.tasks.reading.torchvision_import import torchvision_module
from fewshot_blo.training.step import dropout_keys, hypergradient

_STEPS, _STEP_SIZE, _WAY = 5, 0.01, 5
_TASKS = {"cuda": 64, "cpu": 4}
_LOOPED = 4  # Number of tasks on which loops over tasks are timed.


@dataclass(frozen=True)
class Speed:
    """Speed of an implementation of the outer step.

    Attributes:
        name: name of the implementation.
        tasks_per_second: tasks per second; NaN if it did not run.
        remark: how it ran, or why it did not.
    """

    name: str
    tasks_per_second: float
    remark: str = ""


@dataclass(frozen=True)
class DeviceCheck:
    """Result of ``check_device``.

    Attributes:
        replayed: relative difference between the hypergradients of a replayed CUDA graph and of a
            plain step, in float64; None if the device does not replay.
        speeds: speed of this package, then of implementations that loop over tasks.
    """

    replayed: float | None
    speeds: list[Speed]


def check_device(device: torch.device) -> DeviceCheck:
    """Takes and times outer steps on a device, for about half a minute.

    Args:
        device: device to check.
    """
    tasks = _TASKS.get(device.type, _TASKS["cpu"])
    with product_precision("float32", device):
        speeds = [_ours(device, tasks), _plain_loop(device)]
        speeds += [_peer(name, loop, device) for name, loop in _PEERS.items()]
    return DeviceCheck(_replayed(device), speeds)


def _network() -> nn.Module:
    torch.manual_seed(0)
    encoder = Conv4(hidden=64)
    return classifier(encoder, encoder.features(28), _WAY)


def _batch(tasks: int, device: torch.device, dtype: torch.dtype = torch.float32) -> TaskBatch:
    generator = torch.Generator().manual_seed(0)

    def rows(number: int) -> tuple[Tensor, Tensor]:
        images = torch.rand(tasks, _WAY * number, 1, 28, 28, generator=generator)
        return images, torch.arange(_WAY).repeat_interleave(number).repeat(tasks, 1)

    classes = torch.arange(_WAY).repeat(tasks, 1)
    return TaskBatch(*rows(1), *rows(15), classes).to(device, dtype)


def _step(
    problem: Initialization, batch: TaskBatch, graphs: Graphs | None = None
) -> Callable[[], dict[str, Tensor]]:
    strategy, keys = Unroll(InnerSteps(_STEPS, SGD(_STEP_SIZE))), dropout_keys(batch, 0, 0)
    return lambda: dict(
        hypergradient(problem, strategy, strategy.init(), batch, keys=keys, graphs=graphs).gradient
    )


def _replayed(device: torch.device) -> float | None:
    graphs = make_graphs("on", device)
    if graphs is None:
        return None
    problem = Initialization(_network().to(device).double())
    batch = _batch(2, device, torch.float64)
    problem.prepare(batch)
    plain, replayed = _step(problem, batch)(), _step(problem, batch, graphs)
    _, _, found = (replayed() for _ in range(3))  # Run, captured, replayed.
    return relative_difference(
        *(torch.cat([p.flatten() for p in g.values()]) for g in (found, plain))
    )


def _ours(device: torch.device, tasks: int) -> Speed:
    problem, batch = Initialization(_network().to(device)), _batch(tasks, device)
    problem.prepare(batch)
    graphs = make_graphs("auto", device)
    step = _step(problem, batch, graphs)
    for _ in range(2):
        step()
    seconds = best_seconds(step, device)
    remark = f"{problem.backend}, {tasks} tasks at a time"
    return Speed("fewshot_blo", tasks / seconds, f"{remark}, {graphs.choice}" if graphs else remark)


def _plain_loop(device: torch.device) -> Speed:
    problem = Initialization(_network().to(device), backend="reference")
    seconds = best_seconds(_step(problem, _batch(_LOOPED, device)), device)
    return Speed("your module, task by task", _LOOPED / seconds)


Loop = Callable[[ModuleType, nn.Module, TaskBatch], None]


def _peer(name: str, loop: Loop, device: torch.device) -> Speed:
    try:
        torchvision_module()  # learn2learn imports it.
        module = importlib.import_module(name)
    except Exception as error:  # An unmaintained library may raise anything on import.
        return Speed(name, float("nan"), f"not installed ({type(error).__name__}: {error})")
    network, batch = _network().to(device), _batch(_LOOPED, device)
    return Speed(name, _LOOPED / best_seconds(lambda: loop(module, network, batch), device))


def _higher(higher: Any, network: nn.Module, batch: TaskBatch) -> None:
    optimizer = torch.optim.SGD(network.parameters(), _STEP_SIZE)
    support_x, support_y, query_x, query_y, _ = batch.pictures
    for t in range(batch.tasks):
        context = higher.innerloop_ctx(network, optimizer, copy_initial_weights=False)
        with context as (functional, differentiable):
            for _ in range(_STEPS):
                logits = functional(support_x[t])
                differentiable.step(F.cross_entropy(logits, support_y[t]))
            _backward(F.cross_entropy(functional(query_x[t]), query_y[t]))


def _learn2learn(learn2learn: Any, network: nn.Module, batch: TaskBatch) -> None:
    maml = learn2learn.algorithms.MAML(network, lr=_STEP_SIZE)
    support_x, support_y, query_x, query_y, _ = batch.pictures
    for t in range(batch.tasks):
        learner = maml.clone()
        for _ in range(_STEPS):
            learner.adapt(F.cross_entropy(learner(support_x[t]), support_y[t]))
        _backward(F.cross_entropy(learner(query_x[t]), query_y[t]))


def _backward(loss: Tensor) -> None:
    loss.backward()


_PEERS: dict[str, Loop] = {"higher": _higher, "learn2learn": _learn2learn}
