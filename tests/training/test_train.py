from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import torch
from small_runs import (
    SETTINGS,
    STRATEGIES,
    SignallingSampler,
    assert_identical,
    checkpoint_data,
    log_records,
    make_dataset,
    make_initialization,
    make_problem,
    make_sampler,
    run,
)

from fewshot_blo.bilevel import Bilevel, OuterStep
from fewshot_blo.errors import CheckpointError, ConfigurationError, DivergenceError
from fewshot_blo.evaluation.counts import Counts
from fewshot_blo.evaluation.result import Evaluation
from fewshot_blo.hypergrad import Implicit, Unroll, unroll
from fewshot_blo.hypergrad.unroll import UnrollState
from fewshot_blo.kernel import SGD, InnerSteps, adapt
from fewshot_blo.machine.chunk import Chunk
from fewshot_blo.networks import Conv4
from fewshot_blo.problems import FewShotProblem, SharedEncoder
from fewshot_blo.training import validation as validation_module
from fewshot_blo.training.checkpoint import load
from fewshot_blo.training.run import BEST, LAST, Run
from fewshot_blo.training.settings import TrainSettings


def assert_same_run(a: Path, b: Path) -> None:
    """Two folders hold the same checkpoints and records."""
    for name in (LAST, BEST):
        left, right = checkpoint_data(a, name), checkpoint_data(b, name)
        assert_identical(left, right, name)
    assert log_records(a) == log_records(b)


def test_each_validation_is_told_when_it_is_saved(tmp_path: Path) -> None:
    told: list[tuple[int, float]] = []

    def validated(step: int, result: Evaluation) -> None:
        assert checkpoint_data(tmp_path)["step"] == step
        told.append((step, result.mean))
        if step == 4 and len(told) == 2:
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        run(tmp_path, validated=validated)
    assert not run(tmp_path, validated=validated, resume=True).interrupted
    records = [r for r in log_records(tmp_path) if "accuracy/validation" in r]
    assert told == [(r["step"], r["accuracy/validation"]) for r in records]
    assert [step for step, _ in told] == [2, 4, 6]


@pytest.mark.parametrize(
    ("make", "strategy", "start"),
    [
        (make_initialization, "unroll", "cold"),
        (make_problem, "unroll", "warm"),
        (make_problem, "implicit", "cold"),
        (make_problem, "implicit", "warm"),
        (make_problem, "penalty", "cold"),
        (make_problem, "penalty", "warm"),
    ],
)
def test_interrupted_and_resumed_equals_uninterrupted(
    make: Callable[[], FewShotProblem], strategy: str, start: Any, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, start=start)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    result = run(whole, strategy, settings=settings, problem=make())
    tasks = SignallingSampler(2, signal.SIGINT)
    stopped = run(parts, strategy, settings=settings, tasks=tasks, problem=make())
    assert (stopped.interrupted, stopped.step) == (True, 3)
    assert not result.interrupted
    resumed = run(parts, strategy, settings=settings, resume=True, problem=make())
    assert resumed.validation == result.validation
    assert_same_run(whole, parts)
    state = checkpoint_data(whole)["strategy"]
    assert bool(state["inner"]) == (start == "warm")
    if strategy == "penalty":
        assert float(state["rho"]) > STRATEGIES["penalty"].init().rho


def test_killed_between_checkpoint_and_later_records(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(whole)
    program = (
        "import signal, torch\n"
        "from pathlib import Path\n"
        "from small_runs import SignallingSampler, run\n"
        "torch.use_deterministic_algorithms(True)\n"
        "torch.set_num_threads(1)\n"
        f"run(Path({str(parts)!r}), tasks=SignallingSampler(3, signal.SIGKILL))\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[1],
        env=_environment(),
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert checkpoint_data(parts)["step"] == 2
    assert log_records(parts)[-1]["step"] == 3
    run(parts, resume=True)
    assert_same_run(whole, parts)


def _environment() -> dict[str, str]:
    folder = Path(__file__).resolve().parents[1]
    return {**os.environ, "PYTHONPATH": f"{folder.parent}{os.pathsep}{folder}"}


def test_a_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, tasks=SignallingSampler(2, signal.SIGINT, signal.SIGINT))
    assert checkpoint_data(tmp_path)["step"] == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_a_folder_with_a_run_is_left_intact(tmp_path: Path) -> None:
    run(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=r"already holds a run: resume it, or choose"):
        run(tmp_path)
    with pytest.raises(CheckpointError, match=r"train\.learning_rate was 0\.01 and is 0\.5"):
        run(tmp_path, settings=replace(SETTINGS, learning_rate=0.5), resume=True)
    with pytest.raises(CheckpointError, match=r"problem\.hidden was None and is 8"):
        run(tmp_path, config={"problem": {"hidden": 8}}, resume=True)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        run(tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()


def test_a_run_with_constant_learning_rate_can_be_extended(tmp_path: Path) -> None:
    settings = replace(SETTINGS, schedule="constant")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(whole, settings=settings)
    run(parts, settings=replace(settings, steps=4))
    run(parts, settings=settings, resume=True)
    assert_identical(checkpoint_data(whole), checkpoint_data(parts))
    assert log_records(whole) == log_records(parts)
    with pytest.raises(CheckpointError, match=r"has taken 6 steps, but train\.steps is 5"):
        run(parts, settings=replace(settings, steps=5), resume=True)


def test_a_run_with_cosine_schedule_cannot_be_extended(tmp_path: Path) -> None:
    run(tmp_path, settings=replace(SETTINGS, steps=2))
    with pytest.raises(CheckpointError, match=r"train\.steps was 2 and is 6 \(the schedule"):
        run(tmp_path, resume=True)


def test_the_device_and_the_folder_of_the_data_may_change(tmp_path: Path) -> None:
    config = {"data": {"root": "a", "size": 16}, "device": "cpu"}
    run(tmp_path, tasks=SignallingSampler(1, signal.SIGTERM), config=config)
    moved = {"data": {"root": "b", "size": 16}, "device": "auto"}
    assert run(tmp_path, resume=True, config=moved).step == SETTINGS.steps
    assert checkpoint_data(tmp_path)["config"]["data"]["root"] == "b"


def test_settings_that_a_checkpoint_could_not_give_back(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not plain data"):
        run(tmp_path, config={"folder": tmp_path})
    assert not (tmp_path / LAST).exists()


def test_validation_chooses_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = iter([0.4, 0.7, 0.6])
    weights: list[dict[str, torch.Tensor]] = []

    def fake(problem: Any, *args: Any, norm: Any, **options: Any) -> Evaluation:
        weights.append({name: p.detach().clone() for name, p in problem.outer.items()})
        accuracy = torch.tensor([next(accuracies)])
        return Evaluation(norm, "fake", 2, accuracy, (), Counts.none())

    monkeypatch.setattr(validation_module, "evaluate", fake)
    problem = make_problem()
    result = run(tmp_path, problem=problem)
    assert result.validation == pytest.approx(0.7)
    assert result.best == tmp_path / BEST
    best = load(tmp_path / BEST)
    assert (best.step, dict(best.best)["step"]) == (4, 4)
    assert dict(load(tmp_path / LAST).best)["step"] == 4
    for name, p in problem.outer.items():
        assert torch.equal(p, weights[1][name])
        assert torch.equal(best.outer[name], weights[1][name])
        # A bias in front of a batch norm has no gradient.
        assert torch.equal(p, weights[2][name]) == name.endswith("convolution.bias")


@dataclass(frozen=True)
class SmallMemory(Unroll):
    """Unrolling that runs out of memory where there is more than one task at a time."""

    def hypergradient(self, problem: Bilevel, state: UnrollState) -> OuterStep:
        if problem.tasks > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().hypergradient(problem, state)


def test_a_run_goes_on_with_smaller_chunks_when_memory_runs_out(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    settings, method = replace(SETTINGS, chunk=2), SmallMemory(InnerSteps(2, SGD(0.1)))
    with pytest.warns(UserWarning, match=r"continuing with 1 \(set train\.chunk to 1") as warnings:
        run(whole, method=method, settings=settings)
    assert len(warnings) == 1
    with pytest.warns(UserWarning, match="continuing with 1"):
        run(parts, method=method, settings=settings, tasks=SignallingSampler(2, signal.SIGINT))
    assert checkpoint_data(parts)["settled"]["chunk"] == 1
    run(parts, method=method, settings=settings, resume=True)  # Without a warning.
    assert_same_run(whole, parts)


def test_a_resumed_run_keeps_what_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    settings, method = replace(SETTINGS, chunk=0), Unroll(InnerSteps(4, SGD(0.1)))
    choices: list[Chunk] = []

    def choose(*_: object, **options: object) -> Chunk:
        choices.append(Chunk(2, recompute=True, why="graphs recomputed, 2 tasks at a time"))
        return choices[-1]

    taken: list[bool] = []
    real = adapt

    def recorded(*arguments: Any, recompute: bool, **options: Any) -> Any:
        taken.append(recompute)
        return real(*arguments, recompute=recompute, **options)

    monkeypatch.setattr(unroll, "adapt", recorded)
    monkeypatch.setattr("fewshot_blo.training.train.choose_chunk", choose)
    run(whole, method=method, settings=settings, progress=True)
    assert capsys.readouterr().out.startswith("graphs recomputed, 2 tasks at a time\n")
    run(parts, method=method, settings=settings, tasks=SignallingSampler(2, signal.SIGINT))
    assert checkpoint_data(parts)["settled"] == {"backend": ANY, "chunk": 2, "recompute": True}
    run(parts, method=method, settings=settings, resume=True)
    assert len(choices) == 2
    assert set(taken) == {True}  # By itself, four steps are kept.
    assert_same_run(whole, parts)


def test_a_run_from_before_recomputation_was_chosen_resumes_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / LAST
    run(tmp_path, settings=replace(SETTINGS, schedule="constant"))
    saved = torch.load(path, weights_only=True)
    del saved["settled"]["recompute"]
    torch.save(saved, path)
    settings = replace(SETTINGS, schedule="constant", steps=8)
    assert run(tmp_path, settings=settings, resume=True).step == 8


def test_training_learns(tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=40, validate_every=40, chunk=3, log_every=40)
    dataset = make_dataset(12, noise=90)
    torch.manual_seed(0)
    problem = make_problem()
    source = make_sampler(dataset, query=4)
    before = problem.bind(source.batch(100), "transductive", torch.arange(3)).bilevel
    loss_before = before.outer_loss(before.inner_init).mean()
    run(
        tmp_path,
        problem=problem,
        method=Unroll(InnerSteps(2, SGD(0.3))),
        tasks=source,
        settings=settings,
    )
    after = problem.bind(source.batch(100), "transductive", torch.arange(3)).bilevel
    assert after.outer_loss(after.inner_init).mean() < 0.8 * loss_before


@pytest.mark.parametrize(
    ("method", "settings", "match"),
    [
        (
            Unroll(InnerSteps(3, SGD(1e30))),
            SETTINGS,
            r"outer step 1: Unroll: .* lower the inner step size",
        ),
        (
            Implicit(InnerSteps(3, SGD(1e30))),
            SETTINGS,
            r"outer step 1: Implicit: .* lower the inner step size",
        ),
        (
            Unroll(InnerSteps(3, SGD(0.1))),
            replace(SETTINGS, learning_rate=1e30, validate_every=1000),
            r"outer step 2: Unroll: .* lower the outer learning rate",
        ),
    ],
)
def test_divergence_stops_the_run(
    method: Any, settings: TrainSettings, match: str, tmp_path: Path
) -> None:
    with pytest.raises(DivergenceError, match=match):
        run(tmp_path, method=method, settings=settings)
    assert not (tmp_path / LAST).exists()  # Of the first step there is nothing to go on from.
    assert not list(tmp_path.glob("*.tmp"))


def test_divergence_leaves_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = OuterStep.check_finite
    calls = []

    def fail_late(step: OuterStep, method: str) -> None:
        calls.append(method)
        if len(calls) == 4:
            step.outer_loss[0] = math.nan
        check(step, method)

    monkeypatch.setattr(OuterStep, "check_finite", fail_late)
    with pytest.raises(DivergenceError, match="outer step 4: Implicit: the outer loss of task 0"):
        run(tmp_path)
    data = checkpoint_data(tmp_path)
    assert data["step"] == 2
    assert all(p.isfinite().all() for p in data["outer"].values())
    assert (tmp_path / "curves.png").exists()


def test_divergence_in_validation(tmp_path: Path) -> None:
    with pytest.raises(DivergenceError, match=r"evaluation: .* after 5 inner steps of SGD"):
        run(tmp_path, adaptation=InnerSteps(5, SGD(1e30)))


def test_learning_rate_schedules() -> None:
    cosine = TrainSettings(steps=4, learning_rate=0.2)
    rates = [cosine.learning_rate_at(step) for step in range(5)]
    assert rates == pytest.approx([0.2, 0.1 + 0.1 / math.sqrt(2), 0.1, 0.1 - 0.1 / math.sqrt(2), 0])
    linear = replace(cosine, schedule="linear")
    rates = [linear.learning_rate_at(step) for step in range(5)]
    assert rates == pytest.approx([0.2, 0.15, 0.1, 0.05, 0])
    constant = replace(cosine, schedule="constant")
    assert {constant.learning_rate_at(step) for step in range(5)} == {0.2}


def test_the_gradient_is_clipped_and_logged_unclipped(tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=1, clip=1e-3)
    run(tmp_path, settings=settings)
    moments = [s["exp_avg"] for s in checkpoint_data(tmp_path)["optimizer"]["state"].values()]
    norm = math.sqrt(sum(float((m / 0.1).square().sum()) for m in moments))
    assert norm == pytest.approx(1e-3, rel=1e-3)
    assert log_records(tmp_path)[0]["hypergradient/norm"] > 1e-2


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"steps": -1}, "steps is -1"),
        ({"log_every": 0}, "log_every is 0"),
        ({"clip": -1.0}, "clip is -1.0"),
        ({"chunk": -2}, "chunk is -2"),
        ({"norm": "running"}, "norm is 'running', which is for evaluation"),
    ],
)
def test_settings_out_of_range(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        replace(SETTINGS, **change)


def test_without_progress_nothing_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "whole")
    run(tmp_path / "start", settings=replace(SETTINGS, steps=0))
    run(tmp_path / "interrupted", tasks=SignallingSampler(2, signal.SIGINT))
    assert capsys.readouterr() == ("", "")


def test_an_interrupt_is_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, tasks=SignallingSampler(2, signal.SIGINT), progress=True)
    assert "SIGINT: finishing this step, then saving\n" in capsys.readouterr().out


def test_a_problem_with_nothing_to_learn(tmp_path: Path) -> None:
    frozen = SharedEncoder(Conv4(hidden=8).requires_grad_(False))
    with pytest.raises(ConfigurationError, match="there is nothing to learn"):
        Run(frozen, Unroll(InnerSteps(1, SGD())), SETTINGS, tmp_path, {})


def test_a_warm_start_leaves_no_path_to_an_initialization(tmp_path: Path) -> None:
    settings = replace(SETTINGS, start="warm")
    with pytest.raises(ConfigurationError, match=r"warm start .*prox above 0"):
        run(tmp_path, "unroll", problem=make_initialization(), settings=settings)


def test_without_steps_the_start_is_validated_and_kept(tmp_path: Path) -> None:
    problem = make_problem()
    before = {name: p.detach().clone() for name, p in problem.outer.items()}
    result = run(tmp_path, problem=problem, settings=replace(SETTINGS, steps=0))
    assert (result.step, result.interrupted) == (0, False)
    assert 0 < result.validation <= 1
    saved = checkpoint_data(tmp_path, BEST)["outer"]
    assert all(torch.equal(saved[name], p) for name, p in before.items())
    assert [record["step"] for record in log_records(tmp_path)] == [0]


def test_strategies_take_turns(tmp_path: Path) -> None:
    """A run of phases takes the steps that each strategy takes alone."""
    first, second = (
        Unroll(InnerSteps(2, SGD(0.1)), first_order=True),
        Unroll(InnerSteps(2, SGD(0.1))),
    )
    phases = replace(second, first_order_steps=3)
    make, settings = make_initialization, replace(SETTINGS, schedule="constant")
    run(tmp_path / "phases", problem=make(), method=phases, settings=settings)
    three = replace(settings, steps=3)
    run(tmp_path / "parts", problem=make(), method=first, settings=three)
    run(tmp_path / "parts", problem=make(), method=second, settings=settings, resume=True)
    together, parts = (checkpoint_data(tmp_path / name)["outer"] for name in ("phases", "parts"))
    assert all(torch.equal(together[name], parts[name]) for name in together)
