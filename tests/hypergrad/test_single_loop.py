"""SOBA, SABA, AmIGO and StocBiO against closed forms, on quadratics of all data and in blocks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from oracles import Quadratic, assert_same
from torch import Tensor

from fewshot_blo.bilevel import Block
from fewshot_blo.errors import ConfigurationError, NotSolvedWarning
from fewshot_blo.heads import LinearHead
from fewshot_blo.hypergrad import SABA, SOBA, AmIGO, Implicit, StocBiO, Strategy, outer_step
from fewshot_blo.hypergrad.implicit import ImplicitState
from fewshot_blo.hypergrad.linear_solve import Neumann
from fewshot_blo.hypergrad.saba import SABAState
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.problems import SharedEncoder
from fewshot_blo.solving.driver import Partial, solve
from fewshot_blo.solving.falling import falling
from fewshot_blo.solving.problem import PlainProblem

ONE = InnerSteps(1, SGD(0.2))
SINGLE: dict[str, Callable[..., Any]] = {
    "SOBA": partial(SOBA, ONE, 0.2),
    "SABA": partial(SABA, ONE, 0.2),
}
ALL: dict[str, Callable[..., Any]] = {
    **SINGLE,
    "AmIGO": partial(AmIGO, InnerSteps(3, SGD(0.2)), 2, 0.2),
    "StocBiO": partial(StocBiO, InnerSteps(3, SGD(0.2)), 20, 0.4),
}


def state_of(strategy: Strategy, v: Tensor, q: Tensor) -> Any:
    """A state of the strategy at v and q."""
    return replace(strategy.init(), inner=Quadratic.cut(v), dual=Quadratic.cut(q))


@pytest.mark.parametrize("make", [*SINGLE.values(), ALL["AmIGO"]], ids=[*SINGLE, "AmIGO"])
def test_at_exact_v_and_q_it_is_the_exact_hypergradient_and_they_stay(
    make: Callable[..., Any],
) -> None:
    quadratic, strategy = Quadratic.random(), make()
    v = quadratic.minimiser()
    q = torch.linalg.solve(quadratic.a, v - quadratic.d)
    step, state = outer_step(strategy, quadratic.bilevel(), state_of(strategy, v, q))
    assert_same(step.gradient, {"u": quadratic.exact()})
    assert_same(state.inner, Quadratic.cut(v))
    assert_same(state.dual, Quadratic.cut(q))
    assert float(state.outer_step) == 1


@pytest.mark.parametrize("make", SINGLE.values(), ids=list(SINGLE))
def test_all_three_directions_are_of_the_old_v_and_q(make: Callable[..., Any]) -> None:
    quadratic, strategy = Quadratic.random(), make(decay=0.5)
    v, q = torch.randn(2, 3, 5, dtype=torch.float64)
    begin = replace(state_of(strategy, v, q), outer_step=torch.tensor(3.0, dtype=torch.float64))
    step, state = outer_step(strategy, quadratic.bilevel(), begin)
    assert_same(step.gradient, {"u": quadratic.hypergradient(v, q)})
    # (3 + 1)^(-1/2) of a step of 0.2.
    slope = quadratic.a @ v[:, :, None] - (quadratic.b @ quadratic.u + quadratic.c)[:, :, None]
    assert_same(state.inner, Quadratic.cut(v - 0.1 * slope[:, :, 0].detach()))
    residual = (quadratic.a @ q[:, :, None])[:, :, 0] - (v - quadratic.d)
    assert_same(state.dual, Quadratic.cut(q - 0.1 * residual))
    assert_same(step.inner, Quadratic.cut(v))
    losses = quadratic.bilevel().outer_loss(Quadratic.cut(v))
    torch.testing.assert_close(step.outer_loss, losses.detach())


def test_amigo_moves_v_and_then_q() -> None:
    quadratic = Quadratic.random()
    strategy = AmIGO(InnerSteps(4, SGD(0.3)), dual_steps=3, dual_step_size=0.2)
    q = torch.randn(3, 5, dtype=torch.float64)
    begin = replace(strategy.init(), dual=Quadratic.cut(q))
    step, state = outer_step(strategy, quadratic.bilevel(), begin)
    v = quadratic.descent(4, 0.3)[0]
    for _ in range(3):
        q = q - 0.2 * ((quadratic.a @ q[:, :, None])[:, :, 0] - (v - quadratic.d))
    assert_same(step.gradient, {"u": quadratic.hypergradient(v, q)})
    assert_same(state.inner, Quadratic.cut(v))
    assert_same(state.dual, Quadratic.cut(q))


def test_of_one_batch_stocbio_is_implicit_by_neumann() -> None:
    quadratic, inner = Quadratic.random(), InnerSteps(4, SGD(0.3))
    step, state = outer_step(StocBiO(inner, 6, 0.2), quadratic.bilevel(), StocBiO().init())
    other, _ = outer_step(Implicit(inner, Neumann(6, 0.2)), quadratic.bilevel(), ImplicitState())
    assert_same(step.gradient, other.gradient)
    assert_same(state.inner, other.inner)


def optimum(quadratic: Quadratic) -> Tensor:
    """u at which the hypergradient, affine in it, is zero."""

    def exact(u: Tensor) -> Tensor:
        return replace(quadratic, u=u).exact()

    origin = exact(torch.zeros(4, dtype=torch.float64))
    slopes = torch.stack([exact(row) - origin for row in torch.eye(4, dtype=torch.float64)], 1)
    solution: Tensor = torch.linalg.solve(slopes, -origin)
    return solution


@pytest.mark.slow
@pytest.mark.parametrize("make", ALL.values(), ids=list(ALL))
def test_with_all_data_it_converges_to_the_solution(make: Callable[..., Any]) -> None:
    quadratic = Quadratic.random(seed=3)
    strategy = make()
    state, solution = strategy.init(), optimum(quadratic)
    for _ in range(500):
        step, state = outer_step(strategy, quadratic.bilevel(), state)
        with torch.no_grad():
            quadratic.u.sub_(0.2 * step.gradient["u"])
    bound = 2e-3 if make is ALL["StocBiO"] else 1e-9  # Its series has an end.
    torch.testing.assert_close(quadratic.u.detach(), solution, rtol=bound, atol=bound)


class Blocks:
    """Means of ``v'A_b v/2 - v'(B_b u + c_b)`` and ``|v - d_b|²/2 + |u|²/10`` over blocks b."""

    def __init__(self, count: int = 6, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        root = normal(count, 3, 3) / 2
        self.a = root @ root.mT + torch.eye(3, dtype=torch.float64)
        self.b, self.c, self.d = normal(count, 3, 2), normal(count, 3), normal(count - 1, 3)
        self.count = count

    def inner_loss(self, v: Any, u: Any, index: int) -> Tensor:
        linear = self.b[index] @ u["u"] + self.c[index]
        loss: Tensor = 0.5 * v["v"] @ self.a[index] @ v["v"] - v["v"] @ linear
        return loss

    def outer_loss(self, v: Any, u: Any, index: int) -> Tensor:
        loss: Tensor = 0.5 * (v["v"] - self.d[index]).square().sum() + 0.1 * u["u"].square().sum()
        return loss

    def problem(self, **settings: Any) -> PlainProblem:
        blocks = {
            "inner_blocks": range(self.count),
            "outer_blocks": range(self.count - 1),
            "seed": 5,
        }
        return PlainProblem(
            {"u": torch.zeros(2, dtype=torch.float64)},
            {"v": torch.zeros(3, dtype=torch.float64)},
            self.inner_loss,
            self.outer_loss,
            **(settings or blocks),
        )

    def solution(self) -> Tensor:
        """u, from the means of all matrices and vectors."""
        a, b, c, d = (x.mean(0) for x in (self.a, self.b, self.c, self.d))
        # v* = A^-1 (B u + c), and 0.2 u + B' A^-1 (v* - d) = 0.
        left = torch.linalg.solve(a, b)
        right = torch.linalg.solve(a, c) - d
        matrix = 0.2 * torch.eye(2, dtype=torch.float64) + left.T @ left
        solution: Tensor = torch.linalg.solve(matrix, -left.T @ right)
        return solution


def error_after(strategy: Strategy, steps: int, rate: float, decay: float = 0.0) -> float:
    blocks = Blocks()
    optimizer = falling(partial(torch.optim.SGD, lr=rate), decay)
    found = solve(blocks.problem(), strategy, optimizer, steps=steps, progress=False)
    return float((found.outer["u"] - blocks.solution()).detach().norm())


@pytest.mark.slow
def test_memories_take_the_noise_away() -> None:
    """With constant steps SABA converges to rounding, and SOBA stays where its noise leaves it."""
    inner = InnerSteps(1, SGD(0.1))
    assert error_after(SABA(inner, 0.1), 1500, 0.1) < 1e-12
    noisy = error_after(SOBA(inner, 0.1), 1500, 0.1)
    falls = error_after(SOBA(InnerSteps(1, SGD(0.3)), 0.3, 0.5), 1500, 0.3, 0.5)
    assert 0.03 < noisy < 0.3
    assert falls < noisy / 4


def test_sampled_steps_of_amigo_come_near_the_solution() -> None:
    strategy = AmIGO(InnerSteps(5, SGD(0.1)), 5, 0.1, 0.5)
    assert error_after(strategy, 300, 0.3, 0.5) < float(Blocks().solution().norm()) / 4


@pytest.mark.parametrize("name", ["AmIGO", "StocBiO"])
def test_every_inner_step_and_product_is_of_a_block_of_its_own(name: str) -> None:
    """Against a loop over the blocks that the losses were asked for."""
    seen: list[int] = []

    class Watched(Blocks):
        def inner_loss(self, v: Any, u: Any, index: int) -> Tensor:
            seen.append(index)
            return super().inner_loss(v, u, index)

    kind: Any = AmIGO if name == "AmIGO" else StocBiO
    blocks, strategy = Watched(count=50), kind(InnerSteps(2, SGD(0.1)), 3, 0.2)
    bilevel = blocks.problem().at(9)
    step = strategy.hypergradient(bilevel, strategy.init())
    steps, after, products = seen[:2], seen[2], seen[3:]
    assert len(seen) == 2 + 1 + 3
    assert len(set(seen)) >= 5  # Of 50 blocks.
    assert bilevel.inner_block == (after, 50)
    assert bilevel.outer_block is not None
    v = torch.zeros(3, dtype=torch.float64)
    for i in steps:
        v = v - 0.1 * (blocks.a[i] @ v - blocks.c[i])
    f_v = v - blocks.d[bilevel.outer_block.number]
    term, q = f_v, torch.zeros_like(v) if name == "AmIGO" else 0.2 * f_v
    for i in products:
        term = term - 0.2 * blocks.a[i] @ term
        q = q - 0.2 * (blocks.a[i] @ q - f_v) if name == "AmIGO" else q + 0.2 * term
    assert_same(step.inner, {"v": v[None]})
    assert_same(step.gradient, {"u": blocks.b[after].T @ q})


def test_saba_remembers_the_last_gradient_of_every_block() -> None:
    """Against a loop that keeps whole tables and takes their means."""
    blocks, strategy = Blocks(count=3), SABA(InnerSteps(1, SGD(0.1)), 0.2)
    problem, state = blocks.problem(), strategy.init()
    v, q, u = torch.zeros(3), torch.zeros(3), torch.zeros(2)
    v, q, u = (x.double() for x in (v, q, u))
    tables = {n: torch.zeros(3, 2 if n == "cross" else 3).double() for n in ("g", "h", "cross")}
    outer = torch.zeros(2, 3).double(), torch.zeros(2, 2).double()
    for number in range(9):
        bilevel = problem.at(number)
        assert bilevel.inner_block is not None
        assert bilevel.outer_block is not None
        i, o = bilevel.inner_block.number, bilevel.outer_block.number
        own = {
            "g": blocks.a[i] @ v - blocks.b[i] @ u - blocks.c[i],
            "h": blocks.a[i] @ q,
            "cross": -blocks.b[i].T @ q,
        }
        reduced = {n: own[n] - tables[n][i] + tables[n].mean(0) for n in own}
        for name in own:
            tables[name][i] = own[name]
        f_v, f_u = v - blocks.d[o], 0.2 * u
        f_v, f_u, seen = (
            f_v - outer[0][o] + outer[0].mean(0),
            f_u - outer[1][o] + outer[1].mean(0),
            (f_v, f_u),
        )
        outer[0][o], outer[1][o] = seen
        step, state = outer_step(strategy, bilevel, state)
        assert_same(step.gradient, {"u": f_u - reduced["cross"]})
        v, q = v - 0.1 * reduced["g"], q - 0.2 * (reduced["h"] - f_v)
        u = u - 0.05 * (f_u - reduced["cross"])
        assert_same(state.inner, {"v": v[None]})
        assert_same(state.dual, {"v": q[None]})
        with torch.no_grad():
            problem.outer["u"].copy_(u)


def test_the_order_of_blocks_is_a_pure_function_in_shuffled_passes() -> None:
    draws = [[Blocks(60).problem().at(n).inner_block for n in range(120)] for _ in range(2)]
    assert draws[0] == draws[1]
    indices = [block.number for block in draws[0] if block is not None]
    assert sorted(indices[:60]) == sorted(indices[60:]) == list(range(60))
    assert indices[:60] != indices[60:]


def test_saba_names_what_it_lacks() -> None:
    batches = {"inner_batches": lambda step, k: 0, "outer_blocks": range(2)}
    with pytest.raises(ConfigurationError, match=r"inner loss are not numbered: give .*inner_blo"):
        outer_step(SABA(), Blocks().problem(**batches).at(0), SABAState())
    batches = {"inner_blocks": range(2), "outer_batches": lambda step: 0}
    with pytest.raises(ConfigurationError, match="outer_blocks in place of outer_batches"):
        outer_step(SABA(), Blocks().problem(**batches).at(0), SABAState())
    several = Quadratic.random().bilevel()
    several = replace(several, inner_block=Block(1, 5))
    with pytest.raises(ConfigurationError, match="one inner problem, and there are 3"):
        outer_step(SABA(), several, SABAState())


def test_blocks_and_batches_exclude_each_other() -> None:
    with pytest.raises(ConfigurationError, match="inner_batches and inner_blocks are both given"):
        Blocks().problem(inner_batches=lambda step, k: 0, inner_blocks=range(2))
    with pytest.raises(ConfigurationError, match="outer_blocks is empty"):
        Blocks().problem(inner_blocks=range(2), outer_blocks=[])


@pytest.mark.parametrize("make", SINGLE.values(), ids=list(SINGLE))
@pytest.mark.parametrize("start", ["cold", Partial(every=1), Partial(keep=0.0)], ids=repr)
def test_a_cold_start_is_refused(make: Callable[..., Any], start: Any) -> None:
    problem = Blocks().problem()
    optimizer = partial(torch.optim.SGD, lr=0.1)
    with pytest.raises(ConfigurationError, match=r"start is cold, .* use start=warm, or AmIGO"):
        solve(problem, make(), optimizer, steps=1, start=start, progress=False)
    solve(problem, AmIGO(), optimizer, steps=1, start=start, progress=False)


def test_the_dual_of_amigo_starts_at_zero_beside_a_cold_start() -> None:
    duals = []

    class Watched(AmIGO):
        def hypergradient(self, problem: Any, state: Any) -> Any:
            step = super().hypergradient(problem, state)
            duals.append(step.next_dual["v"].clone())
            return step

    def problem() -> PlainProblem:
        return PlainProblem(
            {"u": torch.ones(2, dtype=torch.float64)},
            {"v": torch.zeros(2, dtype=torch.float64)},
            lambda v, u: (v["v"] - u["u"]).square().sum(),
            lambda v, u: (v["v"] - 3).square().sum(),
        )

    strategy = Watched(InnerSteps(3, SGD(0.2)), 2, 0.2)
    still = partial(torch.optim.SGD, lr=0.0)
    starts: dict[Any, bool] = {"cold": False, "warm": True, Partial(every=2): True}
    for start, goes_on in starts.items():
        duals.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotSolvedWarning)
            solve(problem(), strategy, still, steps=3, start=start, progress=False)
        assert torch.equal(duals[1], duals[0]) != goes_on
        assert torch.equal(duals[2], duals[0]) == (start != "warm")


@pytest.mark.parametrize("make", ALL.values(), ids=list(ALL))
def test_resumed_runs_take_the_same_steps(make: Callable[..., Any], tmp_path: Any) -> None:
    optimizer = falling(partial(torch.optim.SGD, lr=0.1), 0.5)
    run = partial(solve, strategy=make(decay=0.5), optimizer=optimizer, every=4, progress=False)
    whole = run(Blocks().problem(), steps=9)
    run(Blocks().problem(), steps=4, folder=tmp_path)
    rest = run(Blocks().problem(), steps=9, folder=tmp_path, resume=True)
    assert torch.equal(rest.outer["u"], whole.outer["u"])
    assert torch.equal(rest.inner["v"], whole.inner["v"])


@pytest.mark.parametrize("make", ALL.values(), ids=list(ALL))
def test_new_tasks_forget_what_belongs_to_the_last(make: Callable[..., Any]) -> None:
    strategy = make()
    _, state = outer_step(strategy, Blocks().problem().at(0), strategy.init())
    cold = state.cold()
    assert cold == replace(strategy.init(), outer_step=state.outer_step)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: SOBA(InnerSteps(2)), r"SOBA: inner.steps is 2: .* use AmIGO for several"),
        (lambda: SABA(InnerSteps(0)), "SABA: inner.steps is 0"),
        (lambda: SOBA(decay=-1.0), r"decay is -1.0: .* in \[0, 1\]"),
        (lambda: AmIGO(decay=2.0), "decay is 2.0"),
        (lambda: StocBiO(decay=2.0), "decay is 2.0"),
        (lambda: SABA(decay=2.0), "decay is 2.0"),
        (lambda: AmIGO(dual_steps=-1), "dual_steps is -1"),
        (lambda: SOBA(dual_step_size=-1.0), "dual_step_size is -1.0"),
        (lambda: StocBiO(dual_steps=0), "dual_steps is 0: it must be at least 1"),
        (lambda: falling(torch.optim.SGD, -0.5), "decay is -0.5"),
    ],
)
def test_settings_that_make_no_sense(make: Callable[[], object], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        make()


@pytest.mark.parametrize("make", SINGLE.values(), ids=list(SINGLE))
def test_training_from_cold_starts_is_refused(make: Callable[..., Any]) -> None:
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 4)).double()
    problem = SharedEncoder(encoder, LinearHead(), features=4)
    with pytest.raises(ConfigurationError, match=r"start is cold, and S.BA moves the inner"):
        problem.check_suits(make(), "cold")
    problem.check_suits(make(), "warm")
    problem.check_suits(AmIGO(), "cold")
