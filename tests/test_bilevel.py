from __future__ import annotations

import dataclasses

import pytest
import torch
from oracles import Quadratic, assert_same
from torch import Tensor

from fewshot_blo.bilevel import Bilevel, OuterStep, TaskParams, combine, task_dot
from fewshot_blo.errors import ConfigurationError, DivergenceError
from fewshot_blo.hypergrad import Implicit, Penalty, Strategy, Unroll
from fewshot_blo.hypergrad.penalty import PenaltyStep
from fewshot_blo.hypergrad.strategy import outer_step
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.kernel.outer_variables import OuterVariables


def losses(v: TaskParams) -> Tensor:
    return v["v"].sum(1)


LEAF = torch.ones(2, requires_grad=True)


@pytest.mark.parametrize(
    ("outer", "inner", "message"),
    [
        ({"u": LEAF * 2}, {"v": torch.ones(2, 3)}, "'u' is not a leaf.*detach"),
        ({"u": torch.ones(2)}, {"v": torch.ones(2, 3)}, "'u' is not a leaf"),
        ({}, {"v": torch.ones(2, 3)}, "outer is empty"),
        ({"u": LEAF}, {}, "inner_init is empty"),
        ({"u": LEAF}, {"v": torch.ones(2, 3), "w": torch.ones(3)}, "'v': 2, 'w': 3"),
        ({"u": LEAF}, {"v": torch.ones(())}, "'v': None"),
    ],
)
def test_problem_is_checked(outer: TaskParams, inner: TaskParams, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Bilevel(outer, inner, losses, losses)


def make_variables() -> OuterVariables:
    leaves = iter(torch.arange(8.0))
    return OuterVariables(
        step_sizes={"0.weight": next(leaves)},
        head={"log_scale": next(leaves), "tail.1.bias": next(leaves)},
        encoder={"0.weight": next(leaves)},
        start={"head.weight": next(leaves)},
        classifier={"head.weight": next(leaves)},
        regularisation=next(leaves),
        features=next(leaves),
    )


# The order of the flat names is that of an optimizer's state in a checkpoint.
FLAT = {
    "features": 7.0,
    "0.weight": 3.0,
    "start/head.weight": 4.0,
    "log_prox": 6.0,
    "head/log_scale": 1.0,
    "head/tail.1.bias": 2.0,
    "step_size/0.weight": 0.0,
    "classifier/head.weight": 5.0,
}


def test_groups_of_outer_variables_have_flat_names_in_order() -> None:
    flat = {name: float(leaf) for name, leaf in make_variables().items()}
    assert list(flat.items()) == list(FLAT.items())
    assert repr(OuterVariables(head={"a": torch.ones(2)})) == "OuterVariables(head/a [2])"
    assert not OuterVariables()


def test_flat_names_tell_the_groups() -> None:
    variables = make_variables()
    found = OuterVariables.grouped(dict(reversed(list(variables.items()))))
    for group in ("encoder", "start", "head", "step_sizes", "classifier"):
        assert dict(getattr(found, group)) == dict(getattr(variables, group))
    assert found.features is variables.features
    assert found.regularisation is variables.regularisation
    assert found.keys() == FLAT.keys()


def test_two_outer_variables_of_one_name() -> None:
    with pytest.raises(ConfigurationError, match="two outer variables are named 'log_prox'"):
        OuterVariables(encoder={"log_prox": torch.ones(1)}, regularisation=torch.ones(()))


def test_number_of_tasks() -> None:
    assert Bilevel({"u": LEAF}, {"v": torch.ones(4, 3)}, losses, losses).tasks == 4


@pytest.mark.parametrize(
    "strategy",
    [Unroll(InnerSteps(1, SGD())), Implicit(InnerSteps(1)), Penalty(InnerSteps(1), rho=0.1)],
)
def test_a_loss_that_is_not_one_number_a_task_is_named(strategy: Strategy) -> None:
    quadratic = Quadratic.random().bilevel()

    def mean(v: TaskParams) -> Tensor:
        return quadratic.outer_loss(v).mean()

    wrong = Bilevel(quadratic.outer, quadratic.inner_init, quadratic.inner_loss, mean)
    with pytest.raises(
        ConfigurationError, match=r"outer_loss has shape \[\].*one loss a task, \[3\]"
    ):
        outer_step(strategy, wrong, strategy.init())


def make_step(tasks: int, value: float) -> PenaltyStep:
    column = torch.full((tasks, 1), value, dtype=torch.float64)
    gradient = {"u": torch.full((2,), value, dtype=torch.float64)}
    own = {"v": column}
    return PenaltyStep(gradient, own, column[:, 0], column[:, 0], own, own, column[:, 0])


def test_chunks_are_weighted_by_their_tasks() -> None:
    step = combine([make_step(3, 1.0), make_step(1, 5.0)])
    assert step.tasks == 4
    assert step.gradient["u"].tolist() == [2.0, 2.0]
    for stacked in (step.inner["v"][:, 0], step.outer_loss, step.inner_gradient["v"][:, 0]):
        assert stacked.tolist() == [1.0, 1.0, 1.0, 5.0]
    single = make_step(2, 1.0)
    assert combine([single]) is single


@pytest.mark.parametrize(
    "strategy",
    [Unroll(InnerSteps(3, SGD())), Implicit(InnerSteps(3)), Penalty(InnerSteps(3), rho=0.1)],
)
def test_chunks_combine_to_the_whole(strategy: Strategy) -> None:
    quadratic = Quadratic.random(tasks=5)
    whole = strategy.hypergradient(quadratic.bilevel(), strategy.init())

    def part(tasks: slice) -> OuterStep:
        q = quadratic
        chunk = Quadratic(q.a[tasks], q.b[tasks], q.c[tasks], q.d[tasks], q.r, q.u)
        return strategy.hypergradient(chunk.bilevel(), strategy.init())

    step = combine([part(slice(0, 2)), part(slice(2, 4)), part(slice(4, 5))])
    assert_same(step.gradient, whole.gradient, 1e-13)
    assert_same(step.inner, whole.inner, 1e-13)


def test_divergence_names_the_quantity() -> None:
    step = make_step(3, 1.0)
    step.check_finite("Method")
    losses = torch.tensor([1.0, torch.inf, torch.nan])
    for name in ("outer", "inner"):
        diverged = dataclasses.replace(step, **{f"{name}_loss": losses})  # type: ignore[arg-type]
        with pytest.raises(DivergenceError, match=f"Method: the {name} loss of task 1 is inf"):
            diverged.check_finite("Method")
    step.gradient["u"][1] = torch.nan
    with pytest.raises(DivergenceError, match="Method: the hypergradient of 'u' is not finite"):
        step.check_finite("Method")


def test_inner_product_by_task() -> None:
    a = {"v": torch.arange(6.0).reshape(2, 3), "w": torch.tensor([1.0, 2.0])}
    assert task_dot(a, a).tolist() == [0 + 1 + 4 + 1, 9 + 16 + 25 + 4]
