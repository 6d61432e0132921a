from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from oracles import make_batch
from small_runs import make_dataset, make_sampler
from torch import Tensor, nn

from fewshot_blo.backbones import Backbone, Preprocessing
from fewshot_blo.backbones.layers import prepared
from fewshot_blo.bilevel import Bilevel, OuterStep
from fewshot_blo.checks.precisions import measure_precisions
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.evaluation.evaluate import evaluate
from fewshot_blo.hypergrad import Implicit, Penalty, Strategy, Unroll
from fewshot_blo.hypergrad.linear_solve import ConjugateGradient, Neumann
from fewshot_blo.hypergrad.unroll import UnrollState
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.kernel.precision import (
    Precision,
    offered_precisions,
    product_flags,
    product_precision,
)
from fewshot_blo.networks import classifier
from fewshot_blo.problems import FewShotProblem, Initialization, SharedEncoder
from fewshot_blo.training import step as chunks
from fewshot_blo.training.step import dropout_keys, hypergradient

STRATEGIES: dict[str, Strategy] = {
    "unroll": Unroll(InnerSteps(3, SGD(0.1))),
    "unroll first order": Unroll(InnerSteps(3, SGD(0.1)), first_order=True),
    "unroll recomputed": Unroll(InnerSteps(3, SGD(0.1)), recompute=True),
    "implicit by cg": Implicit(InnerSteps(3, SGD(0.1)), ConjugateGradient(3, damping=1.0)),
    "implicit by Neumann": Implicit(InnerSteps(3, SGD(0.1)), Neumann(3, 0.1)),
    "penalty": Penalty(InnerSteps(3, SGD(1e-2)), rho=1.0),
}
EPS = torch.finfo(torch.bfloat16).eps
CUDA = torch.device("cuda")


def smooth_encoder() -> nn.Sequential:
    """A network without kinks, at which rounding would be multiplied."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2),
        nn.BatchNorm2d(6),
        nn.Tanh(),
        nn.Conv2d(6, 8, 3, stride=2),
        nn.Tanh(),
        nn.Flatten(),
    )


def make_problem(
    name: str, precision: Precision, backend: Any = "loop", dtype: torch.dtype = torch.float32
) -> FewShotProblem:
    encoder = smooth_encoder().to(dtype)
    if name == "encoder":
        return SharedEncoder(encoder, backend=backend, precision=precision)
    network = classifier(encoder, 72, 3).to(dtype)
    return Initialization(network, prox=0.5, backend=backend, precision=precision)


def outer_step(
    problem: FewShotProblem, strategy: Strategy, norm: Any = "transductive"
) -> OuterStep:
    batch = make_batch().to("cpu", torch.float32)
    keys = dropout_keys(batch, 0, 0)
    return hypergradient(problem, strategy, strategy.init(), batch, norm=norm, keys=keys)


def vector(step: OuterStep) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in step.gradient.values()])


def relative(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).norm() / reference.norm())


@pytest.mark.parametrize("backend", ["loop", "batched"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_bfloat16_of_a_pretrained_network(strategy: str, backend: Any) -> None:
    """Its frozen norms take rounded products too, of all tasks at once."""

    def step(precision: Precision) -> OuterStep:
        backbone = Backbone(prepared(smooth_encoder()), Preprocessing(14, (0.0,), (1.0,)))
        problem = SharedEncoder(backbone, backend=backend, precision=precision)
        return outer_step(problem, STRATEGIES[strategy])

    exact, rounded = step("float32"), step("bfloat16")
    assert 0 < relative(rounded.outer_loss, exact.outer_loss) < 3 * EPS
    assert 0.1 * EPS < relative(vector(rounded), vector(exact)) < 18 * EPS
    assert {p.dtype for p in rounded.gradient.values()} == {torch.float32}


@pytest.mark.parametrize("norm", ["transductive", "support"])
@pytest.mark.parametrize("backend", ["loop", "batched"])
@pytest.mark.parametrize("name", ["encoder", "initialization"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_bfloat16_is_float32_to_its_rounding(
    strategy: str, name: str, backend: Any, norm: Any
) -> None:
    method = STRATEGIES[strategy]
    exact = outer_step(make_problem(name, "float32"), method, norm)
    problem = make_problem(name, "bfloat16", backend)
    step = outer_step(problem, method, norm)
    # Each of three products rounds its operands and its result, forward and backward.
    assert 0.01 * EPS < relative(step.outer_loss, exact.outer_loss) < 3 * EPS
    assert 0.1 * EPS < relative(vector(step), vector(exact)) < 18 * EPS
    tensors = [*step.gradient.values(), *step.inner.values(), *problem.outer.values()]
    assert {p.dtype for p in [*tensors, step.outer_loss, step.inner_loss]} == {torch.float32}


@pytest.mark.parametrize("backend", ["loop", "batched"])
def test_products_are_rounded_and_statistics_are_not(backend: Any) -> None:
    problem = make_problem("initialization", "bfloat16", backend)
    seen: dict[type[nn.Module], set[torch.dtype]] = {}

    def record(module: nn.Module, inputs: Any, output: Tensor) -> None:
        seen.setdefault(type(module), set()).add(output.dtype)

    for module in problem.network.modules():
        module.register_forward_hook(record)
    outer_step(problem, Unroll(InnerSteps(2, SGD())), "support")
    convolution = next(kind for kind in seen if issubclass(kind, nn.Conv2d))
    assert seen[convolution] == {torch.bfloat16}
    assert seen[nn.BatchNorm2d] == {torch.float32}


def test_recomputed_steps_round_alike() -> None:
    stored, recomputed = (
        outer_step(make_problem("initialization", "bfloat16"), STRATEGIES[name])
        for name in ("unroll", "unroll recomputed")
    )
    assert torch.equal(stored.outer_loss, recomputed.outer_loss)
    assert relative(vector(recomputed), vector(stored)) < 1e-6


@pytest.mark.parametrize("name", ["encoder", "initialization"])
def test_reduced_precision_is_of_float32(name: str) -> None:
    for precision in ("bfloat16", "tf32"):
        with pytest.raises(ConfigurationError, match=r"float64: .* use precision 'float32'"):
            make_problem(name, precision, dtype=torch.float64)
    with pytest.raises(ConfigurationError, match=r"on cpu, which has no TF32: use 'float32'"):
        make_problem(name, "tf32")
    with pytest.raises(
        ConfigurationError, match=r"'float16': it must be one of float32, tf32, bfloat16"
    ):
        make_problem(name, "float16")  # type: ignore[arg-type]


@pytest.fixture(params=["by kind", "before 2.9"])
def flags(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """PyTorch's flags with one of them at its default "on", and what they are called."""
    if request.param == "by kind":
        if not hasattr(torch.backends.cudnn, "conv"):
            pytest.skip("this PyTorch has the flags before 2.9 only")
        cudnn: Any = torch.backends.cudnn
        modules = [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]
        name: str = "fp32_precision"
        on: str | bool = "tf32"
        off: str | bool = "ieee"
    else:
        modules = [SimpleNamespace(allow_tf32=False), SimpleNamespace(allow_tf32=True)]
        monkeypatch.setattr(torch.backends.cuda, "matmul", modules[0])
        monkeypatch.setattr(torch.backends, "cudnn", modules[1])
        name, on, off = "allow_tf32", True, False
    return lambda: tuple(getattr(module, name) for module in modules), on, off


def test_flags_are_those_of_the_precision_and_then_as_before(flags: Any) -> None:
    read, on, off = flags
    before = read()
    assert set(before[1:]) == {on}
    for precision, expected in (("tf32", on), ("float32", off), ("bfloat16", off)):
        with product_precision(precision, CUDA):  # type: ignore[arg-type]
            assert read() == product_flags() == (expected,) * len(before)
        assert read() == before
    with pytest.raises(KeyboardInterrupt), product_precision("tf32", CUDA):
        raise KeyboardInterrupt
    assert read() == before
    with product_precision("float32", torch.device("cpu")):
        assert read() == before


def test_a_step_is_wholly_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    inside: list[Precision] = []
    seen: list[list[Precision]] = []

    @contextmanager
    def spy(precision: Precision, device: torch.device) -> Iterator[None]:
        inside.append(precision)
        yield
        inside.clear()

    class Seen(Unroll):
        def hypergradient(self, problem: Bilevel, state: UnrollState) -> OuterStep:
            seen.append(list(inside))
            return super().hypergradient(problem, state)

    monkeypatch.setattr(chunks, "product_precision", spy)
    problem = make_problem("encoder", "bfloat16")
    # The encoder's gradient comes last.
    next(iter(problem.outer.values())).register_hook(lambda g: seen.append(list(inside)))
    outer_step(problem, Seen(InnerSteps(2, SGD())))
    assert seen == [["bfloat16"], ["bfloat16"]]
    assert not inside


@pytest.mark.parametrize("strategy", ["unroll", "penalty"])
def test_errors_against_float64(strategy: str) -> None:
    def make(dtype: str, precision: Precision) -> FewShotProblem:
        torch.manual_seed(0)
        tensor_type = torch.float64 if dtype == "float64" else torch.float32
        return make_problem("initialization", precision, "loop", tensor_type)

    single, half = measure_precisions(make, STRATEGIES[strategy], make_batch())
    assert (single.precision, half.precision) == ("float32", "bfloat16")
    eps = torch.finfo(torch.float32).eps
    assert 0 < single.loss < 3 * eps
    assert 0 < single.hypergradient < 18 * eps
    assert 0.1 * EPS < half.hypergradient < 18 * EPS
    assert min(half.seconds, half.float64_seconds) > 0


@pytest.mark.parametrize("name", ["encoder", "initialization"])
def test_evaluation_says_its_precision(name: str) -> None:
    tasks = make_sampler(make_dataset(images=4))
    single, half = (
        evaluate(make_problem(name, precision), tasks, tasks=8, adaptation=InnerSteps(2, SGD(0.1)))
        for precision in ("float32", "bfloat16")
    )
    assert single.protocol.endswith("2 inner steps")
    assert half.protocol == f"{single.protocol}, bfloat16"
    assert abs(single.mean - half.mean) < 0.1


@pytest.mark.gpu
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_precisions_on_a_gpu(strategy: str) -> None:
    def make(dtype: str, precision: Precision) -> FewShotProblem:
        network = classifier(smooth_encoder(), 72, 3)
        network = network.to("cuda", torch.float64 if dtype == "float64" else torch.float32)
        return Initialization(network, prox=0.5, backend="batched", precision=precision)

    eps = {"float32": 2.0**-23, "tf32": 2.0**-10, "bfloat16": EPS}
    for error in measure_precisions(make, STRATEGIES[strategy], make_batch().to("cuda")):
        assert error.hypergradient < 30 * eps[error.precision]


@pytest.mark.gpu
def test_tf32_is_on_where_it_is_asked_for() -> None:
    factor = torch.randn(512, 512, device="cuda")
    if "tf32" not in offered_precisions(factor):
        pytest.skip("this GPU has no TF32")
    products = {}
    for precision in ("float32", "tf32"):
        with product_precision(precision, CUDA):
            products[precision] = factor @ factor
    assert 1e-5 < relative(products["tf32"], products["float32"]) < 1e-2
