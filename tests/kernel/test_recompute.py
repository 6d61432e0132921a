from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

import torch
from hypothesis import given
from hypothesis import strategies as st

from fewshot_blo.bilevel import TaskParams
from fewshot_blo.kernel import SGD, InnerSteps, adapt
from fewshot_blo.kernel.recompute import segments

_FACTOR: ContextVar[float] = ContextVar("a user's own variable", default=1.0)


@given(steps=st.integers(0, 300), states=st.integers(0, 300))
def test_segments_cover_the_steps_and_keep_few_states(steps: int, states: int) -> None:
    lengths = segments(steps, states)
    assert sum(lengths) == steps
    limit = max(states, math.isqrt(2 * steps) + 1)
    assert len(lengths) <= limit
    for before, length in enumerate(lengths):
        assert length >= 1
        assert length == 1 or before + length <= limit


@given(steps=st.integers(0, 300))
def test_no_step_is_taken_thrice_where_all_states_fit(steps: int) -> None:
    assert segments(steps, steps) == [1] * steps


def test_some_segments() -> None:
    assert segments(49, 30) == [20] + [1] * 29
    assert segments(49, 0) == [10, 9, 8, 7, 6, 5, 1, 1, 1, 1]


def test_another_thread_makes_steps_again_with_the_variables_that_they_had() -> None:
    """A GPU's backward pass runs in a thread of autograd, where context variables have defaults."""
    u = torch.tensor([0.3, 0.7], dtype=torch.float64, requires_grad=True)

    def loss(v: TaskParams) -> torch.Tensor:
        return (_FACTOR.get() * (v["v"] - u).sin().square()).sum(1)

    def adapted(*, recompute: bool) -> torch.Tensor:
        start = {"v": torch.zeros(2, 2, dtype=torch.float64)}
        return adapt(
            loss,
            start,
            InnerSteps(9, SGD(0.2)),
            outer={"u": u},
            derivatives="second",
            recompute=recompute,
        )["v"].sum()

    token = _FACTOR.set(3.0)
    try:
        (expected,) = torch.autograd.grad(adapted(recompute=False), u)
        end = adapted(recompute=True)
    finally:
        _FACTOR.reset(token)
    with ThreadPoolExecutor(1) as pool:
        (gradient,) = pool.submit(torch.autograd.grad, end, u).result()
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=0)
