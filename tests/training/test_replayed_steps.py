"""Outer steps whose kernels are recorded and replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import assert_same, make_batch, make_ragged_batch
from recorders import Rerun
from torch import Tensor, nn

from fewshot_blo.hypergrad import Implicit, Penalty, Strategy, Unroll
from fewshot_blo.hypergrad.linear_solve import ConjugateGradient, Neumann
from fewshot_blo.kernel import SGD, Adam, InnerSteps
from fewshot_blo.kernel.graph import Graphs, make_graphs
from fewshot_blo.networks import Conv4, classifier
from fewshot_blo.problems import FewShotProblem, Initialization, NormMode, SharedEncoder
from fewshot_blo.tasks import TaskBatch
from fewshot_blo.training.step import dropout_keys, hypergradient

STRATEGIES: dict[str, Strategy] = {
    "unroll": Unroll(InnerSteps(2, SGD(0.1))),
    "unroll recomputed": Unroll(InnerSteps(3, Adam(1e-2, eps=1e-3)), recompute=True),
    "implicit by cg": Implicit(InnerSteps(3, SGD(0.1)), ConjugateGradient(3, damping=1.0)),
    "implicit by Neumann": Implicit(InnerSteps(3, SGD(0.1)), Neumann(3, 0.1)),
    # Large tolerance: its schedules advance at every step.
    "penalty": Penalty(InnerSteps(2, SGD(1e-2)), rho=1.0, epsilon=1e6),
}
strategies = pytest.mark.parametrize("strategy", STRATEGIES)
problems = pytest.mark.parametrize(
    ("problem", "backend"), [("initialization", "batched"), ("encoder", "loop")]
)


def small_encoder() -> nn.Module:
    """One block and dropout."""
    block = (nn.Conv2d(1, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*block, nn.Linear(64, 8), nn.Dropout(0.3))


def conv4() -> nn.Module:
    return Conv4(hidden=8)


def make_problem(
    name: str, backend: Any, device: str = "cpu", make: Callable[[], nn.Module] = small_encoder
) -> FewShotProblem:
    torch.manual_seed(0)
    encoder = make()
    if name == "encoder":
        return SharedEncoder(encoder.double().to(device), learn_prox=True, backend=backend)
    network = classifier(encoder, 8, 3).double().to(device)
    return Initialization(network, prox=0.5, backend=backend)


def train(
    problem: FewShotProblem, strategy: Strategy, batches: list[TaskBatch], graphs: Graphs | None
) -> list[dict[str, Tensor]]:
    """Outer losses and hypergradients of a few outer steps from a warm start, in chunks."""
    state, results = strategy.init(), []
    for number, batch in enumerate(batches):
        step = hypergradient(
            problem,
            strategy,
            state,
            batch,
            norm="support",
            chunk=2,
            keys=dropout_keys(batch, 0, number),
            graphs=graphs,
        )
        state = strategy.advance(state, step)
        with torch.no_grad():
            for name, leaf in problem.outer.items():
                leaf -= 0.01 * step.gradient[name]
        results.append({"F": step.outer_loss, **step.gradient})
    return results


@problems
@strategies
def test_replayed_steps_are_the_steps(strategy: str, problem: str, backend: Any) -> None:
    method, recorder = STRATEGIES[strategy], Rerun()
    # Three tasks in chunks of two are of two shapes; the first step has no inner parameters yet.
    batches = [make_batch(seed=seed) for seed in range(5)]
    batches[3] = make_ragged_batch()
    expected = train(make_problem(problem, backend), method, batches, None)
    graphs = Graphs(recorder, "on")
    replayed = train(make_problem(problem, backend), method, batches, graphs)
    for actual, step in zip(replayed, expected, strict=True):
        assert_same(actual, step, relative=1e-12)
    assert recorder.recorded == 2
    assert recorder.replayed == 4


def test_other_settings_are_recorded_apart() -> None:
    problem, method, batch = make_problem("encoder", "loop"), STRATEGIES["unroll"], make_batch()
    recorder, keys = Rerun(), dropout_keys(batch, 0, 0)
    graphs = Graphs(recorder, "on")

    def both(norm: NormMode) -> None:
        for _ in range(3):
            steps = [
                hypergradient(problem, method, method.init(), batch, norm=norm, keys=keys, graphs=g)
                for g in (graphs, None)
            ]
            assert_same(steps[0].gradient, steps[1].gradient)

    both("transductive")
    both("support")
    problem.network.eval()
    both("support")
    problem.backend = "batched"
    both("support")
    assert recorder.recorded == 4
    leaf = next(iter(problem.outer.values()))
    leaf.data = leaf.data.clone() + 0.1  # Elsewhere in memory.
    both("support")
    assert recorder.recorded == 5


def test_without_keys_nothing_is_recorded() -> None:
    problem, method, recorder = make_problem("encoder", "loop"), STRATEGIES["unroll"], Rerun()
    for _ in range(3):
        hypergradient(problem, method, method.init(), make_batch(), graphs=Graphs(recorder, "on"))
    assert recorder.recorded == 0


@pytest.mark.gpu
@problems
@strategies
def test_cuda_graphs_of_steps(strategy: str, problem: str, backend: Any) -> None:
    torch.use_deterministic_algorithms(False)
    try:
        method = STRATEGIES[strategy]
        batches = [make_batch(seed=seed).to("cuda") for seed in range(5)]
        expected = train(make_problem(problem, backend, "cuda", conv4), method, batches, None)
        graphs = make_graphs("on", torch.device("cuda"))
        assert graphs is not None
        replayed = train(make_problem(problem, backend, "cuda", conv4), method, batches, graphs)
        for actual, step in zip(replayed, expected, strict=True):
            assert_same(actual, step, relative=1e-8)
        assert graphs.choice == "replayed"
    finally:
        torch.use_deterministic_algorithms(True)


def test_states_without_tasks_of_their_own() -> None:
    """A cold start has no inner parameters and no multipliers to record."""
    method = STRATEGIES["penalty"]
    problem, batch, graphs = make_problem("encoder", "loop"), make_batch(), Graphs(Rerun(), "on")
    keys = dropout_keys(batch, 0, 0)
    for scale in (1.0, 2.0, 3.0):
        state = method.init().map(lambda x, scale=scale: scale * x)
        steps = [
            hypergradient(problem, method, state, batch, keys=keys, graphs=g)
            for g in (graphs, None)
        ]
        assert_same(steps[0].gradient, steps[1].gradient)
