from __future__ import annotations

import itertools
import math
import re
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from oracles import assert_same, make_batch
from small_runs import STRATEGIES
from torch import Tensor, nn

from fewshot_blo.bilevel import Bilevel, OuterStep
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.hypergrad import Implicit, Penalty, Reptile, State, Strategy, Unroll
from fewshot_blo.kernel import SGD, Adam, InnerSteps
from fewshot_blo.machine.chunk import Chunk
from fewshot_blo.machine.memory import peak_bytes
from fewshot_blo.networks import Conv4, classifier
from fewshot_blo.problems import FewShotProblem, Initialization, SharedEncoder
from fewshot_blo.tasks import TaskBatch
from fewshot_blo.training import chunk_choice
from fewshot_blo.training.chunk_candidates import Candidate, list_candidates, pick, time_candidates
from fewshot_blo.training.chunk_choice import choose_chunk, estimate_peaks
from fewshot_blo.training.step import dropout_keys, hypergradient

HOST, GPU = torch.device("cpu"), torch.device("cuda")
MIB, GIB = 2**20, 2**30
KEPT, RECOMPUTED = Candidate(False, 8, 1600), Candidate(True, 8, 400)
SMALL = Candidate(False, 2, 400)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        # All tasks with kept graphs, or few of them; recomputing could not win.
        (8 * GIB, [(False, 2), (False, 8)]),
        # Four with kept graphs, or all with recomputed ones.
        (GIB, [(False, 2), (False, 4), (True, 8)]),
        (GIB // 2, [(False, 2), (True, 8)]),
        # Graphs of one task are more than there is.
        (200 * MIB, [(True, 4)]),
        # Nothing fits: the least.
        (10 * MIB, [(True, 1)]),
    ],
)
def test_candidates_fit(budget: int, expected: list[tuple[bool, int]]) -> None:
    peaks: dict[bool | None, int] = {False: 232 * MIB, True: 50 * MIB}
    found = list_candidates(peaks, 8, budget, 0, HOST)
    assert [(c.recompute, c.size) for c in found] == expected
    assert all(c.peak == c.size * peaks[bool(c.recompute)] for c in found)
    on_gpu = list_candidates(peaks, 8, 8 * GIB, 0, GPU)
    assert [(c.recompute, c.size) for c in on_gpu] == [(False, 8)]


@pytest.mark.parametrize(("budget", "recompute"), [(GIB, False), (300 * MIB, True), (MIB, True)])
def test_a_chunk_that_is_set_is_kept(budget: int, recompute: bool) -> None:
    (found,) = list_candidates({False: 100 * MIB, True: 50 * MIB}, 8, budget, 4, HOST)
    assert (found.size, found.recompute) == (4, recompute)


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ((5.6, 8.4, 7.0), KEPT),
        ((8.4, 5.6, 7.0), RECOMPUTED),
        ((8.4, 9.0, 7.0), SMALL),
        ((7.1, 9.0, 7.0), SMALL),
        ((7.0, 9.0, 7.1), SMALL),  # As fast, and less memory.
        ((math.inf, 9.0, math.inf), RECOMPUTED),
        ((math.inf, math.inf, math.inf), RECOMPUTED),
    ],
)
def test_the_fastest_is_chosen(seconds: tuple[float, float, float], chosen: Candidate) -> None:
    candidates = [KEPT, RECOMPUTED, SMALL]
    assert pick(candidates, dict(zip(candidates, seconds, strict=True))) == chosen
    assert pick([SMALL], {}) == SMALL


def test_times_of_many_steps_follow_from_few(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(step=2)
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    a_step, taken = {KEPT: 0.1, RECOMPUTED: 0.15}, []

    def take(candidate: Candidate, steps: int | None) -> float:
        taken.append((candidate, steps))
        return 1.0 + a_step[candidate] * (steps or 50)

    times = time_candidates([KEPT, RECOMPUTED], take, 50)
    assert times == {KEPT: pytest.approx(6.0), RECOMPUTED: pytest.approx(8.5)}
    assert None not in {steps for _, steps in taken}  # Never the whole.
    assert sum(steps or 0 for _, steps in taken) < 2 * 50


def test_a_slow_short_unrolling_makes_no_long_one_fast() -> None:
    pauses = iter([9.0, 0, 0, 9, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0])
    a_step = {KEPT: 0.2, SMALL: 0.1}

    def take(candidate: Candidate, steps: int | None) -> float:
        return 1.0 + a_step[candidate] * (steps or 50) + next(pauses)

    times = time_candidates([KEPT, SMALL], take, 50)
    assert times == {KEPT: pytest.approx(11.0), SMALL: pytest.approx(6.0)}


@pytest.mark.parametrize(("pause", "calls"), [(0, 8), (10, 2)])
def test_short_unrollings_are_timed_whole(
    pause: int, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(step=pause)
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    taken: list[Candidate] = []

    def take(candidate: Candidate, steps: int | None) -> float:
        assert steps is None
        taken.append(candidate)
        return len(taken)  # The first one counts where no time is left for more.

    assert time_candidates([KEPT, SMALL], take, 0) == {KEPT: 1.0, SMALL: 2.0}
    assert len(taken) == calls
    assert time_candidates([KEPT], take, 0) == {}


def test_what_runs_out_of_memory_is_not_chosen() -> None:
    def take(candidate: Candidate, steps: int | None) -> float:
        if candidate == KEPT and steps != 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return 1.0

    assert time_candidates([KEPT, SMALL], take, 50)[KEPT] == math.inf
    with pytest.raises(RuntimeError, match="shapes"):
        time_candidates([KEPT, SMALL], lambda *_: (_ for _ in ()).throw(RuntimeError("shapes")), 0)


def conv4(hidden: int = 16) -> Initialization:
    torch.manual_seed(0)
    return Initialization(classifier(Conv4(hidden=hidden), hidden, 5), backend="batched")


def one_task() -> TaskBatch:
    return make_batch(1, 5, 1, 5, size=28).to("cpu", torch.float32)


def step(problem: FewShotProblem, method: Strategy, batch: TaskBatch) -> OuterStep:
    return hypergradient(problem, method, method.init(), batch, keys=dropout_keys(batch, 0, 0))


LONG = {
    "second order": Unroll(InnerSteps(30, SGD(0.01))),
    "Adam": Unroll(InnerSteps(30, Adam(0.01))),
    "loss of several steps": Unroll(InnerSteps(12, SGD(0.01)), multi_step=5),
    "first order": Unroll(InnerSteps(30, SGD(0.01)), first_order=True),
    "set to recompute": Unroll(InnerSteps(12, SGD(0.01)), recompute=True),
    "truncated": Unroll(InnerSteps(12, SGD(0.01)), truncate=8),
    "Reptile": Reptile(InnerSteps(6, SGD(0.01))),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("method", LONG.values(), ids=LONG)
def test_the_estimated_peak_is_near_the_true_one(method: Strategy) -> None:
    problem, batch = conv4(), one_task()
    ways: dict[bool | None, Strategy] = {way: method.with_recompute(way) for way in (False, True)}
    if ways[False] == ways[True]:
        ways = {None: method}
    longest = 0

    def differentiate(strategy: Strategy) -> OuterStep:
        nonlocal longest
        longest = max(longest, getattr(strategy, "steps", 0))
        return step(problem, strategy, batch)

    peaks = estimate_peaks(ways, differentiate)
    if isinstance(method, Unroll) and method.truncate is None and not method.recompute:
        assert longest <= 3  # The whole is never taken.
    for way, strategy in ways.items():
        true = peak_bytes(partial(step, problem, strategy, batch))
        # What is recomputed may take less than it is said to, and not more.
        assert (0.98 if not way else 0.99) * true <= peaks[way]
        assert peaks[way] <= (1.02 if not way else 1.3) * true


def make_problem(strategy: str) -> FewShotProblem:
    torch.manual_seed(0)
    encoder = nn.Sequential(Conv4(hidden=8), nn.Dropout(0.3)).double()
    if strategy == "unroll":
        return Initialization(classifier(encoder, 8, 3).double(), backend="loop")
    return SharedEncoder(encoder, learn_prox=True, backend="loop")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_chosen_chunk_obeys_the_limit(strategy: str) -> None:
    problem, method, batch = make_problem(strategy), STRATEGIES[strategy], make_batch(8)

    def peak(chunk: Chunk) -> int:
        keys, state = dropout_keys(batch, 0, 0), method.init()
        return peak_bytes(
            lambda: hypergradient(
                problem, method, state, batch[: chunk.size], chunk=chunk, keys=keys
            )
        )

    def choose(limit: float) -> Chunk:
        return choose_chunk(problem, [method], batch, norm="transductive", host_limit=limit / GIB)

    one = peak(Chunk(1))
    for fits in (1, 2, 4):
        limit = 1.1 * fits * one
        chosen = choose(limit)
        assert peak(chosen) <= 1.05 * limit
        assert chosen.size >= fits
    assert choose(100 * GIB).size == 8
    assert choose(1).size == 1


@pytest.mark.slow
def test_long_unrollings_keep_their_graphs_where_memory_is_there() -> None:
    problem, batch = conv4(4), make_batch(2, 5, 1, 5, size=28).to("cpu", torch.float32)
    method = Unroll(InnerSteps(20, SGD(0.01)))

    def choose(limit: float, *methods: Strategy, size: int = 0) -> Chunk:
        return choose_chunk(
            problem, methods, batch, norm="transductive", host_limit=limit, size=size
        )

    chosen = choose(0.0, method)
    assert (chosen.size, chosen.recompute) == (2, False)
    assert chosen.why.startswith("graphs kept, 2 tasks at a time, 0.0")
    assert re.search(r"; memory budget [\d.e+]+ GiB$", chosen.why)
    assert "\n" not in chosen.why
    kept, recomputed = (
        peak_bytes(partial(step, problem, replace(method, recompute=r), batch[:1]))
        for r in (False, True)
    )
    tight = choose(0.8 * kept / GIB, method)
    assert (tight.size, tight.recompute) == (min(2, int(0.8 * kept // recomputed)), True)
    between = choose(1.5 * kept / GIB, method)
    assert "graphs kept, 1 task at" in between.why
    assert "graphs recomputed, 2 tasks" in between.why
    # Of the phases of a run, what fits all of them.
    phases = Unroll(InnerSteps(20, SGD(0.01)), first_order=True), method
    assert choose(0.8 * kept / GIB, *phases).recompute
    # What is set is kept.
    assert choose(0.8 * kept / GIB, replace(method, recompute=False)).recompute is None
    assert choose(0.0, method, size=1).size == 1
    assert choose(0.0, phases[0], size=1).why == "1 task at a time, as set"


def test_the_free_memory_is_kept_to(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, batch, method = make_problem("unroll"), make_batch(8), Unroll(InnerSteps(3, SGD(0.1)))
    one = peak_bytes(lambda: step(problem, method, batch[:1]))
    monkeypatch.setattr(chunk_choice, "budget_bytes", lambda device, recorded: int(2.2 * one))
    for seconds_of_a_chunk, expected in ((1.0, (4, True)), (0.0, (2, False))):
        monkeypatch.setattr(chunk_choice, "seconds", lambda *_, s=seconds_of_a_chunk: s)
        chosen = choose_chunk(problem, [method], batch, norm="transductive")
        assert (chosen.size, chosen.recompute) == expected


@dataclass(frozen=True)
class NoRoom(Unroll):
    """Unrolling for which there is no memory."""

    def hypergradient(self, problem: Bilevel, state: State) -> OuterStep:
        raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.mark.filterwarnings("ignore:cpu ran out of memory")
def test_a_task_that_does_not_fit() -> None:
    with pytest.raises(ConfigurationError, match="one task at a time does not fit"):
        choose_chunk(
            make_problem("unroll"), [NoRoom(InnerSteps(2))], make_batch(2), norm="transductive"
        )


class Counting(nn.Module):
    """Counts its forward passes, and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros((), dtype=torch.float64))
        self.linear = nn.Linear(4, 3).double()
        self.passes: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        torch.rand(1)
        output: Tensor = self.linear(x.flatten(1)[:, :4])
        return output


def test_choosing_changes_no_buffer_and_no_random_state() -> None:
    network = Counting()
    problem = Initialization(network, backend="loop")
    before = torch.get_rng_state()
    choose_chunk(problem, [Unroll(InnerSteps(8, SGD(0.1)))], make_batch(4), norm="transductive")
    assert float(network.passes) == 0
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "strategy",
    [Penalty(InnerSteps(2, Adam(1e-2))), Implicit(InnerSteps(2)), Reptile(InnerSteps(2))],
)
def test_strategies_without_the_choice_are_left_alone(strategy: Strategy) -> None:
    for way in (None, False, True):
        assert strategy.with_recompute(way) is strategy


@pytest.mark.sampled(3)
@pytest.mark.parametrize("backend", ["loop", "batched"])
@pytest.mark.parametrize(
    "method",
    [Unroll(InnerSteps(8, SGD(0.1))), Unroll(InnerSteps(8, Adam(1e-2, eps=1e-3)), truncate=6)],
    ids=["plain", "truncated Adam"],
)
def test_results_do_not_depend_on_the_choice(method: Unroll, backend: Any) -> None:
    problem, batch = make_problem("unroll"), make_batch(5)
    problem.backend = backend
    keys = dropout_keys(batch, 0, 0)
    expected = hypergradient(problem, method, method.init(), batch, keys=keys)
    for recompute in (False, True):
        for size in (1, 2, 5):
            chunk = Chunk(size, recompute=recompute)
            found = hypergradient(problem, method, method.init(), batch, chunk=chunk, keys=keys)
            assert_same(found.gradient, expected.gradient)
            assert_same({"F": found.outer_loss}, {"F": expected.outer_loss})
