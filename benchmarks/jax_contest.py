"""JAX's contenders in a process of their own: compiled, compared, timed and weighed."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import Any

import numpy as np
import peers
import torch
from agreement import Arrays, relative_difference
from grid import Cell
from ours import Weights, make_weights

from fewshot_blo.tasks import TaskBatch

PRECISIONS = {"float32": "float32", "tf32": "tensorfloat32", "bfloat16": "bfloat16"}
"""JAX's names. In bfloat16 the operands are cast besides, as users of JAX do it."""


class JaxContest:
    """What a measuring process holds for JAX, and all that it can be asked to do.

    Args:
        device: "cpu", or "cuda", where JAX takes memory only as it needs it.
        seed: of weights and tasks.
    """

    def __init__(self, device: torch.device, seed: int, **_: object) -> None:
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        # XLA's pool of threads on the host is as large as PyTorch's.
        os.environ["NPROC"] = str(torch.get_num_threads())
        if device.type == "cpu":
            os.environ["JAX_PLATFORMS"] = "cpu"
        self.device, self.seed = device, seed
        self.compiled: dict[str, Compiled] = {}

    def missing(self, name: str) -> str | None:
        """Why a contender cannot run here; None if it can."""
        try:
            jax = peers.import_peer(name)
        except ImportError as error:
            return str(error)
        if self.device.type == "cuda" and jax.default_backend() != "gpu":
            return "this JAX has no GPU: it needs jax[cuda12] or jax[cuda13]"
        return None

    def compare(self, name: str, cell: Cell, reference: Arrays) -> dict[str, float]:
        """Relative difference from the reference, in float64 and in the precision timed."""
        found = {}
        for key, dtype in (("difference", torch.float64), ("error", torch.float32)):
            compiled = self._build(name, cell, dtype)
            found[key] = relative_difference(compiled.gradient(), reference)
        return found

    def prepare(self, name: str, cell: Cell) -> dict[str, Any]:
        """Compiles a contender and runs it once.

        Returns:
            ``compile_seconds``, tracing included, and ``peak_bytes``: what XLA's plan of memory
            has for temporaries and results, beyond weights and tasks.
        """
        compiled = self._build(name, cell, torch.float32)
        compiled.step()
        self.compiled[name] = compiled
        return {"compile_seconds": compiled.seconds, "peak_bytes": compiled.bytes}

    def time(self, name: str) -> float:
        """Seconds of one step."""
        start = time.perf_counter()
        self.compiled[name].step()
        return time.perf_counter() - start

    def release(self) -> None:
        """Forgets the row."""
        self.compiled.clear()

    def _build(self, name: str, cell: Cell, dtype: torch.dtype) -> Compiled:
        batch = cell.batch(self.seed, torch.device("cpu"), dtype)
        return Compiled(name, cell, make_weights(cell, self.seed), batch)


class Compiled:
    """The outer step of all tasks, compiled for a batch.

    Args:
        name: with vmap, or with lax.map, over tasks.
        cell: the configuration.
        weights: starting values.
        batch: of the dtype to compute in, on the host.

    Attributes:
        seconds: that tracing and compiling took.
        bytes: of temporaries and results, by XLA's plan.
    """

    def __init__(self, name: str, cell: Cell, weights: Weights, batch: TaskBatch) -> None:
        import jax

        dtype = batch.support_x.dtype
        jax.config.update("jax_enable_x64", dtype == torch.float64)
        self._names = {_short(name): name for name in weights}
        self._arguments = jax.device_put((_parameters(weights, dtype), _tasks(batch)))
        start = time.perf_counter()
        with jax.default_matmul_precision(PRECISIONS[cell.precision]):
            function = jax.jit(partial(_step, name, cell))
            self._run = function.lower(*self._arguments).compile()
        self.seconds = time.perf_counter() - start
        plan = self._run.memory_analysis()
        self.bytes = int(plan.temp_size_in_bytes + plan.output_size_in_bytes)

    def step(self) -> dict[str, Any]:
        """Takes the step and waits for it; the gradient is JAX's arrays."""
        import jax

        found: dict[str, Any] = jax.block_until_ready(self._run(*self._arguments))
        return found

    def gradient(self) -> Arrays:
        """The step's gradient, by outer variable and with PyTorch's order of axes."""
        found = {name: np.asarray(value) for name, value in self.step().items()}
        return {
            self._names[name]: value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
            for name, value in found.items()
        }


def _step(name: str, cell: Cell, parameters: Any, tasks: Any) -> Any:
    """The gradient of the mean over tasks."""
    import jax
    from jax_losses import objective

    if name == peers.JAX_VMAP:
        over_tasks = jax.vmap(partial(objective, cell), in_axes=(None, 0))
        return jax.grad(lambda u: over_tasks(u, tasks).mean())(parameters)
    task_gradient = partial(jax.grad(partial(objective, cell)), parameters)
    return jax.tree.map(lambda g: g.mean(0), jax.lax.map(task_gradient, tasks))


def _short(name: str) -> str:
    return name.removeprefix("encoder.").removeprefix("start/")


def _parameters(weights: Weights, dtype: torch.dtype) -> Arrays:
    arrays = {_short(name): value.to(dtype).numpy() for name, value in weights.items()}
    return {
        name: value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
        for name, value in arrays.items()
    }


def _tasks(batch: TaskBatch) -> tuple[np.ndarray, ...]:
    images = [x.numpy().transpose(0, 1, 3, 4, 2) for x in (batch.support_x, batch.query_x)]
    labels = [y.numpy().astype(np.int32) for y in (batch.support_y, batch.query_y)]
    return images[0], labels[0], images[1], labels[1]
