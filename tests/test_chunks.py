from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import assert_same, make_batch
from small_runs import STRATEGIES
from torch import Tensor, nn

from fewshot_blo.chunks import dropout_keys, hypergradient, measure_chunk
from fewshot_blo.kernel.layers import Dropout
from fewshot_blo.kernel.memory import peak_bytes
from fewshot_blo.networks import Conv4, classifier
from fewshot_blo.problems import FewShotProblem, Initialization, SharedEncoder

TASKS = 5


def make_problem(strategy: str, backend: Any) -> FewShotProblem:
    torch.manual_seed(0)
    encoder = nn.Sequential(Conv4(hidden=8), nn.Dropout(0.3)).double()
    if strategy == "unroll":
        network = classifier(encoder, 8, 3).double()
        return Initialization(network, backend=backend)
    return SharedEncoder(encoder, learn_prox=True, backend=backend)


@pytest.mark.parametrize("backend", ["loop", "batched"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_chunk_size_does_not_change_a_step(strategy: str, backend: Any) -> None:
    problem, method, batch = (
        make_problem(strategy, backend),
        STRATEGIES[strategy],
        make_batch(TASKS),
    )
    keys = dropout_keys(batch, 0, 0)
    state = method.init()
    # A warm start: the state of each chunk must be that of its tasks.
    first = hypergradient(problem, method, state, batch, keys=keys)
    if strategy != "unroll":
        state = method.advance(state, first)
    whole = hypergradient(problem, method, state, batch, keys=keys)
    for chunk in (1, 2, 5, 9):
        parts = hypergradient(problem, method, state, batch, chunk=chunk, keys=keys)
        assert_same(parts.gradient, whole.gradient)
        assert_same(parts.inner, whole.inner)
        assert_same({"F": parts.outer_loss}, {"F": whole.outer_loss})
        advanced, expected = method.advance(state, parts), method.advance(state, whole)
        assert dict(advanced.scalars) == dict(expected.scalars)


def test_dropout_masks_are_of_the_task_and_not_of_its_chunk() -> None:
    problem, batch = make_problem("penalty", "loop"), make_batch(TASKS)
    method, keys = STRATEGIES["penalty"], dropout_keys(batch, 0, 0)

    def masks(chunk: int) -> Tensor:
        seen: list[Tensor] = []
        layer = next(m for m in problem.network.modules() if isinstance(m, Dropout))
        hook = layer.register_forward_hook(
            lambda module, inputs, output: seen.append((output == 0).flatten())
        )
        hypergradient(problem, method, method.init(), batch, chunk=chunk, keys=keys)
        hook.remove()
        return torch.stack(sorted(seen, key=lambda mask: mask.tolist()))

    assert torch.equal(masks(0), masks(2))


def test_dropout_keys_are_a_function_of_seed_and_task() -> None:
    batch = make_batch(4)
    by_steps = torch.cat([dropout_keys(batch, 3, step) for step in range(3)])
    assert len(set(by_steps.tolist())) == 12
    assert torch.equal(by_steps, torch.cat([dropout_keys(make_batch(6), 3, s) for s in range(2)]))
    assert not set(by_steps.tolist()) & set(dropout_keys(batch, 4, 0).tolist())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_measured_chunk_obeys_the_limit(strategy: str) -> None:
    problem, method, batch = make_problem(strategy, "loop"), STRATEGIES[strategy], make_batch(8)

    def peak(chunk: int) -> int:
        keys = dropout_keys(batch, 0, 0)
        return peak_bytes(
            lambda: hypergradient(problem, method, method.init(), batch[:chunk], keys=keys)
        )

    def measured(limit: int) -> int:
        host_limit = limit / 2**30
        return measure_chunk(problem, method, batch, norm="transductive", host_limit=host_limit)

    for fits in (1, 2, 4):
        limit = round(1.1 * fits * peak(1))
        assert measured(limit) == fits
        assert peak(measured(limit)) <= 1.05 * limit
    assert measured(10 * 2**30) == 8
    assert measured(0) == 1
