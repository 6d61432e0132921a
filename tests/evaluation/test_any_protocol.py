"""Heads, losses and metrics on the tasks of every protocol, beside the same tasks unpadded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_runs import SETTINGS, make_dataset
from torch import Tensor

from fewshot_blo.errors import ConfigurationError
from fewshot_blo.evaluation.evaluate import adapted, evaluate
from fewshot_blo.heads import HEADS, LinearHead
from fewshot_blo.hypergrad import Unroll
from fewshot_blo.kernel import SGD, InnerSteps
from fewshot_blo.networks import Conv4
from fewshot_blo.objectives import AUROC
from fewshot_blo.problems import SharedEncoder
from fewshot_blo.tasks import ClassSampler, MixedSampler, TaskBatch
from fewshot_blo.tasks.protocols import (
    Dirichlet,
    MetaDataset,
    OpenSet,
    Protocol,
    Remaining,
    Unequal,
)
from fewshot_blo.training.train import train

DATASET = make_dataset(9, 12, noise=150)
ADAPTATION = InnerSteps(3, SGD(0.2))
PROTOCOLS = (
    Unequal(3, (1, 4), 3),
    MetaDataset((2, 5), 4),
    Dirichlet(3, 2, 3),
    OpenSet(3, 2, 3, 2),
    Remaining(3, 2),
)


def sampler(protocol: Protocol, tasks: int = 4) -> ClassSampler:
    return ClassSampler(DATASET, protocol, tasks=tasks, dtype=torch.float64)


def problem(head: Any = LinearHead()) -> SharedEncoder:
    torch.manual_seed(0)
    encoder = Conv4(hidden=8).double()
    return SharedEncoder(encoder, head, features=8, way=5)


def alone(batch: TaskBatch, task: int) -> TaskBatch:
    """One task without padded rows and classes."""
    support, query = batch.support_rows[task], batch.query_rows[task]
    classes = batch.classes[task]
    x, q = batch.support_x, batch.query_x
    assert isinstance(x, Tensor)
    assert isinstance(q, Tensor)
    return TaskBatch(
        x[task][support][None],
        batch.support_y[task][support][None],
        q[task][query][None],
        batch.query_y[task][query][None],
        classes[classes >= 0][None],
    )


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("protocol", "head"),
    [
        *((protocol, LinearHead) for protocol in PROTOCOLS),
        # The head of tasks without classes takes the mean over outputs, padded ones too.
        *((MetaDataset((2, 5), 4), head) for head in HEADS if head.needs_classes),
    ],
    ids=lambda own: getattr(own, "__name__", type(own).__name__),
)
def test_padding_changes_nothing(protocol: Protocol, head: Any) -> None:
    batch = sampler(protocol).batch(1)
    own = problem(head())
    own.prepare(batch, derivatives="first")
    own.network.eval()
    with torch.no_grad():
        together = adapted(own, batch, "transductive", ADAPTATION)()
        for task in range(4):
            single = alone(batch, task)
            expected = adapted(own, single, "transductive", ADAPTATION)()[0]
            found = together[task][batch.query_rows[task]][:, : single.way]
            torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("protocol", [PROTOCOLS[1], PROTOCOLS[3]], ids=["MetaDataset", "OpenSet"])
def test_training_and_evaluation(protocol: Protocol, tmp_path: Any) -> None:
    source = sampler(protocol, tasks=2)
    own = problem()
    train(
        own,
        Unroll(InnerSteps(2, SGD(0.2))),
        source,
        source,
        settings=SETTINGS,
        adaptation=ADAPTATION,
        folder=tmp_path,
        progress=False,
    )
    assert 0 <= evaluate(own, source, tasks=6, adaptation=ADAPTATION).mean <= 1


def test_a_mixture_trains(tmp_path: Any) -> None:
    samplers = {str(n): sampler(protocol, tasks=1) for n, protocol in enumerate(PROTOCOLS)}
    source = MixedSampler(samplers, tasks=3)
    own = problem()
    settings: dict[str, Any] = {"settings": SETTINGS, "adaptation": ADAPTATION, "progress": False}
    train(own, Unroll(InnerSteps(2, SGD(0.2))), source, source, folder=tmp_path, **settings)
    found = evaluate(own, source, tasks=6, norm="running", adaptation=ADAPTATION)
    assert found.episodes.startswith("0.2 0 (3-way 1..4 (each class its own)-shot")


def test_open_set_metrics_in_an_evaluation() -> None:
    source = sampler(OpenSet(3, 2, 3, 2))
    found = evaluate(problem(), source, tasks=6, adaptation=ADAPTATION, metrics=(AUROC(),))
    (values,) = found.others.values()
    assert values.shape == (6,)
    assert ((values >= 0) & (values <= 1)).all()
    assert f"\n    AUROC {100 * float(values.mean()):.2f} ± " in str(found)
    assert str(found).endswith(" %")
    both = evaluate(problem(), source, tasks=2, metrics=(AUROC(), AUROC("logit")))
    assert [metric.name for metric in both.others] == ["AUROC", "AUROC (logit)"]
    with pytest.raises(ConfigurationError, match=r"several called .AUROC."):
        evaluate(problem(), source, tasks=2, metrics=(AUROC(), AUROC()))
