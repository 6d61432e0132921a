"""A step asks the device for no value, which would empty a GPU's queue and end a recording."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from host_reads import META, HostReads
from oracles import make_batch, make_ragged_batch
from torch import Tensor, nn

from fewshot_blo import heads, hypergrad
from fewshot_blo.evaluation.evaluate import adapted
from fewshot_blo.heads import (
    AlphaTIMHead,
    AnchoredLinearHead,
    AnchoredRidgeHead,
    BalancedHead,
    BDCSPNHead,
    CosineHead,
    FullContextHead,
    Head,
    LabelPropagationHead,
    LaplacianShotHead,
    LinearHead,
    LinearRegressionHead,
    MatchingHead,
    MaxMarginHead,
    PTMAPHead,
    RelationHead,
    RidgeHead,
    RidgeRegressionHead,
    SoftKMeansHead,
    TailHead,
    TIMHead,
)
from fewshot_blo.hypergrad import (
    BOME,
    SABA,
    SOBA,
    AmIGO,
    FiniteDifference,
    Implicit,
    MoreauEnvelope,
    Penalty,
    Reptile,
    StocBiO,
    Strategy,
    Unroll,
    ValueFunction,
)
from fewshot_blo.hypergrad.linear_solve import MINRES, ConjugateGradient, Neumann, Nystrom, OneStep
from fewshot_blo.hypergrad.penalty import PenaltyState
from fewshot_blo.kernel import SGD, Adam, InnerSteps, LearnedSGD
from fewshot_blo.networks import classifier
from fewshot_blo.objectives import MeanSquaredError
from fewshot_blo.problems import FewShotProblem, Initialization, Pretraining, SharedEncoder
from fewshot_blo.tasks import TaskBatch
from fewshot_blo.training.run import Run
from fewshot_blo.training.settings import TrainSettings

STRATEGIES: dict[str, Strategy] = {
    "unroll": Unroll(InnerSteps(2, SGD(0.1))),
    "unroll first order": Unroll(InnerSteps(2, SGD(0.1)), first_order=True),
    "unroll truncated": Unroll(InnerSteps(3, SGD(0.1)), truncate=1),
    "unroll recomputed": Unroll(InnerSteps(3, Adam(1e-2, eps=1e-3)), recompute=True),
    "unroll multi-step": Unroll(InnerSteps(2, SGD(0.1)), multi_step=10),
    "implicit by cg": Implicit(InnerSteps(2, SGD(0.1)), ConjugateGradient(3, damping=1.0)),
    "implicit by Neumann": Implicit(InnerSteps(2, SGD(0.1)), Neumann(3, 0.1)),
    "implicit by one step": Implicit(InnerSteps(2, SGD(0.1)), OneStep()),
    "implicit by MINRES": Implicit(InnerSteps(2, SGD(0.1)), MINRES(3)),
    "implicit by Nyström": Implicit(InnerSteps(2, SGD(0.1)), Nystrom(3)),
    "penalty": Penalty(InnerSteps(2, Adam(1e-2))),
    "value function": ValueFunction(InnerSteps(2, SGD(0.1)), 2, lam_growth=1.0),
    "bome": BOME(InnerSteps(2), 2),
    "finite differences": FiniteDifference(InnerSteps(2, SGD(0.1)), ConjugateGradient(3)),
    "moreau envelope": MoreauEnvelope(),
    "soba": SOBA(decay=0.5),
    "saba": SABA(decay=0.5),
    "amigo": AmIGO(InnerSteps(2), 2),
    "stocbio": StocBiO(InnerSteps(2), 2),
    "reptile": Reptile(InnerSteps(2)),
}
HEADS: dict[str, Callable[[], Head]] = {
    "linear": LinearHead,
    "cosine": CosineHead,
    "ridge": RidgeHead,
    "balanced": BalancedHead,
    "max margin": lambda: MaxMarginHead(iterations=3),
    "propagation": LabelPropagationHead,
    "soft k-means": SoftKMeansHead,
    "PT-MAP": lambda: PTMAPHead(steps=0),
    "TIM": lambda: TIMHead(steps=2),
    "TIM, cosine": lambda: TIMHead(steps=2, distance="cosine"),
    "alpha-TIM": lambda: AlphaTIMHead(steps=2),
    "BD-CSPN": BDCSPNHead,
    "LaplacianShot": LaplacianShotHead,
    "anchored linear": lambda: AnchoredLinearHead(torch.ones(9, 64)),
    "anchored ridge": lambda: AnchoredRidgeHead(torch.ones(9, 64)),
    "linear regression": LinearRegressionHead,
    "ridge regression": RidgeRegressionHead,
    "matching": MatchingHead,
    "full context": lambda: FullContextHead(steps=2),
    "relation": lambda: RelationHead(channels=4),
    "tail": lambda: TailHead(nn.Linear(64, 8).to(META), ["weight"], features=8, backend="batched"),
}
# What training reads beside, after the step: whether the run has diverged, once each. The log
# reads its figures at every ``log_every``-th step, and a validation its accuracies.
ALLOWED = ["bilevel.py: check_finite"]


@pytest.fixture(autouse=True)
def meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch has no autocast for the device."""
    known = torch.is_autocast_enabled

    def is_enabled(*device: str) -> bool:
        return device != ("meta",) and known(*device)

    monkeypatch.setattr(torch, "is_autocast_enabled", is_enabled)


def encoder() -> nn.Sequential:
    """Features ``[B, 64]`` of images, with batch norm, dropout and pooling."""
    block = (nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*block, nn.Dropout(0.3), nn.Flatten())


def initialization(**settings: Any) -> FewShotProblem:
    network = classifier(encoder(), 64, 3).double().to(META)
    return Initialization(network, prox=0.5, backend="batched", **settings)


def shared_encoder(head: Head = LinearHead(), **settings: Any) -> FewShotProblem:
    settings = {"backend": "loop", **settings}
    return SharedEncoder(encoder().double().to(META), head, features=64, **settings)


def make_run(problem: FewShotProblem, strategy: Strategy, tmp_path: Any, **settings: Any) -> Run:
    run = Run(problem, strategy, TrainSettings(steps=9, ema=0.9, **settings), tmp_path, {})
    run.chunk.size = 3
    return run


def reads_of_steps(run: Run, batch: TaskBatch, steps: int = 2) -> list[str]:
    """Of hypergradients in chunks, the optimizer, the average and the strategy's state."""
    batch = batch.to(META)
    with HostReads() as reads:
        for _ in range(steps):
            run.update(run.hypergradient(batch))
    found: list[str] = reads.places
    return found


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("norm", "ragged"), [("transductive", True), ("support", False)])
@pytest.mark.parametrize("make", [initialization, shared_encoder])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_strategy_reads_on_the_host(
    strategy: str, make: Callable[[], FewShotProblem], norm: Any, ragged: bool, tmp_path: Any
) -> None:
    if strategy == "reptile" and make is shared_encoder:
        pytest.skip("Reptile is of initializations alone")
    batch = make_ragged_batch() if ragged else make_batch()
    method = STRATEGIES[strategy]
    start = "warm" if method.needs_warm_start else "cold"
    run = make_run(make(), method, tmp_path, norm=norm, start=start)
    assert reads_of_steps(run, batch) == []


def of_numbers(batch: TaskBatch) -> TaskBatch:
    """The tasks with numbers as targets in place of labels."""
    support_y, query_y = (y.double().unsqueeze(2) for y in (batch.support_y, batch.query_y))
    rows = {"support_rows": batch.support_rows, "query_rows": batch.query_rows}
    return TaskBatch(batch.support_x, support_y, batch.query_x, query_y, **rows)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_no_head_reads_on_the_host(head: str, ragged: bool, tmp_path: Any) -> None:
    batch, made = make_ragged_batch() if ragged else make_batch(), HEADS[head]()
    problem = shared_encoder(made)
    if not made.needs_classes:
        batch, problem = of_numbers(batch), shared_encoder(made, loss=MeanSquaredError())
    run = make_run(problem, Unroll(InnerSteps(2, SGD(0.1))), tmp_path)
    assert reads_of_steps(run, batch) == []
    with HostReads() as reads:
        adapted(problem, batch.to(META), "support", InnerSteps(2, SGD(0.1)))()
    assert reads.places == []


PROBLEMS: dict[str, Callable[[], FewShotProblem]] = {
    "prototypes": lambda: initialization(start="prototypes"),
    "learned start": lambda: shared_encoder(start="learned", way=3, learn_prox=True),
    "slices": lambda: SharedEncoder(
        nn.Sequential(nn.Conv2d(1, 4, 3, stride=4), nn.Flatten()).double().to(META),
        slices=4,
        backend="batched",
    ),
    "views": lambda: shared_encoder().with_views("mirrored"),
    "pretraining": lambda: Pretraining(
        encoder().double().to(META), classes=9, features=64, backend="loop"
    ),
}


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_no_problem_reads_on_the_host(problem: str, ragged: bool, tmp_path: Any) -> None:
    run = make_run(PROBLEMS[problem](), Unroll(InnerSteps(2, SGD(0.1))), tmp_path)
    assert reads_of_steps(run, make_ragged_batch() if ragged else make_batch()) == []


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_learned_steps_and_optimizers(optimizer: Any, tmp_path: Any) -> None:
    problem = initialization(step_size=0.1, own_steps=2)
    strategy = Unroll(InnerSteps(2, LearnedSGD(per_step=True)))
    run = make_run(problem, strategy, tmp_path, optimizer=optimizer, start="cold")
    assert reads_of_steps(run, make_batch()) == []


def test_a_warm_start_in_chunks(tmp_path: Any) -> None:
    run = make_run(shared_encoder(), Penalty(InnerSteps(2, Adam(1e-2))), tmp_path, start="warm")
    run.chunk.size = 2
    assert reads_of_steps(run, make_ragged_batch(), steps=3) == []
    assert isinstance(run.state, PenaltyState)
    assert run.state.multipliers


def test_a_run_reads_once_whether_it_has_diverged(tmp_path: Any) -> None:
    run = make_run(initialization(), Unroll(InnerSteps(2, SGD(0.1))), tmp_path)
    step = run.hypergradient(make_batch().to(META))
    with HostReads() as reads:
        run.check_finite(step)
    assert reads.places == ALLOWED


def test_every_strategy_and_head_is_here() -> None:
    assert {type(s) for s in STRATEGIES.values()} == set(hypergrad.STRATEGIES)
    known = {name for name in heads.__all__ if name.endswith("Head")} - {"Head"}
    assert {type(make()).__name__ for make in HEADS.values()} == known


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: float(x[0]),
        lambda x: bool((x > 0).all()),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: torch.zeros(3).copy_(x),
        lambda x: torch.equal(x, x),
        lambda x: torch.linalg.solve(x.diag(), x),
        lambda x: torch.linalg.cholesky(x.diag()),
    ],
)
def test_reads_are_counted(read: Callable[[Tensor], object]) -> None:
    with HostReads() as reads:
        read(torch.ones(3, device=META))
    assert reads.places == ["test_host_reads.py: <lambda>"]


def test_shapes_that_depend_on_values_are_errors() -> None:
    x = torch.ones(3, device=META)
    for read in (lambda: x[x > 0], lambda: x.nonzero(), lambda: x.unique()):
        with pytest.raises((RuntimeError, NotImplementedError)), HostReads():
            read()
