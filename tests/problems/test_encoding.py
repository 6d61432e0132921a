"""Features averaged over views of an image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_images import network
from small_runs import make_dataset, make_sampler
from torch import Tensor

from fewshot_blo.backbones import Backbone
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.evaluation.evaluate import embed
from fewshot_blo.networks import Conv4
from fewshot_blo.networks.views import COUNT, ImageViews, Views
from fewshot_blo.problems import NormMode, SharedEncoder
from fewshot_blo.tasks import TaskBatch
from fewshot_blo.training.running_statistics import update_statistics

DATASET = make_dataset(5, 8, noise=150)
RAGGED: dict[str, Any] = {"way": (2, 3), "shot": (1, 2), "query": (1, 3)}
every_view = pytest.mark.parametrize("views", [v for v in COUNT if v != "scales"])


def sampler(**sizes: Any) -> Any:
    return make_sampler(DATASET, tasks=3, dtype=torch.float64, **sizes)


def problem(**settings: Any) -> SharedEncoder:
    torch.manual_seed(0)
    made = SharedEncoder(Conv4(hidden=8, pools=3).double(), backend="loop", **settings)
    update_statistics(made, sampler())
    return made


def encoded(made: SharedEncoder, batch: TaskBatch, norm: NormMode) -> Tensor:
    """Features ``[T, N*(K+Q), D]`` in the scale of the head."""
    return made.bind(batch, norm).bilevel.outer["features"].detach()


def view(images: Tensor, views: Views, number: int) -> Tensor:
    """A view of the images ``[T, B, ...]`` of tasks, one image after the other."""
    tasks = [[ImageViews(views)(image[None])[number] for image in task] for task in images]
    return torch.stack([torch.stack(task) for task in tasks])


@pytest.mark.sampled(4)
@every_view
@pytest.mark.parametrize("norm", ["transductive", "support", "running"])
@pytest.mark.parametrize("sizes", [{}, RAGGED], ids=["fixed", "ragged"])
def test_features_are_means_over_views_of_a_task_alone(
    views: Views, norm: NormMode, sizes: dict[str, Any]
) -> None:
    made, batch = problem(), sampler(**sizes).batch(0)
    found = encoded(made.with_views(views), batch, norm)
    for t in range(batch.tasks):
        task = batch[t : t + 1]
        seen = [
            replace(
                task,
                support_x=view(task.support_x, views, number),
                query_x=view(task.query_x, views, number),
            )
            for number in range(COUNT[views])
        ]
        expected = torch.stack([encoded(made, one, norm) for one in seen]).mean(0)
        real = torch.cat([task.support_y, task.query_y], 1)[0] >= 0
        torch.testing.assert_close(found[t, real], expected[0, real], rtol=1e-10, atol=1e-12)


@every_view
def test_embeddings_are_what_tasks_are_encoded_to(views: Views) -> None:
    made, batch = problem().with_views(views), sampler().batch(0)
    made.network.eval()
    with torch.no_grad():
        each = torch.stack([made.embedder(images) for images in batch.query_x])
    found = encoded(made, batch, "running")[:, -each.shape[1] :]
    torch.testing.assert_close(found, each / each.shape[-1] ** 0.5, rtol=1e-10, atol=1e-12)


def test_features_in_place_of_images_have_no_views() -> None:
    made = problem().with_views("shifts")
    embeddings = embed(made.embedder, DATASET.images, torch.float64)
    batch = sampler().batch(0)
    on_features = sampler().batch(0, embeddings)
    torch.testing.assert_close(
        encoded(made.on_features(), on_features, "running"), encoded(made, batch, "running")
    )


def test_the_problem_itself_keeps_its_view() -> None:
    made, batch = problem(), sampler().batch(0)
    before = encoded(made, batch, "running")
    several = made.with_views("mirrored")
    assert not torch.equal(encoded(several, batch, "running"), before)
    assert torch.equal(encoded(made, batch, "running"), before)
    assert torch.equal(encoded(several.with_views("one"), batch, "running"), before)


def test_a_backbone_makes_its_own_views() -> None:
    made = SharedEncoder(network(), backend="loop").with_views("scales")
    assert isinstance(made.network, Backbone)
    assert made.network.views.views == "scales"
    assert made.embedder is made.network
    assert set(made.outer) == {name for name, _ in made.network.named_parameters()}


def test_three_sizes_of_an_encoder_that_does_not_resize() -> None:
    with pytest.raises(ConfigurationError, match="views is scales, but the encoder is a Conv4"):
        problem().with_views("scales")
