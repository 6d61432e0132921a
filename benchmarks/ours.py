"""One outer step of a cell by this project, and the weights that all contenders start from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from grid import Cell
from torch import Tensor

from fewshot_blo import (
    SGD,
    ConjugateGradient,
    Implicit,
    Initialization,
    Penalty,
    SharedEncoder,
    Unroll,
    classifier,
)
from fewshot_blo.hypergrad import Strategy
from fewshot_blo.kernel import InnerSteps
from fewshot_blo.kernel.graph import GraphMode, Graphs, make_graphs
from fewshot_blo.machine.chunk import Chunk
from fewshot_blo.problems import FewShotProblem
from fewshot_blo.tasks import TaskBatch
from fewshot_blo.training.chunk_choice import choose_chunk
from fewshot_blo.training.step import dropout_keys, hypergradient

Weights = dict[str, Tensor]
Step = Callable[[], Weights]
"""Takes one outer step and returns the gradient of the mean query loss, by outer variable."""

STEP_SIZE = 0.01
PROX = {"all": 2.0, "head": 0.5}
RHO, LAM, MULTIPLIER = 0.1, 1e-2, 1e-4
CG_STEPS = 5


@dataclass
class Ours:
    """The project's outer step.

    Attributes:
        step: takes it.
        problem: for the choices that it made.
        chunk: tasks at a time, fewer once memory has run out.
        graphs: recordings of the device's kernels.
    """

    step: Step
    problem: FewShotProblem
    chunk: Chunk
    graphs: Graphs | None

    def choices(self) -> dict[str, str | int]:
        """What was chosen by measurement, so far."""
        graph = "none on this device" if self.graphs is None else self.graphs.choice
        return {
            "backend": self.problem.backend,
            "chunk": self.chunk.size,
            "memory": self.chunk.why,
            "graph": graph,
        }


def build(
    cell: Cell,
    weights: Weights,
    batch: TaskBatch,
    *,
    chunk: int = 0,
    memory: float = 0.0,
    graph: GraphMode = "auto",
) -> Ours:
    """The outer step on a batch, its backend and chunk size chosen as training chooses them.

    Args:
        cell: the configuration.
        weights: starting values.
        batch: tasks; float64 ones are computed in float64.
        chunk: tasks at a time; 0 measures.
        memory: GiB that a chunk may take on the host; 0 for half of what is free.
        graph: whether a GPU's kernels are recorded and replayed.
    """
    problem = make_problem(cell, batch.support_x.device, batch.support_x.dtype)
    with torch.no_grad():
        for name, p in problem.outer.items():
            p.copy_(weights[name])
    problem.network.train()
    problem.prepare(batch)
    strategy = make_strategy(cell)
    graphs = make_graphs(graph, batch.support_x.device)
    chosen = choose_chunk(
        problem,
        [strategy],
        batch,
        norm="transductive",
        size=chunk,
        host_limit=memory,
        recorded=graphs is not None,
    )
    keys = dropout_keys(batch, 0, 0)

    def step() -> Weights:
        found = hypergradient(
            problem, strategy, strategy.init(), batch, chunk=chosen, keys=keys, graphs=graphs
        )
        return dict(found.gradient)

    return Ours(step, problem, chosen, graphs)


def make_strategy(cell: Cell) -> Strategy:
    """The strategy of the cell's method, all else as by default."""
    rule = SGD(STEP_SIZE)
    if cell.method == "implicit":
        return Implicit(InnerSteps(cell.steps, rule), ConjugateGradient(CG_STEPS))
    if cell.method == "penalty":
        return Penalty(InnerSteps(cell.steps, rule), rho=RHO, lam=LAM, multiplier=MULTIPLIER)
    return Unroll(InnerSteps(cell.steps, rule), first_order=cell.method == "first")


def prox(cell: Cell) -> float:
    """Weight of the proximal term: none where the steps themselves are differentiated."""
    return PROX[cell.adapted] if cell.method in ("implicit", "penalty") else 0.0


def make_weights(cell: Cell, seed: int) -> Weights:
    """float64 starting values of the outer variables, on the host."""
    torch.manual_seed(seed)
    problem = make_problem(cell, torch.device("cpu"), torch.float64)
    return {name: p.detach().clone() for name, p in problem.outer.items()}


def make_problem(cell: Cell, device: torch.device, dtype: torch.dtype) -> FewShotProblem:
    """The problem of a cell, with random weights."""
    encoder, features = cell.encoder()
    precision = "float32" if dtype == torch.float64 else cell.precision
    if cell.adapted == "all":
        network = classifier(encoder, features, cell.way).to(device, dtype)
        return Initialization(network, prox=prox(cell), precision=precision)
    return SharedEncoder(
        encoder.to(device, dtype),
        prox=prox(cell),
        start="learned",
        way=cell.way,
        features=features,
        precision=precision,
    )
