"""Newton's method for inner problems of few parameters, with nothing named."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewshot_blo.bilevel import Bilevel, TaskParams
from fewshot_blo.hypergrad import Implicit
from fewshot_blo.hypergrad.newton import solved_or_adapted
from fewshot_blo.kernel import SGD, InnerSteps, adapt
from fewshot_blo.solving.problem import PlainProblem

DOUBLE = torch.float64


def test_inner_problems_of_few_parameters_are_solved_to_rounding() -> None:
    """By Newton's method, where gradient steps leave what their tolerance allows."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 5, generator=generator, dtype=DOUBLE) * torch.logspace(-3, 1, 5).double()
    y = torch.randn(40, generator=generator, dtype=DOUBLE).sign()
    given = PlainProblem(
        {"u": torch.tensor(-3.0, dtype=DOUBLE)},
        {"v": torch.zeros(5, dtype=DOUBLE)},
        lambda v, u: (
            torch.nn.functional.softplus(-y[:20] * (x[:20] @ v["v"])).mean()
            + u["u"].exp() * v["v"].square().sum()
        ),
        lambda v, u: torch.nn.functional.softplus(-y[20:] * (x[20:] @ v["v"])).mean(),
    )
    bilevel = given.at(0)
    step = Implicit().hypergradient(bilevel, Implicit().init())
    leaves = {"v": step.inner["v"].requires_grad_()}
    (slope,) = torch.autograd.grad(bilevel.inner_loss(leaves).sum(), list(leaves.values()))
    assert float(slope.abs().max()) < 1e-13


def test_named_steps_are_obeyed() -> None:
    bilevel = PlainProblem(
        {"u": torch.ones(2, dtype=DOUBLE)},
        {"v": torch.zeros(2, dtype=DOUBLE)},
        lambda v, u: (v["v"] - u["u"]).square().sum(),
        lambda v, u: v["v"].sum(),
    ).at(0)
    steps = InnerSteps(3, SGD(0.1))
    found = solved_or_adapted(bilevel, bilevel.inner_init, steps)
    assert torch.equal(found["v"], adapt(bilevel.inner_loss, bilevel.inner_init, steps)["v"])
    exact = solved_or_adapted(bilevel, bilevel.inner_init, InnerSteps())
    torch.testing.assert_close(exact["v"][0], torch.ones(2, dtype=DOUBLE), rtol=1e-14, atol=0)


def test_a_start_on_a_maximum_is_left_to_other_steps() -> None:
    """Newton's method would stay there; G is least at v = u +- 1."""
    bilevel = PlainProblem(
        {"u": torch.zeros(1, dtype=DOUBLE)},
        {"v": torch.full((1,), 0.1, dtype=DOUBLE)},
        lambda v, u: ((v["v"] - u["u"]).square() - 1).square().sum(),
        lambda v, u: v["v"].sum(),
    ).at(0)
    found = solved_or_adapted(bilevel, bilevel.inner_init, InnerSteps())
    torch.testing.assert_close(found["v"].abs(), torch.ones(1, 1, dtype=DOUBLE))


def test_steps_that_would_end_at_a_saddle_point_are_left_to_other_steps() -> None:
    """Each step halves the gradient and leads downhill as that of a outweighs that of b, along
    which G has a maximum at 0 and minima at -1.62 and 0.62."""
    bilevel = PlainProblem(
        {"u": torch.zeros((), dtype=DOUBLE)},
        {"a": torch.tensor(1.0, dtype=DOUBLE), "b": torch.tensor(0.01, dtype=DOUBLE)},
        lambda v, u: (
            (v["a"] - u["u"]).exp()
            - (v["a"] - u["u"])
            - v["b"] ** 2 / 2
            + v["b"] ** 3 / 3
            + v["b"] ** 4 / 4
        ),
        lambda v, u: (v["b"] - 1).square() + u["u"].square(),
    ).at(0)
    step = Implicit().hypergradient(bilevel, Implicit().init())
    expected = torch.tensor([(5**0.5 - 1) / 2], dtype=DOUBLE)
    torch.testing.assert_close(step.inner["b"], expected, rtol=0, atol=1e-5)


def test_a_task_is_solved_alike_alone_and_beside_others() -> None:
    """Newton's method solves the convex tasks, and is given up for one in a double well."""

    def tasks(kinds: Tensor) -> Bilevel:
        def loss(v: TaskParams) -> Tensor:
            wells = ((v["v"] - 1).square() - 1).square().sum(1)
            return torch.where(kinds > 0, wells, (v["v"].exp() - 2 * v["v"]).sum(1))

        start = {"v": torch.full((len(kinds), 2), 1.1, dtype=DOUBLE)}
        return Bilevel({"u": torch.zeros(1, requires_grad=True)}, start, loss, loss)

    kinds = torch.tensor([0, 1, 0])
    bilevel = tasks(kinds)
    together = solved_or_adapted(bilevel, bilevel.inner_init, InnerSteps())["v"]
    for task, own in enumerate(kinds):
        single = tasks(own[None])
        alone = solved_or_adapted(single, single.inner_init, InnerSteps())["v"][0]
        assert torch.equal(together[task], alone)
    expected = torch.tensor([math.log(2), 2.0, math.log(2)], dtype=DOUBLE)
    torch.testing.assert_close(together[:, 0], expected, rtol=0, atol=1e-6)
