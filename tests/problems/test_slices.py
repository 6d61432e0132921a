"""Encoders whose activations are made again, a few images at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import pytest
import torch
from oracles import assert_same, make_batch
from torch import nn

from fewshot_blo.bilevel import Params
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad import Unroll
from fewshot_blo.hypergrad.unroll import UnrollState
from fewshot_blo.kernel import SGD, Backend, Choice, InnerSteps, Sample
from fewshot_blo.kernel.plain import is_plain, plain_operations
from fewshot_blo.machine.memory import peak_bytes
from fewshot_blo.networks import Conv4
from fewshot_blo.problems import SharedEncoder
from fewshot_blo.tasks import TaskBatch
from fewshot_blo.tasks.inputs import one_of


def problem(
    slices: int, *, dropout: float = 0.0, backend: Backend | Literal["auto"] = "batched"
) -> SharedEncoder:
    torch.manual_seed(0)
    encoder = nn.Sequential(Conv4(hidden=8, norm="group"), nn.Dropout(dropout)).double()
    return SharedEncoder(encoder, slices=slices, backend=backend)


def step(of: SharedEncoder, batch: TaskBatch) -> tuple[Params, Params]:
    bound = of.bind(batch, "support", torch.arange(batch.tasks))
    found = Unroll(InnerSteps(2, SGD(0.3))).hypergradient(bound.bilevel, UnrollState())
    return {"F": found.outer_loss}, bound.pullback(found.gradient)


@pytest.mark.parametrize("backend", ["loop", "batched"])
@pytest.mark.parametrize("slices", [1, 7, 1000])
def test_slices_change_nothing(slices: int, backend: Backend) -> None:
    batch = make_batch()
    expected, found = step(problem(0), batch), step(problem(slices, backend=backend), batch)
    assert_same(found[0], expected[0])
    assert_same(found[1], expected[1])


def test_dropout_masks_are_made_again() -> None:
    batch = make_batch()
    first, second = (step(problem(4, dropout=0.5), batch) for _ in range(2))
    assert_same(first[1], second[1])
    of = problem(4, dropout=0.5)
    direction = {n: torch.randn_like(p) for n, p in of.outer.items()}
    slope = sum(float((first[1][n] * d).sum()) for n, d in direction.items())
    losses = []
    for sign in (1, -1):
        moved = problem(4, dropout=0.5)
        for name, p in moved.outer.items():
            p.data.add_(direction[name], alpha=sign * 1e-7)
        losses.append(float(step(moved, batch)[0]["F"].mean()))
    assert slope == pytest.approx((losses[0] - losses[1]) / 2e-7, rel=1e-6)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images() -> None:
    def peak(slices: int, repeats: int) -> int:
        batch = make_batch()
        queries = {
            name: torch.cat([getattr(batch, name)] * repeats, 1) for name in ("query_x", "query_y")
        }
        longer = TaskBatch(batch.support_x, batch.support_y, classes=batch.classes, **queries)
        of = problem(slices)
        return peak_bytes(lambda: step(of, longer))

    assert peak(0, 16) > 8 * peak(0, 1)
    assert peak(8, 16) < 0.3 * peak(0, 16)


def test_choosing_the_backend_takes_no_more_images_than_a_slice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shapes: list[torch.Size] = []

    def chosen(self: Choice, wanted: str, sample: Sample) -> str:
        shapes.append(one_of(sample.x).shape)
        return "loop"

    monkeypatch.setattr(Choice, "__call__", chosen)
    for slices in (0, 7, 1):
        problem(slices, backend="auto").prepare(make_batch())
    assert [tuple(shape[:2]) for shape in shapes] == [(3, 6), (3, 2), (3, 1)]


def test_networks_whose_images_meet_have_no_slices() -> None:
    with pytest.raises(ConfigurationError, match="slices is 4"):
        SharedEncoder(Conv4(hidden=8), slices=4)
    with pytest.raises(ConfigurationError, match="slices is -1"):
        problem(-1)


def test_another_thread_makes_them_again_as_they_were() -> None:
    """A GPU's backward pass runs in a thread of autograd, where context variables have defaults."""
    of, batch, seen = problem(4), make_batch(), []
    of.network.register_forward_pre_hook(lambda module, inputs: seen.append(is_plain()))
    with plain_operations():
        bound = of.bind(batch, "support", torch.arange(batch.tasks))
    first = len(seen)
    found = Unroll(InnerSteps(2, SGD(0.3))).hypergradient(bound.bilevel, UnrollState())
    with ThreadPoolExecutor(1) as pool:
        pool.submit(bound.pullback, found.gradient).result()
    assert seen == [True] * 2 * first
