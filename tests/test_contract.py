"""Every strategy, on every problem, norm layer and backend, equals a plain loop over tasks."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from every_strategy import STRATEGIES
from oracles import (
    PLAIN_HEADS,
    assert_same,
    itself,
    make_batch,
    make_ragged_batch,
    plain_initialization,
    plain_mean,
    plain_network,
    plain_shared_encoder,
    single_tasks,
)
from torch import Tensor, nn

from fewshot_blo import heads
from fewshot_blo.bilevel import Bilevel, OuterStep, Params, combine
from fewshot_blo.errors import StructuralZeroError
from fewshot_blo.heads import (
    AlphaTIMHead,
    CosineHead,
    FullContextHead,
    Head,
    LabelPropagationHead,
    LinearHead,
    MatchingHead,
    RelationHead,
    RidgeHead,
    TailHead,
    TIMHead,
)
from fewshot_blo.heads.head import Start, SupportSetHead
from fewshot_blo.hypergrad import (
    Strategy,
)
from fewshot_blo.hypergrad.strategy import Sees
from fewshot_blo.kernel import (
    Backend,
    LearnedSGD,
    StepwiseBatchNorm,
)
from fewshot_blo.kernel.outer_variables import OuterVariables
from fewshot_blo.networks import Conv4, Norm, classifier
from fewshot_blo.networks.conv4 import Downsampling
from fewshot_blo.problems import FewShotProblem, Initialization, NormMode, SharedEncoder
from fewshot_blo.tasks import TaskBatch

PROBLEMS: tuple[str, ...] = (
    "initialization",
    "initialization, prox",
    "initialization, learned steps",
    "initialization, head only, prox",
    "initialization, prototypes",
    "initialization, prototypes, prox",
    "initialization, strides",
    "encoder, prototypes",
    "encoder, zeros, learned prox",
    "encoder, learned cosine",
    "encoder, ridge, closed_form",
    "encoder, ridge, zeros",
    "encoder, matching, closed_form",
    "encoder, full_context, closed_form",
    "encoder, relation, closed_form",
    "encoder, propagation, closed_form",
    "encoder, tail, prototypes",
    "encoder, tail, prototypes, prox",
    "encoder, alpha_tim, closed_form",
    "encoder, tim, closed_form",
    "encoder, unit, prototypes",
)


def make_tail() -> TailHead:
    """Layers that adapt between layers that do not."""
    torch.manual_seed(0)
    layers = [nn.Linear(8, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 4), nn.LayerNorm(4)]
    tail, adapted = nn.Sequential(*layers).double(), ("1.weight", "3.weight", "3.bias")
    return TailHead(tail, adapted, features=4, backend="batched")


HEADS: dict[str, Head] = {
    "linear": LinearHead(),
    "cosine": CosineHead(),
    "ridge": RidgeHead(lam=0.3),
    "matching": MatchingHead(),
    "full_context": FullContextHead(steps=2),
    "relation": RelationHead(channels=2, hidden=5, units=3),
    "propagation": LabelPropagationHead(neighbours=4),
    "alpha_tim": AlphaTIMHead(steps=3, step_size=1e-2),
    "tim": TIMHead(steps=3, step_size=1e-2),
    "tail": make_tail(),
}
# The same for heads, from their usual start.
_KNOWN_HEADS = {type(head) for head in HEADS.values()}
for kind in heads.HEADS:
    if kind not in _KNOWN_HEADS and kind.needs_classes:  # Others: test_contract_any_task.py.
        HEADS[kind.__name__] = kind()
        PROBLEMS += (f"encoder, {kind.__name__}, {kind.starts[0]}",)
SOLVED = (
    "encoder, matching",
    "encoder, full_context",
    "encoder, relation",
    "encoder, propagation",
    "encoder, alpha_tim",
    "encoder, tim",
    *(f"encoder, {kind.__name__}" for kind in heads.HEADS if issubclass(kind, SupportSetHead)),
)
"""Problems with nothing to adapt."""
AT_THE_SOLUTION = ("unroll recomputed", "encoder, ridge, closed_form")
"""Its gradients are rounding and nothing else there, and Adam divides them by their own size."""

NORMS: tuple[Norm, ...] = ("batch", "stepwise", "group", "layer", "instance", "none")
ENCODERS_WITH_EVERY_NORM = ("encoder, prototypes", "encoder, tail, prototypes")
"""Norms of an encoder are outside of the inner problem: the heads differ in nothing there."""
BACKENDS: tuple[Backend, ...] = ("batched", "loop")
NORM_MODES: tuple[NormMode, ...] = ("transductive", "support")

Plain = Callable[[TaskBatch, NormMode], Bilevel]


def make_problem(name: str, norm: Norm) -> tuple[FewShotProblem, Plain]:
    """A problem of the table, and the same problem for one task by plain calls."""
    torch.manual_seed(0)
    halves: Downsampling = "stride" if "strides" in name else "pool"
    encoder = Conv4(hidden=8, norm=norm, steps=2, downsampling=halves)
    _tell_steps_apart(encoder)
    if name.startswith("initialization"):
        initial = Initialization(
            classifier(encoder, 8, 3).double(),
            prox=0.5 if "prox" in name else 0.0,
            step_size=0.1 if "learned steps" in name else None,
            adapted="head." if "head only" in name else "",
            start="prototypes" if "prototypes" in name else "learned",
        )
        plain = plain_network(initial.network)
        return initial, lambda task, mode: plain_initialization(
            plain,
            initial.outer,
            task,
            mode,
            prox=initial.prox,
            adapted=initial.adapted,
            prototypes="prototypes" in name,
        )
    kind = next((head for head in HEADS if head in name), "linear")
    starts: tuple[Start, ...] = ("zeros", "prototypes", "closed_form")
    shared = SharedEncoder(
        encoder.double(),
        HEADS[kind],
        prox=0.5 if "prox" in name else None,
        start=next((start for start in starts if start in name), "learned"),
        learn_prox="learned prox" in name,
        unit="unit" in name,
        way=3,
        features=8,
    )
    plain = plain_network(shared.network)
    return shared, lambda task, mode: plain_shared_encoder(
        plain,
        shared.outer,
        task,
        mode,
        prox=shared.prox,
        start=shared.start,
        head=PLAIN_HEADS.get(kind) or itself(HEADS[kind]),
        unit=shared.unit,
    )


def _tell_steps_apart(encoder: Conv4) -> None:
    """Gives each inner step of a stepwise norm other values."""
    for module in encoder.modules():
        if isinstance(module, StepwiseBatchNorm):
            for p in module.parameters():
                p.data += 0.1 * torch.randn_like(p)


def chunked(
    problem: FewShotProblem, strategy: Strategy, batch: TaskBatch, mode: NormMode, size: int
) -> OuterStep:
    """The outer step of a batch in chunks, with gradients of the problem's outer variables."""
    steps = []
    for chunk in batch.chunks(size):
        bound = problem.bind(chunk, mode)
        step = strategy.hypergradient(bound.bilevel, strategy.init())
        steps.append(dataclasses.replace(step, gradient=bound.pullback(step.gradient)))
    return combine(steps)


@cache
def places(problem: str) -> dict[str, set[Sees]]:
    """Where each outer variable of a problem is, as autograd finds it."""
    few_shot, _ = make_problem(problem, "batch")
    few_shot.backend = "loop"
    bilevel = few_shot.bind(make_batch(), "transductive").bilevel
    v = {name: p.detach().requires_grad_() for name, p in bilevel.inner_init.items()}
    scalars = {
        "start": sum((p.sum() for p in bilevel.inner_init.values()), torch.zeros(())),
        "inner": bilevel.inner_loss(v).sum(),
        "outer": bilevel.outer_loss(v).sum(),
    }
    sizes = OuterVariables(step_sizes=OuterVariables.grouped(bilevel.outer).step_sizes)
    found: dict[str, set[Sees]] = {
        name: {"rule"} if name in sizes else set() for name in bilevel.outer
    }
    for place, scalar in scalars.items():
        if not scalar.requires_grad:
            continue
        leaves = list(bilevel.outer.values())
        gradients = torch.autograd.grad(scalar, leaves, allow_unused=True, retain_graph=True)
        for name, gradient in zip(bilevel.outer, gradients, strict=True):
            if gradient is not None:
                found[name].add(place)  # type: ignore[arg-type]
    return found


def undefined(strategy: str, problem: str) -> bool:
    """Whether an outer variable of the problem is a structural zero for the strategy."""
    sees = set(fit(STRATEGIES[strategy], problem).sees)
    return not all(sees & own for own in places(problem).values())


def cases(*, defined: bool = True) -> list[tuple[str, str]]:
    """Strategies with the problems on which they are defined, or are not."""
    pairs = itertools.product(STRATEGIES, PROBLEMS)
    return [
        (strategy, problem)
        for strategy, problem in pairs
        if undefined(strategy, problem) != defined
        and (strategy == "unroll, no step" or not problem.startswith(SOLVED))
        and (strategy, problem) != AT_THE_SOLUTION
    ]


def fit(strategy: Strategy, problem: str) -> Strategy:
    """The strategy with the rule that the problem asks for."""
    if "learned steps" in problem:
        inner = dataclasses.replace(strategy.inner, rule=LearnedSGD())
        return dataclasses.replace(strategy, inner=inner)  # type: ignore[type-var]
    return strategy


def expected(
    strategy: Strategy, plain: Plain, batch: TaskBatch, mode: NormMode
) -> tuple[Tensor, Params]:
    """What single tasks give, one after another."""
    return plain_mean(strategy, [plain(task, mode) for task in single_tasks(batch)])


def meets_norms(problem: str) -> bool:
    """Whether norms are in its inner problem, or it stands for those where they are not."""
    if "strides" in problem:  # Norms do not meet them.
        return False
    return problem.startswith("initialization") or problem in ENCODERS_WITH_EVERY_NORM


def cases_with_norms() -> list[tuple[str, str, Norm]]:
    """All cases with batch norm, and with every norm those where norms meet something new."""
    return [
        (strategy, problem, norm)
        for (strategy, problem), norm in itertools.product(cases(), NORMS)
        if norm == "batch" or meets_norms(problem)
    ]


def cases_with_modes() -> list[tuple[str, str, NormMode]]:
    """All cases in one mode, and in both those where norms meet something new."""
    return [
        (strategy, problem, mode)
        for (strategy, problem), mode in itertools.product(cases(), NORM_MODES)
        if mode == "support" or meets_norms(problem)
    ]


def in_turn(cases: Sequence[tuple[Any, ...]], *, always: int) -> list[Any]:
    """Cases, slow but for the first ``always`` and one further of each strategy and problem."""
    marked = []
    for place, (_, group) in enumerate(itertools.groupby(cases, key=lambda case: case[:2])):
        own = list(group)
        further = own[always:]
        often = {*own[:always], *further[place % max(1, len(further)) :][:1]}
        marked += [pytest.param(*c, marks=() if c in often else pytest.mark.slow) for c in own]
    return marked


@pytest.mark.parametrize(("strategy", "problem", "norm"), in_turn(cases_with_norms(), always=1))
def test_equals_plain_loop(strategy: str, problem: str, norm: Norm) -> None:
    few_shot, plain = make_problem(problem, norm)
    method, batch = fit(STRATEGIES[strategy], problem), make_batch()
    losses, gradient = expected(method, plain, batch, "transductive")
    for backend in BACKENDS:
        few_shot.backend = backend
        step = chunked(few_shot, method, batch, "transductive", size=3)
        assert_same({"F": step.outer_loss}, {"F": losses})
        assert_same(step.gradient, gradient)


@pytest.mark.parametrize(("strategy", "problem", "mode"), in_turn(cases_with_modes(), always=0))
def test_padding_and_chunks_change_nothing(strategy: str, problem: str, mode: NormMode) -> None:
    few_shot, plain = make_problem(problem, "batch")
    method, batch = fit(STRATEGIES[strategy], problem), make_ragged_batch()
    losses, gradient = expected(method, plain, batch, mode)
    for backend, size in (("batched", 3), ("batched", 2), ("loop", 1)):
        few_shot.backend = backend  # type: ignore[assignment]
        step = chunked(few_shot, method, batch, mode, size)
        assert_same({"F": step.outer_loss}, {"F": losses})
        assert_same(step.gradient, gradient)


@pytest.mark.parametrize(("strategy", "problem"), cases(defined=False))
def test_structural_zero_raises(strategy: str, problem: str) -> None:
    few_shot, _ = make_problem(problem, "batch")
    few_shot.backend = "loop"
    method = fit(STRATEGIES[strategy], problem)
    with pytest.raises(StructuralZeroError, match=r"outer variable '.+' .* identically zero: .+"):
        chunked(few_shot, method, make_batch(), "transductive", size=3)


@pytest.fixture
def any_algorithm() -> Iterator[None]:
    """Max-pooling has no deterministic backward pass on a CUDA device."""
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(True)


@pytest.mark.gpu
@pytest.mark.usefixtures("any_algorithm")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible to PyTorch")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("strategy", "problem"), cases())
def test_device_equals_host(strategy: str, problem: str, norm: Norm) -> None:
    method, batch = fit(STRATEGIES[strategy], problem), make_ragged_batch()
    few_shot, _ = make_problem(problem, norm)
    few_shot.backend = "loop"
    on_host = chunked(few_shot, method, batch, "support", size=3)
    for p in few_shot.outer.values():
        p.data = p.data.cuda()
    few_shot.network.cuda()
    for backend in BACKENDS:
        few_shot.backend = backend
        step = chunked(few_shot, method, batch.to("cuda"), "support", size=2)
        assert_same({n: p.cpu() for n, p in step.gradient.items()}, on_host.gradient)
