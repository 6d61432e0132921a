from __future__ import annotations

import pytest
import torch
from oracles import Quadratic, assert_same, make_batch
from torch.func import functional_call, grad, jacrev

from fewshot_blo.errors import ConfigurationError, StructuralZeroError
from fewshot_blo.heads import LinearHead
from fewshot_blo.hypergrad import Implicit, outer_step
from fewshot_blo.hypergrad.implicit import ImplicitState
from fewshot_blo.hypergrad.linear_solve import ConjugateGradient, Neumann, OneStep
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.problems import Initialization, SharedEncoder

COLD = ImplicitState()


@pytest.mark.parametrize("steps", [0, 3, 120])
def test_conjugate_gradient_equals_a_dense_solve(steps: int) -> None:
    quadratic = Quadratic.random()
    strategy = Implicit(InnerSteps(steps, SGD(0.3)), ConjugateGradient(steps=5, tolerance=0.0))
    step, _ = outer_step(strategy, quadratic.bilevel(), COLD)
    v = quadratic.descent(steps, 0.3)[0]
    q = torch.linalg.solve(quadratic.a, v - quadratic.d)
    assert_same(step.gradient, {"u": quadratic.hypergradient(v, q)})
    assert_same(step.inner, Quadratic.cut(v))


def test_converged_equals_the_exact_hypergradient() -> None:
    quadratic = Quadratic.random()
    strategy = Implicit(InnerSteps(120, SGD(0.3)), ConjugateGradient(5))
    step, _ = outer_step(strategy, quadratic.bilevel(), COLD)
    assert_same(step.gradient, {"u": quadratic.exact()})


def test_damping_is_added_to_the_hessian() -> None:
    quadratic = Quadratic.random()
    step, _ = outer_step(
        Implicit(InnerSteps(2, SGD(0.3)), ConjugateGradient(5, damping=0.7)),
        quadratic.bilevel(),
        COLD,
    )
    v = quadratic.descent(2, 0.3)[0]
    damped = quadratic.a + 0.7 * torch.eye(5, dtype=torch.float64)
    q = torch.linalg.solve(damped, v - quadratic.d)
    assert_same(step.gradient, {"u": quadratic.hypergradient(v, q)})


def test_neumann_equals_its_series() -> None:
    quadratic = Quadratic.random()
    step, _ = outer_step(
        Implicit(InnerSteps(2, SGD(0.3)), Neumann(6, 0.2)), quadratic.bilevel(), COLD
    )
    v = quadratic.descent(2, 0.3)[0]
    contraction = torch.eye(5, dtype=torch.float64) - 0.2 * quadratic.a
    series = sum(
        (torch.linalg.matrix_power(contraction, j) for j in range(1, 7)),
        torch.eye(5, dtype=torch.float64),
    )
    q = 0.2 * torch.einsum("tij,tj->ti", series, v - quadratic.d)
    assert_same(step.gradient, {"u": quadratic.hypergradient(v, q)})


def test_one_step_scales_the_right_hand_side() -> None:
    quadratic = Quadratic.random()
    step, _ = outer_step(Implicit(InnerSteps(2, SGD(0.3)), OneStep(0.4)), quadratic.bilevel(), COLD)
    v = quadratic.descent(2, 0.3)[0]
    assert_same(step.gradient, {"u": quadratic.hypergradient(v, 0.4 * (v - quadratic.d))})


def test_network_equals_its_full_hessian() -> None:
    """On a linear network with a proximal term, against the Hessian of every parameter at once."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).double()
    problem = Initialization(network, prox=0.5, backend="batched")
    batch = make_batch(tasks=2, size=4)
    strategy = Implicit(InnerSteps(4, SGD(0.2)), ConjugateGradient(steps=60))
    step, _ = outer_step(strategy, problem.bind(batch, "support").bilevel, COLD)

    theta = torch.cat([p.detach().flatten() for p in problem.outer.values()])
    gradient = torch.zeros_like(theta)
    for t in range(2):

        def loss(flat: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            params = {"1.weight": flat[:48].reshape(3, 16), "1.bias": flat[48:]}
            return torch.nn.functional.cross_entropy(functional_call(network, params, (x,)), y)

        v = torch.cat([p[t].flatten() for p in step.inner.values()])
        f_v = grad(loss)(v, batch.query_x[t], batch.query_y[t])
        g_vv = jacrev(grad(loss))(v, batch.support_x[t], batch.support_y[t])
        curvature = g_vv + 0.5 * torch.eye(51)
        gradient += 0.5 * torch.linalg.solve(curvature, f_v) / 2
    assert_same(
        {"u": torch.cat([g.flatten() for g in step.gradient.values()])}, {"u": gradient}, 1e-9
    )


def test_structural_zeros_name_the_variable_and_the_remedy() -> None:
    batch, strategy = make_batch(), Implicit(InnerSteps(1))
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 3)).double()
    pure = Initialization(network, backend="loop")
    with pytest.raises(StructuralZeroError, match=r"'1.weight' \(\[3, 256\]\).*prox > 0"):
        outer_step(strategy, pure.bind(batch, "support").bilevel, COLD)
    learned = Initialization(network, prox=0.1, step_size=0.1, backend="loop")
    with pytest.raises(StructuralZeroError, match=r"'step_size/1.weight'.*use Unroll"):
        outer_step(strategy, learned.bind(batch, "support").bilevel, COLD)
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 4)).double()
    shared = SharedEncoder(
        encoder, LinearHead(), prox=0.0, start="learned", way=3, features=4, backend="loop"
    )
    with pytest.raises(StructuralZeroError, match=r"'start/head.weight'.*proximal term"):
        outer_step(strategy, shared.bind(batch, "support").bilevel, COLD)


def test_inner_steps_are_not_negative() -> None:
    with pytest.raises(ConfigurationError, match="steps is -1: it must be at least 0"):
        InnerSteps(-1)
