from __future__ import annotations

import math
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import make_dataset, make_initialization, make_problem, make_sampler
from torch import Tensor, nn

from fewshot_blo.errors import ConfigurationError, DivergenceError
from fewshot_blo.evaluation.counts import Counts, Tally
from fewshot_blo.evaluation.evaluate import embed, evaluate
from fewshot_blo.evaluation.result import Evaluation, half_width
from fewshot_blo.evaluation.result import paired_difference as paired
from fewshot_blo.kernel import SGD, InnerSteps, adapt
from fewshot_blo.networks import Conv4, classifier
from fewshot_blo.objectives import Accuracy
from fewshot_blo.objectives.tasks import on_query
from fewshot_blo.problems import FewShotProblem, Initialization, SharedEncoder
from fewshot_blo.problems.few_shot import norm_modes
from fewshot_blo.tasks import TaskBatch
from fewshot_blo.training.running_statistics import update_statistics

DATASET = make_dataset(7, 8, noise=150)
ADAPTATION = InnerSteps(3, SGD(0.2))


def shared_encoder(norm: Any = "batch") -> SharedEncoder:
    torch.manual_seed(0)
    problem = SharedEncoder(Conv4(hidden=8, norm=norm).double(), backend="loop")
    update_statistics(problem, make_sampler(DATASET, dtype=torch.float64))
    return problem


def initialization() -> Initialization:
    torch.manual_seed(0)
    return Initialization(classifier(Conv4(hidden=8), 8, 3).double(), backend="loop")


def sampler(tasks: int = 4, **options: Any) -> Any:
    return make_sampler(DATASET, tasks=tasks, dtype=torch.float64, **options)


def measure(problem: FewShotProblem, norm: Any = "transductive", **options: Any) -> Evaluation:
    options = {"tasks": 10, "adaptation": ADAPTATION, "sampler": sampler(), **options}
    return evaluate(problem, options.pop("sampler"), norm=norm, **options)


def make_evaluation(accuracy: Tensor, **changes: Any) -> Evaluation:
    counts = Counts.of_confusion(torch.tensor([[5, 5], [3, 7]]))
    evaluation = Evaluation("support", "5-way, seed 0", 3, accuracy, ("a", "b"), counts)
    return replace(evaluation, **changes)


def test_mean_and_interval() -> None:
    accuracy = np.random.default_rng(0).random(50)
    evaluation = make_evaluation(torch.from_numpy(accuracy))
    assert evaluation.mean == pytest.approx(accuracy.mean(), rel=1e-12)
    assert evaluation.interval == pytest.approx(1.96 * accuracy.std(ddof=1) / math.sqrt(50))
    assert str(evaluation) == (
        f"{100 * accuracy.mean():.2f} ± {100 * evaluation.interval:.2f} % "
        "(support, 50 tasks, 5-way, seed 0, 3 inner steps)"
    )
    assert math.isnan(half_width(torch.tensor([0.5])))


def test_paired_difference() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.random(40), generator.random(40)
    mean, half = paired(make_evaluation(torch.from_numpy(a)), make_evaluation(torch.from_numpy(b)))
    assert mean == pytest.approx((b - a).mean())
    assert half == pytest.approx(1.96 * (b - a).std(ddof=1) / math.sqrt(40))


def test_paired_difference_of_other_inner_steps_is_of_the_same_tasks() -> None:
    a = make_evaluation(torch.tensor([0.0, 1.0]))
    assert paired(a, replace(a, steps=9)) == (0.0, 0.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"values": torch.zeros(3)},
        {"episodes": "5-way, seed 1"},
        {"class_names": ("a", "c")},
    ],
)
def test_paired_difference_of_other_tasks_is_refused(changes: dict[str, Any]) -> None:
    a = make_evaluation(torch.zeros(2))
    with pytest.raises(ConfigurationError, match="needs the same tasks"):
        paired(a, replace(a, **changes))


EVERY_MODE = pytest.mark.parametrize(
    ("make", "norm"),
    [
        (shared_encoder, "running"),
        (shared_encoder, "support"),
        (shared_encoder, "transductive"),
        (initialization, "support"),
        (initialization, "transductive"),
    ],
)
RAGGED: dict[str, Any] = {"way": (2, 3), "shot": (1, 2), "query": (1, 3)}


@EVERY_MODE
@pytest.mark.parametrize("sizes", [{}, RAGGED], ids=["fixed", "ragged"])
def test_many_tasks_at_a_time_equal_one(
    make: Callable[[], FewShotProblem], norm: Any, sizes: dict[str, Any]
) -> None:
    problem, tasks = make(), sampler(**sizes)
    alone = measure(problem, norm, sampler=tasks, chunk=1)
    for chunk in (0, 3, 10):
        together = measure(problem, norm, sampler=tasks, chunk=chunk)
        assert torch.equal(together.values, alone.values)
        assert torch.equal(together.class_accuracy, alone.class_accuracy)
        assert together.class_names == alone.class_names


@pytest.mark.parametrize("sizes", [{}, RAGGED], ids=["fixed", "ragged"])
def test_logits_from_embeddings_equal_those_of_each_task_from_its_images(
    sizes: dict[str, Any],
) -> None:
    problem, tasks = shared_encoder(), sampler(6, **sizes)
    problem.network.eval()
    embeddings = embed(problem.network, DATASET.images, torch.float64)
    together = problem_logits(problem.on_features(), tasks.batch(0, embeddings), "running")
    for t in range(6):
        task = tasks.batch(0)[t : t + 1]
        alone, real = problem_logits(problem, task, "running"), task.query_y[0] >= 0
        torch.testing.assert_close(together[t, real], alone[0, real], rtol=1e-10, atol=1e-12)


def test_tasks_are_scored_once_where_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = shared_encoder()
    expected = measure(problem, "running", tasks=9)

    def fail(*arguments: Any, **options: Any) -> Any:
        if len(next(iter(arguments[1].values()))) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return adapt(*arguments, **options)

    monkeypatch.setattr("fewshot_blo.evaluation.evaluate.adapt", fail)
    with pytest.warns(UserWarning, match=r"with 8 tasks at a time.*|with 4 tasks at a time.*"):
        found = measure(problem, "running", tasks=9, chunk=8)
    assert torch.equal(found.values, expected.values)
    assert torch.equal(found.class_accuracy, expected.class_accuracy)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible to PyTorch")
@pytest.mark.parametrize("norm", ["running", "transductive", "support"])
def test_evaluation_on_a_gpu_waits_as_often_for_many_chunks_as_for_few(norm: Any) -> None:
    problem = shared_encoder()
    expected = measure(problem, norm)
    for p in problem.outer.values():
        p.data = p.data.cuda()
    problem.network.cuda()
    on_device = make_sampler(DATASET.to("cuda"), tasks=4, dtype=torch.float64)

    def waits(chunk: int) -> int:
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found = measure(problem, norm, sampler=on_device, chunk=chunk)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.equal(found.values, expected.values)
        return sum("synchroniz" in str(warning.message) for warning in caught)

    measure(problem, norm, sampler=on_device)
    assert waits(2) == waits(5)


@pytest.mark.parametrize("make", [shared_encoder, initialization])
def test_tasks_follow_the_seed_and_not_the_batch_size(make: Callable[[], FewShotProblem]) -> None:
    problem = make()
    first = measure(problem)
    assert first.episodes == "3-way 1-shot 2 queries a class, seed 0"
    assert (first.steps, first.values.shape, first.values.dtype) == (3, (10,), torch.float64)
    for tasks in (1, 3, 10, 16):
        again = measure(problem, sampler=sampler(tasks))
        assert torch.equal(again.values, first.values)
        assert torch.equal(again.class_accuracy, first.class_accuracy)
        assert again.class_names == first.class_names
    other = measure(problem, sampler=sampler(seed=5))
    assert not torch.equal(other.values, first.values)


def predictions(problem: FewShotProblem, batch: TaskBatch, norm: Any) -> Tensor:
    """Classes ``[T, N*Q]``, written again from the parts of evaluation."""
    problem.network.eval()
    bound = problem.bind(batch, norm)
    start, loss = bound.bilevel.inner_init, bound.bilevel.inner_loss
    inner = adapt(loss, start, ADAPTATION)
    return bound.query_outputs(inner).argmax(-1)


def test_accuracy_by_task_and_by_class_against_a_count_by_hand() -> None:
    problem = initialization()
    evaluation = measure(problem, tasks=6, sampler=sampler(2))
    pairs, seen, accuracies = Counter[tuple[str, str]](), Counter[str](), []
    for index in range(3):
        batch = sampler(2).batch(index)
        for t, predicted in enumerate(predictions(problem, batch, "transductive")):
            hits = 0
            for guess, label in zip(predicted.tolist(), batch.query_y[t].tolist(), strict=True):
                name, other = (
                    DATASET.class_names[int(batch.classes[t, c])] for c in (label, guess)
                )
                seen[name] += 1
                pairs[name, other] += 1
                hits += guess == label
            accuracies.append(hits / 6)
    assert evaluation.values.tolist() == pytest.approx(accuracies)
    assert set(evaluation.class_names) == set(seen)
    by_class = dict(zip(evaluation.class_names, evaluation.class_accuracy.tolist(), strict=True))
    assert by_class == pytest.approx({name: pairs[name, name] / seen[name] for name in seen})
    names = evaluation.class_names
    assert evaluation.confusion.tolist() == [[pairs[a, b] for b in names] for a in names]


def test_calibration_error_by_a_plain_loop() -> None:
    problem = shared_encoder()
    evaluation = measure(problem, tasks=6, sampler=sampler(6))
    batch = sampler(6).batch(0)
    bound = problem.bind(batch, "transductive", torch.zeros(6, dtype=torch.int64))
    bilevel = bound.bilevel
    inner = adapt(bilevel.inner_loss, bilevel.inner_init, ADAPTATION, outer=bilevel.outer)
    probabilities = bound.query_outputs(inner).detach().double().softmax(2).flatten(0, 1)
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(probabilities, batch.query_y.flatten(), strict=True):
        confidence, chosen = float(row.max()), int(row.argmax())
        bins.setdefault(int(confidence * 15), []).append((confidence, chosen == int(label)))
    total = sum(len(members) for members in bins.values())
    expected = sum(
        abs(sum(c for c, _ in members) - sum(right for _, right in members)) / total
        for members in bins.values()
    )
    assert evaluation.calibration_error == pytest.approx(expected)


def test_padded_queries_count_nowhere() -> None:
    """Padded queries that are sure of themselves change neither calibration nor confusion."""
    logits = torch.tensor([[[2.0, 0.0, 9.0], [0.0, 1.0, 9.0], [50.0, 0.0, 0.0], [0.0, 3.0, 0.0]]])
    y, images = torch.tensor([[0, 0, -1, -1]]), torch.zeros(1, 4, 1)
    batch = TaskBatch(images, y, images, y, torch.tensor([[1, 0, -1]]))
    tally = Tally(torch.device("cpu"))
    tally.add(logits, batch)
    assert float(on_query(Accuracy(), logits, batch)) == 0.5
    assert tally.counts().pairs.tolist() == [[1, 0, 1], [1, 1, 1]]
    sure, less_sure = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1))
    expected = ((1 - sure) + less_sure) / 2
    assert tally.counts().calibration_error() == pytest.approx(expected, rel=1e-12)


def test_ragged_tasks_count_their_real_queries() -> None:
    ragged = sampler(3, way=(2, 4), shot=(1, 2), query=(1, 3))
    evaluation = measure(shared_encoder("none"), "support", sampler=ragged, tasks=9)
    real = sum(int((ragged.batch(index).query_y >= 0).sum()) for index in range(3))
    assert int(evaluation.confusion.sum()) == real
    assert 0 <= evaluation.calibration_error <= 1
    for t, accuracy in enumerate(evaluation.values.tolist()):
        queries = int((ragged.batch(t // 3).query_y[t % 3] >= 0).sum())
        assert accuracy * queries == pytest.approx(round(accuracy * queries))


def test_memory_is_measured_on_one_task(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def at_a_time(one: Callable[[], Tensor], count: int, device: torch.device) -> int:
        measured.append((len(one()), count, device.type))
        return 4

    monkeypatch.setattr("fewshot_blo.evaluation.evaluate.at_a_time", at_a_time)
    measure(shared_encoder(), "transductive")
    assert measured == [(1, 10, "cpu")]


def test_running_from_embeddings_equals_binding_the_images() -> None:
    problem = shared_encoder()
    evaluation = measure(problem, "running", tasks=8)
    expected = []
    for index in range(2):
        batch = sampler().batch(index)
        right = predictions(problem, batch, "running") == batch.query_y
        expected += right.double().mean(1).tolist()
    assert evaluation.values.tolist() == pytest.approx(expected)
    modes = {norm: measure(problem, norm).values for norm in norm_modes(problem)}
    assert len({tuple(accuracy.tolist()) for accuracy in modes.values()}) == 3


class Standardised(nn.Module):
    """Subtracts the mean of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


@pytest.mark.filterwarnings("ignore:.*mixes the rows of a batch")
def test_no_embeddings_where_rows_mix_without_a_batch_norm() -> None:
    network = nn.Sequential(Conv4(hidden=8, norm="group"), Standardised()).double()
    problem = SharedEncoder(network, backend="loop")
    evaluation = measure(problem, "support", tasks=4)
    batch = sampler().batch(0)
    right = predictions(problem, batch, "support") == batch.query_y
    assert evaluation.values.tolist() == pytest.approx(right.double().mean(1).tolist())


def test_embeddings_that_are_known() -> None:
    problem = shared_encoder()
    known = embed(problem.network, DATASET.images, torch.float64)
    given = measure(problem, "running", tasks=8, embeddings=known)
    assert torch.equal(given.values, measure(problem, "running", tasks=8).values)
    with pytest.raises(ConfigurationError, match="they need a shared encoder"):
        measure(initialization(), embeddings=known)


def test_how_far_it_is_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fewshot_blo.records.progress._OFTEN", 0.0)  # However short they are.
    measure(shared_encoder(), "running", tasks=4, chunk=2)
    assert capsys.readouterr() == ("", "")
    measure(shared_encoder(), "running", tasks=4, chunk=2, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("embedding: example 56 of 56, ")
    assert lines[1].startswith("evaluating (running): task 2 of 4, ")
    assert lines[1].endswith(" left")
    assert lines[2].startswith("evaluating (running): task 4 of 4, ")
    assert lines[2].endswith(" in all")


@pytest.mark.parametrize("norm", ["transductive", "support", "running"])
def test_accuracy_of_means_over_views(norm: Any) -> None:
    problem, one = shared_encoder(), measure(shared_encoder(), norm)
    several = measure(problem, norm, views="mirrored")
    assert one.views == "one"
    assert "views" not in one.protocol
    assert several.protocol == one.protocol + ", 2 views (mirrored)"
    batches = [sampler().batch(index) for index in range(3)]
    seen = problem.with_views("mirrored")
    right = [predictions(seen, batch, norm) == batch.query_y for batch in batches]
    expected = torch.cat([task.double().mean(1) for task in right])[:10]
    assert several.values.tolist() == pytest.approx(expected.tolist())
    assert paired(one, several)[0] == pytest.approx(several.mean - one.mean)


def test_embeddings_where_images_do_not_meet_equal_binding_the_images() -> None:
    problem = shared_encoder("group")
    assert norm_modes(problem) == ("support",)
    evaluation = measure(problem, "support", tasks=4)
    batch = sampler().batch(0)
    right = predictions(problem, batch, "support") == batch.query_y
    assert evaluation.values.tolist() == pytest.approx(right.double().mean(1).tolist())


def test_embedding_does_not_depend_on_the_mode_of_the_network() -> None:
    problem = shared_encoder()
    problem.network.train()
    features = embed(problem.network, DATASET.images, torch.float64)
    assert problem.network.training
    problem.network.eval()
    assert torch.equal(features, embed(problem.network, DATASET.images, torch.float64))
    assert features.shape == (len(DATASET), 8)


@pytest.mark.parametrize(
    ("make", "norm", "depends"),
    [
        (shared_encoder, "support", False),
        (shared_encoder, "running", False),
        (shared_encoder, "transductive", True),
        (initialization, "support", False),
        (initialization, "transductive", True),
    ],
)
def test_one_query_and_the_others(
    make: Callable[[], FewShotProblem], norm: Any, depends: bool
) -> None:
    problem = make()
    problem.network.eval()
    batch = sampler().batch(0)
    other = batch.query_x.clone()
    other[:, 1:] = torch.rand_like(other[:, 1:])

    def logits(images: Tensor) -> Tensor:
        return problem_logits(problem, replace(batch, query_x=images), norm)

    difference = (logits(batch.query_x) - logits(other))[:, 0].abs().max()
    assert (difference > 1e-3) if depends else (difference < 1e-12)
    reversed_logits = logits(batch.query_x.flip(1)).flip(1)
    assert torch.allclose(reversed_logits, logits(batch.query_x), atol=1e-12)


def problem_logits(problem: FewShotProblem, batch: TaskBatch, norm: Any) -> Tensor:
    bound = problem.bind(batch, norm)
    start, loss = bound.bilevel.inner_init, bound.bilevel.inner_loss
    return bound.query_outputs(adapt(loss, start, InnerSteps(2, SGD(0.2)))).detach()


@pytest.mark.parametrize("make", [make_problem, make_initialization])
@pytest.mark.parametrize("training", [True, False])
def test_evaluation_changes_nothing(make: Callable[[], FewShotProblem], training: bool) -> None:
    problem = make()
    update_statistics(problem, make_sampler(DATASET))
    problem.network.train(training)
    before = {name: p.detach().clone() for name, p in problem.outer.items()}
    buffers = {name: p.clone() for name, p in problem.network.named_buffers()}
    for norm in norm_modes(problem):
        evaluate(problem, make_sampler(DATASET), tasks=3, norm=norm, adaptation=ADAPTATION)
    assert problem.network.training == training
    assert all(torch.equal(p, before[name]) for name, p in problem.outer.items())
    assert all(p.grad is None for p in problem.outer.values())
    assert all(torch.equal(p, buffers[n]) for n, p in problem.network.named_buffers())


def test_dropout_is_off() -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(Conv4(hidden=8, norm="none"), nn.Dropout(0.9)).double()
    problem = SharedEncoder(encoder, backend="loop")
    plain = SharedEncoder(encoder[0], backend="loop")
    assert torch.equal(measure(problem).values, measure(plain).values)


def test_chance_level_without_a_relation_between_images_and_labels() -> None:
    noise = make_dataset(20, 10)
    noise.images.random_(256)
    tasks = make_sampler(noise, way=4, query=5, tasks=50)
    torch.manual_seed(0)
    problem = SharedEncoder(Conv4(hidden=8, norm="none"), backend="loop")
    evaluation = evaluate(problem, tasks, tasks=300, norm="support")
    assert abs(evaluation.mean - 0.25) < 2 * evaluation.interval


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"tasks": 0}, "tasks is 0"),
        ({"chunk": -1}, "chunk is -1"),
        ({"norm": "running"}, r"not been estimated .*update_statistics"),
        ({"views": "shifts"}, "views is shifts, but the problem is Initialization"),
        ({"views": "crops", "embeddings": torch.zeros(56, 8)}, "embeddings are given"),
    ],
)
def test_requests_that_make_no_sense(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        measure(initialization(), **options)


def test_running_statistics_that_were_never_estimated() -> None:
    with pytest.raises(ConfigurationError, match=r"not been estimated .*update_statistics"):
        evaluate(make_problem(), make_sampler(DATASET), tasks=1, norm="running")


def test_diverging_inner_steps_are_no_chance_level() -> None:
    adaptation = InnerSteps(9, SGD(1e38))
    with pytest.raises(DivergenceError, match=r"not finite after 9 inner steps .*lower the step"):
        measure(initialization(), adaptation=adaptation)


_EMBEDDING = """
import torch
from pathlib import Path
from torch import nn
from fewshot_blo.machine.allocator import return_freed_memory
from fewshot_blo.evaluation.evaluate import embed
from fewshot_blo.machine.memory import memory_limit


def highest():  # Of this program alone, which ru_maxrss is not where a large one started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

assert return_freed_memory()
network = nn.Sequential(nn.Conv2d(1, 512, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
images = torch.zeros(256, 1, 32, 32, dtype=torch.uint8)  # 2 MiB each behind the convolution.
embed(network, images[:2])  # The first call loads libraries: hundreds of MiB in some builds.
before = highest()
with memory_limit(before / 2**20 + float(LIMIT)):
    features = embed(network, images)
assert features.shape == (256, 512)
print((highest() - before) / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads resident memory as Linux tells it")
@pytest.mark.parametrize(("limit", "least"), [(0.1, 0.0), (4.0, 0.1)])
def test_images_at_a_time_keep_a_limit_of_memory(limit: float, least: float) -> None:
    code = _EMBEDDING.replace("LIMIT", f"'{limit}'")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert least < float(result.stdout) < limit
