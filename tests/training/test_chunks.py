from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from oracles import assert_same, make_batch
from small_runs import STRATEGIES
from torch import Tensor, nn

from fewshot_blo.bilevel import Bilevel, OuterStep
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad import State, Unroll, unroll
from fewshot_blo.hypergrad.unroll import UnrollState
from fewshot_blo.kernel import SGD, InnerSteps, adapt
from fewshot_blo.kernel.layers import fold
from fewshot_blo.machine.chunk import Chunk
from fewshot_blo.networks import Conv4, classifier
from fewshot_blo.problems import FewShotProblem, Initialization, SharedEncoder
from fewshot_blo.training.step import dropout_keys, hypergradient

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
        assert advanced.schedules == expected.schedules


def test_dropout_masks_are_of_the_task_and_not_of_its_chunk() -> None:
    problem, batch = make_problem("penalty", "loop"), make_batch(TASKS)
    method, keys = STRATEGIES["penalty"], dropout_keys(batch, 0, 0)

    def masks(chunk: int) -> Tensor:
        seen: list[Tensor] = []
        layer = next(m for m in problem.network.modules() if isinstance(m, nn.Dropout))
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


def test_no_dropout_key_is_zero() -> None:
    """Folding 0 into the key 0 gives 0 again, and its first number is 0: always dropped."""
    assert fold(torch.tensor(0), 0) == 0
    for seed in range(3):
        assert dropout_keys(make_batch(4), seed, 0).all()


@dataclass(frozen=True)
class SmallMemory(Unroll):
    """Unrolling that runs out of memory where there are more than ``fitting`` tasks."""

    fitting: int = 2
    error: Exception = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
    sizes: list[int] = field(default_factory=list)

    def hypergradient(self, problem: Bilevel, state: UnrollState) -> OuterStep:
        self.sizes.append(problem.tasks)
        if problem.tasks > self.fitting:
            raise self.error
        return super().hypergradient(problem, state)


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nA long story."),
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate "
            "memory: you tried to allocate 16384000000 bytes. Error code 12"
        ),
    ],
    ids=["device", "host, Python", "host, torch"],
)
def test_out_of_memory_makes_the_chunks_smaller_for_good(error: Exception) -> None:
    problem, batch = make_problem("unroll", "loop"), make_batch(7)
    keys = dropout_keys(batch, 0, 0)
    method, chunk = (
        SmallMemory(InnerSteps(2, SGD()), fitting=2, error=error),
        Chunk(7, "train.chunk"),
    )
    whole = hypergradient(problem, Unroll(InnerSteps(2, SGD())), method.init(), batch, keys=keys)
    with pytest.warns(UserWarning, match="ran out of memory") as warnings:
        step = hypergradient(problem, method, method.init(), batch, chunk=chunk, keys=keys)
    assert [str(w.message) for w in warnings] == [
        "cpu ran out of memory with 7 tasks at a time: continuing with 4 (set train.chunk to 4 to "
        "start that way)",
        "cpu ran out of memory with 4 tasks at a time: continuing with 2 (set train.chunk to 2 to "
        "start that way)",
    ]
    assert method.sizes == [7, 4, 2, 2, 2, 1]
    assert_same(step.gradient, whole.gradient)
    assert_same({"F": step.outer_loss}, {"F": whole.outer_loss})
    # Silent from now on: a warning would be an error.
    hypergradient(problem, method, method.init(), batch, chunk=chunk, keys=keys)
    assert method.sizes[6:] == [2, 2, 2, 1]


def test_chunks_that_fitted_are_not_computed_again() -> None:
    parts: list[tuple[int, int]] = []

    def compute(part: slice) -> int:
        parts.append((part.start, part.stop))
        if part == slice(3, 6):
            raise MemoryError
        found: int = part.stop - part.start
        return found

    chunk = Chunk(3)
    with pytest.warns(UserWarning, match="continuing with 2"):
        assert chunk.run(compute, 7, torch.device("cpu")) == [3, 2, 2]
    assert parts == [(0, 3), (3, 6), (3, 5), (5, 7)]


def test_what_the_failed_chunk_held_is_free_before_the_next_try() -> None:
    alive: list[weakref.ref[Tensor]] = []

    def compute(part: slice) -> None:
        assert all(reference() is None for reference in alive)
        tensor = torch.zeros(4)
        alive.append(weakref.ref(tensor))
        if part.stop - part.start > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    gc.disable()  # It is not by chance that the garbage collector comes by.
    try:
        with pytest.warns(UserWarning, match="ran out of memory"):
            Chunk(4).run(compute, 4, torch.device("cpu"))
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("recompute", "warned"),
    [(None, ["continuing with 1 ", "graphs are recomputed from now on"]), (True, ["with 1 "])],
)
def test_a_task_that_does_not_fit(recompute: bool | None, warned: list[str]) -> None:
    problem, batch = make_problem("unroll", "loop"), make_batch(2)
    method = SmallMemory(InnerSteps(2, SGD()), fitting=0, recompute=recompute)
    with (
        pytest.warns(UserWarning, match="out of memory") as warnings,
        pytest.raises(
            ConfigurationError,
            match=r"one task .* memory of cpu: CUDA out of memory\..*peak .* GiB, free now .* GiB"
            r".*recompute.*fewer inner steps.*first_order.*smaller images",
        ),
    ):
        hypergradient(problem, method, method.init(), batch)
    for warning, words in zip(warnings, warned, strict=True):
        assert words in str(warning.message)


@dataclass(frozen=True)
class NoRoomForGraphs(Unroll):
    """Unrolling that runs out of memory unless graphs are recomputed."""

    def hypergradient(self, problem: Bilevel, state: UnrollState) -> OuterStep:
        if not self.with_recompute(None).recompute:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().hypergradient(problem, state)


@pytest.mark.slow
def test_graphs_are_recomputed_where_one_task_with_kept_ones_does_not_fit() -> None:
    problem, batch = make_problem("unroll", "loop"), make_batch(3)
    keys = dropout_keys(batch, 0, 0)
    method, chunk = NoRoomForGraphs(InnerSteps(2, SGD())), Chunk(1, recompute=False)
    whole = hypergradient(problem, Unroll(InnerSteps(2, SGD())), method.init(), batch, keys=keys)
    with pytest.warns(UserWarning, match="ran out of memory") as warnings:
        step = hypergradient(problem, method, method.init(), batch, chunk=chunk, keys=keys)
    assert [str(w.message) for w in warnings] == [
        "cpu ran out of memory with one task and the graphs of all its inner steps: graphs are "
        "recomputed from now on (set recompute to start that way)"
    ]
    assert chunk.recompute
    assert_same(step.gradient, whole.gradient)
    # Silent from now on: a warning would be an error.
    hypergradient(problem, method, method.init(), batch, chunk=chunk, keys=keys)


def test_graphs_that_are_kept_by_a_setting_are_not_recomputed() -> None:
    problem, batch = make_problem("unroll", "loop"), make_batch(1)
    with pytest.raises(ConfigurationError, match="one task at a time does not fit"):
        hypergradient(
            problem, NoRoomForGraphs(InnerSteps(2, SGD()), recompute=False), State(), batch
        )


@pytest.mark.parametrize("recompute", [None, False, True])
def test_the_chunk_says_whether_graphs_are_recomputed(
    recompute: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[bool] = []
    real = adapt

    def recorded(*arguments: Any, recompute: bool, **options: Any) -> Any:
        taken.append(recompute)
        return real(*arguments, recompute=recompute, **options)

    monkeypatch.setattr(unroll, "adapt", recorded)
    problem, batch = make_problem("unroll", "batched"), make_batch(3)
    for steps in (3, 7):
        method = Unroll(InnerSteps(steps, SGD(0.1)))
        hypergradient(problem, method, State(), batch, chunk=Chunk(3, recompute=recompute))
    assert taken == ([False, True] if recompute is None else [recompute] * 2)


def test_other_errors_pass_through() -> None:
    def compute(part: slice) -> None:
        raise RuntimeError("shape mismatch in memory format")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        Chunk(4).run(compute, 4, torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible to PyTorch")
def test_out_of_memory_on_a_device() -> None:
    device = torch.device("cuda")
    free, _ = torch.cuda.mem_get_info(device)

    def compute(part: slice) -> int:
        tensors = [
            torch.empty(int(0.4 * free), dtype=torch.uint8, device=device)
            for _ in range(part.stop - part.start)
        ]
        return len(tensors)

    with pytest.warns(UserWarning, match="cuda ran out of memory with 4 tasks"):
        assert Chunk(4).run(compute, 4, device) == [2, 2]
    torch.cuda.empty_cache()
